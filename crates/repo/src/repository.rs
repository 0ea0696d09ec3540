//! A repository that is open: its store, its keys, its parameters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keyframe_store::{Put, Store};
use serde::{Deserialize, Serialize};

use crate::crypto::{KeySlot, Keys, Rights, SectionKey, SlotInfo, Unlock, open_slot};
use crate::error::{Error, Result};
use crate::frame::{Decompressor, FrameName, Slots};
use crate::ids::{ObjectId, ObjectKind, PAGE_BYTES};
use crate::index::{Hooks, Index, IndexLimits, IndexWriter, Location};
use crate::object::{Builder, Object, PUBLIC_KEY, STORED_MOST, VERSION};
use crate::pack::{Content, Directory, FIRST_FRAME_AT, SEALED_KEY_BYTES, read_directory};
use crate::point::{POINT_MOST, Point};
use crate::tree::NodeRef;

const CONFIG_SCHEMA: &str = "keyframe.repository/1";
/// Most bytes of a configuration or a key slot.
const SMALL_MOST: u64 = 64 << 10;
/// Configuration and keys are few and small: they get the most parity there is.
const SMALL_PARITY: u8 = 50;
/// Most parity, in percent.
pub const PARITY_MOST: u8 = 50;

/// What is decided when a repository is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Parity of each object in percent of its length; 0 for none.
    pub parity_percent: u8,
    /// zstd's level for frames.
    pub level: i32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { parity_percent: 1, level: 1 }
    }
}

/// What can be known without a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    schema: String,
    /// The repository's id.
    pub repository: ObjectId,
    /// Whether a key is needed to read it.
    pub encrypted: bool,
    /// When it was made.
    pub created: keyframe_types::Timestamp,
    /// Its parameters.
    pub parameters: Parameters,
}

/// An open repository.
#[derive(Debug)]
pub struct Repository {
    store: Arc<dyn Store>,
    config: Config,
    keys: Keys,
    pack_keys: Mutex<HashMap<ObjectId, Arc<SectionKey>>>,
    index_limits: IndexLimits,
}

/// Index objects that were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredIndex {
    pub ids: Vec<ObjectId>,
    pub bytes: u64,
}

impl Repository {
    /// Makes a repository in an empty store. Of several at once one succeeds.
    ///
    /// # Errors
    /// [`Error::RepositoryExists`], [`Error::NotExclusive`], [`Error::Usage`], [`Error::Store`].
    pub fn init(store: Arc<dyn Store>, unlock: &Unlock, parameters: Parameters) -> Result<Self> {
        if !store.creates_exclusively()? {
            return Err(Error::NotExclusive { place: store.describe(), what: "making a repository" });
        }
        Self::init_alone(store, unlock, parameters)
    }

    /// The same where nobody else makes one in this store, says the caller: the store may be one that does not create exclusively.
    ///
    /// # Errors
    /// As [`Repository::init`].
    pub fn init_alone(store: Arc<dyn Store>, unlock: &Unlock, parameters: Parameters) -> Result<Self> {
        if parameters.parity_percent > PARITY_MOST || !(1..=19).contains(&parameters.level) {
            return Err(Error::Usage { what: "parity is at most 50 percent, the level 1 to 19".to_owned() });
        }
        let place = store.describe();
        if read_config(&*store).is_ok() {
            return Err(Error::RepositoryExists { place });
        }
        let keys = Keys::generate(ObjectId::random()?)?;
        let config = Config {
            schema: CONFIG_SCHEMA.to_owned(),
            repository: keys.repository(),
            encrypted: !matches!(unlock, Unlock::Nothing),
            created: keyframe_types::Timestamp::now(),
            parameters,
        };
        let repository = Self::with(store, config, keys);
        // The key first: a configuration without a key would be a repository that nobody can open.
        let slot = repository.add_key(unlock, Rights::Full, "first")?;
        let bytes = small_object(ObjectKind::Config, config_id(), repository.keys.repository(), &repository.config)?;
        let name = ObjectKind::Config.name(config_id())?;
        match repository.store.put(&name, &bytes, Put::Create) {
            Err(keyframe_store::Error::Exists { .. }) => {}
            done => {
                done?;
                // Another one's may have taken its place, where creating is not exclusive after all.
                if read_config(&*repository.store)?.repository == repository.config.repository {
                    return Ok(repository);
                }
            }
        }
        // Somebody else was faster; our slot opens nothing of theirs.
        repository.store.delete(&ObjectKind::Key.name(slot.id)?)?;
        Err(Error::RepositoryExists { place })
    }

