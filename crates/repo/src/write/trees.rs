//! The sequencer: takes pages in the image's order, decides which are new, and builds the image's tree.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::frame::{FRAME_MOST, FRAME_PAGES, FrameName};
use crate::ids::{Fingerprint, ObjectId, PAGE_BYTES};
use crate::index::Index;
use crate::known::Known;
use crate::progress::Run as Surroundings;
use crate::repository::{NodeReader, Repository};
use crate::tree::{self, Child, FANOUT, LEAF_PAGES, NodeRef, PageRef, Run, push_run};
use crate::write::packs::FrameOutlet;
use crate::write::scan::{InOrder, PIECE_PAGES, Page, Piece, Plan};

/// Nodes are gathered until there are so many bytes of them.
const NODE_FRAME_BYTES: usize = 256 << 10;

/// Where new nodes go.
pub struct NodeOutlet<'a> {
    outlet: FrameOutlet<'a>,
    raw: Vec<u8>,
}

impl<'a> NodeOutlet<'a> {
    pub fn new(outlet: FrameOutlet<'a>) -> Self {
        Self { outlet, raw: Vec::new() }
    }

    fn add(&mut self, node: &[u8]) -> Result<NodeRef> {
        if self.raw.len() + node.len() > FRAME_MOST {
            self.flush()?;
        }
        let name = self.outlet.next_name()?;
        let small = |len: usize| u32::try_from(len).map_err(|_| Error::Pipeline);
        let at =
            NodeRef { pack: name.pack, number: name.number, offset: small(self.raw.len())?, len: small(node.len())? };
        self.raw.extend_from_slice(node);
        if self.raw.len() >= NODE_FRAME_BYTES {
            self.flush()?;
        }
        Ok(at)
    }

    fn flush(&mut self) -> Result<()> {
        if self.raw.is_empty() { Ok(()) } else { self.outlet.send(std::mem::take(&mut self.raw), Vec::new()) }
    }

    pub fn close(mut self) -> Result<()> {
        self.flush()?;
        self.outlet.close()
    }
}

/// Where new pages go.
pub struct PageOutlet<'a> {
    outlet: FrameOutlet<'a>,
    raw: Vec<u8>,
    fingerprints: Vec<Fingerprint>,
}

impl<'a> PageOutlet<'a> {
    pub fn new(outlet: FrameOutlet<'a>) -> Self {
        Self { outlet, raw: Vec::new(), fingerprints: Vec::new() }
    }

    fn add(&mut self, fingerprint: Fingerprint, page: &[u8]) -> Result<PageRef> {
        if self.raw.capacity() == 0 {
            self.raw.reserve_exact(FRAME_MOST);
        }
        let frame = self.outlet.next_name()?;
        let slot = self.fingerprints.len() as u16;
        self.raw.extend_from_slice(page);
        self.fingerprints.push(fingerprint);
        if self.fingerprints.len() == FRAME_PAGES {
            self.flush()?;
        }
        Ok(PageRef { frame, slot })
    }

    fn flush(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.outlet.send(std::mem::take(&mut self.raw), std::mem::take(&mut self.fingerprints))
    }

    pub fn close(mut self) -> Result<()> {
        self.flush()?;
        self.outlet.close()
    }
}

/// What the sequencer remembers from image to image of a session.
#[derive(Debug, Default)]
pub struct Memory {
    pub known: Known,
    /// Packs that pages were found in, by what the pages' frames are named after.
    pub used: HashSet<ObjectId>,
    /// Packs that are to be removed: nothing new may refer to them.
    pub condemned: HashSet<ObjectId>,
    /// Packs whose fingerprints were read, perhaps out of a cache.
    pub learnt: HashSet<ObjectId>,
    pub new_bytes: u64,
    pub scanned_bytes: u64,
}

impl Memory {
    /// Learns the fingerprints of a pack, unless it is condemned or known.
    pub fn learn(&mut self, repository: &Repository, index: &Index, pack: u32) -> Result<()> {
        let Some(record) = index.pack(pack) else { return Ok(()) };
        let known = record.names().next().is_none_or(|first| self.known.has(first));
        if known || self.condemned.contains(&record.id) || record.content != crate::pack::Content::Pages {
            return Ok(());
        }
        let directory = match repository.directory(index, pack) {
            Ok(directory) => directory,
            // A pack that cannot be read is as good as unknown: its pages are stored again.
            Err(Error::Damaged { .. }) => return Ok(()),
            Err(Error::Store(error)) if !error.is_transient() => return Ok(()),
            Err(error) => return Err(error),
        };
        self.learnt.insert(record.id);
        let mut fingerprints = directory.fingerprints.as_slice();
        for frame in &directory.frames {
            let Some((of_frame, rest)) = fingerprints.split_at_checked(frame.pages.into()) else { break };
            self.known.add(frame.name, of_frame);
            fingerprints = rest;
        }
        Ok(())
    }
}

/// Builds one image's tree.
pub struct Sequencer<'a, 'm> {
    pub repository: &'a Repository,
    pub index: &'a Index,
    pub memory: &'m mut Memory,
    pub plan: &'a Plan,
    pub pieces: InOrder<'a>,
    pub pages: PageOutlet<'a>,
    pub nodes: NodeOutlet<'a>,
    pub old_nodes: NodeReader<'a>,
    /// Whether what is not read is as it was; otherwise it is zeros.
    pub keep_unread: bool,
    pub image_pages: u64,
    pub failure: &'a Failure,
    pub run: Surroundings<'a>,
    pub done_bytes: u64,
}

