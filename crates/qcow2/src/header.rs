//! The header and its extensions: parsed, bounded, checked against the length of the file.
//!
//! What is checked here is what QEMU checks when it opens an image (`block/qcow2.c`, `qcow2_do_open`),
//! and that tables lie within the file. What only some readers cannot do (encryption, external data
//! files) is told by a value, not refused.

use keyframe_types::ByteLen;

use crate::backing::BackingName;
use crate::error::{Error, Result, io};
use crate::extension::{self, Extensions};
use crate::fields::{Fields, V3_MIN_BYTES, field};
use crate::source::{ReadAt, read_up_to};
use crate::units::{ClusterSize, HostOffset, VirtualSize};

pub use crate::extension::Bitmaps;

/// First four bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bits of `incompatible_features`.
pub(crate) mod incompatible {
    pub(crate) const DIRTY: u64 = 1 << 0;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Bits of `autoclear_features`.
pub(crate) mod autoclear {
    pub(crate) const BITMAPS: u64 = 1 << 0;
    pub(crate) const RAW_DATA_FILE: u64 = 1 << 1;
}

/// The format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `compat=0.10`.
    V2,
    /// `compat=1.1`.
    V3,
}

/// How the guest's bytes are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// AES-CBC, obsolete.
    Aes,
    /// LUKS.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate. QEMU calls it zlib.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// Shape of an L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L2Shape {
    /// 64 bits: one cluster.
    Standard,
    /// 128 bits: one cluster of 32 subclusters.
    Extended,
}

impl L2Shape {
    /// Bytes of one entry.
    #[must_use]
    pub const fn entry_bytes(self) -> u64 {
        match self {
            Self::Standard => 8,
            Self::Extended => 16,
        }
    }
}

/// The active L1 table: where, and how many entries of 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Table {
    /// Where it starts.
    pub at: HostOffset,
    /// Its entries.
    pub entries: u32,
}

/// Where the guest's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataFile {
    /// In the image itself.
    Internal,
    /// In a file of their own.
    External {
        /// Its name, where the header tells it.
        name: Option<BackingName>,
        /// Whether that file is the disk, byte for byte.
        raw: bool,
    },
}

/// The header of an image, with its extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    version: Version,
    cluster: ClusterSize,
    virtual_size: VirtualSize,
    encryption: Encryption,
    compression: Compression,
    l1: L1Table,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    refcount_order: u32,
    snapshots: u32,
    length: u64,
    backing: Option<BackingName>,
    backing_at: HostOffset,
    extensions: Extensions,
}

