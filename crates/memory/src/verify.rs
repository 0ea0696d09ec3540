//! A whole image, checked: every extent, everything else, and that holes are holes.
//!
//! Work is handed out in spans of 1 MiB to as many threads as asked for. A span without pages costs
//! one look at the file's allocation map; where data lies under clear bits it is read and must be
//! zero, because a fork maps the file without looking at the bitmap. Only the table of sums can
//! make all of this wrong, so it is checked first.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keyframe_vmstate::mapped::MappedBlock;
use keyframe_vmstate::sums::{SUM_BYTES, SumsHeader, zero_extent_sum};
use keyframe_vmstate::{BlockIndex, EXTENT_SIZE, ExtentIndex, PAGE_SIZE};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::Error;
use crate::image::{MemoryImage, for_chunks};

/// Extents handed to a thread at once: 1 MiB.
const SPAN_EXTENTS: u64 = 16;
/// Damaged extents that are named; beyond, they are only counted.
const MAX_NAMED: usize = 1000;

/// How far a verification has got; read it from any thread.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of guest memory dealt with, holes included.
    pub done_bytes: AtomicU64,
}

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    /// Extents read and hashed.
    pub extents_read: u64,
    /// Extents that are holes.
    pub extents_zero: u64,
    /// Extents whose bytes are wrong.
    pub extents_damaged: u64,
    /// Up to 1000 of them, in no particular order: [`Error::Damaged`].
    pub damaged: Vec<Error>,
    /// Bytes read.
    pub read_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// Whether all bytes are as they were written.
    pub fn is_intact(&self) -> bool {
        self.extents_damaged == 0
    }
}

