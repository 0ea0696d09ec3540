//! A machine's state in a repository: complete in itself, away from the machine.
//!
//! ```text
//!   snapshot ─▶ held ─▶ disks, memory stored ─▶ point (the commit) ─▶ let go ─▶ snapshot deleted, layers merged
//! ```
//! Frozen layers are read directly: neither QEMU nor the guest is in the way, and neither waits for the repository. The
//! machine's lock is held while the snapshot is taken and while it is let go, not while it is read. What is read is held as
//! what a test stands on is ([`crate::drill`]): nobody deletes or merges it, and a backup that is killed holds nothing.
//!
//! A backup that fails, or is killed, leaves no point, and of a snapshot taken for it, one that expires within a day.

mod changes;
mod memory;
mod point;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use keyframe_qcow2::Format;
use keyframe_repo::source::{self, Source};
use keyframe_repo::{Point, Repository, Session, Totals, WriteOptions};
use keyframe_types::{ByteLen, DiskId, SnapshotId, SnapshotName, SnapshotSelector, TimeToLive, Timestamp, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::delete::{self, DeleteOptions};
use crate::drill::Claim;
use crate::error::Error;
use crate::layers;
use crate::machine::Machine;
use crate::memory as images;
use crate::snapshot::{self, Freeze, SnapshotRequest};
use crate::snapshots;
use crate::state::head::Chain;
use crate::state::manifest::{Consistency, Manifest};
use crate::state::tree::FrozenTop;

use changes::{Changes, Running};
pub use point::{ChangedBy, DiskInPoint, INITRD, KERNEL, MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint};

/// How long a snapshot stays that a killed backup leaves behind.
const LEFT_FOR: &str = "1d";

/// What to store.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The machine.
    pub vm: VmName,
    /// A snapshot that exists; one is taken, and let go afterwards, if `None`.
    pub snapshot: Option<SnapshotSelector>,
    /// The running state, too: of a snapshot that exists, its memory.
    pub memory: bool,
    /// Whether to freeze file systems around the snapshot that is taken.
    pub freeze: Freeze,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// Why it is made.
    pub note: Option<String>,
}

/// What a backup came to.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// The point's id.
    pub id: String,
    /// Its history: the machine's name.
    pub name: String,
    /// When the state in it was.
    pub state_of: Timestamp,
    /// What was achieved.
    pub consistency: Consistency,
    /// Whether the running state is in it.
    pub memory: bool,
    /// How it was known what had changed, for each disk.
    pub changed_by: BTreeMap<String, ChangedBy>,
    /// The snapshot that was stored.
    pub snapshot: SnapshotId,
    /// Whether that snapshot is still there.
    pub snapshot_kept: bool,
    /// The guest's pause for the snapshot, in milliseconds; `None` for one that existed.
    pub pause_ms: Option<f64>,
    /// What storing took.
    pub totals: Totals,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The point is there, and something behind it did not work.
    pub incomplete: bool,
}

