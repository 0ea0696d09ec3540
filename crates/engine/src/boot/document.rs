//! `boot.json`: what a machine that runs straight from a repository still stands on there.
//!
//! It is there from before the machine first runs until it is wholly local. Whether one disk still needs the repository is
//! decided by its layer's header, which QEMU changes when all is copied: a layer that names an export there stands on it,
//! one that names nothing does not, whatever this document says. A layer is never opened without what its header names.

use std::fs::File;
use std::path::{Path, PathBuf};

use keyframe_hypervisor::{LayerFormat, RemoteBase};
use keyframe_memory::pageserver::{ExportAt, ImageAt};
use keyframe_qcow2::{Backing, Header};
use keyframe_repo::StoredImage;
use keyframe_repo::ids::ObjectId;
use keyframe_types::{ByteLen, DiskId, LayerId};
use serde::{Deserialize, Serialize};

use crate::backup::{MEMORY, MEMORY_SUMS};
use crate::error::{Error, IoContext as _};
use crate::state::durable;
use crate::state::head::{Chain, FileOrigin};
use crate::state::home::{Home, VmDir};
use crate::state::sealed::{self, Document};

/// Where a repository is, and what opens it. A passphrase is in nobody's file: it comes with the environment of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// A directory, absolute, or an address.
    pub repository: String,
    /// The key file, absolute.
    pub key_file: Option<PathBuf>,
    /// Whether some of a distant repository may be kept in a local cache.
    pub cache: bool,
    /// Bytes a second that may be fetched from it; as many as it gives if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<ByteLen>,
}

/// What a machine stands on in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Where that is.
    pub place: Place,
    /// The repository's id: another one at the same place is not taken for it.
    pub repository: ObjectId,
    /// The point, as people name it.
    pub point: String,
    /// Disks that are not all here.
    pub disks: Vec<StandingDisk>,
    /// Memory that is not all here.
    pub memory: Option<StandingMemory>,
}

/// A disk's layer, and the image that it stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its lowest layer.
    pub layer: LayerId,
    /// The image.
    pub image: StoredImage,
}

/// The images of a memory that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingMemory {
    /// QEMU's mapped-ram file.
    pub image: StoredImage,
    /// Its checksums.
    pub sums: StoredImage,
}

impl Document for Standing {
    const SCHEMA: &'static str = "keyframe.boot/1";
}

impl Standing {
    /// A machine's; `None` for one that is wholly local.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
    pub fn read(dir: &VmDir) -> Result<Option<Self>, Error> {
        sealed::read(&dir.boot())
    }

    /// Writes it durably, or removes it when nothing is left. The caller holds the machine's lock.
    ///
    /// # Errors
    /// [`Error::Io`]; the old one is then still there.
    pub(super) fn write(&self, dir: &VmDir) -> Result<(), Error> {
        if self.disks.is_empty() && self.memory.is_none() {
            return durable::remove_file(&dir.boot());
        }
        sealed::write(&dir.boot(), self)
    }

    /// The images that are shown, by their exports' names.
    pub(super) fn images(&self) -> impl Iterator<Item = (&str, &StoredImage)> {
        let disks = self.disks.iter().map(|standing| (standing.disk.as_str(), &standing.image));
        let memory = self.memory.iter().flat_map(|memory| [(MEMORY, &memory.image), (MEMORY_SUMS, &memory.sums)]);
        disks.chain(memory)
    }
}

/// The socket of an export.
pub(super) fn socket(dir: &VmDir, export: &str) -> PathBuf {
    dir.boot_run().join(socket_name(export))
}

fn socket_name(export: &str) -> String {
    format!("{export}.sock")
}

/// QEMU's name of what a disk's lowest layer stands on.
pub(super) fn base_node(disk: &DiskId) -> String {
    format!("r-{disk}")
}

/// What a disk's layer names in its header.
pub(super) fn backing(dir: &VmDir, disk: &DiskId) -> Result<Backing, Error> {
    let socket = socket(dir, disk.as_str());
    Backing::export(&socket, disk.as_str()).map_err(|source| Error::Layer { path: socket, source })
}

/// A point's memory, as the page server reads it.
pub(super) fn memory_exports(dir: &VmDir) -> ImageAt {
    let at = |name: &str| ExportAt { socket: socket(dir, name), name: name.to_owned() };
    ImageAt::Exports { mapped: at(MEMORY), sums: at(MEMORY_SUMS) }
}

