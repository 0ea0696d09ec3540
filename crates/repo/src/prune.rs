//! Prune: freeing what no point refers to, while others write.
//!
//! Nothing is removed at once. First what is still needed of wasteful packs is copied into new ones, and the old ones are
//! *condemned*: from then on no backup refers to them anew. After the grace period, by the store's own clock, whoever prunes next
//! marks again, and removes those condemned packs of which every page in use is also somewhere else; the others are spared.
//! A backup that ran across all of this finds out before its point is one (see `check_fence`): until then the point is *pending*,
//! which only prunes see.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use keyframe_store::Put;
use serde::Serialize;

use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::frame::{Compressor, Decompressor, FrameName, Slots};
use crate::ids::{Fields, Fingerprint, ObjectId, ObjectKind, PAGE_BYTES};
use crate::index::{Hooks, Index, IndexWriter, PackRecord};
use crate::live::Live;
use crate::object::{Builder, OBJECT_MOST};
use crate::pack::{Content, Directory, PackKey, TableEntry};
use crate::progress::Run;
use crate::repository::{NodeReader, Repository};

/// Bytes of a new pack, about.
const PACK_BYTES: usize = 24 << 20;
/// Frames of a new pack: they may be nearly empty.
const PACK_FRAMES: usize = 1024;
/// Packs below this are small; when there are many of them they are put together.
const SMALL_BYTES: u64 = 2 << 20;
const SMALL_PACKS: usize = 16;
/// How long a point may be pending, whatever the grace period.
const PENDING_LEAST: Duration = Duration::from_secs(3600);
/// Index objects are merged when there are more.
const INDEX_OBJECTS: usize = 16;

/// How to prune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneOptions {
    /// A pack is rewritten when more than this part of its pages, in percent, is not in use.
    pub waste_percent: u8,
    /// How long condemned packs stay: longer than the longest backup.
    pub grace: Duration,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { waste_percent: 10, grace: Duration::from_secs(24 * 3600), dry_run: false }
    }
}

/// What a prune is going to do, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PrunePlan {
    /// Packs that nothing refers to.
    pub unused: Vec<ObjectId>,
    /// Packs to be rewritten.
    pub rewrite: Vec<ObjectId>,
    /// Announced points of backups that were broken off, or are done.
    pub abandoned: Vec<ObjectId>,
    /// Packs that are in no index and older than the grace period: a broken-off backup's.
    pub stray: Vec<ObjectId>,
    /// Condemned packs whose time has come, and that are not needed.
    pub remove: Vec<ObjectId>,
    /// Condemned packs that are needed after all.
    pub spare: Vec<ObjectId>,
    /// Bytes of packs that are kept as they are.
    pub kept_bytes: u64,
    /// Bytes of packs to be condemned.
    pub condemned_bytes: u64,
    /// Bytes of packs to be removed.
    pub removed_bytes: u64,
}

/// What a prune did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PruneReport {
    /// What was decided.
    pub plan: PrunePlan,
    /// Bytes of new packs.
    pub moved_bytes: u64,
    /// Bytes that were freed.
    pub freed_bytes: u64,
    /// Bytes that a prune after the grace period will free.
    pub pending_bytes: u64,
}

struct Condemned {
    id: ObjectId,
    packs: Vec<ObjectId>,
    ripe: bool,
}

/// Prunes. Two at once do no harm: what both copy, a later one removes.
///
/// # Errors
/// [`Error::NotAllowed`] without all rights; [`Error::Damaged`] when the structure cannot be read in full: nothing is removed
/// then; [`Error::Store`].
pub fn prune(repository: &Repository, options: PruneOptions, run: Run<'_>) -> Result<PruneReport> {
    repository.keys().require(Rights::Full, "prune")?;
    let mut report = PruneReport::default();
    let state = State::look(repository, options, run)?;
    report.plan = state.plan(options)?;
    if options.dry_run {
        return Ok(report);
    }
    report.freed_bytes = state.sweep(&report.plan, run)?;
    report.moved_bytes = state.condemn(&report.plan, run)?;
    report.pending_bytes = report.plan.condemned_bytes;
    if options.grace.is_zero() {
        // Nobody else is at work, says the caller: what was condemned just now can go.
        let state = State::look(repository, options, run)?;
        let plan = state.plan(options)?;
        report.freed_bytes += state.sweep(&plan, run)?;
        report.pending_bytes = 0;
        report.plan.remove.extend(plan.remove);
    }
    Ok(report)
}

