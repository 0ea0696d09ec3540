//! Whom to tell how it goes on, and who may end it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Told how an operation goes on. Called from several threads, often; must return at once.
pub trait Progress: Send + Sync {
    /// A new part has begun.
    fn step(&self, what: &str);
    /// So many bytes of a known total are done.
    fn bytes(&self, done: u64, total: u64);
    /// Something a person should know; not an error.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
    fn bytes(&self, _done: u64, _total: u64) {}
    fn note(&self, _text: &str) {}
}

/// The surroundings of an operation.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Whom to tell.
    pub progress: &'a dyn Progress,
    /// Set when a person wants the operation to end.
    pub cancel: &'a AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl Run<'static> {
    /// Tells nobody and is never ended.
    #[must_use]
    pub fn silent() -> Self {
        Self { progress: &Silent, cancel: &NEVER }
    }
}

impl Run<'_> {
    /// Ends the operation if a person wants it.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Run")
    }
}
