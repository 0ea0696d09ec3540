//! qemu-img and qemu-io, which these tests need: they fail where the tools are missing.

use std::path::PathBuf;
use std::process::Command;

use keyframe_qcow2::VirtualSize;
use keyframe_types::ByteLen;

/// A directory of the test's own.
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// A new one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    /// A path in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a tool of QEMU's in it, and expects success.
    pub fn run(&self, tool: &str, args: &[&str]) -> String {
        let run = Command::new(tool).args(args).current_dir(self.0.path()).output();
        let output = run.unwrap_or_else(|error| panic!("{tool} must be installed for this test: {error}"));
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{tool} {args:?}: {out}{err}");
        out
    }

    /// `qemu-img` in it.
    pub fn img(&self, args: &[&str]) -> String {
        self.run("qemu-img", args)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A disk of so many bytes.
pub fn size(bytes: u64) -> VirtualSize {
    VirtualSize::new(ByteLen::from_bytes(bytes)).expect("size")
}
