//! The screen shows something.
//!
//! Of a machine that goes on from a snapshot's memory this says little: what it showed then comes back with its memory.

use std::time::Instant;

use super::{Look, Probe};
use crate::drill::throwaway::Throwaway;

/// Looks at the screen.
#[derive(Debug)]
pub(super) struct ScreenShows;

impl Probe for ScreenShows {
    fn name(&self) -> String {
        "screen".to_owned()
    }

    fn look(&mut self, machine: &mut Throwaway, _by: Instant) -> Look {
        match machine.screen().map(|picture| picture.judge()) {
            Ok((true, seen)) => Look::Passed(seen),
            Ok((false, seen)) | Err(seen) => Look::NotYet(seen),
        }
    }
}
