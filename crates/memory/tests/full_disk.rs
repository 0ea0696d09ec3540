//! A disk that fills up while memory is captured. Needs root, to mount a small file system.

mod common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use common::Place;
use keyframe_memory::Error;
use keyframe_memory::capture::{CaptureOptions, CaptureProgress, CaptureReport, ImagePaths, capture};
use keyframe_vmstate::testing::Machine;

/// A small file system, mounted until dropped.
struct SmallFs<'p>(&'p Path);

impl<'p> SmallFs<'p> {
    fn mount(at: &'p Path) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "keyframe-test"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "this test mounts a file system and needs root for it");
        Self(at)
    }
}

impl Drop for SmallFs<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn capture_file(stream: File, paths: &ImagePaths) -> Result<CaptureReport, Error> {
    let (options, progress) = (CaptureOptions::default(), CaptureProgress::default());
    capture(OwnedFd::from(stream), paths, &options, &progress, &AtomicBool::new(false))
}

#[test]
fn a_full_disk_is_told_in_bytes() {
    let machine = Machine::new(&[("pc.ram", 6000)], 31);
    let bytes = machine.stream(&machine.places(), 500);
    let stream = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    stream.write_all_at(&bytes, 0).expect("written");
    let again = stream.try_clone().expect("a second handle");

    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    {
        let _small = SmallFs::mount(dir.path());
        let error = capture_file(stream, &ImagePaths::in_dir(dir.path())).expect_err("2 MiB are too few");
        let Error::NoSpace { path, written_bytes, missing_bytes, free_bytes, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(path.ends_with("memory.mapped"), "{error}");
        assert!(*written_bytes < 2 << 20 && *free_bytes < 2 << 20, "{error}");
        assert!(*missing_bytes < 6000 * 4096, "{error}");
    }

    // The same stream, where there is room.
    std::io::Seek::rewind(&mut &again).expect("a file can");
    let place = Place::new();
    capture_file(again, &place.paths).expect("captured");
    assert_eq!(*place.open().expect("opens").ram(), machine.header.ram);
    assert!(std::fs::read(&place.paths.mapped).expect("read") == machine.image(), "file differs");
}
