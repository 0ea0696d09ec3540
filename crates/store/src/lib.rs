//! Where a repository's objects lie: one small trait, its implementations, and wrappers round it.
//!
//! | module | what |
//! |---|---|
//! | [`name`] | names of objects: short, plain, the same on every store |
//! | [`local`] | a directory |
//! | [`memory`] | memory, for tests and simulations |
//! | [`sftp`] | a directory on another machine, over the system's ssh |
//! | [`s3`] | a bucket of an S3-compatible service |
//! | [`retry`] | wrappers that try again, and that keep to a bandwidth |
//! | [`cache`] | a wrapper that keeps what is read often in a local directory |
//! | [`fault`] | a wrapper that fails, loses and spoils on purpose |
//!
//! A store knows nothing of what an object holds. Objects are written once and whole; nothing is ever changed in place.

pub mod cache;
pub mod conformance;
mod error;
pub mod fault;
pub mod local;
pub mod memory;
pub mod name;
pub mod retry;
pub mod s3;
pub mod sftp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::time::SystemTime;

pub use cache::CacheStore;
pub use error::{Error, Result};
pub use local::LocalStore;
pub use memory::MemoryStore;
pub use name::ObjectName;
pub use retry::{LimitStore, RetryStore};
pub use s3::S3Store;
pub use sftp::SftpStore;

/// Whether an object may be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It must not: of several writers one succeeds. A store that cannot do this says so in [`Store::creates_exclusively`].
    Create,
    /// It is replaced.
    Replace,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub len: u64,
    /// When it was written, by the clock of the store: to be compared with other entries of the same store only.
    pub modified: SystemTime,
}

/// Objects under names.
///
/// Every call can be repeated: a put with the same bytes, a get, a delete. Errors say by [`Error::is_transient`] whether
/// that is worth trying. Calls come from several threads at once and block.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Writes an object whole. When it returns, the object survives a power cut; when it fails, the object is there
    /// whole or not at all.
    ///
    /// # Errors
    /// [`Error::Exists`] with [`Put::Create`]; [`Error::Full`]; what the store says.
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()>;

    /// Reads an object whole.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::TooLarge`] beyond `limit` bytes; what the store says.
    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>>;

    /// Reads exactly so many bytes from a place.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Short`] where the object ends before; what the store says.
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// The same of what is read again and again: a cache keeps it.
    ///
    /// # Errors
    /// As [`Store::get_range`].
    fn get_range_often(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.get_range(name, offset, len)
    }

    /// Length and time of one object.
    ///
    /// # Errors
    /// [`Error::NotFound`]; what the store says.
    fn stat(&self, name: &ObjectName) -> Result<Entry>;

    /// All objects whose names begin with `area` and a slash, in the order of their names. What was written before the
    /// call began is listed.
    ///
    /// # Errors
    /// What the store says. An area without objects is empty and no error.
    fn list(&self, area: &str) -> Result<Vec<Entry>>;

    /// Removes an object. One that is not there is removed already.
    ///
    /// # Errors
    /// What the store says.
    fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Whether [`Put::Create`] is exclusive here. Where that depends on a server it is tried, once.
    ///
    /// # Errors
    /// What the store says when it is tried.
    fn creates_exclusively(&self) -> Result<bool>;

    /// What it is, for people: never with secrets.
    fn describe(&self) -> String;
}

impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        (**self).put(name, bytes, mode)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        (**self).get(name, limit)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        (**self).get_range(name, offset, len)
    }
    fn get_range_often(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        (**self).get_range_often(name, offset, len)
    }
    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        (**self).stat(name)
    }
    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        (**self).list(area)
    }
    fn delete(&self, name: &ObjectName) -> Result<()> {
        (**self).delete(name)
    }
    fn creates_exclusively(&self) -> Result<bool> {
        (**self).creates_exclusively()
    }
    fn describe(&self) -> String {
        (**self).describe()
    }
}
