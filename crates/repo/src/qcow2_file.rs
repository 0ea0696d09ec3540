//! Writing a qcow2 file of which it is known beforehand where it has data.
//!
//! Header, tables and reference counts come first, then the data clusters in the order of the image. So every place is known
//! before anything is written, threads write without asking each other, and the file grows by no byte that it does not need.
//! Source: QEMU, docs/interop/qcow2.txt.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::read::Sink;

const CLUSTER: u64 = 64 << 10;
/// Entries of a second-level table, each of one cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Reference counts of 16 bits in a block.
const REFCOUNTS: u64 = CLUSTER / 2;
const SECTOR: u64 = 512;
const COPIED: u64 = 1 << 63;
const WORDS: usize = (L2_ENTRIES / 64) as usize;

/// Which clusters of the image have data: a bit each, for each second-level table that is needed.
#[derive(Debug)]
pub struct Qcow2Plan {
    bytes: u64,
    tables: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl Qcow2Plan {
    /// For an image of this length. A disk has whole sectors: the rest of the last one is zeros.
    pub fn new(bytes: u64) -> Self {
        Self { bytes: bytes.next_multiple_of(SECTOR), tables: BTreeMap::new() }
    }

    /// There is data in this range.
    pub fn need(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.bytes);
        for cluster in at / CLUSTER..end.div_ceil(CLUSTER) {
            let bit = (cluster % L2_ENTRIES) as usize;
            let table = self.tables.entry(cluster / L2_ENTRIES).or_insert_with(|| Box::new([0; WORDS]));
            if let Some(word) = table.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
    }

    /// Writes everything but the data into an empty file.
    pub fn write_tables(self, file: &File) -> io::Result<Qcow2File<'_>> {
        let l1_entries = self.bytes.div_ceil(CLUSTER * L2_ENTRIES).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
        let data: u64 =
            self.tables.values().flat_map(|table| table.iter()).map(|word| u64::from(word.count_ones())).sum();
        let others = 1 + l1_clusters + self.tables.len() as u64 + data;
        let (mut table_clusters, mut blocks) = (1, 1);
        // Counts count themselves.
        loop {
            let total = others + table_clusters + blocks;
            let (needed_blocks, needed_clusters) =
                (total.div_ceil(REFCOUNTS), (total.div_ceil(REFCOUNTS) * 8).div_ceil(CLUSTER));
            if needed_blocks <= blocks && needed_clusters <= table_clusters {
                break;
            }
            (blocks, table_clusters) = (needed_blocks.max(blocks), needed_clusters.max(table_clusters));
        }
        let l1_at = CLUSTER;
        let refcount_table_at = l1_at + l1_clusters * CLUSTER;
        let blocks_at = refcount_table_at + table_clusters * CLUSTER;
        let l2_at = blocks_at + blocks * CLUSTER;
        let data_at = l2_at + self.tables.len() as u64 * CLUSTER;
        let total = others + table_clusters + blocks;
        file.set_len(total * CLUSTER)?;
        file.write_all_at(&self.header(l1_entries, l1_at, refcount_table_at, table_clusters), 0)?;
        let block_places: Vec<u8> = (0..blocks).flat_map(|n| (blocks_at + n * CLUSTER).to_be_bytes()).collect();
        file.write_all_at(&block_places, refcount_table_at)?;
        for block in 0..blocks {
            let used = (total - block * REFCOUNTS).min(REFCOUNTS);
            let counts: Vec<u8> = (0..used).flat_map(|_| 1_u16.to_be_bytes()).collect();
            file.write_all_at(&counts, blocks_at + block * CLUSTER)?;
        }
        let mut next = data_at;
        let mut first_clusters = BTreeMap::new();
        for (place, (number, table)) in (0..).zip(&self.tables) {
            let table_at = l2_at + place * CLUSTER;
            file.write_all_at(&(table_at | COPIED).to_be_bytes(), l1_at + number * 8)?;
            first_clusters.insert(*number, next);
            let mut entries = Vec::with_capacity(CLUSTER as usize);
            for bit in 0..L2_ENTRIES as usize {
                let here = has(table, bit);
                entries.extend_from_slice(&if here { next | COPIED } else { 0 }.to_be_bytes());
                next += if here { CLUSTER } else { 0 };
            }
            file.write_all_at(&entries, table_at)?;
        }
        Ok(Qcow2File { file, plan: self, first_clusters })
    }

    fn header(&self, l1_entries: u64, l1_at: u64, refcount_table_at: u64, refcount_clusters: u64) -> Vec<u8> {
        const HEADER_BYTES: u32 = 104;
        let mut header = Vec::with_capacity(112);
        header.extend_from_slice(b"QFI\xfb");
        header.extend_from_slice(&3_u32.to_be_bytes());
        // No backing file.
        header.extend_from_slice(&[0; 12]);
        header.extend_from_slice(&CLUSTER.trailing_zeros().to_be_bytes());
        header.extend_from_slice(&self.bytes.to_be_bytes());
        // No encryption.
        header.extend_from_slice(&0_u32.to_be_bytes());
        header.extend_from_slice(&(l1_entries as u32).to_be_bytes());
        header.extend_from_slice(&l1_at.to_be_bytes());
        header.extend_from_slice(&refcount_table_at.to_be_bytes());
        header.extend_from_slice(&(refcount_clusters as u32).to_be_bytes());
        // No internal snapshots, no features.
        header.extend_from_slice(&[0; 12 + 24]);
        header.extend_from_slice(&4_u32.to_be_bytes());
        header.extend_from_slice(&HEADER_BYTES.to_be_bytes());
        // The end of the header's extensions.
        header.extend_from_slice(&[0; 8]);
        header
    }
}

