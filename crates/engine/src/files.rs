//! Files out of a point: its disks, given to a reader in a process of its own (`keyframe_files`).
//!
//! The repository is read here and only here; the reader gets blocks, and neither keys nor the way to the store.

use std::ffi::OsStr;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use keyframe_files::reader::OpenVolume;
use keyframe_files::{Content, Disk, Reader, VolumeInfo};
use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Point, Repository, StoredImage};

use crate::backup::MachinePoint;
use crate::error::{Error, IoContext as _};

/// The reader's process.
pub const SUBCOMMAND: &str = "internal-files";
/// What is kept of a disk, in bytes.
const CACHE_BYTES: usize = 64 << 20;
/// The firmware's variables are a disk to QEMU, and to nobody else.
const NO_DISK: &str = "nvram";

/// A file in a point, as a person names it: `[DISK[:PART]:]PATH`, with the path from the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    /// `DISK`, `DISK:PART` or `GROUP/VOLUME`; needed where there are several file systems.
    pub volume: Option<String>,
    /// The path; begins with a slash.
    pub path: Vec<u8>,
}

impl FileRef {
    /// Reads one. Without a volume it begins with a slash; a volume alone means its topmost directory.
    ///
    /// # Errors
    /// [`Error::BadRequest`].
    pub fn parse(text: &OsStr) -> Result<Self, Error> {
        let bytes = text.as_bytes();
        if bytes.first() == Some(&b'/') {
            return Ok(Self { volume: None, path: bytes.to_vec() });
        }
        let split = bytes.windows(2).position(|pair| pair == b":/").or_else(|| bytes.len().checked_sub(1));
        let parts = split.and_then(|at| bytes.split_at_checked(at));
        let parts = parts.and_then(|(volume, path)| Some((volume, path.strip_prefix(b":")?)));
        match parts.map(|(volume, path)| (std::str::from_utf8(volume), path)) {
            Some((Ok(volume), path)) if !volume.is_empty() => {
                let path = if path.is_empty() { b"/" } else { path };
                Ok(Self { volume: Some(volume.to_owned()), path: path.to_vec() })
            }
            _ => Err(Error::BadRequest {
                what: format!(
                    "{:?} is no file in a point: /PATH, DISK:/PATH, DISK:PART:/PATH or GROUP/VOLUME:/PATH",
                    text.to_string_lossy()
                ),
            }),
        }
    }
}

/// A point that files are taken out of.
pub struct PointFiles {
    reader: Arc<Reader>,
    /// Everything that is on its disks.
    pub volumes: Vec<VolumeInfo>,
}

