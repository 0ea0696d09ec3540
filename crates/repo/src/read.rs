//! Reading whole images back, in parallel.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::frame::{Decompressor, FrameName, slots};
use crate::ids::PAGE_BYTES;
use crate::index::Index;
use crate::point::StoredImage;
use crate::progress::Run as Surroundings;
use crate::qcow2_file::Qcow2Plan;
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

/// Where the bytes of an image go.
pub trait Sink: Sync {
    /// Writes bytes of the image; from several threads, each place once.
    ///
    /// # Errors
    /// [`std::io::Error`].
    fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()>;
}

/// A raw image.
impl Sink for File {
    fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.write_all_at(bytes, at)
    }
}

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
    restore_into(repository, index, image, file, path, run)
}

/// Writes an image into an empty file in the qcow2 format: what is zero takes no room.
///
/// # Errors
/// As [`restore_raw`].
pub fn restore_qcow2(
    repository: &Repository,
    index: &Index,
    image: &StoredImage,
    file: &File,
    path: &Path,
    run: Surroundings<'_>,
) -> Result<RestoreReport> {
    let mut plan = Qcow2Plan::new(image.bytes);
    let mut nodes = NodeReader::new(repository, index)?;
    visit_leaves(&mut nodes, image, &mut |leaf, runs| {
        run.check()?;
        let mut page = leaf * LEAF_PAGES;
        for piece in runs {
            if piece.at.is_some() {
                plan.need(page * PAGE_BYTES as u64, u64::from(piece.count) * PAGE_BYTES as u64);
            }
            page += u64::from(piece.count);
        }
        Ok(())
    })?;
    let trouble = |source| Error::Io { action: "write", path: path.to_owned(), source };
    let target = plan.write_tables(file).map_err(trouble)?;
    restore_into(repository, index, image, &target, path, run)
}

fn restore_into(
    repository: &Repository,
    index: &Index,
    image: &StoredImage,
    sink: &dyn Sink,
    path: &Path,
    run: Surroundings<'_>,
) -> Result<RestoreReport> {
    let restore = Restore { repository, index, sink, path, image_bytes: image.bytes, run, written: AtomicU64::new(0) };
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
    sink: &'a dyn Sink,
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
        self.sink.write(at, bytes).map_err(trouble)?;
        let done = self.written.fetch_add(len as u64, Ordering::Relaxed);
        self.run.progress.bytes(done, self.image_bytes);
        Ok(())
    }
}
