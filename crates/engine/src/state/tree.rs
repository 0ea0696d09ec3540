//! `tree.json`: what a machine's frozen layers stand on, and what became of deleted snapshots' places in the tree.
//!
//! A chain of layers is written down once, here, and not in each document that ends with it: a head names its active
//! layers, a manifest those that it froze, and this document says what is below. So merging layers changes one document,
//! in one rename, however many snapshots stand on them; and a thousand snapshots are not a thousand lists of a thousand.
//!
//! A layer is named by the machine it belongs to and its id, since a fork's layers stand on the original's. Whoever
//! writes a head or a manifest has what is below its layers noted here first: a document never names what is not here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use keyframe_types::{DiskId, LayerId, SnapshotId, VmName};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::state::head::{Chain, Head, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::label::Label;
use crate::state::manifest::Manifest;
use crate::state::sealed::{self, Document};

/// The longest chain that is followed: one that goes round in a circle ends here.
const MOST_LAYERS: usize = 10_000;

/// A layer of some machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerRef {
    /// The machine.
    pub vm: VmName,
    /// Its layer.
    pub layer: LayerId,
}

impl LayerRef {
    /// The name of `layer`.
    #[must_use]
    pub fn to(layer: &Layer) -> Self {
        Self { vm: layer.vm.clone(), layer: layer.id.clone() }
    }
}

/// The active layer of a disk as the head's document tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveTop {
    /// The disk.
    pub disk: DiskId,
    /// Its active layer.
    pub active: Layer,
    /// What that stands on.
    pub below: Option<LayerRef>,
}

impl ActiveTop {
    fn of(chain: &Chain) -> Result<Self, Error> {
        let below = chain.layers.get(1).map(|layer| LayerRef::to(layer));
        Ok(Self { disk: chain.disk.clone(), active: Layer::clone(chain.top()?), below })
    }
}

/// The layer of a disk that a snapshot froze, as the manifest's document tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenTop {
    /// The disk.
    pub disk: DiskId,
    /// The layer.
    pub layer: LayerRef,
}

impl FrozenTop {
    pub(crate) fn of(chain: &Chain) -> Result<Self, Error> {
        Ok(Self { disk: chain.disk.clone(), layer: LayerRef::to(chain.top()?) })
    }
}

/// A frozen layer and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeLayer {
    /// The disk that it is of.
    pub disk: DiskId,
    /// The layer.
    #[serde(flatten)]
    pub layer: Arc<Layer>,
    /// What it stands on.
    pub below: Option<LayerRef>,
}

/// What is below a machine's frozen layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeDocument {
    /// The machine's frozen layers.
    pub layers: Vec<TreeLayer>,
    /// Snapshots that are gone, and what they followed: that is what those follow that followed them.
    #[serde(default)]
    pub gone: BTreeMap<SnapshotId, Option<SnapshotId>>,
}

impl Document for TreeDocument {
    const SCHEMA: &'static str = "keyframe.tree/1";
}

