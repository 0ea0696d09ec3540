//! Whom to tell how it goes on, and who may end it.

use std::sync::atomic::{AtomicBool, Ordering};

pub use keyframe_types::{Progress, Silent};

use crate::error::{Error, Result};

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