struct State<'a> {
    repository: &'a Repository,
    index: Index,
    index_ids: Vec<ObjectId>,
    live: Live,
    condemned: Vec<Condemned>,
    condemned_packs: HashSet<ObjectId>,
    abandoned: Vec<ObjectId>,
    /// Length of each pack that is there, and whether it is older than the grace period.
    stored: HashMap<ObjectId, (u64, bool)>,
}

impl<'a> State<'a> {
    fn look(repository: &'a Repository, options: PruneOptions, run: Run<'_>) -> Result<Self> {
        run.progress.step("looking");
        let now = store_time(repository)?;
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= options.grace);
        // Between announcing a point and making it a backup only lists and looks.
        let patience = options.grace.max(PENDING_LEAST);
        let is_abandoned = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= patience);
        let mut condemned = Vec::new();
        for (id, entry) in repository.list(ObjectKind::Condemned)? {
            match read_condemned(repository, id) {
                Err(Error::Store(error)) if error.is_not_found() => {}
                packs => condemned.push(Condemned { id, packs: packs?, ripe: is_old(entry.modified) }),
            }
        }
        let index_ids = repository.list(ObjectKind::Index)?.into_iter().map(|(id, _)| id).collect();
        let index = repository.index(Hooks::Skip)?;
        // After the index: a pack that is in it and not here is gone. The other way round it could be one that was stored and
        // indexed meanwhile, and merging the index would lose it.
        let stored = repository.list(ObjectKind::Pack)?.into_iter();
        let stored = stored.map(|(id, entry)| (id, (entry.len, is_old(entry.modified)))).collect();
        // Points last: whatever is committed before this is marked. One that is pending is a point before it is no longer pending, so
        // it is seen here or there.
        let pending = repository.list(ObjectKind::Pending)?;
        let (points, damaged) = repository.points()?;
        if let Some((_, error)) = damaged.into_iter().next() {
            return Err(error);
        }
        run.progress.step("marking what is in use");
        let mut live = Live::of(repository, &index, &points, run)?;
        let mut abandoned = Vec::new();
        let mut nodes = NodeReader::new(repository, &index)?;
        for (id, entry) in pending {
            if is_abandoned(entry.modified) || points.iter().any(|point| point.id == id) {
                abandoned.push(id);
                continue;
            }
            match repository.pending_point(id).and_then(|point| live.add(&mut nodes, &point)) {
                // It became a point, or was taken back, or refers to what is gone: then it never becomes one.
                Err(Error::Damaged { .. } | Error::MissingFrame { .. } | Error::Version { .. }) => {}
                Err(Error::Store(error)) if error.is_not_found() => {}
                marked => marked?,
            }
        }
        let condemned_packs = condemned.iter().flat_map(|record| record.packs.iter().copied()).collect();
        Ok(Self { repository, index, index_ids, live, condemned, condemned_packs, stored, abandoned })
    }

    fn plan(&self, options: PruneOptions) -> Result<PrunePlan> {
        let mut plan = PrunePlan { abandoned: self.abandoned.clone(), ..PrunePlan::default() };
        let mut small = Vec::new();
        let mut presence =
            Presence { state: self, excluded: self.condemned_packs.clone(), directories: HashMap::new() };
        for pack in self.index.packs() {
            let len = pack.layout.object_len;
            // What a prune that was broken off has copied, and did not condemn.
            let twice = !self.condemned_packs.contains(&pack.id)
                && pack.names().any(|name| self.index.locate(name).count() > 1);
            if twice && presence.is_redundant(pack)? {
                plan.unused.push(pack.id);
                plan.condemned_bytes += len;
                continue;
            }
            if self.condemned_packs.contains(&pack.id) || !self.stored.contains_key(&pack.id) {
                continue;
            }
            let (used, all) = self.usage(pack);
            if used == 0 {
                plan.unused.push(pack.id);
                plan.condemned_bytes += len;
            } else if (all - used) * 100 > all * u64::from(options.waste_percent) {
                plan.rewrite.push(pack.id);
                plan.condemned_bytes += len;
            } else {
                plan.kept_bytes += len;
                small.extend((len < SMALL_BYTES).then_some((pack.id, len)));
            }
        }
        if small.len() >= SMALL_PACKS {
            let bytes: u64 = small.iter().map(|(_, len)| len).sum();
            plan.kept_bytes -= bytes;
            plan.condemned_bytes += bytes;
            plan.rewrite.extend(small.into_iter().map(|(id, _)| id));
        }
        for (id, (len, old)) in &self.stored {
            if *old && self.index.number_of(*id).is_none() && !self.condemned_packs.contains(id) {
                plan.stray.push(*id);
                plan.condemned_bytes += len;
            }
        }
        self.plan_sweep(&mut plan, &mut presence)?;
        for list in [&mut plan.unused, &mut plan.rewrite, &mut plan.stray, &mut plan.remove, &mut plan.spare] {
            list.sort_unstable();
            list.dedup();
        }
        Ok(plan)
    }

    /// Units in use and all units of a pack: pages, or frames of nodes.
    fn usage(&self, pack: &PackRecord) -> (u64, u64) {
        match pack.content {
            Content::Nodes => {
                let used = pack.names().filter(|name| self.live.has_nodes(*name)).count();
                (used as u64, pack.frames() as u64)
            }
            Content::Pages => {
                let used: u64 = pack.names().map(|name| u64::from(self.live.pages(name).count_ones())).sum();
                let all = u64::from(pack.pages);
                // What another pack has of a frame may be more than this one.
                (used.min(all), all)
            }
        }
    }

    fn plan_sweep(&self, plan: &mut PrunePlan, presence: &mut Presence<'_>) -> Result<()> {
        for record in self.condemned.iter().filter(|record| record.ripe) {
            for id in &record.packs {
                let needed = match self.index.number_of(*id).and_then(|number| self.index.pack(number)) {
                    Some(pack) => presence.is_needed(pack)?,
                    None => false,
                };
                if needed {
                    plan.spare.push(*id);
                } else {
                    plan.remove.push(*id);
                    plan.removed_bytes += self.stored.get(id).map_or(0, |(len, _)| *len);
                }
            }
        }
        Ok(())
    }

    /// Removes what the plan says: index first, so that it never names what is not there.
    fn sweep(&self, plan: &PrunePlan, run: Run<'_>) -> Result<u64> {
        let gone: HashSet<ObjectId> = plan.remove.iter().copied().collect();
        let listed = |id: &ObjectId| self.index.number_of(*id).is_some();
        let is_lost = |pack: &PackRecord| !self.stored.contains_key(&pack.id);
        if gone.iter().any(listed) || self.index.packs().iter().any(is_lost) || self.index_ids.len() > INDEX_OBJECTS {
            run.progress.step("merging the index");
            self.merge_index(&gone)?;
        }
        run.progress.step("removing packs");
        for id in &plan.remove {
            run.check()?;
            self.repository.store().delete(&ObjectKind::Pack.name(*id)?)?;
        }
        for id in &plan.abandoned {
            self.repository.store().delete(&ObjectKind::Pending.name(*id)?)?;
        }
        for record in self.condemned.iter().filter(|record| record.ripe) {
            self.repository.store().delete(&ObjectKind::Condemned.name(record.id)?)?;
        }
        Ok(plan.removed_bytes)
    }

    fn merge_index(&self, gone: &HashSet<ObjectId>) -> Result<()> {
        let repository = self.repository;
        let mut writer = IndexWriter::default();
        let mut merged = Vec::new();
        for id in &self.index_ids {
            let object = match repository.read_object(ObjectKind::Index, *id, OBJECT_MOST) {
                // Another prune merged it: its successor is left as it is.
                Err(Error::Store(error)) if error.is_not_found() => continue,
                object => object?,
            };
            writer.absorb(object, repository.keys(), &|record| {
                !gone.contains(&record.id) && self.stored.contains_key(&record.id)
            })?;
            merged.push(*id);
        }
        write_index(repository, writer)?;
        for id in merged {
            repository.store().delete(&ObjectKind::Index.name(id)?)?;
        }
        Ok(())
    }

    /// Copies what is in use of packs to be rewritten, and condemns them and the unused ones.
    fn condemn(&self, plan: &PrunePlan, run: Run<'_>) -> Result<u64> {
        let mut moved = 0;
        if !plan.rewrite.is_empty() {
            run.progress.step("rewriting packs");
            let mut index = IndexWriter::default();
            for content in [Content::Pages, Content::Nodes] {
                let mut copier = Copier::new(self, content)?;
                for (done, id) in (0..).zip(&plan.rewrite) {
                    run.check()?;
                    run.progress.bytes(done, plan.rewrite.len() as u64);
                    let record = self.index.number_of(*id).and_then(|number| self.index.pack(number));
                    if let Some(record) = record.filter(|record| record.content == content) {
                        copier.copy(record, &mut index)?;
                    }
                }
                moved += copier.finish(&mut index)?;
            }
            write_index(self.repository, index)?;
        }
        let packs: Vec<ObjectId> = [&plan.rewrite, &plan.unused, &plan.stray].into_iter().flatten().copied().collect();
        if !packs.is_empty() {
            write_condemned(self.repository, &packs)?;
        }
        Ok(moved)
    }
}

