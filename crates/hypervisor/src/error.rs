//! What can go wrong between Keyframe and a hypervisor.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that fails in this crate besides the host's probes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A network cannot be plugged in.
    #[error("cannot use network {network}: the interface must exist, be free, and be allowed to this user")]
    Network {
        /// Which one.
        network: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// QEMU ended while starting.
    #[error("QEMU did not start{}", quoted(.said))]
    DidNotStart {
        /// What it said.
        said: String,
        /// What was noticed first.
        #[source]
        source: Box<Error>,
    },
    /// There is no process to talk to.
    #[error("the process is not there any more")]
    NoProcess,
    /// QEMU ended while it was needed.
    #[error("QEMU ended unexpectedly{}; its log is {}", quoted(.said), .log.display())]
    Gone {
        /// Where its log is.
        log: PathBuf,
        /// The last it said.
        said: String,
    },
    /// The monitor failed or QEMU refused a command.
    #[error(transparent)]
    Qmp(#[from] keyframe_qmp::Error),
    /// QEMU could not merge layers.
    #[error("QEMU could not merge layers: {reason}")]
    Merge {
        /// QEMU's words.
        reason: String,
    },
    /// What QEMU noted of writes cannot be read.
    #[error("cannot read from QEMU what was written")]
    Changes {
        /// Why.
        #[source]
        source: keyframe_nbd::Error,
    },
    /// QEMU reported that saving or loading the machine's state failed.
    #[error("QEMU could not {what} the machine's state: {reason}")]
    Migration {
        /// `save` or `load`.
        what: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// Something that must come did not come.
    #[error("{what} did not happen within {} s", .waited.as_secs())]
    Late {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// Machines were to be cut at one instant, and that of another came to nothing.
    #[error("another machine of the group could not be cut")]
    Company,
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// This machine cannot be saved while it runs.
    #[error("QEMU cannot save this machine while it runs: {0}")]
    CannotSaveLive(String),
}

fn quoted(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Puts what was tried, and on what, beside a system call's error.
pub(crate) trait IoContext<T> {
    fn or_io(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn or_io(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { action, path: path.to_owned(), source })
    }
}
