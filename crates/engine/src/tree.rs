//! A machine's snapshots as a tree, and one of them in full.

use keyframe_types::{ByteLen, SnapshotId, SnapshotRef, Timestamp, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::machine::Machine;
use crate::sharing::{self, MemorySpace};
use crate::snapshots;
use crate::state::head::Chain;
use crate::state::manifest::{Consistency, Manifest};

/// A snapshot in one line.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotSummary {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// The snapshot that it follows.
    pub parent: Option<SnapshotId>,
    /// What was achieved.
    pub consistency: Consistency,
    /// Whether it has memory.
    pub memory: bool,
    /// The instant that it holds.
    pub created: Timestamp,
    /// Who took it.
    pub owner: String,
    /// Why.
    pub note: Option<String>,
    /// When it may be removed.
    pub expires: Option<Timestamp>,
    /// Kept whatever else is said.
    pub pinned: bool,
    /// Space of its own files: its memory image, and the layers that it froze and nothing older has.
    pub bytes_own: ByteLen,
    /// Bytes of its memory that lie in other snapshots' files.
    pub memory_elsewhere: ByteLen,
    /// How many other snapshots have memory in its files.
    pub memory_readers: usize,
    /// Number of layers below a disk at that instant, at most.
    pub depth: usize,
    /// Whether the machine's present descends directly from it.
    pub is_head: bool,
}

/// A snapshot that cannot be read.
#[derive(Debug, Clone, Serialize)]
pub struct DamagedSummary {
    /// Its id.
    pub id: SnapshotId,
    /// What is wrong with it.
    pub reason: String,
}

/// All of a machine's snapshots.
#[derive(Debug, Serialize)]
pub struct Tree {
    /// The machine.
    pub vm: VmName,
    /// The snapshot that its present descends from.
    pub head: Option<SnapshotId>,
    /// Its snapshots by age.
    pub snapshots: Vec<SnapshotSummary>,
    /// Those that cannot be read.
    pub damaged: Vec<DamagedSummary>,
}

/// Lists a machine's snapshots.
///
/// # Errors
/// [`Error::NoMachine`].
pub fn tree(ctx: &Context<'_>, vm: &VmName) -> Result<Tree, Error> {
    crate::recover::recover_if_idle(ctx, vm);
    let machine = Machine::open(ctx.home, vm)?;
    let (manifests, damaged) = snapshots::scan(&machine.dir)?;
    let head = machine.head.parent.clone();
    // One that cannot be told is looked at when its map is needed; the list must not fail for it.
    let memory = sharing::memory_space(&machine.dir, manifests.iter().map(|manifest| manifest.id.clone()));
    let memory = memory.unwrap_or_default();
    let snapshots = manifests
        .iter()
        .map(|manifest| summary(ctx, manifest, head.as_ref(), memory.get(&manifest.id).copied()))
        .collect();
    let damaged = damaged
        .into_iter()
        .map(|damaged| DamagedSummary { id: damaged.id, reason: damaged.error.to_string() })
        .collect();
    Ok(Tree { vm: vm.clone(), head, snapshots, damaged })
}

fn summary(
    ctx: &Context<'_>,
    manifest: &Manifest,
    head: Option<&SnapshotId>,
    space: Option<MemorySpace>,
) -> SnapshotSummary {
    let written = manifest.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk);
    let memory = space.map_or(written, |space| space.own_bytes);
    let layers: ByteLen = manifest.chains().filter_map(|chain| own_bytes(ctx, manifest, chain)).sum();
    SnapshotSummary {
        id: manifest.id.clone(),
        name: manifest.name.to_string(),
        parent: manifest.parent.clone(),
        consistency: manifest.consistency,
        memory: manifest.memory.is_some(),
        created: manifest.created,
        owner: manifest.owner.clone(),
        note: manifest.note.clone(),
        expires: manifest.expires,
        pinned: manifest.pinned,
        bytes_own: memory + layers,
        memory_elsewhere: space.map_or(ByteLen::ZERO, |space| space.elsewhere_bytes),
        memory_readers: space.map_or(0, |space| space.readers),
        depth: manifest.chains().map(|chain| chain.layers.len()).max().unwrap_or(0),
        is_head: head == Some(&manifest.id),
    }
}

/// Space of the layer that the snapshot froze; `None` for a disk that was there before the machine.
fn own_bytes(ctx: &Context<'_>, manifest: &Manifest, chain: &Chain) -> Option<ByteLen> {
    use std::os::unix::fs::MetadataExt as _;
    let top = chain.layers.first()?;
    let path = ctx.home.absolute(&top.path);
    let ours = path.starts_with(ctx.home.vm(&manifest.definition.name).root());
    let blocks = std::fs::metadata(&path).ok()?.blocks();
    ours.then(|| ByteLen::from_bytes(blocks.saturating_mul(512)))
}

/// One snapshot in full.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::NoSnapshot`], [`Error::AmbiguousSnapshot`], [`Error::Damaged`].
pub fn show(ctx: &Context<'_>, reference: &SnapshotRef) -> Result<Manifest, Error> {
    crate::recover::recover_if_idle(ctx, &reference.vm);
    let machine = Machine::open(ctx.home, &reference.vm)?;
    snapshots::find(&machine.dir, &reference.vm, &reference.snapshot)
}
