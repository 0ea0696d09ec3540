//! Everything that can be asked of a disk, within bounds: for property tests and fuzzing.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::{Disk, behind_end};
use crate::error::Result;
use crate::fs::{FileSystem, Kind, Node};
use crate::volume::scan;

/// Files that are looked at.
const FILES_MOST: usize = 300;
/// Names that are taken of one directory.
const NAMES_MOST: usize = 200;
const SECTOR: u64 = 512;
/// A disk of an input: long enough for what the seeds are of.
const SECTORS_MOST: u64 = 1 << 20;

/// A disk of few sectors, the others zero: its length in sectors, then for each its number and bytes.
pub struct Sparse {
    sectors: BTreeMap<u64, [u8; SECTOR as usize]>,
    len: u64,
}

impl Sparse {
    /// Reads one; what is cut short is left out.
    #[must_use]
    pub fn read(input: &[u8]) -> Self {
        let number = |raw: &[u8]| raw.try_into().map_or(0, |raw| u64::from(u32::from_le_bytes(raw)));
        let (len, rest) = input.split_at(input.len().min(4));
        let sectors = rest.chunks_exact(4 + SECTOR as usize).filter_map(|raw| {
            let (place, bytes) = raw.split_at(4);
            Some((number(place), bytes.try_into().ok()?))
        });
        Self { sectors: sectors.collect(), len: number(len).min(SECTORS_MOST) * SECTOR }
    }
}

impl Disk for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.len) {
            return Err(behind_end());
        }
        into.fill(0);
        let end = at + into.len() as u64;
        for (number, sector) in self.sectors.range(at / SECTOR..end.div_ceil(SECTOR)) {
            let start = number * SECTOR;
            let (from, to) = (start.max(at), (start + SECTOR).min(end));
            let source = sector.get((from - start) as usize..(to - start) as usize).ok_or_else(behind_end)?;
            into.get_mut((from - at) as usize..(to - at) as usize).ok_or_else(behind_end)?.copy_from_slice(source);
        }
        Ok(())
    }
}

/// Asks all of it; gives how many files were seen. Errors are fine, anything else that is not an answer is not.
pub fn everything(disk: Arc<dyn Disk>) -> usize {
    let Ok(volumes) = scan(&[("disk".to_owned(), disk)]) else { return 0 };
    let file_systems = volumes.iter().filter_map(|volume| volume.open().ok());
    file_systems.map(|fs| walk(&*fs)).sum()
}

fn walk(fs: &dyn FileSystem) -> usize {
    let _about = fs.about();
    let (mut todo, mut seen) = (vec![fs.root()], 0);
    while let Some(node) = todo.pop() {
        seen += 1;
        if seen > FILES_MOST {
            break;
        }
        look(fs, node);
        let mut names = Vec::new();
        let _any = fs.read_dir(node, &mut |entry| {
            names.push(entry);
            if names.len() < NAMES_MOST { Ok(()) } else { Err(behind_end()) }
        });
        if let Some(last) = names.last() {
            let _found = fs.lookup(node, &last.name);
        }
        todo.extend(names.into_iter().map(|entry| entry.node));
    }
    seen
}

fn look(fs: &dyn FileSystem, node: Node) {
    let Ok(metadata) = fs.metadata(node) else { return };
    let _attributes = fs.xattrs(node);
    let _target = fs.read_link(node);
    if let Ok(from) = fs.data_from(node, 1) {
        assert!(from >= 1, "data lie ahead");
    }
    let mut buf = vec![0; 20_000];
    let middle = metadata.size / 2;
    for at in [0, middle, metadata.size.saturating_sub(1), metadata.size, u64::MAX - 4096] {
        if let Ok(read) = fs.read_at(node, at, &mut buf) {
            assert!(read <= buf.len() && read as u64 <= metadata.size.saturating_sub(at), "more than there is");
            assert_eq!(metadata.kind, Kind::File);
        }
    }
}
