//! The map of a shared memory image: what is read is written the same again, and any range of the file is cut into pieces
//! without gaps. Never panics.
//!
//! Input: a range, then the file without its checksums, which are made to fit; otherwise nothing would get past them.
#![no_main]

use keyframe_vmstate::shared::{SharedHeader, SharedMap};
use libfuzzer_sys::fuzz_target;

/// Bytes before the list of segments, and of one segment.
const FIXED: usize = 104;
const SEGMENT: usize = 16;

fuzz_target!(|input: &[u8]| {
    let Some((range, rest)) = input.split_first_chunk::<16>() else { return };
    let _ = SharedMap::parse(rest);
    let Some(bytes) = sealed(rest) else { return };
    let header = SharedHeader::parse(&bytes);
    let Ok(map) = SharedMap::parse(&bytes) else { return };
    assert_eq!(header.as_ref(), Ok(map.header()));
    assert_eq!(map.to_bytes(), bytes);
    let (offset, length) = range.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |v, b| v << 8 | u64::from(*b));
    let (offset, length) = (number(offset) % (1 << 44), number(length) % (1 << 30));
    let mut at = offset;
    for piece in map.pieces(offset, length) {
        assert!(piece.offset == at && piece.bytes > 0);
        assert!(piece.segment.is_none_or(|segment| segment < map.header().segments.len()));
        at += piece.bytes;
    }
    assert_eq!(at, offset + length);
});

/// The file with the checksums put in.
fn sealed(rest: &[u8]) -> Option<Vec<u8>> {
    let count = u32::from_le_bytes(*rest.get(16..20)?.first_chunk()?) as usize;
    let end = FIXED.checked_add(count.checked_mul(SEGMENT)?)?;
    let (mut header, runs) = (rest.get(..end)?.to_vec(), rest.get(end..)?);
    header.get_mut(72..FIXED)?.copy_from_slice(blake3::hash(runs).as_bytes());
    let digest = blake3::hash(&header);
    header.extend(digest.as_bytes());
    header.extend(runs);
    Some(header)
}
