//! What every operation needs: where machines live, whom to tell, when to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::state::home::Home;

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
pub struct Context<'a> {
    /// Where machines live.
    pub home: &'a Home,
    /// Whom to tell.
    pub progress: &'a dyn Progress,
    /// Set when a person wants the operation to end.
    pub cancel: &'a AtomicBool,
}

impl Context<'_> {
    /// Ends the operation if a person wants it.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("home", self.home).finish_non_exhaustive()
    }
}
