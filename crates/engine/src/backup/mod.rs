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

mod audit;
mod changes;
mod memory;
mod point;
mod unreadable;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_qcow2::Format;
use keyframe_repo::source::{self, Source};
use keyframe_repo::{Point, Repository, Session, Totals, WriteOptions};
use keyframe_types::{ByteLen, DiskId, SnapshotId, SnapshotName, SnapshotSelector, TimeToLive, Timestamp, VmName};
use serde::Serialize;

use crate::context::Context;
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

use audit::{Audited, Auditor};
use changes::{Changes, Running};
pub use point::{ChangedBy, DiskInPoint, INITRD, KERNEL, MEMORY, MEMORY_HOT, MEMORY_SUMS, MachinePoint};
use unreadable::Tolerant;

/// How the name of a snapshot begins that was taken for a backup.
const NAME_PREFIX: &str = "backup-";
/// Its note.
const TAKEN_FOR: &str = "taken for a backup";
/// One that is older than this and that nobody holds was left behind by a backup that was killed.
const LEFT_AFTER: Duration = Duration::from_secs(60);
/// How long a snapshot stays that a killed backup leaves behind and no other backup takes away.
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
    /// So many percent of what change tracking calls unchanged is read and compared; 0 for none.
    pub audit_percent: u8,
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
    /// What was read again of what change tracking called unchanged; `None` without an audit.
    pub audited_bytes: Option<ByteLen>,
    /// What could not be read of its disks, and is zeros in the point.
    pub unreadable_bytes: ByteLen,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
    /// The point is there, and something is missing in it, or behind it did not work.
    pub incomplete: bool,
}