    /// Opens a repository with what somebody has.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::Version`], [`Error::WrongKey`], [`Error::Damaged`], [`Error::Store`].
    pub fn open(store: Arc<dyn Store>, unlock: &Unlock) -> Result<Self> {
        let config = read_config(&*store)?;
        let slots: Vec<KeySlot> = read_slots(&*store, config.repository)?.into_iter().map(|(_, slot)| slot).collect();
        let keys = open_slot(&slots, unlock)?;
        Ok(Self::with(store, config, keys))
    }

    fn with(store: Arc<dyn Store>, config: Config, keys: Keys) -> Self {
        Self { store, config, keys, pack_keys: Mutex::default(), index_limits: IndexLimits::default() }
    }

    /// The same with other limits for index objects: so that tests can reach them.
    #[doc(hidden)]
    #[must_use]
    pub fn with_index_limits(self, index_limits: IndexLimits) -> Self {
        Self { index_limits, ..self }
    }

    /// The limits of index objects.
    pub(crate) fn index_limits(&self) -> IndexLimits {
        self.index_limits
    }

    /// What can be known of a repository without a key.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::Version`], [`Error::Damaged`], [`Error::Store`].
    pub fn config_of(store: &dyn Store) -> Result<Config> {
        read_config(store)
    }

    /// Where it lies.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The keys that it was opened with.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Parity of what is written, in percent.
    #[must_use]
    pub fn parity_percent(&self) -> u8 {
        self.config.parameters.parity_percent.min(PARITY_MOST)
    }

    /// Adds a key slot with these rights.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] for rights that these keys do not have; [`Error::Store`].
    pub fn add_key(&self, unlock: &Unlock, rights: Rights, label: &str) -> Result<SlotInfo> {
        if self.config.encrypted && matches!(unlock, Unlock::Nothing) {
            return Err(Error::Usage { what: "an encrypted repository has no slots without a key".to_owned() });
        }
        // Who may add objects could replace others, and with them what others stored, where the store cannot tell the two apart.
        if rights == Rights::Write && !self.store.creates_exclusively()? {
            return Err(Error::NotExclusive { place: self.store.describe(), what: "a key that may only write" });
        }
        let id = ObjectId::random()?;
        let slot = KeySlot::new(id, &self.keys.reduced(rights)?, unlock, label)?;
        let bytes = small_object(ObjectKind::Key, id, self.keys.repository(), &slot)?;
        self.store.put(&ObjectKind::Key.name(id)?, &bytes, Put::Create)?;
        Ok(slot.info())
    }

