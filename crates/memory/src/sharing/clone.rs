//! Extents shared by the file system: both images stay whole, and equal pages are stored once.
//!
//! The new image is put together once more, of clones of what the older one has and of the pages that only it has itself. When
//! it is on disk and all of it matches its checksums, it takes the place of the one that was captured. (To let the
//! kernel share ranges of the file in place would save less: btrfs gives back no part of an extent of which another
//! part is still in use.)
//!
//! Source: ioctl_ficlonerange(2).

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::{SegmentId, SharedRun};
use rustix::io::Errno;

use super::compare::Common;
use super::{Step, Steps, remove, rename, sync_dir, whole};
use crate::source::Source;
use crate::{Error, ImageStore, MemoryImage};

/// Shorter runs are written anew: each costs the file system an extent of its own.
const SHORTEST_PAGES: u32 = 4;

/// What came of it.
pub(super) enum Cloned {
    /// These runs share their extents now.
    Done(Common),
    /// The file system cannot do it; nothing was changed.
    Unsupported(Common),
}

/// Lets equal pages share extents, if the file system can.
pub(super) fn clone_common(
    store: &ImageStore,
    id: SegmentId,
    (new, old): (&MemoryImage, &MemoryImage),
    mut common: Common,
    cancel: &AtomicBool,
    steps: Steps<'_>,
) -> Result<Cloned, Error> {
    // Where the older one has a map, the file system could not do it then.
    if old.is_shared() {
        return Ok(Cloned::Unsupported(common));
    }
    let (mapped, unfinished) = (store.mapped(id), store.unfinished(id));
    remove(&unfinished)?;
    let runs: Vec<SharedRun> = common.runs.iter().copied().filter(|run| run.count >= SHORTEST_PAGES).collect();
    let put_together = put_together(new, old, &runs, &unfinished, cancel).and_then(|is_possible| {
        if is_possible {
            whole::check(&unfinished, &store.sums(id), cancel)?;
        }
        Ok(is_possible)
    });
    if !matches!(put_together, Ok(true)) {
        remove(&unfinished)?;
        return put_together.map(|_| Cloned::Unsupported(common));
    }
    steps(Step::WholeWritten)?;
    rename(&unfinished, &mapped)?;
    sync_dir(&store.dir(id))?;
    steps(Step::WholeNamed)?;
    common.runs = runs;
    Ok(Cloned::Done(common))
}

/// Writes the image with clones for `runs`. False when the file system has none.
fn put_together(
    new: &MemoryImage,
    old: &MemoryImage,
    runs: &[SharedRun],
    dest: &Path,
    cancel: &AtomicBool,
) -> Result<bool, Error> {
    let file = crate::create_private(dest).map_err(Error::io("create", dest))?;
    file.set_len(new.mapped().file_bytes()).map_err(Error::io("size", dest))?;
    for run in runs {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match clone_run(old.image(), &file, *run) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::PERM) => return Ok(false),
            Err(errno) => return Err(Error::io("share extents with", dest)(errno.into())),
        }
    }
    whole::write_all_but(new, &file, dest, runs, cancel)?;
    Ok(!runs.is_empty())
}

/// `struct file_clone_range`, of linux/fs.h.
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: u32 = 1 << 30 | (size_of::<CloneRange>() as u32) << 16 | 0x94 << 8 | 13;
const _: () = assert!(FICLONERANGE == 0x4020_940d);

fn clone_run(old: &Source, new: &File, run: SharedRun) -> Result<(), Errno> {
    let offset = run.first * PAGE_SIZE as u64;
    let request = CloneRange {
        src_fd: i64::from(old.file().map_err(|_| Errno::OPNOTSUPP)?.as_raw_fd()),
        src_offset: offset,
        src_length: u64::from(run.count) * PAGE_SIZE as u64,
        dest_offset: offset,
    };
    // SAFETY: the kernel only reads `request`, which lives through the call; both descriptors are open.
    let result = unsafe { libc::ioctl(new.as_raw_fd(), FICLONERANGE.into(), &raw const request) };
    if result == 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(code.map_or(Errno::IO, Errno::from_raw_os_error))
}
