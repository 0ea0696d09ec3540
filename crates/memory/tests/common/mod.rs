//! Captures made-up machines.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;

use keyframe_memory::capture::{
    CaptureOptions, CaptureProgress, CaptureReport, ImagePaths, capture,
};
use keyframe_memory::{Error, MemoryImage};

/// A directory on a disk that takes direct I/O, and the files in it.
pub struct Place {
    pub paths: ImagePaths,
    _dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self {
            paths: ImagePaths::in_dir(dir.path()),
            _dir: dir,
        }
    }

    pub fn open(&self) -> Result<MemoryImage, Error> {
        MemoryImage::open(&self.paths.mapped, &self.paths.sums)
    }
}

/// Sends a stream through a socket, in pieces of `cut` bytes, and captures it.
pub fn capture_stream(place: &Place, stream: &[u8], cut: usize) -> Result<CaptureReport, Error> {
    let (mut from, to) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in stream.chunks(cut) {
                // The other side may have had enough of it.
                if from.write_all(piece).is_err() {
                    break;
                }
            }
        });
        let options = CaptureOptions {
            buffer_bytes: 4 << 20,
            ..CaptureOptions::default()
        };
        let (progress, cancel) = (CaptureProgress::default(), AtomicBool::new(false));
        capture(
            OwnedFd::from(to),
            &place.paths,
            &options,
            &progress,
            &cancel,
        )
    })
}
