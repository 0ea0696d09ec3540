//! What a machine's snapshots cost, and will cost, each trouble with the command that ends it.
//!
//! Everything is taken from documents and files; of a machine that runs, QEMU tells how its disks are served. QEMU counts reads for
//! each disk, not for each layer of its chain, so what is told of a layer is the space that it takes.
//!
//! Growth is what the snapshots that exist now have added since the oldest of the last 30 days: those that were deleted
//! meanwhile have taken their part away again.

use std::path::PathBuf;
use std::time::Duration;

use keyframe_hypervisor::definition::CostLimits;
use keyframe_hypervisor::launch::disk_device;
use keyframe_hypervisor::{InstanceRecord, Monitor};
use keyframe_types::{ByteLen, SnapshotId, SnapshotName, Timestamp, VmName};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::Context;
use crate::error::Error;
use crate::machine::Machine;
use crate::state::head::Chain;
use crate::state::home::VmDir;
use crate::state::manifest::Manifest;
use crate::tree::own_bytes_of;
use crate::{recover, sharing, snapshots, space};

const DAY: Duration = Duration::from_secs(86_400);
/// How far back growth is looked at.
const GROWTH_OF: Duration = Duration::from_secs(30 * 86_400);
/// Growth of a shorter time says nothing.
const SHORTEST_GROWTH: Duration = Duration::from_secs(600);
/// A snapshot that nobody is known to own may be so old.
const UNOWNED_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Ends of the bins that QEMU counts requests in, in nanoseconds: 0.1 ms to 1 s.
const BOUNDARIES_NS: [u64; 9] =
    [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000, 1_000_000_000];

/// What a machine's snapshots cost.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// The machine.
    pub vm: VmName,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// Space that they take.
    pub bytes: ByteLen,
    /// By how much that grows in a day; `None` where too little is known.
    pub bytes_per_day: Option<ByteLen>,
    /// Space that is free on the home's file system.
    pub bytes_free: ByteLen,
    /// When it is full, if nothing else grows; `None` where nothing grows or too little is known.
    pub days_until_full: Option<f64>,
    /// Its disks.
    pub disks: Vec<DiskCost>,
    /// What should be seen to.
    pub warnings: Vec<Warning>,
}

/// A disk of a machine's present.
#[derive(Debug, Serialize)]
pub struct DiskCost {
    /// Its id.
    pub disk: String,
    /// Its layers, the active one first.
    pub layers: Vec<LayerCost>,
    /// How QEMU serves it; `None` for a machine that does not run.
    pub reads: Option<Reads>,
}

/// A layer.
#[derive(Debug, Serialize)]
pub struct LayerCost {
    /// Its file.
    pub path: PathBuf,
    /// Space that it takes.
    pub bytes: ByteLen,
}

/// What the guest has read from a disk since its process was started, through all layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reads {
    /// Requests.
    pub requests: u64,
    /// What one takes on average, in milliseconds.
    pub mean_ms: f64,
    /// What 99 of 100 take at most, in milliseconds; `None` until enough were counted: QEMU begins to count when it is asked first.
    pub p99_ms: Option<f64>,
}

/// Something that should be seen to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The snapshot, if it is about one.
    pub snapshot: Option<SnapshotId>,
    /// What it is.
    pub text: String,
    /// The command that ends it.
    pub fix: String,
}

/// Says what a machine's snapshots cost.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::Damaged`], [`Error::Io`].
pub fn cost(ctx: &Context<'_>, vm: &VmName) -> Result<Cost, Error> {
    recover::recover_if_idle(ctx, vm);
    let machine = Machine::open(ctx.home, vm)?;
    let (manifests, _) = snapshots::scan(&machine.dir)?;
    let pile = Pile::of(ctx, &machine.dir, &manifests, Timestamp::now());
    let bytes_free = space::free(machine.dir.root())?;
    let instance = machine.process().map(|process| &process.instance);
    let disks: Vec<DiskCost> = machine.head.disks.iter().map(|chain| disk(ctx, chain, instance)).collect();
    let limits = machine.definition.cost.unwrap_or_default();
    let mut warnings = warnings(&machine, &manifests, &pile, bytes_free, limits);
    warnings.extend(disks.iter().filter_map(|disk| slow(vm, disk, limits)));
    Ok(Cost {
        vm: vm.clone(),
        snapshots: manifests.len(),
        bytes: pile.bytes,
        bytes_per_day: pile.bytes_per_day,
        bytes_free,
        days_until_full: pile.days_until_full(bytes_free),
        disks,
        warnings,
    })
}

