//! Reading the guest's bytes: of one layer, and through a chain.
//!
//! [`LayerReader`] reads what one file holds and says where it holds nothing; [`ChainReader`] asks the
//! next file there. Both keep a few table slices and one decompressed cluster, so one reader serves one
//! thread; open another for another.

use std::ops::Range;

use keyframe_types::ByteLen;

use crate::allocation::SUBCLUSTERS;
use crate::chain::{Content, Layer};
use crate::entry::Cluster;
use crate::error::{Error, Result};
use crate::header::{DataFile, Encryption};
use crate::image::Image;
use crate::inflate::inflate;
use crate::source::{ReadAt, open_file, read_up_to};
use crate::tables::{Slice, Tables};
use crate::units::{GuestOffset, HostOffset, VirtualSize};

/// Table slices kept. Four serve a reader that follows a few places at once.
const SLICES_KEPT: usize = 4;

/// Part of a buffer, in bytes from its start.
pub type Part = Range<usize>;

/// Reads one layer.
#[derive(Debug)]
pub struct LayerReader<S> {
    image: Image<S>,
    tables: Tables,
    /// Least recently used first.
    slices: Vec<Slice>,
    /// The compressed cluster read last: where it is stored, its bytes.
    inflated: Option<(HostOffset, Vec<u8>)>,
}

impl<S: ReadAt> LayerReader<S> {
    /// Reads this image.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for encrypted images and external data files; as
    /// [`Image::extents`](crate::Image::extents) for the L1 table.
    pub fn new(image: Image<S>) -> Result<Self> {
        if image.header().encryption() != Encryption::None {
            return Err(Error::Unreadable { why: "the image is encrypted" });
        }
        if image.header().data_file() != DataFile::Internal {
            return Err(Error::Unreadable { why: "the image keeps them in an external data file" });
        }
        let tables = Tables::load(image.source(), image.header())?;
        Ok(Self { image, tables, slices: Vec::new(), inflated: None })
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image<S> {
        &self.image
    }

    /// Fills a buffer from this layer. Where the layer holds nothing, the buffer is zeroed and the
    /// part is returned, in ascending order, neighbours joined.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Entry`], [`Error::Compressed`], [`Error::Truncated`] for damage;
    /// [`Error::Io`]. The buffer's content is undefined then.
    pub fn read_at(&mut self, at: GuestOffset, buf: &mut [u8]) -> Result<Vec<Part>> {
        check_range(at, buf.len(), self.image.header().virtual_size())?;
        let cluster_bytes = self.image.header().cluster().bytes();
        let mut holes = Vec::new();
        let mut done = 0;
        while done < buf.len() {
            let here = at.bytes() + done as u64;
            let within = here % cluster_bytes;
            let len = small(cluster_bytes - within).min(buf.len() - done);
            let Some(part) = buf.get_mut(done..done + len) else { break };
            let place = Place { cluster: here / cluster_bytes, within };
            self.read_cluster(place, part, |hole| join(&mut holes, done + hole.start..done + hole.end))?;
            done += len;
        }
        Ok(holes)
    }

    fn read_cluster(&mut self, place: Place, part: &mut [u8], mut hole: impl FnMut(Part)) -> Result<()> {
        match self.lookup(place.cluster)? {
            Cluster::Unallocated => {
                part.fill(0);
                hole(0..part.len());
            }
            Cluster::Zero => part.fill(0),
            Cluster::Data(at) => self.read_data(at, place.within, part)?,
            Cluster::Compressed { at, len } => self.read_compressed(at, len, place, part)?,
            Cluster::Mixed { at, allocated, zero } => {
                let sub = self.image.header().cluster().bytes() / SUBCLUSTERS;
                for (index, range) in pieces(place.within, part.len(), sub) {
                    let Some(piece) = part.get_mut(range.clone()) else { continue };
                    if allocated & (1 << index) != 0 {
                        self.read_data(at, place.within + range.start as u64, piece)?;
                        continue;
                    }
                    piece.fill(0);
                    if zero & (1 << index) == 0 {
                        hole(range);
                    }
                }
            }
        }
        Ok(())
    }

    fn lookup(&mut self, cluster: u64) -> Result<Cluster> {
        let id = self.tables.slice_of(cluster);
        let slice = match self.slices.iter().position(|slice| slice.id() == id) {
            Some(kept) => self.slices.remove(kept),
            None => self.tables.read(self.image.source(), id)?,
        };
        let found = self.tables.cluster(&slice, cluster);
        if self.slices.len() >= SLICES_KEPT {
            self.slices.remove(0);
        }
        self.slices.push(slice);
        found
    }

    /// A cluster at the end of the file may be stored in part; the rest is zeros, as QEMU has it.
    fn read_data(&self, at: HostOffset, within: u64, part: &mut [u8]) -> Result<()> {
        // Offsets have 56 bits and clusters 21: no overflow.
        let got = read_up_to(self.image.source(), part, HostOffset::new(at.bytes() + within))?;
        part.iter_mut().skip(got).for_each(|byte| *byte = 0);
        Ok(())
    }

    fn read_compressed(&mut self, at: HostOffset, len: u64, place: Place, part: &mut [u8]) -> Result<()> {
        if self.inflated.as_ref().is_none_or(|(kept, _)| *kept != at) {
            let header = self.image.header();
            let guest = GuestOffset::new(place.cluster << header.cluster().bits());
            let mut input = vec![0; small(len)];
            let got = read_up_to(self.image.source(), &mut input, at)?;
            let mut bytes = vec![0; small(header.cluster().bytes())];
            inflate(header.compression(), input.get(..got).unwrap_or_default(), &mut bytes)
                .map_err(|source| Error::Compressed { at, guest, source })?;
            self.inflated = Some((at, bytes));
        }
        let kept = self.inflated.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let from = kept.get(small(place.within)..).unwrap_or_default();
        part.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(())
    }
}

/// A cluster of the guest's disk, and bytes into it.
#[derive(Debug, Clone, Copy)]
struct Place {
    cluster: u64,
    within: u64,
}

/// One file of a chain, opened.
#[derive(Debug)]
enum Source {
    Qcow2(Box<LayerReader<std::fs::File>>),
    Raw(std::fs::File, VirtualSize),
}

/// Reads the guest's disk through all files of a chain.
#[derive(Debug)]
pub struct ChainReader {
    layers: Vec<Source>,
    disk: VirtualSize,
}

impl ChainReader {
    /// Opens every file of a chain as [`chain`](crate::chain()) found it, the topmost first.
    ///
    /// # Errors
    /// As [`Image::open`] and [`LayerReader::new`], within [`Error::Image`];
    /// [`Error::Unreadable`] for no layers at all.
    pub fn open(layers: &[Layer]) -> Result<Self> {
        let top = layers.first().ok_or(Error::Unreadable { why: "the chain has no layers" })?;
        let open = |layer: &Layer| match layer.content {
            Content::Qcow2(_) => {
                Image::open(&layer.path).and_then(LayerReader::new).map(|reader| Source::Qcow2(Box::new(reader)))
            }
            Content::Raw => open_file(&layer.path).map(|file| Source::Raw(file, layer.virtual_size)),
        };
        let opened = layers.iter().map(|layer| open(layer).map_err(|error| error.of_image(&layer.path)));
        Ok(Self { disk: top.virtual_size, layers: opened.collect::<Result<_>>()? })
    }

