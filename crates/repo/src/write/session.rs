//! A session: images are added, then a point is made of them. Without the point nothing of it can be seen.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::ids::{ObjectId, ObjectKind, PAGE_BYTES};
use crate::index::{Hooks, Index, IndexWriter};
use crate::known::FRAMES_MOST;
use crate::pack::Content;
use crate::point::{Point, StoredImage, Totals};
use crate::progress::Run;
use crate::repository::{NodeReader, Repository};
use crate::source::{Source, union};
use crate::tree::{self, Child, FANOUT};
use crate::write::packs::{self, FrameOutlet, Written};
use crate::write::scan::{InOrder, Piece, Plan, Readers};
use crate::write::trees::{Memory, NodeOutlet, PageOutlet, Sequencer};

/// How an image is stored.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Threads that read, and as many that compress; one for each CPU when 0.
    pub threads: usize,
}

/// Images on their way to a point.
pub struct Session<'a> {
    repository: &'a Repository,
    index: Index,
    /// The index objects that it stands on.
    loaded: Vec<ObjectId>,
    memory: Memory,
    written: Mutex<Written>,
    images: Vec<StoredImage>,
    /// The point whose trees are shared.
    previous: Option<Point>,
    logical_bytes: u64,
    begun: Instant,
    options: WriteOptions,
    preloaded: bool,
    /// An image failed: pages of it are known that were never stored.
    broken: bool,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("images", &self.images).finish_non_exhaustive()
    }
}

impl<'a> Session<'a> {
    /// Begins; what did not change since `previous` is shared with it.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write; [`Error::Store`], [`Error::Damaged`].
    pub fn begin(repository: &'a Repository, previous: Option<Point>, options: WriteOptions) -> Result<Self> {
        repository.keys().require(Rights::Write, "write")?;
        let begun = Instant::now();
        let loaded = repository.index_ids()?;
        let index = repository.index(Hooks::Load)?;
        let condemned = crate::prune::condemned_packs(repository)?;
        Ok(Self {
            repository,
            index,
            loaded,
            memory: Memory { condemned, ..Memory::default() },
            written: Mutex::new(Written { index: IndexWriter::new(repository.index_limits()), bytes: 0 }),
            images: Vec::new(),
            previous,
            logical_bytes: 0,
            begun,
            options,
            preloaded: false,
            broken: false,
        })
    }

