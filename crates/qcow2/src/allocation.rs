//! What a layer holds: the parts of the guest's disk that are allocated in this file.
//!
//! An overlay's allocation is the list of changes since it was put on top: what a backup of the
//! difference has to read. Parts that are not listed are looked up in the backing file, or are zeros
//! where there is none.

use keyframe_types::ByteLen;

use crate::entry::Cluster;
use crate::error::Result;
use crate::image::Image;
use crate::source::ReadAt;
use crate::tables::{Slice, Tables};
use crate::units::GuestOffset;

/// Subclusters of a cluster.
pub(crate) const SUBCLUSTERS: u64 = 32;

/// How a part of the disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// As it is.
    Data,
    /// Compressed.
    Compressed,
    /// Not at all: it reads as zeros, whatever the backing file has.
    Zero,
}

/// A part of the guest's disk that this layer decides. Never empty, never beyond the disk's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub start: GuestOffset,
    /// How long it is.
    pub len: ByteLen,
    /// How it is stored.
    pub kind: ExtentKind,
}

impl Extent {
    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> GuestOffset {
        GuestOffset::new(self.start.bytes().saturating_add(self.len.bytes()))
    }
}

/// Bytes of the guest's disk in a layer, by how they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocated {
    /// As they are.
    pub data: ByteLen,
    /// Compressed: their length when decompressed.
    pub compressed: ByteLen,
    /// Zeros that take no room.
    pub zero: ByteLen,
}

impl Allocated {
    /// All together.
    #[must_use]
    pub fn total(&self) -> ByteLen {
        self.data + self.compressed + self.zero
    }
}

impl<S: ReadAt> Image<S> {
    /// The layer's extents in ascending order, neighbours of one kind joined.
    ///
    /// # Errors
    /// [`Error::Truncated`](crate::Error::Truncated), [`Error::Table`](crate::Error::Table) and
    /// [`Error::Io`](crate::Error::Io) for the L1 table. The iterator yields
    /// [`Error::Entry`](crate::Error::Entry), [`Error::Truncated`](crate::Error::Truncated) or
    /// [`Error::Io`](crate::Error::Io) where a table is damaged, and ends there.
    pub fn extents(&self) -> Result<Extents<'_, S>> {
        let tables = Tables::load(self.source(), self.header())?;
        let disk = self.header().virtual_size().bytes();
        Ok(Extents {
            image: self,
            tables,
            disk,
            slice: None,
            next: 0,
            pieces: Pieces::default(),
            open: None,
            done: false,
        })
    }

    /// How much of the guest's disk this layer decides.
    ///
    /// # Errors
    /// As [`Image::extents`] and its iterator.
    pub fn allocated(&self) -> Result<Allocated> {
        let mut sum = Allocated::default();
        for extent in self.extents()? {
            let extent = extent?;
            let part = match extent.kind {
                ExtentKind::Data => &mut sum.data,
                ExtentKind::Compressed => &mut sum.compressed,
                ExtentKind::Zero => &mut sum.zero,
            };
            *part = *part + extent.len;
        }
        Ok(sum)
    }
}

/// Iterator over a layer's extents.
#[derive(Debug)]
pub struct Extents<'a, S> {
    image: &'a Image<S>,
    tables: Tables,
    disk: u64,
    slice: Option<Slice>,
    /// Next cluster to look at.
    next: u64,
    /// What is left of the cluster looked at last.
    pieces: Pieces,
    /// Extent that may still grow.
    open: Option<Extent>,
    done: bool,
}

impl<S: ReadAt> Iterator for Extents<'_, S> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.step() {
                Ok(Some(extent)) => return Some(Ok(extent)),
                Ok(None) => {}
                Err(error) => {
                    self.done = true;
                    self.open = None;
                    return Some(Err(error));
                }
            }
        }
        self.open.take().map(Ok)
    }
}

impl<S: ReadAt> Extents<'_, S> {
    /// One piece further; the extent that it ended, if any.
    fn step(&mut self) -> Result<Option<Extent>> {
        if let Some(piece) = self.pieces.next() {
            return Ok(self.join(piece));
        }
        if self.next >= self.tables.clusters() {
            self.done = true;
            return Ok(None);
        }
        let id = self.tables.slice_of(self.next);
        let slice = match self.slice.take().filter(|slice| slice.id() == id) {
            Some(slice) => slice,
            None => self.tables.read(self.image.source(), id)?,
        };
        if slice.is_absent() {
            self.next = self.tables.end_of(&slice);
        } else {
            let cluster = self.tables.cluster(&slice, self.next)?;
            let bytes = self.image.header().cluster().bytes();
            self.pieces = Pieces::of(cluster, self.next * bytes, bytes);
            self.next += 1;
        }
        self.slice = Some(slice);
        Ok(None)
    }

    fn join(&mut self, piece: Extent) -> Option<Extent> {
        let room = self.disk.saturating_sub(piece.start.bytes());
        let len = piece.len.min(ByteLen::from_bytes(room));
        if len == ByteLen::ZERO {
            return None;
        }
        match &mut self.open {
            Some(open) if open.kind == piece.kind && open.end() == piece.start => {
                open.len = open.len + len;
                None
            }
            open => open.replace(Extent { len, ..piece }),
        }
    }
}

/// The allocated pieces of one cluster: itself, or its subclusters one by one.
#[derive(Debug, Default)]
struct Pieces {
    start: u64,
    piece_bytes: u64,
    allocated: u64,
    zero: u64,
    compressed: bool,
    at: u64,
}

impl Pieces {
    fn of(cluster: Cluster, start: u64, cluster_bytes: u64) -> Self {
        let whole = Self { start, piece_bytes: cluster_bytes, ..Self::default() };
        match cluster {
            Cluster::Unallocated => whole,
            Cluster::Zero => Self { zero: 1, ..whole },
            Cluster::Data(_) => Self { allocated: 1, ..whole },
            Cluster::Compressed { .. } => Self { allocated: 1, compressed: true, ..whole },
            Cluster::Mixed { allocated, zero, .. } => Self {
                piece_bytes: cluster_bytes / SUBCLUSTERS,
                allocated: allocated.into(),
                zero: zero.into(),
                ..whole
            },
        }
    }
}

impl Iterator for Pieces {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let left = (self.allocated | self.zero).checked_shr(u32::try_from(self.at).ok()?).unwrap_or(0);
        if left == 0 {
            return None;
        }
        let bit = self.at + u64::from(left.trailing_zeros());
        self.at = bit + 1;
        let kind = match (self.zero & (1 << bit) != 0, self.compressed) {
            (true, _) => ExtentKind::Zero,
            (false, true) => ExtentKind::Compressed,
            (false, false) => ExtentKind::Data,
        };
        let start = GuestOffset::new(self.start + bit * self.piece_bytes);
        Some(Extent { start, len: ByteLen::from_bytes(self.piece_bytes), kind })
    }
}
