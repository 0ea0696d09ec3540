//! Memory as a store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

type Objects = BTreeMap<ObjectName, (Arc<Vec<u8>>, SystemTime)>;

/// Objects in memory. Clones of an [`Arc`] of it are the same store; [`MemoryStore::copy`] is another.
#[derive(Debug)]
pub struct MemoryStore {
    objects: Mutex<Objects>,
    clock: Mutex<Duration>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { objects: Mutex::default(), clock: Mutex::new(Duration::from_secs(1_800_000_000)) }
    }
}

impl MemoryStore {
    /// An empty one. Its clock stands still; [`MemoryStore::pass`] moves it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time pass on the store's clock.
    pub fn pass(&self, time: Duration) {
        *lock(&self.clock) += time;
    }

    /// Another store with the same objects.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self { objects: Mutex::new(lock(&self.objects).clone()), clock: Mutex::new(*lock(&self.clock)) }
    }

    /// Changes an object behind everybody's back, as a failing disk does. `false` where there is none.
    pub fn spoil(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut objects = lock(&self.objects);
        let Some((bytes, _)) = objects.get_mut(name) else { return false };
        change(Arc::make_mut(bytes));
        true
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        lock(&self.objects).values().map(|(bytes, _)| bytes.len() as u64).sum()
    }

    fn find(&self, name: &ObjectName) -> Result<(Arc<Vec<u8>>, SystemTime)> {
        lock(&self.objects).get(name).cloned().ok_or_else(|| Error::NotFound { name: name.to_string() })
    }
}

/// What is behind these locks is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for MemoryStore {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        let now = SystemTime::UNIX_EPOCH + *lock(&self.clock);
        let mut objects = lock(&self.objects);
        if mode == Put::Create && objects.contains_key(name) {
            return Err(Error::Exists { name: name.to_string() });
        }
        objects.insert(name.clone(), (Arc::new(bytes.to_vec()), now));
        Ok(())
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        let (bytes, _) = self.find(name)?;
        let len = bytes.len() as u64;
        if len > limit {
            return Err(Error::TooLarge { name: name.to_string(), len, limit });
        }
        Ok(bytes.to_vec())
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let (bytes, _) = self.find(name)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(len).and_then(|end| bytes.get(start..end));
        let end = offset.saturating_add(len as u64);
        part.map(<[u8]>::to_vec).ok_or_else(|| Error::Short { name: name.to_string(), end })
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        let (bytes, modified) = self.find(name)?;
        Ok(Entry { name: name.clone(), len: bytes.len() as u64, modified })
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        let objects = lock(&self.objects);
        let inside = objects.iter().filter(|(name, _)| name.is_in(area));
        let entry = |(name, (bytes, modified)): (&ObjectName, &(Arc<Vec<u8>>, SystemTime))| Entry {
            name: name.clone(),
            len: bytes.len() as u64,
            modified: *modified,
        };
        Ok(inside.map(entry).collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        lock(&self.objects).remove(name);
        Ok(())
    }

    fn creates_exclusively(&self) -> Result<bool> {
        Ok(true)
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_conforms() {
        crate::conformance::run(&MemoryStore::new()).unwrap();
    }
}
