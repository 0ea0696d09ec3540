//! Parity: what mends damaged places of an object.
//!
//! The protected bytes (header, body, MAC) are cut into shards of equal length, the last one filled up with zeros. Reed-Solomon
//! recovery shards follow, then a table of checksums that tells which shards are damaged, then a copy of the header:
//!
//! ```text
//! recovery shards    recovery × shard_bytes
//! checksums          (shards + recovery) × 8    keyed BLAKE3, cut to 64 bits
//! header's copy      64
//! check              32                          keyed BLAKE3 of the checksums and the header's copy
//! ```
//!
//! As many shards can be damaged as there are recovery shards. Whether mending succeeded is decided by the object's MAC alone.

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use crate::error::{Error, Result};
use crate::object::{HEADER_BYTES, MAC_BYTES};

const SHARD_LEAST: u64 = 64;
const SHARD_MOST: u64 = 32 * 1024;
/// Small objects are cut into about so many shards.
const SHARDS_AIMED: u64 = 64;
const CHECKSUM_BYTES: usize = 8;
const RECOVERY_LEAST: u64 = 2;
/// Limit of the code.
const SHARDS_LIMIT: u64 = 32_768;

/// How an object is protected. Without recovery shards it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of recovery shards; 0 for none.
    pub recovery: u16,
    /// Bytes of a shard; 0 without recovery.
    pub shard_bytes: u32,
}

impl Shape {
    /// The shape for so many protected bytes.
    #[must_use]
    pub fn choose(protected: u64, percent: u8) -> Self {
        if percent == 0 {
            return Self { recovery: 0, shard_bytes: 0 };
        }
        let shard = (protected / SHARDS_AIMED).next_multiple_of(SHARD_LEAST).clamp(SHARD_LEAST, SHARD_MOST);
        let shards = protected.div_ceil(shard);
        let recovery = (shards * u64::from(percent)).div_ceil(100).clamp(RECOVERY_LEAST, 16_384);
        Self { recovery: recovery as u16, shard_bytes: shard as u32 }
    }

    /// Whether it is possible for so many protected bytes.
    #[must_use]
    pub fn is_sound(self, protected: u64) -> bool {
        let shard = u64::from(self.shard_bytes);
        if self.recovery == 0 {
            return shard == 0;
        }
        (SHARD_LEAST..=SHARD_MOST).contains(&shard)
            && shard.is_multiple_of(SHARD_LEAST)
            && protected.div_ceil(shard) <= SHARDS_LIMIT
            && u64::from(self.recovery) <= SHARDS_LIMIT / 2
            && u64::from(self.recovery) <= protected.div_ceil(shard).max(RECOVERY_LEAST)
    }

    fn shards(self, protected: usize) -> usize {
        protected.div_ceil(self.shard_bytes.max(1) as usize)
    }
}

/// Bytes of parity behind so many protected bytes.
#[must_use]
pub fn len(shape: Shape, protected: u64) -> u64 {
    if shape.recovery == 0 {
        return 0;
    }
    let shard = u64::from(shape.shard_bytes);
    let recovery = u64::from(shape.recovery);
    recovery * shard
        + (protected.div_ceil(shard) + recovery) * CHECKSUM_BYTES as u64
        + (HEADER_BYTES + MAC_BYTES) as u64
}

fn checksum(auth: &[u8; 32], shard: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::keyed_hash(auth, shard).as_bytes().first_chunk().unwrap_or(&[0; CHECKSUM_BYTES])
}

/// Appends the parity of all that is in `bytes`.
pub(crate) fn append(bytes: &mut Vec<u8>, shape: Shape, auth: &[u8; 32]) -> Result<()> {
    if shape.recovery == 0 {
        return Ok(());
    }
    let failed = |_| Error::Pipeline;
    let shard_bytes = shape.shard_bytes as usize;
    let shards = shape.shards(bytes.len());
    let mut encoder = ReedSolomonEncoder::new(shards, shape.recovery.into(), shard_bytes).map_err(failed)?;
    let mut table = Vec::with_capacity((shards + usize::from(shape.recovery)) * CHECKSUM_BYTES);
    for shard in bytes.chunks(shard_bytes) {
        let padded = padded(shard, shard_bytes);
        table.extend_from_slice(&checksum(auth, &padded));
        encoder.add_original_shard(&padded).map_err(failed)?;
    }
    let header: [u8; HEADER_BYTES] = *bytes.first_chunk().ok_or(Error::Pipeline)?;
    let result = encoder.encode().map_err(failed)?;
    for shard in result.recovery_iter() {
        table.extend_from_slice(&checksum(auth, shard));
        bytes.extend_from_slice(shard);
    }
    table.extend_from_slice(&header);
    let check = blake3::keyed_hash(auth, &table);
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(check.as_bytes());
    Ok(())
}

