//! Making QEMU listen again after a page server died.
//!
//! QEMU sees the closed connection and pauses the migration; the guest runs on until it touches a page that is
//! missing. Its main loop may do so too, and then hangs: only commands out of band are heard. `migrate-recover`
//! is one, `query-migrate` is not, so nobody asks first how the migration stands: the command itself says
//! whether it is paused.
//!
//! Source: QEMU migration/migration.c, `qmp_migrate_recover`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyframe_qmp::Client;
use keyframe_qmp::commands::migration::{MigrateRecover, MigrationUri};

/// Time between two invitations.
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Why QEMU does not listen again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The monitor has no commands out of band, so it may hang with the guest.
    #[error("QEMU's monitor was connected without out-of-band commands")]
    NoOutOfBand,
    /// The path cannot be put into QEMU's notation.
    #[error("{socket}: not a path that QEMU can listen on")]
    Socket {
        /// The path.
        socket: PathBuf,
    },
    /// QEMU refuses, and went on refusing for as long as was allowed: there is no paused migration, because it
    /// still runs, has ended, or never got as far.
    #[error("QEMU does not take the migration up again")]
    Refused {
        /// Its last answer.
        source: keyframe_qmp::Error,
    },
    /// The monitor's connection is lost: QEMU is gone.
    #[error("QEMU's monitor does not answer")]
    Monitor {
        /// What happened.
        source: keyframe_qmp::Error,
    },
}

/// Makes a QEMU whose page server died listen on `socket` for another, which then has to [`super::resume`]. QEMU
/// takes a moment to notice a death, so a refusal counts only when `patience` has passed. May be called again if the other
/// server dies before or while it resumes.
///
/// # Errors
/// [`RecoveryError`].
pub fn invite(monitor: &mut Client, socket: &Path, patience: Duration) -> Result<(), RecoveryError> {
    if !monitor.has_oob() {
        return Err(RecoveryError::NoOutOfBand);
    }
    let bad = || RecoveryError::Socket { socket: socket.to_owned() };
    let path = socket.to_str().ok_or_else(bad)?;
    let uri = MigrationUri::new(format!("unix:{path}")).map_err(|_| bad())?;
    let command = MigrateRecover { uri };
    let give_up = Instant::now() + patience;
    loop {
        match monitor.call(&command) {
            Ok(_) => return Ok(()),
            Err(source) if !source.is_refusal() => return Err(RecoveryError::Monitor { source }),
            Err(source) if Instant::now() >= give_up => return Err(RecoveryError::Refused { source }),
            Err(_) => std::thread::sleep(RETRY_EVERY),
        }
    }
}