    /// Stores an image. With `changes` only those extents are read, everything else is as in the image of the same label in
    /// the point before; who gives them vouches for that.
    ///
    /// # Errors
    /// [`Error::Usage`] for changes against nothing or against a larger image; [`Error::Fenced`] when a prune meanwhile took
    /// away what is needed; what reading the image and storing gives. After an error there will be no point
    /// ([`Error::Broken`]).
    pub fn add_image(
        &mut self,
        label: &str,
        source: &dyn Source,
        changes: Option<&[Range<u64>]>,
        run: Run<'_>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(Error::Broken);
        }
        match self.store_image(label, source, changes, run) {
            Ok(()) => self.broken = false,
            Err(error) if error.may_have_moved() && self.was_pruned()? => return Err(Error::Fenced),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the point before or the index that it all stands on is not there any more.
    fn was_pruned(&self) -> Result<bool> {
        let listed: HashSet<ObjectId> = self.repository.index_ids()?.into_iter().collect();
        Ok(!self.loaded.iter().all(|id| listed.contains(id)) || !self.has_previous()?)
    }

    /// Whether the point whose trees are shared is there.
    fn has_previous(&self) -> Result<bool> {
        let Some(previous) = &self.previous else { return Ok(true) };
        match self.repository.store().stat(&ObjectKind::Point.name(previous.id)?) {
            Err(error) if error.is_not_found() => Ok(false),
            found => Ok(found.map(|_| true)?),
        }
    }

    fn store_image(
        &mut self,
        label: &str,
        source: &dyn Source,
        changes: Option<&[Range<u64>]>,
        run: Run<'_>,
    ) -> Result<()> {
        let bytes = source.bytes();
        let level = tree::levels(bytes)?;
        let before = self.previous.as_ref().and_then(|point| point.images.iter().find(|image| image.label == label));
        let before = before.cloned();
        let usage = |what: &str| Error::Usage { what: what.to_owned() };
        let extents = match (changes, &before) {
            (None, _) => source.extents()?,
            (Some(_), None) => {
                return Err(usage("a list of changes needs a point before, with an image of this label"));
            }
            (Some(_), Some(before)) if before.bytes > bytes => {
                return Err(usage("the image is smaller than before: store it without a list of changes"));
            }
            (Some(changes), Some(before)) => {
                let grown = before.bytes..bytes;
                union(changes.iter().cloned().chain([grown]).collect(), bytes)
            }
        };
        let plan = Plan::new(&extents, bytes);
        if !std::mem::replace(&mut self.preloaded, true) {
            self.preload(&plan, run)?;
        }
        let old =
            before.map_or(Ok((None, 0)), |before| tree::levels(before.bytes).map(|level| (before.root, level)))?;
        let root = self.run_pipeline(source, &plan, (level, old), changes.is_some(), run)?;
        self.logical_bytes += bytes;
        self.images.push(StoredImage { label: label.to_owned(), bytes, root });
        Ok(())
    }

    /// Where it all fits and much is to be read, every fingerprint is known beforehand, and nothing is stored twice.
    fn preload(&mut self, plan: &Plan, run: Run<'_>) -> Result<()> {
        let pages = self.index.pages();
        let all_fits = pages <= (FRAMES_MOST * crate::frame::FRAME_PAGES / 2) as u64;
        if !all_fits || plan.bytes() < pages * PAGE_BYTES as u64 / 16 {
            return Ok(());
        }
        run.progress.step("reading fingerprints");
        for pack in 0..self.index.packs().len() as u32 {
            run.check()?;
            self.memory.learn(self.repository, &self.index, pack)?;
        }
        Ok(())
    }

    fn run_pipeline(
        &mut self,
        source: &dyn Source,
        plan: &Plan,
        (level, (old, old_level)): (u8, (Child, u8)),
        keep_unread: bool,
        run: Run<'_>,
    ) -> Result<Child> {
        run.progress.step("storing");
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = if self.options.threads == 0 { cpus } else { self.options.threads };
        let failure = Failure::default();
        let (queues, to_seal, to_write) = packs::queues(threads);
        let (full, pieces) = sync_channel(2 * threads);
        let (empty, buffers) = channel();
        for _ in 0..2 * threads + 2 {
            empty.send(Piece::buffer()).map_err(|_| Error::Pipeline)?;
        }
        let repository = self.repository;
        let zstd_level = repository.config().parameters.level;
        let readers = Readers {
            source,
            plan,
            keys: repository.keys(),
            next: AtomicU64::new(0),
            empty: Mutex::new(buffers),
            failure: &failure,
        };
        let (index, memory, written) = (&self.index, &mut self.memory, &self.written);
        let outcome = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| packs::write_packs(repository, &to_write, written, &failure));
            }
            for _ in 0..threads {
                let (complete, to_seal, failure) = (queues.complete.clone(), &to_seal, &failure);
                scope.spawn(move || packs::seal_frames(to_seal, &complete, zstd_level, failure));
                let (full, readers) = (full.clone(), &readers);
                scope.spawn(move || readers.read(&full));
            }
            drop(full);
            let queues = queues;
            let mut sequencer = Sequencer {
                repository,
                index,
                memory,
                plan,
                pieces: InOrder::new(pieces, empty, &failure),
                pages: PageOutlet::new(FrameOutlet::new(repository, Content::Pages, &queues)),
                nodes: NodeOutlet::new(FrameOutlet::new(repository, Content::Nodes, &queues)),
                old_nodes: NodeReader::new(repository, index)?,
                keep_unread,
                image_pages: source.bytes().div_ceil(PAGE_BYTES as u64),
                failure: &failure,
                run,
                done_bytes: 0,
            };
            let root = sequencer.root(level, old, old_level);
            let Sequencer { pages, nodes, pieces, .. } = sequencer;
            drop(pieces);
            if root.is_err() {
                failure.report(Error::Pipeline);
            }
            let root = root?;
            pages.close()?;
            nodes.close()?;
            Ok(root)
        });
        match (failure.take(), outcome) {
            // The first cause says more than what came of it.
            (Some(error), Err(Error::Pipeline)) => Err(error),
            (_, Err(error)) => Err(error),
            (Some(error), Ok(_)) => Err(error),
            (None, Ok(root)) => Ok(root),
        }
    }

    /// Makes a point of what was added: the commit. First it is pending, so that prunes take care; it is a point only when nothing
    /// that it refers to was taken away.
    ///
    /// # Errors
    /// [`Error::Fenced`] when a prune meanwhile took away what it refers to: then there is no point.
    pub fn commit(mut self, name: &str, tags: Vec<String>, extra: serde_json::Value) -> Result<Point> {
        if self.broken {
            return Err(Error::Broken);
        }
        let mut written = std::mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner));
        let own: HashSet<ObjectId> = written.index.packs().collect();
        let stored = written.bytes + self.repository.write_index(&mut written.index)?.bytes;
        drop(written);
        let mut totals = Totals {
            logical_bytes: self.logical_bytes,
            scanned_bytes: self.memory.scanned_bytes,
            new_bytes: self.memory.new_bytes,
            stored_bytes: stored,
            seconds: self.begun.elapsed().as_secs_f64(),
        };
        let mut point = Point::new(name, tags, std::mem::take(&mut self.images), totals)?;
        point.extra = extra;
        totals.stored_bytes += self.repository.announce_point(&point)?;
        let outcome = self.check_fence(&own).and_then(|()| self.repository.write_point(&point));
        // After any other failure nobody knows whether the point is there, or is still going to be: prunes keep taking care.
        if matches!(outcome, Ok(_) | Err(Error::Fenced)) {
            // Who may not delete leaves it: it is no point, and a prune removes it.
            let _ = self.repository.store().delete(&ObjectKind::Pending.name(point.id)?);
        }
        totals.stored_bytes += outcome?;
        totals.seconds = self.begun.elapsed().as_secs_f64();
        point.totals = totals;
        Ok(point)
    }

    /// Whether packs are in the store: those of a backup that took very long may have been removed as strays.
    fn all_there(&self, packs: &[ObjectId]) -> Result<bool> {
        const ASKED_ONE_BY_ONE: usize = 50;
        if packs.len() > ASKED_ONE_BY_ONE {
            let listed = self.repository.list(ObjectKind::Pack)?;
            let listed: HashSet<ObjectId> = listed.into_iter().map(|(id, _)| id).collect();
            return Ok(packs.iter().all(|id| listed.contains(id)));
        }
        for id in packs {
            match self.repository.store().stat(&ObjectKind::Pack.name(*id)?) {
                Err(error) if error.is_not_found() => return Ok(false),
                found => drop(found?),
            }
        }
        Ok(true)
    }

    /// Looks, now that prunes can see the point, whether a prune that did not see it took anything away.
    fn check_fence(&self, own: &HashSet<ObjectId>) -> Result<()> {
        let condemned = crate::prune::condemned_packs(self.repository)?;
        let taken = |id: &ObjectId| condemned.contains(id) && !self.memory.condemned.contains(id);
        let used_packs = self.memory.used.iter().filter(|id| !own.contains(id));
        let places = |id: &ObjectId| self.index.packs_of(*id).map(|record| record.id).collect::<Vec<_>>();
        let mut used: Vec<ObjectId> = used_packs.flat_map(places).collect();
        // An index may name a pack that is gone, when two prunes merged it at once, and a cache may still have its directory.
        let mut needed: Vec<ObjectId> = used.iter().copied().filter(|id| self.memory.learnt.contains(id)).collect();
        needed.extend(own);
        used.extend(own);
        if used.iter().any(taken) || !self.all_there(&needed)? {
            return Err(Error::Fenced);
        }
        if !self.has_previous()? {
            return Err(Error::Fenced);
        }
        let listed: HashSet<ObjectId> = self.repository.index_ids()?.into_iter().collect();
        if self.loaded.iter().all(|id| listed.contains(id)) {
            return Ok(());
        }
        let now = self.repository.index(Hooks::Skip)?;
        if used.iter().all(|id| self.memory.condemned.contains(id) || now.number_of(*id).is_some()) {
            Ok(())
        } else {
            Err(Error::Fenced)
        }
    }
}

impl Sequencer<'_, '_> {
    /// The whole tree. An old tree of fewer levels stands at its beginning; one of more is too large to be shared.
    fn root(&mut self, level: u8, old: Child, old_level: u8) -> Result<Child> {
        match level.cmp(&old_level) {
            std::cmp::Ordering::Equal => self.subtree(level, 0, old),
            std::cmp::Ordering::Less => self.subtree(level, 0, None),
            std::cmp::Ordering::Greater if old.is_none() => self.subtree(level, 0, None),
            std::cmp::Ordering::Greater => {
                let first = self.root(level - 1, old, old_level)?;
                let mut children = vec![first];
                for number in 1..FANOUT {
                    children.push(self.subtree(level - 1, number, None)?);
                }
                self.node(level, &children)
            }
        }
    }
}