    /// All key slots that can be read.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn key_slots(&self) -> Result<Vec<SlotInfo>> {
        let slots = read_slots(&*self.store, self.config.repository)?;
        Ok(slots.into_iter().map(|(_, slot)| slot.info()).collect())
    }

    /// Removes a key slot; never the last one with all rights.
    ///
    /// # Errors
    /// [`Error::Usage`] for an id that is none or not unique, and for the last full key; [`Error::Store`].
    pub fn remove_key(&self, prefix: &str) -> Result<SlotInfo> {
        self.keys.require(Rights::Full, "remove keys")?;
        let slots = self.key_slots()?;
        let mut fitting = slots.iter().filter(|slot| !prefix.is_empty() && slot.id.to_string().starts_with(prefix));
        let (Some(slot), None) = (fitting.next(), fitting.next()) else {
            return Err(Error::Usage { what: format!("{prefix:?} is not the beginning of one key's id") });
        };
        if slot.rights == Rights::Full && slots.iter().filter(|other| other.rights == Rights::Full).count() == 1 {
            return Err(Error::Usage { what: "this is the last key that can read: add another one first".to_owned() });
        }
        self.store.delete(&ObjectKind::Key.name(slot.id)?)?;
        Ok(slot.clone())
    }

    /// Reads and authenticates an object.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Damaged`], [`Error::Version`].
    pub fn read_object(&self, kind: ObjectKind, id: ObjectId, limit: u64) -> Result<Object> {
        let bytes = match self.store.get(&kind.name(id)?, limit.min(STORED_MOST)) {
            Err(keyframe_store::Error::TooLarge { .. }) => {
                return Err(Error::damaged(format_args!("{} {id}", kind.area()), "it is larger than it can be"));
            }
            bytes => bytes?,
        };
        Object::check(bytes, kind, id, Some(self.keys.repository()), self.keys.auth())
    }

    /// Ids of all objects of a kind, as they are listed.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn list(&self, kind: ObjectKind) -> Result<Vec<(ObjectId, keyframe_store::Entry)>> {
        let entries = self.store.list(kind.area())?;
        Ok(entries.into_iter().filter_map(|entry| Some((kind.id_of(&entry.name)?, entry))).collect())
    }

    /// The index, of all index objects. One that was merged and removed while it was being read is read again in its
    /// new form.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Damaged`].
    pub fn index(&self, hooks: Hooks) -> Result<Index> {
        self.index_of(hooks, &[])
    }

    /// The index without these objects, and without hooks.
    ///
    /// # Errors
    /// As [`Repository::index`].
    pub(crate) fn index_without(&self, lost: &[ObjectId]) -> Result<Index> {
        self.index_of(Hooks::Skip, lost)
    }

    fn index_of(&self, hooks: Hooks, lost: &[ObjectId]) -> Result<Index> {
        const ATTEMPTS: u32 = 5;
        for attempt in 1.. {
            match self.index_once(hooks, lost) {
                Err(Error::Store(error)) if error.is_not_found() && attempt < ATTEMPTS => {}
                done => return done,
            }
        }
        Err(Error::Pipeline)
    }

    /// Writes what was gathered: as many index objects as it takes.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NotAllowed`].
    pub(crate) fn write_index(&self, writer: &mut IndexWriter) -> Result<StoredIndex> {
        let mut stored = StoredIndex::default();
        writer.write(&self.keys, self.parity_percent(), &mut |id, bytes| {
            self.store.put(&ObjectKind::Index.name(id)?, &bytes, Put::Create)?;
            stored.ids.push(id);
            stored.bytes += bytes.len() as u64;
            Ok(())
        })?;
        Ok(stored)
    }

    /// The index objects that there are.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn index_ids(&self) -> Result<Vec<ObjectId>> {
        Ok(self.list(ObjectKind::Index)?.into_iter().map(|(id, _)| id).collect())
    }

    fn index_once(&self, hooks: Hooks, lost: &[ObjectId]) -> Result<Index> {
        let mut index = Index::with_hooks(self.index_limits.hooks);
        for id in self.index_ids()? {
            if !lost.contains(&id) {
                index.add(self.read_object(ObjectKind::Index, id, STORED_MOST)?, &self.keys, hooks)?;
            }
        }
        index.sort();
        Ok(index)
    }

    /// A point by its id.
    ///
    /// # Errors
    /// [`Error::NoPoint`], [`Error::Damaged`], [`Error::Store`].
    pub fn point(&self, id: ObjectId) -> Result<Point> {
        match self.read_object(ObjectKind::Point, id, POINT_MOST) {
            Err(Error::Store(error)) if error.is_not_found() => Err(Error::NoPoint { name: id.to_string() }),
            object => Point::decode(object?, &self.keys),
        }
    }

    /// A pending point by its id.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Store`].
    pub(crate) fn pending_point(&self, id: ObjectId) -> Result<Point> {
        Point::decode(self.read_object(ObjectKind::Pending, id, POINT_MOST)?, &self.keys)
    }

    /// All points, oldest first, and the ids of those that cannot be read with the reason.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NotAllowed`].
    pub fn points(&self) -> Result<(Vec<Point>, Vec<DamagedPoint>)> {
        self.keys.require(Rights::Write, "list points")?;
        let (mut points, mut damaged) = (Vec::new(), Vec::new());
        for (id, _) in self.list(ObjectKind::Point)? {
            match self.point(id) {
                Ok(point) => points.push(point),
                // Forgotten since it was listed.
                Err(Error::NoPoint { .. }) => {}
                Err(error) if error.is_damage() => damaged.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        points.sort_by_key(|point| (point.created, point.id));
        Ok((points, damaged))
    }

    /// The point that a person means by `NAME` (its latest) or `NAME@T`: a tag (the latest with it) or the beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoPoint`], [`Error::Ambiguous`], as [`Repository::points`].
    pub fn find_point(&self, text: &str) -> Result<Point> {
        select_point(self.points()?.0, text)
    }

    /// The directory of a pack in the index.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Damaged`].
    pub fn directory(&self, index: &Index, pack: u32) -> Result<Directory> {
        let record = index.pack(pack).ok_or(Error::Pipeline)?;
        let (offset, len) = record.layout.directory()?;
        let bytes = self.store.get_range_often(&ObjectKind::Pack.name(record.id)?, offset, len)?;
        read_directory(&self.keys, record.id, record.content, record.layout.table_len, bytes)
    }

    /// The key of a pack's frames. Kept, as opening it is the costliest part of a small read.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Damaged`], [`Error::NotAllowed`] without the right to read pages.
    pub fn pack_key(&self, id: ObjectId, content: Content) -> Result<Arc<SectionKey>> {
        const KEYS_MOST: usize = 10_000;
        if let Some(key) = self.pack_keys.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(key));
        }
        let key = match content {
            Content::Nodes => self.keys.metadata_key(ObjectKind::Pack, id)?,
            Content::Pages => {
                self.keys.require(Rights::Full, "read data")?;
                let at = u64::from(FIRST_FRAME_AT) - SEALED_KEY_BYTES as u64;
                let sealed = self.store.get_range_often(&ObjectKind::Pack.name(id)?, at, SEALED_KEY_BYTES)?;
                let sealed = <[u8; SEALED_KEY_BYTES]>::try_from(sealed).map_err(|_| Error::Pipeline)?;
                self.keys.open_data_key(id, &sealed)?
            }
        };
        let key = Arc::new(key);
        let mut kept = self.pack_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEYS_MOST {
            kept.clear();
        }
        kept.insert(id, Arc::clone(&key));
        Ok(key)
    }

    /// Reads a frame from one place.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Damaged`].
    pub fn read_frame_at(
        &self,
        index: &Index,
        at: Location,
        decompressor: &mut Decompressor,
        raw: &mut Vec<u8>,
    ) -> Result<Slots> {
        let record = index.pack(at.pack).ok_or(Error::Pipeline)?;
        let key = self.pack_key(record.id, record.content)?;
        let name = ObjectKind::Pack.name(record.id)?;
        let mut sealed = match record.content {
            Content::Nodes => self.store.get_range_often(&name, at.offset.into(), at.len as usize)?,
            Content::Pages => self.store.get_range(&name, at.offset.into(), at.len as usize)?,
        };
        decompressor.open(&mut sealed, &key, record.content.nonce(at.position), raw).map_err(|error| match error {
            Error::Damaged { why, .. } => {
                Error::damaged(format_args!("frame {} of pack {}", at.position, record.id), why)
            }
            other => other,
        })
    }

    /// Reads a frame from wherever it is whole and has the pages that are needed; gives all that are there. A frame of
    /// nodes needs none.
    ///
    /// # Errors
    /// [`Error::MissingFrame`]; the last failure where all places fail.
    pub fn read_frame(
        &self,
        index: &Index,
        name: FrameName,
        needed: Slots,
        decompressor: &mut Decompressor,
        raw: &mut Vec<u8>,
    ) -> Result<Slots> {
        let mut outcome = Err(Error::MissingFrame { pack: name.pack, number: name.number });
        for at in index.locate(name) {
            outcome = self.read_frame_at(index, at, decompressor, raw).and_then(|absent| {
                let pages = (Slots::BITS - needed.leading_zeros()) as usize;
                let there = absent & needed == 0 && raw.len() >= pages * PAGE_BYTES;
                if there { Ok(!absent) } else { Err(Error::MissingFrame { pack: name.pack, number: name.number }) }
            });
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Stores a point: from then on it exists.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NotAllowed`].
    pub(crate) fn write_point(&self, point: &Point) -> Result<u64> {
        let bytes = point.encode(ObjectKind::Point, &self.keys, self.parity_percent())?;
        self.store.put(&ObjectKind::Point.name(point.id)?, &bytes, Put::Create)?;
        Ok(bytes.len() as u64)
    }

    /// Only the announcement of a point.
    ///
    /// # Errors
    /// As a commit.
    #[doc(hidden)]
    pub fn announce_for_tests(&self, point: &Point) -> Result<()> {
        self.announce_point(point).map(drop)
    }

    /// Says to prunes, and to nobody else, that there may be this point soon.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::NotAllowed`].
    pub(crate) fn announce_point(&self, point: &Point) -> Result<u64> {
        let bytes = point.encode(ObjectKind::Pending, &self.keys, self.parity_percent())?;
        self.store.put(&ObjectKind::Pending.name(point.id)?, &bytes, Put::Create)?;
        Ok(bytes.len() as u64)
    }
}

