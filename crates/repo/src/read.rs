//! Reading images back: any range at random, or the whole image in parallel.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::frame::{Decompressor, FrameName, Slots, slots};
use crate::ids::PAGE_BYTES;
use crate::index::Index;
use crate::point::StoredImage;
use crate::progress::Run as Surroundings;
use crate::repository::{NodeReader, Repository};
use crate::tree::{self, Child, FANOUT, LEAF_PAGES, Run};

/// Visits the leaves of an image that are not all zeros, in order: number and runs.
///
/// # Errors
/// What reading the nodes or the visitor gives.
pub fn visit_leaves(
    nodes: &mut NodeReader<'_>,
    image: &StoredImage,
    visit: &mut dyn FnMut(u64, Vec<Run>) -> Result<()>,
) -> Result<()> {
    let level = tree::levels(image.bytes)?;
    visit_subtree(nodes, level, 0, image.root, image.bytes.div_ceil(PAGE_BYTES as u64), visit)
}

fn visit_subtree(
    nodes: &mut NodeReader<'_>,
    level: u8,
    number: u64,
    child: Child,
    pages: u64,
    visit: &mut dyn FnMut(u64, Vec<Run>) -> Result<()>,
) -> Result<()> {
    let Some(node) = child.filter(|_| number * tree::pages_of(level) < pages) else { return Ok(()) };
    if level == 0 {
        let runs = tree::decode_leaf(nodes.read(node)?)?;
        return visit(number, runs);
    }
    let children = tree::decode_node(nodes.read(node)?, level)?;
    (0..)
        .zip(children)
        .try_for_each(|(n, child)| visit_subtree(nodes, level - 1, number * FANOUT + n, child, pages, visit))
}

/// Reads an image at random places. Keeps the frames and leaves that it used last.
#[derive(Debug)]
pub struct ImageReader<'a> {
    repository: &'a Repository,
    index: &'a Index,
    image: StoredImage,
    level: u8,
    nodes: NodeReader<'a>,
    decompressor: Decompressor,
    /// Least recently used first.
    leaves: Vec<(u64, Vec<Run>)>,
    frames: Vec<KeptFrame>,
}

#[derive(Debug)]
struct KeptFrame {
    name: FrameName,
    checked: Slots,
    raw: Vec<u8>,
}

/// 16 MiB of pages.
const FRAMES_KEPT: usize = 32;
const LEAVES_KEPT: usize = 16;

impl<'a> ImageReader<'a> {
    /// Reads this image.
    ///
    /// # Errors
    /// [`Error::ImageTooLarge`], [`Error::Compression`].
    pub fn new(repository: &'a Repository, index: &'a Index, image: StoredImage) -> Result<Self> {
        Ok(Self {
            repository,
            index,
            level: tree::levels(image.bytes)?,
            image,
            nodes: NodeReader::new(repository, index)?,
            decompressor: Decompressor::new()?,
            leaves: Vec::new(),
            frames: Vec::new(),
        })
    }

    /// Length of the image in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image.bytes
    }

    /// Fills a buffer with the image's bytes.
    ///
    /// # Errors
    /// [`Error::ImageShort`] behind the image's end; [`Error::Damaged`], [`Error::MissingFrame`], [`Error::Store`].
    pub fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.image.bytes) {
            return Err(Error::ImageShort);
        }
        let mut done = 0;
        while done < into.len() {
            let here = at + done as u64;
            let (page, within) = (here / PAGE_BYTES as u64, (here % PAGE_BYTES as u64) as usize);
            let (run, ahead) = self.run_at(page)?;
            let len = ((run.count - ahead) as usize * PAGE_BYTES - within).min(into.len() - done);
            let part = into.get_mut(done..done + len).ok_or(Error::Pipeline)?;
            match run.at.map(|at| at.ahead(ahead)) {
                None => part.fill(0),
                Some(at) => {
                    let pages = (within + len).div_ceil(PAGE_BYTES) as u32;
                    let raw = self.frame(at.frame, slots(at.slot, pages))?;
                    let start = usize::from(at.slot) * PAGE_BYTES + within;
                    part.copy_from_slice(raw.get(start..start + len).ok_or(Error::Pipeline)?);
                }
            }
            done += len;
        }
        Ok(())
    }

    /// The run that a page is in, and how far ahead in it the page is.
    fn run_at(&mut self, page: u64) -> Result<(Run, u32)> {
        let leaf = page / LEAF_PAGES;
        if let Some(kept) = self.leaves.iter().position(|(number, _)| *number == leaf) {
            let kept = self.leaves.remove(kept);
            self.leaves.push(kept);
        } else {
            let runs = self.load_leaf(leaf)?;
            if self.leaves.len() >= LEAVES_KEPT {
                self.leaves.remove(0);
            }
            self.leaves.push((leaf, runs));
        }
        let runs = self.leaves.last().map(|(_, runs)| runs.as_slice()).unwrap_or_default();
        let mut left = (page % LEAF_PAGES) as u32;
        for run in runs {
            if left < run.count {
                return Ok((*run, left));
            }
            left -= run.count;
        }
        Err(Error::Pipeline)
    }

    fn load_leaf(&mut self, leaf: u64) -> Result<Vec<Run>> {
        let mut child = self.image.root;
        for level in (1..=self.level).rev() {
            let Some(node) = child else { break };
            let children = tree::decode_node(self.nodes.read(node)?, level)?;
            let number = leaf / (tree::pages_of(level - 1) / LEAF_PAGES) % FANOUT;
            child = children.get(number as usize).copied().flatten();
        }
        match child {
            Some(node) => tree::decode_leaf(self.nodes.read(node)?),
            None => Ok(vec![Run { count: LEAF_PAGES as u32, at: None }]),
        }
    }

    fn frame(&mut self, name: FrameName, needed: Slots) -> Result<&[u8]> {
        let kept = self.frames.iter().position(|kept| kept.name == name);
        let mut kept = kept.map(|kept| self.frames.remove(kept));
        if kept.as_ref().is_none_or(|kept| needed & !kept.checked != 0) {
            let mut raw = match kept {
                Some(kept) => kept.raw,
                None if self.frames.len() >= FRAMES_KEPT => self.frames.remove(0).raw,
                None => Vec::new(),
            };
            let checked = self.repository.read_frame(self.index, name, needed, &mut self.decompressor, &mut raw)?;
            kept = Some(KeptFrame { name, checked, raw });
        }
        self.frames.extend(kept);
        Ok(self.frames.last().map(|kept| kept.raw.as_slice()).unwrap_or_default())
    }
}

