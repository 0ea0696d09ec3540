//! New images: what `qemu-img create -f qcow2` makes, in some 20 microseconds and one sync.
//!
//! Layout, in clusters: header, refcount table, refcount blocks, L1 table; nothing else is allocated.
//! For the usual sizes (one refcount block) the file is the very same, byte for byte, as that of
//! QEMU 10.0.
//!
//! Order and crash safety: the file is created exclusively, the tables are written, then the header,
//! then the file is synced, here or by the caller ([`Durability`]). A crash before the sync leaves a file that may or may not look like an
//! image; nothing refers to it yet, and whoever cleans up may delete it. The directory entry is the
//! caller's to sync (fsync of the directory), once for all files it makes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::backing::Backing;
use crate::error::{Error, Result, io};
use crate::extension::{BACKING_FORMAT, END, FEATURE_ENTRY_BYTES, FEATURE_NAMES};
use crate::fields::L1_MAX_BYTES;
use crate::header::{L2Shape, MAGIC, incompatible};
use crate::units::{ClusterSize, VirtualSize};

/// Permissions of a new image: a disk's content is its owner's.
const MODE: u32 = 0o600;
/// Header of ours: through `compression_type` and its padding.
const HEADER_BYTES: u32 = 112;
/// Reference counts of 16 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNT_BYTES: u64 = 2;

/// Whether clusters are divided into 32 subclusters that are allocated on their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Subclusters {
    /// They are not.
    #[default]
    Off,
    /// They are (`extended_l2=on`). Needs clusters of 16 KiB or more.
    On,
}

/// How a new image is laid out. The default is QEMU's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of a cluster.
    pub cluster: ClusterSize,
    /// Subclusters.
    pub subclusters: Subclusters,
    /// Who makes the file durable.
    pub durability: Durability,
}

/// Who makes a new file durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// The file is durable when the call returns.
    #[default]
    Synced,
    /// The caller will sync it, with fsync(2): beside other work, or many files at once.
    CallerSyncs,
}

/// Creates an empty image on top of another.
///
/// The backing name is stored as given: relative names count from the overlay's directory. That the
/// file exists is not checked. `size` is usually that of the backing image.
///
/// # Errors
/// [`Error::Io`] (`AlreadyExists` where there is such a file), [`Error::HeaderFull`],
/// [`Error::VirtualSize`], [`Error::ClusterSize`]; all within [`Error::Image`]. A file that was created
/// and could not be completed is removed.
pub fn create_overlay(path: &Path, backing: &Backing, size: VirtualSize, options: &CreateOptions) -> Result<()> {
    create_file(path, &Layout::new(size, options, Some(backing))?, options.durability)
        .map_err(|error| error.of_image(path))
}

/// Creates an empty image that stands alone.
///
/// # Errors
/// As [`create_overlay`].
pub fn create(path: &Path, size: VirtualSize, options: &CreateOptions) -> Result<()> {
    create_file(path, &Layout::new(size, options, None)?, options.durability).map_err(|error| error.of_image(path))
}

fn create_file(path: &Path, layout: &Layout, durability: Durability) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path).map_err(io("create it"))?;
    let written = write(&file, layout).and_then(|()| match durability {
        Durability::Synced => file.sync_all().map_err(io("sync it")),
        Durability::CallerSyncs => Ok(()),
    });
    if written.is_err() {
        // Ours, made a moment ago; if it cannot be removed either, the first error says more.
        let _removed = std::fs::remove_file(path);
    }
    written
}

fn write(file: &File, layout: &Layout) -> Result<()> {
    file.set_len(layout.file_bytes).map_err(io("set its length"))?;
    file.write_all_at(&layout.refcount_table(), layout.cluster.bytes()).map_err(io("write its refcount table"))?;
    file.write_all_at(&layout.refcounts(), layout.refcount_blocks_at()).map_err(io("write its refcounts"))?;
    file.write_all_at(&layout.header, 0).map_err(io("write its header"))
}

/// Where everything goes. Tables are kept as far as they are not zero.
struct Layout {
    cluster: ClusterSize,
    header: Vec<u8>,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    clusters: u64,
    file_bytes: u64,
}

impl Layout {
    fn new(size: VirtualSize, options: &CreateOptions, backing: Option<&Backing>) -> Result<Self> {
        let cluster = options.cluster;
        let shape = match options.subclusters {
            Subclusters::Off => L2Shape::Standard,
            Subclusters::On if cluster.bits() < 14 => {
                let bytes = cluster.bytes();
                return Err(Error::ClusterSize { bytes, rule: "subclusters need at least 16384" });
            }
            Subclusters::On => L2Shape::Extended,
        };
        let l2_covers = (cluster.bytes() / shape.entry_bytes()) << cluster.bits();
        let l1_bytes = size.bytes().div_ceil(l2_covers) * 8;
        if l1_bytes > L1_MAX_BYTES {
            let rule = "needs an L1 table larger than 32 MiB; take larger clusters";
            return Err(Error::VirtualSize { bytes: size.bytes(), rule });
        }
        let mut layout = Self {
            cluster,
            header: Vec::new(),
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            clusters: 0,
            file_bytes: 0,
        };
        layout.place(cluster.count_for(l1_bytes), l1_bytes);
        layout.header = layout.header(size, shape, l1_bytes / 8, backing)?;
        Ok(layout)
    }

