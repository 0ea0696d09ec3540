//! ext2, ext3 and ext4.
//!
//! ```text
//!   superblock ─▶ journal (read along) ─▶ group ─▶ inode ─▶ extents or pointers ─▶ bytes, names, attributes
//! ```

mod dir;
mod inode;
mod journal;
mod map;
mod superblock;
mod xattr;

use std::sync::Arc;

use crate::bytes::Fields as _;
use crate::disk::{Disk, behind_end, read_vec};
use crate::error::{Error, Result, damaged, unsupported};
use crate::fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, TARGET_MOST, Xattr};

use inode::Inode;
use journal::{Log, Replayed};
use superblock::Superblock;
pub(crate) use superblock::is_there;

const ROOT: u64 = 2;
/// Blocks of a journal that are looked at: 16 GiB of 4 KiB blocks are more than `mke2fs` makes.
const JOURNAL_BLOCKS_MOST: u64 = 4 << 20;

/// A file system.
pub struct Ext4 {
    disk: Arc<dyn Disk>,
    sb: Superblock,
    notes: Vec<String>,
}

impl Ext4 {
    /// Opens it, with its journal read along.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`] for features that change how it is read.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let sb = Superblock::read(&*disk)?;
        let fs = Self { disk, sb, notes: Vec::new() };
        if !fs.sb.needs_recovery {
            return Ok(fs);
        }
        let Some(journal) = fs.sb.journal_inode else {
            let what =
                if fs.sb.external_journal { "a journal on another device, with changes in it" } else { "recovery" };
            return Err(unsupported(what));
        };
        let log = fs.log(u64::from(journal))?;
        let mut changes = log.read()?;
        let notes = std::mem::take(&mut changes.notes);
        let disk: Arc<dyn Disk> = Arc::new(Replayed { disk: fs.disk, block_bytes: fs.sb.block_bytes, changes });
        let sb = Superblock::read(&*disk)?;
        Ok(Self { disk, sb, notes })
    }

    fn log(&self, number: u64) -> Result<Log> {
        let inode = self.inode(number)?;
        let blocks = inode.size()? / self.sb.block_bytes;
        if blocks > JOURNAL_BLOCKS_MOST {
            return Err(damaged("the journal is longer than any"));
        }
        let mut places = Vec::new();
        while (places.len() as u64) < blocks {
            let here = places.len() as u64;
            let run = self.run_at(&inode, here)?;
            let first = run.block.ok_or_else(|| damaged("the journal has holes"))?;
            let count = run.count.min(blocks - here);
            places.extend((first..first + count).map(|block| block * self.sb.block_bytes));
        }
        Ok(Log { disk: Arc::clone(&self.disk), block_bytes: self.sb.block_bytes, blocks: places })
    }

    fn block(&self, number: u64) -> Result<Vec<u8>> {
        read_vec(&*self.disk, self.sb.byte_of(number)?, self.sb.block_bytes as usize)
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        if number == 0 || number > u64::from(self.sb.inodes) {
            return Err(damaged(format!("inode {number} does not exist")));
        }
        let per_group = u64::from(self.sb.inodes_per_group);
        let (group, n) = ((number - 1) / per_group, (number - 1) % per_group);
        let at = self.sb.inode_table(&*self.disk, group)? + n * self.sb.inode_bytes;
        Ok(Inode { number, raw: read_vec(&*self.disk, at, self.sb.inode_bytes as usize)? })
    }

    /// Reads bytes of a file, directory or long link.
    fn read_inode(&self, inode: &Inode, at: u64, into: &mut [u8]) -> Result<usize> {
        let left = inode.size()?.saturating_sub(at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..len).unwrap_or_default();
        if inode.is_inline()? {
            let bytes = [inode.map()?, &self.inline_rest(inode)?].concat();
            into.copy_from_slice(bytes.part(usize::try_from(at).unwrap_or(usize::MAX), len)?);
            return Ok(len);
        }
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            let (block, within) = (here / self.sb.block_bytes, here % self.sb.block_bytes);
            let run = self.run_at(inode, block)?;
            let room = run.count.saturating_mul(self.sb.block_bytes) - within;
            let part = usize::try_from(room).unwrap_or(usize::MAX).min(len - done);
            let target = into.get_mut(done..done + part).ok_or_else(behind_end)?;
            match run.block {
                Some(first) => self.disk.read_at(first * self.sb.block_bytes + within, target)?,
                None => target.fill(0),
            }
            done += part;
        }
        Ok(len)
    }
}

impl FileSystem for Ext4 {
    fn about(&self) -> About {
        About {
            kind: self.sb.kind.to_owned(),
            label: self.sb.label.clone(),
            uuid: self.sb.uuid.clone(),
            lacks: Vec::new(),
            notes: self.notes.clone(),
        }
    }

    fn root(&self) -> Node {
        Node::new(ROOT)
    }

    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        self.list(&self.inode(dir.number)?, each)
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        self.inode(node.number)?.metadata()
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        let inode = self.inode(node.number)?;
        if inode.kind()? != Kind::File {
            return Err(Error::IsADirectory);
        }
        inode.refuse_encrypted()?;
        self.read_inode(&inode, at, into)
    }

    fn data_from(&self, node: Node, at: u64) -> Result<u64> {
        let inode = self.inode(node.number)?;
        let (size, block_bytes) = (inode.size()?, self.sb.block_bytes);
        let mut here = at;
        while here < size && !inode.is_inline()? {
            let run = self.run_at(&inode, here / block_bytes)?;
            if run.block.is_some() {
                break;
            }
            let end = (here / block_bytes).saturating_add(run.count).saturating_mul(block_bytes);
            here = end.min(size);
        }
        Ok(here)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let inode = self.inode(node.number)?;
        if inode.kind()? != Kind::Link {
            return Err(Error::NotALink);
        }
        inode.refuse_encrypted()?;
        let size = inode.size()?;
        if size < 60 && !inode.has_extents()? && !inode.is_inline()? {
            return Ok(inode.map()?.part(0, size as usize)?.to_vec());
        }
        if size > TARGET_MOST {
            return Err(damaged("a symbolic link's target is too long"));
        }
        let mut target = vec![0; size as usize];
        self.read_inode(&inode, 0, &mut target)?;
        Ok(target)
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        self.attributes(&self.inode(node.number)?)
    }
}
