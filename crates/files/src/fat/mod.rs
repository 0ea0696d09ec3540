//! FAT of 12, 16 and 32 bits, with long names. Source: Microsoft, FAT32 File System Specification, 2000.
//!
//! A file is known by the place of its entry: it has no number of its own.

mod dir;

use std::sync::Arc;

use crate::bytes::{Fields as _, text};
use crate::disk::{Disk, behind_end};
use crate::error::{Error, Result, damaged};
use crate::fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, Time, Xattr, lookup_without_case};

use dir::Entry;

/// The root has no entry; nothing lies at this place.
const ROOT: u64 = 0;
/// A directory of FAT has at most so many bytes.
const DIRECTORY_MOST: u64 = 65536 * 32;

/// How many bits a number of a cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// A file system.
pub struct Fat {
    disk: Arc<dyn Disk>,
    width: Width,
    cluster_bytes: u64,
    clusters: u64,
    table_at: u64,
    data_at: u64,
    root: RootDir,
    label: String,
    serial: u32,
}

/// Where the root is.
#[derive(Debug, Clone, Copy)]
enum RootDir {
    /// Before all clusters: first byte and bytes.
    Fixed(u64, u64),
    /// In clusters, from this one on.
    Clusters(u32),
}

/// Whether a boot sector makes sense as FAT's.
pub(crate) fn is_there(start: &[u8]) -> bool {
    Geometry::read(start).is_ok()
}

struct Geometry {
    sector: u64,
    cluster: u64,
    reserved: u64,
    tables: u64,
    table_sectors: u64,
    root_entries: u64,
    sectors: u64,
}

impl Geometry {
    fn read(boot: &[u8]) -> Result<Self> {
        let sixteen_or = |at: usize, wide: usize| -> Result<u64> {
            Ok(match boot.le16(at)? {
                0 => u64::from(boot.le32(wide)?),
                value => u64::from(value),
            })
        };
        let geometry = Self {
            sector: u64::from(boot.le16(11)?),
            cluster: u64::from(boot.u8(13)?),
            reserved: u64::from(boot.le16(14)?),
            tables: u64::from(boot.u8(16)?),
            root_entries: u64::from(boot.le16(17)?),
            sectors: sixteen_or(19, 32)?,
            table_sectors: sixteen_or(22, 36)?,
        };
        let jumps = matches!(boot.u8(0)?, 0xeb | 0xe9);
        let media = boot.u8(21)? >= 0xf0;
        let sound = geometry.sector.is_power_of_two()
            && (512..=4096).contains(&geometry.sector)
            && geometry.cluster.is_power_of_two()
            && geometry.reserved > 0
            && (1..=2).contains(&geometry.tables)
            && geometry.table_sectors > 0
            && geometry.sectors > 0;
        let marked = boot.part(510, 2)? == [0x55, 0xaa];
        if jumps && media && sound && marked { Ok(geometry) } else { Err(damaged("there is no FAT boot sector")) }
    }
}

impl Fat {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let mut boot = [0; 512];
        disk.read_at(0, &mut boot)?;
        let boot = boot.as_slice();
        let geometry = Geometry::read(boot)?;
        let root_at = geometry.reserved + geometry.tables * geometry.table_sectors;
        let root_sectors = (geometry.root_entries * 32).div_ceil(geometry.sector);
        let data = root_at + root_sectors;
        let clusters = geometry.sectors.saturating_sub(data) / geometry.cluster;
        let wide = geometry.root_entries == 0;
        let width = match clusters {
            _ if wide => Width::Bits32,
            0..4085 => Width::Bits12,
            _ => Width::Bits16,
        };
        let (serial, label) = if wide { (67, 71) } else { (39, 43) };
        let root = if wide {
            RootDir::Clusters(boot.le32(44)?)
        } else {
            RootDir::Fixed(root_at * geometry.sector, geometry.root_entries * 32)
        };
        Ok(Self {
            width,
            cluster_bytes: geometry.cluster * geometry.sector,
            clusters,
            table_at: geometry.reserved * geometry.sector,
            data_at: data * geometry.sector,
            root,
            label: text(boot.part(label, 11)?),
            serial: boot.le32(serial)?,
            disk,
        })
    }

    fn cluster_at(&self, cluster: u32) -> Result<u64> {
        let n = u64::from(cluster).checked_sub(2).filter(|n| *n < self.clusters);
        let n = n.ok_or_else(|| damaged(format!("FAT cluster {cluster} does not exist")))?;
        Ok(self.data_at + n * self.cluster_bytes)
    }

    /// The cluster behind this one; `None` at the end.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let n = u64::from(cluster);
        let read = |at: u64| -> Result<[u8; 4]> {
            let mut raw = [0; 4];
            let len = if self.width == Width::Bits32 { 4 } else { 2 };
            self.disk.read_at(self.table_at + at, raw.get_mut(..len).ok_or_else(behind_end)?)?;
            Ok(raw)
        };
        let (next, end) = match self.width {
            Width::Bits12 => {
                let pair = u32::from_le_bytes(read(n + n / 2)?);
                (if n % 2 == 0 { pair & 0xfff } else { pair >> 4 }, 0xff8)
            }
            Width::Bits16 => (u32::from_le_bytes(read(2 * n)?), 0xfff8),
            Width::Bits32 => (u32::from_le_bytes(read(4 * n)?) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((next < end).then_some(next))
    }

    /// The clusters of a chain up to as many as `most` bytes need. A chain that bites its tail ends there, too.
    fn chain(&self, first: u32, most: u64) -> Result<Vec<u32>> {
        let needed = most.div_ceil(self.cluster_bytes).min(self.clusters);
        let (mut chain, mut here) = (Vec::new(), (first != 0).then_some(first));
        while let Some(cluster) = here.filter(|_| (chain.len() as u64) < needed) {
            self.cluster_at(cluster)?;
            chain.push(cluster);
            here = self.next(cluster)?;
        }
        Ok(chain)
    }

    fn entry(&self, node: Node) -> Result<Entry> {
        let mut raw = [0; 32];
        self.disk.read_at(node.number, &mut raw)?;
        Entry::parse(&raw)
    }

    /// Pieces of the disk that a directory lies in.
    fn directory_pieces(&self, node: Node) -> Result<Vec<(u64, u64)>> {
        let first = match (node.number, self.root) {
            (ROOT, RootDir::Fixed(at, len)) => return Ok(vec![(at, len)]),
            (ROOT, RootDir::Clusters(first)) => first,
            _ => {
                let entry = self.entry(node)?;
                if !entry.is_directory() {
                    return Err(Error::NotADirectory);
                }
                entry.cluster(self.width == Width::Bits32)
            }
        };
        let chain = self.chain(first, DIRECTORY_MOST)?;
        chain.into_iter().map(|cluster| Ok((self.cluster_at(cluster)?, self.cluster_bytes))).collect()
    }
}