/// The same in a few words, for a list; `None` where there is nothing to see to. Asks nobody but the file system.
pub(crate) fn brief(ctx: &Context<'_>, machine: &Machine, manifests: &[Manifest]) -> Option<String> {
    let bytes_free = space::free(machine.dir.root()).ok()?;
    let pile = Pile::of(ctx, &machine.dir, manifests, Timestamp::now());
    let limits = machine.definition.cost.unwrap_or_default();
    let warnings = warnings(machine, manifests, &pile, bytes_free, limits);
    let overdue = warnings.iter().filter(|warning| warning.snapshot.is_some()).count();
    let mut parts: Vec<String> =
        warnings.iter().filter(|warning| warning.snapshot.is_none()).map(|warning| warning.text.clone()).collect();
    if overdue > 0 {
        parts.push(format!("{overdue} snapshot(s) past their welcome"));
    }
    (!parts.is_empty()).then(|| format!("{}: see `keyframe cost {}`", parts.join("; "), machine.name()))
}

/// All snapshots together.
#[derive(Debug, PartialEq, Eq)]
struct Pile {
    bytes: ByteLen,
    bytes_per_day: Option<ByteLen>,
}

impl Pile {
    fn of(ctx: &Context<'_>, dir: &VmDir, manifests: &[Manifest], now: Timestamp) -> Self {
        // Where it cannot be told, what was written counts.
        let memory = sharing::memory_space(dir, manifests.iter().map(|manifest| manifest.id.clone()));
        let memory = memory.unwrap_or_default();
        let own = |manifest: &Manifest| own_bytes_of(ctx, manifest, memory.get(&manifest.id).copied());
        let sizes: Vec<(Timestamp, ByteLen)> =
            manifests.iter().map(|manifest| (manifest.created, own(manifest))).collect();
        Self { bytes: sizes.iter().map(|(_, bytes)| *bytes).sum(), bytes_per_day: growth(&sizes, now) }
    }

    fn days_until_full(&self, free: ByteLen) -> Option<f64> {
        let per_day = self.bytes_per_day.filter(|bytes| *bytes > ByteLen::ZERO)?;
        Some((free.bytes() as f64 / per_day.bytes() as f64 * 10.0).round() / 10.0)
    }
}

/// Growth in a day of what was created at these instants, with these sizes.
fn growth(sizes: &[(Timestamp, ByteLen)], now: Timestamp) -> Option<ByteLen> {
    // A clock that jumped: what is of the future is taken for new.
    let recent = sizes.iter().filter(|(created, _)| created.until(now) <= GROWTH_OF);
    let oldest = recent.clone().map(|(created, _)| *created).min()?;
    let span = oldest.until(now);
    if span < SHORTEST_GROWTH {
        return None;
    }
    let added: ByteLen = recent.filter(|(created, _)| *created > oldest).map(|(_, bytes)| *bytes).sum();
    let per_day = u128::from(added.bytes()) * DAY.as_millis() / span.as_millis();
    Some(ByteLen::from_bytes(u64::try_from(per_day).unwrap_or(u64::MAX)))
}

