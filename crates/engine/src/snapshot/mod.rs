//! Taking a snapshot.
//!
//! ```text
//!   plan ─▶ journal ─▶ overlays ─▶ cut ─▶ head ─▶ memory written ─▶ manifest ─▶ parent ─▶ journal gone
//!           └────────────── until here: undone ────────────────────┘└── from here: finished ──┘
//! ```
//! The manifest is the commit. Whatever fails before it is taken back: saving is cancelled, the guest runs on,
//! fresh layers are merged into what is below them, files are removed. Whoever finds the journal behind a
//! killed command does the same (`recover`), so there is one undo and it is always the same code.

pub(crate) mod freezing;
pub(crate) mod gate;
pub mod group;
mod live;
mod still;
pub(crate) mod undo;

use std::time::{Duration, Instant};

use keyframe_hypervisor::cut::{Alone, Company};
use keyframe_hypervisor::{Accelerator, MachineDefinition, QemuVersion};
use keyframe_types::{ByteLen, SnapshotId, SnapshotName, TimeToLive, Timestamp, VmName};
use serde::Serialize;

use crate::boot;
use crate::context::Context;
use crate::error::Error;
use crate::label;
use crate::machine::{Machine, State};
use crate::sharing::{self, Shared};
use crate::snapshots;
use crate::state::head::Head;
use crate::state::manifest::{Consistency, Cost, Cut, GroupCut, Manifest, Memory, QemuUsed, StateAtCut};
use crate::state::{durable, tree};
use gate::{Stage, Turn};

/// Whether to ask the guest's agent to freeze file systems around the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Freeze {
    /// Do not.
    #[default]
    No,
    /// Ask; go on without if it does not work, and say so.
    Try,
    /// No snapshot without.
    Must,
}

/// What a snapshot shall be.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    /// Of which machine.
    pub vm: VmName,
    /// Its name; one made from the time if `None`.
    pub name: Option<SnapshotName>,
    /// Why it is taken.
    pub note: Option<String>,
    /// Whose it is; whoever asks if `None`.
    pub owner: Option<String>,
    /// Without memory.
    pub disk_only: bool,
    /// How long it is wanted.
    pub ttl: Option<TimeToLive>,
    /// Kept whatever else is said.
    pub pin: bool,
    /// The longest pause that is acceptable.
    pub max_pause: Option<Duration>,
    /// Rather without memory than with a longer pause.
    pub or_disk_only: bool,
    /// Whether to freeze file systems.
    pub freeze: Freeze,
    /// The machines that it is cut with.
    pub group: Option<GroupCut>,
}

impl SnapshotRequest {
    /// A snapshot of `vm` with nothing said about it.
    #[must_use]
    pub fn of(vm: VmName) -> Self {
        Self {
            vm,
            name: None,
            note: None,
            owner: None,
            disk_only: false,
            ttl: None,
            pin: false,
            max_pause: None,
            or_disk_only: false,
            freeze: Freeze::No,
            group: None,
        }
    }
}

/// What a snapshot came to.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotReport {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// What was achieved.
    pub consistency: Consistency,
    /// How the instant was made.
    pub cut: Cut,
    /// What the machine was doing.
    pub state: StateAtCut,
    /// From STOP to RESUME, in milliseconds.
    pub pause_ms: f64,
    /// The longest that a vCPU was seen to wait for a page to be saved, in milliseconds, looked for every millisecond.
    pub guest_stall_ms_max: Option<f64>,
    /// How long file systems were frozen, in milliseconds; `None` if they were not.
    pub frozen_ms: Option<f64>,
    /// The whole command, in milliseconds.
    pub total_ms: f64,
    /// Space that the snapshot takes: its memory image. Its layers were the machine's before.
    pub bytes_on_disk: ByteLen,
    /// Of its memory, bytes that older snapshots have too, and that are stored once.
    pub shared_bytes: ByteLen,
    /// How long it took to find those, in milliseconds; `None` where nothing is shared.
    pub sharing_ms: Option<f64>,
    /// RAM of the machine; 0 for a disk-only snapshot.
    pub ram_bytes: ByteLen,
    /// Guest memory put back into huge pages, so that the next pause is as short.
    pub huge_pages_restored: ByteLen,
    /// What failed behind the commit: the snapshot is there, and that is made up for, now or by whoever comes next.
    pub late_failure: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl SnapshotReport {
    /// Tells what sharing saved, if it did.
    fn shares(&mut self, shared: Option<Shared>) {
        if let Some(shared) = shared {
            (self.bytes_on_disk, self.shared_bytes) = (shared.bytes_on_disk, shared.shared_bytes);
            self.sharing_ms = Some(shared.sharing_ms);
        }
    }
}

