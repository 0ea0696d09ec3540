//! Where images go in tests.

use keyframe_memory::capture::ImagePaths;
use keyframe_memory::{Error, MemoryImage};

/// A directory on a disk that takes direct I/O, and the files in it.
pub struct Place {
    pub paths: ImagePaths,
    _dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self { paths: ImagePaths::in_dir(dir.path()), _dir: dir }
    }

    pub fn open(&self) -> Result<MemoryImage, Error> {
        MemoryImage::open(&self.paths.mapped, &self.paths.sums)
    }
}
