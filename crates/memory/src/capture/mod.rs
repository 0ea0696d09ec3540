//! A migration stream in, a snapshot's memory image out, while the guest runs on.
//!
//! QEMU's thread that sends pages also serves the guest's write faults: whenever the socket is left
//! full, guest writes wait. So one thread does nothing but read and sort, and others hash and write
//! what it has gathered, with direct I/O, so that the guest's host never has to throttle anybody for
//! dirty page cache:
//!
//! ```text
//! socket --read--> Decoder --pages--> Batch (1 MiB, aligned) --queue--> writers: hash, pwrite
//!                                        ^                                 |
//!                                        +---------- free batches ---------+
//! ```
//!
//! Memory is bounded by the pool of batches, the table of half-known extents and two bits for each
//! page (seen, held); nothing grows with the guest beyond those bits.
//!
//! Order of writing, and what a crash leaves: pages and sums as they come, then headers and bitmaps,
//! then the header of `memory.b3`, each synced before the next. A file of sums without magic means
//! that the image beside it was never finished. All files must be fresh; on any error they are left
//! for the caller to delete, and our side of the socket is closed, which ends QEMU's migration.
//!
//! Pages that come again (ordinary precopy): the later one holds. Whatever may still be on its way
//! to the disk is waited for before the page is written again, and its extent is read back once at
//! the end for its sum.

mod batch;
mod finish;
mod intake;
mod progress;
mod queue;
mod sums;
mod target;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keyframe_vmstate::decode::{Decoder, Summary};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::Error;
use intake::Intake;
pub use progress::{CaptureProgress, CaptureReport, DirectIo};
use queue::Queue;
use target::Files;

/// The three files of a memory image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePaths {
    /// QEMU's mapped-ram file.
    pub mapped: PathBuf,
    /// Sums.
    pub sums: PathBuf,
    /// What the guest wanted first.
    pub hot: PathBuf,
}

impl ImagePaths {
    /// The usual names in a snapshot's directory.
    pub fn in_dir(dir: &Path) -> Self {
        let at = |name| dir.join(name);
        Self {
            mapped: at("memory.mapped"),
            sums: at("memory.b3"),
            hot: at("memory.hot"),
        }
    }
}

/// How to capture. The defaults are what measured best (docs/CAPTURE.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Memory for pages on their way to the disk, in bytes: 4 MiB to 1 GiB, in whole MiB.
    pub buffer_bytes: usize,
    /// Threads that hash and write: 1 to 16.
    pub writers: usize,
    /// Scheduling priority of those threads, as in nice(1); the guest should come first.
    pub writer_nice: i32,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            buffer_bytes: 24 << 20,
            writers: 2,
            writer_nice: 5,
        }
    }
}

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 512 << 10;
/// How often a wait for QEMU looks whether it should stop.
const CANCEL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Reads a migration stream to its end and makes a memory image of it. The input may be a socket or
/// a pipe; it is set non-blocking. Blocks until the files are on disk; their directory is the
/// caller's to sync.
///
/// # Errors
/// [`Error::Stream`] for a stream that is wrong or cut short, [`Error::NoSpace`],
/// [`Error::Cancelled`], [`Error::Io`]. The files are then incomplete and the caller's to delete.
pub fn capture(
    input: OwnedFd,
    paths: &ImagePaths,
    options: &CaptureOptions,
    progress: &CaptureProgress,
    cancel: &AtomicBool,
) -> Result<CaptureReport, Error> {
    let start = Instant::now();
    let (files, queue) = (Files::create(paths)?, Queue::new(options.buffer_bytes));
    let (summary, received) = std::thread::scope(|scope| {
        for _ in 0..options.writers.clamp(1, 16) {
            scope.spawn(|| queue.work(options.writer_nice));
        }
        let mut intake = Intake::new(files, &queue, progress, cancel);
        let summary = receive(&input, &mut intake, cancel);
        drop(input);
        let received = summary.and_then(|summary| Ok((summary, intake.finish()?)));
        queue.close();
        received
    })?;
    queue.take_error()?;
    let streamed = start.elapsed();
    finish::finish(received, summary, paths, streamed)
}

/// Feeds the input to the decoder until it ends.
fn receive(
    input: &OwnedFd,
    intake: &mut Intake<'_>,
    cancel: &AtomicBool,
) -> Result<Summary, Error> {
    let flags = fcntl_getfl(input).map_err(Error::stream)?;
    fcntl_setfl(input, flags | OFlags::NONBLOCK).map_err(Error::stream)?;
    let (mut decoder, mut buf) = (Decoder::new(), vec![0; READ_BYTES]);
    while !cancel.load(Ordering::Relaxed) {
        match rustix::io::read(input, &mut buf) {
            // A QEMU that was killed resets the connection; what is missing is told by finish.
            Ok(0) | Err(Errno::CONNRESET) => return Ok(decoder.finish()?),
            Ok(count) => decoder.feed(buf.get(..count).unwrap_or_default(), intake)?,
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::new(input, PollFlags::IN)];
                match poll(&mut ready, Some(&CANCEL_INTERVAL)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(Error::stream(errno)),
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::stream(errno)),
        }
    }
    Err(Error::Cancelled)
}
