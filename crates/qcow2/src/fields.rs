//! The fields of a header, read by offset and checked one by one.

use keyframe_types::ByteLen;

use crate::backing::BackingName;
use crate::error::{Error, Result};
use crate::header::{Compression, Encryption, L1Table, MAGIC, Version, incompatible};
use crate::units::{ClusterSize, HostOffset, VirtualSize};

/// Length of a version 2 header.
pub(crate) const V2_BYTES: u64 = 72;
/// Shortest version 3 header.
pub(crate) const V3_MIN_BYTES: u64 = 104;

/// Largest L1 table. Source: `block/qcow2.h`, `QCOW_MAX_L1_SIZE`.
pub(crate) const L1_MAX_BYTES: u64 = 32 << 20;
/// Largest refcount table. Source: `block/qcow2.h`, `QCOW_MAX_REFTABLE_SIZE`.
const REFCOUNT_TABLE_MAX_BYTES: u64 = 8 << 20;
/// Most internal snapshots. Source: `block/qcow2.h`, `QCOW_MAX_SNAPSHOTS`.
const SNAPSHOTS_MAX: u32 = 65536;
/// Fixed part of an entry of the snapshot table.
const SNAPSHOT_ENTRY_MIN_BYTES: u64 = 40;

pub(crate) fn field(field: &'static str, at: u64, value: impl Into<u64>, rule: &'static str) -> Error {
    Error::Field { field, at, value: value.into(), rule }
}

