//! What each snapshot of a machine takes, shares and would give back: counted in one pass over `tree.json`, however long
//! chains are.

use std::collections::{BTreeMap, HashMap, HashSet};

use keyframe_types::{ByteLen, SnapshotId, VmName};

use crate::error::Error;
use crate::sharing::MemorySpace;
use crate::space;
use crate::state::head::{FileOrigin, Head};
use crate::state::home::{Home, VmDir};
use crate::state::manifest::Manifest;
use crate::state::sealed;
use crate::state::tree::{ActiveTop, LayerRef, TreeDocument, TreeLayer};

/// A frozen layer.
#[derive(Debug)]
struct Node {
    below: Option<LayerRef>,
    /// Space that its file takes.
    bytes: ByteLen,
    /// Whether its file goes when nobody needs it.
    goes: bool,
    /// How many layers, snapshots and presents stand directly on it.
    holders: usize,
    /// Layers from here down, this one included, and the space of all of them.
    to_base: Option<(usize, ByteLen)>,
}

/// All layers that a machine's snapshots stand on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    nodes: HashMap<LayerRef, Node>,
    forks: BTreeMap<SnapshotId, Vec<VmName>>,
}

impl Tally {
    /// Counts. Of other machines, only forks can stand on this one's layers: what their `tree.json` tells of counts as needed.
    ///
    /// # Errors
    /// [`Error::Io`] when machines cannot be listed; documents of others that cannot be read are passed over.
    pub(crate) fn of(home: &Home, dir: &VmDir, head: &Head, manifests: &[Manifest]) -> Result<Self, Error> {
        let mut tally = Self::default();
        let mut waiting = vec![dir.name().clone()];
        let mut held: Vec<LayerRef> = Vec::new();
        for name in home.machine_names()?.into_iter().filter(|name| name != dir.name()) {
            let Ok(Some(other)) = sealed::read::<Head<ActiveTop>>(&home.vm(&name).head()) else { continue };
            let Some(origin) = other.origin.as_ref() else { continue };
            held.extend(other.chains().filter_map(|top| top.below.clone()));
            if origin.vm == *dir.name() {
                tally.forks.entry(origin.snapshot.clone()).or_default().push(name.clone());
            }
            waiting.push(name);
        }
        held.extend(head.chains().filter_map(|chain| chain.layers.get(1)).map(|layer| LayerRef::to(layer)));
        let tops = manifests.iter().flat_map(Manifest::chains).filter_map(|chain| chain.layers.first());
        held.extend(tops.map(|layer| LayerRef::to(layer)));
        tally.read(home, waiting);
        let between: Vec<LayerRef> = tally.nodes.values().filter_map(|node| node.below.clone()).collect();
        for name in held.iter().chain(&between) {
            if let Some(node) = tally.nodes.get_mut(name) {
                node.holders += 1;
            }
        }
        Ok(tally)
    }

    /// Reads trees, and those that they lead to.
    fn read(&mut self, home: &Home, mut waiting: Vec<VmName>) {
        let mut known: HashSet<VmName> = waiting.iter().cloned().collect();
        while let Some(name) = waiting.pop() {
            let document = TreeDocument::read(&home.vm(&name)).unwrap_or_default();
            for entry in document.layers {
                if let Some(below) = entry.below.as_ref().filter(|below| !known.contains(&below.vm)) {
                    known.insert(below.vm.clone());
                    waiting.push(below.vm.clone());
                }
                self.nodes.insert(LayerRef::to(&entry.layer), node(home, entry));
            }
        }
    }

    /// Layers from `top` down and their space. What was counted once is not counted again.
    fn reach_base(&mut self, top: &LayerRef) -> (usize, ByteLen) {
        let (mut way, mut next, mut sum) = (Vec::new(), Some(top.clone()), (0, ByteLen::ZERO));
        while let Some(at) = next.take() {
            let Some(node) = self.nodes.get_mut(&at) else { break };
            if let Some(known) = node.to_base {
                sum = known;
                break;
            }
            // Counted as nothing until it is: a circle ends here.
            node.to_base = Some((0, ByteLen::ZERO));
            next.clone_from(&node.below);
            way.push(at);
        }
        for at in way.into_iter().rev() {
            if let Some(node) = self.nodes.get_mut(&at) {
                sum = (sum.0 + 1, sum.1 + node.bytes);
                node.to_base = Some(sum);
            }
        }
        sum
    }

    /// Layers of a disk, at most.
    pub(crate) fn depth(&mut self, manifest: &Manifest) -> usize {
        tops(manifest).iter().map(|top| self.reach_base(top).0).max().unwrap_or(0)
    }