/// Whether the layer at `path` names an export as what it stands on.
///
/// # Errors
/// [`Error::Layer`], [`Error::Io`].
pub(super) fn stands_on_export(path: &Path) -> Result<bool, Error> {
    let file = File::open(path).or_io("open", path)?;
    let header = Header::read(&file).map_err(|source| Error::Layer { path: path.to_owned(), source })?;
    Ok(header.backing().is_some_and(keyframe_qcow2::BackingName::is_export))
}

/// What the lowest layer of a chain stands on, for the command line of a process that is started in a directory of its own
/// below `dir`'s run directory. `None` for a chain that is wholly local.
///
/// # Errors
/// [`Error::Damaged`] when the layer's header names an export and nobody knows of which repository: opened without it, what
/// was not copied would read as zeros.
pub(crate) fn base_of(home: &Home, dir: &VmDir, chain: &Chain) -> Result<Option<RemoteBase>, Error> {
    let Some(lowest) = chain.layers.last() else { return Ok(None) };
    if lowest.format != LayerFormat::Qcow2 || lowest.origin != FileOrigin::Made {
        return Ok(None);
    }
    let path = home.absolute(&lowest.path);
    if !stands_on_export(&path)? {
        return Ok(None);
    }
    let known = Standing::read(dir)?;
    if !known.is_some_and(|standing| standing.disks.iter().any(|disk| disk.layer == lowest.id)) {
        let reason = format!("it does not tell what {} stands on, whose header names an export", path.display());
        return Err(Error::Damaged { path: dir.boot(), reason });
    }
    let export = chain.disk.to_string();
    let socket = Path::new("..").join("boot").join(socket_name(&export));
    Ok(Some(RemoteBase { node: base_node(&chain.disk), socket, export }))
}

/// Whether a layer of the machine in `dir` may stand on a repository, so that its header is what it should be either way.
pub(crate) fn may_stand_on(dir: &VmDir, layer: &LayerId) -> bool {
    Standing::read(dir)
        .is_ok_and(|standing| standing.is_some_and(|standing| standing.disks.iter().any(|disk| disk.layer == *layer)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyframe_qcow2::CreateOptions;
    use keyframe_qcow2::units::VirtualSize;
    use keyframe_types::{ByteLen, VmName};

    use super::*;
    use crate::state::head::Layer;

    #[test]
    fn a_layer_is_never_opened_without_what_its_header_names() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let dir = home.vm(&VmName::new("again").unwrap());
        let (disk, id) = (DiskId::new("disk0").unwrap(), LayerId::random());
        durable::create_private_dir(&dir.layers(&disk)).unwrap();
        let (path, bytes) = (dir.layer(&disk, &id), ByteLen::from_mib(1));
        let (backing, size) = (backing(&dir, &disk).unwrap(), VirtualSize::new(bytes).unwrap());
        keyframe_qcow2::create_overlay(&path, &backing, size, &CreateOptions::default()).unwrap();
        let layer = Layer {
            vm: dir.name().clone(),
            file: id.clone(),
            id: id.clone(),
            path: home.relative(&path),
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: bytes,
            frozen: None,
        };
        let chain = Chain { disk: disk.clone(), layers: vec![Arc::new(layer)] };
        assert!(matches!(base_of(&home, &dir, &chain), Err(Error::Damaged { .. })), "nobody knows of which repository");
        let image = StoredImage { label: "disk0".into(), bytes: bytes.bytes(), root: None };
        let standing = Standing {
            place: Place { repository: "/r".into(), key_file: None, cache: true, bandwidth: None },
            repository: ObjectId::random().unwrap(),
            point: "db@1".into(),
            disks: vec![StandingDisk { disk, layer: id, image }],
            memory: None,
        };
        standing.write(&dir).unwrap();
        let base = base_of(&home, &dir, &chain).unwrap().unwrap();
        assert_eq!((base.export.as_str(), base.socket.as_path()), ("disk0", Path::new("../boot/disk0.sock")));
        // The header is the truth: QEMU has taken the export out of it.
        keyframe_qcow2::set_backing(&path, None).unwrap();
        assert_eq!(base_of(&home, &dir, &chain).unwrap(), None);
        Standing { disks: vec![], ..standing }.write(&dir).unwrap();
        assert!(Standing::read(&dir).unwrap().is_none() && !dir.boot().exists(), "nothing is left to stand on");
    }
}
