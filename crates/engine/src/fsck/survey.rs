//! All documents of all machines, read one by one: one that cannot be read keeps no other from being looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_types::{DiskId, SnapshotId, VmName};

use crate::error::{Error, IoContext as _};
use crate::machine::read_definition;
use crate::state::head::{Head, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::journal::Journal;
use crate::state::manifest::Manifest;
use crate::state::sealed;
use crate::state::tree::{ActiveTop, FrozenTop, LayerRef, TreeDocument, TreeLayer};

/// A document that cannot be read, or has to be there and is not.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    pub(super) snapshot: Option<SnapshotId>,
}

/// What one machine's documents say.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) dir: VmDir,
    pub(super) head: Option<Head<ActiveTop>>,
    /// `None` when it cannot be read; empty when it is not there.
    pub(super) tree: Option<TreeDocument>,
    pub(super) manifests: Vec<Manifest<FrozenTop>>,
    pub(super) has_journal: bool,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Surveyed {
    /// Reads a machine's documents.
    ///
    /// # Errors
    /// [`Error::Io`] when its directory cannot be listed.
    pub(super) fn of(dir: VmDir) -> Result<Self, Error> {
        let mut unreadable = Vec::new();
        let mut keep = |path: PathBuf, reason: String| unreadable.push(Unreadable { path, reason, snapshot: None });
        match read_definition(&dir.definition()) {
            Ok(Some(definition)) if definition.name != *dir.name() => {
                keep(dir.definition(), format!("it names the machine {}", definition.name));
            }
            Ok(_) => {}
            Err(error) => keep(dir.definition(), error.told()),
        }
        let head = sealed::read::<Head<ActiveTop>>(&dir.head()).unwrap_or_else(|error| {
            keep(dir.head(), error.told());
            None
        });
        if head.is_none() && !dir.head().exists() {
            keep(dir.head(), "it is not there".to_owned());
        }
        let tree = TreeDocument::read(&dir).map_err(|error| keep(dir.tree(), error.told())).ok();
        let has_journal = dir.journal().exists();
        if let Err(error) = sealed::read::<Journal>(&dir.journal()) {
            keep(dir.journal(), error.told());
        }
        let manifests = manifests(&dir, &mut unreadable)?;
        Ok(Self { dir, head, tree, manifests, has_journal, unreadable })
    }

    /// The process that is on record, if it runs.
    pub(super) fn runs(&self) -> bool {
        self.head.as_ref().and_then(|head| head.process.as_ref()).is_some_and(|process| process.instance.is_alive())
    }

    /// Every frozen layer that a document names itself, and the document.
    pub(super) fn named(&self) -> impl Iterator<Item = (PathBuf, &DiskId, &LayerRef)> {
        let head = self.head.iter().flat_map(Head::chains);
        let below = head.filter_map(|top| Some((self.dir.head(), &top.disk, top.below.as_ref()?)));
        let frozen = self.manifests.iter().flat_map(|manifest| {
            let path = self.dir.snapshot(&manifest.id).manifest();
            manifest.chains().map(move |top| (path.clone(), &top.disk, &top.layer))
        });
        below.chain(frozen)
    }
}

fn manifests(dir: &VmDir, unreadable: &mut Vec<Unreadable>) -> Result<Vec<Manifest<FrozenTop>>, Error> {
    let mut manifests = Vec::new();
    for id in snapshot_ids(dir)? {
        let path = dir.snapshot(&id).manifest();
        let mut keep = |reason| {
            unreadable.push(Unreadable { path: path.clone(), reason, snapshot: Some(id.clone()) });
        };
        match sealed::read::<Manifest<FrozenTop>>(&path) {
            Ok(Some(manifest)) if manifest.id != id => keep(format!("it is the manifest of {}", manifest.id)),
            Ok(manifest) => manifests.extend(manifest),
            Err(error) => keep(error.told()),
        }
    }
    manifests.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok(manifests)
}

/// The names of a machine's directories for snapshots, with a manifest or without.
pub(super) fn snapshot_ids(dir: &VmDir) -> Result<Vec<SnapshotId>, Error> {
    let names = entries(&dir.snapshots())?;
    let id = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    Ok(names.iter().filter_map(id).collect())
}

