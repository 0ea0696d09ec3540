//! A file system that is soon full.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A small file system, mounted until dropped. Needs root, as the tests' container has.
#[derive(Debug)]
pub struct SmallFs<'p>(&'p Path);

impl<'p> SmallFs<'p> {
    /// Mounts one of that size, such as `40m`, at a directory, which is made if it is not there.
    ///
    /// # Panics
    /// When that is not possible: a test that needs it cannot go on.
    #[must_use]
    pub fn mount(at: &'p Path, size: &str) -> Self {
        fs::create_dir_all(at).expect("a directory to mount at");
        let option = format!("size={size}");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &option, "keyframe-test"]).arg(at).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        assert!(mounted, "this test mounts a small file system and needs root for it");
        Self(at)
    }
}

impl Drop for SmallFs<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}
