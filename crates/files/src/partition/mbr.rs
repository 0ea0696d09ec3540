//! Master boot records, with the chain of extended ones behind them.

use std::collections::HashSet;

use super::{MOST, Partition, Scheme, Table};
use crate::bytes::Fields as _;
use crate::disk::Disk;
use crate::error::Result;

const SECTOR: u64 = 512;

/// A sector with four entries.
pub(super) struct Mbr([Entry; 4]);

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    /// The partition, with its start counted from this sector; `None` off the disk.
    fn partition(self, number: u32, base: u64, disk: &dyn Disk) -> Option<Partition> {
        let start = (base + self.start) * SECTOR;
        let len = (self.sectors * SECTOR).min(disk.len().checked_sub(start)?);
        (len > 0).then(|| Partition { number, start, len, name: String::new() })
    }
}

impl Mbr {
    /// A boot sector of a file system has the same two bytes at its end; its entries are then no entries.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if sector.part(510, 2).ok()? != [0x55, 0xaa] {
            return None;
        }
        let entry = |n: usize| -> Option<Entry> {
            let raw = sector.part(446 + 16 * n, 16).ok()?;
            let (start, sectors) = (u64::from(raw.le32(8).ok()?), u64::from(raw.le32(12).ok()?));
            // Nobody has anything but a flag in the first byte.
            (raw.u8(0).ok()? & 0x7f == 0).then_some(Entry { kind: raw.u8(4).ok()?, start, sectors })
        };
        let entries = [entry(0)?, entry(1)?, entry(2)?, entry(3)?];
        entries.iter().any(|entry| entry.is_used()).then_some(Self(entries))
    }

    pub(super) fn is_protective(&self) -> bool {
        self.0.iter().any(|entry| entry.kind == 0xee)
    }
}

pub(super) fn read(disk: &dyn Disk, mbr: &Mbr) -> Result<Option<Table>> {
    let mut table = Table { scheme: Scheme::Mbr, partitions: Vec::new(), notes: Vec::new() };
    for (entry, number) in mbr.0.iter().zip(1..) {
        if entry.is_used() && !entry.is_extended() && entry.start > 0 {
            table.partitions.extend(entry.partition(number, 0, disk));
        }
    }
    for entry in mbr.0.iter().filter(|entry| entry.is_used() && entry.is_extended()) {
        read_logical(disk, entry.start, &mut table)?;
    }
    Ok((!table.partitions.is_empty()).then_some(table))
}

/// Each extended record has one logical partition, counted from itself, and the place of the next record, counted from the
/// extended partition's start.
fn read_logical(disk: &dyn Disk, extended: u64, table: &mut Table) -> Result<()> {
    let (mut here, mut seen) = (extended, HashSet::new());
    let mut number = 5;
    while table.partitions.len() < MOST && (here + 1) * SECTOR <= disk.len() {
        if !seen.insert(here) {
            table.notes.push("logical partitions follow each other in a circle: the others are not shown".into());
            break;
        }
        let mut sector = [0; SECTOR as usize];
        disk.read_at(here * SECTOR, &mut sector)?;
        let Some(Mbr([logical, next, ..])) = Mbr::parse(&sector) else { break };
        if logical.is_used() && !logical.is_extended() {
            table.partitions.extend(logical.partition(number, here, disk));
            number += 1;
        }
        if !next.is_used() || !next.is_extended() {
            break;
        }
        here = extended + next.start;
    }
    Ok(())
}
