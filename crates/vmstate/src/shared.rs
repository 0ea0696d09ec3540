//! `memory.map`: in whose files the pages of a shared memory image lie.
//!
//! Snapshots of one machine have most of their pages in common. A *shared* image keeps only those that no older
//! image holds; for the others its map names the snapshot in whose file they really lie, never one that only
//! knows where they lie: there is no chain. A page lies at the same offset in every file that has it, so a run is a
//! range of file pages and a number in the list of *segments*, which are snapshots. What no run covers is in the image's
//! own file.
//!
//! Bytes: docs/formats/snapshot.md, "memory.map".

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::limits::{MAX_DEVICE_STATE_BYTES, MAX_RAM_BYTES};
use crate::sums::{SUM_BYTES, Sum};
use crate::units::PAGE_SIZE;

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"KFMEMMAP";
/// Version written and read.
pub const VERSION: u32 = 1;
/// Segments of a map, at most: so many files a reader has open.
pub const MAX_SEGMENTS: usize = 64;
/// Runs of a map, at most: 4 MiB.
pub const MAX_RUNS: usize = 1 << 18;

const FORMAT: &str = "a map of shared memory";
const FIXED_BYTES: usize = 8 + 4 * 4 + 8 * 2 + 2 * SUM_BYTES;
const SEGMENT_BYTES: usize = 8 + 8;
const RUN_BYTES: usize = 8 + 4 + 4;
/// Longest image: all memory, headers and bitmaps, device state.
const MAX_IMAGE_BYTES: u64 = 2 * MAX_RAM_BYTES + MAX_DEVICE_STATE_BYTES;

/// A snapshot by its 64-bit number, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(u64);

impl SegmentId {
    /// The snapshot with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a snapshot")]
pub struct SegmentIdError(String);

impl FromStr for SegmentId {
    type Err = SegmentIdError;

    fn from_str(text: &str) -> Result<Self, SegmentIdError> {
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(Self).ok_or_else(|| SegmentIdError(text.to_owned()))
    }
}

/// A snapshot in whose file pages of the image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which snapshot.
    pub id: SegmentId,
    /// How many pages of the image lie there.
    pub pages: u64,
}

/// Pages of the file, side by side, that lie in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedRun {
    /// Number of the first page of the *file*: its offset divided by 4096.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
    /// Which segment, by its place in the list.
    pub segment: u32,
}

impl SharedRun {
    /// Number of the file's page behind the last.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.count as u64)
    }
}

/// Everything but the runs: what tells who refers to whom, without reading megabytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedHeader {
    /// Length of the image.
    pub image_bytes: u64,
    /// Pages that the image holds in its own file.
    pub own_pages: u64,
    /// Ties the map to its image: what ends the header of `memory.b3` ([`crate::sums::SumsHeader::digest`]).
    pub image: Sum,
    /// The segments, no id twice.
    pub segments: Vec<Segment>,
    runs: u32,
    table: Sum,
}

impl SharedHeader {
    /// How many bytes of the file [`SharedHeader::parse`] wants, at most.
    pub const MAX_BYTES: usize = FIXED_BYTES + MAX_SEGMENTS * SEGMENT_BYTES + SUM_BYTES;

    /// Bytes of the header; the runs begin there.
    pub fn header_bytes(&self) -> usize {
        FIXED_BYTES + self.segments.len() * SEGMENT_BYTES + SUM_BYTES
    }

