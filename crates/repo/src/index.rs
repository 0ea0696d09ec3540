//! The index: which packs there are and where in them the frames lie.
//!
//! Each writer adds an index object for the packs it wrote; all of them together are the index. Of every frame only its length
//! is kept, four bytes; a pack is some dozens. Fingerprints stay in the packs: the index has *hooks*, those fingerprints whose
//! first 64 bits end in at least five zero bits, one page in 32. A hook leads to a pack, whose fingerprints are then
//! read as a whole, as neighbours of a known page are likely to be known as well (Lillibridge et al., Sparse Indexing, FAST '09).
//! Hooks are stored by the number of their zero bits, rare ones first, so that a large repository is opened with fewer of them.

use std::collections::HashMap;

use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::frame::FrameName;
use crate::ids::{Fields, Fingerprint, ObjectId, ObjectKind};
use crate::object::{Builder, Object};
use crate::pack::{BuiltPack, Content, Directory, FIRST_FRAME_AT, Layout, PACK_FRAMES_MOST};

/// Zero bits that make a fingerprint a hook.
const HOOK_BITS: u32 = 5;
/// Hooks with so many zero bits or more are in one tier.
const HOOK_BITS_MOST: u32 = 12;
const TIERS: usize = (HOOK_BITS_MOST - HOOK_BITS + 1) as usize;
/// Hooks kept in memory: 64 MiB of them.
const HOOKS_MOST: usize = 8 << 20;
/// Bits of a hook in memory that number its pack; the others are of the fingerprint.
const PACK_BITS: u32 = 24;
const PACKS_MOST: usize = 1 << PACK_BITS;

/// Frames of one origin that lie one behind the other in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Name of the first.
    pub first: FrameName,
    /// How many.
    pub count: u32,
}

/// A pack in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRecord {
    /// Its id.
    pub id: ObjectId,
    /// What its frames hold.
    pub content: Content,
    /// Where its parts lie.
    pub layout: Layout,
    /// Pages that are there: those that were given up do not count.
    pub pages: u32,
    /// Its frames.
    pub segments: Vec<Segment>,
    /// Where each frame begins in the object, and where the last one ends.
    pub offsets: Vec<u32>,
}

impl PackRecord {
    /// Of a pack with this directory.
    ///
    /// # Errors
    /// [`Error::Damaged`] when its frames do not fit into it.
    pub fn new(id: ObjectId, layout: Layout, directory: &Directory) -> Result<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut lengths = Vec::with_capacity(directory.frames.len());
        for frame in &directory.frames {
            lengths.push(frame.stored);
            match segments.last_mut() {
                Some(last)
                    if last.first.pack == frame.name.pack
                        && last.first.number.checked_add(last.count) == Some(frame.name.number) =>
                {
                    last.count += 1;
                }
                _ => segments.push(Segment { first: frame.name, count: 1 }),
            }
        }
        let offsets = offsets(&lengths, &layout).ok_or_else(|| Error::damaged(format_args!("pack {id}"), FRAMES))?;
        let pages = directory.fingerprints.iter().filter(|page| !page.is_absent()).count() as u32;
        Ok(Self { id, content: directory.content, layout, pages, segments, offsets })
    }

    /// The names of its frames in the order of their positions.
    pub fn names(&self) -> impl Iterator<Item = FrameName> + '_ {
        self.segments.iter().flat_map(|segment| {
            let FrameName { pack, number } = segment.first;
            (0..segment.count).map(move |n| FrameName { pack, number: number.saturating_add(n) })
        })
    }

    /// Number of its frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }
}

const FRAMES: &str = "its frames do not fit into it";

/// Where frames of these lengths begin; nothing when they do not fit into the pack.
fn offsets(lengths: &[u32], layout: &Layout) -> Option<Vec<u32>> {
    let end = layout.directory().ok()?.0;
    let mut offsets = Vec::with_capacity(lengths.len() + 1);
    let mut at = FIRST_FRAME_AT;
    offsets.push(at);
    for len in lengths {
        at = at.checked_add(*len)?;
        offsets.push(at);
    }
    (u64::from(at) <= end).then_some(offsets)
}

fn tier(fingerprint: Fingerprint) -> Option<usize> {
    let bits = fingerprint.low().trailing_zeros().min(HOOK_BITS_MOST);
    // The rarest first.
    (bits >= HOOK_BITS && !fingerprint.is_absent()).then(|| (HOOK_BITS_MOST - bits) as usize)
}

