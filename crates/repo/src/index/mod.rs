//! The index: which packs there are and where in them the frames lie.
//!
//! Each writer adds an index object for the packs it wrote; all of them together are the index. Of every frame only its length
//! is kept, four bytes; a pack is some dozens. Fingerprints stay in the packs: the index has *hooks*, those fingerprints whose
//! first 64 bits end in at least five zero bits, one page in 32. A hook leads to a pack, whose fingerprints are then
//! read as a whole, as neighbours of a known page are likely to be known as well (Lillibridge et al., Sparse Indexing, FAST '09).
//! Hooks are stored by the number of their zero bits, rare ones first. Where there are more than memory is to hold, the frequent
//! ones are left out, of all packs alike.

mod hooks;
mod record;
mod writer;

use std::collections::HashMap;

pub use self::hooks::HOOKS_MOST;
use self::hooks::{TIERS, Tiers, tier};
pub use self::record::{PackRecord, Segment};
pub use self::writer::{IndexLimits, IndexWriter};
use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::frame::FrameName;
use crate::ids::{Fields, Fingerprint, ObjectId, ObjectKind};
use crate::object::Object;

/// Bits of a hook in memory that number its pack; the others are of the fingerprint.
const PACK_BITS: u32 = 24;
const PACKS_MOST: usize = 1 << PACK_BITS;

const RECORD: &str = "a pack in it is not possible";

/// The plain sections of an index object: records, then hooks by tiers.
fn open_sections<'a>(object: &'a mut Object, keys: &Keys, hooks: Hooks) -> Result<Vec<&'a [u8]>> {
    let id = object.header.id;
    let damaged = |why| Error::damaged(format_args!("index {id}"), why);
    let key = keys.metadata_key(ObjectKind::Index, id)?;
    let parts = object.body_mut().split_at_mut_checked((1 + TIERS) * 4);
    let (lengths, mut rest) = parts.ok_or_else(|| damaged("it is cut short"))?;
    let (lengths, _) = lengths.as_chunks::<4>();
    let wanted = if hooks == Hooks::Load { 1 + TIERS } else { 1 };
    let mut sections = Vec::with_capacity(wanted);
    for (section, len) in lengths.iter().enumerate().take(wanted) {
        let parts = rest.split_at_mut_checked(u32::from_le_bytes(*len) as usize);
        let (part, behind) = parts.ok_or_else(|| damaged("it is cut short"))?;
        rest = behind;
        let plain = key.open(section as u32, part).ok_or_else(|| damaged("a part is not what was sealed"))?;
        sections.push(&*plain);
    }
    Ok(sections)
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The pack's number in [`Index::packs`].
    pub pack: u32,
    /// The frame's position in the pack.
    pub position: u32,
    /// Where it begins in the object.
    pub offset: u32,
    /// Its bytes.
    pub len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    first: u32,
    count: u32,
    pack: u32,
    position: u32,
}

/// The index in memory.
#[derive(Debug)]
pub struct Index {
    packs: Vec<PackRecord>,
    by_id: HashMap<ObjectId, u32>,
    origins: HashMap<ObjectId, Vec<Place>>,
    /// High bits of a hook, low bits number of its pack. Each tier is sorted.
    hooks: Tiers<u64>,
    pages: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_hooks(HOOKS_MOST)
    }
}

/// Whether hooks are wanted: only who writes needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// Leave them out.
    Skip,
    /// Read them.
    Load,
}

impl Index {
    /// An empty one that keeps so many hooks at most.
    #[must_use]
    pub fn with_hooks(most: usize) -> Self {
        let (packs, by_id, origins) = (Vec::new(), HashMap::new(), HashMap::new());
        Self { packs, by_id, origins, hooks: Tiers::new(most), pages: 0 }
    }