/// What is in a directory, in order; nothing when there is none.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.or_io("list", dir)?,
    };
    let mut paths: Vec<PathBuf> =
        list.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().or_io("list", dir)?;
    paths.sort();
    Ok(paths)
}

/// All machines.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) machines: BTreeMap<VmName, Surveyed>,
}

/// What stands on what, as far as documents can be read.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// Frozen layers that some present or snapshot needs.
    pub(super) layers: BTreeMap<LayerRef, TreeLayer>,
    /// Layers that are named and not noted: by which document, and which.
    pub(super) dangling: BTreeSet<(PathBuf, LayerRef)>,
    /// Layers that stand on themselves.
    pub(super) circles: BTreeSet<LayerRef>,
}

impl Survey {
    /// Reads all machines.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be listed.
    pub(super) fn of(home: &Home) -> Result<Self, Error> {
        let names = home.machine_names()?.into_iter();
        let machines = names.map(|name| Ok((name.clone(), Surveyed::of(home.vm(&name))?)));
        Ok(Self { machines: machines.collect::<Result<_, Error>>()? })
    }

    /// Reads one machine again.
    ///
    /// # Errors
    /// As [`Survey::of`].
    pub(super) fn look_again(&mut self, home: &Home, name: &VmName) -> Result<(), Error> {
        self.machines.insert(name.clone(), Surveyed::of(home.vm(name))?);
        Ok(())
    }

    /// Whether every document could be read that tells what layers are needed.
    pub(super) fn is_whole(&self) -> bool {
        self.machines.values().all(|machine| machine.unreadable.is_empty())
    }

    /// What all machines need.
    pub(super) fn needed(&self) -> Needed {
        let noted: HashMap<LayerRef, &TreeLayer> = self
            .machines
            .values()
            .flat_map(|machine| machine.tree.iter().flat_map(|tree| &tree.layers))
            .map(|entry| (LayerRef::to(&entry.layer), entry))
            .collect();
        let mut needed = Needed::default();
        for (path, _, top) in self.machines.values().flat_map(Surveyed::named) {
            self.follow(&noted, &mut needed, path, top);
        }
        needed
    }

    fn follow(&self, noted: &HashMap<LayerRef, &TreeLayer>, needed: &mut Needed, named_in: PathBuf, top: &LayerRef) {
        let (mut way, mut named_in, mut next) = (HashSet::new(), named_in, Some(top));
        while let Some(at) = next {
            if !way.insert(at) {
                needed.circles.insert(at.clone());
                return;
            }
            if needed.layers.contains_key(at) {
                return;
            }
            let Some(entry) = noted.get(at) else {
                // Where the tree itself cannot be read, that is all there is to say.
                let readable = self.machines.get(&at.vm).is_none_or(|machine| machine.tree.is_some());
                if readable {
                    needed.dangling.insert((named_in, at.clone()));
                }
                return;
            };
            needed.layers.insert(at.clone(), TreeLayer::clone(entry));
            if let Some(machine) = self.machines.get(&at.vm) {
                named_in = machine.dir.tree();
            }
            next = entry.below.as_ref();
        }
    }

    /// Files, absolute, that a process which runs has open, as far as documents tell.
    pub(super) fn open_files(&self, home: &Home, needed: &Needed) -> BTreeSet<PathBuf> {
        let mut open = BTreeSet::new();
        let tops = self.machines.values().filter(|machine| machine.runs());
        for top in tops.flat_map(|machine| machine.head.iter().flat_map(Head::chains)) {
            open.insert(home.absolute(&top.active.path));
            let mut next = top.below.as_ref();
            while let Some(entry) = next.and_then(|at| needed.layers.get(at)) {
                if !open.insert(home.absolute(&entry.layer.path)) {
                    break;
                }
                next = entry.below.as_ref();
            }
        }
        open
    }

    /// The active layers of all machines, with what they stand on.
    pub(super) fn active(&self) -> impl Iterator<Item = (&VmName, Arc<Layer>, Option<&LayerRef>)> {
        self.machines.iter().flat_map(|(name, machine)| {
            let tops = machine.head.iter().flat_map(Head::chains);
            tops.map(move |top| (name, Arc::new(top.active.clone()), top.below.as_ref()))
        })
    }
}
