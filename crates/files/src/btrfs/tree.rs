//! Nodes, and walks over them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::chunk::Chunks;
use crate::bytes::Fields as _;
use crate::checksum::crc32c;
use crate::error::{Result, damaged};

pub(super) const KEY_BYTES: usize = 17;
const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;
/// Trees are at most this high.
const LEVEL_MOST: u8 = 7;
/// Nodes that are kept.
const NODES_KEPT: usize = 256;

/// What items are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub(super) fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    pub(super) fn read(raw: &[u8]) -> Result<Self> {
        Ok(Self { object: raw.le64(0)?, kind: raw.u8(8)?, offset: raw.le64(9)? })
    }
}

/// The topmost node of a tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub logical: u64,
    pub level: u8,
}

/// A node's items, or its pointers to children: in the order of their keys, which each begins with.
struct Table<'a> {
    bytes: &'a [u8],
    step: usize,
    count: usize,
}

impl<'a> Table<'a> {
    fn of(node: &'a [u8], level: u8) -> Result<Self> {
        let count = node.le32(0x60)? as usize;
        let step = if level == 0 { ITEM_BYTES } else { POINTER_BYTES };
        Ok(Self { bytes: node.part(HEADER_BYTES, count.saturating_mul(step))?, step, count })
    }

    fn entry(&self, n: usize) -> Result<&'a [u8]> {
        self.bytes.part(n * self.step, self.step)
    }

    fn key(&self, n: usize) -> Result<Key> {
        Key::read(self.entry(n)?)
    }

    /// The node that a pointer of a node of this level names.
    fn child(&self, n: usize, level: u8) -> Result<Root> {
        Ok(Root { logical: self.bytes.le64(n * self.step + KEY_BYTES)?, level: level - 1 })
    }

    /// The first entry whose key is such, where that of all behind it is, too; `count` when none is.
    fn first_where(&self, is_such: impl Fn(Key) -> bool) -> Result<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if is_such(self.key(middle)?) { high = middle } else { low = middle + 1 }
        }
        Ok(low)
    }
}

/// Whether a walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    On,
    Stop,
}

/// Reads nodes.
pub(super) struct Nodes {
    pub chunks: Chunks,
    pub node_bytes: usize,
    /// Whether checksums are CRC-32C, which is the one that is compared.
    pub checked: bool,
    kept: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
}

impl Nodes {
    pub(super) fn new(chunks: Chunks, node_bytes: usize, checked: bool) -> Self {
        Self { chunks, node_bytes, checked, kept: Mutex::default() }
    }

    fn node(&self, root: Root) -> Result<Arc<Vec<u8>>> {
        let node = self.raw(root.logical)?;
        if node.u8(100)? != root.level {
            return Err(damaged(format!("the btrfs node at {} is of another level", root.logical)));
        }
        Ok(node)
    }

    fn raw(&self, logical: u64) -> Result<Arc<Vec<u8>>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = kept().get(&logical) {
            return Ok(Arc::clone(node));
        }
        let mut node = vec![0; self.node_bytes];
        self.chunks.read(logical, &mut node)?;
        let wrong_sum = self.checked && crc32c(node.from(32)?) != node.le32(0)?;
        if wrong_sum || node.le64(0x30)? != logical {
            return Err(damaged(format!("the btrfs node at {logical} is not what was written there")));
        }
        let node = Arc::new(node);
        let mut kept = kept();
        if kept.len() >= NODES_KEPT {
            kept.clear();
        }
        kept.insert(logical, Arc::clone(&node));
        Ok(node)
    }

    /// Gives items from a key on, in order, until told to stop.
    pub(super) fn walk(&self, root: Root, from: Key, each: &mut dyn FnMut(Key, &[u8]) -> Result<Go>) -> Result<()> {
        if root.level > LEVEL_MOST {
            return Err(damaged("a btrfs tree is too high"));
        }
        self.visit(root, from, &mut None, each).map(drop)
    }

    fn visit(
        &self,
        root: Root,
        from: Key,
        last: &mut Option<Key>,
        each: &mut dyn FnMut(Key, &[u8]) -> Result<Go>,
    ) -> Result<Go> {
        let node = self.node(root)?;
        let table = Table::of(&node, root.level)?;
        let low = table.first_where(|key| key >= from)?;
        if root.level > 0 {
            // The child before may have it: its key is its first.
            for n in low.saturating_sub(1)..table.count {
                let child = table.child(n, root.level)?;
                if self.visit(child, from, last, each)? == Go::Stop {
                    return Ok(Go::Stop);
                }
            }
            return Ok(Go::On);
        }
        for n in low..table.count {
            let (key, item) = (table.key(n)?, table.entry(n)?);
            // Order is what keeps a walk over hostile nodes from going on forever.
            if last.is_some_and(|last| last >= key) {
                return Err(damaged("items of a btrfs tree are out of order"));
            }
            *last = Some(key);
            let (offset, len) = (item.le32(17)? as usize, item.le32(21)? as usize);
            if each(key, node.from(HEADER_BYTES)?.part(offset, len)?)? == Go::Stop {
                return Ok(Go::Stop);
            }
        }
        Ok(Go::On)
    }

    /// The key of the last item up to this one.
    pub(super) fn last_before(&self, mut root: Root, wanted: Key) -> Result<Option<Key>> {
        if root.level > LEVEL_MOST {
            return Err(damaged("a btrfs tree is too high"));
        }
        loop {
            let node = self.node(root)?;
            let table = Table::of(&node, root.level)?;
            let Some(n) = table.first_where(|key| key > wanted)?.checked_sub(1) else { return Ok(None) };
            if root.level == 0 {
                return table.key(n).map(Some);
            }
            root = table.child(n, root.level)?;
        }
    }

    /// The first item from a key on, if `fits` says that it is the one.
    pub(super) fn find(&self, root: Root, from: Key, fits: impl Fn(Key) -> bool) -> Result<Option<(Key, Vec<u8>)>> {
        let mut found = None;
        self.walk(root, from, &mut |key, item| {
            found = fits(key).then(|| (key, item.to_vec()));
            Ok(Go::Stop)
        })?;
        Ok(found)
    }
}
