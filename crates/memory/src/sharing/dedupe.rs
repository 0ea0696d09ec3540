//! Extents shared by the file system: both files stay whole, and equal bytes are stored once.
//!
//! The kernel compares the bytes itself before it lets two files share them, so this can change no content.
//!
//! Source: ioctl_fideduperange(2).

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::SharedRun;
use rustix::io::Errno;

use super::compare::Common;
use crate::source::Source;
use crate::{Error, MemoryImage};

/// Shorter runs are left alone: each costs the file system an extent of its own.
const SHORTEST_PAGES: u32 = 4;
/// Bytes to share with one call; btrfs takes no more.
const AT_ONCE: u64 = 16 << 20;

/// What came of it.
pub(super) enum Deduped {
    /// These runs share their extents now.
    Done(Common),
    /// The file system cannot do it; nothing was changed.
    Unsupported(Common),
}

/// Lets equal pages share extents, if the file system can.
pub(super) fn dedupe(
    new: &MemoryImage,
    old: &MemoryImage,
    mut common: Common,
    cancel: &AtomicBool,
) -> Result<Deduped, Error> {
    // Where the older one has a map, the file system could not do it then.
    if old.is_shared() {
        return Ok(Deduped::Unsupported(common));
    }
    let path = new.path();
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    let mut done: Vec<SharedRun> = Vec::new();
    for run in common.runs.iter().filter(|run| run.count >= SHORTEST_PAGES) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match whole_run(old.image(), &file, *run) {
            Ok(pages) if pages > 0 => done.push(SharedRun { count: pages, ..*run }),
            Ok(_) => {}
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::PERM) if done.is_empty() => {
                return Ok(Deduped::Unsupported(common));
            }
            Err(errno) => return Err(Error::io("share extents of", path)(errno.into())),
        }
    }
    common.runs = done;
    Ok(Deduped::Done(common))
}

/// Shares one run; says how many pages of it are shared from its start on.
fn whole_run(old: &Source, new: &File, run: SharedRun) -> Result<u32, Errno> {
    let (start, bytes) = (run.first * PAGE_SIZE as u64, u64::from(run.count) * PAGE_SIZE as u64);
    let mut done = 0;
    while done < bytes {
        let count = range(&old.file, new, start + done, AT_ONCE.min(bytes - done))?;
        if count == 0 {
            break;
        }
        done += count;
    }
    Ok((done / PAGE_SIZE as u64) as u32)
}

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`, of linux/fs.h.
#[repr(C)]
struct DedupeRange {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

const _: () = assert!(size_of::<DedupeRange>() == 24 + 32);

/// `_IOWR(0x94, 54, struct file_dedupe_range)`: the struct's own 24 bytes, without the list behind it.
const FIDEDUPERANGE: u32 = 3 << 30 | 24 << 16 | 0x94 << 8 | 54;

/// Shares a range that lies at the same offset in both files. Says how many bytes are shared: none if they differ.
fn range(old: &File, new: &File, offset: u64, bytes: u64) -> Result<u64, Errno> {
    let mut request = DedupeRange {
        src_offset: offset,
        src_length: bytes,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: i64::from(new.as_raw_fd()),
        dest_offset: offset,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: the kernel reads and writes `request`, which lives through the call and has room for the one destination that
    // it announces; both descriptors are open.
    let result = unsafe { libc::ioctl(old.as_raw_fd(), FIDEDUPERANGE.into(), &raw mut request) };
    if result != 0 {
        let code = std::io::Error::last_os_error().raw_os_error();
        return Err(code.map_or(Errno::IO, Errno::from_raw_os_error));
    }
    match request.status {
        // FILE_DEDUPE_RANGE_SAME
        0 => Ok(request.bytes_deduped.min(bytes)),
        // FILE_DEDUPE_RANGE_DIFFERS: one of them is not what its checksums say.
        1 => Ok(0),
        code => Err(Errno::from_raw_os_error(code.saturating_neg())),
    }
}
