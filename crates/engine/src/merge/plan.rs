//! What can be merged, which way, and what that moves and frees: decided before anything happens.
//!
//! A layer that no snapshot froze any more, that one other layer stands on, and that no other machine needs, has no reason
//! to be a layer of its own. A *run* is as many of them as follow each other, with the layer on top that somebody needs.
//! All of a run end up in one file: that of the largest, so that the fewest bytes move, and each of them once at most. What
//! lies below that is pulled up into it, what lies above is pushed down.

use keyframe_hypervisor::LayerFormat;
use keyframe_qcow2::{ExtentKind, Image};
use keyframe_types::{ByteLen, DiskId, LayerId, VmName};
use serde::Serialize;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::merge::graph::{Graph, Node};
use crate::space;
use crate::state::head::{FileOrigin, Layer};
use crate::state::home::Home;
use crate::state::tree::LayerRef;

/// Layers that become one, the lowest first.
#[derive(Debug, Clone)]
pub struct Run {
    /// The disk that they are of.
    pub disk: DiskId,
    /// At least two layers, the lowest first.
    pub layers: Vec<Arc<Layer>>,
    /// Whose file takes the others' data.
    pub into: usize,
    /// Whether the topmost is written to by the machine's present.
    pub active: bool,
    /// What it moves and frees.
    pub cost: RunCost,
}

/// What merging a run moves and frees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RunCost {
    /// Data that are copied, at most.
    pub bytes_moved: ByteLen,
    /// Space that the file system has more of in the end, at least.
    pub bytes_freed: ByteLen,
    /// Space that is needed until then.
    pub bytes_needed: ByteLen,
}

/// One layer that goes, as it is told.
#[derive(Debug, Clone, Serialize)]
pub struct RunSummary {
    /// The disk.
    pub disk: DiskId,
    /// Ids of the layers, the lowest first.
    pub layers: Vec<LayerId>,
    /// Which of them takes the others' data.
    pub into: LayerId,
    /// Whether the machine's present is among them.
    pub active: bool,
    /// What it moves and frees.
    #[serde(flatten)]
    pub cost: RunCost,
}

impl Run {
    /// As it is told.
    #[must_use]
    pub fn summary(&self) -> RunSummary {
        RunSummary {
            disk: self.disk.clone(),
            layers: self.layers.iter().map(|layer| layer.id.clone()).collect(),
            into: self.target().id.clone(),
            active: self.active,
            cost: self.cost,
        }
    }

    /// The layer whose file takes the others' data.
    #[must_use]
    pub fn target(&self) -> &Arc<Layer> {
        &self.layers[self.into.min(self.layers.len() - 1)]
    }
}

/// The runs of a machine's layers.
#[must_use]
pub fn runs(home: &Home, graph: &Graph, vm: &VmName) -> Vec<Run> {
    let mut runs = Vec::new();
    for (name, node) in graph.of_machine(vm) {
        // A run begins with a layer that can go and stands on none that can.
        let below = node.below.as_ref().and_then(|below| graph.get(below));
        if can_go(vm, node) && !below.is_some_and(|below| can_go(vm, below)) {
            runs.extend(run_from(home, graph, vm, name));
        }
    }
    runs.sort_by(|a, b| a.disk.as_str().cmp(b.disk.as_str()));
    runs
}

/// Whether a layer's content is needed by one other layer only, and nobody reads it in this moment but the machine.
pub(super) fn can_go(vm: &VmName, node: &Node) -> bool {
    !node.active
        && node.snapshots.is_empty()
        && node.children.len() == 1
        && !node.tested
        && node.layer.origin != FileOrigin::Foreign
        && node.machines.iter().all(|machine| machine == vm)
}

fn run_from(home: &Home, graph: &Graph, vm: &VmName, lowest: &LayerRef) -> Option<Run> {
    let mut layers = Vec::new();
    let mut at = graph.get(lowest)?;
    while can_go(vm, at) {
        layers.push(at.layer.clone());
        at = graph.get(at.children.first()?)?;
    }
    layers.push(at.layer.clone());
    let into = target(home, &layers);
    let cost = cost(home, &layers, into, at.active);
    Some(Run { disk: at.disk.clone(), layers, into, active: at.active, cost })
}

/// The largest file takes the others' data. A disk that was given takes them whatever its size: it is what its owner
/// looks at when all snapshots are gone.
fn target(home: &Home, layers: &[Arc<Layer>]) -> usize {
    if layers.first().is_some_and(|lowest| lowest.origin == FileOrigin::Given || lowest.format == LayerFormat::Raw) {
        return 0;
    }
    let used = |at: &usize| layers.get(*at).map(|layer| space::used(&home.absolute(&layer.path)));
    // Of equals the uppermost: nothing is pushed down from a layer in use where that can be helped.
    (0..layers.len()).max_by_key(used).unwrap_or(0)
}

