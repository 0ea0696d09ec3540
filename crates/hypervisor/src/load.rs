//! A saved state into a fresh QEMU process, up to the moment before its first instruction.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use keyframe_qmp::commands::machine::{AddFd, Cont, QueryStatus, RunState};
use keyframe_qmp::commands::migration::{
    Capability, MigrateIncoming, MigrateSetCapabilities, MigrationAddress, MigrationStatus, MigrationUri, QueryMigrate,
};
use keyframe_qmp::{Client, EventKind};

use crate::error::Error;

/// How long devices may take to load; RAM of an eager load comes on top.
const DEVICE_PATIENCE: Duration = Duration::from_secs(60);

/// Loads the whole image at `image`: QEMU reads every page before it continues.
///
/// # Errors
/// [`Error::Migration`] with QEMU's reason when the image does not fit this process.
pub fn eager(monitor: &mut Client, image: &Path, patience: Duration) -> Result<(), Error> {
    monitor.call(&MigrateSetCapabilities::on([Capability::Events, Capability::MappedRam]))?;
    let filename = image.to_string_lossy().into_owned();
    monitor.call(&MigrateIncoming::from(MigrationAddress::File { filename, offset: 0 }))?;
    wait_loaded(monitor, DEVICE_PATIENCE + patience, || true).map(drop)
}

/// Loads devices from an image whose RAM is mapped: the open file `devices` holds everything else.
///
/// # Errors
/// As [`eager`].
pub fn mapped(monitor: &mut Client, devices: BorrowedFd<'_>) -> Result<(), Error> {
    monitor.call(&MigrateSetCapabilities::on([Capability::Events, Capability::MappedRam]))?;
    let added = monitor.call_with_fd(&AddFd::default(), devices)?;
    let filename = added.fdset.path();
    monitor.call(&MigrateIncoming::from(MigrationAddress::File { filename, offset: 0 }))?;
    wait_loaded(monitor, DEVICE_PATIENCE, || true).map(drop)
}

/// Name of the socket, in the process's own directory, on which a lazy load listens.
pub const PAGES_SOCKET: &str = "pages.sock";

/// Makes the process listen for a page server on [`PAGES_SOCKET`].
///
/// # Errors
/// [`Error::Qmp`].
pub fn listen_lazily(monitor: &mut Client) -> Result<(), Error> {
    monitor.call(&MigrateSetCapabilities::on([Capability::Events, Capability::PostcopyRam]))?;
    let uri = MigrationUri::new(format!("unix:{PAGES_SOCKET}"))?;
    monitor.call(&MigrateIncoming::from_uri(uri))?;
    Ok(())
}

/// Waits until a page server has sent the devices and the machine could run; `false` when `served` says first that it never will.
///
/// # Errors
/// As [`eager`].
pub fn wait_lazy(monitor: &mut Client, served: impl Fn() -> bool) -> Result<bool, Error> {
    wait_loaded(monitor, DEVICE_PATIENCE, served)
}

/// Waits until the run state says that the machine could run.
fn wait_loaded(monitor: &mut Client, patience: Duration, served: impl Fn() -> bool) -> Result<bool, Error> {
    let deadline = Instant::now() + patience;
    loop {
        let status = monitor.call(&QueryStatus {})?;
        if status.status != RunState::InMigrate {
            return Ok(true);
        }
        let migration = monitor.call(&QueryMigrate {})?;
        if migration.status == Some(MigrationStatus::Failed) {
            let reason = migration.error_desc.unwrap_or_else(|| "QEMU's log may say why".to_owned());
            return Err(Error::Migration { what: "load", reason });
        }
        if !served() {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            return Err(Error::Late { what: "loading the machine's state", waited: patience });
        }
        let pause = Instant::now() + Duration::from_millis(1);
        monitor.wait_event(|event| event.kind == EventKind::Migration, pause)?;
    }
}

/// Lets the machine run and returns when QEMU says that it does.
///
/// # Errors
/// [`Error::Qmp`] when QEMU refuses.
pub fn run(monitor: &mut Client) -> Result<Instant, Error> {
    run_while(monitor, || true)?.ok_or(Error::Late { what: "resuming the machine", waited: Duration::ZERO })
}

/// [`run`] for a machine whose memory is served by someone who may fail: QEMU then waits for a page and never answers.
/// Returns `None` as soon as `served` says that nobody will ever serve it.
///
/// # Errors
/// [`Error::Qmp`] when QEMU refuses, [`Error::Late`].
pub fn run_while(monitor: &mut Client, served: impl Fn() -> bool) -> Result<Option<Instant>, Error> {
    const TICK: Duration = Duration::from_millis(50);
    let request = monitor.start(&Cont {})?;
    let patience = Duration::from_secs(30);
    let deadline = Instant::now() + patience;
    loop {
        match monitor.wait_reply(request, Instant::now() + TICK)? {
            Some(reply) => break drop(reply.body()?),
            None if !served() => return Ok(None),
            None if Instant::now() >= deadline => {
                return Err(Error::Late { what: "resuming the machine", waited: patience });
            }
            None => {}
        }
    }
    let resumed = monitor.wait_event(|event| event.kind == EventKind::Resume, Instant::now() + patience)?;
    resumed.map(|event| Some(event.at)).ok_or(Error::Late { what: "resuming the machine", waited: patience })
}