    /// Pages that lie in other snapshots' files.
    pub fn shared_pages(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.pages))
    }

    /// Whether pages of the image lie in that snapshot's file.
    pub fn refers_to(&self, id: SegmentId) -> bool {
        self.segments.iter().any(|segment| segment.id == id)
    }

    /// Reads the header from the start of a file; `bytes` may run on into the runs. Magic, version and checksum are
    /// looked at before anything else.
    ///
    /// # Errors
    /// [`Error::BadMagic`], [`Error::UnsupportedVersion`], [`Error::OverLimit`], [`Error::Truncated`],
    /// [`Error::Checksum`], [`Error::Unexpected`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields { bytes, at: 0 };
        if *fields.array::<8>()? != MAGIC {
            return Err(Error::BadMagic { offset: 0, format: FORMAT });
        }
        let version = fields.le32()?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { offset: 8, format: FORMAT, version });
        }
        let (page_bytes, count, runs) = (fields.le32()?, fields.le32()?, fields.le32()?);
        limit(16, "number of segments", count.into(), MAX_SEGMENTS as u64)?;
        limit(20, "number of runs", runs.into(), MAX_RUNS as u64)?;
        let covered = FIXED_BYTES + count as usize * SEGMENT_BYTES;
        check(bytes, 0, covered, Fields { bytes, at: covered }.sum()?)?;
        if page_bytes as usize != PAGE_SIZE {
            return Err(Error::Unexpected { offset: 12, what: "page size", value: page_bytes.into() });
        }
        let (image_bytes, own_pages) = (fields.le64()?, fields.le64()?);
        limit(24, "length of the image", image_bytes, MAX_IMAGE_BYTES)?;
        limit(32, "number of own pages", own_pages, image_bytes / PAGE_SIZE as u64)?;
        let (image, table) = (fields.sum()?, fields.sum()?);
        let mut segments: Vec<Segment> = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let (offset, number, pages) = (fields.at as u64, fields.le64()?, fields.le64()?);
            let id = SegmentId(number);
            if segments.iter().any(|other| other.id == id) {
                return Err(Error::Unexpected { offset, what: "segment for the second time", value: number });
            }
            segments.push(Segment { id, pages });
        }
        Ok(Self { image_bytes, own_pages, image, segments, runs, table })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.header_bytes());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((PAGE_SIZE as u32).to_le_bytes());
        out.extend((self.segments.len() as u32).to_le_bytes());
        out.extend(self.runs.to_le_bytes());
        out.extend(self.image_bytes.to_le_bytes());
        out.extend(self.own_pages.to_le_bytes());
        out.extend(self.image.as_bytes());
        out.extend(self.table.as_bytes());
        for segment in &self.segments {
            out.extend(segment.id.0.to_le_bytes());
            out.extend(segment.pages.to_le_bytes());
        }
        let digest = blake3::hash(&out);
        out.extend(digest.as_bytes());
        out
    }
}

/// A part of a range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPiece {
    /// Where it begins, in bytes from the file's start.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The segment it lies in; `None`: the image's own file.
    pub segment: Option<usize>,
}

/// A whole map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMap {
    header: SharedHeader,
    runs: Vec<SharedRun>,
}

/// What a map says besides its runs and segments.
#[derive(Clone, Copy, Debug)]
pub struct SharedImage {
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Pages that the image holds in its own file.
    pub own_pages: u64,
    /// What ends the header of its `memory.b3`.
    pub image: Sum,
}

impl SharedMap {
    /// A map of these runs; how many pages lie in which segment is counted here.
    ///
    /// # Errors
    /// What [`SharedMap::parse`] would say of it.
    pub fn new(of: SharedImage, segments: &[SegmentId], runs: Vec<SharedRun>) -> Result<Self, Error> {
        limit(16, "number of segments", segments.len() as u64, MAX_SEGMENTS as u64)?;
        limit(20, "number of runs", runs.len() as u64, MAX_RUNS as u64)?;
        let mut segments: Vec<_> = segments.iter().map(|id| Segment { id: *id, pages: 0 }).collect();
        for run in &runs {
            if let Some(segment) = segments.get_mut(run.segment as usize) {
                segment.pages = segment.pages.saturating_add(run.count.into());
            }
        }
        let table = blake3::hash(&run_bytes(&runs));
        let SharedImage { image_bytes, own_pages, image } = of;
        let header = SharedHeader { image_bytes, own_pages, image, segments, runs: runs.len() as u32, table };
        let map = Self { header, runs };
        map.check_runs()?;
        Ok(map)
    }

    /// Everything but the runs.
    pub fn header(&self) -> &SharedHeader {
        &self.header
    }

    /// The runs, in file order.
    pub fn runs(&self) -> &[SharedRun] {
        &self.runs
    }