/// Stores a machine's state as a point.
///
/// # Errors
/// Whatever fails before the point is there: there is none then, and the machine is as it was.
pub fn backup(ctx: &Context<'_>, repository: &Repository, request: &BackupRequest) -> Result<BackupReport, Error> {
    let begun = Instant::now();
    let (taken, selector) = match &request.snapshot {
        Some(selector) => (None, selector.clone()),
        None => {
            let taken = take_snapshot(ctx, request)?;
            let selector = taken.id.to_string().parse().map_err(bad_selector)?;
            (Some(taken), selector)
        }
    };
    let stored = store(ctx, repository, request, &selector);
    let mut notes = taken.as_ref().map(|taken| taken.notes.clone()).unwrap_or_default();
    let mut incomplete = false;
    if taken.is_some()
        && let Err(error) = let_go(ctx, request, &selector, &mut notes)
    {
        incomplete = true;
        notes.push(format!(
            "the snapshot taken for it stays until `keyframe expire {}`, within a day: {}",
            request.vm,
            error.told()
        ));
    }
    let (point, machine) = match stored {
        Ok(stored) => stored,
        Err(error) => {
            // There is no report for them.
            notes.iter().for_each(|note| ctx.progress.note(note));
            return Err(error);
        }
    };
    Ok(BackupReport {
        id: point.id.to_string(),
        name: point.name,
        state_of: machine.snapshot.created,
        consistency: machine.snapshot.consistency,
        memory: machine.snapshot.memory.is_some(),
        changed_by: machine.disks.iter().map(|disk| (disk.disk.to_string(), disk.changed_by)).collect(),
        snapshot: machine.snapshot.id,
        snapshot_kept: taken.is_none() || incomplete,
        pause_ms: taken.map(|taken| taken.pause_ms),
        totals: point.totals,
        total_ms: (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3,
        notes,
        incomplete,
    })
}

fn bad_selector(error: keyframe_types::RefError) -> Error {
    Error::BadRequest { what: error.to_string() }
}

fn take_snapshot(ctx: &Context<'_>, request: &BackupRequest) -> Result<snapshot::SnapshotReport, Error> {
    ctx.progress.step("taking a snapshot");
    let ttl: TimeToLive = LEFT_FOR.parse().map_err(|error| Error::BadRequest { what: format!("{error}") })?;
    let name = SnapshotName::new(format!("backup-{}", &SnapshotId::random().as_str()[..8]));
    let request = SnapshotRequest {
        name: Some(name.map_err(|error| Error::BadRequest { what: error.to_string() })?),
        note: Some("taken for a backup".to_owned()),
        disk_only: !request.memory,
        ttl: Some(ttl),
        freeze: request.freeze,
        ..SnapshotRequest::of(request.vm.clone())
    };
    snapshot::take(ctx, &request)
}

/// Deletes the snapshot that was taken for a backup; what it froze becomes one with what is above.
fn let_go(
    ctx: &Context<'_>,
    request: &BackupRequest,
    selector: &SnapshotSelector,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    ctx.progress.step("letting the snapshot go");
    // Interrupting a backup interrupts storing; what it put on the machine is taken away again.
    let never = std::sync::atomic::AtomicBool::new(false);
    let ctx = Context { cancel: &never, ..*ctx };
    let deletion = delete::delete(&ctx, &request.vm, std::slice::from_ref(selector), DeleteOptions::default())?;
    if let Some(failure) = deletion.failure {
        notes.push(format!("its layers are not merged yet, `keyframe consolidate` goes on: {}", failure.told()));
    }
    Ok(())
}

/// Stores a snapshot, held meanwhile.
fn store(
    ctx: &Context<'_>,
    repository: &Repository,
    request: &BackupRequest,
    selector: &SnapshotSelector,
) -> Result<(Point, MachinePoint), Error> {
    let uuid = Machine::open(ctx.home, &request.vm)?.definition.uuid;
    let (previous, before) = previous(repository, &request.vm, &uuid)?.unzip();
    let Held { claim: _claim, machine, manifest, mut changes } = hold(ctx, &request.vm, selector, before.as_ref())?;
    let with_memory = request.memory && manifest.memory.is_some();
    if request.memory && !with_memory {
        return Err(Error::NoMemory { id: manifest.id });
    }
    let mut session = Session::begin(repository, previous, WriteOptions::default())?;
    let run = keyframe_repo::Run { progress: ctx.progress, cancel: ctx.cancel };
    let mut disks = Vec::new();
    for chain in manifest.chains() {
        let is_known = before.as_ref().is_some_and(|point| point.disk(&chain.disk).is_some());
        let changes = changes.remove(&chain.disk);
        let top = chain.top()?;
        let source = open_chain(ctx, chain)?;
        let extents = changes.as_ref().map(|changes| changes.extents.as_slice());
        session.add_image(chain.disk.as_str(), &*source, extents, run)?;
        disks.push(DiskInPoint {
            disk: chain.disk.clone(),
            bytes: ByteLen::from_bytes(source.bytes()),
            changed_by: match changes {
                Some(changes) => changes.by,
                None if is_known => ChangedBy::Compare,
                None => ChangedBy::Full,
            },
            file: top.file.clone(),
            fingerprint: top.frozen.clone(),
        });
    }
    if let Some(kernel) = &manifest.definition.kernel {
        session.add_image(KERNEL, &*source::open(&kernel.kernel, Some(Format::Raw))?, None, run)?;
        if let Some(initrd) = &kernel.initrd {
            session.add_image(INITRD, &*source::open(initrd, Some(Format::Raw))?, None, run)?;
        }
    }
    if with_memory {
        store_memory(ctx, &mut session, &machine, &manifest, run)?;
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
    let note = request.note.clone().or_else(|| manifest.note.clone());
    let tops = manifest.with_chains(FrozenTop::of)?;
    let document = MachinePoint::new(Manifest { memory, consistency, note, ..tops }, disks);
    let extra = serde_json::to_value(&document).map_err(|source| Error::Encode { source })?;
    ctx.progress.step("finishing the point");
    let point = session.commit(request.vm.as_str(), request.tags.clone(), extra)?;
    Ok((point, document))
}

/// A snapshot that stays as it is until this is dropped.
struct Held {
    claim: Claim,
    machine: Machine,
    manifest: Manifest,
    /// What may differ from the point before, of disks of which that is known.
    changes: BTreeMap<DiskId, Changes>,
}

/// Takes hold of a snapshot, and finds out what changed since the point `before`.
fn hold(
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
            && let Some(found) = changes::since(ctx.home, chain, known, running.as_mut())?
        {
            changes.insert(chain.disk.clone(), found);
        }
    }
    drop(running);
    Ok(Held { claim, machine, manifest, changes })
}

/// The latest point of the machine with this UUID: another machine that once had its name shares nothing by place.
fn previous(repository: &Repository, vm: &VmName, uuid: &str) -> Result<Option<(Point, MachinePoint)>, Error> {
    let (points, _damaged) = repository.points()?;
    let of_machine = points.into_iter().rev().filter(|point| point.name == vm.as_str());
    let decoded = of_machine.filter_map(|point| MachinePoint::of(&point).ok().map(|machine| (point, machine)));
    let mut same = decoded.filter(|(_, machine)| machine.snapshot.definition.uuid == uuid);
    Ok(same.next())
}

fn open_chain(ctx: &Context<'_>, chain: &Chain) -> Result<Box<dyn Source>, Error> {
    let top = chain.top()?;
    Ok(source::open(&ctx.home.absolute(&top.path), Some(layers::qcow2_format(top.format)))?)
}

fn store_memory(
    ctx: &Context<'_>,
    session: &mut Session<'_>,
    machine: &Machine,
    manifest: &Manifest,
    run: keyframe_repo::Run<'_>,
) -> Result<(), Error> {
    let image = images::open(&machine.dir, manifest)?;
    // Nothing damaged goes into a point.
    images::verify(ctx, &image).map_err(|source| Error::Memory { id: manifest.id.clone(), source })?;
    session.add_image(MEMORY, &memory::MemorySource(image), None, run)?;
    let dir = machine.dir.snapshot(&manifest.id);
    let file = |path: &Path| source::open(path, Some(Format::Raw));
    session.add_image(MEMORY_SUMS, &*file(&dir.sums())?, None, run)?;
    if dir.hot().exists() {
        session.add_image(MEMORY_HOT, &*file(&dir.hot())?, None, run)?;
    }
    Ok(())
}