fn has(table: &[u64; WORDS], bit: usize) -> bool {
    table.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
}

/// A qcow2 file that takes the data it was planned for.
#[derive(Debug)]
pub struct Qcow2File<'a> {
    file: &'a File,
    plan: Qcow2Plan,
    /// Where the data of each second-level table begins.
    first_clusters: BTreeMap<u64, u64>,
}

impl Qcow2File<'_> {
    /// Where a cluster of the image lies in the file.
    fn place(&self, cluster: u64) -> Option<u64> {
        let (number, bit) = (cluster / L2_ENTRIES, (cluster % L2_ENTRIES) as usize);
        let table = self.plan.tables.get(&number).filter(|table| has(table, bit))?;
        let whole: u32 = table.iter().take(bit / 64).map(|word| word.count_ones()).sum();
        let within = table.get(bit / 64)? & ((1 << (bit % 64)) - 1);
        Some(self.first_clusters.get(&number)? + u64::from(whole + within.count_ones()) * CLUSTER)
    }
}

impl Sink for Qcow2File<'_> {
    fn write(&self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let within = at % CLUSTER;
            let unplanned = || io::Error::new(io::ErrorKind::InvalidInput, "data at a place that is not planned");
            let place = self.place(at / CLUSTER).ok_or_else(unplanned)?;
            // Neighbours in the image are neighbours in the file, as far as it goes.
            let mut len = CLUSTER - within;
            while len < bytes.len() as u64 && self.place((at + len) / CLUSTER) == Some(place + within + len) {
                len += CLUSTER;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(len as usize));
            self.file.write_all_at(now, place + within)?;
            at += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn written(bytes: u64, ranges: &[(u64, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".qcow2").tempfile().unwrap();
        let mut plan = Qcow2Plan::new(bytes);
        ranges.iter().for_each(|(at, data)| plan.need(*at, data.len() as u64));
        let target = plan.write_tables(file.as_file()).unwrap();
        ranges.iter().for_each(|(at, data)| target.write(*at, data).unwrap());
        file
    }

    fn qemu_img(arguments: &[&str]) -> String {
        let output =
            Command::new("qemu-img").args(arguments).output().expect("qemu-img, which `cargo xtask setup` installs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
        text
    }

    /// QEMU finds nothing wrong, and reads these bytes.
    fn is_sound(file: &tempfile::NamedTempFile, truth: &[u8]) {
        let path = file.path().to_str().unwrap();
        let said = qemu_img(&["check", path]);
        assert!(said.contains("No errors were found"), "{said}");
        let raw = tempfile::NamedTempFile::new().unwrap();
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path, raw.path().to_str().unwrap()]);
        assert!(std::fs::read(raw.path()).unwrap() == truth);
    }

    #[test]
    fn odd_sizes_and_empty_images_are_sound() {
        is_sound(&written(1000, &[(0, vec![7; 1000])]), &[&[7; 1000][..], &[0; 24]].concat());
        is_sound(&written(0, &[]), &[]);
        is_sound(&written(5 << 20, &[]), &vec![0; 5 << 20]);
    }

    #[test]
    fn many_tables_and_several_blocks_of_counts_are_sound() {
        // 3 GiB of data would need more than one block of counts; planned, not written, the file stays a hole.
        let file = tempfile::Builder::new().suffix(".qcow2").tempfile().unwrap();
        let mut plan = Qcow2Plan::new(1 << 42);
        plan.need(5 << 30, 3 << 30);
        plan.need((1 << 42) - 4096, 4096);
        let target = plan.write_tables(file.as_file()).unwrap();
        target.write((1 << 42) - 4096, &[9; 4096]).unwrap();
        let path = file.path().to_str().unwrap();
        assert!(qemu_img(&["check", path]).contains("No errors were found"));
        let reads = ["-r", "-f", "qcow2", "-c", "read -P 9 4398046507008 4096", "-c", "read -P 0 5G 64M", path];
        let read = Command::new("qemu-io").args(reads).output().expect("qemu-io, which comes with qemu-img");
        let said = String::from_utf8_lossy(&read.stdout).into_owned();
        assert!(read.status.success() && !said.contains("failed") && said.contains("read 4096/4096"), "{said}");
        assert!(target.write(0, &[1]).is_err(), "what was not planned has no place");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn qemu_reads_what_was_written(
            bytes in 1_u64..3_000_000,
            pieces in proptest::collection::vec((0_u64..800, 1_usize..60, 1_u8..255), 0..20),
        ) {
            let bytes = bytes.next_multiple_of(512);
            let mut truth = vec![0; bytes as usize];
            let mut ranges = Vec::new();
            for (page, pages, byte) in pieces {
                let at = (page * 4096).min(bytes);
                let len = (pages * 4096).min((bytes - at) as usize);
                truth[at as usize..at as usize + len].fill(byte);
                ranges.push((at, len));
            }
            let ranges: Vec<_> = ranges.into_iter().map(|(at, len)| (at, truth[at as usize..at as usize + len].to_vec())).collect();
            is_sound(&written(bytes, &ranges), &truth);
        }
    }
}
