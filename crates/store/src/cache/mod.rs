//! A wrapper that keeps what is read again and again in a local directory, for stores that are far away.
//!
//! Kept are whole objects but packs, keys and what changes ([`CacheStore::keeps`]), and ranges that are read with
//! [`Store::get_range_often`]. Listings, lengths and times always come from the store. Objects never change, so what is kept
//! stays right; but an object may be given that somebody else has removed meanwhile. Who must know asks with `stat` or `list`.
//!
//! The directory may be removed at any time, and several processes may use it. It holds nothing that the store does not: sealed
//! objects stay sealed. Whoever can write to it can do what a malicious store could, and is found out in the same way. What
//! cannot be kept, as the disk is full or the directory is not writable, is no failure.

mod shelf;

use std::path::{Path, PathBuf};

use self::shelf::Shelf;
use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

/// A store with a local cache before it.
#[derive(Debug)]
pub struct CacheStore<S> {
    inner: S,
    shelf: Shelf,
}

impl CacheStore<()> {
    /// The directory below `base` for the store of an address.
    #[must_use]
    pub fn dir(base: &Path, address: &str) -> PathBuf {
        base.join(&blake3::hash(address.as_bytes()).to_hex()[..32])
    }
}

impl<S: Store> CacheStore<S> {
    /// Keeps about `limit` bytes in a directory of this store alone, which is made when there is something to keep.
    pub fn new(inner: S, dir: &Path, limit: u64) -> Self {
        Self { inner, shelf: Shelf::new(dir, limit) }
    }

    /// Whether a whole object of this name is kept.
    #[must_use]
    pub fn keeps(name: &ObjectName) -> bool {
        // Packs are large and read in parts. A key slot that was removed must not open anything, and what is condemned or
        // probed is of now.
        !["packs", "keys", "condemned", "probe"].iter().any(|area| name.is_in(area)) && name.as_str() != "config"
    }
}