/// What a restore did.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct RestoreReport {
    /// Length of the image.
    pub logical_bytes: u64,
    /// Bytes that are not zeros, and were written.
    pub written_bytes: u64,
    /// Frames that were read and opened.
    pub frames: u64,
}

/// Part of an image that comes out of one frame.
#[derive(Debug, Clone, Copy)]
struct Part {
    page: u64,
    slot: u16,
    count: u32,
}

/// Parts gathered before frames are read: 8 GiB of an image at least, and some 50 MiB of memory at most.
const PARTS_MOST: usize = 1 << 21;

/// Writes an image into an empty file: sparse, each frame opened once for each window of the image.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`], [`Error::MissingFrame`], [`Error::Store`].
pub fn restore_raw(
    repository: &Repository,
    index: &Index,
    image: &StoredImage,
    file: &File,
    path: &Path,
    run: Surroundings<'_>,
) -> Result<RestoreReport> {
    let trouble = |source| Error::Io { action: "write", path: path.to_owned(), source };
    file.set_len(image.bytes).map_err(trouble)?;
    let restore = Restore { repository, index, file, path, image_bytes: image.bytes, run, written: AtomicU64::new(0) };
    let mut frames = 0;
    let mut window: HashMap<FrameName, Vec<Part>> = HashMap::new();
    let mut parts = 0;
    let mut nodes = NodeReader::new(repository, index)?;
    visit_leaves(&mut nodes, image, &mut |leaf, runs| {
        let mut page = leaf * LEAF_PAGES;
        for piece in runs {
            if let Some(at) = piece.at {
                window.entry(at.frame).or_default().push(Part { page, slot: at.slot, count: piece.count });
                parts += 1;
            }
            page += u64::from(piece.count);
        }
        if parts >= PARTS_MOST {
            parts = 0;
            frames += window.len() as u64;
            restore.window(std::mem::take(&mut window))?;
        }
        Ok(())
    })?;
    frames += window.len() as u64;
    restore.window(window)?;
    Ok(RestoreReport { logical_bytes: image.bytes, written_bytes: restore.written.into_inner(), frames })
}

struct Restore<'a> {
    repository: &'a Repository,
    index: &'a Index,
    file: &'a File,
    path: &'a Path,
    image_bytes: u64,
    run: Surroundings<'a>,
    written: AtomicU64,
}

impl Restore<'_> {
    fn window(&self, window: HashMap<FrameName, Vec<Part>>) -> Result<()> {
        let mut frames: Vec<(FrameName, Vec<Part>)> = window.into_iter().collect();
        // In the order in which they lie in the store.
        frames.sort_by_cached_key(|(name, _)| self.index.locate(*name).next().map(|at| (at.pack, at.position)));
        let next = AtomicUsize::new(0);
        let failure = Failure::default();
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    if let Err(error) = self.work(&frames, &next, &failure) {
                        failure.report(error);
                    }
                });
            }
        });
        failure.take().map_or(Ok(()), Err)
    }

    fn work(&self, frames: &[(FrameName, Vec<Part>)], next: &AtomicUsize, failure: &Failure) -> Result<()> {
        let mut decompressor = Decompressor::new()?;
        let mut raw = Vec::new();
        while let Some((name, parts)) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failure.happened() {
                break;
            }
            self.run.check()?;
            let needed = parts.iter().fold(0, |needed, part| needed | slots(part.slot, part.count));
            self.repository.read_frame(self.index, *name, needed, &mut decompressor, &mut raw)?;
            for part in parts {
                self.write(part, &raw)?;
            }
        }
        Ok(())
    }

    fn write(&self, part: &Part, raw: &[u8]) -> Result<()> {
        let at = part.page * PAGE_BYTES as u64;
        let start = usize::from(part.slot) * PAGE_BYTES;
        let inside = usize::try_from(self.image_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = (part.count as usize * PAGE_BYTES).min(inside);
        let bytes = raw.get(start..start + len).ok_or(Error::Pipeline)?;
        let trouble = |source| Error::Io { action: "write", path: self.path.to_owned(), source };
        self.file.write_all_at(bytes, at).map_err(trouble)?;
        let done = self.written.fetch_add(len as u64, Ordering::Relaxed);
        self.run.progress.bytes(done, self.image_bytes);
        Ok(())
    }
}
