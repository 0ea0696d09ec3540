//! Taking back a snapshot that was not committed, and finishing one that was.

use std::collections::BTreeSet;
use std::process::Command;

use keyframe_hypervisor::cut::{self, Overlay};
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::QueryBlock;

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::guest;
use crate::layers;
use crate::machine::Machine;
use crate::sharing;
use crate::snapshots;
use crate::state::head::{Chain, Head};
use crate::state::journal::SnapshotJournal;
use crate::state::{durable, sealed};

/// Finishes or takes back the snapshot that `journal` tells of, and removes the journal.
///
/// # Errors
/// When something cannot be undone now; the journal stays, and the next command tries again.
pub(crate) fn recover(ctx: &Context<'_>, machine: &mut Machine, journal: &SnapshotJournal) -> Result<(), Error> {
    match snapshots::read(&machine.dir, &journal.id)? {
        None => undo(ctx, machine, journal),
        Some(manifest) => {
            let frozen = Head { disks: manifest.disks, nvram: manifest.nvram, ..journal.before.clone() };
            calm(machine, journal);
            finish(ctx, machine, journal, &frozen)?;
            durable::remove_file(&machine.dir.journal())
        }
    }
}

/// Lets head descend from the committed snapshot. `frozen` is the head that it holds.
pub(crate) fn finish(
    ctx: &Context<'_>,
    machine: &mut Machine,
    journal: &SnapshotJournal,
    frozen: &Head,
) -> Result<(), Error> {
    machine.head = head_above(&machine.head, journal, frozen);
    machine.head.parent = Some(journal.id.clone());
    machine.write_head()?;
    pass(Failpoint::SnapshotParentWritten)?;
    layers::drop_unused_if_possible(ctx, &machine.dir);
    Ok(())
}

/// The head after the cut: fresh layers on top of what `frozen` froze.
pub(crate) fn head_above(now: &Head, journal: &SnapshotJournal, frozen: &Head) -> Head {
    let above = |below: &Chain| {
        let fresh =
            journal.overlays.iter().find(|chain| chain.disk == below.disk).and_then(|chain| chain.layers.first());
        let layers = fresh.into_iter().chain(&below.layers).cloned().collect();
        Chain { disk: below.disk.clone(), layers }
    };
    Head { disks: frozen.disks.iter().map(above).collect(), nvram: frozen.nvram.as_ref().map(above), ..now.clone() }
}

/// Stops QEMU from saving, thaws the guest and lets it run on.
fn calm(machine: &Machine, journal: &SnapshotJournal) {
    if let Ok(mut monitor) = machine.monitor() {
        cut::cancel_migration(&mut monitor);
        if journal.was_running {
            cut::resume_if_paused(&mut monitor);
        }
        if let (true, Some(process)) = (journal.freezes, machine.process()) {
            // A guest that is not frozen refuses; one whose agent is gone cannot be helped from here.
            let _ = guest::thaw(&process.instance);
        }
    }
}

/// Takes back a snapshot that was not committed: saving is cancelled, the guest runs, fresh layers are merged
/// into what is below them, and every file is removed. Memory that was written goes first: the merge may need its space.
///
/// # Errors
/// When a layer cannot be merged; journal and head then say what is on disk, and nothing is lost.
pub(crate) fn undo(ctx: &Context<'_>, machine: &mut Machine, journal: &SnapshotJournal) -> Result<(), Error> {
    calm(machine, journal);
    durable::remove_dir(machine.dir.snapshot(&journal.id).root())?;
    let overlays = layers::cut_overlays(ctx.home, &journal.overlays)?;
    match machine.monitor() {
        Ok(mut monitor) => uncut_live(&mut monitor, &overlays)?,
        Err(_) if machine.process().is_none() => uncut_offline(ctx, &journal.overlays)?,
        Err(error) => return Err(error),
    }
    machine.head = Head { process: machine.head.process.clone(), ..journal.before.clone() };
    machine.write_head()?;
    layers::remove_tops(ctx.home, &journal.overlays)?;
    // A disk that was full during the merge may have stopped the guest again.
    if let (true, Ok(mut monitor)) = (journal.was_running, machine.monitor()) {
        cut::resume_if_paused(&mut monitor);
    }
    durable::remove_file(&machine.dir.journal())
}

/// Merges those overlays that are in use, closes those that are not.
pub(crate) fn uncut_live(monitor: &mut Client, overlays: &[Overlay]) -> Result<(), Error> {
    let in_use: BTreeSet<String> = monitor
        .call(&QueryBlock {})?
        .into_iter()
        .filter_map(|backend| Some(backend.inserted?.node_name?.as_str().to_owned()))
        .collect();
    let (cut, opened): (Vec<Overlay>, Vec<Overlay>) =
        overlays.iter().cloned().partition(|overlay| in_use.contains(&overlay.overlay));
    cut::close_overlays(monitor, &opened);
    Ok(cut::uncut(monitor, &cut)?)
}

/// Merges overlays of a machine that is off. A merge that was interrupted is merely done again.
fn uncut_offline(ctx: &Context<'_>, overlays: &[Chain]) -> Result<(), Error> {
    for chain in overlays {
        let path = ctx.home.absolute(&chain.top()?.path);
        if !path.exists() {
            continue;
        }
        let output = Command::new("qemu-img").args(["commit", "-q", "-d"]).arg(&path).output();
        let output = output.or_io("run qemu-img commit on", &path)?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(keyframe_hypervisor::Error::Migration { what: "merge", reason }.into());
        }
    }
    Ok(())
}

/// Whether there is a journal, without reading it.
pub(crate) fn has_journal(machine_dir: &crate::state::home::VmDir) -> bool {
    machine_dir.journal().exists()
}

/// Removes what a killed creation of a snapshot left that no journal tells of: directories without a manifest.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn drop_uncommitted(dir: &crate::state::home::VmDir) -> Result<(), Error> {
    let path = dir.snapshots();
    let Ok(entries) = std::fs::read_dir(&path) else { return Ok(()) };
    for entry in entries {
        let entry = entry.or_io("list", &path)?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(id) = id
            && !dir.snapshot(&id).manifest().exists()
        {
            // Whatever became of its manifest: others may refer to its memory.
            sharing::keep_for_others(dir, &id)?;
            durable::remove_dir(dir.snapshot(&id).root())?;
        }
    }
    Ok(())
}

/// Reads the journal of a machine.
pub(crate) fn read_journal(dir: &crate::state::home::VmDir) -> Result<Option<crate::state::journal::Journal>, Error> {
    sealed::read(&dir.journal())
}