/// The header's bytes, read by offset.
pub(crate) struct Fields<'a> {
    pub bytes: &'a [u8],
    pub file_bytes: u64,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let rest = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        rest.copied().ok_or(Error::Truncated {
            what: "the header",
            at: HostOffset::new(at as u64),
            need_bytes: N as u64,
            file_bytes: self.file_bytes,
        })
    }

    pub fn u32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    pub fn u64(&self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_be_bytes)
    }

    pub fn cluster(&self) -> Result<ClusterSize> {
        self.version()?;
        let bits = self.u32(20)?;
        ClusterSize::from_bits(bits).ok_or_else(|| field("cluster_bits", 20, bits, "must be 9 to 21"))
    }

    pub fn version(&self) -> Result<Version> {
        if !self.bytes.starts_with(&MAGIC) {
            return Err(Error::NotQcow2);
        }
        match self.u32(4)? {
            2 => Ok(Version::V2),
            3 => Ok(Version::V3),
            version => Err(Error::Version { version }),
        }
    }

    pub fn header_length(&self, version: Version, cluster: ClusterSize) -> Result<u64> {
        let length = match version {
            Version::V2 => V2_BYTES,
            Version::V3 => u64::from(self.u32(100)?),
        };
        if version == Version::V3 && length < V3_MIN_BYTES {
            return Err(field("header_length", 100, length, "must be at least 104"));
        }
        if !length.is_multiple_of(8) {
            return Err(field("header_length", 100, length, "must be a multiple of 8"));
        }
        if length > cluster.bytes() {
            return Err(field("header_length", 100, length, "exceeds the first cluster"));
        }
        Ok(length)
    }

    pub fn virtual_size(&self) -> Result<VirtualSize> {
        let bytes = self.u64(24)?;
        // QEMU rounds down to whole sectors.
        VirtualSize::new(ByteLen::from_bytes(bytes & !(crate::units::SECTOR_BYTES - 1)))
            .map_err(|_| field("size", 24, bytes, "must be below 8 EiB"))
    }

    pub fn encryption(&self) -> Result<Encryption> {
        match self.u32(32)? {
            0 => Ok(Encryption::None),
            1 => Ok(Encryption::Aes),
            2 => Ok(Encryption::Luks),
            other => Err(field("crypt_method", 32, other, "must be 0, 1 or 2")),
        }
    }

    pub fn compression(&self, length: u64, incompatible: u64) -> Result<Compression> {
        let kind = if length > V3_MIN_BYTES { self.array::<1>(104)?[0] } else { 0 };
        let flagged = incompatible & incompatible::COMPRESSION != 0;
        match (flagged, kind) {
            (false, 0) => Ok(Compression::Deflate),
            (true, 1) => Ok(Compression::Zstd),
            (true, 0) => Err(field("compression_type", 104, kind, "must not be 0 when the feature bit is set")),
            (false, _) => Err(field("compression_type", 104, kind, "must be 0 unless the feature bit is set")),
            (true, _) => Err(field("compression_type", 104, kind, "is not known")),
        }
    }

    pub fn l1(&self, cluster: ClusterSize) -> Result<L1Table> {
        let table = L1Table { entries: self.u32(36)?, at: HostOffset::new(self.u64(40)?) };
        self.check_table("L1 table", table.at, u64::from(table.entries) * 8, L1_MAX_BYTES, cluster)?;
        Ok(table)
    }

    pub fn check_refcount_table(&self, cluster: ClusterSize) -> Result<()> {
        let (at, clusters) = (HostOffset::new(self.u64(48)?), self.u32(56)?);
        if clusters == 0 {
            return Err(field("refcount_table_clusters", 56, clusters, "must not be 0"));
        }
        let len = u64::from(clusters) << cluster.bits();
        self.check_table("refcount table", at, len, REFCOUNT_TABLE_MAX_BYTES, cluster)
    }

    pub fn snapshots(&self, cluster: ClusterSize) -> Result<u32> {
        let (count, at) = (self.u32(60)?, HostOffset::new(self.u64(64)?));
        if count > SNAPSHOTS_MAX {
            return Err(field("nb_snapshots", 60, count, "must not exceed 65536"));
        }
        let len = u64::from(count) * SNAPSHOT_ENTRY_MIN_BYTES;
        self.check_table("snapshot table", at, len, len, cluster).map(|()| count)
    }

    /// An empty table may stand anywhere.
    fn check_table(
        &self,
        table: &'static str,
        at: HostOffset,
        len_bytes: u64,
        max_bytes: u64,
        cluster: ClusterSize,
    ) -> Result<()> {
        let fail = |rule| Err(Error::Table { table, at, len_bytes, rule });
        if len_bytes == 0 {
            return Ok(());
        }
        if len_bytes > max_bytes {
            return fail("is larger than the format allows");
        }
        if !cluster.is_aligned(at.bytes()) {
            return fail("does not start at a cluster");
        }
        if at.bytes() == 0 {
            return fail("is where the header is");
        }
        match at.checked_add(len_bytes) {
            Some(end) if end.bytes() <= self.file_bytes => Ok(()),
            _ => fail("reaches beyond the end of the file"),
        }
    }

    /// Where in the first cluster the backing file's name stands.
    pub fn backing(&self, cluster: ClusterSize) -> Result<Option<std::ops::Range<u64>>> {
        let at = self.u64(8)?;
        if at == 0 {
            return Ok(None);
        }
        let len = self.u32(16)?;
        if at > cluster.bytes() {
            return Err(field("backing_file_offset", 8, at, "lies outside the first cluster"));
        }
        if u64::from(len) > (cluster.bytes() - at).min(crate::backing::NAME_MAX as u64) {
            return Err(field("backing_file_size", 16, len, "exceeds 1023 bytes or the first cluster"));
        }
        Ok(Some(at..at + u64::from(len)))
    }

    pub fn backing_name(&self, area: std::ops::Range<u64>) -> Result<BackingName> {
        let range = usize::try_from(area.start).ok().zip(usize::try_from(area.end).ok());
        let bytes = range.and_then(|(start, end)| self.bytes.get(start..end)).ok_or(Error::Truncated {
            what: "the backing file name",
            at: HostOffset::new(area.start),
            need_bytes: area.end - area.start,
            file_bytes: self.file_bytes,
        })?;
        Ok(BackingName::from_header(bytes))
    }
}