impl TreeDocument {
    /// Reads a machine's; an empty one when nothing was noted yet.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
    pub fn read(dir: &VmDir) -> Result<Self, Error> {
        Ok(sealed::read(&dir.tree())?.unwrap_or_default())
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// [`Error::Io`]; the old one is then still there.
    pub fn write(&self, dir: &VmDir) -> Result<(), Error> {
        sealed::write(&dir.tree(), self)
    }

    /// Notes a layer, in place of what was noted of it before.
    pub fn put(&mut self, entry: TreeLayer) {
        match self.layers.iter_mut().find(|known| known.layer.id == entry.layer.id) {
            Some(known) => *known = entry,
            None => self.layers.push(entry),
        }
    }

    /// The entry of a layer.
    #[must_use]
    pub fn find(&self, layer: &LayerId) -> Option<&TreeLayer> {
        self.layers.iter().find(|known| known.layer.id == *layer)
    }

    /// What snapshots follow that followed `parent`, as `exists` tells of each whether it is still there.
    #[must_use]
    pub fn follows(&self, parent: Option<SnapshotId>, exists: impl Fn(&SnapshotId) -> bool) -> Option<SnapshotId> {
        let mut parent = parent;
        // As often as there are deleted ones at most: a circle is no reason to go round for ever.
        for _ in 0..=self.gone.len() {
            match parent {
                Some(id) if !exists(&id) => parent = self.gone.get(&id).cloned().flatten(),
                found => return found,
            }
        }
        None
    }
}

/// Notes what is below the first `active` layers of chains; nothing is written if all of it is known.
fn note<'a>(dir: &VmDir, chains: impl Iterator<Item = &'a Chain>, active: usize) -> Result<(), Error> {
    let mut document = TreeDocument::read(dir)?;
    let mut known: HashMap<LayerId, usize> =
        document.layers.iter().enumerate().map(|(at, entry)| (entry.layer.id.clone(), at)).collect();
    let mut changed = false;
    for chain in chains {
        for (depth, layer) in chain.layers.iter().enumerate().skip(active) {
            if layer.vm != *dir.name() {
                continue;
            }
            let below = chain.layers.get(depth + 1).map(|layer| LayerRef::to(layer));
            let entry = TreeLayer { disk: chain.disk.clone(), layer: layer.clone(), below };
            match known.get(&layer.id).and_then(|at| document.layers.get_mut(*at)) {
                Some(noted) if *noted == entry => {}
                Some(noted) => (*noted, changed) = (entry, true),
                None => {
                    known.insert(layer.id.clone(), document.layers.len());
                    document.layers.push(entry);
                    changed = true;
                }
            }
        }
    }
    if changed { document.write(dir) } else { Ok(()) }
}

/// Writes a head durably, and before it what is below its active layers.
///
/// # Errors
/// [`Error::Io`]; the old head is then still there.
pub fn write_head(dir: &VmDir, head: &Head) -> Result<(), Error> {
    note(dir, head.chains(), 1)?;
    sealed::write(&dir.head(), &head_document(head)?)
}

/// A head as its document tells it.
///
/// # Errors
/// [`Error::EmptyChain`].
pub fn head_document(head: &Head) -> Result<Head<ActiveTop>, Error> {
    head.with_chains(ActiveTop::of)
}

/// Writes a manifest durably, and before it what its layers stand on.
///
/// # Errors
/// [`Error::Io`]; there is no snapshot then.
pub fn write_manifest(dir: &VmDir, manifest: &Manifest) -> Result<(), Error> {
    note(dir, manifest.chains(), 0)?;
    let document = manifest.clone().with_chains(FrozenTop::of)?;
    sealed::write(&dir.snapshot(&manifest.id).manifest(), &document)
}

/// One machine's tree, ready to be followed.
#[derive(Debug)]
struct Loaded {
    layers: HashMap<LayerId, TreeLayer>,
    document: TreeDocument,
}

/// All machines' trees, read when they are needed.
#[derive(Debug)]
pub struct Trees<'h> {
    home: &'h Home,
    of: RefCell<HashMap<VmName, Rc<Loaded>>>,
    /// Parents as documents name them, before deleted ones are passed over.
    parents: RefCell<BTreeSet<SnapshotId>>,
}

impl<'h> Trees<'h> {
    /// Nothing read yet.
    #[must_use]
    pub fn of(home: &'h Home) -> Self {
        Self { home, of: RefCell::default(), parents: RefCell::default() }
    }

    /// The parents that the documents name which were read so far, deleted or not.
    #[must_use]
    pub fn parents_met(&self) -> BTreeSet<SnapshotId> {
        self.parents.borrow().clone()
    }

    fn tree(&self, vm: &VmName) -> Result<Rc<Loaded>, Error> {
        if let Some(loaded) = self.of.borrow().get(vm) {
            return Ok(loaded.clone());
        }
        let document = TreeDocument::read(&self.home.vm(vm))?;
        let layers = document.layers.iter().map(|entry| (entry.layer.id.clone(), entry.clone())).collect();
        let loaded = Rc::new(Loaded { layers, document });
        self.of.borrow_mut().insert(vm.clone(), loaded.clone());
        Ok(loaded)
    }

    /// The chain that begins with `top`; one without layers if there is no top.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a layer is not noted where it should be.
    pub fn below(&self, disk: &DiskId, top: Option<LayerRef>) -> Result<Chain, Error> {
        self.down_to_the_base(disk, Vec::new(), top)
    }