impl Sequencer<'_, '_> {
    /// The subtree at a level; `old` is what stood there in the point before.
    pub fn subtree(&mut self, level: u8, number: u64, old: Child) -> Result<Child> {
        let leaves = tree::pages_of(level) / LEAF_PAGES;
        if !self.plan.touches(number * leaves..(number + 1) * leaves) {
            return Ok(old.filter(|_| self.keep_unread));
        }
        if level == 0 {
            return self.leaf(number, old);
        }
        let (old, before) = self.before(old, |bytes| tree::decode_node(bytes, level))?;
        let before = before.unwrap_or_else(|| vec![None; FANOUT as usize]);
        let mut children = Vec::with_capacity(before.len());
        for (n, child) in (0..).zip(&before) {
            children.push(self.subtree(level - 1, number * FANOUT + n, *child)?);
        }
        if children == before {
            return Ok(old);
        }
        self.node(level, &children)
    }

    /// What stood in the point before, and what it says. Where all of the image is read, one that is damaged is as good as none: the
    /// new point is whole without it.
    fn before<T>(&mut self, old: Child, decode: impl FnOnce(&[u8]) -> Result<T>) -> Result<(Child, Option<T>)> {
        let Some(node) = old else { return Ok((None, None)) };
        match self.old_nodes.read(node).and_then(decode) {
            Err(error) if error.is_damage() && !self.keep_unread => Ok((None, None)),
            read => Ok((old, Some(read?))),
        }
    }

    /// A new inner node, where it is not all zeros.
    pub fn node(&mut self, level: u8, children: &[Child]) -> Result<Child> {
        if children.iter().all(Option::is_none) {
            return Ok(None);
        }
        self.nodes.add(&tree::encode_node(level, children)).map(Some)
    }

    fn leaf(&mut self, number: u64, old: Child) -> Result<Child> {
        self.run.check()?;
        let (old, before) = self.before(old, tree::decode_leaf)?;
        let before = before.unwrap_or_else(|| vec![Run { count: LEAF_PAGES as u32, at: None }]);
        let mut old_pages = before.iter().flat_map(|run| (0..run.count).map(|n| run.at.map(|at| at.ahead(n))));
        let mut runs = Vec::with_capacity(before.len());
        for piece_number in 0..LEAF_PAGES / PIECE_PAGES {
            let piece = self.pieces.next()?;
            let old_pages: Vec<_> = old_pages.by_ref().take(PIECE_PAGES as usize).collect();
            self.prepare(&piece, &old_pages)?;
            let first = number * LEAF_PAGES + piece_number * PIECE_PAGES;
            for (n, (page, old)) in piece.pages.iter().zip(&old_pages).enumerate() {
                let at = match page {
                    Page::Unread => old.filter(|_| self.keep_unread && first + (n as u64) < self.image_pages),
                    Page::Zero => None,
                    Page::Data(fingerprint) => {
                        let continued = runs.last().and_then(|last: &Run| last.at.map(|at| at.ahead(last.count)));
                        Some(self.page(*fingerprint, &piece, n, *old, continued)?)
                    }
                };
                push_run(&mut runs, Run { count: 1, at });
            }
            self.pieces.give_back(piece);
        }
        self.run.progress.bytes(self.done_bytes, self.plan.bytes());
        if self.failure.happened() {
            return Err(Error::Pipeline);
        }
        if runs == before {
            return Ok(old);
        }
        if runs.iter().all(|run| run.at.is_none()) {
            return Ok(None);
        }
        self.nodes.add(&tree::encode_leaf(&runs)).map(Some)
    }

    /// Learns the packs that the pages of a piece may be in: those of the point before, and those that hooks lead to.
    fn prepare(&mut self, piece: &Piece, old: &[Option<PageRef>]) -> Result<()> {
        const PACKS_LEARNT: usize = 16;
        let mut learnt = 0;
        let mut last: Option<FrameName> = None;
        for (page, old) in piece.pages.iter().zip(old) {
            let Page::Data(fingerprint) = page else { continue };
            self.done_bytes += PAGE_BYTES as u64;
            if learnt >= PACKS_LEARNT {
                continue;
            }
            if let Some(frame) = old.map(|old| old.frame).filter(|frame| Some(*frame) != last) {
                last = Some(frame);
                if !self.memory.known.has(frame) {
                    for at in self.index.locate(frame) {
                        self.memory.learn(self.repository, self.index, at.pack)?;
                        learnt += 1;
                    }
                }
            }
            for pack in self.index.hooked(*fingerprint) {
                if self.memory.known.find(*fingerprint).is_none() {
                    self.memory.learn(self.repository, self.index, pack)?;
                    learnt += 1;
                }
            }
        }
        Ok(())
    }

    /// Where a page is: where it was, behind its neighbour, anywhere, or in a new frame.
    fn page(
        &mut self,
        fingerprint: Fingerprint,
        piece: &Piece,
        number: usize,
        old: Option<PageRef>,
        continued: Option<PageRef>,
    ) -> Result<PageRef> {
        self.memory.scanned_bytes += PAGE_BYTES as u64;
        let same = |known: &Known, at: &PageRef| known.fingerprint_at(*at) == Some(fingerprint);
        let guess = [old, continued].into_iter().flatten().find(|at| same(&self.memory.known, at));
        if let Some(at) = guess.or_else(|| self.memory.known.find(fingerprint)) {
            self.memory.used.insert(at.frame.pack);
            return Ok(at);
        }
        let at = self.pages.add(fingerprint, piece.page(number))?;
        self.memory.known.extend(at.frame, fingerprint);
        self.memory.new_bytes += PAGE_BYTES as u64;
        Ok(at)
    }
}
