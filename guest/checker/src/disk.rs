//! A disk under test: a ring of slots, direct I/O, and the [`Ledger`] that judges what comes back.
//!
//! Order: write *n* goes to a disk only after the disk before it has acknowledged its own write *n*. So at no
//! instant is a disk ahead of the one before it, and disks that are not of one instant give themselves away.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::board::Board;
use crate::error::Error;
use crate::ledger::{self, Ledger, SlotFault};
use crate::params::DiskChoice;
use crate::slot::{Block, DiskIndex, Sequence, SlotIndex, Stamp};
use crate::units::{Dice, PAGE_BYTES, Token};

const SLOTS: u32 = 64;
/// Slots lie this far apart, so that each has a qcow2 cluster of its own to allocate in a fresh layer.
const STRIDE_BYTES: u64 = 64 << 10;
const RING_BYTES: u64 = SLOTS as u64 * STRIDE_BYTES;
/// Every so many writes one is flushed to stable storage.
const FLUSH_EVERY: u64 = 16;
const APPEAR_WITHIN: Duration = Duration::from_secs(10);

/// Trouble with a disk while it is under test.
#[derive(Debug, thiserror::Error)]
pub enum DiskTrouble {
    /// It holds what it should not.
    #[error("disk {name}: {fault}")]
    Fault {
        /// Its device name.
        name: String,
        /// What is wrong.
        fault: SlotFault,
    },
    /// It cannot be read or written.
    #[error("disk {name}: cannot {verb} slot {}: {source}", slot.0)]
    Io {
        /// Its device name.
        name: String,
        /// What was tried.
        verb: &'static str,
        /// Where.
        slot: SlotIndex,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An opened disk whose ring is blank or under test.
pub struct Disk {
    name: String,
    position: usize,
    file: File,
    ledger: Ledger,
    dice: Dice,
    next_read: u32,
}

/// The names to test: those asked for, or all virtio disks in order.
///
/// # Errors
/// [`Error::File`] when the kernel's list cannot be read.
pub fn choose(choice: &DiskChoice) -> Result<Vec<String>, Error> {
    if let DiskChoice::Named(names) = choice {
        return Ok(names.clone());
    }
    let list = fs::read_dir("/sys/block").map_err(Error::file("list", "/sys/block"))?;
    let names = list.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut disks: Vec<_> = names.filter(|name| name.starts_with("vd")).collect();
    disks.sort();
    Ok(disks)
}

/// Opens a disk for direct I/O, waiting for it to appear, and sees that it is large enough.
///
/// # Errors
/// [`Error::NoDisk`], [`Error::SmallDisk`], or [`Error::File`] when it cannot be opened.
pub fn open(name: &str) -> Result<File, Error> {
    let path = PathBuf::from("/dev").join(name);
    let deadline = Instant::now() + APPEAR_WITHIN;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(Error::NoDisk { name: name.to_owned() });
        }
        thread::sleep(Duration::from_millis(10));
    }
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(direct);
    let mut file = options.open(&path).map_err(Error::file("open", &path))?;
    let found_bytes = file.seek(SeekFrom::End(0)).map_err(Error::file("measure", &path))?;
    if found_bytes < RING_BYTES {
        return Err(Error::SmallDisk { name: name.to_owned(), found_bytes, needed_bytes: RING_BYTES });
    }
    Ok(file)
}

/// The newest write that an earlier session left on a disk.
pub fn left_behind(file: &File) -> Option<Stamp> {
    let blocks = (0..SLOTS).filter_map(|slot| {
        let mut block = Block::zeroed();
        file.read_exact_at(block.bytes_mut(), offset(SlotIndex(slot))).ok()?;
        Some(block)
    });
    ledger::newest(blocks)
}

const fn offset(slot: SlotIndex) -> u64 {
    slot.0 as u64 * STRIDE_BYTES
}

