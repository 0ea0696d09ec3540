//! The superblock and the groups' descriptors. Source: Linux, Documentation/filesystems/ext4.

use crate::bytes::{Fields as _, text};
use crate::disk::Disk;
use crate::error::{Result, damaged, unsupported};

/// Where the superblock is.
pub(crate) const AT: u64 = 1024;
const MAGIC: u16 = 0xef53;

const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
/// What is understood, or of no consequence for a reader: file types, recovery, groups of descriptors, extents, 64 bits,
/// multi-mount protection, flexible groups, attributes in inodes, checksum seed, large directories, inline data,
/// encryption (files that are encrypted are refused one by one), names without case.
const INCOMPAT_KNOWN: u32 = 0x2
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | 0x40
    | INCOMPAT_64BIT
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x10000
    | 0x20000;

/// What is needed of it.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub block_bytes: u64,
    pub blocks: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_bytes: u64,
    pub descriptor_bytes: u64,
    pub first_data_block: u64,
    pub blocks_per_group: u64,
    /// The first group whose descriptor is in its own meta group, where there are such.
    pub first_meta_group: Option<u64>,
    pub journal_inode: Option<u32>,
    pub external_journal: bool,
    /// Whether the journal has changes that are not in place yet.
    pub needs_recovery: bool,
    pub label: String,
    pub uuid: String,
    /// ext2, 3 or 4, by what it uses.
    pub kind: &'static str,
}

/// Whether there is such a superblock.
pub(crate) fn is_there(start: &[u8]) -> bool {
    start.le16(AT as usize + 0x38).is_ok_and(|magic| magic == MAGIC)
}

impl Superblock {
    pub(super) fn read(disk: &dyn Disk) -> Result<Self> {
        let mut raw = [0; 1024];
        disk.read_at(AT, &mut raw)?;
        let raw = raw.as_slice();
        if raw.le16(0x38)? != MAGIC {
            return Err(damaged("there is no ext4 superblock"));
        }
        let old = raw.le32(0x4c)? == 0;
        let (compat, incompat) = if old { (0, 0) } else { (raw.le32(0x5c)?, raw.le32(0x60)?) };
        if incompat & !INCOMPAT_KNOWN != 0 {
            let features = incompat & !INCOMPAT_KNOWN;
            return Err(unsupported(format!("ext4 with the features {features:#x}")));
        }
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(raw.le32(0x150)?) << 32 } else { 0 };
        let shift = raw.le32(0x18)?;
        if shift > 6 {
            return Err(damaged("ext4 blocks are larger than 64 KiB"));
        }
        let sb = Self {
            block_bytes: 1024 << shift,
            blocks: u64::from(raw.le32(4)?) | high,
            inodes: raw.le32(0)?,
            inodes_per_group: raw.le32(0x28)?,
            inode_bytes: if old { 128 } else { u64::from(raw.le16(0x58)?) },
            descriptor_bytes: if wide { u64::from(raw.le16(0xfe)?).max(32) } else { 32 },
            first_data_block: u64::from(raw.le32(0x14)?),
            blocks_per_group: u64::from(raw.le32(0x20)?),
            first_meta_group: (incompat & INCOMPAT_META_BG != 0).then_some(u64::from(raw.le32(0x104)?)),
            journal_inode: (compat & 0x4 != 0).then_some(raw.le32(0xe0)?).filter(|inode| *inode != 0),
            external_journal: compat & 0x4 != 0 && raw.le32(0xe4)? != 0,
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            label: text(raw.part(0x78, 16)?),
            uuid: crate::fs::uuid(raw.part(0x68, 16)?),
            kind: match () {
                () if incompat & (0x40 | INCOMPAT_64BIT | 0x200) != 0 => "ext4",
                () if compat & 0x4 != 0 => "ext3",
                () => "ext2",
            },
        };
        sb.check(disk)?;
        Ok(sb)
    }

    fn check(&self, disk: &dyn Disk) -> Result<()> {
        let sizes = [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
        if !sizes.contains(&self.inode_bytes) || self.inode_bytes > self.block_bytes {
            return Err(damaged(format!("ext4 inodes of {} bytes", self.inode_bytes)));
        }
        if self.inodes_per_group == 0 || self.blocks_per_group == 0 || self.descriptor_bytes > self.block_bytes {
            return Err(damaged("ext4 groups of nothing"));
        }
        if self.blocks.checked_mul(self.block_bytes).is_none_or(|end| end > disk.len()) {
            return Err(damaged("the ext4 file system is longer than what it lies on"));
        }
        Ok(())
    }

    /// Where a group's table of inodes begins, in bytes.
    pub(super) fn inode_table(&self, disk: &dyn Disk, group: u64) -> Result<u64> {
        let per_block = self.block_bytes / self.descriptor_bytes;
        let number = group / per_block;
        let block = match self.first_meta_group {
            // The descriptors of a meta group are in its first group, behind the copy of the superblock if that has one.
            Some(first) if number >= first => {
                let first_group = number * per_block;
                let start = self.first_data_block + first_group * self.blocks_per_group;
                start + u64::from(self.has_copy(first_group))
            }
            _ => self.first_data_block + 1 + number,
        };
        let at = block * self.block_bytes + group % per_block * self.descriptor_bytes;
        let raw = crate::disk::read_vec(disk, at, self.descriptor_bytes as usize)?;
        let high = if self.descriptor_bytes >= 64 { u64::from(raw.le32(0x28)?) << 32 } else { 0 };
        self.byte_of(u64::from(raw.le32(8)?) | high)
    }

    /// Which groups have a copy of the superblock, where not all have: 0, 1 and powers of 3, 5, 7.
    fn has_copy(&self, group: u64) -> bool {
        let power = |base: u64| (1..).map(|n| base.pow(n)).take_while(|n| *n <= group).any(|n| n == group);
        group <= 1 || power(3) || power(5) || power(7)
    }

    /// The first byte of a block.
    pub(super) fn byte_of(&self, block: u64) -> Result<u64> {
        if block >= self.blocks {
            return Err(damaged(format!("ext4 block {block} does not exist")));
        }
        Ok(block * self.block_bytes)
    }
}
