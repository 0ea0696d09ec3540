//! The journal, read along: what it has committed and not yet put in place is as good as in place. Nothing is written.
//!
//! A machine that ran when its disk was stored nearly always has such changes. Source: Linux, fs/jbd2/recovery.c.

use std::collections::HashMap;
use std::sync::Arc;

use crate::bytes::Fields as _;
use crate::disk::{Disk, behind_end, read_vec};
use crate::error::{Result, damaged, unsupported};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Revocation, 64 bits, asynchronous commits, both checksums, fast commits.
const INCOMPAT_KNOWN: u32 = 0x3f;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_DELETED: u32 = 4;
const TAG_LAST: u32 = 8;

/// Gives the bytes of the journal: its blocks in order, as places on the disk.
pub(super) struct Log {
    pub disk: Arc<dyn Disk>,
    pub block_bytes: u64,
    /// Where each block of the journal lies, in bytes.
    pub blocks: Vec<u64>,
}

/// What the journal adds.
pub(super) struct Changes {
    /// For a block of the file system the place of its newer content, and whether its first bytes were put aside.
    map: HashMap<u64, (u64, bool)>,
    pub notes: Vec<String>,
}

struct Superblock {
    first: u32,
    end: u32,
    sequence: u32,
    start: u32,
    incompat: u32,
}

impl Log {
    fn block(&self, number: u32) -> Result<Vec<u8>> {
        let at = self.blocks.get(number as usize).ok_or_else(|| damaged("the journal is shorter than it says"))?;
        read_vec(&*self.disk, *at, self.block_bytes as usize)
    }

    fn superblock(&self) -> Result<Superblock> {
        let raw = self.block(0)?;
        let kind = raw.be32(4)?;
        if raw.be32(0)? != MAGIC || !(kind == 3 || kind == 4) {
            return Err(damaged("the journal has no superblock"));
        }
        let incompat = if kind == 4 { raw.be32(0x28)? } else { 0 };
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(unsupported(format!("a journal with the features {incompat:#x}")));
        }
        let fast = match raw.be32(0x54)? {
            _ if incompat & INCOMPAT_FAST_COMMIT == 0 => 0,
            0 => 256,
            blocks => blocks,
        };
        let (len, first) = (raw.be32(0x10)?, raw.be32(0x14)?);
        let end = len.min(self.blocks.len() as u32).saturating_sub(fast);
        if u64::from(raw.be32(0xc)?) != self.block_bytes || first == 0 || first >= end {
            return Err(damaged("the journal's superblock makes no sense"));
        }
        Ok(Superblock { first, end, sequence: raw.be32(0x18)?, start: raw.be32(0x1c)?, incompat })
    }

    /// Reads what is committed.
    pub(super) fn read(&self) -> Result<Changes> {
        let sb = self.superblock()?;
        let mut changes = Changes { map: HashMap::new(), notes: Vec::new() };
        if sb.start == 0 {
            return Ok(changes);
        }
        if !(sb.first..sb.end).contains(&sb.start) {
            return Err(damaged("the journal begins outside of itself"));
        }
        let (mut writes, mut revoked, mut transactions) = (Vec::new(), HashMap::new(), 0u32);
        let (mut here, mut sequence) = (sb.start, sb.sequence);
        let mut pending = Transaction::default();
        let mut left = sb.end - sb.first;
        let next = |here: u32, by: u32| sb.first + (here - sb.first + by) % (sb.end - sb.first);
        while left > 0 {
            let block = self.block(here)?;
            if block.be32(0)? != MAGIC || block.be32(8)? != sequence {
                break;
            }
            let mut used = 1;
            match block.be32(4)? {
                DESCRIPTOR => {
                    for (target, flags) in tags(&block, sb.incompat)? {
                        if used >= left {
                            return Err(damaged("the journal's transaction is longer than the journal"));
                        }
                        let place = self.blocks.get(next(here, used) as usize).copied().unwrap_or_default();
                        used += 1;
                        if flags & TAG_DELETED == 0 {
                            pending.writes.push((sequence, target, place, flags & TAG_ESCAPED != 0));
                        }
                    }
                }
                COMMIT => {
                    writes.append(&mut pending.writes);
                    revoked.extend(pending.revoked.drain(..).map(|target| (target, sequence)));
                    sequence = sequence.wrapping_add(1);
                    transactions += 1;
                }
                REVOKE => pending.revoked.extend(revocations(&block, sb.incompat)?),
                _ => break,
            }
            left -= used.min(left);
            here = next(here, used);
        }
        for (sequence, target, place, escaped) in writes {
            // Sequences are compared as they count on, whether or not they have wrapped.
            let gone = revoked.get(&target).is_some_and(|at: &u32| at.wrapping_sub(sequence) < 1 << 31);
            if !gone {
                changes.map.insert(target, (place, escaped));
            }
        }
        let blocks = changes.map.len();
        changes
            .notes
            .push(format!("{transactions} committed transactions of its journal ({blocks} blocks) are read along"));
        if sb.incompat & INCOMPAT_FAST_COMMIT != 0 {
            changes.notes.push("fast commits of its journal are not read: what they alone have is missing".into());
        }
        Ok(changes)
    }
}

