//! A shared image made whole again, in its place or in a file of its own.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_vmstate::shared::{SegmentId, SharedRun};
use keyframe_vmstate::{ExtentIndex, PAGE_SIZE};

use super::punch::FilePages;
use super::{Step, Steps, remove, rename, sync_dir};
use crate::image::for_chunks;
use crate::verify::{VerifyProgress, verify_all};
use crate::{Error, ExtentBuf, ImageStore, Keeping, MemoryImage};

/// Bytes that a whole image needs on disk: its pages, headers and device state.
pub fn whole_bytes(image: &MemoryImage) -> u64 {
    let bitmaps = image.ram().iter().filter_map(|(block, _)| image.bitmap(block));
    let pages: u64 = bitmaps.map(|bitmap| bitmap.count()).sum();
    let layout = image.layout();
    let rest = image.mapped().file_bytes().saturating_sub(layout.ram().total_bytes());
    pages.saturating_mul(PAGE_SIZE as u64).saturating_add(rest)
}

/// Makes a shared image whole: one file that QEMU loads and maps, written anew and compared with its checksums before
/// it takes the shared one's place. An image that is whole stays as it is.
///
/// # Errors
/// What [`MemoryImage::open`] and reading finds, [`Error::Damaged`], [`Error::Cancelled`], [`Error::Io`]; the image is then as it was.
pub fn make_whole(store: &ImageStore, id: SegmentId, cancel: &AtomicBool, steps: Steps<'_>) -> Result<(), Error> {
    if store.keeping(id)? == Some(Keeping::Whole) {
        return Ok(());
    }
    let image = store.open(id)?;
    let (mapped, dir) = (store.mapped(id), store.dir(id));
    let unfinished = store.unfinished(id);
    remove(&unfinished)?;
    let written = write_whole(&image, &unfinished, cancel).and_then(|()| check(&unfinished, &store.sums(id), cancel));
    written.inspect_err(|_| {
        // The first error is the one to tell; the next operation removes what stays.
        let _ = remove(&unfinished);
    })?;
    steps(Step::WholeWritten)?;
    rename(&unfinished, &mapped)?;
    sync_dir(&dir)?;
    steps(Step::WholeNamed)?;
    remove(&store.map(id))?;
    sync_dir(&dir)?;
    steps(Step::MapRemoved)?;
    // Those who refer to it find the same pages in the whole one.
    remove(&store.pages(id))?;
    sync_dir(&dir)
}

/// Writes a whole image, as stock QEMU loads it, to `dest`, which must not exist. Each extent is compared with its
/// checksum on the way; the file is durable when this returns. Takes images that are whole as well as shared ones.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Cancelled`], [`Error::Io`]; `dest` is then removed, unless it existed before.
pub fn export(image: &MemoryImage, dest: &Path, cancel: &AtomicBool) -> Result<(), Error> {
    if crate::store::exists(dest)? {
        let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(Error::io("create", dest)(source));
    }
    write_whole(image, dest, cancel).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = remove(dest);
    })?;
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(dir)
}

fn write_whole(image: &MemoryImage, dest: &Path, cancel: &AtomicBool) -> Result<(), Error> {
    let file = crate::create_private(dest).map_err(Error::io("create", dest))?;
    file.set_len(image.mapped().file_bytes()).map_err(Error::io("size", dest))?;
    write_all_but(image, &file, dest, &[], cancel)
}

/// Writes an image into a file of its length, but for the pages of `there`, which it has already. Durable when this returns.
pub(super) fn write_all_but(
    image: &MemoryImage,
    file: &File,
    dest: &Path,
    there: &[SharedRun],
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let ranges = image.layout().non_page_ranges(image.mapped().file_bytes());
    let mut buf = vec![0; 256 << 10];
    for (start, end) in ranges.map_err(|error| image.image().wrong(error))? {
        for_chunks(start, end - start, &mut buf, |chunk, at| {
            image.read_pages(chunk, at)?;
            // The gap before a block's pages stays a hole.
            if chunk.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            file.write_all_at(chunk, at).map_err(Error::io("write", dest))
        })?;
    }
    write_pages(image, file, dest, there, cancel)?;
    file.sync_all().map_err(Error::io("sync", dest))
}

/// The pages that the image holds, and only those: the others must be holes.
fn write_pages(
    image: &MemoryImage,
    file: &File,
    dest: &Path,
    there: &[SharedRun],
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let mut buf = ExtentBuf::new();
    let mut done = FilePages::none(if there.is_empty() { 0 } else { image.mapped().file_bytes() });
    there.iter().for_each(|run| done.insert(run.first, run.end()));
    for (block, placed) in image.ram().iter().map(|(index, _)| index).zip(image.layout().blocks()) {
        let extents = placed.block().pages().extents();
        for extent in (0..extents).filter_map(ExtentIndex::new).filter(|extent| image.has_extent(block, *extent)) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let Some((start, _)) = placed.extent(extent) else { continue };
            let mut held = image.bitmap(block).map_or(0, |bitmap| bitmap.extent(extent));
            held &= !done.sixteen_from(start / PAGE_SIZE as u64);
            if held == 0 {
                continue;
            }
            let bytes = image.read_extent(block, extent, &mut buf)?;
            while held != 0 {
                let skipped = held.trailing_zeros();
                let count = (held >> skipped).trailing_ones();
                let (from, to) = (skipped as usize * PAGE_SIZE, (skipped + count) as usize * PAGE_SIZE);
                let run = bytes.get(from..to).unwrap_or_default();
                file.write_all_at(run, start + from as u64).map_err(Error::io("write", dest))?;
                held &= !(((1_u32 << count) - 1) << skipped) as u16;
            }
        }
    }
    Ok(())
}

/// Reads back what was written, as any reader would.
pub(super) fn check(path: &Path, sums: &Path, cancel: &AtomicBool) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let image = MemoryImage::open(path, sums)?;
    match verify_all(&image, threads, &VerifyProgress::default(), cancel)?.damaged.pop() {
        Some(damaged) => Err(damaged),
        None => Ok(()),
    }
}