fn cost(home: &Home, layers: &[Arc<Layer>], into: usize, active: bool) -> RunCost {
    let used: Vec<ByteLen> = layers.iter().map(|layer| space::used(&home.absolute(&layer.path))).collect();
    // What QEMU has not written yet of an active layer's tables, nobody else can read.
    let readable = |at: usize| !(active && at + 1 == layers.len());
    let held = |(at, layer): (usize, &Arc<Layer>)| {
        readable(at).then(|| Held::by(layer, &home.absolute(&layer.path))).flatten()
    };
    let held: Vec<Option<Held>> = layers.iter().enumerate().map(held).collect();
    let others = |at: &usize| *at != into;
    let all_others: ByteLen = (0..layers.len()).filter(others).filter_map(|at| used.get(at).copied()).sum();
    let Some(target) = held.get(into).and_then(Option::as_ref) else {
        return RunCost { bytes_moved: all_others, bytes_freed: ByteLen::ZERO, bytes_needed: all_others };
    };
    // What nobody can read may be as much as it takes room, and all of it new.
    let unread = (0..layers.len()).filter(|at| others(at) && held.get(*at).is_none_or(Option::is_none));
    let unread = unread.filter_map(|at| used.get(at).copied()).sum::<ByteLen>().bytes();
    let (mut moved, mut grown) = (unread, unread);
    // What is above covers what is below; pulled data come only where the layers above them, target included, have none.
    let (mut decided, mut data) = (target.decided.clone(), target.data.clone());
    for below in (0..into).rev().filter_map(|at| held.get(at)?.as_ref()) {
        let fresh = below.data.without(&decided);
        moved += fresh.total();
        grown += fresh.total();
        decided = decided.with(&below.decided);
        data = data.with(&fresh);
    }
    let above = (into + 1..layers.len()).filter_map(|at| held.get(at)?.as_ref());
    let pushed = above.fold(Ranges::default(), |pushed, above| pushed.with(&above.data));
    moved += pushed.total();
    grown += pushed.without(&data).total();
    let freed = all_others.bytes().saturating_sub(grown);
    RunCost {
        bytes_moved: ByteLen::from_bytes(moved),
        bytes_freed: ByteLen::from_bytes(freed),
        bytes_needed: ByteLen::from_bytes(grown),
    }
}

/// Parts of a disk, in order, none touching the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges(Vec<Range<u64>>);

/// What a layer holds of its disk.
#[derive(Debug)]
pub(crate) struct Held {
    /// Where it says what the disk reads, also that it reads zeros.
    decided: Ranges,
    /// Where it takes room for that.
    data: Ranges,
}

impl Held {
    /// What a layer holds; `None` where that cannot be told, as of one that a machine writes to in this moment.
    pub(crate) fn by(layer: &Layer, path: &Path) -> Option<Self> {
        if layer.format == LayerFormat::Raw {
            let decided = Ranges::joined(std::iter::once(0..layer.virtual_bytes.bytes()).collect());
            return Some(Self { decided, data: Ranges::of_file(path)? });
        }
        Self::by_qcow2(path)
    }

    /// What a qcow2 layer holds.
    pub(crate) fn by_qcow2(path: &Path) -> Option<Self> {
        let image = Image::open(path).ok()?;
        let (mut decided, mut data) = (Vec::new(), Vec::new());
        for extent in image.extents().ok()? {
            let extent = extent.ok()?;
            let range = extent.start.bytes()..extent.end().bytes();
            if extent.kind != ExtentKind::Zero {
                data.push(range.clone());
            }
            decided.push(range);
        }
        Some(Self { decided: Ranges::joined(decided), data: Ranges::joined(data) })
    }

    /// How many bytes of these ranges this layer leaves to what it stands on.
    pub(crate) fn leaves_of(&self, ranges: Vec<Range<u64>>) -> u64 {
        Ranges::joined(ranges).without(&self.decided).total()
    }

    /// Whether this layer says itself what the disk reads wherever `other` has data.
    pub(crate) fn decides_all_data_of(&self, other: &Self) -> bool {
        other.data.without(&self.decided).total() == 0
    }
}

impl Ranges {
    /// Where a file has data, holes left out.
    fn of_file(path: &Path) -> Option<Self> {
        use rustix::fs::{SeekFrom, seek};
        let file = std::fs::File::open(path).ok()?;
        let (mut ranges, mut at) = (Vec::new(), 0);
        loop {
            let start = match seek(&file, SeekFrom::Data(at)) {
                // There is no more data.
                Err(rustix::io::Errno::NXIO) => return Some(Self::joined(ranges)),
                start => start.ok()?,
            };
            at = seek(&file, SeekFrom::Hole(start)).ok()?;
            ranges.push(start..at);
        }
    }

    fn joined(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self(joined)
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    fn with(&self, other: &Self) -> Self {
        Self::joined(self.0.iter().chain(&other.0).cloned().collect())
    }

    fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut cuts = other.0.iter().peekable();
        for range in &self.0 {
            let mut from = range.start;
            while let Some(cut) = cuts.peek() {
                if cut.end <= from {
                    cuts.next();
                    continue;
                }
                if cut.start >= range.end {
                    break;
                }
                if cut.start > from {
                    left.push(from..cut.start);
                }
                from = cut.end;
                if cut.end >= range.end {
                    break;
                }
            }
            if from < range.end {
                left.push(from..range.end);
            }
        }
        Self(left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Ranges> {
        prop::collection::vec((0_u64..60, 1_u64..8), 0..12)
            .prop_map(|parts| Ranges::joined(parts.into_iter().map(|(start, len)| start..start + len).collect()))
    }

    fn points(ranges: &Ranges) -> Vec<u64> {
        (0..100).filter(|point| ranges.0.iter().any(|range| range.contains(point))).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_sets(a in ranges(), b in ranges()) {
            let (in_a, in_b) = (points(&a), points(&b));
            let both: Vec<u64> = (0..100).filter(|p| in_a.contains(p) || in_b.contains(p)).collect();
            let only_a: Vec<u64> = in_a.iter().copied().filter(|p| !in_b.contains(p)).collect();
            prop_assert_eq!(points(&a.with(&b)), both);
            prop_assert_eq!(points(&a.without(&b)), only_a);
            prop_assert_eq!(a.total(), in_a.len() as u64);
        }
    }
}
