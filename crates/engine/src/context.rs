//! What every operation needs: where machines live, whom to tell, when to stop.

use std::sync::atomic::{AtomicBool, Ordering};

pub use keyframe_types::{Progress, Silent};

use crate::error::Error;
use crate::state::home::Home;

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
