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
mod pace;
mod progress;
mod queue;
mod sums;
mod target;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keyframe_vmstate::decode::{Decoder, Summary};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::Error;
use intake::Intake;
use pace::{MAX_READ_BYTES, Pace};
pub use progress::{CaptureProgress, CaptureReport, DirectIo};
use queue::{Queue, Turn};
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
        Self { mapped: at("memory.mapped"), sums: at("memory.b3"), hot: at("memory.hot") }
    }
}

/// How to capture. The defaults are what measured best (docs/CAPTURE.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Memory for pages on their way to the disk, in bytes: 4 MiB to 1 GiB, in whole MiB.
    pub buffer_bytes: usize,
    /// Threads that hash and write when a processor is idle: 1 to 16. One more helps when they do not keep up.
    pub writers: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { buffer_bytes: 24 << 20, writers: 2 }
    }
}

/// What a pipe may hold without privileges (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;
/// What a socket holds of 4 KiB writes with the kernel's default settings, roughly.
const SOCKET_BYTES: usize = 160 << 10;

/// Reads a migration stream to its end and makes a memory image of it. The input is one end of
/// [`channel`] or any other pipe or socket; it is set non-blocking. Blocks until the files are on disk; their directory is the
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
            scope.spawn(|| queue.work(Turn::WhenIdle));
        }
        scope.spawn(|| queue.work(Turn::WhenPressed));
        let mut intake = Intake::new(files, &queue, progress, cancel);
        let summary = receive(&input, &mut intake, (&queue, progress), cancel);
        drop(input);
        let received = summary.and_then(|summary| Ok((summary, intake.finish()?)));
        queue.close();
        received
    })?;
    queue.take_error()?;
    let streamed = start.elapsed();
    finish::finish(received, summary, paths, streamed)
}

/// Makes the pipe through which QEMU should be let migrate: (end for QEMU, end for [`capture`]).
/// Hand the first to QEMU with `getfd`, close it here, and say `migrate fd:NAME`. A pipe holds more
/// than a socket does while nobody reads, and costs less.
///
/// # Errors
/// [`Error::StreamIo`] when there are no more file descriptors.
pub fn channel() -> Result<(OwnedFd, OwnedFd), Error> {
    let (input, for_qemu) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::stream)?;
    // A user with many pipes may get no larger one; the size it has does, only less well.
    let _ = fcntl_setpipe_size(&for_qemu, PIPE_BYTES);
    Ok((for_qemu, input))
}

/// Feeds the input to the decoder until it ends.
fn receive(
    input: &OwnedFd,
    intake: &mut Intake<'_>,
    (queue, progress): (&Queue<'_>, &CaptureProgress),
    cancel: &AtomicBool,
) -> Result<Summary, Error> {
    let flags = fcntl_getfl(input).map_err(Error::stream)?;
    fcntl_setfl(input, flags | OFlags::NONBLOCK).map_err(Error::stream)?;
    let mut pace = Pace::new(fcntl_getpipe_size(input).unwrap_or(SOCKET_BYTES));
    let (mut decoder, mut buf) = (Decoder::new(), vec![0; MAX_READ_BYTES]);
    let mut last = Instant::now();
    while !cancel.load(Ordering::Relaxed) {
        let limit = Pace::read_bytes(queue.room()).min(buf.len());
        match rustix::io::read(input, buf.get_mut(..limit).unwrap_or_default()) {
            // A QEMU that was killed resets the connection; what is missing is told by finish.
            Ok(0) | Err(Errno::CONNRESET) => return Ok(decoder.finish()?),
            Ok(count) => {
                decoder.feed(buf.get(..count).unwrap_or_default(), intake)?;
                let written = progress.written_bytes.load(Ordering::Relaxed);
                let pause = pace.brake(count, written, queue.room(), last.elapsed());
                last = Instant::now();
                if let Some(pause) = pause {
                    progress.waited(pause);
                    std::thread::sleep(pause);
                }
            }
            Err(Errno::AGAIN) => std::thread::sleep(pace.nap()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::stream(errno)),
        }
    }
    Err(Error::Cancelled)
}