impl FileSystem for Fat {
    fn about(&self) -> About {
        let kind = match self.width {
            Width::Bits12 => "fat12",
            Width::Bits16 => "fat16",
            Width::Bits32 => "fat32",
        };
        About {
            kind: kind.to_owned(),
            label: self.label.clone(),
            uuid: format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff),
            lacks: vec!["FAT has no owners and permissions; its times are taken as UTC".to_owned()],
            notes: Vec::new(),
        }
    }

    fn root(&self) -> Node {
        Node::new(ROOT)
    }

    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        dir::list(&*self.disk, &self.directory_pieces(dir)?, each)
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        lookup_without_case(self, dir, name)
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        let (kind, size, mode, modified, accessed) = if node.number == ROOT {
            (Kind::Directory, 0, 0o755, None, None)
        } else {
            let entry = self.entry(node)?;
            let (kind, mode) = if entry.is_directory() { (Kind::Directory, 0o755) } else { (Kind::File, 0o644) };
            let mode = if entry.is_read_only() { mode & !0o222 } else { mode };
            (kind, entry.size(), mode, entry.modified(), entry.accessed())
        };
        Ok(Metadata { kind, size, mode, owner: None, modified, changed: None, accessed, links: 1, device: None })
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        if node.number == ROOT {
            return Err(Error::IsADirectory);
        }
        let entry = self.entry(node)?;
        if entry.is_directory() {
            return Err(Error::IsADirectory);
        }
        let len = usize::try_from(entry.size().saturating_sub(at)).unwrap_or(usize::MAX).min(into.len());
        let chain = self.chain(entry.cluster(self.width == Width::Bits32), at + len as u64)?;
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            let (n, within) = ((here / self.cluster_bytes) as usize, here % self.cluster_bytes);
            let first = *chain.get(n).ok_or_else(|| damaged("a FAT file's chain is shorter than the file"))?;
            // Clusters that follow each other are read at once.
            let count = chain.iter().skip(n).zip(first..).take_while(|(cluster, next)| *cluster == next).count() as u64;
            let part = usize::try_from(count * self.cluster_bytes - within).unwrap_or(usize::MAX).min(len - done);
            let target = into.get_mut(done..done + part).ok_or_else(behind_end)?;
            self.disk.read_at(self.cluster_at(first)? + within, target)?;
            done += part;
        }
        Ok(len)
    }

    fn read_link(&self, _node: Node) -> Result<Vec<u8>> {
        Err(Error::NotALink)
    }

    fn xattrs(&self, _node: Node) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }
}

/// An instant as FAT and exFAT count, taken as UTC.
pub(crate) fn dos_time(date: u16, time: u16) -> Option<Time> {
    let (year, month, day) = (1980 + i64::from(date >> 9), i64::from(date >> 5 & 15), i64::from(date & 31));
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let seconds = i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(Time::new(days * 86400 + seconds, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_1970() {
        let time = |date, time| dos_time(date, time).unwrap().seconds;
        assert_eq!(time(1 << 5 | 1, 0), 315_532_800, "1980-01-01");
        assert_eq!(
            time((2024 - 1980) << 9 | 2 << 5 | 29, 12 << 11 | 30 << 5 | 7),
            1_709_209_814,
            "2024-02-29 12:30:14"
        );
        assert_eq!(dos_time(0, 0), None);
    }
}