    /// Space of the layers below those that the snapshot froze.
    pub(crate) fn shared(&mut self, manifest: &Manifest) -> ByteLen {
        let below: Vec<LayerRef> = tops(manifest).iter().filter_map(|top| self.nodes.get(top)?.below.clone()).collect();
        below.iter().map(|below| self.reach_base(below).1).sum()
    }

    /// Space that deleting this snapshot alone gives back: its memory, as far as no other's pages lie in it, and layers
    /// that nothing else stands on.
    pub(crate) fn freed(&self, manifest: &Manifest, space: Option<MemorySpace>) -> ByteLen {
        let written = manifest.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk);
        let mut freed = space.map_or(written, |space| space.freed_bytes);
        for top in tops(manifest) {
            let (mut next, mut steps) = (Some(&top), 0);
            // The snapshot holds its top, and that, when it goes, held the next.
            while let Some(node) = next.and_then(|at| self.nodes.get(at)).filter(|node| node.holders == 1) {
                if node.goes {
                    freed = freed + node.bytes;
                }
                steps += 1;
                next = node.below.as_ref().filter(|_| steps <= self.nodes.len());
            }
        }
        freed
    }

    /// Machines that were forked from a snapshot. Each is told once.
    pub(crate) fn forks_of(&mut self, id: &SnapshotId) -> Vec<VmName> {
        self.forks.remove(id).unwrap_or_default()
    }

    /// Forks that were not told: their snapshot is gone.
    pub(crate) fn forks_left(self) -> Vec<VmName> {
        self.forks.into_values().flatten().collect()
    }
}

fn node(home: &Home, entry: TreeLayer) -> Node {
    let bytes = space::used(&home.absolute(&entry.layer.path));
    let goes = entry.layer.origin == FileOrigin::Made;
    Node { below: entry.below, bytes, goes, holders: 0, to_base: None }
}

fn tops(manifest: &Manifest) -> Vec<LayerRef> {
    manifest.chains().filter_map(|chain| chain.layers.first()).map(|layer| LayerRef::to(layer)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::context::{Context, Silent};
    use crate::fsck::tests::{Rig, definition};
    use crate::machine::write_definition;
    use crate::state::head::Origin;
    use crate::state::tree::write_head;

    fn listed(rig: &Rig) -> crate::tree::Tree {
        let never = AtomicBool::new(false);
        crate::tree::tree(&Context { home: &rig.home, progress: &Silent, cancel: &never }, rig.dir.name()).unwrap()
    }

    #[test]
    fn own_shared_and_freed_add_up() {
        let rig = Rig::new();
        let listed = listed(&rig);
        let used = |number| space::used(&rig.frozen(number));
        let [one, two] = [&listed.snapshots[0], &listed.snapshots[1]];
        assert_eq!((one.bytes_own, one.bytes_shared, one.depth), (used(0), ByteLen::ZERO, 1));
        assert_eq!((two.bytes_own, two.bytes_shared, two.depth), (used(1), used(0), 2));
        assert_eq!((one.bytes_freed, two.bytes_freed), (ByteLen::ZERO, ByteLen::ZERO), "the present stands on both");
    }

    #[test]
    fn what_only_one_snapshot_holds_goes_with_it_unless_a_fork_stands_on_it() {
        let mut rig = Rig::new();
        // The present goes back to the first: nothing but the second snapshot holds the second layer.
        rig.head.parent = Some(rig.snapshots[0].id.clone());
        rig.head.disks[0].layers.remove(1);
        write_head(&rig.dir, &rig.head).unwrap();
        let before = listed(&rig);
        assert_eq!(before.snapshots[1].bytes_freed, space::used(&rig.frozen(1)));
        assert_eq!(before.snapshots[0].bytes_freed, ByteLen::ZERO);
        let name = VmName::new("twin").unwrap();
        let twin = rig.home.vm(&name);
        std::fs::create_dir_all(twin.root()).unwrap();
        write_definition(&twin.definition(), &definition(&name)).unwrap();
        let origin = Some(Origin { vm: rig.dir.name().clone(), snapshot: rig.snapshots[1].id.clone() });
        let mut head = Head { origin, parent: None, ..rig.head.clone() };
        head.disks[0].layers.splice(1.., rig.snapshots[1].disks[0].layers.iter().cloned());
        write_head(&twin, &head).unwrap();
        let after = listed(&rig);
        assert_eq!((after.snapshots[1].bytes_freed, &after.snapshots[1].forks), (ByteLen::ZERO, &vec![name.clone()]));
        std::fs::remove_file(rig.dir.snapshot(&rig.snapshots[1].id).manifest()).unwrap();
        assert_eq!(listed(&rig).stray_forks, [name]);
    }
}
