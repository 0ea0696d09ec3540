//! Index objects in the making.

use std::collections::HashSet;

use super::hooks::{HOOKS_MOST, TIERS, Tiers, tier};
use super::record::PackRecord;
use super::{Hooks, RECORD, open_sections};
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::{Fields, Fingerprint, ObjectId, ObjectKind};
use crate::object::{Builder, Object};
use crate::pack::{BuiltPack, Directory};

/// Bytes of a hook in an index object.
const HOOK_BYTES: usize = 12;

/// How large index objects get, and how many hooks a writer keeps. Others than the usual ones are for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Bytes of a body, about: of more packs another object is made. Far below what an object may have, as each is read whole.
    pub body_bytes: usize,
    /// Hooks of all objects of one writer.
    pub hooks: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self { body_bytes: 64 << 20, hooks: HOOKS_MOST }
    }
}

/// Gathers packs for index objects; as many objects as it takes. Packs are kept as they are going to be written: 11 MB for each TB of
/// pages, and at most 96 MiB of hooks.
#[derive(Debug)]
pub struct IndexWriter {
    limits: IndexLimits,
    known: HashSet<ObjectId>,
    /// Packs, one behind the other, and the length of each.
    records: Vec<u8>,
    lengths: Vec<u32>,
    /// Hooks as they are written, with the numbers of their packs.
    hooks: Tiers<[u8; HOOK_BYTES]>,
}

impl Default for IndexWriter {
    fn default() -> Self {
        Self::new(IndexLimits::default())
    }
}

fn stored_hook(hook: u64, ordinal: u32) -> [u8; HOOK_BYTES] {
    let mut bytes = [0; HOOK_BYTES];
    bytes[..8].copy_from_slice(&hook.to_le_bytes());
    bytes[8..].copy_from_slice(&ordinal.to_le_bytes());
    bytes
}

