//! The first failure of several threads.

use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// The first failure of any thread.
#[derive(Debug, Default)]
pub struct Failure(Mutex<Option<Error>>);

impl Failure {
    /// Keeps the first.
    pub fn report(&self, error: Error) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get_or_insert(error);
    }

    /// Whether something failed.
    pub fn happened(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What failed, if anything did.
    pub fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
