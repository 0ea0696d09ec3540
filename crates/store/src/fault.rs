//! A store that fails on purpose: for simulations.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

/// What happens to a write when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not carried out, and neither is anything after it: the machine is gone.
    Crash,
    /// It is carried out, but nobody hears of it, and nothing works afterwards.
    CrashAfter,
    /// The object is left cut in half; then as [`Fault::Crash`].
    Torn,
    /// It seems to succeed, but nothing was written. Everything else goes on.
    Lost,
    /// It fails once, and can be repeated.
    Refused,
    /// It fails once although it was carried out.
    Unheard,
    /// The disk is full from here on.
    Full,
}

/// A wrapper that lets every call through until the turn of its fault.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    fault: Fault,
    /// The number of the write, from 0, at which it happens.
    at: u64,
    writes: AtomicU64,
}

impl<S: Store> FaultyStore<S> {
    /// Fails at the write of this number; puts and deletes count, from 0.
    pub fn new(inner: S, fault: Fault, at: u64) -> Self {
        Self { inner, fault, at, writes: AtomicU64::new(0) }
    }

    /// How many writes were asked for.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    fn gone() -> Error {
        Error::Refused { reason: "the store is gone (simulated)".to_owned() }
    }

    fn check_alive(&self) -> Result<()> {
        let dies = matches!(self.fault, Fault::Crash | Fault::CrashAfter | Fault::Torn);
        if dies && self.writes() > self.at { Err(Self::gone()) } else { Ok(()) }
    }

    fn write(&self, carry_out: impl FnOnce() -> Result<()>, tear: impl FnOnce()) -> Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if number < self.at {
            return carry_out();
        }
        let turn = number == self.at;
        match self.fault {
            Fault::Lost if turn => Ok(()),
            Fault::Refused if turn => Err(Error::Unavailable { reason: "refused once (simulated)".to_owned() }),
            Fault::Unheard if turn => {
                carry_out()?;
                Err(Error::Unavailable { reason: "not heard (simulated)".to_owned() })
            }
            Fault::Lost | Fault::Refused | Fault::Unheard => carry_out(),
            Fault::Full => Err(Error::Full { source: std::io::ErrorKind::StorageFull.into() }),
            Fault::CrashAfter if turn => {
                carry_out()?;
                Err(Self::gone())
            }
            Fault::Torn if turn => {
                tear();
                Err(Self::gone())
            }
            Fault::Crash | Fault::CrashAfter | Fault::Torn => Err(Self::gone()),
        }
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
        // Whether tearing works is of no interest: the store is gone either way.
        self.write(|| self.inner.put(name, bytes, mode), || drop(self.inner.put(name, half, Put::Replace)))
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        self.check_alive()?;
        self.inner.get(name, limit)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.check_alive()?;
        self.inner.get_range(name, offset, len)
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        self.check_alive()?;
        self.inner.stat(name)
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        self.check_alive()?;
        self.inner.list(area)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        self.write(|| self.inner.delete(name), || ())
    }

    fn creates_exclusively(&self) -> Result<bool> {
        self.inner.creates_exclusively()
    }

    fn describe(&self) -> String {
        format!("{}, with faults", self.inner.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    #[test]
    fn without_its_turn_it_conforms() {
        crate::conformance::run(&FaultyStore::new(MemoryStore::new(), Fault::Crash, u64::MAX)).unwrap();
    }

    #[test]
    fn each_fault_does_what_it_says() {
        let name = |n: u32| ObjectName::new(format!("a/{n}")).unwrap();
        let run = |fault| {
            let store = FaultyStore::new(MemoryStore::new(), fault, 1);
            let outcome: Vec<bool> = (0..3).map(|n| store.put(&name(n), b"1234", Put::Replace).is_ok()).collect();
            let there: Vec<_> = (0..3).map(|n| store.inner.get(&name(n), 9).map_or(0, |bytes| bytes.len())).collect();
            (outcome, there)
        };
        assert_eq!(run(Fault::Crash), (vec![true, false, false], vec![4, 0, 0]));
        assert_eq!(run(Fault::CrashAfter), (vec![true, false, false], vec![4, 4, 0]));
        assert_eq!(run(Fault::Torn), (vec![true, false, false], vec![4, 2, 0]));
        assert_eq!(run(Fault::Lost), (vec![true, true, true], vec![4, 0, 4]));
        assert_eq!(run(Fault::Refused), (vec![true, false, true], vec![4, 0, 4]));
        assert_eq!(run(Fault::Unheard), (vec![true, false, true], vec![4, 4, 4]));
        assert_eq!(run(Fault::Full), (vec![true, false, false], vec![4, 0, 0]));
    }
}
