//! Frames: what is compressed and sealed as one.
//!
//! A data frame holds up to [`FRAME_PAGES`] pages, a node frame tree nodes. A frame is named by the pack it was first written
//! in and its number there, for ever: prune may move it to another pack and replace pages that nothing refers to by zeros, but
//! a page keeps its slot. So nothing that refers to a frame ever has to be rewritten.
//!
//! Plain bytes of a sealed frame: 4 bytes, bit 31 set when the content is not compressed, bit 30 when a map of absent pages is
//! there, the other bits the length when decompressed; then the map, 16 bytes, bit n for page n; then the content. Without the
//! map a page that was given up could be taken for one of zeros.

use crate::crypto::SectionKey;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, PAGE_BYTES};

/// Most pages of a frame: 512 KiB compress nearly as well as 1 MiB and are read at random in a fraction of a millisecond.
pub const FRAME_PAGES: usize = 128;
/// Most bytes of a frame when decompressed.
pub const FRAME_MOST: usize = FRAME_PAGES * PAGE_BYTES;
/// Bytes in front of the content.
const HEAD_BYTES: usize = 4;
const STORED_PLAIN: u32 = 1 << 31;
const HAS_ABSENT: u32 = 1 << 30;
const ABSENT_BYTES: usize = 16;

/// A set of pages of a frame, bit n for page n.
pub type Slots = u128;
const _: () = assert!(FRAME_PAGES == Slots::BITS as usize, "one bit for each page");

/// The set of `count` pages from `first` on.
#[must_use]
pub fn slots(first: u16, count: u32) -> Slots {
    let ones = if count >= Slots::BITS { Slots::MAX } else { (1 << count) - 1 };
    ones.checked_shl(first.into()).unwrap_or(0)
}

/// A frame's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameName {
    /// The pack that it was first written in.
    pub pack: ObjectId,
    /// Its number there.
    pub number: u32,
}

/// Compresses frames; keeps its tables from one to the next.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    /// Fresh memory is costlier than compressing into it.
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// With zstd's level.
    ///
    /// # Errors
    /// [`Error::Compression`].
    pub fn new(level: i32) -> Result<Self> {
        let mut context = zstd::bulk::Compressor::new(level).map_err(Error::Compression)?;
        context.include_contentsize(false).map_err(Error::Compression)?;
        Ok(Self { context, scratch: Vec::new() })
    }

    /// Compresses and seals a frame; pages in `absent` are not there any more.
    ///
    /// # Errors
    /// [`Error::Compression`], [`Error::Crypto`].
    pub fn seal(&mut self, raw: &[u8], absent: Slots, key: &SectionKey, nonce: u32) -> Result<Vec<u8>> {
        let len = u32::try_from(raw.len()).ok().filter(|_| raw.len() <= FRAME_MOST).ok_or(Error::Pipeline)?;
        let bound = zstd::zstd_safe::compress_bound(raw.len());
        let map = absent.to_le_bytes();
        let map = if absent == 0 { &[][..] } else { &map };
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        let packed = self.context.compress_to_buffer(raw, self.scratch.as_mut_slice()).map_err(Error::Compression)?;
        // What saves less than a thirty-second costs more time when it is read than it is worth.
        let plain = packed + raw.len() / 32 >= raw.len();
        let content = if plain { raw } else { self.scratch.get(..packed).unwrap_or_default() };
        let mut sealed = Vec::with_capacity(HEAD_BYTES + map.len() + content.len() + crate::crypto::TAG_BYTES);
        sealed.resize(HEAD_BYTES, 0);
        sealed.extend_from_slice(map);
        sealed.extend_from_slice(content);
        let flags = if plain { STORED_PLAIN } else { 0 } | if absent == 0 { 0 } else { HAS_ABSENT };
        if let Some(place) = sealed.first_chunk_mut::<HEAD_BYTES>() {
            *place = (len | flags).to_le_bytes();
        }
        key.seal(nonce, &mut sealed, 0)?;
        Ok(sealed)
    }
}

