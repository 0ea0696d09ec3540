//! A backup of a snapshot: of one that exists, or of one that is taken for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyframe_qcow2::Format;
use keyframe_repo::source::{self, Source};
use keyframe_repo::{Repository, Run};
use keyframe_types::{DiskId, SnapshotId, SnapshotName, SnapshotSelector, TimeToLive, Timestamp, VmName};

use crate::context::Context;
use crate::courtesy::aside;
use crate::delete::{self, DeleteOptions};
use crate::drill::{self, Claim};
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::memory as images;
use crate::snapshot::{self, Freeze, SnapshotRequest};
use crate::snapshots;
use crate::state::head::Chain;
use crate::state::manifest::{Consistency, Manifest};
use crate::state::tree::FrozenTop;

use super::changes::{self, Changes, Running};
use super::memory;
use super::point::{MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint, Way};
use super::storing::{KnownAs, Making, Previous, Stored, Storing};
use super::{BackupRequest, Outcome};

/// How the name of a snapshot begins that was taken for a backup.
const NAME_PREFIX: &str = "backup-";
/// Its note.
const TAKEN_FOR: &str = "taken for a backup";
/// One that is older than this and that nobody holds was left behind by a backup that was killed.
const LEFT_AFTER: Duration = Duration::from_secs(60);
/// How long a snapshot stays that a killed backup leaves behind and no other backup takes away.
const LEFT_FOR: &str = "1d";

/// Stores the snapshot `existing`, or one that is taken and let go again.
pub(super) fn backup(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    request: &BackupRequest,
    (existing, memory): (Option<&SnapshotSelector>, bool),
    previous: Option<&Previous>,
) -> Result<Outcome, Error> {
    let (taken, selector) = match existing {
        Some(selector) => (None, selector.clone()),
        None => {
            let taken = take_snapshot(ctx, request, memory)?;
            let selector = by_id(&taken.id)?;
            (Some(taken), selector)
        }
    };
    let stored = pass(Failpoint::BackupSnapshotTaken)
        .and_then(|()| store(ctx, repository, request, (&selector, memory), previous))
        .and_then(|stored| pass(Failpoint::BackupPointMade).map(|()| stored));
    let mut notes = taken.as_ref().map(|taken| taken.notes.clone()).unwrap_or_default();
    let (mut stays, mut merged) = (false, true);
    if taken.is_some() {
        match let_go(ctx, &request.vm, &selector, &mut notes) {
            Ok(all) => merged = all,
            Err(error) => {
                stays = true;
                notes.push(format!(
                    "the snapshot taken for it stays until `keyframe expire {}`, within a day: {}",
                    request.vm,
                    error.told()
                ));
            }
        }
    }
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            // There is no report for them.
            notes.iter().for_each(|note| ctx.progress.note(note));
            return Err(error);
        }
    };
    Ok(Outcome {
        snapshot: Some(stored.document.snapshot.id.clone()),
        stored,
        snapshot_kept: taken.is_none() || stays,
        pause_ms: taken.map(|taken| taken.pause_ms),
        live: None,
        notes,
        incomplete: stays || !merged,
    })
}

pub(super) fn by_id(id: &SnapshotId) -> Result<SnapshotSelector, Error> {
    id.to_string().parse().map_err(bad_selector)
}

fn bad_selector(error: keyframe_types::RefError) -> Error {
    Error::BadRequest { what: error.to_string() }
}

fn take_snapshot(ctx: &Context<'_>, request: &BackupRequest, memory: bool) -> Result<snapshot::SnapshotReport, Error> {
    ctx.progress.step("taking a snapshot");
    snapshot::take(ctx, &snapshot_for(&request.vm, request.freeze, memory)?)
}

