//! Tidying up behind a command that was killed: finishing what was committed, undoing what was not.
//!
//! Runs at the start of every command that changes a machine, under its lock, and costs one look at a file
//! that is usually not there. Everything here may be interrupted and run again.

use keyframe_hypervisor::cut;
use keyframe_types::VmName;

use crate::context::Context;
use crate::error::Error;
use crate::machine::{Machine, kill_strays};
use crate::state::durable;
use crate::state::journal::Journal;
use crate::state::lock::Lock;
use crate::{delete, fork, revert, snapshot};

/// How long tidying up may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it takes: the machine is going to be changed.
    Thorough,
    /// A moment: someone only wants to look.
    Moment,
}

/// Whether tidying up is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// It is.
    Done,
    /// What takes long is left to a command that changes the machine.
    Later,
}

/// Tidies up behind a killed command. The caller holds the machine's lock.
///
/// # Errors
/// When something cannot be tidied up now; nothing is lost, and the next command tries again.
pub(crate) fn recover(ctx: &Context<'_>, name: &VmName, patience: Patience) -> Result<(), Error> {
    let dir = ctx.home.vm(name);
    let Some(journal) = snapshot::undo::read_journal(&dir)? else { return Ok(()) };
    ctx.progress.note("an earlier command was interrupted; tidying up behind it");
    let mut machine = Machine::open(ctx.home, name)?;
    match journal {
        Journal::Fork if machine.head.process.is_none() => return fork::undo(&dir),
        Journal::Fork => finish_fork(&machine)?,
        Journal::Snapshot(journal) => snapshot::undo::recover(ctx, &mut machine, &journal)?,
        Journal::Revert(journal) => {
            if revert::undo::recover(ctx, &mut machine, *journal, patience)? == Recovered::Later {
                return Ok(());
            }
        }
        Journal::Delete { id, parent } => delete::finish(ctx, &mut machine, &id, parent)?,
    }
    let known: Vec<_> = machine.head.process.iter().map(|process| &process.instance).collect();
    kill_strays(&machine.dir, &known)?;
    snapshot::undo::drop_uncommitted(&machine.dir)
}

/// The fork's process is on record: it is a machine, and all that may be missing is that it runs.
fn finish_fork(machine: &Machine) -> Result<(), Error> {
    if machine.process().is_some() {
        cut::resume_if_paused(&mut machine.monitor()?);
    }
    durable::remove_file(&machine.dir.journal())
}

/// Tidies up if there is something to tidy up and nobody is at work on the machine. For commands that only look:
/// what fails here is told by the next command that changes something.
pub(crate) fn recover_if_idle(ctx: &Context<'_>, name: &VmName) {
    let dir = ctx.home.vm(name);
    let orphaned = || Machine::open(ctx.home, name).is_ok_and(|machine| machine.memory_is_orphaned());
    if !snapshot::undo::has_journal(&dir) && !orphaned() {
        return;
    }
    if let Ok(Some(_lock)) = Lock::attempt(&dir.lock(), "tidying up behind a killed command") {
        let _ = recover(ctx, name, Patience::Moment);
        if let Ok(machine) = Machine::open(ctx.home, name) {
            machine.see_to_memory(ctx);
        }
    }
}