/// Opens and decompresses frames.
pub struct Decompressor {
    context: zstd::bulk::Decompressor<'static>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A fresh one.
    ///
    /// # Errors
    /// [`Error::Compression`].
    pub fn new() -> Result<Self> {
        Ok(Self { context: zstd::bulk::Decompressor::new().map_err(Error::Compression)? })
    }

    /// Opens a sealed frame in place and decompresses it into `raw`; gives the pages that are absent. At most [`FRAME_MOST`] bytes come out, whatever the
    /// frame says.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn open(&mut self, sealed: &mut [u8], key: &SectionKey, nonce: u32, raw: &mut Vec<u8>) -> Result<Slots> {
        let damaged = |why| Error::damaged("a frame", why);
        let plain = key.open(nonce, sealed).ok_or_else(|| damaged("it is not what was sealed"))?;
        let (head, content) = plain.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| damaged("it is too short"))?;
        let head = u32::from_le_bytes(*head);
        let len = (head & !(STORED_PLAIN | HAS_ABSENT)) as usize;
        let (absent, content) = if head & HAS_ABSENT == 0 {
            (0, content)
        } else {
            let (map, rest) = content.split_first_chunk::<ABSENT_BYTES>().ok_or_else(|| damaged("it is too short"))?;
            (Slots::from_le_bytes(*map), rest)
        };
        if len > FRAME_MOST {
            return Err(damaged("it is larger than a frame can be"));
        }
        raw.clear();
        if head & STORED_PLAIN != 0 {
            raw.extend_from_slice(content);
        } else {
            raw.resize(len, 0);
            let got = self.context.decompress_to_buffer(content, raw.as_mut_slice());
            raw.truncate(got.map_err(|_| damaged("it does not decompress"))?);
        }
        if raw.len() == len { Ok(absent) } else { Err(damaged("it has not the length that it tells")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(raw: &[u8]) -> usize {
        let key = SectionKey::new(&[3; 32]).unwrap();
        let mut sealed = Compressor::new(1).unwrap().seal(raw, 0, &key, 5).unwrap();
        let len = sealed.len();
        let mut back = vec![1, 2, 3];
        Decompressor::new().unwrap().open(&mut sealed, &key, 5, &mut back).unwrap();
        assert_eq!(back, raw);
        len
    }

    #[test]
    fn frames_read_back_whether_they_compress_or_not() {
        assert!(round_trip(&[7; FRAME_MOST]) < 1000);
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        assert_eq!(round_trip(&noise.take(8192).collect::<Vec<_>>()), 8192 + 4 + 16);
        assert_eq!(round_trip(&[]), 20);
    }

    #[test]
    fn absent_pages_are_told() {
        let key = SectionKey::new(&[3; 32]).unwrap();
        let absent = slots(3, 2) | slots(127, 1);
        let mut sealed = Compressor::new(1).unwrap().seal(&[1; 8192], absent, &key, 0).unwrap();
        let mut raw = Vec::new();
        assert_eq!(Decompressor::new().unwrap().open(&mut sealed, &key, 0, &mut raw).unwrap(), absent);
        assert_eq!(raw, [1; 8192]);
        assert_eq!((slots(0, 128), slots(127, 1), slots(1, 2)), (u128::MAX, 1 << 127, 6));
    }

    #[test]
    fn a_bomb_is_refused_before_it_grows() {
        let key = SectionKey::new(&[3; 32]).unwrap();
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        for head in [64_u32 << 20, FRAME_MOST as u32, 10] {
            let mut sealed = head.to_le_bytes().to_vec();
            sealed.extend_from_slice(&bomb);
            key.seal(0, &mut sealed, 0).unwrap();
            let mut raw = Vec::new();
            assert!(Decompressor::new().unwrap().open(&mut sealed, &key, 0, &mut raw).is_err());
            assert!(raw.capacity() <= FRAME_MOST);
        }
    }
}