fn ordinal_of(hook: &[u8; HOOK_BYTES]) -> u32 {
    hook.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl IndexWriter {
    /// An empty one.
    #[must_use]
    pub fn new(limits: IndexLimits) -> Self {
        Self {
            limits,
            known: HashSet::new(),
            records: Vec::new(),
            lengths: Vec::new(),
            hooks: Tiers::new(limits.hooks),
        }
    }

    /// One for about so many pages: the hooks that would be too many are left out from the beginning.
    #[must_use]
    pub fn for_pages(limits: IndexLimits, pages: u64) -> Self {
        let mut writer = Self::new(limits);
        writer.hooks.expect(pages);
        writer
    }

    /// Adds a pack that was built.
    ///
    /// # Errors
    /// As [`PackRecord::new`].
    pub fn add(&mut self, pack: &BuiltPack) -> Result<()> {
        let record = PackRecord::new(pack.id, pack.layout, &pack.directory)?;
        self.add_directory(&record, &pack.directory);
        Ok(())
    }

    /// Adds a pack with its directory.
    pub fn add_directory(&mut self, record: &PackRecord, directory: &Directory) {
        self.add_record(record, directory.fingerprints.iter().copied());
    }

    /// Adds a pack with fingerprints, of which hooks are taken; one that is there already is left as it is.
    pub fn add_record(&mut self, record: &PackRecord, fingerprints: impl IntoIterator<Item = Fingerprint>) {
        let Some(ordinal) = self.put_record(record) else { return };
        for fingerprint in fingerprints {
            if let Some(tier) = tier(fingerprint) {
                self.hooks.push(tier, stored_hook(fingerprint.high(), ordinal));
            }
        }
    }

    fn put_record(&mut self, record: &PackRecord) -> Option<u32> {
        if !self.known.insert(record.id) {
            return None;
        }
        let (ordinal, from) = (self.lengths.len() as u32, self.records.len());
        record.put(&mut self.records);
        self.lengths.push((self.records.len() - from) as u32);
        Some(ordinal)
    }

    /// Takes over the packs of an index object that are to be kept, with their hooks.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn absorb(&mut self, mut object: Object, keys: &Keys, keep: &dyn Fn(&PackRecord) -> bool) -> Result<()> {
        let sections = open_sections(&mut object, keys, Hooks::Load)?;
        let mut ordinals = Vec::new();
        for (number, plain) in sections.iter().enumerate() {
            let mut fields = Fields::new(plain);
            if number == 0 {
                while !fields.is_empty() {
                    let record = PackRecord::read(&mut fields).ok_or_else(|| Error::damaged("an index", RECORD))?;
                    ordinals.push(if keep(&record) { self.put_record(&record) } else { None });
                }
                continue;
            }
            while let (Some(hook), Some(ordinal)) = (fields.u64(), fields.u32()) {
                if let Some(ordinal) = ordinals.get(ordinal as usize).copied().flatten() {
                    self.hooks.push(number - 1, stored_hook(hook, ordinal));
                }
            }
        }
        Ok(())
    }

    /// Whether there is nothing to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Whether what there is fills an object.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.records.len() + self.hooks.count() * HOOK_BYTES >= self.limits.body_bytes
    }

    /// The packs that were added.
    pub fn packs(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.known.iter().copied()
    }

    /// Gives everything gathered so far as objects, as they are stored. Packs that were in them are not taken again.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write; [`Error::Crypto`]; what `store` gives.
    pub fn write(
        &mut self,
        keys: &Keys,
        parity_percent: u8,
        store: &mut dyn FnMut(ObjectId, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        // Whoever made the objects that were absorbed may have had the hooks in any order.
        self.hooks.each_mut().for_each(|tier| tier.sort_by_key(ordinal_of));
        let mut cursors = Cursors::default();
        for (packs, bytes) in self.cuts() {
            let id = ObjectId::random()?;
            let object = self.object(id, keys, parity_percent, (packs, bytes), &mut cursors)?;
            store(id, object)?;
        }
        self.records = Vec::new();
        self.lengths = Vec::new();
        self.hooks.clear();
        Ok(())
    }

    /// Which packs go into which object: their numbers, and where their records lie.
    fn cuts(&self) -> Vec<(std::ops::Range<u32>, std::ops::Range<usize>)> {
        let mut sizes: Vec<usize> = self.lengths.iter().map(|len| *len as usize).collect();
        for hook in (0..TIERS).flat_map(|tier| self.hooks.of(tier)) {
            if let Some(size) = sizes.get_mut(ordinal_of(hook) as usize) {
                *size += HOOK_BYTES;
            }
        }
        let mut cuts = Vec::new();
        let (mut first, mut from, mut at, mut filled) = (0, 0, 0, 0);
        for (number, (size, len)) in (0..).zip(sizes.iter().zip(&self.lengths)) {
            if number > first && filled + size > self.limits.body_bytes {
                cuts.push((first..number, from..at));
                (first, from, filled) = (number, at, 0);
            }
            filled += size;
            at += *len as usize;
        }
        if !self.lengths.is_empty() {
            cuts.push((first..self.lengths.len() as u32, from..at));
        }
        cuts
    }

    fn object(
        &self,
        id: ObjectId,
        keys: &Keys,
        parity_percent: u8,
        (packs, bytes): (std::ops::Range<u32>, std::ops::Range<usize>),
        cursors: &mut Cursors,
    ) -> Result<Vec<u8>> {
        let key = keys.metadata_key(ObjectKind::Index, id)?;
        let mut builder = Builder::new(bytes.len() + bytes.len() / 2);
        let mut lengths = Vec::with_capacity((1 + TIERS) * 4);
        let lengths_at = builder.position();
        // Lengths of the sections first, once they are known: records, then each tier.
        builder.buffer().resize(lengths_at + (1 + TIERS) * 4, 0);
        for section in 0..=TIERS {
            let from = builder.position();
            let buffer = builder.buffer();
            match section.checked_sub(1) {
                None => buffer.extend_from_slice(self.records.get(bytes.clone()).ok_or(Error::Pipeline)?),
                Some(tier) => {
                    for hook in cursors.up_to(tier, self.hooks.of(tier), packs.end) {
                        let (hook, ordinal) = (hook.first_chunk::<8>().ok_or(Error::Pipeline)?, ordinal_of(hook));
                        buffer.extend_from_slice(hook);
                        buffer.extend_from_slice(&ordinal.saturating_sub(packs.start).to_le_bytes());
                    }
                }
            }
            key.seal(section as u32, buffer, from)?;
            let len = u32::try_from(buffer.len() - from).map_err(|_| Error::Pipeline)?;
            lengths.extend_from_slice(&len.to_le_bytes());
        }
        let place = builder.buffer().get_mut(lengths_at..lengths_at + lengths.len()).ok_or(Error::Pipeline)?;
        place.copy_from_slice(&lengths);
        builder.finish(ObjectKind::Index, id, keys.repository(), keys.auth(), parity_percent)
    }
}

/// How far each tier is written.
#[derive(Default)]
struct Cursors([usize; TIERS]);

