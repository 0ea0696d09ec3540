//! Partition tables. Found by what is on the disk alone: a GPT, an MBR with logical partitions, or none.

mod gpt;
mod mbr;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::Result;

/// Partitions that are looked at.
pub(crate) const MOST: usize = 256;

/// Which table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
    /// The name that a GPT gives it.
    pub name: String,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which kind.
    pub scheme: Scheme,
    /// What it says, in its order; partitions that reach behind the disk's end are cut there.
    pub partitions: Vec<Partition>,
    /// What is odd about it.
    pub notes: Vec<String>,
}

/// Reads the partition table, if there is one.
///
/// # Errors
/// Only when the disk cannot be read: a table that is none is `None`.
pub fn read(disk: &dyn Disk) -> Result<Option<Table>> {
    if disk.len() < 1024 {
        return Ok(None);
    }
    let mut sector = [0; 512];
    disk.read_at(0, &mut sector)?;
    let Some(mbr) = mbr::Mbr::parse(&sector) else { return Ok(None) };
    if mbr.is_protective() {
        for sector_bytes in [512, 4096] {
            if let Some(table) = gpt::read(disk, sector_bytes)? {
                return Ok(Some(table));
            }
        }
        return Ok(None);
    }
    mbr::read(disk, &mbr)
}
