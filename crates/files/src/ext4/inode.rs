//! Inodes, and where their bytes are.

use crate::bytes::Fields as _;
use crate::error::{Result, damaged, unsupported};
use crate::fs::{Kind, Metadata, Owner, Time};

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

/// An inode with its bytes.
pub(super) struct Inode {
    pub number: u64,
    pub raw: Vec<u8>,
}

/// Where a file's block is, and for how many blocks from there on the same is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The block of the file system; `None` for zeros.
    pub block: Option<u64>,
    /// At least one.
    pub count: u64,
}

impl Inode {
    pub(super) fn mode(&self) -> Result<u32> {
        self.raw.le16(0).map(u32::from)
    }

    pub(super) fn kind(&self) -> Result<Kind> {
        let mode = self.mode()?;
        Kind::of_mode(mode).ok_or_else(|| damaged(format!("inode {} is of no type (mode {mode:o})", self.number)))
    }

    fn flags(&self) -> Result<u32> {
        self.raw.le32(0x20)
    }

    pub(super) fn has_extents(&self) -> Result<bool> {
        Ok(self.flags()? & FLAG_EXTENTS != 0)
    }

    pub(super) fn is_inline(&self) -> Result<bool> {
        Ok(self.flags()? & FLAG_INLINE != 0)
    }

    /// Encrypted files and directories are not read: their bytes and names are no use.
    pub(super) fn refuse_encrypted(&self) -> Result<()> {
        if self.flags()? & FLAG_ENCRYPTED != 0 { Err(unsupported("encrypted by the guest")) } else { Ok(()) }
    }

    pub(super) fn size(&self) -> Result<u64> {
        Ok(u64::from(self.raw.le32(4)?) | u64::from(self.raw.le32(0x6c)?) << 32)
    }

    /// The 60 bytes that say where the bytes are, or have them.
    pub(super) fn map(&self) -> Result<&[u8]> {
        self.raw.part(0x28, 60)
    }

    /// The block with more extended attributes.
    pub(super) fn xattr_block(&self) -> Result<Option<u64>> {
        let block = u64::from(self.raw.le32(0x68)?) | u64::from(self.raw.le16(0x76)?) << 32;
        Ok((block != 0).then_some(block))
    }

    /// What is behind the fields of a large inode.
    pub(super) fn behind_fields(&self) -> Result<&[u8]> {
        if self.raw.len() <= 128 {
            return Ok(&[]);
        }
        let extra = usize::from(self.raw.le16(0x80)?);
        Ok(self.raw.get(128 + extra..).unwrap_or_default())
    }

    fn time(&self, at: usize, extra_at: usize) -> Result<Time> {
        let seconds = i64::from(self.raw.le32(at)?.cast_signed());
        let has_extra = self.raw.len() > 128 && usize::from(self.raw.le16(0x80)?) + 128 >= extra_at + 4;
        let extra = if has_extra { self.raw.le32(extra_at)? } else { 0 };
        Ok(Time::new(seconds + (i64::from(extra & 3) << 32), extra >> 2))
    }

    pub(super) fn metadata(&self) -> Result<Metadata> {
        let (mode, kind) = (self.mode()?, self.kind()?);
        let id = |low: usize, high: usize| -> Result<u32> {
            Ok(u32::from(self.raw.le16(low)?) | u32::from(self.raw.le16(high)?) << 16)
        };
        let device = match kind {
            Kind::BlockDevice | Kind::CharDevice => Some(self.device()?),
            _ => None,
        };
        Ok(Metadata {
            kind,
            size: self.size()?,
            mode: mode & 0o7777,
            owner: Some(Owner { uid: id(2, 0x78)?, gid: id(0x18, 0x7a)? }),
            modified: Some(self.time(0x10, 0x88)?),
            changed: Some(self.time(0xc, 0x84)?),
            accessed: Some(self.time(8, 0x8c)?),
            links: u32::from(self.raw.le16(0x1a)?),
            device,
        })
    }

    fn device(&self) -> Result<(u32, u32)> {
        let (old, new) = (self.map()?.le32(0)?, self.map()?.le32(4)?);
        Ok(if old != 0 { (old >> 8 & 0xff, old & 0xff) } else { (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00) })
    }
}
