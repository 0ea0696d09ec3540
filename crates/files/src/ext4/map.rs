//! Where a file's blocks are: extents, or the older trees of pointers.

use super::Ext4;
use super::inode::{Inode, Run};
use crate::bytes::Fields as _;
use crate::error::{Result, damaged};

const EXTENT_MAGIC: u16 = 0xf30a;
/// Trees of extents are at most this deep.
const DEPTH_MOST: u16 = 5;
/// An extent with more blocks than this has none written yet.
const WRITTEN_MOST: u16 = 0x8000;

impl Ext4 {
    /// Where this block of a file is.
    pub(super) fn run_at(&self, inode: &Inode, block: u64) -> Result<Run> {
        let run = if inode.has_extents()? { self.extent_at(inode, block)? } else { self.pointer_at(inode, block)? };
        if let Some(first) = run.block {
            self.sb.byte_of(first.saturating_add(run.count - 1))?;
        }
        Ok(run)
    }

    fn extent_at(&self, inode: &Inode, wanted: u64) -> Result<Run> {
        let mut node = inode.map()?.to_vec();
        let mut depth_before = None;
        // The first block that this part of the tree is not about.
        let mut end = 1u64 << 32;
        loop {
            let (magic, entries, depth) = (node.le16(0)?, usize::from(node.le16(2)?), node.le16(6)?);
            let fits = depth_before.map_or(depth <= DEPTH_MOST, |before: u16| before.checked_sub(1) == Some(depth));
            if magic != EXTENT_MAGIC || !fits {
                return Err(damaged(format!("the extents of inode {}", inode.number)));
            }
            let table = node.part(12, entries * 12)?;
            let start = |n: usize| table.le32(n * 12).map(u64::from);
            let (mut low, mut high) = (0, entries);
            while low < high {
                let middle = usize::midpoint(low, high);
                if start(middle)? <= wanted { low = middle + 1 } else { high = middle }
            }
            if low < entries {
                end = end.min(start(low)?);
            }
            let hole = |from: u64| -> Result<Run> {
                let count = end.checked_sub(from).filter(|count| *count > 0);
                Ok(Run { block: None, count: count.ok_or_else(|| damaged("extents that are out of order"))? })
            };
            let Some(n) = low.checked_sub(1) else { return hole(wanted) };
            let entry = table.part(n * 12, 12)?;
            if depth > 0 {
                let block = u64::from(entry.le32(4)?) | u64::from(entry.le16(8)?) << 32;
                node = self.block(block)?;
                depth_before = Some(depth);
                continue;
            }
            let (len, ahead) = (entry.le16(4)?, wanted - start(n)?);
            let written = len <= WRITTEN_MOST;
            let len = u64::from(if written { len } else { len - WRITTEN_MOST });
            if ahead >= len {
                return hole(wanted);
            }
            let block = u64::from(entry.le32(8)?) | u64::from(entry.le16(6)?) << 32;
            return Ok(Run { block: written.then_some(block + ahead), count: len - ahead });
        }
    }

    /// Twelve pointers to blocks, then one to a block of pointers, one to a block of such, and one more.
    fn pointer_at(&self, inode: &Inode, wanted: u64) -> Result<Run> {
        let fan = self.sb.block_bytes / 4;
        let map = inode.map()?;
        if wanted < 12 {
            return run_of(map.part(0, 48)?, wanted);
        }
        let mut left = wanted - 12;
        for level in 1..=3u32 {
            let covers = fan.pow(level);
            if left >= covers {
                left -= covers;
                continue;
            }
            let mut block = u64::from(map.le32(44 + 4 * level as usize)?);
            for below in (0..level).rev() {
                let each = fan.pow(below);
                if block == 0 {
                    return Ok(Run { block: None, count: each * fan - left % (each * fan) });
                }
                let table = self.block(block)?;
                let n = left / each % fan;
                if below == 0 {
                    return run_of(&table, n);
                }
                block = u64::from(table.le32(4 * n as usize)?);
                if block == 0 {
                    return Ok(Run { block: None, count: each - left % each });
                }
            }
        }
        Err(damaged(format!("inode {} is longer than its map", inode.number)))
    }
}

/// The run of pointers that follow each other.
fn run_of(table: &[u8], n: u64) -> Result<Run> {
    let at = |n: u64| table.le32(4 * n as usize).map(u64::from);
    let first = at(n)?;
    let mut count = 1;
    while 4 * (n + count) < table.len() as u64 {
        let next = at(n + count)?;
        if next != if first == 0 { 0 } else { first + count } {
            break;
        }
        count += 1;
    }
    Ok(Run { block: (first != 0).then_some(first), count })
}