/// An index object in the making.
#[derive(Debug, Default)]
pub struct IndexWriter {
    records: Vec<PackRecord>,
    tiers: [Vec<(u64, u32)>; TIERS],
}

impl IndexWriter {
    /// Adds a pack that was built.
    ///
    /// # Errors
    /// As [`PackRecord::new`].
    pub fn add(&mut self, pack: &BuiltPack) -> Result<()> {
        self.add_directory(PackRecord::new(pack.id, pack.layout, &pack.directory)?, &pack.directory);
        Ok(())
    }

    /// Adds a pack with its directory.
    pub fn add_directory(&mut self, record: PackRecord, directory: &Directory) {
        let ordinal = self.records.len() as u32;
        for fingerprint in &directory.fingerprints {
            if let Some(tier) = tier(*fingerprint).and_then(|tier| self.tiers.get_mut(tier)) {
                tier.push((fingerprint.high(), ordinal));
            }
        }
        self.records.push(record);
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
                    let record = read_record(&mut fields).ok_or_else(|| Error::damaged("an index", RECORD))?;
                    let known = self.records.iter().any(|known| known.id == record.id);
                    let kept = keep(&record) && !known;
                    ordinals.push(kept.then_some(self.records.len() as u32));
                    self.records.extend(kept.then_some(record));
                }
                continue;
            }
            let tier = self.tiers.get_mut(number - 1).ok_or(Error::Pipeline)?;
            while let (Some(hook), Some(ordinal)) = (fields.u64(), fields.u32()) {
                tier.extend(ordinals.get(ordinal as usize).copied().flatten().map(|ordinal| (hook, ordinal)));
            }
        }
        Ok(())
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Packs so far.
    #[must_use]
    pub fn records(&self) -> &[PackRecord] {
        &self.records
    }

    /// The object, as it is stored.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write; [`Error::Crypto`].
    pub fn finish(self, id: ObjectId, keys: &Keys, parity_percent: u8) -> Result<Vec<u8>> {
        let key = keys.metadata_key(ObjectKind::Index, id)?;
        let mut builder = Builder::new(self.records.len() * 512);
        let buffer = builder.buffer();
        let small = |len: usize| u32::try_from(len).map_err(|_| Error::Pipeline);
        // Lengths of the sections first: records, then each tier.
        let mut lengths = Vec::with_capacity(1 + TIERS);
        let mut sections = Vec::with_capacity(1 + TIERS);
        let mut section = Vec::new();
        self.records.iter().for_each(|record| put_record(&mut section, record));
        sections.push(section);
        // No reader keeps more of them, and an object has its bounds: the frequent ones are left out.
        let mut room = HOOKS_MOST;
        for tier in &self.tiers {
            let kept = tier.get(..tier.len().min(room)).unwrap_or_default();
            room -= kept.len();
            let mut section = Vec::with_capacity(kept.len() * 12 + 16);
            for (hook, ordinal) in kept {
                section.extend_from_slice(&hook.to_le_bytes());
                section.extend_from_slice(&ordinal.to_le_bytes());
            }
            sections.push(section);
        }
        for (number, section) in sections.iter_mut().enumerate() {
            key.seal(small(number)?, section, 0)?;
            lengths.push(small(section.len())?);
        }
        lengths.iter().for_each(|len| buffer.extend_from_slice(&len.to_le_bytes()));
        sections.iter().for_each(|section| buffer.extend_from_slice(section));
        builder.finish(ObjectKind::Index, id, keys.repository(), keys.auth(), parity_percent)
    }
}

fn put_record(into: &mut Vec<u8>, record: &PackRecord) {
    into.extend_from_slice(record.id.as_bytes());
    into.extend_from_slice(&record.layout.object_len.to_le_bytes());
    into.extend_from_slice(&record.layout.body_len.to_le_bytes());
    into.extend_from_slice(&record.layout.table_len.to_le_bytes());
    into.extend_from_slice(&record.layout.fingerprints_len.to_le_bytes());
    into.extend_from_slice(&record.pages.to_le_bytes());
    into.extend_from_slice(&u32::from(record.content.code()).to_le_bytes());
    into.extend_from_slice(&(record.segments.len() as u32).to_le_bytes());
    for segment in &record.segments {
        into.extend_from_slice(segment.first.pack.as_bytes());
        into.extend_from_slice(&segment.first.number.to_le_bytes());
        into.extend_from_slice(&segment.count.to_le_bytes());
    }
    for pair in record.offsets.windows(2) {
        into.extend_from_slice(&(pair[1] - pair[0]).to_le_bytes());
    }
}

