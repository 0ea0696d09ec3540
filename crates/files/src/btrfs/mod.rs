//! btrfs on one disk, or with whole copies on it. All subvolumes are seen from the topmost one.
//!
//! ```text
//!   superblock ─▶ chunks ─▶ tree of roots ─▶ a subvolume's tree ─▶ inodes, names, extents, attributes
//! ```
//! What is on the disk is the last commit, whole at any instant; the log of what was synced since is not read, and that is said.

mod chunk;
mod data;
mod lzo;
mod tree;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bytes::{Fields as _, text};
use crate::checksum::crc32c_raw;
use crate::disk::{Disk, read_vec};
use crate::error::{Error, Result, damaged, unsupported};
use crate::fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, Owner, TARGET_MOST, Time, Xattr};

use chunk::Chunks;
use data::Decompressed;
use tree::{Go, Key, Nodes, Root};

const SUPERBLOCK_AT: u64 = 0x1_0000;
const FS_TREE: u64 = 5;
const ROOT_DIR: u64 = 256;
const CHUNK_TREE_OBJECT: u64 = 256;

const INODE_ITEM: u8 = 1;
const XATTR_ITEM: u8 = 24;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;

/// What is understood, or of no consequence for a reader; not zones, nor a second form of the extent tree, nor stripe trees.
const INCOMPAT_KNOWN: u64 = 0x1_0fff;

/// A file system.
pub struct Btrfs {
    nodes: Nodes,
    sector: usize,
    roots: Root,
    trees: Mutex<HashMap<u64, Root>>,
    last: Mutex<Option<Decompressed>>,
    label: String,
    uuid: String,
    notes: Vec<String>,
}

impl Btrfs {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let sb = read_vec(&*disk, SUPERBLOCK_AT, 4096)?;
        if sb.part(0x40, 8)? != b"_BHRfS_M" {
            return Err(damaged("there is no btrfs superblock"));
        }
        let checked = sb.le16(0xc4)? == 0;
        if checked && crate::checksum::crc32c(sb.from(32)?) != sb.le32(0)? {
            return Err(damaged("the btrfs superblock's checksum is wrong"));
        }
        let unknown = sb.le64(0xbc)? & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(unsupported(format!("btrfs with the features {unknown:#x}")));
        }
        let (sector, node_bytes) = (sb.le32(0x90)? as usize, sb.le32(0x94)? as usize);
        let sound = |bytes: usize| bytes.is_power_of_two() && (4096..=65536).contains(&bytes);
        if !sound(sector) || !sound(node_bytes) {
            return Err(damaged("btrfs' sizes of sectors and nodes"));
        }
        let mut chunks = Chunks::new(Arc::clone(&disk), sb.le64(0xc9)?);
        chunks.add_array(sb.part(0x32b, (sb.le32(0xa0)? as usize).min(2048))?)?;
        let mut nodes = Nodes::new(chunks, node_bytes, checked);
        let chunk_root = Root { logical: sb.le64(0x58)?, level: sb.u8(0xc7)? };
        let mut found = Vec::new();
        nodes.walk(chunk_root, Key::new(CHUNK_TREE_OBJECT, CHUNK_ITEM, 0), &mut |key, item| {
            if (key.object, key.kind) != (CHUNK_TREE_OBJECT, CHUNK_ITEM) {
                return Ok(Go::Stop);
            }
            found.push((key, item.to_vec()));
            Ok(Go::On)
        })?;
        for (key, item) in found {
            nodes.chunks.add(key, &item)?;
        }
        let mut notes = Vec::new();
        if sb.le64(0x60)? != 0 {
            notes.push(
                "what programs synced after its last commit (up to 30 s) is in a log that is not read".to_owned(),
            );
        }
        let roots = Root { logical: sb.le64(0x50)?, level: sb.u8(0xc6)? };
        Ok(Self {
            nodes,
            sector,
            roots,
            trees: Mutex::default(),
            last: Mutex::default(),
            label: text(sb.part(0x12b, 256)?),
            uuid: crate::fs::uuid(sb.part(0x20, 16)?),
            notes,
        })
    }

    fn tree(&self, id: u64) -> Result<Root> {
        let known = || self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = known().get(&id) {
            return Ok(*root);
        }
        let found =
            self.nodes.find(self.roots, Key::new(id, ROOT_ITEM, 0), |key| (key.object, key.kind) == (id, ROOT_ITEM))?;
        let (_, item) = found.ok_or_else(|| damaged(format!("btrfs has no subvolume {id}")))?;
        let root = Root { logical: item.le64(176)?, level: item.u8(238)? };
        let mut known = known();
        if known.len() > 1000 {
            known.clear();
        }
        known.insert(id, root);
        Ok(root)
    }

    fn inode(&self, node: Node) -> Result<Vec<u8>> {
        let key = Key::new(node.number, INODE_ITEM, 0);
        let found = self.nodes.find(self.tree(node.tree)?, key, |found| found == key)?;
        Ok(found.ok_or_else(|| damaged(format!("btrfs inode {} does not exist", node.number)))?.1)
    }

    fn kind(&self, node: Node) -> Result<Kind> {
        kind(&self.inode(node)?)
    }
}

