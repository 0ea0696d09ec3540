//! Tidying up behind a command that was killed: finishing what was committed, undoing what was not.
//!
//! Runs at the start of every command that changes a machine, under its lock, and costs one look at a file
//! that is usually not there. Everything here may be interrupted and run again.

use keyframe_types::VmName;

use crate::context::Context;
use crate::error::Error;
use crate::guard::Guard;
use crate::machine::{Machine, kill_strays};
use crate::merge::step::Step;
use crate::state::journal::Journal;
use crate::state::lock::{Lock, TIDYING_UP};
use crate::{backup, boot, delete, drill, fork, revert, settle, snapshot};

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
    recover_within(ctx, name, patience).map(drop)
}

fn recover_within(ctx: &Context<'_>, name: &VmName, patience: Patience) -> Result<Recovered, Error> {
    let dir = ctx.home.vm(name);
    if let Err(error) = drill::tidy(&dir) {
        // It is in nobody's way but its own snapshot's.
        ctx.progress.note(&format!("something of a test that was killed stays for now: {error}"));
    }
    let Some(journal) = snapshot::undo::read_journal(&dir)? else { return Ok(Recovered::Done) };
    ctx.progress.note("an earlier command was interrupted; tidying up behind it");
    let mut machine = Machine::open(ctx.home, name)?;
    match journal {
        Journal::Boot { .. } if machine.head.process.is_none() => return boot::undo(&dir).map(|()| Recovered::Done),
        Journal::Boot { runs } => boot::finish(&machine, runs)?,
        Journal::Fork if machine.head.process.is_none() => return fork::undo(&dir).map(|()| Recovered::Done),
        // Layers are merged, a guest is asked for things: nobody who only looks waits for that.
        Journal::Fork | Journal::Snapshot(_) if patience == Patience::Moment => return Ok(Recovered::Later),
        Journal::Fork => settle::finish(ctx, &machine)?,
        Journal::Snapshot(journal) => snapshot::undo::recover(ctx, &mut machine, &journal)?,
        Journal::Revert(journal) => {
            if revert::undo::recover(ctx, &mut machine, *journal, patience)? == Recovered::Later {
                return Ok(Recovered::Later);
            }
        }
        // A guest that was stopped for the last step is seen to at once; all else can wait.
        Journal::Merge(journal) if patience == Patience::Moment && !journal.stops_guest() => {
            return Ok(Recovered::Later);
        }
        Journal::Merge(journal) => Step::new(ctx, *journal).recover(&mut machine)?,
        Journal::Live(journal) => backup::live::tidy_up(&machine, &journal)?,
        Journal::Delete { id, parent } => delete::finish(ctx, &mut machine, &id, parent)?,
    }
    let known: Vec<_> = machine.head.process.iter().map(|process| &process.instance).collect();
    kill_strays(&machine.dir, &known)?;
    snapshot::undo::drop_uncommitted(&machine.dir)?;
    Ok(Recovered::Done)
}

/// Tidies up if there is something to tidy up and nobody is at work on the machine. For commands that only look: what
/// takes long is left to a process of its own; what fails here is told by the next command that changes something.
pub(crate) fn recover_if_idle(ctx: &Context<'_>, name: &VmName) {
    let dir = ctx.home.vm(name);
    let orphaned = || {
        Machine::open(ctx.home, name).is_ok_and(|machine| machine.memory_is_orphaned() || boot::is_orphaned(&machine))
    };
    if !snapshot::undo::has_journal(&dir) && !drill::has_leftovers(&dir) && !orphaned() {
        return;
    }
    if let Ok(Some(lock)) = Lock::attempt(&dir.lock(), TIDYING_UP) {
        let recovered = recover_within(ctx, name, Patience::Moment);
        if let Ok(machine) = Machine::open(ctx.home, name) {
            machine.see_to_memory(ctx);
            boot::see_to(ctx, &machine);
        }
        drop(lock);
        if matches!(recovered, Ok(Recovered::Later)) {
            // A guard whose command is gone tidies up: this one's command has never been.
            drop(Guard::post(ctx.home, name));
        }
    }
}
