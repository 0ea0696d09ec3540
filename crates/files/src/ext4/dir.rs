//! Directories. Hashed ones are read as if they were not: their inner blocks look like entries without a file.

use super::Ext4;
use super::inode::Inode;
use crate::bytes::Fields as _;
use crate::error::{Error, Result, damaged};
use crate::fs::{DirEntry, Kind, Node};

impl Ext4 {
    pub(super) fn list(&self, inode: &Inode, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        if inode.kind()? != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        inode.refuse_encrypted()?;
        if inode.is_inline()? {
            // Behind the number of the parent; the rest in an attribute.
            entries(inode.map()?.from(4)?, each)?;
            return entries(&self.inline_rest(inode)?, each);
        }
        let (size, block_bytes) = (inode.size()?, self.sb.block_bytes as usize);
        if size > self.disk.len() {
            return Err(damaged(format!("the directory {} is longer than the disk", inode.number)));
        }
        let mut buf = vec![0; block_bytes];
        let mut at = 0;
        while at < size {
            if self.read_inode(inode, at, &mut buf)? < block_bytes {
                return Err(damaged(format!("the directory {} ends within a block", inode.number)));
            }
            entries(&buf, each)?;
            at += block_bytes as u64;
        }
        Ok(())
    }
}

fn entries(block: &[u8], each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at + 8 <= block.len() {
        let (inode, name_bytes) = (block.le32(at)?, usize::from(block.u8(at + 6)?));
        let len = match usize::from(block.le16(at + 4)?) {
            // What does not fit the field, of a block of 64 KiB.
            0 | 0xffff if block.len() == 1 << 16 => block.len() - at,
            len => len,
        };
        if len < 8 || len % 4 != 0 || at + len > block.len() || name_bytes + 8 > len {
            return Err(damaged("a directory's entry"));
        }
        let name = block.part(at + 8, name_bytes)?;
        if inode != 0 && name != b"." && name != b".." && !name.is_empty() {
            each(DirEntry { name: name.to_vec(), node: Node::new(u64::from(inode)) })?;
        }
        at += len;
    }
    Ok(())
}
