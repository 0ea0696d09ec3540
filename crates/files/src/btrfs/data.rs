//! Bytes of files: in the tree, in extents, compressed or not, and holes.

use std::io::Read as _;
use std::sync::{Arc, PoisonError};

use super::Btrfs;
use super::lzo;
use super::tree::{Go, Key};
use crate::bytes::Fields as _;
use crate::error::{Result, damaged, unsupported};
use crate::fs::Node;

const EXTENT_DATA: u8 = 108;
/// A compressed extent has at most 128 KiB; more is nobody's.
const COMPRESSED_MOST: u64 = 1 << 20;

/// An extent that was decompressed last: files are read in order.
pub(super) struct Decompressed {
    logical: u64,
    bytes: Arc<Vec<u8>>,
}

/// Where an extent's bytes are.
enum Place {
    Hole,
    Here(Arc<Vec<u8>>, u64),
    Disk(u64),
}

impl Btrfs {
    /// Fills a buffer from a file of so many bytes; what no extent covers is zero.
    pub(super) fn read_extents(&self, node: Node, size: u64, at: u64, into: &mut [u8]) -> Result<usize> {
        let len = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..len).unwrap_or_default();
        into.fill(0);
        let (end, tree) = (at + len as u64, self.tree(node.tree)?);
        let first = Key::new(node.number, EXTENT_DATA, at);
        // The byte may be in the extent that begins before it.
        let before = self.nodes.last_before(tree, first)?;
        let from = before.filter(|key| (key.object, key.kind) == (node.number, EXTENT_DATA)).unwrap_or(first);
        self.nodes.walk(tree, from, &mut |key, item| {
            if (key.object, key.kind) != (node.number, EXTENT_DATA) || key.offset >= end {
                return Ok(Go::Stop);
            }
            let count = if item.u8(20)? == 0 { item.le64(8)? } else { item.le64(45)? };
            let (start, stop) = (key.offset.max(at), key.offset.saturating_add(count).min(end));
            if start < stop {
                let target = into.get_mut((start - at) as usize..(stop - at) as usize).unwrap_or_default();
                self.fill(item, start - key.offset, target)?;
            }
            Ok(Go::On)
        })?;
        Ok(len)
    }

    /// Fills from one extent, so many bytes behind its beginning.
    fn fill(&self, item: &[u8], ahead: u64, into: &mut [u8]) -> Result<()> {
        match self.place(item)? {
            Place::Hole => Ok(()),
            Place::Disk(logical) => {
                let at = logical.checked_add(ahead).ok_or_else(|| damaged("a btrfs extent lies behind every disk"))?;
                self.nodes.chunks.read(at, into)
            }
            Place::Here(bytes, start) => {
                let from = usize::try_from(start.saturating_add(ahead)).unwrap_or(usize::MAX);
                let source = bytes.get(from..).unwrap_or_default();
                // The end of the last sector may be missing: zeros, as the kernel has it.
                let len = source.len().min(into.len());
                into.get_mut(..len).unwrap_or_default().copy_from_slice(source.get(..len).unwrap_or_default());
                Ok(())
            }
        }
    }

    fn place(&self, item: &[u8]) -> Result<Place> {
        let (raw_bytes, compression) = (item.le64(8)?, item.u8(16)?);
        if item.u8(17)? != 0 {
            return Err(unsupported("encrypted by the guest"));
        }
        if compression != 0 && raw_bytes > COMPRESSED_MOST {
            return Err(damaged("a compressed btrfs extent is too long"));
        }
        match item.u8(20)? {
            0 => {
                let raw = item.from(21)?;
                let bytes = if compression == 0 { raw.to_vec() } else { self.decompress(compression, raw, raw_bytes)? };
                Ok(Place::Here(Arc::new(bytes), 0))
            }
            1 => {
                let (logical, stored, ahead) = (item.le64(21)?, item.le64(29)?, item.le64(37)?);
                match (logical, compression) {
                    (0, _) => Ok(Place::Hole),
                    (_, 0) => Ok(Place::Disk(logical.saturating_add(ahead))),
                    _ => Ok(Place::Here(self.compressed(logical, stored, compression, raw_bytes)?, ahead)),
                }
            }
            // Room that was set aside and not written yet.
            2 => Ok(Place::Hole),
            other => Err(damaged(format!("a btrfs extent of type {other}"))),
        }
    }

    fn compressed(&self, logical: u64, stored: u64, compression: u8, raw_bytes: u64) -> Result<Arc<Vec<u8>>> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*last()
            && known.logical == logical
        {
            return Ok(Arc::clone(&known.bytes));
        }
        if stored > COMPRESSED_MOST {
            return Err(damaged("a compressed btrfs extent is too long"));
        }
        let mut raw = vec![0; stored as usize];
        self.nodes.chunks.read(logical, &mut raw)?;
        let bytes = Arc::new(self.decompress(compression, &raw, raw_bytes)?);
        *last() = Some(Decompressed { logical, bytes: Arc::clone(&bytes) });
        Ok(bytes)
    }

    fn decompress(&self, compression: u8, raw: &[u8], most: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let broken = |error: std::io::Error| damaged(format!("a compressed btrfs extent: {error}"));
        match compression {
            1 => {
                flate2::read::ZlibDecoder::new(raw).take(most).read_to_end(&mut out).map_err(broken)?;
            }
            2 => return lzo::extent(raw, self.sector, most as usize),
            3 => {
                let decoder = zstd::stream::read::Decoder::new(raw).map_err(broken)?.single_frame();
                decoder.take(most).read_to_end(&mut out).map_err(broken)?;
            }
            other => return Err(unsupported(format!("btrfs' compression {other}"))),
        }
        Ok(out)
    }
}