/// A point that cannot be read, and why.
pub type DamagedPoint = (ObjectId, Error);

/// Reads tree nodes; keeps the frame that it read last, as neighbours lie together.
#[derive(Debug)]
pub struct NodeReader<'a> {
    repository: &'a Repository,
    index: &'a Index,
    decompressor: Decompressor,
    frames: Vec<(FrameName, Vec<u8>)>,
}

impl<'a> NodeReader<'a> {
    /// Reads nodes of this repository.
    ///
    /// # Errors
    /// [`Error::Compression`].
    pub fn new(repository: &'a Repository, index: &'a Index) -> Result<Self> {
        Ok(Self { repository, index, decompressor: Decompressor::new()?, frames: Vec::new() })
    }

    /// The bytes of a node.
    ///
    /// # Errors
    /// As [`Repository::read_frame`]; [`Error::Damaged`] when the frame is shorter.
    pub fn read(&mut self, node: NodeRef) -> Result<&[u8]> {
        const FRAMES_KEPT: usize = 8;
        let name = node.frame();
        if let Some(kept) = self.frames.iter().position(|(kept, _)| *kept == name) {
            let kept = self.frames.remove(kept);
            self.frames.push(kept);
        } else {
            let mut raw = if self.frames.len() >= FRAMES_KEPT { self.frames.remove(0).1 } else { Vec::new() };
            self.repository.read_frame(self.index, name, 0, &mut self.decompressor, &mut raw)?;
            self.frames.push((name, raw));
        }
        let raw = self.frames.last().map(|(_, raw)| raw.as_slice()).unwrap_or_default();
        node.within(raw)
    }
}

