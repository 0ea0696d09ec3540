//! Everything that can only be written when all pages are known: bitmaps, headers, the rest of the
//! sums, the list of hot pages.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_vmstate::decode::Summary;
use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::mapped::{MappedLayout, PageBitmap};
use keyframe_vmstate::sums::{SUM_BYTES, Sum, SumsHeader, zero_extent_sum};
use keyframe_vmstate::{BlockIndex, ExtentIndex, PAGE_SIZE, PageIndex};

use super::ImagePaths;
use super::intake::Received;
use super::progress::CaptureReport;
use super::sums::Leftover;
use super::target::{Files, Target};
use crate::Error;
use crate::image::{ExtentBuf, non_page_sum};
use crate::seal::finish_sums;
use crate::source::Source;

/// Sums patched at once while the table is gone through: 256 KiB.
const TABLE_CHUNK_SUMS: u64 = 8192;

/// Finishes the files and tells what was made.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`].
pub(super) fn finish(
    received: Received<'_>,
    summary: Summary,
    paths: &ImagePaths,
    streamed: Duration,
) -> Result<CaptureReport, Error> {
    let start = Instant::now();
    write_structure(&received)?;
    let Received { target, held, hot, repeated } = received;
    let Some(Target { files, layout, sums, .. }) = Arc::into_inner(target) else {
        return Err(Error::Cancelled);
    };
    let leftover = sums.finish();
    let extents_reread = leftover.reread.count();
    let image_bytes = layout.devices_offset() + summary.devices.total_bytes();
    let image = Source::of_length(reopen(&files)?, &files.path, image_bytes);
    complete_table(&image, &files, &layout, leftover)?;
    let header = SumsHeader {
        ram: layout.ram().clone(),
        image_bytes,
        non_page: non_page_sum(&image, &layout)?,
        table: fill_table(&files, &layout)?,
    };
    finish_sums(&files.sums, &files.sums_path, &header)?;
    write_hot(&hot, &paths.hot)?;
    let pages_held = held.iter().map(PageBitmap::count).sum::<u64>();
    Ok(CaptureReport {
        ram_bytes: layout.ram().total_bytes(),
        pages_held,
        pages_zero: layout.ram().total_bytes() / PAGE_SIZE as u64 - pages_held,
        pages_repeated: repeated,
        stream_bytes: summary.stream_bytes,
        device_bytes: summary.devices.sections_bytes(),
        image_bytes,
        extents_reread,
        hot_runs: hot.runs().len(),
        direct_io: files.direct_io(),
        streamed,
        finished: start.elapsed(),
    })
}

/// Headers and bitmaps, and the image's sync.
fn write_structure(received: &Received<'_>) -> Result<(), Error> {
    let target = &received.target;
    let write = |bytes: &[u8], offset| {
        let written = target.files.cached.write_all_at(bytes, offset);
        written.map_err(|source| target.write_error(source))
    };
    for (offset, bytes) in target.layout.pieces() {
        write(&bytes, offset)?;
    }
    for (block, bitmap) in target.layout.blocks().iter().zip(&received.held) {
        write(&bitmap.to_bytes(), block.bitmap_offset())?;
    }
    target.files.cached.sync_all().map_err(|source| target.write_error(source))
}

fn reopen(files: &Files) -> Result<File, Error> {
    files.cached.try_clone().map_err(Error::io("reopen", &files.path))
}

/// Sums of extents that were not complete, or whose pages came again.
fn complete_table(image: &Source, files: &Files, layout: &MappedLayout, leftover: Leftover) -> Result<(), Error> {
    let mut buf = ExtentBuf::new();
    let put = |ordinal: u64, sum: Sum| {
        let offset = SumsHeader::sum_offset(layout.ram(), ordinal);
        let written = files.sums.write_all_at(sum.as_bytes(), offset);
        written.map_err(Error::io("write", &files.sums_path))
    };
    for (ordinal, partial) in leftover.open {
        if let Some((_, _, pages)) = extent_of(layout, ordinal) {
            put(ordinal, partial.finish(pages))?;
        }
    }
    let mut next = leftover.reread.next(PageIndex::FIRST, true);
    while let Some(bit) = next {
        if let Some((block, extent, pages)) = extent_of(layout, bit.get())
            && let Some((offset, _)) = layout.get(block).and_then(|placed| placed.extent(extent))
        {
            let bytes = buf.get_mut(pages);
            image.read_at(bytes, offset)?;
            put(bit.get(), blake3::hash(bytes))?;
        }
        next = bit.checked_add(1).and_then(|from| leftover.reread.next(from, true));
    }
    Ok(())
}

/// The extent with that ordinal, and how many pages it has.
fn extent_of(layout: &MappedLayout, ordinal: u64) -> Option<(BlockIndex, ExtentIndex, usize)> {
    layout.ram().iter().find_map(|(block, described)| {
        let first = layout.ram().extent_ordinal(block, ExtentIndex::new(0)?)?;
        let extent = ExtentIndex::new(ordinal.checked_sub(first)?)?;
        let pages = described.pages().pages_in_extent(extent);
        (pages > 0).then_some((block, extent, pages))
    })
}

/// Goes through the table once: an entry nobody wrote is an extent of zeroes. Returns the table's
/// hash.
fn fill_table(files: &Files, layout: &MappedLayout) -> Result<Sum, Error> {
    let (ram, path) = (layout.ram(), &files.sums_path);
    let length = files.sums.set_len(SumsHeader::file_bytes(ram));
    length.map_err(Error::io("size", path))?;
    let mut hasher = blake3::Hasher::new();
    for (block, described) in ram.iter() {
        let extents = described.pages().extents();
        for first in (0..extents).step_by(TABLE_CHUNK_SUMS as usize) {
            let count = TABLE_CHUNK_SUMS.min(extents - first);
            let Some(ordinal) = ExtentIndex::new(first).and_then(|first| ram.extent_ordinal(block, first)) else {
                break;
            };
            let (offset, mut sums) = (SumsHeader::sum_offset(ram, ordinal), vec![0; count as usize * SUM_BYTES]);
            files.sums.read_exact_at(&mut sums, offset).map_err(Error::io("read", path))?;
            let mut changed = false;
            for (extent, sum) in (first..).zip(sums.as_chunks_mut::<SUM_BYTES>().0) {
                if *sum == [0; SUM_BYTES]
                    && let Some(extent) = ExtentIndex::new(extent)
                {
                    let pages = described.pages().pages_in_extent(extent);
                    *sum = *zero_extent_sum(pages).as_bytes();
                    changed = true;
                }
            }
            if changed {
                files.sums.write_all_at(&sums, offset).map_err(Error::io("write", path))?;
            }
            hasher.update(&sums);
        }
    }
    Ok(hasher.finalize())
}

fn write_hot(hot: &HotList, path: &Path) -> Result<(), Error> {
    let mut file = crate::create_private(path).map_err(Error::io("create", path))?;
    file.write_all(&hot.to_bytes()).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}
