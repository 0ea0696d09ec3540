//! Extended attributes: behind an inode's fields, in a block of their own, and large values in inodes of their own.

use super::Ext4;
use super::inode::Inode;
use crate::bytes::Fields as _;
use crate::error::{Result, damaged};
use crate::fs::Xattr;

const MAGIC: u32 = 0xea02_0000;
/// The longest value that Linux has.
const VALUE_MOST: u32 = 1 << 16;
/// What inline data is called: no attribute for anybody.
const INLINE: (u8, &[u8]) = (7, b"data");

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Vec<u8>,
}

impl Ext4 {
    pub(super) fn attributes(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut all = Vec::new();
        self.each_attribute(inode, &mut |entry| {
            if (entry.index, entry.name) == INLINE {
                return Ok(());
            }
            let Some(prefix) = prefix(entry.index) else { return Ok(()) };
            let is_acl = matches!(entry.index, 2 | 3);
            let value = if is_acl { acl(&entry.value)? } else { entry.value };
            all.push(([prefix, entry.name].concat(), value));
            Ok(())
        })?;
        Ok(all)
    }

    /// The part of a file's bytes that does not fit its inode's map.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.each_attribute(inode, &mut |entry| {
            if (entry.index, entry.name) == INLINE {
                rest = entry.value;
            }
            Ok(())
        })?;
        Ok(rest)
    }

    fn each_attribute(&self, inode: &Inode, each: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        let inside = inode.behind_fields()?;
        if inside.len() > 8 && inside.le32(0)? == MAGIC {
            let table = inside.from(4)?;
            self.entries(table, table, each)?;
        }
        if let Some(number) = inode.xattr_block()? {
            let block = self.block(number)?;
            if block.le32(0)? != MAGIC {
                return Err(damaged(format!("the attributes of inode {}", inode.number)));
            }
            self.entries(block.from(32)?, &block, each)?;
        }
        Ok(())
    }

    fn entries(&self, table: &[u8], values: &[u8], each: &mut dyn FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        let mut at = 0;
        while at + 16 <= table.len() && table.le32(at)? != 0 {
            let name_bytes = usize::from(table.u8(at)?);
            let (index, offset) = (table.u8(at + 1)?, usize::from(table.le16(at + 2)?));
            let (elsewhere, len) = (table.le32(at + 4)?, table.le32(at + 8)?);
            if len > VALUE_MOST {
                return Err(damaged("an attribute's value is too long"));
            }
            let value = match elsewhere {
                0 => values.part(offset, len as usize)?.to_vec(),
                number => self.value_inode(u64::from(number), len as usize)?,
            };
            each(Entry { index, name: table.part(at + 16, name_bytes)?, value })?;
            at += (16 + name_bytes).next_multiple_of(4);
        }
        Ok(())
    }

    fn value_inode(&self, number: u64, len: usize) -> Result<Vec<u8>> {
        let mut value = vec![0; len];
        let read = self.read_inode(&self.inode(number)?, 0, &mut value)?;
        if read == len { Ok(value) } else { Err(damaged("an attribute's value is cut short")) }
    }
}

fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        8 => b"system.richacl",
        _ => return None,
    })
}

/// An access list as the system calls have it, from the shorter form on the disk.
fn acl(stored: &[u8]) -> Result<Vec<u8>> {
    if stored.le32(0)? != 1 {
        return Err(damaged("an access list"));
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut at = 4;
    while at < stored.len() {
        let tag = stored.le16(at)?;
        out.extend_from_slice(stored.part(at, 4)?);
        // A named user or group is told by number.
        let named = matches!(tag, 0x02 | 0x08);
        out.extend_from_slice(&if named { stored.array::<4>(at + 4)? } else { [0xff; 4] });
        at += if named { 8 } else { 4 };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_list_is_spelled_out() {
        let stored = [1u8, 0, 0, 0, 1, 0, 6, 0, 2, 0, 7, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
        let spelled = acl(&stored).unwrap();
        assert_eq!(spelled.len(), 4 + 3 * 8);
        assert_eq!(spelled.le32(0).unwrap(), 2);
        assert_eq!((spelled.le16(12).unwrap(), spelled.le32(16).unwrap()), (2, 1000));
        assert!(acl(&stored[..14]).is_err());
    }
}