fn kind(inode: &[u8]) -> Result<Kind> {
    Kind::of_mode(inode.le32(52)?).ok_or_else(|| damaged("a btrfs inode is of no type"))
}

/// Takes what a name stands for, the name, and data.
type EachName<'a> = dyn FnMut(Key, &[u8], &[u8]) -> Result<()> + 'a;

/// A name, what it stands for, and data: the form of directories and attributes. Names whose hashes are the same share an item.
fn each_name(item: &[u8], each: &mut EachName<'_>) -> Result<()> {
    let mut at = 0;
    while at + 30 <= item.len() {
        let (data, name) = (usize::from(item.le16(at + 25)?), usize::from(item.le16(at + 27)?));
        let (name_at, data_at) = (at + 30, at + 30 + name);
        each(Key::read(item.from(at)?)?, item.part(name_at, name)?, item.part(data_at, data)?)?;
        at = data_at + data;
    }
    Ok(())
}

/// The node that a name's key stands for: in the same tree, or the top of another subvolume.
fn target(dir: Node, key: Key) -> Option<Node> {
    match key.kind {
        INODE_ITEM => Some(Node { tree: dir.tree, number: key.object }),
        ROOT_ITEM => Some(Node { tree: key.object, number: ROOT_DIR }),
        _ => None,
    }
}

impl FileSystem for Btrfs {
    fn about(&self) -> About {
        About {
            kind: "btrfs".to_owned(),
            label: self.label.clone(),
            uuid: self.uuid.clone(),
            lacks: Vec::new(),
            notes: self.notes.clone(),
        }
    }

    fn root(&self) -> Node {
        Node { tree: FS_TREE, number: ROOT_DIR }
    }

    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        if self.kind(dir)? != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        self.nodes.walk(self.tree(dir.tree)?, Key::new(dir.number, DIR_INDEX, 0), &mut |key, item| {
            if (key.object, key.kind) != (dir.number, DIR_INDEX) {
                return Ok(Go::Stop);
            }
            each_name(item, &mut |key, name, _| match target(dir, key) {
                Some(node) if name != b"." && name != b".." => each(DirEntry { name: name.to_vec(), node }),
                _ => Ok(()),
            })?;
            Ok(Go::On)
        })
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        if self.kind(dir)? != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        let key = Key::new(dir.number, DIR_ITEM, u64::from(crc32c_raw(!1, name)));
        let Some((_, item)) = self.nodes.find(self.tree(dir.tree)?, key, |found| found == key)? else {
            return Err(Error::NotFound);
        };
        let mut found = None;
        each_name(&item, &mut |key, other, _| {
            if other == name {
                found = target(dir, key);
            }
            Ok(())
        })?;
        found.ok_or(Error::NotFound)
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        let inode = self.inode(node)?;
        let inode = inode.as_slice();
        let kind = kind(inode)?;
        let time = |at: usize| -> Result<Option<Time>> {
            Ok(Some(Time::new(inode.le64(at)?.cast_signed(), inode.le32(at + 8)?)))
        };
        let device = match kind {
            Kind::BlockDevice | Kind::CharDevice => {
                let device = inode.le64(56)?;
                Some(((device >> 20 & 0xfff) as u32, (device & 0xf_ffff) as u32))
            }
            _ => None,
        };
        Ok(Metadata {
            kind,
            size: inode.le64(16)?,
            mode: inode.le32(52)? & 0o7777,
            owner: Some(Owner { uid: inode.le32(44)?, gid: inode.le32(48)? }),
            accessed: time(112)?,
            changed: time(124)?,
            modified: time(136)?,
            links: inode.le32(40)?,
            device,
        })
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        let inode = self.inode(node)?;
        if kind(&inode)? != Kind::File {
            return Err(Error::IsADirectory);
        }
        self.read_extents(node, inode.le64(16)?, at, into)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let inode = self.inode(node)?;
        if kind(&inode)? != Kind::Link {
            return Err(Error::NotALink);
        }
        let size = inode.le64(16)?;
        if size > TARGET_MOST {
            return Err(damaged("a symbolic link's target is too long"));
        }
        let mut target = vec![0; size as usize];
        self.read_extents(node, size, 0, &mut target)?;
        Ok(target)
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        let mut all = Vec::new();
        self.nodes.walk(self.tree(node.tree)?, Key::new(node.number, XATTR_ITEM, 0), &mut |key, item| {
            if (key.object, key.kind) != (node.number, XATTR_ITEM) {
                return Ok(Go::Stop);
            }
            each_name(item, &mut |_, name, value| {
                all.push((name.to_vec(), value.to_vec()));
                Ok(())
            })?;
            Ok(Go::On)
        })?;
        // How the guest's btrfs is to compress is nothing that a file elsewhere can have.
        all.retain(|(name, _)| !name.starts_with(b"btrfs."));
        Ok(all)
    }
}
