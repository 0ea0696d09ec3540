//! Where the device state ends, found while it streams past.
//!
//! Device sections have no length field, so nobody but the QEMU that knows the devices can walk
//! them. What can be told is whether they are complete: after the last section comes
//! `00` (end), `06` (description), a 32-bit length and that many bytes of JSON, and then the input
//! ends. [`TailScanner`] watches for that pattern and remembers the few places where it began; at
//! the end exactly the one whose length reaches the last byte is the true one. A stream that was
//! cut anywhere has none.
//!
//! Source: QEMU 10.0 `migration/savevm.c:1605-1655`.

use crate::Error;
use crate::limits::{MAX_DEVICE_STATE_BYTES, MAX_VMDESC_BYTES};
use crate::wire::{EOF, VMDESCRIPTION};

/// `00 06 <be32> '{'`: seven bytes.
const PATTERN_BYTES: u64 = 7;
/// Places where the pattern began and whose description has not ended yet. Real streams have one.
const MAX_CANDIDATES: usize = 256;

/// Lengths of the parts of a complete device state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailEnd {
    sections_bytes: u64,
    vmdesc_bytes: u32,
}

impl TailEnd {
    /// Bytes of the device sections, before the end mark.
    pub fn sections_bytes(&self) -> u64 {
        self.sections_bytes
    }

    /// Offset of the JSON description from the start of the device state.
    pub fn vmdesc_offset(&self) -> u64 {
        self.sections_bytes + PATTERN_BYTES - 1
    }

    /// Bytes of the JSON description.
    pub fn vmdesc_bytes(&self) -> u32 {
        self.vmdesc_bytes
    }

    /// Bytes of everything.
    pub fn total_bytes(&self) -> u64 {
        self.vmdesc_offset() + u64::from(self.vmdesc_bytes)
    }
}

/// Watches device state go by. Feed it every byte once, in order, in any cut.
#[derive(Debug, Default)]
pub struct TailScanner {
    window: u64,
    seen: u64,
    candidates: Vec<TailEnd>,
}

impl TailScanner {
    /// A scanner that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes seen.
    pub fn seen_bytes(&self) -> u64 {
        self.seen
    }

    /// Takes the next bytes; `offset` is where they stand in the whole input.
    ///
    /// # Errors
    /// [`Error::OverLimit`] when there is more device state than any machine has.
    pub fn feed(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let (what, limit) = ("device state", MAX_DEVICE_STATE_BYTES);
        let value = self.seen.saturating_add(bytes.len() as u64);
        if value > limit {
            return Err(Error::OverLimit { offset, what, value, limit });
        }
        for &byte in bytes {
            self.seen += 1;
            self.window = (self.window << 8) | u64::from(byte);
            let marks = (self.window >> 40) & 0xffff;
            if byte == b'{' && marks == u64::from(u16::from_be_bytes([EOF, VMDESCRIPTION])) {
                self.begin(offset)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, offset: u64) -> Result<(), Error> {
        let vmdesc_bytes = (self.window >> 8) as u32;
        let Some(sections_bytes) = self.seen.checked_sub(PATTERN_BYTES) else {
            return Ok(());
        };
        if vmdesc_bytes > MAX_VMDESC_BYTES {
            return Ok(());
        }
        if self.candidates.len() == MAX_CANDIDATES {
            let seen = self.seen;
            self.candidates.retain(|c| c.total_bytes() >= seen);
        }
        if self.candidates.len() == MAX_CANDIDATES {
            let (what, limit) = ("descriptions in device state", MAX_CANDIDATES as u64);
            return Err(Error::OverLimit { offset, what, value: limit + 1, limit });
        }
        self.candidates.push(TailEnd { sections_bytes, vmdesc_bytes });
        Ok(())
    }

    /// Tells where the parts are, now that the input has ended at `offset`.
    ///
    /// # Errors
    /// [`Error::Truncated`] when no description ends exactly here.
    pub fn finish(&self, offset: u64) -> Result<TailEnd, Error> {
        let whole = |c: &&TailEnd| c.total_bytes() == self.seen;
        let closed = self.window & 0xff == u64::from(b'}');
        let found = self.candidates.iter().find(whole).filter(|_| closed);
        found.copied().ok_or(Error::Truncated { offset, what: "device state" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<TailEnd, Error> {
        let mut scanner = TailScanner::new();
        for byte in bytes {
            scanner.feed(std::slice::from_ref(byte), 0)?;
        }
        scanner.finish(bytes.len() as u64)
    }

    #[test]
    fn only_the_whole_tail_is_complete() {
        let tail = b"\x04device\x00\x06\x00\x00\x00\x09{fooled\x7e\x00\x06\x00\x00\x00\x04{()}";
        let end = scan(tail).expect("complete");
        assert_eq!(end.sections_bytes(), tail.len() as u64 - 10);
        assert_eq!(end.vmdesc_bytes(), 4);
        for cut in 0..tail.len() {
            assert!(matches!(scan(&tail[..cut]), Err(Error::Truncated { .. })), "cut at {cut}");
        }
        let mut longer = tail.to_vec();
        longer.push(b'}');
        assert!(scan(&longer).is_err());
    }

    #[test]
    fn a_flood_of_false_starts_is_refused() {
        let flood = b"\x00\x06\x00\x00\xff\xff{".repeat(MAX_CANDIDATES + 1);
        assert!(matches!(scan(&flood), Err(Error::OverLimit { .. })));
    }
}