impl Cursors {
    /// The hooks that follow, of packs below this number.
    fn up_to<'a>(&mut self, tier: usize, hooks: &'a [[u8; HOOK_BYTES]], end: u32) -> &'a [[u8; HOOK_BYTES]] {
        let Some(at) = self.0.get_mut(tier) else { return &[] };
        let rest = hooks.get(*at..).unwrap_or_default();
        let here = rest.partition_point(|hook| ordinal_of(hook) < end);
        *at += here;
        rest.get(..here).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Index, tests::pack};
    use super::*;
    use crate::object::OBJECT_MOST;

    fn objects(writer: &mut IndexWriter, keys: &Keys) -> Vec<Object> {
        let mut all = Vec::new();
        let mut keep = |id, bytes| {
            all.push(Object::check(bytes, ObjectKind::Index, id, Some(keys.repository()), keys.auth())?);
            Ok(())
        };
        writer.write(keys, 1, &mut keep).unwrap();
        all
    }

    fn index_of(objects: Vec<Object>, keys: &Keys) -> Index {
        let mut index = Index::default();
        objects.into_iter().for_each(|object| index.add(object, keys, Hooks::Load).unwrap());
        index.sort();
        index
    }

    #[test]
    fn more_than_one_object_takes_are_several_with_the_same_content() {
        let keys = Keys::generate(ObjectId::random().unwrap()).unwrap();
        let packs: Vec<_> = (0..40).map(|n| pack(&keys, 1 + n as u32 % 7, n)).collect();
        let limits = IndexLimits { body_bytes: 600, hooks: 1000 };
        let (mut small, mut large) = (IndexWriter::new(limits), IndexWriter::default());
        for pack in &packs {
            small.add(pack).unwrap();
            large.add(pack).unwrap();
            large.add(pack).unwrap();
        }
        let (small, large) = (objects(&mut small, &keys), objects(&mut large, &keys));
        assert!(small.len() > 4 && large.len() == 1, "{} and {}", small.len(), large.len());
        assert!(small.iter().all(|object| object.header.body_len < 600 + 200), "a little more for lengths and tags");
        // Merged again, in another order and with one pack left out.
        let mut merged = IndexWriter::new(limits);
        let gone = packs[3].id;
        let mut parts: Vec<Object> = Vec::new();
        for object in small {
            merged.absorb(object, &keys, &|record| record.id != gone).unwrap();
            if merged.is_full() {
                parts.extend(objects(&mut merged, &keys));
            }
        }
        parts.extend(objects(&mut merged, &keys));
        assert!(parts.len() > 4);
        let (large, merged) = (index_of(large, &keys), index_of(parts, &keys));
        assert_eq!((large.packs().len(), merged.packs().len()), (40, 39));
        for (pack, fingerprint) in
            packs.iter().flat_map(|pack| pack.directory.fingerprints.iter().map(move |f| (pack, f)))
        {
            let found = |index: &Index| -> Vec<ObjectId> {
                let mut ids: Vec<_> = index.hooked(*fingerprint).map(|n| index.packs()[n as usize].id).collect();
                ids.sort_unstable();
                ids
            };
            let mut expected = found(&large);
            assert_eq!(expected.contains(&pack.id), tier(*fingerprint).is_some());
            expected.retain(|id| *id != gone);
            assert_eq!(found(&merged), expected);
            let number = merged.number_of(pack.id);
            assert_eq!(number.is_none(), pack.id == gone);
            assert!(
                number.is_none_or(|number| merged.packs()[number as usize]
                    == large.packs()[large.number_of(pack.id).unwrap() as usize])
            );
        }
    }

    #[test]
    fn a_pack_that_was_written_is_not_taken_again() {
        let keys = Keys::generate(ObjectId::random().unwrap()).unwrap();
        let mut writer = IndexWriter::default();
        let one = pack(&keys, 3, 1);
        writer.add(&one).unwrap();
        assert_eq!(objects(&mut writer, &keys).len(), 1);
        writer.add(&one).unwrap();
        assert!(writer.is_empty() && objects(&mut writer, &keys).is_empty());
    }

    #[test]
    fn the_usual_limits_are_within_what_an_object_can_be() {
        let limits = IndexLimits::default();
        // A pack at its largest, with all of the hooks, on top of a full body.
        let largest = limits.body_bytes + limits.hooks * HOOK_BYTES + crate::pack::PACK_FRAMES_MOST * 28 + 1000;
        assert!((largest as u64) < OBJECT_MOST);
        assert!(limits.hooks <= HOOKS_MOST);
    }
}