/// Checks the whole image with that many threads. Structure, bitmaps and device state were checked
/// when it was opened.
///
/// # Errors
/// [`Error::DamagedSums`], [`Error::Cancelled`], [`Error::Io`]. Damaged memory is no error but a
/// finding: see [`VerifyReport::is_intact`].
pub fn verify_all(
    image: &MemoryImage,
    threads: NonZeroUsize,
    progress: &VerifyProgress,
    cancel: &AtomicBool,
) -> Result<VerifyReport, Error> {
    let start = Instant::now();
    check_table(image)?;
    let work = Work { image, spans: spans(image), next: AtomicU64::new(0), progress, cancel };
    let found = Mutex::new(Findings::default());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| {
                if let Err(error) = work.run(&found) {
                    work.next.store(u64::MAX >> 1, Ordering::Relaxed);
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(VerifyReport {
        extents_read: found.read,
        extents_zero: found.zero,
        extents_damaged: found.damaged_count,
        damaged: found.damaged,
        read_bytes: found.read_bytes,
        elapsed: start.elapsed(),
    })
}

fn check_table(image: &MemoryImage) -> Result<(), Error> {
    let (sums, header) = (image.sums(), image.header());
    let from = SumsHeader::header_bytes(&header.ram);
    let mut hasher = blake3::Hasher::new();
    for_chunks(from, sums.bytes - from, &mut vec![0; 256 << 10], |chunk, at| {
        sums.read_at(chunk, at)?;
        hasher.update(chunk);
        Ok(())
    })?;
    if hasher.finalize() == header.table { Ok(()) } else { Err(Error::DamagedSums { path: sums.path.clone() }) }
}

/// Up to [`SPAN_EXTENTS`] extents of one block.
#[derive(Clone, Copy)]
struct Span {
    block: BlockIndex,
    first: u64,
    count: u64,
}

fn spans(image: &MemoryImage) -> Vec<Span> {
    let mut spans = Vec::new();
    for (block, described) in image.ram().iter() {
        let extents = described.pages().extents();
        for first in (0..extents).step_by(SPAN_EXTENTS as usize) {
            spans.push(Span { block, first, count: SPAN_EXTENTS.min(extents - first) });
        }
    }
    spans
}

#[derive(Default)]
struct Findings {
    read: u64,
    zero: u64,
    read_bytes: u64,
    damaged_count: u64,
    damaged: Vec<Error>,
}

struct Work<'a> {
    image: &'a MemoryImage,
    spans: Vec<Span>,
    next: AtomicU64,
    progress: &'a VerifyProgress,
    cancel: &'a AtomicBool,
}

impl Work<'_> {
    fn run(&self, total: &Mutex<Findings>) -> Result<(), Error> {
        let mut buf = vec![0; SPAN_EXTENTS as usize * EXTENT_SIZE];
        let mut found = Findings::default();
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let at = self.next.fetch_add(1, Ordering::Relaxed) as usize;
            let Some(span) = self.spans.get(at) else {
                break;
            };
            self.span(*span, &mut buf, &mut found)?;
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.read += found.read;
        total.zero += found.zero;
        total.read_bytes += found.read_bytes;
        total.damaged_count += found.damaged_count;
        let room = MAX_NAMED - total.damaged.len();
        total.damaged.extend(found.damaged.into_iter().take(room));
        Ok(())
    }

    fn span(&self, span: Span, buf: &mut [u8], found: &mut Findings) -> Result<(), Error> {
        let Some(placed) = self.image.layout().get(span.block) else {
            return Ok(());
        };
        let extents: Vec<_> = (span.first..span.first + span.count).filter_map(ExtentIndex::new).collect();
        let Some(first) = extents.first() else {
            return Ok(());
        };
        let ordinal = self.image.ram().extent_ordinal(span.block, *first).unwrap_or_default();
        let mut sums = [0; SPAN_EXTENTS as usize * SUM_BYTES];
        let sums = sums.get_mut(..extents.len() * SUM_BYTES).unwrap_or_default();
        self.image.read_sums(ordinal, sums)?;
        let (sums, _) = sums.as_chunks::<SUM_BYTES>();

        let present: Vec<_> =
            extents.iter().map(|extent| self.present(span.block, placed, *extent)).collect::<Result<_, _>>()?;
        read_present(self.image, placed, &extents, &present, buf)?;
        for (n, ((extent, sum), present)) in extents.iter().zip(sums).zip(&present).enumerate() {
            let bytes = placed.extent(*extent).map_or(0, |(_, bytes)| bytes);
            let actual = if *present {
                found.read += 1;
                found.read_bytes += bytes as u64;
                let at = n * EXTENT_SIZE;
                blake3::hash(buf.get(at..at + bytes).unwrap_or_default())
            } else {
                found.zero += 1;
                zero_extent_sum(bytes / PAGE_SIZE)
            };
            if actual != *sum {
                found.damaged_count += 1;
                if found.damaged.len() < MAX_NAMED {
                    found.damaged.push(self.image.damaged(span.block, *extent));
                }
            }
            self.progress.done_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether there is anything to read: a page by the bitmap, or data by the allocation map.
    fn present(&self, block: BlockIndex, placed: &MappedBlock, extent: ExtentIndex) -> Result<bool, Error> {
        if self.image.has_extent(block, extent) {
            return Ok(true);
        }
        let Some((offset, bytes)) = placed.extent(extent) else {
            return Ok(false);
        };
        match seek(self.image.image().file()?, SeekFrom::Data(offset)) {
            Ok(data) => Ok(data < offset + bytes as u64),
            Err(Errno::NXIO) => Ok(false),
            Err(errno) => Err(Error::io("find holes of", self.image.path())(errno.into())),
        }
    }
}

/// Reads the extents that are present, neighbours with one call, each to its place in `buf`.
fn read_present(
    image: &MemoryImage,
    placed: &MappedBlock,
    extents: &[ExtentIndex],
    present: &[bool],
    buf: &mut [u8],
) -> Result<(), Error> {
    let mut at = 0;
    for group in present.chunk_by(|a, b| a == b) {
        let (first, count) = (at, group.len());
        at += count;
        let members = extents.get(first..at).unwrap_or_default();
        let (Some(from), Some(to), [true, ..]) = (members.first(), members.last(), group) else {
            continue;
        };
        if let (Some((start, _)), Some((last, bytes))) = (placed.extent(*from), placed.extent(*to)) {
            let length = (last - start) as usize + bytes;
            let room = buf.get_mut(first * EXTENT_SIZE..).and_then(|b| b.get_mut(..length));
            image.read_pages(room.unwrap_or_default(), start)?;
        }
    }
    Ok(())
}