/// Stores a machine's state as a point. Whether the repository can be read is known before the machine is touched.
///
/// # Errors
/// Whatever fails before the point is there: there is none then, and the machine is as it was.
pub fn backup(ctx: &Context<'_>, repository: &Arc<Repository>, request: &BackupRequest) -> Result<BackupReport, Error> {
    let begun = Instant::now();
    let uuid = Machine::open(ctx.home, &request.vm)?.definition.uuid;
    let previous = previous(repository, &request.vm, &uuid)?;
    let (taken, selector) = match &request.snapshot {
        Some(selector) => (None, selector.clone()),
        None => {
            let taken = take_snapshot(ctx, request)?;
            let selector = by_id(&taken.id)?;
            (Some(taken), selector)
        }
    };
    let stored = pass(Failpoint::BackupSnapshotTaken)
        .and_then(|()| store(ctx, repository, request, &selector, previous))
        .and_then(|stored| pass(Failpoint::BackupPointMade).map(|()| stored));
    let mut notes = taken.as_ref().map(|taken| taken.notes.clone()).unwrap_or_default();
    let (mut stays, mut merged) = (false, true);
    if taken.is_some() {
        match let_go(ctx, request, &selector, &mut notes) {
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
    let Stored { point, machine, audited, found } = match stored {
        Ok(stored) => stored,
        Err(error) => {
            // There is no report for them.
            notes.iter().for_each(|note| ctx.progress.note(note));
            return Err(error);
        }
    };
    let incomplete = stays || !merged || !found.is_empty();
    notes.extend(found);
    let unreadable = machine.unreadable_bytes();
    if unreadable > ByteLen::ZERO {
        notes.push(format!(
            "{unreadable} of its disks could not be read, and are zeros in the point: look at the host's disks, and at \
             `keyframe check {} --data`",
            request.vm
        ));
    }
    Ok(BackupReport {
        id: point.id.to_string(),
        name: point.name,
        state_of: machine.snapshot.created,
        consistency: machine.snapshot.consistency,
        memory: machine.snapshot.memory.is_some(),
        changed_by: machine.disks.iter().map(|disk| (disk.disk.to_string(), disk.changed_by)).collect(),
        snapshot: machine.snapshot.id,
        snapshot_kept: taken.is_none() || stays,
        pause_ms: taken.map(|taken| taken.pause_ms),
        totals: point.totals,
        audited_bytes: audited,
        unreadable_bytes: unreadable,
        total_ms: (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3,
        notes,
        incomplete: incomplete || unreadable > ByteLen::ZERO,
    })
}

fn by_id(id: &SnapshotId) -> Result<SnapshotSelector, Error> {
    id.to_string().parse().map_err(bad_selector)
}

fn bad_selector(error: keyframe_types::RefError) -> Error {
    Error::BadRequest { what: error.to_string() }
}

fn take_snapshot(ctx: &Context<'_>, request: &BackupRequest) -> Result<snapshot::SnapshotReport, Error> {
    ctx.progress.step("taking a snapshot");
    let ttl: TimeToLive = LEFT_FOR.parse().map_err(|error| Error::BadRequest { what: format!("{error}") })?;
    let name = SnapshotName::new(format!("{NAME_PREFIX}{}", &SnapshotId::random().as_str()[..8]));
    let request = SnapshotRequest {
        name: Some(name.map_err(|error| Error::BadRequest { what: error.to_string() })?),
        note: Some(TAKEN_FOR.to_owned()),
        disk_only: !request.memory,
        ttl: Some(ttl),
        freeze: request.freeze,
        ..SnapshotRequest::of(request.vm.clone())
    };
    snapshot::take(ctx, &request)
}

/// Deletes the snapshot that was taken for a backup; what it froze becomes one with what is above. Says whether that was done, too.
fn let_go(
    ctx: &Context<'_>,
    request: &BackupRequest,
    selector: &SnapshotSelector,
    notes: &mut Vec<String>,
) -> Result<bool, Error> {
    ctx.progress.step("letting the snapshot go");
    // Interrupting a backup interrupts storing; what it put on the machine is taken away again.
    let never = std::sync::atomic::AtomicBool::new(false);
    let ctx = Context { cancel: &never, ..*ctx };
    let deletion = delete::delete(&ctx, &request.vm, std::slice::from_ref(selector), DeleteOptions::default())?;
    if let Some(failure) = &deletion.failure {
        notes.push(format!("its layers are not merged yet, `keyframe consolidate` goes on: {}", failure.told()));
    }
    for left in left_behind(&ctx, &request.vm)? {
        // One that somebody stands on stays, and keeps no other.
        if delete::delete(&ctx, &request.vm, std::slice::from_ref(&left), DeleteOptions::default()).is_ok() {
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

/// A point that was made.
struct Stored {
    point: Point,
    machine: MachinePoint,
    audited: Option<ByteLen>,
    /// What an audit found.
    found: Vec<String>,
}

/// Stores a snapshot, held meanwhile.
fn store(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    request: &BackupRequest,
    selector: &SnapshotSelector,
    previous: Option<(Point, MachinePoint)>,
) -> Result<Stored, Error> {
    let (previous, before) = previous.unzip();
    let Held { claim: _claim, machine, manifest, mut changes } = hold(ctx, &request.vm, selector, before.as_ref())?;
    let with_memory = request.memory && manifest.memory.is_some();
    if request.memory && !with_memory {
        return Err(Error::NoMemory { id: manifest.id });
    }
    pass(Failpoint::BackupHeld)?;
    let auditor = match &previous {
        Some(point) if request.audit_percent > 0 => Some(Auditor::new(repository, point, request.audit_percent)?),
        _ => None,
    };
    let mut audited = auditor.as_ref().map(|_| ByteLen::ZERO);
    let mut notes = Vec::new();
    let mut session = Session::begin(repository, previous.clone(), WriteOptions::default())?;
    let run = keyframe_repo::Run { progress: ctx.progress, cancel: ctx.cancel };
    let mut disks = Vec::new();
    for chain in manifest.chains() {
        let is_known = before.as_ref().is_some_and(|point| point.disk(&chain.disk).is_some());
        let mut changes = changes.remove(&chain.disk);
        let top = chain.top()?;
        let source = open_chain(ctx, chain)?;
        if source.bytes() != top.virtual_bytes.bytes() {
            // It was resized behind our back: who notes writes does not note that.
            changes = None;
        }
        if let (Some(auditor), Some(known)) = (&auditor, &changes) {
            let by = known.by.as_str();
            let found = match auditor.audit(chain.disk.as_str(), &*source, &known.extents, run) {
                Ok(found) => found,
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => {
                    notes.push(format!("{} could not be audited, and was compared: {}", chain.disk, error.told()));
                    Audited { read: ByteLen::ZERO, differs_at: None, failed: true }
                }
            };
            if found.failed {
                changes = None;
            }
            audited = audited.map(|bytes| bytes + found.read);
            if let Some(at) = found.differs_at {
                notes.push(format!(
                    "the audit found that {} changed at byte {at} of {} and did not say so: all of that disk was compared, and \
                     the point is right. Points since the last comparison of it may not be: make sure that nothing but \
                     Keyframe and its QEMU writes to its layers, and report it",
                    by,
                    chain.disk
                ));
                changes = None;
            }
        }
        let extents = changes.as_ref().map(|changes| changes.extents.as_slice());
        let tolerant = Tolerant::new(&*source);
        session.add_image(chain.disk.as_str(), &tolerant, extents, run)?;
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
            unreadable: tolerant.unreadable(),
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
    let note = request.note.clone().or_else(|| manifest.note.clone().filter(|note| note != TAKEN_FOR));
    let tops = manifest.with_chains(FrozenTop::of)?;
    let document = MachinePoint::new(Manifest { memory, consistency, note, ..tops }, disks);
    let extra = serde_json::to_value(&document).map_err(|source| Error::Encode { source })?;
    pass(Failpoint::BackupStored)?;
    ctx.progress.step("finishing the point");
    let point = session.commit(request.vm.as_str(), request.tags.clone(), extra)?;
    Ok(Stored { point, machine: document, audited, found: notes })
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
