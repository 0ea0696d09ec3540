//! L1 and L2 tables: guest offset to cluster.
//!
//! The L1 table is loaded whole (32 MiB at most; 16 KiB for 1 TiB of 64 KiB clusters). L2 tables are
//! read in slices of 4 KiB at most, so that following a chain of a thousand layers costs little
//! memory. How often tables are read is bounded by the length of the file: an image whose L1 table
//! points to more L2 tables than the file has clusters is refused.

use crate::entry::{Cluster, Decoder};
use crate::error::{Error, Result, io};
use crate::header::{Header, L2Shape};
use crate::source::{ReadAt, read_exact};
use crate::units::{ClusterSize, GuestOffset, HostOffset};

/// Bytes of an L2 table read at once.
const SLICE_BYTES: u64 = 4096;

/// The tables of one image.
#[derive(Debug)]
pub(crate) struct Tables {
    l1: Vec<u64>,
    l1_at: HostOffset,
    decoder: Decoder,
    cluster: ClusterSize,
    shape: L2Shape,
    slice_bytes: u64,
    /// Clusters of the guest's disk, the last perhaps in part.
    clusters: u64,
}

/// A part of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceId(u64);

/// Its entries; `None` where there is no L2 table.
#[derive(Debug)]
pub(crate) struct Slice {
    id: SliceId,
    entries: Option<(HostOffset, Vec<u8>)>,
}

impl Slice {
    pub(crate) fn id(&self) -> SliceId {
        self.id
    }

    /// Whether nothing is allocated because there is no L2 table.
    pub(crate) fn is_absent(&self) -> bool {
        self.entries.is_none()
    }
}

impl Tables {
    /// Loads the L1 table as far as it maps the guest's disk.
    pub(crate) fn load(source: &(impl ReadAt + ?Sized), header: &Header) -> Result<Self> {
        let file_bytes = source.byte_len().map_err(io("read the length of the file"))?;
        let cluster = header.cluster();
        let entries = header.virtual_size().bytes().div_ceil(header.l2_covers().bytes());
        let l1_at = header.l1().at;
        let mut bytes = vec![0; usize::try_from(entries.saturating_mul(8)).unwrap_or(usize::MAX)];
        read_exact(source, &mut bytes, l1_at, "the L1 table")?;
        let l1: Vec<u64> = bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
        let tables = l1.iter().filter(|&&entry| entry != 0).count() as u64;
        if tables > cluster.count_for(file_bytes) {
            let len_bytes = tables << cluster.bits();
            return Err(Error::Table {
                table: "L2 tables",
                at: l1_at,
                len_bytes,
                rule: "are more than the file has clusters",
            });
        }
        Ok(Self {
            l1,
            l1_at,
            decoder: Decoder::new(header, file_bytes),
            cluster,
            shape: header.l2_shape(),
            slice_bytes: cluster.bytes().min(SLICE_BYTES),
            clusters: cluster.count_for(header.virtual_size().bytes()),
        })
    }

    /// Clusters of the guest's disk.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// The slice that maps this cluster, which must be one of the disk's.
    pub(crate) fn slice_of(&self, cluster: u64) -> SliceId {
        SliceId(cluster / self.clusters_per_slice())
    }

    /// The first cluster behind a slice; behind its whole L2 table where that is absent.
    pub(crate) fn end_of(&self, slice: &Slice) -> u64 {
        let per = if slice.is_absent() { self.slices_per_table() } else { 1 };
        (slice.id.0 / per + 1) * per * self.clusters_per_slice()
    }

    /// Reads a slice.
    pub(crate) fn read(&self, source: &(impl ReadAt + ?Sized), id: SliceId) -> Result<Slice> {
        let index = id.0 / self.slices_per_table();
        let entry = usize::try_from(index).ok().and_then(|index| self.l1.get(index)).copied().unwrap_or(0);
        let table = self.decoder.l1(entry).map_err(|rule| Error::Entry {
            table: "L1",
            entry,
            at: HostOffset::new(self.l1_at.bytes() + index * 8),
            guest: self.guest(id.0 * self.clusters_per_slice()),
            rule,
        })?;
        let Some(table) = table else { return Ok(Slice { id, entries: None }) };
        // Within the file: the decoder has checked the whole table.
        let at = HostOffset::new(table.bytes() + (id.0 % self.slices_per_table()) * self.slice_bytes);
        let mut bytes = vec![0; usize::try_from(self.slice_bytes).unwrap_or(usize::MAX)];
        read_exact(source, &mut bytes, at, "an L2 table")?;
        Ok(Slice { id, entries: Some((at, bytes)) })
    }

    /// The cluster of this number, which must be in this slice.
    pub(crate) fn cluster(&self, slice: &Slice, cluster: u64) -> Result<Cluster> {
        let Some((at, bytes)) = &slice.entries else { return Ok(Cluster::Unallocated) };
        let offset = (cluster % self.clusters_per_slice()) * self.shape.entry_bytes();
        let field = |offset: u64| {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
            rest.and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        let entry = field(offset);
        let bitmap = if self.shape == L2Shape::Extended { field(offset + 8) } else { 0 };
        self.decoder.l2(entry, bitmap).map_err(|rule| Error::Entry {
            table: "L2",
            entry,
            at: HostOffset::new(at.bytes() + offset),
            guest: self.guest(cluster),
            rule,
        })
    }

    fn clusters_per_slice(&self) -> u64 {
        self.slice_bytes / self.shape.entry_bytes()
    }

    fn slices_per_table(&self) -> u64 {
        self.cluster.bytes() / self.slice_bytes
    }

    fn guest(&self, cluster: u64) -> GuestOffset {
        GuestOffset::new(cluster << self.cluster.bits())
    }
}
