//! Who stands on what: all layers that a present or a snapshot of any machine needs, and who needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyframe_types::{DiskId, SnapshotId, VmName};

use crate::drill;
use crate::error::Error;
use crate::snapshots;
use crate::state::head::{Chain, Head, Layer};
use crate::state::home::Home;
use crate::state::journal::Journal;
use crate::state::manifest::Manifest;
use crate::state::tree::{LayerRef, Trees};

/// A layer and who needs it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The layer.
    pub layer: Arc<Layer>,
    /// The disk that it is of.
    pub disk: DiskId,
    /// What it stands on.
    pub below: Option<LayerRef>,
    /// Layers that stand on it.
    pub children: BTreeSet<LayerRef>,
    /// Snapshots that froze it, by id.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Whether a machine's present writes to it.
    pub active: bool,
    /// Machines whose present or snapshots stand on it, directly or not.
    pub machines: BTreeSet<VmName>,
    /// Whether a test that is under way stands on it.
    pub tested: bool,
}

/// All layers that are needed.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: BTreeMap<LayerRef, Node>,
}

impl Graph {
    /// Looks at all machines, as if the snapshots in `without`, of machine `vm`, were not there.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a document cannot be read: nobody knows then what may be merged.
    pub fn without(home: &Home, vm: &VmName, without: &BTreeSet<SnapshotId>) -> Result<Self, Error> {
        let trees = Trees::of(home);
        let mut graph = Self::default();
        for name in home.machine_names()? {
            let dir = home.vm(&name);
            let mut presents: Vec<Head> = trees.head(&dir)?.into_iter().collect();
            if name != *vm {
                presents.extend(Journal::present_left(&dir)?);
            }
            presents.iter().for_each(|head| graph.add_head(&name, head));
            for manifest in snapshots::read_all_with(&trees, &dir)? {
                if name != *vm || !without.contains(&manifest.id) {
                    graph.add_snapshot(&name, &manifest);
                }
            }
        }
        let tested = drill::stood_on(home)?;
        for node in graph.nodes.values_mut() {
            node.tested = tested.contains(&home.absolute(&node.layer.path));
        }
        Ok(graph)
    }

    fn add_head(&mut self, vm: &VmName, head: &Head) {
        for chain in head.chains() {
            if let Some(top) = self.add(vm, chain) {
                top.active = true;
            }
        }
    }

    fn add_snapshot(&mut self, vm: &VmName, manifest: &Manifest) {
        for chain in manifest.chains() {
            if let Some(top) = self.add(vm, chain) {
                top.snapshots.insert(manifest.id.clone());
            }
        }
    }

    /// Adds a chain's layers that are not there yet, and returns its top.
    fn add(&mut self, vm: &VmName, chain: &Chain) -> Option<&mut Node> {
        let mut above: Option<LayerRef> = None;
        for (depth, layer) in chain.layers.iter().enumerate() {
            let name = LayerRef::to(layer);
            let node = self.nodes.entry(name.clone()).or_insert_with(|| Node {
                layer: layer.clone(),
                disk: chain.disk.clone(),
                below: chain.layers.get(depth + 1).map(|below| LayerRef::to(below)),
                children: BTreeSet::new(),
                snapshots: BTreeSet::new(),
                active: false,
                machines: BTreeSet::new(),
                tested: false,
            });
            node.children.extend(above.replace(name));
            if !node.machines.insert(vm.clone()) {
                // What is below a layer that this machine is known to need is known as well.
                break;
            }
        }
        chain.layers.first().and_then(|top| self.nodes.get_mut(&LayerRef::to(top)))
    }

    /// A layer; `None` when nobody needs it.
    #[must_use]
    pub fn get(&self, layer: &LayerRef) -> Option<&Node> {
        self.nodes.get(layer)
    }

    /// All layers of one machine.
    pub fn of_machine<'a>(&'a self, vm: &'a VmName) -> impl Iterator<Item = (&'a LayerRef, &'a Node)> {
        self.nodes.iter().filter(move |(name, _)| name.vm == *vm)
    }
}
