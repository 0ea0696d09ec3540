//! Where logical addresses are on the one disk that is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::tree::{KEY_BYTES, Key};
use crate::bytes::Fields as _;
use crate::disk::{Disk, behind_end};
use crate::error::{Result, damaged, unsupported};

const CHUNK_ITEM: u8 = 228;
const RAID0: u64 = 0x8;
const RAID10: u64 = 0x40;
const RAID56: u64 = 0x180;
/// A disk with more chunks than this has more than 100 TiB.
const CHUNKS_MOST: usize = 1 << 20;

/// Chunks by their first logical byte: bytes, and where they are on the disk; nowhere if on others alone.
pub(super) struct Chunks {
    disk: Arc<dyn Disk>,
    device: u64,
    map: BTreeMap<u64, (u64, Option<u64>)>,
}

impl Chunks {
    pub(super) fn new(disk: Arc<dyn Disk>, device: u64) -> Self {
        Self { disk, device, map: BTreeMap::new() }
    }

    /// The chunks that are needed to read where the others are.
    pub(super) fn add_array(&mut self, array: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < array.len() {
            let key = Key::read(array.from(at)?)?;
            at += KEY_BYTES + self.add(key, array.from(at + KEY_BYTES)?)?;
        }
        Ok(())
    }

    /// Adds one; gives the bytes of its description.
    pub(super) fn add(&mut self, key: Key, item: &[u8]) -> Result<usize> {
        if key.kind != CHUNK_ITEM || self.map.len() >= CHUNKS_MOST {
            return Err(damaged("btrfs' chunks"));
        }
        let (len, profile, stripes) = (item.le64(0)?, item.le64(24)?, usize::from(item.le16(44)?));
        if key.offset.checked_add(len).is_none() {
            return Err(damaged("a btrfs chunk is longer than any disk"));
        }
        let striped = profile & (RAID0 | RAID10 | RAID56) != 0 && stripes > 1;
        if striped {
            return Err(unsupported("btrfs that spreads its data over several disks"));
        }
        let mut place = None;
        for n in 0..stripes {
            let stripe = item.part(48 + 32 * n, 32)?;
            if stripe.le64(0)? == self.device && place.is_none() {
                place = Some(stripe.le64(8)?);
            }
        }
        self.map.insert(key.offset, (len, place));
        Ok(48 + 32 * stripes)
    }

    /// Reads bytes by their logical address.
    pub(super) fn read(&self, logical: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let here = logical.checked_add(done as u64).ok_or_else(behind_end)?;
            let chunk = self.map.range(..=here).next_back();
            let chunk = chunk.filter(|(start, (len, _))| here - *start < *len);
            let (start, (len, place)) = chunk.ok_or_else(|| damaged(format!("btrfs address {here} is in no chunk")))?;
            let place = place.ok_or_else(|| unsupported("btrfs whose data are on a disk that is not in the point"))?;
            let within = here - start;
            let rest = into.get_mut(done..).unwrap_or_default();
            let part = usize::try_from(len - within).unwrap_or(usize::MAX).min(rest.len());
            let at = place.checked_add(within).ok_or_else(behind_end)?;
            self.disk.read_at(at, rest.get_mut(..part).ok_or_else(behind_end)?)?;
            done += part;
        }
        Ok(())
    }
}