    /// Adds the packs of an index object.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn add(&mut self, mut object: Object, keys: &Keys, hooks: Hooks) -> Result<()> {
        let sections = open_sections(&mut object, keys, hooks)?;
        let mut numbers = Vec::new();
        for (number, plain) in sections.iter().enumerate() {
            match number.checked_sub(1) {
                None => numbers = self.add_records(plain).ok_or_else(|| Error::damaged("an index", RECORD))?,
                Some(tier) => self.add_hooks(tier, plain, &numbers),
            }
        }
        Ok(())
    }

    /// The number in memory of each record; a pack that is known already keeps its number.
    fn add_records(&mut self, plain: &[u8]) -> Option<Vec<u32>> {
        let mut fields = Fields::new(plain);
        let mut numbers = Vec::new();
        while !fields.is_empty() {
            numbers.push(self.add_record(PackRecord::read(&mut fields)?)?);
        }
        Some(numbers)
    }

    /// Adds one pack; its number, or nothing when there are too many.
    pub fn add_record(&mut self, record: PackRecord) -> Option<u32> {
        if let Some(known) = self.by_id.get(&record.id) {
            return Some(*known);
        }
        let number = u32::try_from(self.packs.len()).ok().filter(|_| self.packs.len() < PACKS_MOST)?;
        let mut position = 0;
        for segment in &record.segments {
            let place = Place { first: segment.first.number, count: segment.count, pack: number, position };
            self.origins.entry(segment.first.pack).or_default().push(place);
            position += segment.count;
        }
        self.pages += u64::from(record.pages);
        self.by_id.insert(record.id, number);
        self.packs.push(record);
        Some(number)
    }

    fn add_hooks(&mut self, tier: usize, plain: &[u8], numbers: &[u32]) {
        let mut fields = Fields::new(plain);
        while let (Some(hook), Some(ordinal)) = (fields.u64(), fields.u32()) {
            if let Some(number) = numbers.get(ordinal as usize) {
                self.hooks.push(tier, hook >> PACK_BITS << PACK_BITS | u64::from(*number));
            }
        }
    }

    /// To be called once all objects are added.
    pub fn sort(&mut self) {
        for hooks in self.hooks.each_mut() {
            hooks.sort_unstable();
            hooks.dedup();
            hooks.shrink_to_fit();
        }
        self.hooks.recount();
    }

    /// All packs.
    #[must_use]
    pub fn packs(&self) -> &[PackRecord] {
        &self.packs
    }

    /// A pack by its number.
    #[must_use]
    pub fn pack(&self, number: u32) -> Option<&PackRecord> {
        self.packs.get(number as usize)
    }

    /// The number of a pack.
    #[must_use]
    pub fn number_of(&self, id: ObjectId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Pages of all packs.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The packs that have frames first written in this one.
    pub fn packs_of(&self, origin: ObjectId) -> impl Iterator<Item = &PackRecord> {
        let places = self.origins.get(&origin).map(Vec::as_slice).unwrap_or_default();
        places.iter().filter_map(|place| self.pack(place.pack))
    }

    /// Everywhere that a frame lies: more than once after a prune, until it has removed the old packs.
    pub fn locate(&self, name: FrameName) -> impl Iterator<Item = Location> + '_ {
        let places = self.origins.get(&name.pack).map(Vec::as_slice).unwrap_or_default();
        places.iter().rev().filter_map(move |place| {
            let ahead = name.number.checked_sub(place.first).filter(|ahead| *ahead < place.count)?;
            let position = place.position + ahead;
            let record = self.pack(place.pack)?;
            let (offset, end) = (*record.offsets.get(position as usize)?, *record.offsets.get(position as usize + 1)?);
            Some(Location { pack: place.pack, position, offset, len: end - offset })
        })
    }

    /// The packs to which a fingerprint leads, if it is a hook.
    pub fn hooked(&self, fingerprint: Fingerprint) -> impl Iterator<Item = u32> + '_ {
        let hooks = tier(fingerprint).map(|tier| self.hooks.of(tier)).unwrap_or_default();
        let key = fingerprint.high() >> PACK_BITS;
        let from = hooks.partition_point(|hook| *hook >> PACK_BITS < key);
        let found = hooks.get(from..).unwrap_or_default().iter();
        found.take_while(move |hook| *hook >> PACK_BITS == key).map(|hook| (hook & (PACKS_MOST as u64 - 1)) as u32)
    }

    /// Hooks that are kept.
    #[must_use]
    pub fn hooks(&self) -> usize {
        self.hooks.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Keys;
    use crate::pack::{BuiltPack, Content, Directory, FIRST_FRAME_AT, PackKey, TableEntry};

    pub(super) fn pack(keys: &Keys, frames: u32, seed: u64) -> BuiltPack {
        let key = PackKey::new(keys, Content::Pages).unwrap();
        let sealed: Vec<_> = (0..frames).map(|n| vec![n as u8; 10 + n as usize]).collect();
        let entry = |n: u32| TableEntry { name: FrameName { pack: key.id, number: n }, stored: 10 + n, pages: 2 };
        let fingerprint = |n: u64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&((seed * 1000 + n) << (n % 8)).to_le_bytes());
            bytes[8..].copy_from_slice(&((seed * 1000 + n + 1) << 40).to_le_bytes());
            Fingerprint::from_bytes(bytes)
        };
        let directory = Directory {
            content: Content::Pages,
            frames: (0..frames).map(entry).collect(),
            fingerprints: (0..u64::from(frames) * 2).map(fingerprint).collect(),
        };
        key.build(keys, sealed, directory, 0, Vec::new()).unwrap()
    }

    #[test]
    fn packs_are_found_again_by_frame_and_by_hook() {
        let keys = Keys::generate(ObjectId::random().unwrap()).unwrap();
        let packs = [pack(&keys, 5, 1), pack(&keys, 40, 2)];
        let mut index = Index::default();
        for pack in &packs {
            let mut writer = IndexWriter::default();
            writer.add(pack).unwrap();
            let mut add = |id, bytes| {
                let object = Object::check(bytes, ObjectKind::Index, id, Some(keys.repository()), keys.auth())?;
                index.add(object, &keys, Hooks::Load)
            };
            writer.write(&keys, 1, &mut add).unwrap();
        }
        index.sort();
        assert_eq!((index.packs().len(), index.pages()), (2, 90));
        let found: Vec<_> = index.locate(FrameName { pack: packs[1].id, number: 3 }).collect();
        assert_eq!(found, [Location { pack: 1, position: 3, offset: FIRST_FRAME_AT + 10 + 11 + 12, len: 13 }]);
        let at = found[0].offset as usize;
        assert_eq!(packs[1].bytes[at..at + 13], [3; 13]);
        assert_eq!(index.locate(FrameName { pack: packs[1].id, number: 40 }).count(), 0);
        let hooks: Vec<_> = packs[1].directory.fingerprints.iter().filter(|f| tier(**f).is_some()).collect();
        assert!(!hooks.is_empty());
        for hook in hooks {
            assert_eq!(index.hooked(*hook).collect::<Vec<_>>(), [1]);
        }
    }

    #[test]
    fn frames_that_overrun_their_pack_are_refused() {
        let keys = Keys::generate(ObjectId::random().unwrap()).unwrap();
        let mut built = pack(&keys, 5, 1);
        built.directory.frames[4].stored = u32::MAX;
        assert!(PackRecord::new(built.id, built.layout, &built.directory).is_err());
        built.directory.frames[4].stored = 1 << 20;
        assert!(PackRecord::new(built.id, built.layout, &built.directory).is_err());
    }
}
