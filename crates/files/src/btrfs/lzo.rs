//! LZO1X, in the frames that btrfs puts it in.

use crate::bytes::Fields as _;
use crate::error::{Result, damaged};

/// Decompresses an extent of at most `most` bytes: a length, then segments of a length and data; no length crosses a sector's border.
pub(super) fn extent(raw: &[u8], sector: usize, most: usize) -> Result<Vec<u8>> {
    let total = (raw.le32(0)? as usize).min(raw.len());
    let (mut at, mut out) = (4, Vec::new());
    while at + 4 <= total && out.len() < most {
        let left_in_sector = sector - at % sector;
        if left_in_sector < 4 {
            at += left_in_sector;
            continue;
        }
        let len = raw.le32(at)? as usize;
        let room = (most - out.len()).min(sector);
        out.extend(segment(raw.part(at + 4, len)?, room)?);
        at += 4 + len;
    }
    Ok(out)
}

/// One segment. Source: Linux, Documentation/staging/lzo.rst.
fn segment(raw: &[u8], most: usize) -> Result<Vec<u8>> {
    let mut input = Input { raw, at: 0 };
    let mut out = Vec::with_capacity(most);
    // How many literals the last instruction ended with; four stands for a run of literals.
    let mut state = 0;
    if let first @ 18.. = raw.u8(0)? {
        input.at = 1;
        let count = usize::from(first) - 17;
        input.literals(count, most, &mut out)?;
        state = count.min(4);
    }
    loop {
        let t = usize::from(input.byte()?);
        let (distance, len, literals) = match t {
            0..16 if state == 0 => {
                let count = 3 + if t == 0 { 15 + input.long()? } else { t };
                input.literals(count, most, &mut out)?;
                state = 4;
                continue;
            }
            0..16 if state < 4 => ((t >> 2) + (usize::from(input.byte()?) << 2) + 1, 2, t & 3),
            0..16 => ((t >> 2) + (usize::from(input.byte()?) << 2) + 0x801, 3, t & 3),
            16..32 => {
                let len = 2 + if t & 7 == 0 { 7 + input.long()? } else { t & 7 };
                let pair = input.pair()?;
                let distance = ((t & 8) << 11) + (pair >> 2);
                if distance == 0 {
                    return Ok(out);
                }
                (distance + 0x4000, len, pair & 3)
            }
            32..64 => {
                let len = 2 + if t & 31 == 0 { 31 + input.long()? } else { t & 31 };
                let pair = input.pair()?;
                ((pair >> 2) + 1, len, pair & 3)
            }
            _ => ((t >> 2 & 7) + (usize::from(input.byte()?) << 3) + 1, (t >> 5) + 1, t & 3),
        };
        if distance > out.len() || out.len() + len > most {
            return Err(broken());
        }
        for _ in 0..len {
            let byte = out.get(out.len() - distance).copied().ok_or_else(broken)?;
            out.push(byte);
        }
        input.literals(literals, most, &mut out)?;
        state = literals;
    }
}

fn broken() -> crate::error::Error {
    damaged("LZO data")
}

struct Input<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = self.raw.u8(self.at)?;
        self.at += 1;
        Ok(byte)
    }

    fn pair(&mut self) -> Result<usize> {
        let pair = self.raw.le16(self.at)?;
        self.at += 2;
        Ok(usize::from(pair))
    }

    /// A number in bytes of which all but the last are zero, and stand for 255.
    fn long(&mut self) -> Result<usize> {
        let mut sum = 0;
        loop {
            match self.byte()? {
                0 => sum += 255,
                last => return Ok(sum + usize::from(last)),
            }
        }
    }

    fn literals(&mut self, count: usize, most: usize, out: &mut Vec<u8>) -> Result<()> {
        if out.len() + count > most {
            return Err(broken());
        }
        out.extend_from_slice(self.raw.part(self.at, count)?);
        self.at += count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repetition_is_spelled_out() {
        // Four literals, then a match of eight bytes four back, and the end.
        let raw = [21, b'a', b'b', b'c', b'd', 32 + 6, 3 << 2, 0, 17, 0, 0];
        assert_eq!(segment(&raw, 4096).unwrap(), b"abcdabcdabcd");
        assert!(segment(&raw, 8).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end(raw: Vec<u8>, most in 0usize..70_000) {
            let out = extent(&raw, 4096, most);
            prop_assert!(out.map_or(0, |out| out.len()) <= most);
        }
    }
}
