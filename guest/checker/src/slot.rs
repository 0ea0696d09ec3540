//! One 4 KiB block as it lies on a disk: who wrote it, on which disk, where, and as which write.
//!
//! ```text
//! offset  size  field, little-endian
//!      0     8  magic "KFSLOT01"
//!      8     8  session token
//!     16     4  disk number
//!     20     4  slot number
//!     24     8  sequence number
//!     32  4056  filler that follows from the fields above
//!   4088     8  checksum of bytes 0..4088
//! ```

use crate::units::{PAGE_BYTES, Token, mix};

const MAGIC: [u8; 8] = *b"KFSLOT01";
const CHECKSUM_AT: usize = PAGE_BYTES - 8;

/// Number of a write to one disk. The first is 1; 0 stands for the blank ring a session starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(u64);

impl Sequence {
    /// What every slot holds when a session starts.
    pub const BLANK: Self = Self(0);

    /// The write after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The bare number, for counters and printing.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The write with this number.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Position of a disk among those under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIndex(pub u32);

/// Position of a slot in a disk's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotIndex(pub u32);

/// What a slot says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The session that wrote it.
    pub token: Token,
    /// The disk it was written to.
    pub disk: DiskIndex,
    /// The place it was written to.
    pub slot: SlotIndex,
    /// Which write it was.
    pub sequence: Sequence,
}

/// A block of 4096 bytes, aligned as direct I/O wants it.
#[repr(align(4096))]
#[derive(Clone)]
pub struct Block([u8; PAGE_BYTES]);

impl Block {
    /// A block of zeroes to read into.
    pub const fn zeroed() -> Self {
        Self([0; PAGE_BYTES])
    }

    /// The block that carries `stamp`.
    pub fn stamped(stamp: Stamp) -> Self {
        let mut block = Self::zeroed();
        let bytes = &mut block.0;
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&stamp.token.raw().to_le_bytes());
        bytes[16..20].copy_from_slice(&stamp.disk.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&stamp.slot.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&stamp.sequence.0.to_le_bytes());
        let seed = checksum(&bytes[..32]);
        for (at, word) in bytes[32..CHECKSUM_AT].chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&seed.wrapping_mul(2 * at as u64 + 1).to_le_bytes());
        }
        let sum = checksum(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The stamp, when magic and checksum are right.
    pub fn stamp(&self) -> Option<Stamp> {
        let bytes = &self.0;
        if bytes[..8] != MAGIC || word(bytes, CHECKSUM_AT) != checksum(&bytes[..CHECKSUM_AT]) {
            return None;
        }
        let half = |at| (word(bytes, at) & u64::from(u32::MAX)) as u32;
        Some(Stamp {
            token: Token::from_raw(word(bytes, 8)),
            disk: DiskIndex(half(16)),
            slot: SlotIndex(half(20)),
            sequence: Sequence(word(bytes, 24)),
        })
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, to read into or to spoil.
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0_u8; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// Every byte and its position counts; no protection against intent is meant.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(0x4b46_5355_4d21, |sum, chunk| mix(sum ^ word(chunk, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stamp_comes_back_as_it_went_in(token: u64, disk: u32, slot: u32, sequence: u64) {
            let stamp = Stamp {
                token: Token::from_raw(token),
                disk: DiskIndex(disk),
                slot: SlotIndex(slot),
                sequence: Sequence(sequence),
            };
            prop_assert_eq!(Block::stamped(stamp).stamp(), Some(stamp));
        }

        #[test]
        fn one_flipped_bit_is_found(byte in 0..PAGE_BYTES, bit in 0_u8..8) {
            let stamp = Stamp {
                token: Token::from_raw(7),
                disk: DiskIndex(0),
                slot: SlotIndex(1),
                sequence: Sequence(2),
            };
            let mut block = Block::stamped(stamp);
            block.bytes_mut()[byte] ^= 1_u8 << bit;
            prop_assert_eq!(block.stamp(), None);
        }
    }

    #[test]
    fn an_empty_disk_has_no_stamp() {
        assert_eq!(Block::zeroed().stamp(), None);
    }
}
