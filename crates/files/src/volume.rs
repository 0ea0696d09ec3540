//! What is on disks: partitions, logical volumes, file systems.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, Window, read_vec};
use crate::error::{Error, Result, unsupported};
use crate::ext4::{self, Ext4};
use crate::fs::FileSystem;
use crate::partition::{self, Scheme};
use crate::{btrfs, fat, lvm, ntfs, xfs};

/// What something on a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// Windows' own.
    Ntfs,
    /// FAT of 12, 16 or 32 bits.
    Fat,
    /// exFAT.
    ExFat,
    /// A part of a volume group.
    PhysicalVolume,
    /// Encrypted by the guest.
    Luks,
    /// Pages that were swapped out.
    Swap,
    /// A partition table, and nothing else of its own.
    Table(Scheme),
    /// Nothing that is known.
    Unknown,
}

impl Content {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ntfs => "ntfs",
            Self::Fat => "fat",
            Self::ExFat => "exfat",
            Self::PhysicalVolume => "lvm",
            Self::Luks => "luks",
            Self::Swap => "swap",
            Self::Table(Scheme::Gpt) => "gpt",
            Self::Table(Scheme::Mbr) => "mbr",
            Self::Unknown => "unknown",
        }
    }

    /// Whether files can be had of it.
    #[must_use]
    pub fn is_file_system(self) -> bool {
        matches!(self, Self::Ext4 | Self::Xfs | Self::Btrfs | Self::Ntfs | Self::Fat)
    }
}

/// A disk, a partition, or a logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// `DISK`, `DISK:PARTITION` or `GROUP/VOLUME`.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// What it is.
    pub content: Content,
    /// The name that a partition table gives it.
    pub title: String,
    /// What is odd about it.
    pub notes: Vec<String>,
}

/// The same with its bytes.
pub struct Volume {
    /// What is told of it.
    pub info: VolumeInfo,
    disk: Result<Arc<dyn Disk>>,
}

/// Finds everything on these disks, in their order; logical volumes at the end.
///
/// # Errors
/// [`Error::Disk`]; what is damaged is shown as unknown.
pub fn scan(disks: &[(String, Arc<dyn Disk>)]) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for (name, disk) in disks {
        scan_disk(name, disk, &mut volumes)?;
    }
    let mut physical = Vec::new();
    for volume in volumes.iter_mut().filter(|volume| volume.info.content == Content::PhysicalVolume) {
        let Ok(disk) = &volume.disk else { continue };
        match lvm::Physical::open(Arc::clone(disk)) {
            Ok(found) => physical.push(found),
            Err(error @ Error::Disk { .. }) => return Err(error),
            Err(error) => volume.info.notes.push(error.to_string()),
        }
    }
    for logical in lvm::volumes(&physical) {
        volumes.push(volume(logical.name, logical.disk, String::new())?);
    }
    Ok(volumes)
}

fn scan_disk(name: &str, disk: &Arc<dyn Disk>, volumes: &mut Vec<Volume>) -> Result<()> {
    let mut whole = volume(name.to_owned(), Ok(Arc::clone(disk)), String::new())?;
    // A file system's boot sector looks like a partition table to who looks carelessly.
    let table = if whole.info.content.is_file_system() && whole.info.content != Content::Ext4 {
        None
    } else {
        partition::read(&**disk)?
    };
    let Some(table) = table else {
        volumes.push(whole);
        return Ok(());
    };
    whole.info.content = Content::Table(table.scheme);
    whole.info.notes = table.notes;
    volumes.push(whole);
    for part in table.partitions {
        let window: Arc<dyn Disk> = Arc::new(Window::new(Arc::clone(disk), part.start, part.len));
        volumes.push(volume(format!("{name}:{}", part.number), Ok(window), part.name)?);
    }
    Ok(())
}

fn volume(name: String, disk: Result<Arc<dyn Disk>>, title: String) -> Result<Volume> {
    let (bytes, content, notes) = match &disk {
        Ok(disk) => (disk.len(), detect(&**disk)?, Vec::new()),
        Err(error) => (0, Content::Unknown, vec![error.to_string()]),
    };
    Ok(Volume { info: VolumeInfo { name, bytes, content, title, notes }, disk })
}

/// Says by their marks what bytes are.
fn detect(disk: &dyn Disk) -> Result<Content> {
    let len = usize::try_from(disk.len()).unwrap_or(usize::MAX).min(0x1_1000);
    let start = match read_vec(disk, 0, len) {
        Ok(start) => start,
        Err(Error::Damaged { .. }) => return Ok(Content::Unknown),
        Err(error) => return Err(error),
    };
    let has = |at: usize, mark: &[u8]| start.get(at..at + mark.len()) == Some(mark);
    Ok(match () {
        () if has(0, b"XFSB") => Content::Xfs,
        () if has(0, b"LUKS\xba\xbe") => Content::Luks,
        () if has(3, b"NTFS    ") => Content::Ntfs,
        () if has(3, b"EXFAT   ") => Content::ExFat,
        () if has(0x1_0040, b"_BHRfS_M") => Content::Btrfs,
        () if lvm::is_there(&start) => Content::PhysicalVolume,
        () if ext4::is_there(&start) => Content::Ext4,
        () if has(4086, b"SWAPSPACE2") => Content::Swap,
        () if fat::is_there(&start) => Content::Fat,
        () => Content::Unknown,
    })
}

impl Volume {
    /// Opens the file system on it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none that is known.
    pub fn open(&self) -> Result<Box<dyn FileSystem>> {
        let disk = self.disk.clone()?;
        Ok(match self.info.content {
            Content::Ext4 => Box::new(Ext4::open(disk)?),
            Content::Xfs => Box::new(xfs::Xfs::open(disk)?),
            Content::Btrfs => Box::new(btrfs::Btrfs::open(disk)?),
            Content::Ntfs => Box::new(ntfs::Ntfs::open(disk)?),
            Content::Fat => Box::new(fat::Fat::open(disk)?),
            Content::Luks => return Err(unsupported("a volume that the guest encrypts (LUKS)")),
            other => return Err(unsupported(format!("{} has no file system ({})", self.info.name, other.as_str()))),
        })
    }
}