    /// Size of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> VirtualSize {
        self.disk
    }

    /// Fills a buffer with the guest's bytes.
    ///
    /// # Errors
    /// As [`LayerReader::read_at`].
    pub fn read_at(&mut self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        check_range(at, buf.len(), self.disk)?;
        let whole: Part = 0..buf.len();
        let mut wanted = vec![whole];
        for layer in &mut self.layers {
            let mut missing = Vec::new();
            for part in wanted {
                let start = at.bytes() + part.start as u64;
                let Some(bytes) = buf.get_mut(part.clone()) else { continue };
                for hole in layer.read(GuestOffset::new(start), bytes)? {
                    join(&mut missing, part.start + hole.start..part.start + hole.end);
                }
            }
            wanted = missing;
            if wanted.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl Source {
    /// Fills what this layer has; behind its end are zeros, which lower layers do not shine through.
    fn read(&mut self, at: GuestOffset, buf: &mut [u8]) -> Result<Vec<Part>> {
        let size = match self {
            Self::Qcow2(reader) => reader.image.header().virtual_size(),
            Self::Raw(_, size) => *size,
        };
        let inside = small(size.bytes().saturating_sub(at.bytes())).min(buf.len());
        let (buf, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        match self {
            Self::Qcow2(_) if buf.is_empty() => Ok(Vec::new()),
            Self::Qcow2(reader) => reader.read_at(at, buf),
            Self::Raw(file, _) => {
                let got = read_up_to(file, buf, HostOffset::new(at.bytes()))?;
                buf.iter_mut().skip(got).for_each(|byte| *byte = 0);
                Ok(Vec::new())
            }
        }
    }
}

fn check_range(at: GuestOffset, len: usize, disk: VirtualSize) -> Result<()> {
    let len_bytes = len as u64;
    match at.checked_add(len_bytes) {
        Some(end) if end.bytes() <= disk.bytes() => Ok(()),
        _ => Err(Error::OutOfRange { at, len_bytes, disk_bytes: ByteLen::bytes(disk.len()) }),
    }
}

fn join(parts: &mut Vec<Part>, part: Part) {
    match parts.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ => parts.push(part),
    }
}

/// The subclusters that a part of a cluster touches: number, and range in the part.
fn pieces(within: u64, len: usize, sub: u64) -> impl Iterator<Item = (u32, Part)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = within + done as u64;
        let start = done;
        done = len.min(start + small(sub - at % sub));
        Some((u32::try_from(at / sub).unwrap_or(0) % 32, start..done))
    })
}

/// A length below a buffer's or a cluster's.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
