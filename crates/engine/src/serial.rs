//! A bound on the serial log: QEMU appends to it for as long as the machine lives, and nobody else is at hand to rotate it.
//!
//! Every command that changes a machine, and every start of a process, cuts off the oldest part of a log that has grown
//! too long. QEMU writes to the end wherever that is, so the file is shortened under it at the front; where the file system cannot do
//! that, the space is given back and the part reads as zeroes. Between two commands nothing bounds it.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// A log that is longer is shortened.
const LONGEST_BYTES: u64 = 64 << 20;
/// At least so much of its end stays.
const KEPT_BYTES: u64 = 16 << 20;
/// What is cut off is a multiple of this, and so of every file system's blocks.
const UNIT_BYTES: u64 = 1 << 20;

/// Shortens the log at `path` if it has grown too long. What fails is no reason to do nothing else.
pub(crate) fn bound(path: &Path) {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return };
    let length = file.metadata().map_or(0, |found| found.len());
    if length > LONGEST_BYTES && space_of(&file) > LONGEST_BYTES {
        let spare = (length - KEPT_BYTES) / UNIT_BYTES * UNIT_BYTES;
        if fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, spare).is_err() {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system that can do neither lets it grow.
            let _ = fallocate(&file, punch, 0, spare);
        }
    }
}

/// What a log takes that may have been shortened by a hole.
fn space_of(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().map_or(0, |found| found.blocks().saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

    use super::*;

    #[test]
    fn the_end_of_a_long_log_stays_and_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut qemu = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let block: Vec<u8> = (0..UNIT_BYTES).map(|at| (at % 251) as u8).collect();
        for _ in 0..LONGEST_BYTES / UNIT_BYTES {
            qemu.write_all(&block).unwrap();
        }
        qemu.sync_all().unwrap();
        let before = space_of(&qemu);
        bound(&path);
        assert_eq!(space_of(&qemu), before, "it is not too long yet");
        qemu.write_all(b"the last line").unwrap();
        qemu.sync_all().unwrap();
        bound(&path);
        assert!(space_of(&qemu) < KEPT_BYTES + 2 * UNIT_BYTES, "{}", space_of(&qemu));
        qemu.write_all(b", and one more").unwrap();
        let mut end = String::new();
        let mut log = File::open(&path).unwrap();
        log.seek(SeekFrom::End(-27)).unwrap();
        log.read_to_string(&mut end).unwrap();
        assert_eq!(end, "the last line, and one more");
    }
}