    /// `layers` with everything that is below them.
    fn down_to_the_base(
        &self,
        disk: &DiskId,
        mut layers: Vec<Arc<Layer>>,
        mut below: Option<LayerRef>,
    ) -> Result<Chain, Error> {
        while let Some(next) = below {
            let damaged = |reason: String| Error::Damaged { path: self.home.vm(&next.vm).tree(), reason };
            if layers.len() >= MOST_LAYERS {
                return Err(damaged(format!("layers of {disk} go round in a circle at {}", next.layer)));
            }
            let tree = self.tree(&next.vm)?;
            let found = tree.layers.get(&next.layer);
            let found = found.ok_or_else(|| damaged(format!("layer {} of {disk} is not in it", next.layer)))?;
            layers.push(found.layer.clone());
            below = found.below.clone();
        }
        Ok(Chain { disk: disk.clone(), layers })
    }

    /// A machine's head; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
    pub fn head(&self, dir: &VmDir) -> Result<Option<Head>, Error> {
        let Some(document) = sealed::read::<Head<ActiveTop>>(&dir.head())? else { return Ok(None) };
        let mut head = document.with_chains(|top| {
            self.down_to_the_base(&top.disk, vec![Arc::new(top.active.clone())], top.below.clone())
        })?;
        head.parent = self.follows(dir, head.parent)?;
        Ok(Some(head))
    }

    /// A snapshot; `None` when there is no manifest.
    ///
    /// # Errors
    /// As [`Trees::head`].
    pub fn manifest(&self, dir: &VmDir, id: &SnapshotId) -> Result<Option<Manifest>, Error> {
        self.manifest_with(dir, id, |top| self.down_to_the_base(&top.disk, Vec::new(), Some(top.layer.clone())))
    }

    /// A snapshot with chains of one layer, that which it froze: for whoever lists thousands.
    ///
    /// # Errors
    /// As [`Trees::head`].
    pub fn manifest_with_tops(&self, dir: &VmDir, id: &SnapshotId) -> Result<Option<Manifest>, Error> {
        self.manifest_with(dir, id, |top| {
            let damaged = || Error::Damaged {
                path: self.home.vm(&top.layer.vm).tree(),
                reason: format!("layer {} of {} is not in it", top.layer.layer, top.disk),
            };
            let tree = self.tree(&top.layer.vm)?;
            let entry = tree.layers.get(&top.layer.layer).ok_or_else(damaged)?;
            Ok(Chain { disk: top.disk.clone(), layers: vec![entry.layer.clone()] })
        })
    }

    fn manifest_with(
        &self,
        dir: &VmDir,
        id: &SnapshotId,
        chain: impl FnMut(&FrozenTop) -> Result<Chain, Error>,
    ) -> Result<Option<Manifest>, Error> {
        let path = dir.snapshot(id).manifest();
        let Some(document) = sealed::read::<Manifest<FrozenTop>>(&path)? else { return Ok(None) };
        if document.id != *id {
            return Err(Error::Damaged { path, reason: format!("it is the manifest of {}", document.id) });
        }
        let mut manifest = document.with_chains(chain)?;
        manifest.parent = self.follows(dir, manifest.parent)?;
        Label::read(&dir.snapshot(id))?.apply(&mut manifest);
        Ok(Some(manifest))
    }

    fn follows(&self, dir: &VmDir, parent: Option<SnapshotId>) -> Result<Option<SnapshotId>, Error> {
        self.parents.borrow_mut().extend(parent.clone());
        let tree = self.tree(dir.name())?;
        // Only a snapshot that was deleted is looked for: it may have been noted as gone, and then not have gone.
        let exists = |id: &SnapshotId| !tree.document.gone.contains_key(id) || dir.snapshot(id).manifest().exists();
        Ok(tree.document.follows(parent, exists))
    }
}

