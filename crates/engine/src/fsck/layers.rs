//! Layers: each that is needed is there, untouched, in nobody else's file, and names in its header what it stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use keyframe_hypervisor::LayerFormat;
use keyframe_qcow2::Header;
use keyframe_types::VmName;

use crate::boot;
use crate::error::{Error, IoContext as _};
use crate::fsck::finding::{Finding, Repair, What};
use crate::fsck::survey::{Needed, Survey};
use crate::layers;
use crate::state::head::{FileOrigin, Layer};
use crate::state::home::Home;
use crate::state::tree::LayerRef;

const PUT_BACK: &str = "put the file back from a backup; what does not stand on it is not affected";

/// Looks at the layers of `vm`.
pub(super) fn look(home: &Home, survey: &Survey, needed: &Needed, vm: &VmName) -> Vec<Finding> {
    let mut found = chains(home, needed, vm);
    let open = survey.open_files(home, needed);
    for (name, entry) in needed.layers.iter().filter(|(name, _)| name.vm == *vm) {
        let below = entry.below.as_ref().map(|below| needed.layers.get(below).map(|entry| &*entry.layer));
        let one = One { home, vm, name: name.clone(), layer: &entry.layer, open: &open };
        found.extend(one.look(below));
    }
    for (owner, layer, below) in survey.active().filter(|(owner, _, _)| *owner == vm) {
        let below = below.map(|below| needed.layers.get(below).map(|entry| &*entry.layer));
        let one = One { home, vm: owner, name: LayerRef::to(&layer), layer: &layer, open: &open };
        found.extend(one.look(below));
    }
    found.extend(shared(home, survey, needed, vm));
    found
}

/// Whether chains are whole.
fn chains(home: &Home, needed: &Needed, vm: &VmName) -> Vec<Finding> {
    let dir = home.vm(vm);
    let dangling = needed.dangling.iter().filter(|(path, _)| path.starts_with(dir.root())).map(|(path, at)| {
        let text = format!("it names layer {} of {}, which {} does not tell of", at.layer, at.vm, tree_of(home, at));
        let advice = "restore that tree.json from a backup; the layers' own headers name what they stand on";
        Finding::serious(vm, What::BrokenChain, path, text, advice)
    });
    let circles = needed.circles.iter().filter(|at| at.vm == *vm).map(|at| {
        let text = format!("layers go round in a circle at {}", at.layer);
        Finding::serious(vm, What::BrokenChain, &dir.tree(), text, "restore that tree.json from a backup")
    });
    dangling.chain(circles).collect()
}

fn tree_of(home: &Home, at: &LayerRef) -> String {
    home.vm(&at.vm).tree().display().to_string()
}

/// One layer that is looked at.
struct One<'a> {
    home: &'a Home,
    vm: &'a VmName,
    name: LayerRef,
    layer: &'a Layer,
    open: &'a BTreeSet<PathBuf>,
}

impl One<'_> {
    /// `below` is what it stands on: `None` when on nothing, `Some(None)` when on what nobody knows.
    fn look(&self, below: Option<Option<&Layer>>) -> Vec<Finding> {
        let path = self.home.absolute(&self.layer.path);
        let mut found = Vec::new();
        match self.layer.check_untouched(self.home) {
            Ok(()) => {}
            Err(Error::LayerMissing { .. }) => return vec![self.missing(&path)],
            Err(Error::LayerTouched { .. }) => found.push(self.touched(&path)),
            Err(error) => return vec![self.not_checked(&path, &error)],
        }
        if !path.exists() {
            return vec![self.missing(&path)];
        }
        if self.layer.format == LayerFormat::Qcow2
            // One that may stand on a repository is right either way; `boot.json` and the header tell the rest.
            && !boot::may_stand_on(&self.home.vm(self.vm), &self.layer.id)
            && let Some(below) = below_known(below)
            // A header in use may be half on its way; QEMU was told the chain when it was started.
            && (self.layer.frozen.is_some() || !self.open.contains(&path))
        {
            found.extend(self.header(&path, below));
        }
        found
    }

    fn missing(&self, path: &Path) -> Finding {
        let text = format!("the file of layer {} is not there", self.layer.id);
        Finding::serious(self.vm, What::MissingLayer, path, text, PUT_BACK)
    }

    fn touched(&self, path: &Path) -> Finding {
        let text = "it was written to from outside after it was frozen".to_owned();
        let advice = format!(
            "`keyframe check {} --data` tells whether its content is as it was, if that was ever recorded; if it is, \
             --accept-touched-layers goes on",
            self.vm
        );
        Finding::serious(self.vm, What::TouchedLayer, path, text, advice)
    }

    fn not_checked(&self, path: &Path, error: &Error) -> Finding {
        Finding::serious(self.vm, What::NotChecked, path, error.told(), "see to the cause and try again")
    }

    fn header(&self, path: &Path, below: Option<&Layer>) -> Option<Finding> {
        let read = || -> Result<Header, Error> {
            let file = File::open(path).or_io("open", path)?;
            Header::read(&file).map_err(|source| Error::Layer { path: path.to_owned(), source })
        };
        let header = match read() {
            Ok(header) => header,
            Err(error) => {
                let text = format!("it is no readable qcow2 image: {}", error.told());
                return Some(Finding::serious(self.vm, What::CorruptImage, path, text, PUT_BACK));
            }
        };
        if header.backing().is_some_and(keyframe_qcow2::BackingName::is_export) {
            // Without it, what was not copied yet would read as zeros.
            let text = "it stands on an export of a repository, and boot.json does not tell which".to_owned();
            let advice =
                "restore the machine's boot.json from a backup of the home; until then the machine does not start";
            return Some(Finding::serious(self.vm, What::WrongBacking, path, text, advice));
        }
        let named = header.backing().map(|name| (name.resolve(path).ok(), name.to_string()));
        let expected = below.map(|below| self.home.absolute(&below.path));
        let same = match (&named, &expected) {
            (None, None) => true,
            (Some((Some(named), _)), Some(expected)) => is_same(named, expected),
            _ => false,
        };
        let format = |below: &Layer| header.backing_format().is_none_or(|format| format == format_of(below));
        if same && below.is_none_or(format) {
            return None;
        }
        let says =
            named.map_or_else(|| "no backing file".to_owned(), |(_, name)| format!("{name} as its backing file"));
        let right = expected.map_or_else(|| "nothing".to_owned(), |path| path.display().to_string());
        let text = format!("its header names {says}; it stands on {right}");
        Some(self.wrong_header(path, text))
    }

    fn wrong_header(&self, path: &Path, text: String) -> Finding {
        if self.layer.origin != FileOrigin::Made {
            let advice =
                "its header is not Keyframe's to write; `qemu-img rebase -u` does, if you know that it is right";
            return Finding::serious(self.vm, What::WrongBacking, path, text, advice);
        }
        if self.open.contains(path) {
            let advice = format!("stop the machine that has it open, then `keyframe fsck {} --repair`", self.vm);
            return Finding::serious(self.vm, What::WrongBacking, path, text, advice);
        }
        Finding::repairable(self.vm, What::WrongBacking, path, text, Repair::SetBacking(self.name.clone()))
    }
}