/// Takes a snapshot of a running, paused or stopped machine.
///
/// # Errors
/// Whatever fails; the machine is then as it was and no snapshot was made.
pub fn take(ctx: &Context<'_>, request: &SnapshotRequest) -> Result<SnapshotReport, Error> {
    let begun = Instant::now();
    let (_lock, mut machine) = Machine::lock(ctx, &request.vm, &format!("snapshot {}", request.vm))?;
    let mut report = take_locked(ctx, &mut machine, request, Occasion::ByItself, begun)?;
    report.shares(sharing::share_if_possible(ctx, &machine, &report.id));
    report.total_ms = ms(begun.elapsed());
    Ok(report)
}

/// What a snapshot is taken with, or before.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Occasion<'a> {
    /// A running guest goes on as if nothing had happened.
    ByItself,
    /// A running guest is about to be ended: it is stopped before the cut and stays so. The snapshot says that it ran.
    BeforeItsEnd,
    /// At one instant with other machines: a running guest is stopped before the cut, waits for them, and goes on.
    InGroup(&'a Turn<'a>),
}

impl Occasion<'_> {
    /// Waits for the machines of its group, where it is of one.
    fn reach(self, stage: Stage) -> Result<(), Error> {
        match self {
            Self::InGroup(turn) => turn.reach(stage),
            Self::ByItself | Self::BeforeItsEnd => Ok(()),
        }
    }

    fn company(&self) -> &dyn Company {
        match self {
            Self::InGroup(turn) => *turn,
            Self::ByItself | Self::BeforeItsEnd => &Alone,
        }
    }
}

/// [`take`] for a caller that holds the machine's lock.
pub(crate) fn take_locked(
    ctx: &Context<'_>,
    machine: &mut Machine,
    request: &SnapshotRequest,
    occasion: Occasion<'_>,
    begun: Instant,
) -> Result<SnapshotReport, Error> {
    boot::must_be_local(machine)?;
    let plan = Plan::new(machine, request, begun)?;
    match machine.state() {
        State::Running => live::take(ctx, machine, request, plan, StateAtCut::Running, occasion),
        State::Paused => live::take(ctx, machine, request, plan, StateAtCut::Paused, occasion),
        State::Crashed if machine.process().is_some() => Err(Error::WrongState {
            vm: request.vm.clone(),
            state: "in an internal error of its QEMU".to_owned(),
            advice: "look at its log (`keyframe vm show`); `keyframe vm stop --force` ends it, and its disks can be \
                     snapshotted then",
        }),
        State::Stopped | State::Crashed => still::take(ctx, machine, request, plan, occasion),
        State::Unresponsive => Err(Error::WrongState {
            vm: request.vm.clone(),
            state: State::Unresponsive.as_str().to_owned(),
            advice: "its QEMU does not answer; look at its log (`keyframe vm show`), or `keyframe vm stop --force`",
        }),
    }
}

/// What is decided before anything happens.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: SnapshotId,
    pub(crate) name: SnapshotName,
    pub(crate) begun: Instant,
}

impl Plan {
    pub(crate) fn new(machine: &Machine, request: &SnapshotRequest, begun: Instant) -> Result<Self, Error> {
        label::check(request.note.as_deref(), request.owner.as_deref())?;
        let (existing, _) = snapshots::scan(&machine.dir)?;
        let taken = |name: &str| existing.iter().any(|manifest| manifest.name.as_str() == name);
        let name = match &request.name {
            Some(name) if taken(name.as_str()) => {
                return Err(Error::SnapshotExists { vm: request.vm.clone(), name: name.to_string() });
            }
            Some(name) => name.clone(),
            None => free_name(taken)?,
        };
        Ok(Self { id: SnapshotId::random(), name, begun })
    }
}

/// A name made from the time, such as `20261122-164512`.
fn free_name(taken: impl Fn(&str) -> bool) -> Result<SnapshotName, Error> {
    let digits: String = Timestamp::now().to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let base = format!("{}-{}", &digits[..8], &digits[8..]);
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let name = std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base);
    SnapshotName::new(name).map_err(|error| Error::BadRequest { what: error.to_string() })
}

/// What is known when everything is on disk and only the commit is left.
pub(crate) struct Taken {
    pub(crate) consistency: Consistency,
    pub(crate) cut: Cut,
    pub(crate) state: StateAtCut,
    pub(crate) created: Timestamp,
    pub(crate) pause: Duration,
    pub(crate) stall: Option<Duration>,
    pub(crate) frozen: Option<Duration>,
    /// A freeze was asked for: whatever became of it, a guest that comes back from this is to be thawed.
    pub(crate) may_be_frozen: bool,
    pub(crate) memory: Option<Memory>,
    pub(crate) qemu: QemuUsed,
    pub(crate) notes: Vec<String>,
}

