//! Reading snapshots: all of a machine's, or the one that a person means.

use keyframe_types::{SnapshotId, SnapshotSelector, VmName};

use crate::error::{Error, IoContext as _};
use crate::state::home::VmDir;
use crate::state::manifest::Manifest;
use crate::state::tree::Trees;

/// A snapshot's directory whose manifest is not readable.
#[derive(Debug)]
pub struct DamagedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What is wrong with it.
    pub error: Error,
}

/// All snapshots of a machine by age, and those that cannot be read.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
pub fn scan(dir: &VmDir) -> Result<(Vec<Manifest>, Vec<DamagedSnapshot>), Error> {
    scan_with(&Trees::of(dir.home()), dir)
}

/// [`scan`] for whoever reads several machines.
///
/// # Errors
/// As [`scan`].
pub fn scan_with(trees: &Trees<'_>, dir: &VmDir) -> Result<(Vec<Manifest>, Vec<DamagedSnapshot>), Error> {
    scan_by(dir, |id| trees.manifest(dir, id))
}

/// [`scan`] with chains of one layer, that which the snapshot froze: a list of thousands needs no more.
///
/// # Errors
/// As [`scan`].
pub fn scan_tops(trees: &Trees<'_>, dir: &VmDir) -> Result<(Vec<Manifest>, Vec<DamagedSnapshot>), Error> {
    scan_by(dir, |id| trees.manifest_with_tops(dir, id))
}

fn scan_by(
    dir: &VmDir,
    read: impl Fn(&SnapshotId) -> Result<Option<Manifest>, Error>,
) -> Result<(Vec<Manifest>, Vec<DamagedSnapshot>), Error> {
    let path = dir.snapshots();
    let entries = match std::fs::read_dir(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        other => other.or_io("list", &path)?,
    };
    let (mut manifests, mut damaged) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.or_io("list", &path)?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<SnapshotId>().ok()) else {
            continue;
        };
        match read(&id) {
            Ok(manifest) => manifests.extend(manifest),
            Err(error) => damaged.push(DamagedSnapshot { id, error }),
        }
    }
    manifests.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok((manifests, damaged))
}

/// All snapshots of a machine by age.
///
/// # Errors
/// The first manifest that cannot be read.
pub fn read_all_with(trees: &Trees<'_>, dir: &VmDir) -> Result<Vec<Manifest>, Error> {
    let (manifests, damaged) = scan_with(trees, dir)?;
    match damaged.into_iter().next() {
        Some(damaged) => Err(damaged.error),
        None => Ok(manifests),
    }
}

/// One snapshot, as it is described now; `None` when there is no manifest, and so no snapshot.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
pub fn read(dir: &VmDir, id: &SnapshotId) -> Result<Option<Manifest>, Error> {
    Trees::of(dir.home()).manifest(dir, id)
}

/// The snapshot that a person means: by name, by id, or by the beginning of an id that is unique.
///
/// # Errors
/// [`Error::NoSnapshot`], [`Error::AmbiguousSnapshot`]; [`Error::Damaged`] when the one meant cannot be read.
pub fn find(dir: &VmDir, vm: &VmName, selector: &SnapshotSelector) -> Result<Manifest, Error> {
    let text = selector.as_str();
    let (manifests, damaged) = scan(dir)?;
    if let Some(manifest) = manifests.iter().find(|manifest| manifest.name.as_str() == text) {
        return Ok(manifest.clone());
    }
    let broken = damaged.into_iter().find(|damaged| damaged.id.as_str().starts_with(text));
    let mut matching: Vec<Manifest> =
        manifests.into_iter().filter(|manifest| manifest.id.as_str().starts_with(text)).collect();
    let (vm, selector) = (vm.clone(), text.to_owned());
    match (matching.len(), broken) {
        (0, Some(damaged)) => Err(damaged.error),
        (1, None) => matching.pop().ok_or(Error::NoSnapshot { vm, selector }),
        (0, None) => Err(Error::NoSnapshot { vm, selector }),
        _ => {
            let ids: Vec<&str> = matching.iter().map(|manifest| manifest.id.as_str()).collect();
            Err(Error::AmbiguousSnapshot { vm, selector, candidates: ids.join(", ") })
        }
    }
}