    /// How long a file may be, at most.
    pub const fn max_bytes() -> usize {
        SharedHeader::MAX_BYTES + MAX_RUNS * RUN_BYTES
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header.to_bytes();
        out.extend(run_bytes(&self.runs));
        out
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// As [`SharedHeader::parse`]; [`Error::Overlap`] for runs that are out of order, [`Error::Unexpected`] for a run
    /// that is empty, ends behind the image or lies in no segment, [`Error::Mismatch`] when the numbers of pages are wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header = SharedHeader::parse(bytes)?;
        let (from, length) = (header.header_bytes(), header.runs as usize * RUN_BYTES);
        if bytes.len() != from.saturating_add(length) {
            return Err(Error::Truncated { offset: bytes.len() as u64, what: FORMAT });
        }
        check(bytes, from, length, header.table)?;
        let (runs, _) = bytes.get(from..).unwrap_or_default().as_chunks::<RUN_BYTES>();
        let map = Self { runs: runs.iter().map(run_from).collect(), header };
        map.check_runs()?;
        Ok(map)
    }

    fn check_runs(&self) -> Result<(), Error> {
        let (mut end, mut pages) = (0, vec![0_u64; self.header.segments.len()]);
        for (n, run) in self.runs.iter().enumerate() {
            let offset = (self.header.header_bytes() + n * RUN_BYTES) as u64;
            let (first, segment) = (run.first, u64::from(run.segment));
            if run.first < end {
                return Err(Error::Overlap { offset, what: "run" });
            }
            end = run.end();
            if run.count == 0 || end > self.header.image_bytes / PAGE_SIZE as u64 {
                return Err(Error::Unexpected { offset, what: "run of pages", value: first });
            }
            let Some(counted) = pages.get_mut(run.segment as usize) else {
                return Err(Error::Unexpected { offset, what: "number of a segment", value: segment });
            };
            *counted += u64::from(run.count);
        }
        let told = self.header.segments.iter().map(|segment| segment.pages);
        if told.eq(pages) { Ok(()) } else { Err(Error::Mismatch { what: "segments and runs of a map" }) }
    }

    /// A range of the file, cut where what it lies in changes, in order.
    pub fn pieces(&self, offset: u64, bytes: u64) -> impl Iterator<Item = SharedPiece> {
        const PAGE: u64 = PAGE_SIZE as u64;
        let (mut at, end) = (offset, offset.saturating_add(bytes));
        let mut next = self.runs.partition_point(|run| run.end().saturating_mul(PAGE) <= offset);
        std::iter::from_fn(move || {
            let left = end.checked_sub(at).filter(|left| *left > 0)?;
            let run = self.runs.get(next);
            let start = run.map_or(end, |run| run.first * PAGE);
            let (segment, stop) = match run {
                Some(run) if start <= at => {
                    next += 1;
                    (Some(run.segment as usize), run.end() * PAGE)
                }
                _ => (None, start),
            };
            let piece = SharedPiece { offset: at, bytes: left.min(stop.saturating_sub(at)), segment };
            at += piece.bytes;
            Some(piece)
        })
    }
}

fn run_bytes(runs: &[SharedRun]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * RUN_BYTES);
    for run in runs {
        out.extend(run.first.to_le_bytes());
        out.extend(run.count.to_le_bytes());
        out.extend(run.segment.to_le_bytes());
    }
    out
}

fn run_from(bytes: &[u8; RUN_BYTES]) -> SharedRun {
    let field = |at: usize| bytes.iter().skip(at).take(4).rev().fold(0_u32, |v, b| v << 8 | u32::from(*b));
    SharedRun { first: u64::from(field(4)) << 32 | u64::from(field(0)), count: field(8), segment: field(12) }
}

fn limit(offset: u64, what: &'static str, value: u64, limit: u64) -> Result<(), Error> {
    if value > limit { Err(Error::OverLimit { offset, what, value, limit }) } else { Ok(()) }
}

