//! A wrapper that tries again what may succeed a little later, and one that keeps to a bandwidth.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

/// Tries again after transient errors, with pauses that double.
#[derive(Debug)]
pub struct RetryStore<S> {
    inner: S,
    attempts: u32,
    first_pause: Duration,
}

impl<S: Store> RetryStore<S> {
    /// Tries so many times in all; the first pause is this long, the last ones at most a minute.
    pub fn new(inner: S, attempts: u32, first_pause: Duration) -> Self {
        Self { inner, attempts: attempts.max(1), first_pause }
    }

    fn again<T>(&self, mut call: impl FnMut(u32) -> Result<T>) -> Result<T> {
        let mut pause = self.first_pause;
        for attempt in 1..self.attempts {
            match call(attempt) {
                Err(error) if error.is_transient() => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(60));
                }
                outcome => return outcome,
            }
        }
        call(self.attempts)
    }
}

impl<S: Store> Store for RetryStore<S> {
    /// A creation that failed may have happened: if what is there then is ours, it did.
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        self.again(|attempt| match self.inner.put(name, bytes, mode) {
            Err(Error::Exists { .. }) if attempt > 1 && self.inner.get(name, bytes.len() as u64)? == bytes => Ok(()),
            outcome => outcome,
        })
    }
    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        self.again(|_| self.inner.get(name, limit))
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.again(|_| self.inner.get_range(name, offset, len))
    }
    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        self.again(|_| self.inner.stat(name))
    }
    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        self.again(|_| self.inner.list(area))
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.again(|_| self.inner.delete(name))
    }
    fn creates_exclusively(&self) -> Result<bool> {
        self.inner.creates_exclusively()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// Keeps what is read and written below so many bytes a second, all threads together.
#[derive(Debug)]
pub struct LimitStore<S> {
    inner: S,
    bytes_per_second: u64,
    /// When what was let through so far is paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl<S: Store> LimitStore<S> {
    /// At most so many bytes a second; at least 1.
    pub fn new(inner: S, bytes_per_second: u64) -> Self {
        Self { inner, bytes_per_second: bytes_per_second.max(1), paid_until: Mutex::new(None) }
    }

    fn pay(&self, bytes: usize) {
        #[allow(clippy::cast_precision_loss)] // a rate needs no more than 53 bits
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let wait = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = paid_until.filter(|until| *until > now).unwrap_or(now);
            *paid_until = Some(start + cost);
            start + cost - now
        };
        thread::sleep(wait);
    }
}

impl<S: Store> Store for LimitStore<S> {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        self.pay(bytes.len());
        self.inner.put(name, bytes, mode)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        self.inner.get(name, limit).inspect(|bytes| self.pay(bytes.len()))
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.inner.get_range(name, offset, len).inspect(|bytes| self.pay(bytes.len()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;
    use crate::fault::{Fault, FaultyStore};

    #[test]
    fn they_conform() {
        crate::conformance::run(&RetryStore::new(MemoryStore::new(), 3, Duration::ZERO)).unwrap();
        crate::conformance::run(&LimitStore::new(MemoryStore::new(), 1 << 30)).unwrap();
    }

    #[test]
    fn a_write_that_failed_once_succeeds_even_if_it_had_happened() {
        let name = ObjectName::new("a/1").unwrap();
        for fault in [Fault::Refused, Fault::Unheard] {
            let store = RetryStore::new(FaultyStore::new(MemoryStore::new(), fault, 0), 2, Duration::ZERO);
            store.put(&name, b"x", Put::Create).unwrap();
            assert!(matches!(store.put(&name, b"y", Put::Create), Err(Error::Exists { .. })), "{fault:?}");
        }
    }

    #[test]
    fn what_does_not_pass_is_not_tried_again() {
        let store = RetryStore::new(FaultyStore::new(MemoryStore::new(), Fault::Full, 0), 5, Duration::ZERO);
        let outcome = store.put(&ObjectName::new("a/1").unwrap(), b"x", Put::Create);
        assert!(matches!(outcome, Err(Error::Full { .. })));
        assert_eq!(store.inner.writes(), 1);
    }

    #[test]
    fn a_limit_is_kept() {
        let store = LimitStore::new(MemoryStore::new(), 1_000_000);
        let begun = Instant::now();
        for n in 0..4 {
            store.put(&ObjectName::new(format!("a/{n}")).unwrap(), &[0; 50_000], Put::Create).unwrap();
        }
        assert!(begun.elapsed() >= Duration::from_millis(199), "{:?}", begun.elapsed());
    }
}
