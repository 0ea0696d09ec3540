//! Freezing a guest's file systems around an instant, as far as that was asked for.

use std::time::Duration;

use keyframe_hypervisor::InstanceRecord;

use super::Freeze;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::guard::Guard;
use crate::guest::{self, Frozen};

/// Whoever freezes a running guest; its guard thaws it should this one not come to it.
pub(crate) struct Freezer<'a> {
    /// What was asked for; `No` for a guest that does not run.
    pub freeze: Freeze,
    /// The guest's process.
    pub instance: &'a InstanceRecord,
    /// Who watches over it.
    pub guard: &'a Guard,
}

impl Freezer<'_> {
    /// Freezes the guest's file systems if that was asked for.
    ///
    /// # Errors
    /// [`Error::FreezeFailed`] when nothing is to go on without.
    pub fn freeze(&self, notes: &mut Vec<String>) -> Result<Option<Frozen>, Error> {
        if self.freeze == Freeze::No {
            return Ok(None);
        }
        self.guard.expect_thaw(guest::FREEZE_WINDOW);
        match guest::freeze(self.instance) {
            Ok(frozen) => {
                pass(Failpoint::SnapshotFrozen)?;
                Ok(Some(frozen))
            }
            Err(error) if self.freeze == Freeze::Try => {
                notes.push(format!("file systems were not frozen: {error}"));
                Ok(None)
            }
            Err(error) => Err(Error::FreezeFailed { reason: error.to_string() }),
        }
    }

    /// Thaws, and says how long the file systems were frozen: `None` if they were not, or if the guest thawed
    /// before the cut was made.
    ///
    /// # Errors
    /// [`Error::FreezeFailed`] when a freeze that did not hold is not good enough.
    pub fn thaw(&self, frozen: Option<Frozen>, notes: &mut Vec<String>) -> Result<Option<Duration>, Error> {
        match frozen.map(Frozen::thaw).transpose() {
            Ok(None) => Ok(None),
            Ok(Some(span)) => {
                self.guard.thawed();
                Ok(Some(span))
            }
            // The guard goes on trying to thaw.
            Err(error) if self.freeze == Freeze::Must => Err(Error::FreezeFailed { reason: error.to_string() }),
            Err(error) => {
                notes.push(format!("the freeze did not hold until the cut: {error}"));
                Ok(None)
            }
        }
    }
}