/// Forgets layers that are not in `used`, and places of deleted snapshots that none in `parents` is.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(dir: &VmDir, used: &BTreeSet<LayerRef>, parents: &BTreeSet<SnapshotId>) -> Result<(), Error> {
    let before = TreeDocument::read(dir)?;
    let mut document = before.clone();
    document.layers.retain(|entry| used.contains(&LayerRef::to(&entry.layer)));
    let mut wanted = parents.clone();
    for id in parents {
        let mut next = document.gone.get(id).cloned().flatten();
        while let Some(id) = next.filter(|id| !wanted.contains(id)) {
            next = document.gone.get(&id).cloned().flatten();
            wanted.insert(id);
        }
    }
    document.gone.retain(|id, _| wanted.contains(id));
    if document == before { Ok(()) } else { document.write(dir) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use keyframe_hypervisor::LayerFormat;
    use keyframe_types::ByteLen;

    use super::*;
    use crate::state::head::FileOrigin;

    fn layer(vm: &VmName) -> Arc<Layer> {
        let id = LayerId::random();
        Arc::new(Layer {
            file: id.clone(),
            vm: vm.clone(),
            path: PathBuf::from(format!("vms/{vm}/layers/disk0/{id}.qcow2")),
            id,
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: ByteLen::from_mib(1),
            frozen: None,
        })
    }

    fn head(layers: Vec<Arc<Layer>>) -> Head {
        let disks = vec![Chain { disk: DiskId::new("disk0").unwrap(), layers }];
        Head { parent: None, disks, nvram: None, process: None, clean_shutdown: false, origin: None }
    }

    #[test]
    fn chains_come_back_as_they_were_also_across_machines() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let (original, twin) = (VmName::new("db").unwrap(), VmName::new("twin").unwrap());
        let (base, middle, active) = (layer(&original), layer(&original), layer(&original));
        let ours = head(vec![active, middle.clone(), base.clone()]);
        let theirs = head(vec![layer(&twin), layer(&twin), middle.clone(), base.clone()]);
        for (name, head) in [(&original, &ours), (&twin, &theirs)] {
            std::fs::create_dir_all(home.vm(name).root()).unwrap();
            write_head(&home.vm(name), head).unwrap();
        }
        let trees = Trees::of(&home);
        assert_eq!(trees.head(&home.vm(&original)).unwrap().as_ref(), Some(&ours));
        assert_eq!(trees.head(&home.vm(&twin)).unwrap().as_ref(), Some(&theirs));
        assert_eq!(TreeDocument::read(&home.vm(&twin)).unwrap().layers.len(), 1, "only its own");
    }

    #[test]
    fn circles_and_gaps_are_damage() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name = VmName::new("db").unwrap();
        let dir = home.vm(&name);
        std::fs::create_dir_all(dir.root()).unwrap();
        let (base, active) = (layer(&name), layer(&name));
        write_head(&dir, &head(vec![active, base.clone()])).unwrap();
        let mut document = TreeDocument::read(&dir).unwrap();
        document.layers[0].below = Some(LayerRef::to(&base));
        document.write(&dir).unwrap();
        let refused = |what: &str| match Trees::of(&home).head(&dir) {
            Err(Error::Damaged { reason, .. }) => assert!(reason.contains(what), "{reason}"),
            other => panic!("{other:?}"),
        };
        refused("circle");
        document.layers.clear();
        document.write(&dir).unwrap();
        refused("not in it");
    }

    #[test]
    fn who_followed_a_deleted_snapshot_follows_what_that_followed() {
        let ids: Vec<SnapshotId> = (0..4).map(|_| SnapshotId::random()).collect();
        let gone = BTreeMap::from([(ids[1].clone(), Some(ids[0].clone())), (ids[2].clone(), Some(ids[1].clone()))]);
        let tree = TreeDocument { layers: Vec::new(), gone };
        let exists = |id: &SnapshotId| *id == ids[0] || *id == ids[3];
        assert_eq!(tree.follows(Some(ids[2].clone()), exists), Some(ids[0].clone()));
        assert_eq!(tree.follows(Some(ids[3].clone()), exists), Some(ids[3].clone()));
        assert_eq!(tree.follows(Some(ids[2].clone()), |_| false), None);
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let dir = home.vm(&VmName::new("db").unwrap());
        std::fs::create_dir_all(dir.root()).unwrap();
        tree.write(&dir).unwrap();
        prune(&dir, &BTreeSet::new(), &BTreeSet::from([ids[2].clone()])).unwrap();
        assert_eq!(TreeDocument::read(&dir).unwrap().gone.len(), 2, "both are on the way");
        prune(&dir, &BTreeSet::new(), &BTreeSet::from([ids[1].clone()])).unwrap();
        assert_eq!(TreeDocument::read(&dir).unwrap().gone.keys().collect::<Vec<_>>(), [&ids[1]]);
    }
}
