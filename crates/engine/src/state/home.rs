//! Where everything lies: the paths below `HOME`, and nothing else.

use std::path::{Path, PathBuf};

use keyframe_types::{DiskId, InstanceId, LayerId, SnapshotId, VmName};

use crate::error::{Error, IoContext as _};
use crate::state::durable;

/// The directory that holds all machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens the home at `root`, creating it when it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(root: &Path) -> Result<Self, Error> {
        durable::create_private_dir(&root.join("vms"))?;
        let root = root.canonicalize().or_io("open", root)?;
        Ok(Self { root })
    }

    /// Where the home is unless someone says otherwise: `/var/lib/keyframe` for root, the user's data
    /// directory for others.
    #[must_use]
    pub fn default_root() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/keyframe");
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let user = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share");
        data.unwrap_or_else(user).join("keyframe")
    }

    /// The directory itself, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the machine `name` lies, whether it exists or not.
    #[must_use]
    pub fn vm(&self, name: &VmName) -> VmDir {
        VmDir { home: self.clone(), name: name.clone(), root: self.root.join("vms").join(name.as_str()) }
    }

    /// What guests from points of the machine `name` wanted of their memory first, when they were booted here.
    #[must_use]
    pub fn wanted_first(&self, name: &VmName) -> PathBuf {
        self.root.join("prefetch").join(format!("{name}.hot"))
    }

    /// The names of all machines, in order. A directory without a definition is no machine.
    ///
    /// # Errors
    /// [`Error::Io`], also when it cannot be told whether a directory has a definition: what cannot be seen is not
    /// taken for absent, since layers that no machine needs are removed.
    pub fn machine_names(&self) -> Result<Vec<VmName>, Error> {
        let dir = self.root.join("vms");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).or_io("list", &dir)? {
            let entry = entry.or_io("list", &dir)?;
            let name = entry.file_name().to_str().and_then(|name| VmName::new(name).ok());
            if let Some(name) = name
                && self.vm(&name).exists()?
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// A path for a document: relative when it lies in this home, so that the home can be moved.
    #[must_use]
    pub fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    /// The absolute path that [`Home::relative`] was made from.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }
}

/// The directory of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDir {
    home: Home,
    name: VmName,
    root: PathBuf,
}

impl VmDir {
    /// The home that it is in.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a machine: whether it has a definition.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be told.
    pub fn exists(&self) -> Result<bool, Error> {
        use std::io::ErrorKind;
        let path = self.definition();
        match std::fs::metadata(&path) {
            // `NotADirectory`: a file lies where a machine would.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            other => other.or_io("look at", &path).map(|found| found.is_file()),
        }
    }

    /// The machine's definition.
    #[must_use]
    pub fn definition(&self) -> PathBuf {
        self.root.join("machine.toml")
    }

    /// The machine's present.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.root.join("head.json")
    }

    /// What its frozen layers stand on.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.root.join("tree.json")
    }

    /// The operation in flight.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal.json")
    }

    /// What it still stands on in a repository, while it is not wholly local.
    #[must_use]
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot.json")
    }

    /// Sockets and state of the process that shows it a repository's images.
    #[must_use]
    pub fn boot_run(&self) -> PathBuf {
        self.run().join("boot")
    }

    /// What came from a point and is no layer: the kernel that QEMU loads itself.
    #[must_use]
    pub fn boot_files(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// The file that is locked while a command works on the machine.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The directory of a disk's layers.
    #[must_use]
    pub fn layers(&self, disk: &DiskId) -> PathBuf {
        self.root.join("layers").join(disk.as_str())
    }

    /// The file of a layer that Keyframe makes.
    #[must_use]
    pub fn layer(&self, disk: &DiskId, layer: &LayerId) -> PathBuf {
        self.layers(disk).join(format!("{layer}.qcow2"))
    }

    /// The directory of all snapshots.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The directory of one snapshot.
    #[must_use]
    pub fn snapshot(&self, id: &SnapshotId) -> SnapshotDir {
        SnapshotDir { root: self.snapshots().join(id.as_str()) }
    }

    /// The directory of all snapshots that are being tested.
    #[must_use]
    pub fn drills(&self) -> PathBuf {
        self.root.join("drill")
    }

    /// The throw-away machine that tests a snapshot: no machine, as it never has a definition.
    #[must_use]
    pub fn drill(&self, id: &SnapshotId) -> Self {
        Self { root: self.drills().join(id.as_str()), ..self.clone() }
    }

    /// Sockets and logs; empty after a reboot at the latest.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Sockets and log of one QEMU process.
    #[must_use]
    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.run().join(id.as_str())
    }

    /// What the machine wrote to its serial console, through all reverts.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.run().join("serial.log")
    }
}

/// The directory of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDir {
    root: PathBuf,
}

impl SnapshotDir {
    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest, written last: without it there is no snapshot.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest.json")
    }

    /// What was said about it later.
    #[must_use]
    pub fn label(&self) -> PathBuf {
        self.root.join("label.json")
    }

    /// How its tests ended.
    #[must_use]
    pub fn tests(&self) -> PathBuf {
        self.root.join("tests.json")
    }

    /// What its tests saw.
    #[must_use]
    pub fn evidence(&self) -> PathBuf {
        self.root.join("tests")
    }

    /// The memory image: a mapped-ram file that QEMU itself can load.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.root.join("memory.mapped")
    }

    /// In its place, the own file of an image that shares pages with older ones.
    #[must_use]
    pub fn memory_pages(&self) -> PathBuf {
        self.root.join("memory.pages")
    }

    /// Where the pages lie that such an image does not have itself.
    #[must_use]
    pub fn memory_map(&self) -> PathBuf {
        self.root.join("memory.map")
    }

    /// Checksums of the memory image by extent.
    #[must_use]
    pub fn sums(&self) -> PathBuf {
        self.root.join("memory.b3")
    }

    /// The extents that the guest wants first.
    #[must_use]
    pub fn hot(&self) -> PathBuf {
        self.root.join("memory.hot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_not_absent() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let vms = home.root().join("vms");
        std::fs::write(vms.join("a-file"), "").unwrap();
        std::fs::create_dir(vms.join("half")).unwrap();
        std::fs::create_dir(vms.join("db")).unwrap();
        std::fs::write(vms.join("db/machine.toml"), "").unwrap();
        assert_eq!(home.machine_names().unwrap(), [VmName::new("db").unwrap()]);
        // A loop of links can be looked at by nobody, root included.
        std::os::unix::fs::symlink("machine.toml", vms.join("half/machine.toml")).unwrap();
        assert!(matches!(home.machine_names(), Err(Error::Io { .. })));
    }
}