fn check(bytes: &[u8], from: usize, length: usize, digest: Sum) -> Result<(), Error> {
    let short = Error::Truncated { offset: bytes.len() as u64, what: FORMAT };
    let covered = bytes.get(from..from.saturating_add(length)).ok_or(short)?;
    let fits = blake3::hash(covered) == digest;
    if fits { Ok(()) } else { Err(Error::Checksum { offset: from as u64, what: FORMAT }) }
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Error> {
        let short = Error::Truncated { offset: self.bytes.len() as u64, what: FORMAT };
        let found = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()).ok_or(short)?;
        self.at += N;
        Ok(found)
    }

    fn le32(&mut self) -> Result<u32, Error> {
        self.array().map(|b| u32::from_le_bytes(*b))
    }

    fn le64(&mut self) -> Result<u64, Error> {
        self.array().map(|b| u64::from_le_bytes(*b))
    }

    fn sum(&mut self) -> Result<Sum, Error> {
        self.array().map(|b| Sum::from_bytes(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [SegmentId; 2] = [SegmentId::new(7), SegmentId::new(0xfedc_ba98_7654_3210)];

    fn image() -> SharedImage {
        SharedImage { image_bytes: 100 * PAGE_SIZE as u64, own_pages: 3, image: blake3::hash(b"sums") }
    }

    fn run(first: u64, count: u32, segment: u32) -> SharedRun {
        SharedRun { first, count, segment }
    }

    fn map() -> SharedMap {
        SharedMap::new(image(), &IDS, vec![run(2, 3, 1), run(5, 1, 0), run(90, 10, 1)]).expect("fine")
    }

    #[test]
    fn comes_back_from_its_bytes_and_no_byte_may_change() {
        let bytes = map().to_bytes();
        assert_eq!(SharedMap::parse(&bytes), Ok(map()));
        assert_eq!(SharedHeader::parse(&bytes).as_ref(), Ok(map().header()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(SharedMap::parse(&damaged).is_err(), "byte {at}");
            assert!(SharedMap::parse(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn counts_what_lies_where() {
        let map = map();
        let pages: Vec<_> = map.header().segments.iter().map(|segment| segment.pages).collect();
        assert_eq!((pages, map.header().shared_pages()), (vec![1, 13], 14));
        assert!(map.header().refers_to(IDS[0]) && !map.header().refers_to(SegmentId::new(8)));
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let refused = |runs| SharedMap::new(image(), &IDS, runs).expect_err("refused");
        assert!(matches!(refused(vec![run(5, 2, 0), run(6, 1, 0)]), Error::Overlap { .. }));
        assert!(matches!(refused(vec![run(5, 0, 0)]), Error::Unexpected { what: "run of pages", .. }));
        assert!(matches!(refused(vec![run(99, 2, 0)]), Error::Unexpected { what: "run of pages", .. }));
        assert!(matches!(refused(vec![run(u64::MAX, 2, 0)]), Error::Unexpected { .. }));
        assert!(matches!(refused(vec![run(1, 1, 2)]), Error::Unexpected { what: "number of a segment", .. }));
        let twice = SharedMap::new(image(), &[IDS[0], IDS[0]], vec![run(1, 1, 0)]).expect("not looked at here");
        assert!(matches!(SharedMap::parse(&twice.to_bytes()), Err(Error::Unexpected { .. })));
    }

    #[test]
    fn a_range_is_cut_where_the_file_changes() {
        let map = map();
        let page = PAGE_SIZE as u64;
        let pieces = |offset, bytes| {
            let pieces = map.pieces(offset, bytes);
            pieces.map(|piece| (piece.offset, piece.bytes, piece.segment)).collect::<Vec<_>>()
        };
        assert_eq!(
            pieces(page + 100, 5 * page),
            [
                (page + 100, page - 100, None),
                (2 * page, 3 * page, Some(1)),
                (5 * page, page, Some(0)),
                (6 * page, 100, None),
            ]
        );
        assert_eq!(pieces(95 * page, page), [(95 * page, page, Some(1))]);
        assert_eq!(pieces(0, 2 * page), [(0, 2 * page, None)]);
        assert_eq!(pieces(0, 0), []);
    }

    #[test]
    fn ids_are_sixteen_digits() {
        let text = "fedcba9876543210";
        assert_eq!(text.parse::<SegmentId>().expect("an id").to_string(), text);
        for bad in ["", "fedcba987654321", "FEDCBA9876543210", "+edcba9876543210"] {
            assert!(bad.parse::<SegmentId>().is_err(), "{bad:?}");
        }
    }
}
