//! What a capture tells while it runs, and at its end.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How far a capture has got; read it from any thread.
#[derive(Debug, Default)]
pub struct CaptureProgress {
    /// Bytes of guest memory there are; 0 until the stream says.
    pub ram_bytes: AtomicU64,
    /// Bytes of guest memory that have arrived, zero pages included.
    pub seen_bytes: AtomicU64,
    /// Bytes of pages written to the image.
    pub written_bytes: AtomicU64,
    /// Microseconds in which the stream was not read because the buffer was full.
    pub waited_us: AtomicU64,
    /// The longest single one of those waits.
    pub longest_wait_us: AtomicU64,
}

impl CaptureProgress {
    pub(super) fn waited(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.waited_us.fetch_add(micros, Ordering::Relaxed);
        self.longest_wait_us.fetch_max(micros, Ordering::Relaxed);
    }
}

/// Whether pages went round the page cache.
#[derive(Debug)]
pub enum DirectIo {
    /// They did.
    Used,
    /// The file system refused: pages went through the page cache, and the guest may have felt it.
    Refused(io::Error),
}

/// What a capture has made.
#[derive(Debug)]
pub struct CaptureReport {
    /// Bytes of guest memory.
    pub ram_bytes: u64,
    /// Pages the image holds.
    pub pages_held: u64,
    /// Pages that never came or came as zeroes.
    pub pages_zero: u64,
    /// Pages that came more than once.
    pub pages_repeated: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Bytes of device sections, without their description.
    pub device_bytes: u64,
    /// Length of the image; its holes count.
    pub image_bytes: u64,
    /// Extents that had to be read back for their sums.
    pub extents_reread: u64,
    /// Runs in the list of hot pages.
    pub hot_runs: usize,
    /// Whether direct I/O was possible.
    pub direct_io: DirectIo,
    /// From the start until the stream had ended and all pages were written.
    pub streamed: Duration,
    /// Bitmaps, headers, sums and syncing after that.
    pub finished: Duration,
}
