//! What a prune sees, what it decides, and how it carries that out.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use keyframe_store::Put;

use super::condemned::{read_condemned, write_condemned};
use super::copier::Copier;
use super::presence::Presence;
use super::{PruneOptions, PrunePlan};
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::index::{Hooks, Index, IndexWriter, PackRecord};
use crate::live::Live;
use crate::object::STORED_MOST;
use crate::pack::Content;
use crate::progress::Run;
use crate::repository::{NodeReader, Repository};

/// Packs below this are small; when there are many of them they are put together.
const SMALL_BYTES: u64 = 2 << 20;
const SMALL_PACKS: usize = 16;
/// How long a point may be pending, whatever the grace period.
const PENDING_LEAST: Duration = Duration::from_secs(3600);
/// Index objects are merged when there are more, beside those that are full.
const INDEX_OBJECTS: u64 = 16;
/// Packs of one record of condemned ones.
const CONDEMNED_MOST: usize = 1 << 20;

struct Condemned {
    id: ObjectId,
    packs: Vec<ObjectId>,
    ripe: bool,
}

pub(super) struct State<'a> {
    pub(super) repository: &'a Repository,
    pub(super) index: Index,
    index_ids: Vec<ObjectId>,
    index_bytes: u64,
    pub(super) live: Live,
    condemned: Vec<Condemned>,
    condemned_packs: HashSet<ObjectId>,
    abandoned: Vec<ObjectId>,
    /// Length of each pack that is there, and whether it is older than the grace period.
    pub(super) stored: HashMap<ObjectId, (u64, bool)>,
}

impl<'a> State<'a> {
    pub(super) fn look(repository: &'a Repository, options: PruneOptions, run: Run<'_>) -> Result<Self> {
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
        let index_objects = repository.list(ObjectKind::Index)?;
        let index_bytes = index_objects.iter().map(|(_, entry)| entry.len).sum();
        let index_ids: Vec<ObjectId> = index_objects.into_iter().map(|(id, _)| id).collect();
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
                Err(Error::Damaged { .. } | Error::Version { .. }) => {}
                Err(error) if error.may_have_moved() => {
                    // Its packs may be in an index object that was written after the index was read: it is read again.
                    if repository.index_ids()? != index_ids {
                        return Err(error);
                    }
                    // It became a point, or was taken back, or refers to what is gone: then it never becomes one.
                }
                marked => marked?,
            }
        }
        let condemned_packs = condemned.iter().flat_map(|record| record.packs.iter().copied()).collect();
        Ok(Self { repository, index, index_ids, index_bytes, live, condemned, condemned_packs, stored, abandoned })
    }

    pub(super) fn plan(&self, options: PruneOptions) -> Result<PrunePlan> {
        let mut plan = PrunePlan { abandoned: self.abandoned.clone(), ..PrunePlan::default() };
        let mut small = Vec::new();
        let mut presence = Presence::new(self, self.condemned_packs.clone());
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
            if !self.stored.contains_key(&pack.id) {
                if presence.is_needed(pack)? {
                    plan.missing.push(pack.id);
                }
                continue;
            }
            if self.condemned_packs.contains(&pack.id) {
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
        for list in
            [&mut plan.unused, &mut plan.rewrite, &mut plan.stray, &mut plan.remove, &mut plan.spare, &mut plan.missing]
        {
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
    pub(super) fn sweep(&self, plan: &PrunePlan, run: Run<'_>) -> Result<u64> {
        let gone: HashSet<ObjectId> = plan.remove.iter().copied().collect();
        let listed = |id: &ObjectId| self.index.number_of(*id).is_some();
        // What points need and is not there stays in the index: there it is known to be missing, and if it comes back, as a disk that
        // was not mounted does, all is well.
        let stays: HashSet<ObjectId> =
            self.stored.keys().chain(&plan.missing).filter(|id| !gone.contains(id)).copied().collect();
        let is_lost = |pack: &PackRecord| !stays.contains(&pack.id) && !gone.contains(&pack.id);
        if gone.iter().any(listed) || self.index.packs().iter().any(is_lost) || self.has_many_index_objects() {
            run.progress.step("merging the index");
            self.merge_index(&stays)?;
        }
        run.progress.step("removing packs");
        for id in &plan.remove {
            run.check()?;
            self.repository.store().delete(&ObjectKind::Pack.name(*id)?)?;
        }
        crate::mark::drop_orphans(self.repository)?;
        for id in &plan.abandoned {
            self.repository.store().delete(&ObjectKind::Pending.name(*id)?)?;
        }
        for record in self.condemned.iter().filter(|record| record.ripe) {
            self.repository.store().delete(&ObjectKind::Condemned.name(record.id)?)?;
        }
        Ok(plan.removed_bytes)
    }

    /// More than their bytes need.
    fn has_many_index_objects(&self) -> bool {
        let full = self.index_bytes / self.repository.index_limits().body_bytes.max(1) as u64;
        self.index_ids.len() as u64 > INDEX_OBJECTS + 2 * full
    }

    /// Writes the index anew with these packs; memory holds one object at a time, and one that is being filled.
    fn merge_index(&self, stays: &HashSet<ObjectId>) -> Result<()> {
        let repository = self.repository;
        let mut writer = IndexWriter::for_pages(repository.index_limits(), self.index.pages());
        let mut merged = Vec::new();
        for id in &self.index_ids {
            let object = match repository.read_object(ObjectKind::Index, *id, STORED_MOST) {
                // Another prune merged it: its successor is left as it is.
                Err(Error::Store(error)) if error.is_not_found() => continue,
                object => object?,
            };
            writer.absorb(object, repository.keys(), &|record| stays.contains(&record.id))?;
            merged.push(*id);
            if writer.is_full() {
                repository.write_index(&mut writer)?;
            }
        }
        repository.write_index(&mut writer)?;
        for id in merged {
            repository.store().delete(&ObjectKind::Index.name(id)?)?;
        }
        Ok(())
    }

    /// Copies what is in use of packs to be rewritten, and condemns them and the unused ones.
    pub(super) fn condemn(&self, plan: &PrunePlan, run: Run<'_>) -> Result<u64> {
        let mut moved = 0;
        if !plan.rewrite.is_empty() {
            run.progress.step("rewriting packs");
            let mut index = IndexWriter::new(self.repository.index_limits());
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
            self.repository.write_index(&mut index)?;
        }
        let packs: Vec<ObjectId> = [&plan.rewrite, &plan.unused, &plan.stray].into_iter().flatten().copied().collect();
        for packs in packs.chunks(CONDEMNED_MOST) {
            write_condemned(self.repository, packs)?;
        }
        Ok(moved)
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