    /// Refcounts count themselves: grow until they cover the file.
    fn place(&mut self, l1_clusters: u64, l1_bytes: u64) {
        loop {
            self.clusters = 1 + self.refcount_table_clusters + self.refcount_blocks + l1_clusters;
            let blocks = self.cluster.count_for(self.clusters * REFCOUNT_BYTES);
            let table = self.cluster.count_for(blocks * 8);
            if (blocks, table) == (self.refcount_blocks, self.refcount_table_clusters) {
                break;
            }
            (self.refcount_blocks, self.refcount_table_clusters) = (blocks, table);
        }
        self.file_bytes = self.l1_at() + l1_bytes;
    }

    fn refcount_blocks_at(&self) -> u64 {
        (1 + self.refcount_table_clusters) << self.cluster.bits()
    }

    fn l1_at(&self) -> u64 {
        self.refcount_blocks_at() + (self.refcount_blocks << self.cluster.bits())
    }

    fn refcount_table(&self) -> Vec<u8> {
        let block_at = |n| self.refcount_blocks_at() + (n << self.cluster.bits());
        (0..self.refcount_blocks).flat_map(|n| block_at(n).to_be_bytes()).collect()
    }

    fn refcounts(&self) -> Vec<u8> {
        (0..self.clusters).flat_map(|_| 1u16.to_be_bytes()).collect()
    }

    fn header(&self, size: VirtualSize, shape: L2Shape, l1_entries: u64, backing: Option<&Backing>) -> Result<Vec<u8>> {
        let format = backing.map(|backing| extension(BACKING_FORMAT, backing.format().as_str().as_bytes()));
        let format = format.unwrap_or_default();
        let name = backing.map(|backing| backing.name().as_bytes()).unwrap_or_default();
        let end = extension(END, &[]);
        let full = extension(FEATURE_NAMES, &feature_names());
        let fixed = HEADER_BYTES as usize + format.len() + end.len() + name.len();
        let room = usize::try_from(self.cluster.bytes()).unwrap_or(usize::MAX);
        if fixed > room {
            return Err(Error::HeaderFull { need_bytes: fixed as u64, cluster_bytes: room as u64 });
        }
        // Only for messages of programs that know less than this one; smallest clusters lack the room.
        let names = if fixed + full.len() <= room { full } else { Vec::new() };
        let name_at = HEADER_BYTES as usize + format.len() + names.len() + end.len();
        let backing_at = if backing.is_some() { name_at as u64 } else { 0 };
        let incompatible = if shape == L2Shape::Extended { incompatible::EXTENDED_L2 } else { 0 };

        let mut bytes = Vec::with_capacity(name_at + name.len());
        bytes.extend(MAGIC);
        bytes.extend(3u32.to_be_bytes());
        bytes.extend(backing_at.to_be_bytes());
        bytes.extend(small(name.len() as u64).to_be_bytes());
        bytes.extend(self.cluster.bits().to_be_bytes());
        bytes.extend(size.bytes().to_be_bytes());
        bytes.extend(0u32.to_be_bytes()); // not encrypted
        bytes.extend(small(l1_entries).to_be_bytes());
        bytes.extend(self.l1_at().to_be_bytes());
        bytes.extend(self.cluster.bytes().to_be_bytes()); // refcount table
        bytes.extend(small(self.refcount_table_clusters).to_be_bytes());
        bytes.extend([0; 12]); // no internal snapshots
        bytes.extend(incompatible.to_be_bytes());
        bytes.extend([0; 16]); // no compatible, no autoclear features
        bytes.extend(REFCOUNT_ORDER.to_be_bytes());
        bytes.extend(HEADER_BYTES.to_be_bytes());
        bytes.extend([0; 8]); // deflate, padding
        for part in [&format, &names, &end] {
            bytes.extend(part);
        }
        bytes.extend(name);
        Ok(bytes)
    }
}

/// Into a field of 32 bits. What is put there is bounded far below by the limits checked before.
fn small(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn extension(magic: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + data.len().next_multiple_of(8));
    bytes.extend(magic.to_be_bytes());
    bytes.extend(small(data.len() as u64).to_be_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// The table that QEMU 10.0 writes. Source: `block/qcow2.c`, `qcow2_update_header`.
fn feature_names() -> Vec<u8> {
    let table: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut bytes = Vec::with_capacity(table.len() * FEATURE_ENTRY_BYTES);
    for (kind, bit, name) in table {
        let start = bytes.len();
        bytes.extend([kind, bit]);
        bytes.extend(name.as_bytes());
        bytes.resize(start + FEATURE_ENTRY_BYTES, 0);
    }
    bytes
}
