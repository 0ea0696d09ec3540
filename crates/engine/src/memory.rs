//! Memory images as the engine uses them: written by a snapshot, opened and checked by a revert.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyframe_memory::capture::{self, CaptureOptions, CaptureProgress, ImagePaths};
use keyframe_memory::collapse::{CollapseOptions, collapse_huge_pages};
use keyframe_memory::verify::{VerifyProgress, verify_all};
use keyframe_memory::{Error as MemoryError, MemoryImage};
use keyframe_types::ByteLen;
use keyframe_vmstate::PageCount;
use rustix::process::Pid;

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::sharing;
use crate::state::durable;
use crate::state::home::{SnapshotDir, VmDir};
use crate::state::manifest::{Manifest, Memory};

/// A memory image that is on disk.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) memory: Memory,
}

/// What a capture reads from, and QEMU's end of it.
pub(crate) fn channel() -> Result<(OwnedFd, OwnedFd), Error> {
    let (qemus, ours) = capture::channel().map_err(Error::Capture)?;
    Ok((ours, qemus))
}

/// Reads a machine's state from `input` and writes its image into `dir`, durably. Ends when QEMU has sent
/// everything, or when `give_up` is set.
pub(crate) fn capture(
    ctx: &Context<'_>,
    input: OwnedFd,
    dir: &SnapshotDir,
    give_up: &AtomicBool,
) -> Result<Captured, Error> {
    let progress = CaptureProgress::default();
    let paths = ImagePaths { mapped: dir.memory(), sums: dir.sums(), hot: dir.hot() };
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| watch(ctx, &progress, &done));
        let captured = capture::capture(input, &paths, &CaptureOptions::default(), &progress, give_up);
        done.store(true, Ordering::Relaxed);
        let report = captured.map_err(Error::Capture)?;
        durable::sync_dir(dir.root())?;
        Ok(Captured {
            memory: Memory {
                file: "memory.mapped".into(),
                sums_file: "memory.b3".into(),
                sums_blake3: digest(&dir.sums())?,
                ram_bytes: ByteLen::from_bytes(report.ram_bytes),
                bytes_on_disk: on_disk(&dir.memory())? + on_disk(&dir.sums())?,
            },
        })
    })
}

fn watch(ctx: &Context<'_>, progress: &CaptureProgress, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let (seen, total) = (progress.seen_bytes.load(Ordering::Relaxed), progress.ram_bytes.load(Ordering::Relaxed));
        if seen > 0 {
            // Only to be killed here: this thread has nobody to tell a failure.
            let _ = pass(Failpoint::SnapshotStreaming);
        }
        ctx.progress.bytes(seen, total);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn digest(path: &Path) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).or_io("open", path)?;
    // Checksums of a large guest are many: they go through a small buffer.
    hasher.update_reader(&mut file).or_io("read", path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn on_disk(path: &Path) -> Result<ByteLen, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = std::fs::metadata(path).or_io("look at", path)?.blocks();
    Ok(ByteLen::from_bytes(blocks.saturating_mul(512)))
}

/// Opens a snapshot's image, whole or shared, and checks everything in it but the pages.
pub(crate) fn open(vm: &VmDir, manifest: &Manifest) -> Result<MemoryImage, Error> {
    let dir = vm.snapshot(&manifest.id);
    let unusable = |source| Error::Memory { id: manifest.id.clone(), source };
    let Some(memory) = &manifest.memory else { return Err(Error::NoMemory { id: manifest.id.clone() }) };
    let image = sharing::store(vm).open(sharing::segment(&manifest.id)).map_err(unusable)?;
    if digest(&dir.sums())? != memory.sums_blake3 {
        return Err(unusable(MemoryError::DamagedSums { path: dir.sums() }));
    }
    Ok(image)
}

/// Reads every page of an image and compares it with its checksum.
pub(crate) fn verify(ctx: &Context<'_>, image: &MemoryImage) -> Result<(), MemoryError> {
    ctx.progress.step("checking the memory image");
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut report = verify_all(image, threads, &VerifyProgress::default(), ctx.cancel)?;
    match report.damaged.pop() {
        Some(damaged) => Err(damaged),
        None => Ok(()),
    }
}

/// Where the pages of a RAM block lie in an image, in bytes.
pub(crate) fn pages_offset(image: &MemoryImage, block: &str) -> Result<u64, MemoryError> {
    let missing = || MemoryError::NoSuchExtent { path: image.path().to_owned(), block: 0, extent: 0 };
    let index = image.ram().find(block).ok_or_else(missing)?;
    Ok(image.layout().get(index).ok_or_else(missing)?.pages_offset())
}

/// Writes everything of an image but the pages of `block` to a fresh file at `path`, and opens it.
pub(crate) fn write_devices_only(image: &MemoryImage, block: &str, path: &Path) -> Result<File, MemoryError> {
    let missing = || MemoryError::NoSuchExtent { path: image.path().to_owned(), block: 0, extent: 0 };
    let index = image.ram().find(block).ok_or_else(missing)?;
    image.write_devices_only(index, path)?;
    let open = |source| MemoryError::Io { action: "open", path: path.to_owned(), source };
    let file = File::open(path).map_err(open)?;
    // Only this descriptor needs it.
    std::fs::remove_file(path).map_err(open)?;
    Ok(file)
}

/// Puts guest memory of the process `pid` back into huge pages; says how much.
pub(crate) fn collapse(pid: u32, ram: ByteLen, cancel: &AtomicBool) -> Result<ByteLen, MemoryError> {
    let none = || MemoryError::NoGuestMemory { pid: i32::try_from(pid).unwrap_or(0), ram_bytes: ram.bytes() };
    let pages = PageCount::from_bytes(ram.bytes()).ok_or_else(none)?;
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
    let report = collapse_huge_pages(process, pages, &CollapseOptions::default(), cancel)?;
    Ok(ByteLen::from_bytes(report.collapsed_bytes))
}