impl<S: Store> Store for CacheStore<S> {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        if mode == Put::Replace {
            self.shelf.forget(name);
        }
        self.inner.put(name, bytes, mode)?;
        if Self::keeps(name) {
            self.shelf.keep(name, None, bytes);
        }
        Ok(())
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        if !Self::keeps(name) {
            return self.inner.get(name, limit);
        }
        if let Some(bytes) = self.shelf.find(name, None) {
            let len = bytes.len() as u64;
            return if len <= limit { Ok(bytes) } else { Err(Error::TooLarge { name: name.to_string(), len, limit }) };
        }
        let bytes = self.inner.get(name, limit)?;
        self.shelf.keep(name, None, &bytes);
        Ok(bytes)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.inner.get_range(name, offset, len)
    }

    fn get_range_often(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        if let Some(bytes) = self.shelf.find(name, Some((offset, len))).filter(|bytes| bytes.len() == len) {
            return Ok(bytes);
        }
        let bytes = self.inner.get_range(name, offset, len)?;
        self.shelf.keep(name, Some((offset, len)), &bytes);
        Ok(bytes)
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        self.inner.stat(name)
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        self.inner.list(area)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.shelf.forget(name);
        self.inner.delete(name)
    }

    fn creates_exclusively(&self) -> Result<bool> {
        self.inner.creates_exclusively()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::MemoryStore;

    /// Counts what is read.
    #[derive(Debug, Default)]
    struct Counting {
        inner: MemoryStore,
        reads: AtomicU64,
    }

    impl Counting {
        fn reads(&self) -> u64 {
            self.reads.swap(0, Ordering::Relaxed)
        }
    }

    impl Store for Counting {
        fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
            self.inner.put(name, bytes, mode)
        }
        fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.inner.get(name, limit)
        }
        fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.inner.get_range(name, offset, len)
        }
        fn stat(&self, name: &ObjectName) -> Result<Entry> {
            self.inner.stat(name)
        }
        fn list(&self, area: &str) -> Result<Vec<Entry>> {
            self.inner.list(area)
        }
        fn delete(&self, name: &ObjectName) -> Result<()> {
            self.inner.delete(name)
        }
        fn creates_exclusively(&self) -> Result<bool> {
            self.inner.creates_exclusively()
        }
        fn describe(&self) -> String {
            self.inner.describe()
        }
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    fn noise(seed: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn files(dir: &Path) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![dir.to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { pending.push(path) } else { found.push(path) }
            }
        }
        found
    }

    #[test]
    fn it_conforms() {
        let dir = tempfile::tempdir().unwrap();
        // One with room, one that throws away all the time, one that cannot keep anything.
        for (place, limit) in
            [(dir.path().join("a"), 1 << 30), (dir.path().join("b"), 10), ("/dev/null/c".into(), 1 << 30)]
        {
            crate::conformance::run(&CacheStore::new(MemoryStore::new(), &place, limit)).unwrap();
        }
    }

    #[test]
    fn what_is_read_again_is_not_fetched_again_even_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counting::default());
        inner.put(&name("index/1"), b"index", Put::Create).unwrap();
        inner.put(&name("packs/ab/1"), &noise(1, 10_000), Put::Create).unwrap();
        for fetched in [2, 0] {
            let store = CacheStore::new(Arc::clone(&inner), dir.path(), 1 << 20);
            for _ in 0..3 {
                assert_eq!(store.get(&name("index/1"), 5).unwrap(), b"index");
                let part = store.get_range_often(&name("packs/ab/1"), 100, 50).unwrap();
                assert_eq!(part, noise(1, 10_000)[100..150]);
            }
            assert!(matches!(store.get(&name("index/1"), 4), Err(Error::TooLarge { .. })));
            assert_eq!(inner.reads(), fetched);
        }
    }

    #[test]
    fn what_was_written_is_known_and_what_was_removed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counting::default());
        let store = CacheStore::new(Arc::clone(&inner), dir.path(), 1 << 20);
        store.put(&name("points/1"), b"point", Put::Create).unwrap();
        assert_eq!(store.get(&name("points/1"), 10).unwrap(), b"point");
        assert_eq!(inner.reads(), 0);
        assert!(matches!(store.put(&name("points/1"), b"other", Put::Create), Err(Error::Exists { .. })));
        assert_eq!(store.get(&name("points/1"), 10).unwrap(), b"point");
        store.delete(&name("points/1")).unwrap();
        assert!(store.get(&name("points/1"), 10).unwrap_err().is_not_found());
    }

    #[test]
    fn what_must_be_of_now_is_never_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = CacheStore::new(Arc::new(Counting::default()), dir.path(), 1 << 20);
        for text in ["config", "keys/1", "condemned/1", "packs/ab/1", "probe/1"] {
            store.put(&name(text), b"x", Put::Create).unwrap();
            store.get(&name(text), 1).unwrap();
        }
        assert_eq!(files(dir.path()), Vec::<std::path::PathBuf>::new());
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_fetched_anew() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counting::default());
        inner.put(&name("index/1"), b"some index", Put::Create).unwrap();
        let store = CacheStore::new(Arc::clone(&inner), dir.path(), 1 << 20);
        store.get(&name("index/1"), 10).unwrap();
        let [file] = files(dir.path()).try_into().unwrap();
        let good = std::fs::read(&file).unwrap();
        inner.reads();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            for bytes in [&bad, &good[..at]] {
                std::fs::write(&file, bytes).unwrap();
                assert_eq!(store.get(&name("index/1"), 10).unwrap(), b"some index");
                assert_eq!(inner.reads(), 1, "byte {at}");
                assert_eq!(std::fs::read(&file).unwrap(), good, "it is kept anew");
            }
        }
        // A good one of something else.
        inner.put(&name("index/2"), b"other index", Put::Create).unwrap();
        store.get(&name("index/2"), 20).unwrap();
        let other = files(dir.path()).into_iter().find(|path| *path != file).unwrap();
        std::fs::copy(&other, &file).unwrap();
        assert_eq!(store.get(&name("index/1"), 10).unwrap(), b"some index");
    }

    #[test]
    fn the_limit_is_kept_and_what_was_used_last_stays() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counting::default());
        let store = CacheStore::new(Arc::clone(&inner), dir.path(), 100_000);
        for n in 0..200_u8 {
            inner.put(&name(&format!("index/{n}")), &noise(n, 3000), Put::Create).unwrap();
        }
        for n in 0..200_u8 {
            store.get(&name(&format!("index/{n}")), 3000).unwrap();
            store.get(&name("index/0"), 3000).unwrap();
            let total: u64 = files(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
            assert!(total <= 112_500, "{total} bytes after {n}");
            // Times of files are what tells which was used last.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(inner.reads(), 200, "the one that is used all the time was fetched once");
        inner.put(&name("index/large"), &noise(0, 60_000), Put::Create).unwrap();
        store.get(&name("index/large"), 60_000).unwrap();
        store.get(&name("index/large"), 60_000).unwrap();
        assert_eq!(inner.reads(), 2, "one object does not take half of it");
    }

    #[test]
    fn many_at_once_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(Counting::default());
        for n in 0..40_u8 {
            inner.put(&name(&format!("index/{n}")), &noise(n, 2000), Put::Create).unwrap();
        }
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let inner = Arc::clone(&inner);
                let dir = dir.path();
                scope.spawn(move || {
                    // As separate processes would, each with a cache of its own over the same directory.
                    let store = CacheStore::new(inner, dir, 30_000);
                    for n in 0..400_u32 {
                        let object = ((n * 7 + u32::from(thread) * 13) % 40) as u8;
                        let got = store.get(&name(&format!("index/{object}")), 2000).unwrap();
                        assert_eq!(got, noise(object, 2000));
                    }
                });
            }
        });
    }
}