impl Header {
    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`Error::NotQcow2`], [`Error::Version`], [`Error::Field`], [`Error::UnknownFeatures`],
    /// [`Error::Extension`], [`Error::Table`], [`Error::Truncated`], [`Error::Io`].
    pub fn read(source: &(impl ReadAt + ?Sized)) -> Result<Self> {
        let file_bytes = source.byte_len().map_err(io("read the length of the file"))?;
        let mut start = [0; V3_MIN_BYTES as usize];
        let got = read_up_to(source, &mut start, HostOffset::new(0))?;
        let start = Fields { bytes: start.get(..got).unwrap_or_default(), file_bytes };
        let cluster = start.cluster()?;
        // The header never exceeds the first cluster, which is 2 MiB at most.
        let mut bytes = vec![0; usize::try_from(cluster.bytes().min(file_bytes)).unwrap_or(0)];
        let got = read_up_to(source, &mut bytes, HostOffset::new(0))?;
        bytes.truncate(got);
        Self::parse(&Fields { bytes: &bytes, file_bytes }, cluster)
    }

    fn parse(fields: &Fields<'_>, cluster: ClusterSize) -> Result<Self> {
        let version = fields.version()?;
        let length = fields.header_length(version, cluster)?;
        let feature = |at| if version == Version::V3 { fields.u64(at) } else { Ok(0) };
        let (incompatible, compatible, autoclear) = (feature(72)?, feature(80)?, feature(88)?);
        let backing_area = fields.backing(cluster)?;
        let extensions_end = match &backing_area {
            Some(area) => area.start,
            None => cluster.bytes(),
        };
        let unknown = incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let names = extension::feature_names(fields.bytes, length, extensions_end, unknown);
            return Err(Error::UnknownFeatures { names });
        }
        let compression = fields.compression(length, incompatible)?;
        let encryption = fields.encryption()?;
        let refcount_order = if version == Version::V3 { fields.u32(96)? } else { 4 };
        if refcount_order > 6 {
            return Err(field("refcount_order", 96, refcount_order, "must not exceed 6"));
        }
        let extended = incompatible & incompatible::EXTENDED_L2 != 0;
        if extended && cluster.bits() < 14 {
            return Err(field("cluster_bits", 20, cluster.bits(), "extended L2 entries need at least 14"));
        }
        let virtual_size = fields.virtual_size()?;
        fields.check_refcount_table(cluster)?;
        let l1 = fields.l1(cluster)?;
        let extensions = Extensions::parse(fields.bytes, length, extensions_end, cluster)?;
        let backing = backing_area.map(|area| fields.backing_name(area)).transpose()?;
        let header = Self {
            version,
            cluster,
            virtual_size,
            encryption,
            compression,
            l1,
            incompatible,
            compatible,
            autoclear,
            refcount_order,
            snapshots: fields.snapshots(cluster)?,
            length,
            backing,
            backing_at: HostOffset::new(fields.u64(8)?),
            extensions,
        };
        header.check_l1_covers_disk()?;
        header.check_bitmaps()?;
        Ok(header)
    }

    /// The format's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Size of a cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterSize {
        self.cluster
    }

    /// Size of the disk that the guest sees.
    #[must_use]
    pub fn virtual_size(&self) -> VirtualSize {
        self.virtual_size
    }

    /// How the guest's bytes are encrypted.
    #[must_use]
    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    /// How compressed clusters are compressed, if there are any.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The active L1 table. It lies within the file.
    #[must_use]
    pub fn l1(&self) -> L1Table {
        self.l1
    }

    /// Shape of L2 entries.
    #[must_use]
    pub fn l2_shape(&self) -> L2Shape {
        if self.has(incompatible::EXTENDED_L2) { L2Shape::Extended } else { L2Shape::Standard }
    }

    /// Bytes of the guest's disk that one L2 table maps.
    #[must_use]
    pub fn l2_covers(&self) -> ByteLen {
        let entries = self.cluster.bytes() / self.l2_shape().entry_bytes();
        ByteLen::from_bytes(entries << self.cluster.bits())
    }

    /// Width of a reference count, in bits.
    #[must_use]
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Number of internal snapshots.
    #[must_use]
    pub fn snapshots(&self) -> u32 {
        self.snapshots
    }

    /// Whether reference counts may be wrong because the image was not closed. Reading is fine.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.has(incompatible::DIRTY)
    }

    /// Whether QEMU found the image corrupt. It must not be written to but to repair it.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        self.has(incompatible::CORRUPT)
    }

    /// `compatible_features` as they stand.
    #[must_use]
    pub fn compatible_features(&self) -> u64 {
        self.compatible
    }

    /// `autoclear_features` as they stand.
    #[must_use]
    pub fn autoclear_features(&self) -> u64 {
        self.autoclear
    }

    /// Where the guest's bytes are.
    #[must_use]
    pub fn data_file(&self) -> DataFile {
        if !self.has(incompatible::DATA_FILE) {
            return DataFile::Internal;
        }
        let name = self.extensions.data_file.clone();
        DataFile::External { name, raw: self.autoclear & autoclear::RAW_DATA_FILE != 0 }
    }

    /// Name of the backing file.
    #[must_use]
    pub fn backing(&self) -> Option<&BackingName> {
        self.backing.as_ref()
    }

    /// Where extensions begin and must have ended, in the first cluster.
    pub(crate) fn extension_area(&self) -> std::ops::Range<u64> {
        let end = if self.backing.is_some() { self.backing_at.bytes() } else { self.cluster.bytes() };
        self.length..end
    }

    /// Format of the backing file as the header tells it, by QEMU's name.
    #[must_use]
    pub fn backing_format(&self) -> Option<&str> {
        self.extensions.backing_format.as_deref()
    }

    /// Bitmaps in the image, and whether they can be relied on.
    #[must_use]
    pub fn bitmaps(&self) -> Option<Bitmaps> {
        let consistent = self.autoclear & autoclear::BITMAPS != 0;
        self.extensions.bitmaps.map(|bitmaps| Bitmaps { consistent, ..bitmaps })
    }

    fn has(&self, bit: u64) -> bool {
        self.incompatible & bit != 0
    }

    fn check_l1_covers_disk(&self) -> Result<()> {
        let needed = self.virtual_size.bytes().div_ceil(self.l2_covers().bytes());
        if u64::from(self.l1.entries) < needed {
            return Err(field("l1_size", 36, self.l1.entries, "is too small for the virtual size"));
        }
        Ok(())
    }

    fn check_bitmaps(&self) -> Result<()> {
        if self.autoclear & autoclear::BITMAPS != 0 && self.extensions.bitmaps.is_none() {
            return Err(field(
                "autoclear_features",
                88,
                self.autoclear,
                "says bitmaps, but there is no such extension",
            ));
        }
        Ok(())
    }
}