fn warnings(machine: &Machine, manifests: &[Manifest], pile: &Pile, free: ByteLen, limits: CostLimits) -> Vec<Warning> {
    let vm = machine.name();
    let whole = |text: String, fix: String| Warning { snapshot: None, text, fix };
    let mut all = Vec::new();
    let depth = machine.head.chains().map(|chain| chain.layers.len()).max().unwrap_or(0);
    if depth > limits.max_depth as usize {
        let text = format!("a disk has {depth} layers, more than {}", limits.max_depth);
        all.push(whole(text, format!("keyframe consolidate {vm}")));
    }
    if let Some(days) = pile.days_until_full(free).filter(|days| *days < f64::from(limits.min_days_left)) {
        let text = format!("at this rate the file system is full in {days:.1} days");
        all.push(whole(text, format!("keyframe snapshots {vm}, and keyframe delete {vm}@SNAP")));
    }
    let now = Timestamp::now();
    all.extend(manifests.iter().filter(|manifest| !manifest.pinned).filter_map(|one| overdue(vm, one, now, limits)));
    all
}

/// Why a snapshot is past its welcome, if it is.
fn overdue(vm: &VmName, manifest: &Manifest, now: Timestamp, limits: CostLimits) -> Option<Warning> {
    let (name, age) = (&manifest.name, manifest.created.until(now));
    let warning = |text: String, fix: String| Some(Warning { snapshot: Some(manifest.id.clone()), text, fix });
    let days = age.as_secs() / DAY.as_secs();
    match manifest.expires {
        Some(expires) if expires <= now => {
            return warning(format!("{name} has expired on {expires}"), format!("keyframe expire {vm}"));
        }
        None if age > DAY * limits.max_age_days => {
            let fix = format!("keyframe delete {vm}@{name}, or keyframe snapshot-set {vm}@{name} --ttl 30d");
            return warning(format!("{name} is {days} days old and never expires"), fix);
        }
        _ => {}
    }
    // So is called what a process took that had no user's name.
    let unowned = manifest.owner.starts_with("uid ") && age > UNOWNED_FOR;
    let text = || format!("{name} is {days} days old, and nobody is known to own it");
    unowned.then(|| warning(text(), owner_fix(vm, name))).flatten()
}

fn owner_fix(vm: &VmName, name: &SnapshotName) -> String {
    format!("keyframe snapshot-set {vm}@{name} --owner NAME")
}

fn slow(vm: &VmName, disk: &DiskCost, limits: CostLimits) -> Option<Warning> {
    let p99_ms = disk.reads?.p99_ms.filter(|p99_ms| *p99_ms > f64::from(limits.max_read_ms))?;
    let (name, depth) = (&disk.disk, disk.layers.len());
    let text = format!("one of 100 reads of {name} takes up to {p99_ms} ms, through {depth} layers");
    Some(Warning { snapshot: None, text, fix: format!("keyframe consolidate {vm}") })
}

fn disk(ctx: &Context<'_>, chain: &Chain, instance: Option<&InstanceRecord>) -> DiskCost {
    let layers = chain.layers.iter().map(|layer| {
        let path = ctx.home.absolute(&layer.path);
        LayerCost { bytes: space::used(&path), path }
    });
    // A machine that does not answer has no figures; `vm show` says that it does not.
    let reads = instance.and_then(|instance| ask(instance, &disk_device(&chain.disk)).ok().flatten());
    DiskCost { disk: chain.disk.to_string(), layers: layers.collect(), reads }
}

/// Source: `BlockDeviceStats` in qapi/block-core.json.
#[derive(Debug, Deserialize)]
struct Stats {
    rd_operations: u64,
    rd_total_time_ns: u64,
    rd_latency_histogram: Option<Histogram>,
}

/// Source: `BlockLatencyHistogramInfo` in qapi/block-core.json.
#[derive(Debug, Deserialize)]
struct Histogram {
    boundaries: Vec<u64>,
    bins: Vec<u64>,
}

