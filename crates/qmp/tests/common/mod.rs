//! A QEMU of the test's own, ended with the test.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_qmp::{Client, Error};

/// A QEMU that runs no guest.
pub struct Qemu {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Qemu {
    /// Starts one with these arguments and waits for its monitor.
    pub fn start(extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("qmp");
        let child = Command::new("qemu-system-x86_64")
            .args(["-S", "-display", "none", "-nodefaults", "-M", "q35,accel=tcg", "-m", "32"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(extra)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 must be installed for this test");
        let mut qemu = Self { child, socket, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !qemu.socket.exists() {
            assert!(qemu.child.try_wait().expect("wait").is_none(), "QEMU ended at once");
            assert!(Instant::now() < deadline, "QEMU made no monitor");
            std::thread::sleep(Duration::from_millis(5));
        }
        qemu
    }

    /// A client of its monitor. QEMU makes the socket a moment before it listens.
    pub fn connect(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_connect(Duration::from_secs(20)) {
                Err(Error::Connect { source, .. })
                    if source.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                outcome => return outcome.expect("QMP connection"),
            }
        }
    }

    /// A client of its monitor, if that can be had now.
    pub fn try_connect(&self, timeout: Duration) -> keyframe_qmp::Result<Client> {
        Client::connect(&self.socket, timeout)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