/// A snapshot that is taken for a backup.
pub(super) fn snapshot_for(vm: &VmName, freeze: Freeze, memory: bool) -> Result<SnapshotRequest, Error> {
    let ttl: TimeToLive = LEFT_FOR.parse().map_err(|error| Error::BadRequest { what: format!("{error}") })?;
    let name = SnapshotName::new(format!("{NAME_PREFIX}{}", &SnapshotId::random().as_str()[..8]));
    Ok(SnapshotRequest {
        name: Some(name.map_err(|error| Error::BadRequest { what: error.to_string() })?),
        note: Some(TAKEN_FOR.to_owned()),
        disk_only: !memory,
        ttl: Some(ttl),
        freeze,
        ..SnapshotRequest::of(vm.clone())
    })
}

/// Deletes the snapshot that was taken for a backup; what it froze becomes one with what is above. Says whether that was done, too.
pub(super) fn let_go(
    ctx: &Context<'_>,
    vm: &VmName,
    selector: &SnapshotSelector,
    notes: &mut Vec<String>,
) -> Result<bool, Error> {
    ctx.progress.step("letting the snapshot go");
    // Interrupting a backup interrupts storing; what it put on the machine is taken away again.
    let never = std::sync::atomic::AtomicBool::new(false);
    let ctx = Context { cancel: &never, ..*ctx };
    let deletion = delete::delete(&ctx, vm, std::slice::from_ref(selector), DeleteOptions::default())?;
    if let Some(failure) = &deletion.failure {
        notes.push(format!("its layers are not merged yet, `keyframe consolidate` goes on: {}", failure.told()));
    }
    for left in left_behind(&ctx, vm)? {
        // One that somebody stands on stays, and keeps no other.
        if delete::delete(&ctx, vm, std::slice::from_ref(&left), DeleteOptions::default()).is_ok() {
            notes.push(format!("snapshot {left}, which a backup had left behind that was killed, is gone, too"));
        }
    }
    Ok(deletion.failure.is_none())
}

/// Snapshots that were taken for backups which were killed.
fn left_behind(ctx: &Context<'_>, vm: &VmName) -> Result<Vec<SnapshotSelector>, Error> {
    let dir = ctx.home.vm(vm);
    let held = drill::being_tested(&dir)?;
    let now = Timestamp::now();
    let of_nobody = |manifest: &Manifest| {
        manifest.note.as_deref() == Some(TAKEN_FOR)
            && manifest.name.as_str().starts_with(NAME_PREFIX)
            // What somebody wants to keep has another name, or no end.
            && manifest.expires.is_some()
            && !manifest.pinned
            && !held.contains(&manifest.id)
            && manifest.created.until(now) > LEFT_AFTER
    };
    let (all, _damaged) = snapshots::scan(&dir)?;
    all.iter().filter(|manifest| of_nobody(manifest)).map(|manifest| by_id(&manifest.id)).collect()
}

/// Stores a snapshot, held meanwhile.
fn store(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    request: &BackupRequest,
    (selector, memory): (&SnapshotSelector, bool),
    previous: Option<&Previous>,
) -> Result<Stored, Error> {
    let (point, before) = previous.map(|(point, machine)| (point, machine)).unzip();
    let held = hold(ctx, &request.vm, selector, before)?;
    if memory && held.manifest.memory.is_none() {
        return Err(Error::NoMemory { id: held.manifest.id });
    }
    pass(Failpoint::BackupHeld)?;
    // The guest's machine is not locked any more, and nobody waits for this but who wants the backup.
    aside(|| {
        let run = Run { progress: ctx.progress, cancel: ctx.cancel };
        let mut storing = Storing::begin(repository, Making::of(request), point, run)?;
        storing.machine(String::new(), before);
        let machine = store_held(ctx, &mut storing, held, memory, request.note.clone())?;
        storing.commit(ctx, machine, Failpoint::BackupStored)
    })
}