fn read_record(fields: &mut Fields<'_>) -> Option<PackRecord> {
    let id = fields.id()?;
    let (object_len, body_len) = (fields.u64()?, fields.u64()?);
    let (table_len, fingerprints_len, pages) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let layout = Layout { object_len, body_len, table_len, fingerprints_len };
    let content = u8::try_from(fields.u32()?).ok().and_then(Content::from_code)?;
    let mut segments = Vec::new();
    let mut count = 0_usize;
    for _ in 0..fields.u32()? {
        let segment = Segment { first: FrameName { pack: fields.id()?, number: fields.u32()? }, count: fields.u32()? };
        count = count.checked_add(segment.count as usize).filter(|count| *count <= PACK_FRAMES_MOST)?;
        segments.push(segment);
    }
    let (lengths, _) = fields.bytes(count * 4)?.as_chunks::<4>();
    let lengths: Vec<u32> = lengths.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let offsets = offsets(&lengths, &layout)?;
    Some(PackRecord { id, content, layout, pages, segments, offsets })
}

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
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<PackRecord>,
    by_id: HashMap<ObjectId, u32>,
    origins: HashMap<ObjectId, Vec<Place>>,
    /// High bits of a hook, low bits number of its pack. Sorted.
    hooks: Vec<u64>,
    pages: u64,
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
    /// Adds the packs of an index object.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn add(&mut self, mut object: Object, keys: &Keys, hooks: Hooks) -> Result<()> {
        let sections = open_sections(&mut object, keys, hooks)?;
        let mut numbers = Vec::new();
        for (number, plain) in sections.iter().enumerate() {
            if number == 0 {
                numbers = self.add_records(plain).ok_or_else(|| Error::damaged("an index", RECORD))?;
            } else if !self.add_hooks(plain, &numbers) {
                // There are enough: the tiers that follow are of more frequent hooks.
                break;
            }
        }
        Ok(())
    }

    /// The number in memory of each record; a pack that is known already keeps its number.
    fn add_records(&mut self, plain: &[u8]) -> Option<Vec<u32>> {
        let mut fields = Fields::new(plain);
        let mut numbers = Vec::new();
        while !fields.is_empty() {
            numbers.push(self.add_record(read_record(&mut fields)?)?);
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

    /// `false` when no more hooks are taken.
    fn add_hooks(&mut self, plain: &[u8], numbers: &[u32]) -> bool {
        let mut fields = Fields::new(plain);
        while let (Some(hook), Some(ordinal)) = (fields.u64(), fields.u32()) {
            if self.hooks.len() >= HOOKS_MOST {
                return false;
            }
            if let Some(number) = numbers.get(ordinal as usize) {
                self.hooks.push(hook >> PACK_BITS << PACK_BITS | u64::from(*number));
            }
        }
        true
    }

    /// To be called once all objects are added.
    pub fn sort(&mut self) {
        self.hooks.sort_unstable();
        self.hooks.dedup();
        self.hooks.shrink_to_fit();
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
        let key = tier(fingerprint).map(|_| fingerprint.high() >> PACK_BITS);
        let from = key.map_or(self.hooks.len(), |key| self.hooks.partition_point(|hook| *hook >> PACK_BITS < key));
        let found = self.hooks.get(from..).unwrap_or_default();
        found
            .iter()
            .take_while(move |hook| Some(*hook >> PACK_BITS) == key)
            .map(|hook| (hook & (PACKS_MOST as u64 - 1)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Keys;
    use crate::pack::{PackKey, TableEntry};

    fn pack(keys: &Keys, frames: u32, seed: u64) -> BuiltPack {
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
            let id = ObjectId::random().unwrap();
            let bytes = writer.finish(id, &keys, 1).unwrap();
            let object = Object::check(bytes, ObjectKind::Index, id, Some(keys.repository()), keys.auth()).unwrap();
            index.add(object, &keys, Hooks::Load).unwrap();
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
