//! A snapshot that is read for long: nobody deletes it, or merges what it stands on, meanwhile.

use keyframe_types::SnapshotId;

use super::claim::Claim;
use crate::error::Error;
use crate::state::home::VmDir;

/// Holds a snapshot until it goes out of scope, or its process ends. It takes the place of a test of the snapshot: one of
/// the two at a time.
#[derive(Debug)]
pub(crate) struct Hold(#[allow(dead_code)] Claim); // held, never asked

impl Hold {
    /// Takes hold. The caller has the machine's lock, and may let it go then.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody tests or stores it; [`Error::Io`].
    pub(crate) fn take(machine: &VmDir, id: &SnapshotId) -> Result<Self, Error> {
        Claim::take(machine, id).map(Self)
    }
}