impl Histogram {
    /// What 99 of 100 take at most, as far as the bins tell; `None` for fewer than a hundred.
    fn p99_ms(&self) -> Option<f64> {
        let total: u64 = self.bins.iter().fold(0, |sum, bin| sum.saturating_add(*bin));
        let enough = total.saturating_mul(99).div_ceil(100);
        let mut below = 0_u64;
        let bin = self.bins.iter().position(|bin| {
            below = below.saturating_add(*bin);
            below >= enough
        })?;
        // The last bin has no end: it is told as its beginning.
        let end = self.boundaries.get(bin).or(self.boundaries.last())?;
        (total >= 100).then(|| *end as f64 / 1e6)
    }
}

/// How QEMU serves a disk. Makes QEMU count what requests take, if it does not yet.
fn ask(instance: &InstanceRecord, device: &str) -> Result<Option<Reads>, Error> {
    #[derive(Deserialize)]
    struct Backend {
        qdev: Option<String>,
        stats: Stats,
    }
    let mut monitor = instance.monitor(Monitor::Look)?;
    let all: Vec<Backend> = monitor.execute_as("query-blockstats", &json!({}))?;
    // A device is told by its place in QEMU's tree, which ends with its id or goes on below it.
    let is_it =
        |backend: &Backend| backend.qdev.as_ref().is_some_and(|path| path.split('/').any(|part| part == device));
    let Some(Backend { stats, qdev: Some(path) }) = all.into_iter().find(is_it) else { return Ok(None) };
    if stats.rd_latency_histogram.is_none() {
        let counted = json!({ "id": path, "boundaries-read": BOUNDARIES_NS });
        monitor.execute("block-latency-histogram-set", &counted)?;
    }
    let mean_ms = stats.rd_total_time_ns as f64 / stats.rd_operations.max(1) as f64 / 1e6;
    Ok(Some(Reads {
        requests: stats.rd_operations,
        mean_ms: (mean_ms * 1e3).round() / 1e3,
        p99_ms: stats.rd_latency_histogram.as_ref().and_then(Histogram::p99_ms),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(days: u64) -> Timestamp {
        let then = std::time::SystemTime::now() - DAY * u32::try_from(days).unwrap();
        Timestamp::from_system_time(then)
    }

    #[test]
    fn growth_is_what_was_added_since_the_oldest_of_late() {
        let (now, mib) = (Timestamp::now(), ByteLen::from_mib);
        let per_day = |sizes: &[(u64, u64)]| {
            let sizes: Vec<_> = sizes.iter().map(|(days, size)| (ago(*days), mib(*size))).collect();
            growth(&sizes, now).map(|bytes| (bytes.bytes() + (1 << 19)) >> 20)
        };
        assert_eq!(per_day(&[]), None);
        assert_eq!(per_day(&[(0, 500)]), None, "a moment ago: nothing is known");
        assert_eq!(per_day(&[(4, 500)]), Some(0), "nothing has been added since");
        assert_eq!(per_day(&[(4, 500), (3, 100), (1, 100)]), Some(50));
        assert_eq!(per_day(&[(300, 9000), (4, 500), (3, 100), (1, 100)]), Some(50), "what is old is no growth of late");
        let future = now.after("7d".parse().unwrap());
        let jumped = growth(&[(ago(10), mib(1)), (future, mib(100))], now).unwrap();
        assert_eq!((jumped + ByteLen::from_bytes(1 << 19)).mib(), 10, "of a clock that jumped: it is new");
    }

    #[test]
    fn bins_tell_what_most_requests_take() {
        let histogram =
            |bins: &[u64]| Histogram { boundaries: vec![1_000_000, 10_000_000], bins: bins.to_vec() }.p99_ms();
        assert_eq!(histogram(&[98, 0, 0]), None, "too few");
        assert_eq!(histogram(&[99, 1, 0]), Some(1.0));
        assert_eq!(histogram(&[98, 2, 0]), Some(10.0));
        assert_eq!(histogram(&[0, 0, 1000]), Some(10.0), "at least");
        assert_eq!(histogram(&[]), None);
        assert_eq!(histogram(&[u64::MAX, u64::MAX, 7]), Some(1.0), "whatever QEMU says");
    }
}