fn padded(shard: &[u8], len: usize) -> std::borrow::Cow<'_, [u8]> {
    if shard.len() == len {
        return shard.into();
    }
    let mut owned = shard.to_vec();
    owned.resize(len, 0);
    owned.into()
}

/// The header's copy at the end of an object, for one whose beginning is damaged.
#[must_use]
pub fn header_copy(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.len().checked_sub(MAC_BYTES)?;
    bytes.get(end.checked_sub(HEADER_BYTES)?..end)
}

/// Mends the protected bytes of an object whose true header has this shape and length. Gives them with what could be mended;
/// nothing when too much is damaged or nothing is. The MAC decides whether the result is right.
#[must_use]
pub fn mend(bytes: &[u8], shape: Shape, protected: usize, auth: &[u8; 32]) -> Option<Vec<u8>> {
    if shape.recovery == 0 || !shape.is_sound(protected as u64) {
        return None;
    }
    let (shard_bytes, recovery, shards) =
        (shape.shard_bytes as usize, usize::from(shape.recovery), shape.shards(protected));
    let table_at = protected + recovery * shard_bytes;
    let table = bytes.get(table_at..table_at + (shards + recovery) * CHECKSUM_BYTES)?;
    let (sums, _) = table.as_chunks::<CHECKSUM_BYTES>();
    let mut fixed = bytes.get(..protected)?.to_vec();
    let mut decoder = ReedSolomonDecoder::new(shards, recovery, shard_bytes).ok()?;
    let mut lost = Vec::new();
    for (number, (shard, sum)) in fixed.chunks(shard_bytes).zip(sums).enumerate() {
        let padded = padded(shard, shard_bytes);
        if checksum(auth, &padded) == *sum {
            decoder.add_original_shard(number, &padded).ok()?;
        } else {
            lost.push(number);
        }
    }
    if lost.is_empty() || lost.len() > recovery {
        return None;
    }
    let parity = bytes.get(protected..table_at)?.chunks(shard_bytes).zip(sums.get(shards..)?).enumerate();
    for (number, (shard, sum)) in parity {
        if checksum(auth, shard) == *sum {
            decoder.add_recovery_shard(number, shard).ok()?;
        }
    }
    let result = decoder.decode().ok()?;
    for number in lost {
        let restored = result.restored_original(number)?;
        let place = fixed.chunks_mut(shard_bytes).nth(number)?;
        place.copy_from_slice(restored.get(..place.len())?);
    }
    Some(fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTH: [u8; 32] = [5; 32];

    fn protected(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    #[test]
    fn as_many_shards_are_mended_as_there_is_parity() {
        for (len, percent) in [(200, 1), (5000, 5), (3 << 20, 2)] {
            let plain = protected(len);
            let shape = Shape::choose(len as u64, percent);
            assert!(shape.is_sound(len as u64));
            let mut bytes = plain.clone();
            append(&mut bytes, shape, &AUTH).unwrap();
            assert_eq!(bytes.len() as u64, len as u64 + super::len(shape, len as u64));
            assert!(mend(&bytes, shape, len, &AUTH).is_none(), "nothing is damaged");
            let shard = shape.shard_bytes as usize;
            for count in 1..=usize::from(shape.recovery) + 1 {
                let mut bad = bytes.clone();
                for number in 0..count.min(len.div_ceil(shard)) {
                    bad[number * shard] ^= 0xff;
                }
                let mended = mend(&bad, shape, len, &AUTH);
                assert_eq!(
                    mended.as_ref() == Some(&plain),
                    count <= usize::from(shape.recovery),
                    "{count} of {shape:?}"
                );
            }
        }
    }

    #[test]
    fn damaged_recovery_shards_are_left_out() {
        let plain = protected(100_000);
        let shape = Shape::choose(100_000, 5);
        assert!(shape.recovery >= 3);
        let mut bytes = plain.clone();
        append(&mut bytes, shape, &AUTH).unwrap();
        bytes[3] ^= 1;
        bytes[100_001] ^= 1;
        assert_eq!(mend(&bytes, shape, 100_000, &AUTH).unwrap(), plain);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for (recovery, shard_bytes) in [(0, 64), (1, 0), (1, 63), (1, 100), (60_000, 64), (1, 1 << 20), (3, 64)] {
            assert!(!Shape { recovery, shard_bytes }.is_sound(100), "{recovery} {shard_bytes}");
        }
        assert!(!Shape { recovery: 2, shard_bytes: 64 }.is_sound(1 << 30));
    }
}
