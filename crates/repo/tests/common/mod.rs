//! What several tests use.
#![allow(dead_code)] // each test uses some of it

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use keyframe_repo::index::Hooks;
use keyframe_repo::{KeyFile, Parameters, Point, Repository, Run, Session, Unlock, WriteOptions, restore_raw};
use keyframe_store::{MemoryStore, ObjectName, Store};

/// Draws numbers from a seed.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// An image with stretches of zeros, of text, of noise, and of pages that come again.
pub fn image(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise(seed);
    let mut bytes = Vec::with_capacity(len + (1 << 20));
    while bytes.len() < len {
        let pages = 1 + noise.below(64);
        match noise.below(4) {
            0 => bytes.resize(bytes.len() + pages * 4096, 0),
            1 => (0..pages * 64).for_each(|_| bytes.extend_from_slice(format!("{:064}", noise.next()).as_bytes())),
            2 => (0..pages * 512).for_each(|_| bytes.extend_from_slice(&noise.next().to_le_bytes())),
            _ => (0..pages).for_each(|n| bytes.extend_from_slice(&[n as u8; 4096])),
        }
    }
    bytes.truncate(len);
    bytes
}

/// A key that costs no time to open.
pub fn key() -> Unlock {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let _ = KeyFile::generate().unwrap().write_new(&path);
    Unlock::from_file(&path).unwrap()
}

pub fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(text.to_owned().into())
}

/// A fresh repository in memory.
pub fn repository() -> (Arc<MemoryStore>, Repository) {
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::init(store.clone(), &key(), Parameters::default()).unwrap();
    (store, repository)
}

/// Stores an image after the last point of its name.
pub fn try_put(
    repository: &Repository,
    name: &str,
    bytes: &[u8],
    changes: Option<&[Range<u64>]>,
) -> keyframe_repo::Result<Point> {
    let previous = repository.find_point(name).ok();
    let mut session = Session::begin(repository, previous, WriteOptions { threads: 2 })?;
    session.add_image("image", &Slice(bytes), changes, Run::silent())?;
    session.commit(name, Vec::new(), serde_json::Value::Null)
}

pub fn put(repository: &Repository, name: &str, bytes: &[u8], changes: Option<&[Range<u64>]>) -> Point {
    try_put(repository, name, bytes, changes).unwrap()
}

/// A slice as a source.
pub struct Slice<'a>(pub &'a [u8]);

impl keyframe_repo::source::Source for Slice<'_> {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn extents(&self) -> keyframe_repo::Result<Vec<Range<u64>>> {
        self.0.extents()
    }
    fn reader(&self) -> keyframe_repo::Result<Box<dyn keyframe_repo::source::SourceReader + Send + '_>> {
        self.0.reader()
    }
}

/// The bytes of a point's image.
pub fn try_restore(repository: &Repository, point: &Point) -> keyframe_repo::Result<Vec<u8>> {
    let index = repository.index(Hooks::Skip)?;
    let file = tempfile::NamedTempFile::new().unwrap();
    restore_raw(repository, &index, &point.images[0], file.as_file(), Path::new("restored"), Run::silent())?;
    Ok(std::fs::read(file.path()).unwrap())
}

pub fn restore(repository: &Repository, point: &Point) -> Vec<u8> {
    try_restore(repository, point).unwrap()
}

/// Names of all objects.
pub trait Places {
    fn places(&self) -> Vec<ObjectName>;
}

impl Places for MemoryStore {
    fn places(&self) -> Vec<ObjectName> {
        let areas = ["keys", "packs", "index", "points", "condemned", "pending", "marks"];
        let mut names: Vec<_> =
            areas.iter().flat_map(|area| self.list(area).unwrap()).map(|entry| entry.name).collect();
        names.push(ObjectName::new("config").unwrap());
        names
    }
}

pub fn get(store: &MemoryStore, name: &ObjectName) -> Vec<u8> {
    store.get(name, u64::MAX).unwrap()
}

/// What is done at a write, before it is carried out.
type AtWrite = dyn Fn(&ObjectName) + Send + Sync;

/// A store that lets somebody else work between two writes.
pub struct Between {
    pub inner: Arc<MemoryStore>,
    pub at_write: Box<AtWrite>,
}

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

impl Store for Between {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: keyframe_store::Put) -> keyframe_store::Result<()> {
        (self.at_write)(name);
        self.inner.put(name, bytes, mode)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
        self.inner.get(name, limit)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
        self.inner.get_range(name, offset, len)
    }
    fn stat(&self, name: &ObjectName) -> keyframe_store::Result<keyframe_store::Entry> {
        self.inner.stat(name)
    }
    fn list(&self, area: &str) -> keyframe_store::Result<Vec<keyframe_store::Entry>> {
        self.inner.list(area)
    }
    fn delete(&self, name: &ObjectName) -> keyframe_store::Result<()> {
        (self.at_write)(name);
        self.inner.delete(name)
    }
    fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
        self.inner.creates_exclusively()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}
