//! Directories: an index whose blocks are read one by one, as far as its bitmap says that they are in use.

use super::Ntfs;
use super::record::{mend, number};
use crate::bytes::{Fields as _, utf16};
use crate::error::{Error, Result, damaged};

const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
const BITMAP: u32 = 0xb0;
const NAMES: &str = "$I30";
/// The name space of short names, which files have besides their own.
pub(super) const DOS: u8 = 2;
const LAST: u16 = 2;

impl Ntfs {
    pub(super) fn list(&self, dir: u64, each: &mut dyn FnMut(u64, String) -> Result<()>) -> Result<()> {
        let root = self.whole(dir, INDEX_ROOT, NAMES)?.ok_or(Error::NotADirectory)?;
        entries(root.from(16)?, each)?;
        let Some(blocks) = self.stream(dir, INDEX_ALLOCATION, NAMES)? else { return Ok(()) };
        let used = self.whole(dir, BITMAP, NAMES)?.unwrap_or_default();
        let block_bytes = root.le32(8)? as usize;
        if !block_bytes.is_power_of_two() || !(512..=65536).contains(&block_bytes) {
            return Err(damaged("the size of an NTFS directory's blocks"));
        }
        let mut block = vec![0; block_bytes];
        for n in 0..(blocks.size() / block_bytes as u64).min(used.len() as u64 * 8) {
            let is_used = used.get((n / 8) as usize).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
            if !is_used {
                continue;
            }
            self.read_stream(&blocks, n * block_bytes as u64, &mut block)?;
            mend(&mut block, b"INDX")?;
            entries(block.from(24)?, each)?;
        }
        Ok(())
    }
}

/// The entries of a node, which begins with where they are.
fn entries(node: &[u8], each: &mut dyn FnMut(u64, String) -> Result<()>) -> Result<()> {
    let (mut at, end) = (node.le32(0)? as usize, node.le32(4)? as usize);
    while at < end {
        let (len, flags) = (usize::from(node.le16(at + 8)?), node.le16(at + 12)?);
        if flags & LAST != 0 {
            return Ok(());
        }
        if len < 16 {
            return Err(damaged("an NTFS directory's entry"));
        }
        let key = node.part(at + 16, usize::from(node.le16(at + 10)?))?;
        let (name_units, space) = (usize::from(key.u8(64)?), key.u8(65)?);
        if space != DOS {
            each(number(node.le64(at)?), utf16(key.part(66, name_units * 2)?))?;
        }
        at += len;
    }
    Ok(())
}
