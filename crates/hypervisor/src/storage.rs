//! QEMU's block layer without a machine: `qemu-storage-daemon`, for layers that no machine has open.
//!
//! It lives as long as this process wants it, dies with it, and is spoken to over a pair of sockets that nobody else can
//! reach.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyframe_qmp::Client;
use serde_json::json;

use crate::error::Error;

/// The program.
pub const PROGRAM: &str = "qemu-storage-daemon";

/// How long it may take to greet, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A storage daemon that runs.
#[derive(Debug)]
pub struct StorageDaemon {
    child: Child,
    monitor: Client,
}

impl StorageDaemon {
    /// Starts one.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be run, [`Error::Qmp`] when it does not greet.
    pub fn start() -> Result<Self, Error> {
        let io = |source| Error::Io { action: "run", path: PROGRAM.into(), source };
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        let number = theirs.as_fd().as_raw_fd();
        let mut command = Command::new(PROGRAM);
        command
            .arg("--chardev")
            .arg(format!("socket,id=monitor,fd={number}"))
            .args(["--monitor", "chardev=monitor,mode=control"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let parent = std::process::id();
        // SAFETY: between fork and exec only fcntl(2), setsid(2), prctl(2) and getppid(2) are called, all
        // async-signal-safe; `theirs` is open until the child has been started.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(number, libc::F_SETFD, 0) == -1 || libc::setsid() == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                // Whoever is killed leaves nobody behind that writes to layers.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(io)?;
        drop(theirs);
        let monitor = Client::from_stream(ours, PATIENCE)?;
        Ok(Self { child, monitor })
    }

    /// Its monitor.
    pub fn monitor(&mut self) -> &mut Client {
        &mut self.monitor
    }

    /// Lets it close what it has open, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end, or not well: what it had open may then not be complete.
    pub fn end(mut self) -> Result<(), Error> {
        self.monitor.execute("quit", &json!({}))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let io = |source| Error::Io { action: "wait for", path: PROGRAM.into(), source };
            match self.child.try_wait().map_err(io)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::Merge { reason: format!("{PROGRAM} ended with {status}") });
                }
                None if Instant::now() >= deadline => {
                    return Err(Error::Late { what: "closing layers", waited: PATIENCE });
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // One that has ended refuses; a killed one leaves images that are as whole as after a power cut.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
