//! What other commands see to for a machine that stands on a repository: that somebody shows it that, that one whose making was
//! interrupted runs or goes, that nothing is asked of it that it cannot do yet.

use keyframe_qmp::commands::machine::QueryStatus;
use keyframe_repo::Repository;
use keyframe_types::VmName;

use super::document::{Place, Standing};
use super::server;
use super::status::{BootStatus, status};
use crate::context::Context;
use crate::error::Error;
use crate::machine::{Machine, kill_strays};
use crate::state::durable;
use crate::state::home::VmDir;
use crate::{fork, pages};

/// Removes a machine that did not come to run.
///
/// # Errors
/// When a process cannot be killed or a file not be removed.
pub(crate) fn undo(dir: &VmDir) -> Result<(), Error> {
    kill_strays(dir, &[])?;
    server::stop(dir)?;
    fork::undo(dir)
}

/// Lets a machine run whose command was killed after it had put the process on record, and removes its journal.
///
/// # Errors
/// When the process does not answer; the next command tries again.
pub(crate) fn finish(machine: &Machine, runs: bool) -> Result<(), Error> {
    if let Some(process) = machine.process().filter(|_| runs) {
        let mut monitor = machine.monitor()?;
        if !monitor.call(&QueryStatus {})?.running {
            pages::let_run(&process.instance, &mut monitor)?;
        }
    }
    durable::remove_file(&machine.dir.journal())
}

/// Sees to it that a machine that stands on a repository has someone who shows it that. The caller holds its lock.
pub(crate) fn see_to(ctx: &Context<'_>, machine: &Machine) {
    if is_orphaned(machine)
        && let Err(error) = server::ensure(ctx, &machine.dir, None)
    {
        ctx.progress.note(&format!("{} waits for what it reads from its repository: {}", machine.name(), error.told()));
    }
}

/// Whether a machine runs that stands on a repository, and nobody shows it that.
pub(crate) fn is_orphaned(machine: &Machine) -> bool {
    machine.process().is_some()
        && Standing::read(&machine.dir).is_ok_and(|standing| standing.is_some())
        && !server::is_served(&machine.dir)
}

/// Before a machine is started from its firmware: memory that was on its way is not any more, disks are shown again.
///
/// # Errors
/// [`Error::NotServed`]: the machine would wait for ever.
pub(crate) fn before_start(ctx: &Context<'_>, machine: &Machine) -> Result<(), Error> {
    let Some(mut standing) = Standing::read(&machine.dir)? else { return Ok(()) };
    if standing.memory.take().is_some() {
        standing.write(&machine.dir)?;
    }
    if standing.disks.is_empty() {
        return server::stop(&machine.dir);
    }
    server::ensure(ctx, &machine.dir, None)
}

/// Ends whoever shows a machine its repository: it is being removed.
///
/// # Errors
/// When that cannot be ended.
pub(crate) fn stop_serving(dir: &VmDir) -> Result<(), Error> {
    server::stop(dir)
}

/// Refuses what a machine that stands on a repository cannot be asked for.
///
/// # Errors
/// [`Error::StandsOnRepository`].
pub(crate) fn must_be_local(machine: &Machine) -> Result<(), Error> {
    match status(machine)? {
        None => Ok(()),
        Some(status) => Err(Error::StandsOnRepository { vm: machine.name().clone(), how_far: status.sentence() }),
    }
}

/// Goes on with a machine whose repository lies elsewhere now, or is opened by something else.
///
/// # Errors
/// [`Error::BadRequest`] for a machine that is wholly local, or another repository; [`Error::NotServed`].
pub fn resume(
    ctx: &Context<'_>,
    vm: &VmName,
    from: Option<(&Repository, Place)>,
    passphrase: Option<&str>,
) -> Result<BootStatus, Error> {
    let (_lock, machine) = Machine::lock(ctx, vm, &format!("boot --resume {vm}"))?;
    let local = || Error::BadRequest { what: format!("{vm} is wholly local: it needs no repository") };
    let mut standing = Standing::read(&machine.dir)?.ok_or_else(local)?;
    if let Some((repository, place)) = from {
        if repository.config().repository != standing.repository {
            let what = format!("{} is another repository than {vm} came from", place.repository);
            return Err(Error::BadRequest { what });
        }
        standing.place = place;
        standing.write(&machine.dir)?;
    }
    server::stop(&machine.dir)?;
    if machine.process().is_some() {
        server::ensure(ctx, &machine.dir, passphrase)?;
    }
    status(&machine)?.ok_or_else(local)
}