/// The configuration's id: it is the only one.
pub(crate) const fn config_id() -> ObjectId {
    ObjectId::from_bytes([0; 16])
}

fn small_object<T: Serialize>(kind: ObjectKind, id: ObjectId, repository: ObjectId, document: &T) -> Result<Vec<u8>> {
    let mut builder = Builder::new(1024);
    serde_json::to_writer(builder.buffer(), document).map_err(|_| Error::Pipeline)?;
    builder.finish(kind, id, repository, &PUBLIC_KEY, SMALL_PARITY)
}

fn read_config(store: &dyn Store) -> Result<Config> {
    let object = match store.get(&ObjectKind::Config.name(config_id())?, SMALL_MOST) {
        Err(error) if error.is_not_found() => return Err(Error::NoRepository { place: store.describe() }),
        bytes => crate::repair::checked_or_mended(bytes?, ObjectKind::Config, config_id(), None, &PUBLIC_KEY)?,
    };
    let damaged = || Error::damaged("the configuration", "it is no configuration");
    let config: Config = serde_json::from_slice(object.body()).map_err(|_| damaged())?;
    let good = config.schema == CONFIG_SCHEMA && config.repository == object.header.repository;
    if good {
        Ok(config)
    } else {
        Err(Error::Version { object: "the configuration".to_owned(), found: 0, known: VERSION })
    }
}

/// All key slots that can be read, mended where that is needed.
fn read_slots(store: &dyn Store, repository: ObjectId) -> Result<Vec<(ObjectId, KeySlot)>> {
    let mut slots = Vec::new();
    for entry in store.list(ObjectKind::Key.area())? {
        let Some(id) = ObjectKind::Key.id_of(&entry.name) else { continue };
        let bytes = match store.get(&entry.name, SMALL_MOST) {
            Err(keyframe_store::Error::NotFound { .. } | keyframe_store::Error::TooLarge { .. }) => continue,
            bytes => bytes?,
        };
        let object = crate::repair::checked_or_mended(bytes, ObjectKind::Key, id, Some(repository), &PUBLIC_KEY);
        let slot = object.ok().and_then(|object| serde_json::from_slice::<KeySlot>(object.body()).ok());
        slots.extend(slot.filter(|slot| slot.id() == id && slot.repository() == repository).map(|slot| (id, slot)));
    }
    Ok(slots)
}

/// The one of these points, oldest first, that a person means by `NAME` (the latest) or `NAME@T`: a tag (the latest with it) or the
/// beginning of an id.
///
/// # Errors
/// [`Error::NoPoint`], [`Error::Ambiguous`].
pub fn select_point(points: Vec<Point>, text: &str) -> Result<Point> {
    let none = || Error::NoPoint { name: text.to_owned() };
    let (name, selector) = text.split_once('@').map_or((text, None), |(name, rest)| (name, Some(rest)));
    let mut of_name: Vec<Point> = points.into_iter().filter(|point| point.name == name).collect();
    let Some(selector) = selector else { return of_name.pop().ok_or_else(none) };
    if let Some(tagged) = of_name.iter().rposition(|point| point.tags.iter().any(|tag| tag == selector)) {
        return Ok(of_name.swap_remove(tagged));
    }
    of_name.retain(|point| !selector.is_empty() && point.id.to_string().starts_with(selector));
    match of_name.len() {
        0 => Err(none()),
        1 => of_name.pop().ok_or_else(none),
        _ => {
            let candidates: Vec<_> = of_name.iter().map(|point| point.id.short()).collect();
            Err(Error::Ambiguous { name: text.to_owned(), candidates: candidates.join(", ") })
        }
    }
}