impl Disk {
    /// Takes an opened disk in the given position and blanks its ring for a new session.
    ///
    /// # Errors
    /// [`Error::File`] when a slot cannot be written.
    pub fn blank(name: String, file: File, position: usize, token: Token) -> Result<Self, Error> {
        let ledger = Ledger::blank(token, DiskIndex(position as u32), SLOTS);
        for slot in ledger.slots() {
            let block = ledger.blank_block(slot);
            file.write_all_at(block.bytes(), offset(slot)).map_err(Error::file("blank", &name))?;
        }
        file.sync_data().map_err(Error::file("flush", &name))?;
        let dice = Dice::new(token.raw() ^ position as u64);
        Ok(Self { name, position, file, ledger, dice, next_read: 0 })
    }

    /// Its device name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the next write to a slot chosen by chance, after judging what it is about to cover;
    /// does nothing while the disk before this one has not made its own write of that number.
    ///
    /// # Errors
    /// [`DiskTrouble`]; a write is made all the same when what it covers was wrong.
    pub fn write_next(&mut self, board: &Board) -> Result<(), DiskTrouble> {
        if self.upstream(board).is_some_and(|upstream| upstream <= self.ledger.last()) {
            return Ok(());
        }
        self.dice.stir(clock_bits());
        let slot = SlotIndex(self.dice.below(SLOTS as usize) as u32);
        let covered = self.read(slot, board);
        if let Some((pending, block)) = self.ledger.begin(slot) {
            self.put(&block, pending.slot())?;
            if pending.sequence().number().is_multiple_of(FLUSH_EVERY) {
                self.file.sync_data().map_err(|source| self.io("flush", slot, source))?;
            }
            self.ledger.acknowledge(pending);
            board.set_acknowledged(self.position, pending.sequence());
        }
        covered
    }

    /// Reads and judges the next slot of the ring.
    ///
    /// # Errors
    /// [`DiskTrouble`].
    pub fn read_next(&mut self, board: &Board) -> Result<(), DiskTrouble> {
        let slot = SlotIndex(self.next_read);
        self.next_read = (slot.0 + 1) % SLOTS;
        self.read(slot, board)
    }

    /// Overwrites the whole ring with noise: what a wrecked machine's disk looks like.
    ///
    /// # Errors
    /// [`DiskTrouble::Io`].
    pub fn scribble(&mut self) -> Result<(), DiskTrouble> {
        for slot in self.ledger.slots() {
            let mut noise = Block::zeroed();
            for chunk in noise.bytes_mut().chunks_exact_mut(8) {
                chunk.copy_from_slice(&self.dice.roll().to_le_bytes());
            }
            self.put(&noise, slot)?;
        }
        Ok(())
    }

    fn read(&self, slot: SlotIndex, board: &Board) -> Result<(), DiskTrouble> {
        let mut block = Block::zeroed();
        let read = self.file.read_exact_at(block.bytes_mut(), offset(slot));
        read.map_err(|source| self.io("read", slot, source))?;
        let verdict = self.ledger.judge(slot, &block, self.upstream(board));
        verdict.map_err(|fault| DiskTrouble::Fault { name: self.name.clone(), fault })
    }

    fn put(&self, block: &Block, slot: SlotIndex) -> Result<(), DiskTrouble> {
        debug_assert_eq!(block.bytes().len(), PAGE_BYTES);
        self.file.write_all_at(block.bytes(), offset(slot)).map_err(|source| self.io("write", slot, source))
    }

    fn upstream(&self, board: &Board) -> Option<Sequence> {
        board.acknowledged(self.position.checked_sub(1)?)
    }

    fn io(&self, verb: &'static str, slot: SlotIndex, source: io::Error) -> DiskTrouble {
        DiskTrouble::Io { name: self.name.clone(), verb, slot, source }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("name", &self.name).field("last", &self.ledger.last()).finish_non_exhaustive()
    }
}

/// Bits that differ between two machines which continue from the same instant.
fn clock_bits() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}