/// What a layer stands on, where that is known: nothing, or a layer.
#[allow(clippy::option_option)] // three answers: unknown, nothing, that one
fn below_known(below: Option<Option<&Layer>>) -> Option<Option<&Layer>> {
    match below {
        None => Some(None),
        Some(None) => None,
        Some(known) => Some(known),
    }
}

fn format_of(layer: &Layer) -> &'static str {
    match layer.format {
        LayerFormat::Qcow2 => "qcow2",
        LayerFormat::Raw => "raw",
    }
}

/// Whether two paths lead to one file; for files that are not there, whether they would.
fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => lexical(one) == lexical(other),
    }
}

/// A path without `..` and `.`.
fn lexical(path: &Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut so_far, part| {
        match part {
            Component::ParentDir => drop(so_far.pop()),
            Component::CurDir => {}
            part => so_far.push(part),
        }
        so_far
    })
}

/// Layers whose data are in one file, and files that two machines write to.
fn shared(home: &Home, survey: &Survey, needed: &Needed, vm: &VmName) -> Vec<Finding> {
    let mut found = Vec::new();
    let advice = "nobody can tell whose data these are: restore the documents from a backup";
    if let Some(tree) = survey.machines.get(vm).and_then(|machine| machine.tree.as_ref()) {
        let mut ids = BTreeSet::new();
        for entry in tree.layers.iter().filter(|entry| !ids.insert(&entry.layer.id)) {
            let text = format!("layer {} is in it twice", entry.layer.id);
            found.push(Finding::serious(vm, What::SharedFile, &home.vm(vm).tree(), text, advice));
        }
    }
    let mut files: BTreeMap<PathBuf, BTreeSet<LayerRef>> = BTreeMap::new();
    for (name, entry) in needed.layers.iter().filter(|(_, entry)| entry.layer.origin != FileOrigin::Foreign) {
        files.entry(home.absolute(&entry.layer.path)).or_default().insert(name.clone());
    }
    for (_, layer, _) in survey.active() {
        files.entry(home.absolute(&layer.path)).or_default().insert(LayerRef::to(&layer));
    }
    for (path, layers) in files.iter().filter(|(_, layers)| layers.len() > 1) {
        if layers.iter().any(|layer| layer.vm == *vm) {
            let names: Vec<String> = layers.iter().map(|layer| format!("{} of {}", layer.layer, layer.vm)).collect();
            let text = format!("it is the file of several layers: {}", names.join(", "));
            found.push(Finding::serious(vm, What::SharedFile, path, text, advice));
        }
    }
    found
}

/// Writes the name of what `layer` stands on into its header.
///
/// # Errors
/// [`Error::Layer`], also when somebody has the file open: it is then as it was.
pub(super) fn set_backing(home: &Home, layer: &Layer, below: Option<&Layer>) -> Result<(), Error> {
    let path = home.absolute(&layer.path);
    let backing = below.map(|below| layers::backing(home, &path, below)).transpose()?;
    keyframe_qcow2::set_backing(&path, backing.as_ref()).map_err(|source| Error::Layer { path, source })
}
