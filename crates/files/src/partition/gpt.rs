//! GUID partition tables. Source: UEFI specification, section 5.3.

use super::{MOST, Partition, Scheme, Table};
use crate::bytes::{Fields as _, utf16};
use crate::disk::{Disk, read_vec};
use crate::error::Result;

const MAGIC: &[u8] = b"EFI PART";
/// Entries are 128 bytes, or a power of two above that; more than this is nobody's.
const ENTRY_MOST: u32 = 4096;

/// Reads the table at the disk's beginning, or where that is damaged the one at its end.
pub(super) fn read(disk: &dyn Disk, sector_bytes: u64) -> Result<Option<Table>> {
    let last = (disk.len() / sector_bytes).saturating_sub(1);
    for (header, copy) in [(1, false), (last, true)] {
        let Some(mut table) = read_copy(disk, sector_bytes, header)? else { continue };
        if copy {
            table
                .notes
                .push("the partition table at the disk's beginning is damaged: the copy at its end is used".into());
        }
        return Ok(Some(table));
    }
    Ok(None)
}

fn read_copy(disk: &dyn Disk, sector_bytes: u64, header_at: u64) -> Result<Option<Table>> {
    let Some(at) = header_at.checked_mul(sector_bytes).filter(|at| at + sector_bytes <= disk.len()) else {
        return Ok(None);
    };
    let header = read_vec(disk, at, sector_bytes as usize)?;
    let len = header.le32(12)? as usize;
    if !header.starts_with(MAGIC) || !(92..=header.len()).contains(&len) || header.le64(24)? != header_at {
        return Ok(None);
    }
    let mut summed = header.part(0, len)?.to_vec();
    summed.splice(16..20, [0; 4]);
    if crc32(&summed) != header.le32(16)? {
        return Ok(None);
    }
    let (entries_at, count, entry_bytes) = (header.le64(72)?, header.le32(80)?, header.le32(84)?);
    let bytes = u64::from(count) * u64::from(entry_bytes);
    if !(128..=ENTRY_MOST).contains(&entry_bytes) || bytes > 1 << 20 {
        return Ok(None);
    }
    let Some(start) = entries_at.checked_mul(sector_bytes).filter(|start| *start <= disk.len()) else {
        return Ok(None);
    };
    if start.saturating_add(bytes) > disk.len() {
        return Ok(None);
    }
    let entries = read_vec(disk, start, bytes as usize)?;
    if crc32(&entries) != header.le32(88)? {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (n, entry) in entries.chunks_exact(entry_bytes as usize).enumerate().take(MOST) {
        let (first, last) = (entry.le64(32)?, entry.le64(40)?);
        let start = first.checked_mul(sector_bytes).filter(|start| *start < disk.len());
        let (Some(start), false) = (start, entry.part(0, 16)?.iter().all(|byte| *byte == 0) || last < first) else {
            continue;
        };
        let len = (last - first).saturating_add(1).saturating_mul(sector_bytes).min(disk.len() - start);
        let name = utf16(entry.part(56, 72)?);
        let name = name.split('\0').next().unwrap_or_default().to_owned();
        partitions.push(Partition { number: n as u32 + 1, start, len, name });
    }
    Ok(Some(Table { scheme: Scheme::Gpt, partitions, notes: Vec::new() }))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