impl PointFiles {
    /// Starts a reader and has it look at the point's disks.
    ///
    /// # Errors
    /// [`Error::Repository`], [`Error::Files`], [`Error::NoMachineInPoint`] for a point that this version does not know.
    pub fn open(repository: &Arc<Repository>, point: &Point) -> Result<Self, Error> {
        let index = Arc::new(repository.index(Hooks::Skip)?);
        let mut disks: Vec<(String, Arc<dyn Disk>)> = Vec::new();
        for image in disk_images(point)? {
            let reader = ImageReader::new(Arc::clone(repository), Arc::clone(&index), image.clone(), CACHE_BYTES)?;
            disks.push((image.label.clone(), Arc::new(PointDisk { name: image.label.clone(), reader })));
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg(SUBCOMMAND);
        let reader = Reader::start(command, disks)?;
        Ok(Self { volumes: reader.volumes()?, reader })
    }

    /// Numbers of the volumes that have files.
    pub fn file_systems(&self) -> impl Iterator<Item = (usize, &VolumeInfo)> {
        self.volumes.iter().enumerate().filter(|(_, volume)| volume.content.is_file_system())
    }

    /// Opens the file system on a volume, or the only one there is.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it is not clear which; [`Error::Files`].
    pub fn open_volume(&self, name: Option<&str>) -> Result<OpenVolume, Error> {
        let number = match name {
            Some(name) => self.number(name)?,
            None => self.only()?,
        };
        let volume = &self.volumes.get(number).map(|volume| volume.name.clone()).unwrap_or_default();
        self.reader.open(number).map_err(|source| Error::InVolume { volume: volume.clone(), source })
    }

    fn number(&self, name: &str) -> Result<usize, Error> {
        let exact = self.volumes.iter().position(|volume| volume.name == name);
        let number = exact.ok_or_else(|| Error::BadRequest { what: format!("there is no {name}; {}", self.all()) })?;
        let is_table = self.volumes.get(number).is_some_and(|volume| matches!(volume.content, Content::Table(_)));
        if !is_table {
            return Ok(number);
        }
        // A disk with one file system in one of its partitions.
        let prefix = format!("{name}:");
        let mut within = self.file_systems().filter(|(_, volume)| volume.name.starts_with(&prefix));
        match (within.next(), within.next()) {
            (Some((number, _)), None) => Ok(number),
            _ => Err(Error::BadRequest { what: format!("say which partition of {name}; {}", self.all()) }),
        }
    }

    fn only(&self) -> Result<usize, Error> {
        let mut all = self.file_systems();
        match (all.next(), all.next()) {
            (Some((number, _)), None) => Ok(number),
            (None, _) => {
                Err(Error::BadRequest { what: "no file system that is known is on the point's disks".to_owned() })
            }
            _ => Err(Error::BadRequest { what: format!("say on which volume; {}", self.all()) }),
        }
    }

    fn all(&self) -> String {
        let names: Vec<&str> = self.file_systems().map(|(_, volume)| volume.name.as_str()).collect();
        if names.is_empty() {
            "no file system is known".to_owned()
        } else {
            format!("file systems are on {}", names.join(", "))
        }
    }
}

/// The images of a point that a guest sees as disks.
///
/// # Errors
/// [`Error::NoMachineInPoint`].
pub fn disk_images(point: &Point) -> Result<Vec<&StoredImage>, Error> {
    if point.extra.is_null() {
        return Ok(point.images.iter().collect());
    }
    let machine = MachinePoint::of(point)?;
    let is_disk = |image: &&StoredImage| {
        image.label != NO_DISK && machine.disks.iter().any(|disk| disk.disk.as_str() == image.label)
    };
    Ok(point.images.iter().filter(is_disk).collect())
}

/// Disks that are the same in two points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SameDisks {
    /// Their names.
    pub disks: Vec<String>,
    /// Whether these are all that either has.
    pub all: bool,
}

/// Which disks did not change at all between two points: their trees have the same root.
///
/// # Errors
/// [`Error::NoMachineInPoint`].
pub fn same_disks(before: &Point, after: &Point) -> Result<SameDisks, Error> {
    let (old, new) = (disk_images(before)?, disk_images(after)?);
    let same = |image: &&&StoredImage| {
        new.iter().any(|other| (&other.label, other.bytes, &other.root) == (&image.label, image.bytes, &image.root))
    };
    let disks: Vec<String> = old.iter().filter(same).map(|image| image.label.clone()).collect();
    let all = disks.len() == old.len() && disks.len() == new.len();
    Ok(SameDisks { disks, all })
}

/// A disk in a point.
struct PointDisk {
    name: String,
    reader: ImageReader,
}

impl Disk for PointDisk {
    fn len(&self) -> u64 {
        self.reader.bytes()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> keyframe_files::Result<()> {
        let end = at.saturating_add(into.len() as u64);
        self.reader.read_at(at, into).map_err(|error| keyframe_files::Error::Disk {
            disk: self.name.clone(),
            at,
            end,
            reason: Error::Repository(error).told(),
        })
    }
}

/// What the reader's process does: its standard input is the socket.
///
/// # Errors
/// When it cannot be locked in.
pub fn read() -> Result<(), Error> {
    // SAFETY: this process was started for this, with one end of a socket as its standard input; nobody else uses that.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    keyframe_files::reader::serve(UnixStream::from(socket)).or_io("serve", Path::new("standard input"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_or_without_its_volume() {
        let parse = |text: &str| FileRef::parse(OsStr::new(text)).map(|file| (file.volume, file.path));
        let is = |volume: Option<&str>, path: &[u8]| (volume.map(str::to_owned), path.to_vec());
        assert_eq!(parse("/etc/a:/b").unwrap(), is(None, b"/etc/a:/b"));
        assert_eq!(parse("disk0:/etc").unwrap(), is(Some("disk0"), b"/etc"));
        assert_eq!(parse("disk0:2:/etc").unwrap(), is(Some("disk0:2"), b"/etc"));
        assert_eq!(parse("disk0:2:").unwrap(), is(Some("disk0:2"), b"/"));
        assert_eq!(parse("vg0/root:/x").unwrap(), is(Some("vg0/root"), b"/x"));
        for bad in ["", ":", "etc", "disk0:etc", ":/etc", "disk0:2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