/// What was written since the last commit.
#[derive(Default)]
struct Transaction {
    writes: Vec<(u32, u64, u64, bool)>,
    revoked: Vec<u64>,
}

/// The blocks that a descriptor announces, with their flags.
fn tags(block: &[u8], incompat: u32) -> Result<Vec<(u64, u32)>> {
    let (v2, v3, wide) = (INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V3, incompat & INCOMPAT_64BIT != 0);
    let tag_bytes = match () {
        () if incompat & v3 != 0 => 16,
        () => 8 + if wide { 4 } else { 0 } + if incompat & v2 != 0 { 2 } else { 0 },
    };
    let end = block.len() - if incompat & (v2 | v3) != 0 { 4 } else { 0 };
    let mut all = Vec::new();
    let mut at = 12;
    while at + tag_bytes <= end {
        let flags = if incompat & v3 != 0 { block.be32(at + 4)? } else { u32::from(block.be16(at + 6)?) };
        let high = if wide { u64::from(block.be32(at + 8)?) << 32 } else { 0 };
        all.push((u64::from(block.be32(at)?) | high, flags));
        at += tag_bytes + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
        if flags & TAG_LAST != 0 {
            break;
        }
    }
    Ok(all)
}

/// Blocks whose earlier content in the journal does not count any more.
fn revocations(block: &[u8], incompat: u32) -> Result<Vec<u64>> {
    let wide = incompat & INCOMPAT_64BIT != 0;
    let end = (block.be32(12)? as usize).min(block.len());
    let records = block.part(16, end.saturating_sub(16))?;
    let step = if wide { 8 } else { 4 };
    records.chunks_exact(step).map(|raw| if wide { raw.be64(0) } else { raw.be32(0).map(u64::from) }).collect()
}

/// A disk as it is with the journal's changes in place.
pub(super) struct Replayed {
    pub disk: Arc<dyn Disk>,
    pub block_bytes: u64,
    pub changes: Changes,
}

impl Disk for Replayed {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read_at(at, into)?;
        if self.changes.map.is_empty() || into.is_empty() {
            return Ok(());
        }
        let end = at.checked_add(into.len() as u64).ok_or_else(behind_end)?;
        for block in at / self.block_bytes..=(end - 1) / self.block_bytes {
            let Some((place, escaped)) = self.changes.map.get(&block) else { continue };
            let mut newer = read_vec(&*self.disk, *place, self.block_bytes as usize)?;
            if *escaped {
                newer.get_mut(..4).ok_or_else(behind_end)?.copy_from_slice(&MAGIC.to_be_bytes());
            }
            let start = block * self.block_bytes;
            let (from, to) = (start.max(at), (start + self.block_bytes).min(end));
            let source = newer.part((from - start) as usize, (to - from) as usize)?;
            into.get_mut((from - at) as usize..(to - at) as usize).ok_or_else(behind_end)?.copy_from_slice(source);
        }
        Ok(())
    }
}