fn write_index(repository: &Repository, writer: IndexWriter) -> Result<()> {
    if writer.is_empty() {
        return Ok(());
    }
    let id = ObjectId::random()?;
    let bytes = writer.finish(id, repository.keys(), repository.parity_percent())?;
    Ok(repository.store().put(&ObjectKind::Index.name(id)?, &bytes, Put::Create)?)
}

/// Which pages packs really have: a frame's copy may lack some.
struct Presence<'a> {
    state: &'a State<'a>,
    /// Packs that do not count: they are to go.
    excluded: HashSet<ObjectId>,
    directories: HashMap<u32, HashMap<FrameName, Slots>>,
}

impl Presence<'_> {
    /// Whether everything in use of a pack is in another one as well; then it does not count any more.
    fn is_redundant(&mut self, pack: &PackRecord) -> Result<bool> {
        self.excluded.insert(pack.id);
        let needed = self.is_needed(pack)?;
        if needed {
            self.excluded.remove(&pack.id);
        }
        Ok(!needed)
    }

    /// Whether a condemned pack has something in use that is nowhere else.
    fn is_needed(&mut self, pack: &PackRecord) -> Result<bool> {
        for name in pack.names() {
            let pages = self.state.live.pages(name);
            let in_use = match pack.content {
                Content::Pages => pages != 0,
                Content::Nodes => self.state.live.has_nodes(name),
            };
            if in_use && !self.is_elsewhere(name, pages)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_elsewhere(&mut self, name: FrameName, pages: Slots) -> Result<bool> {
        let places: Vec<_> = self.state.index.locate(name).map(|at| at.pack).collect();
        for number in places {
            let Some(pack) = self.state.index.pack(number) else { continue };
            if self.excluded.contains(&pack.id) || !self.state.stored.contains_key(&pack.id) {
                continue;
            }
            if pack.content == Content::Nodes || self.present(number, name)? & pages == pages {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn present(&mut self, number: u32, name: FrameName) -> Result<Slots> {
        if !self.directories.contains_key(&number) {
            let directory = self.state.repository.directory(&self.state.index, number)?;
            self.directories.insert(number, present_pages(&directory));
        }
        let frames = self.directories.get(&number);
        Ok(frames.and_then(|frames| frames.get(&name)).copied().unwrap_or(0))
    }
}

fn present_pages(directory: &Directory) -> HashMap<FrameName, Slots> {
    let mut fingerprints = directory.fingerprints.iter();
    let of_frame = |frame: &TableEntry| {
        let pages = fingerprints.by_ref().take(frame.pages.into()).enumerate();
        let set = pages.filter(|(_, page)| !page.is_absent()).fold(0, |set: Slots, (slot, _)| set | 1 << slot);
        (frame.name, set)
    };
    directory.frames.iter().map(of_frame).collect()
}

/// Copies frames into new packs.
struct Copier<'a> {
    state: &'a State<'a>,
    content: Content,
    key: PackKey,
    sealed: Vec<Vec<u8>>,
    directory: Directory,
    bytes: usize,
    moved: u64,
    compressor: Compressor,
    decompressor: Decompressor,
    raw: Vec<u8>,
}

impl<'a> Copier<'a> {
    fn new(state: &'a State<'a>, content: Content) -> Result<Self> {
        Ok(Self {
            state,
            content,
            key: PackKey::new(state.repository.keys(), content)?,
            sealed: Vec::new(),
            directory: Directory { content, frames: Vec::new(), fingerprints: Vec::new() },
            bytes: 0,
            moved: 0,
            compressor: Compressor::new(state.repository.config().parameters.level)?,
            decompressor: Decompressor::new()?,
            raw: Vec::new(),
        })
    }

    fn copy(&mut self, pack: &PackRecord, index: &mut IndexWriter) -> Result<()> {
        let number = self.state.index.number_of(pack.id).ok_or(Error::Pipeline)?;
        let directory = self.state.repository.directory(&self.state.index, number)?;
        let mut fingerprints = directory.fingerprints.as_slice();
        for frame in &directory.frames {
            let (of_frame, rest) = fingerprints.split_at_checked(frame.pages.into()).ok_or(Error::Pipeline)?;
            fingerprints = rest;
            // Another pack may have more of the frame: what this one lacks is kept there.
            let here = (0..).zip(of_frame).filter(|(_, page)| !page.is_absent());
            let here = here.fold(0, |set: Slots, (slot, _): (u32, _)| set | 1 << slot);
            let pages = self.state.live.pages(frame.name) & here;
            if pages != 0 || self.state.live.has_nodes(frame.name) {
                self.frame(frame.name, pages, of_frame)?;
            }
            if self.bytes >= PACK_BYTES || self.sealed.len() >= PACK_FRAMES {
                self.flush(index)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, name: FrameName, pages: Slots, fingerprints: &[Fingerprint]) -> Result<()> {
        let repository = self.state.repository;
        repository.read_frame(&self.state.index, name, pages, &mut self.decompressor, &mut self.raw)?;
        let mut kept = fingerprints.to_vec();
        let mut absent: Slots = 0;
        let page_bytes = self.raw.chunks_exact_mut(PAGE_BYTES);
        for ((slot, fingerprint), page) in kept.iter_mut().enumerate().zip(page_bytes) {
            if pages >> slot & 1 == 0 {
                absent |= 1 << slot;
                *fingerprint = Fingerprint::ABSENT;
                page.fill(0);
            } else if repository.keys().fingerprint(page) != *fingerprint {
                return Err(Error::damaged(
                    format_args!("a frame of pack {}", name.pack),
                    "a page does not have its fingerprint",
                ));
            }
        }
        let position = u32::try_from(self.sealed.len()).map_err(|_| Error::Pipeline)?;
        let sealed = self.compressor.seal(&self.raw, absent, &self.key.key, self.key.nonce(position))?;
        let stored = u32::try_from(sealed.len()).map_err(|_| Error::Pipeline)?;
        self.bytes += sealed.len();
        self.sealed.push(sealed);
        self.directory.frames.push(TableEntry { name, stored, pages: kept.len() as u16 });
        self.directory.fingerprints.extend(kept);
        Ok(())
    }

    fn flush(&mut self, index: &mut IndexWriter) -> Result<()> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        let repository = self.state.repository;
        let empty = Directory { content: self.content, frames: Vec::new(), fingerprints: Vec::new() };
        let directory = std::mem::replace(&mut self.directory, empty);
        let sealed = std::mem::take(&mut self.sealed);
        self.bytes = 0;
        let built = self.key.build(repository.keys(), sealed, directory, repository.parity_percent(), Vec::new())?;
        repository.store().put(&ObjectKind::Pack.name(built.id)?, &built.bytes, Put::Create)?;
        self.moved += built.bytes.len() as u64;
        index.add(&built)?;
        self.key = PackKey::new(repository.keys(), self.content)?;
        Ok(())
    }

    fn finish(mut self, index: &mut IndexWriter) -> Result<u64> {
        self.flush(index)?;
        Ok(self.moved)
    }
}

/// What time it is by the store's clock: that of a fresh object. The clocks of hosts may differ by any amount.
fn store_time(repository: &Repository) -> Result<SystemTime> {
    let name = keyframe_store::ObjectName::new(format!("probe/{}", ObjectId::random()?))?;
    let store = repository.store();
    store.put(&name, b"what time is it?", Put::Replace)?;
    let entry = store.stat(&name)?;
    store.delete(&name)?;
    Ok(entry.modified)
}

/// Packs that some prune wants to remove.
///
/// # Errors
/// [`Error::Store`], [`Error::Damaged`].
pub(crate) fn condemned_packs(repository: &Repository) -> Result<HashSet<ObjectId>> {
    let mut all = HashSet::new();
    for (id, _) in repository.list(ObjectKind::Condemned)? {
        match read_condemned(repository, id) {
            Err(Error::Store(error)) if error.is_not_found() => {}
            packs => all.extend(packs?),
        }
    }
    Ok(all)
}

/// The packs that one prune condemned.
pub(crate) fn read_condemned(repository: &Repository, id: ObjectId) -> Result<Vec<ObjectId>> {
    let mut object = repository.read_object(ObjectKind::Condemned, id, OBJECT_MOST)?;
    let key = repository.keys().metadata_key(ObjectKind::Condemned, id)?;
    let damaged = || Error::damaged(format_args!("condemned {id}"), "it is not what was sealed");
    let plain = key.open(0, object.body_mut()).ok_or_else(damaged)?;
    let mut fields = Fields::new(plain);
    Ok(std::iter::from_fn(|| fields.id()).collect())
}

/// Says which packs are to be removed, once the grace period has passed.
pub(crate) fn write_condemned(repository: &Repository, packs: &[ObjectId]) -> Result<ObjectId> {
    let id = ObjectId::random()?;
    let mut builder = Builder::new(packs.len() * 16 + 128);
    let start = builder.position();
    packs.iter().for_each(|pack| builder.buffer().extend_from_slice(pack.as_bytes()));
    repository.keys().metadata_key(ObjectKind::Condemned, id)?.seal(0, builder.buffer(), start)?;
    let (keys, parity) = (repository.keys(), repository.parity_percent());
    let bytes = builder.finish(ObjectKind::Condemned, id, keys.repository(), keys.auth(), parity)?;
    repository.store().put(&ObjectKind::Condemned.name(id)?, &bytes, keyframe_store::Put::Create)?;
    Ok(id)
}