/// Stores what is held, as the machine that `storing` is at.
pub(super) fn store_held(
    ctx: &Context<'_>,
    storing: &mut Storing<'_>,
    held: Held,
    with_memory: bool,
    note: Option<String>,
) -> Result<MachinePoint, Error> {
    let Held { claim: _claim, machine, manifest, mut changes } = held;
    for chain in manifest.chains() {
        let source = open_chain(ctx, chain)?;
        let top = chain.top()?;
        let known_as = KnownAs { file: top.file.clone(), fingerprint: top.frozen.clone(), noted_since: None };
        storing.disk(chain, &*source, changes.remove(&chain.disk), known_as)?;
    }
    storing.kernel(&manifest.definition)?;
    if with_memory {
        store_memory(ctx, storing, &machine, &manifest)?;
    }
    // Layers that somebody wrote to meanwhile were not what the snapshot froze.
    Machine::check_layers(ctx.home, manifest.chains())?;
    let memory = manifest.memory.clone().filter(|_| with_memory);
    let consistency = match manifest.consistency {
        // Without its memory it is what a power cut would have left, or a freeze.
        Consistency::RunningState if memory.is_none() && manifest.frozen => Consistency::Filesystem,
        Consistency::RunningState if memory.is_none() => Consistency::Crash,
        achieved => achieved,
    };
    let note = note.or_else(|| manifest.note.clone().filter(|note| note != TAKEN_FOR));
    let tops = manifest.with_chains(FrozenTop::of)?;
    let snapshot = Manifest { memory, consistency, note, ..tops };
    Ok(MachinePoint::new(Way::Snapshot, snapshot, storing.disks()))
}

/// A snapshot that stays as it is until this is dropped.
pub(super) struct Held {
    claim: Claim,
    machine: Machine,
    pub manifest: Manifest,
    /// What may differ from the point before, of disks of which that is known.
    changes: BTreeMap<DiskId, Changes>,
}

/// Takes hold of a snapshot, and finds out what changed since the point `before`.
pub(super) fn hold(
    ctx: &Context<'_>,
    vm: &VmName,
    selector: &SnapshotSelector,
    before: Option<&MachinePoint>,
) -> Result<Held, Error> {
    let (_lock, machine) = Machine::lock(ctx, vm, &format!("backup {vm}"))?;
    let manifest = snapshots::find(&machine.dir, vm, selector)?;
    Machine::check_layers(ctx.home, manifest.chains())?;
    let claim = Claim::take(&machine.dir, &manifest.id)?;
    // Without a monitor there is nothing noted.
    let running = machine.process().zip(machine.monitor().ok());
    let mut running = running.map(|(process, monitor)| Running { monitor, dir: &process.instance.dir });
    let mut changes = BTreeMap::new();
    for chain in manifest.chains() {
        if let Some(known) = before.and_then(|point| point.disk(&chain.disk))
            && let Some(found) = changes::since(ctx.home, &chain.layers, known, running.as_mut())?
        {
            changes.insert(chain.disk.clone(), found);
        }
    }
    drop(running);
    Ok(Held { claim, machine, manifest, changes })
}

fn open_chain(ctx: &Context<'_>, chain: &Chain) -> Result<Box<dyn Source>, Error> {
    let top = chain.top()?;
    Ok(source::open(&ctx.home.absolute(&top.path), Some(layers::qcow2_format(top.format)))?)
}

fn store_memory(
    ctx: &Context<'_>,
    storing: &mut Storing<'_>,
    machine: &Machine,
    manifest: &Manifest,
) -> Result<(), Error> {
    let image = images::open(&machine.dir, manifest)?;
    // Nothing damaged goes into a point.
    images::verify(ctx, &image).map_err(|source| Error::Memory { id: manifest.id.clone(), source })?;
    storing.image(MEMORY, &memory::MemorySource(image))?;
    let dir = machine.dir.snapshot(&manifest.id);
    let file = |path: &Path| source::open(path, Some(Format::Raw));
    storing.image(MEMORY_SUMS, &*file(&dir.sums())?)?;
    if dir.hot().exists() {
        storing.image(MEMORY_HOT, &*file(&dir.hot())?)?;
    }
    Ok(())
}