impl Taken {
    /// Disks as they lie now, and nothing else.
    pub(crate) fn disks(cut: Cut, state: StateAtCut, consistency: Consistency, qemu: QemuUsed) -> Self {
        Self {
            consistency,
            cut,
            state,
            created: Timestamp::now(),
            pause: Duration::ZERO,
            stall: None,
            frozen: None,
            may_be_frozen: false,
            memory: None,
            qemu,
            notes: Vec::new(),
        }
    }
}

/// The QEMU of a snapshot, as its manifest tells it.
pub(crate) fn qemu_used(version: QemuVersion, accelerator: Accelerator) -> QemuUsed {
    QemuUsed { version, accelerator, host_cpu: host_cpu(accelerator) }
}

pub(crate) fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}

/// Commits a snapshot: `definition` is the hardware that ran, `before` the head that was frozen. Returns what to report.
pub(crate) fn commit(
    machine: &Machine,
    request: &SnapshotRequest,
    plan: &Plan,
    definition: &MachineDefinition,
    before: &Head,
    taken: &Taken,
) -> Result<SnapshotReport, Error> {
    let dir = machine.dir.snapshot(&plan.id);
    durable::create_private_dir(dir.root())?;
    let cost =
        Cost { pause_ms: ms(taken.pause), guest_stall_ms_max: taken.stall.map(ms), total_ms: ms(plan.begun.elapsed()) };
    let manifest = Manifest {
        id: plan.id.clone(),
        name: plan.name.clone(),
        note: request.note.clone(),
        owner: request.owner.clone().unwrap_or_else(owner),
        created: taken.created,
        expires: request.ttl.map(|ttl| taken.created.after(ttl)),
        pinned: request.pin,
        parent: before.parent.clone(),
        group: request.group.clone(),
        consistency: taken.consistency,
        cut: taken.cut,
        state: taken.state,
        frozen: taken.may_be_frozen,
        definition: definition.clone(),
        qemu: taken.qemu.clone(),
        memory: taken.memory.clone(),
        disks: before.disks.clone(),
        nvram: before.nvram.clone(),
        cost,
    };
    tree::write_manifest(&machine.dir, &manifest)?;
    Ok(SnapshotReport {
        id: manifest.id,
        name: manifest.name,
        consistency: manifest.consistency,
        cut: manifest.cut,
        state: manifest.state,
        pause_ms: cost.pause_ms,
        guest_stall_ms_max: cost.guest_stall_ms_max,
        frozen_ms: taken.frozen.map(ms),
        total_ms: cost.total_ms,
        bytes_on_disk: taken.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk),
        shared_bytes: ByteLen::ZERO,
        sharing_ms: None,
        ram_bytes: taken.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.ram_bytes),
        huge_pages_restored: ByteLen::ZERO,
        late_failure: None,
        notes: taken.notes.clone(),
    })
}

/// What to report of a snapshot whose command failed with `error`, whatever came of taking that back: a
/// snapshot that is committed exists, whatever failed behind the commit.
fn after_failure(machine: &Machine, id: &SnapshotId, error: Error) -> Result<SnapshotReport, Error> {
    let Some(manifest) = snapshots::read(&machine.dir, id)? else { return Err(error) };
    let memory = manifest.memory.as_ref();
    Ok(SnapshotReport {
        bytes_on_disk: memory.map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk),
        shared_bytes: ByteLen::ZERO,
        sharing_ms: None,
        ram_bytes: memory.map_or(ByteLen::ZERO, |memory| memory.ram_bytes),
        id: manifest.id,
        name: manifest.name,
        consistency: manifest.consistency,
        cut: manifest.cut,
        state: manifest.state,
        pause_ms: manifest.cost.pause_ms,
        guest_stall_ms_max: manifest.cost.guest_stall_ms_max,
        frozen_ms: None,
        total_ms: manifest.cost.total_ms,
        huge_pages_restored: ByteLen::ZERO,
        late_failure: Some(error.to_string()),
        notes: vec![format!(
            "the snapshot is complete; what failed behind it is made up for, now or by the next command: {error}"
        )],
    })
}

/// Who is asking: the person behind sudo, where there is one.
pub(crate) fn owner() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The processor, as a guest with the host's CPU model sees it; `None` where QEMU emulates one.
pub(crate) fn host_cpu(accelerator: Accelerator) -> Option<String> {
    if accelerator == Accelerator::Tcg {
        return None;
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let model = field("model name");
    let model = model.split_once(':').map_or("unknown processor", |(_, model)| model.trim());
    let digest = blake3::hash(format!("{}\n{}", model, field("flags")).as_bytes());
    Some(format!("{model} ({})", &digest.to_hex()[..12]))
}
