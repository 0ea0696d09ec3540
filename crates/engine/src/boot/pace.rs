//! How fast disks are brought here, as the guest's own requests tell.
//!
//! ```text
//!   requests are quick, or there are none ──▶ twice as fast, in the end without a limit
//!   requests are slow ──▶ half as fast, down to what a guest hardly notices
//! ```

use std::time::{Duration, Instant};

use keyframe_hypervisor::latency::Served;
use keyframe_qmp::Client;

use crate::error::Error;

/// How often the guest's requests are looked at.
const SPAN: Duration = Duration::from_millis(200);
/// Requests that take no longer in the mean are quick.
const QUICK: Duration = Duration::from_millis(10);
/// Those that take longer are slow.
const SLOW: Duration = Duration::from_millis(25);
/// Bytes a second, in the beginning.
const FIRST: u64 = 128 << 20;
/// The fewest. A guest that waits for a distant repository, and not for us, does not keep its disks from coming: what a distant one
/// gives is hardly more.
const LEAST: u64 = 16 << 20;
/// From here on there is no limit.
const NO_LIMIT: u64 = 2 << 30;

/// How fast may be copied.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s: u64,
    served: Served,
    looked: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes_per_s: FIRST, served: Served::default(), looked: None }
    }
}

impl Pace {
    /// Looks at the guest's requests, when it is time to.
    ///
    /// # Errors
    /// [`Error::Hypervisor`].
    pub(super) fn look(&mut self, monitor: &mut Client) -> Result<(), Error> {
        if self.looked.is_some_and(|at| at.elapsed() < SPAN) {
            return Ok(());
        }
        let took = self.served.since_last(monitor)?;
        // The first look tells nothing, and the first one after a long while nothing of now.
        let is_recent = self.looked.replace(Instant::now()).is_some_and(|at| at.elapsed() < 10 * SPAN);
        if is_recent {
            self.hear(took);
        }
        Ok(())
    }

    /// What follows from requests that took so long; `None` when there were none.
    fn hear(&mut self, took: Option<Duration>) {
        self.bytes_per_s = match took {
            Some(took) if took > SLOW => self.bytes_per_s / 2,
            Some(took) if took > QUICK => self.bytes_per_s,
            Some(_) | None => self.bytes_per_s * 2,
        }
        .clamp(LEAST, NO_LIMIT);
    }

    /// Bytes a second, as jobs are told: 0 is without a limit.
    pub(super) fn limit(&self) -> u64 {
        if self.bytes_per_s < NO_LIMIT { self.bytes_per_s } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(took_ms: &[u64]) -> u64 {
        let mut pace = Pace::default();
        took_ms.iter().for_each(|took| pace.hear((*took > 0).then(|| Duration::from_millis(*took))));
        pace.limit()
    }

    #[test]
    fn beside_quick_requests_and_none_there_is_soon_no_limit() {
        assert_eq!(after(&[]), FIRST);
        assert_eq!(after(&[1, 10]), FIRST * 4);
        assert_eq!(after(&[1, 0, 2, 0, 1]), 0);
        assert_eq!(after(&[1; 1000]), 0);
    }

    #[test]
    fn slow_requests_halve_it_at_once_wherever_it_is() {
        assert_eq!(after(&[1, 1, 1, 1, 1, 1, 26]), NO_LIMIT / 2);
        assert_eq!(after(&[26, 500]), FIRST / 4);
        assert_eq!(after(&[500; 1000]), LEAST);
        assert_eq!(after(&[500, 500, 500, 500, 500, 3]), LEAST * 2, "and it recovers");
    }

    #[test]
    fn in_between_it_stays() {
        assert_eq!(after(&[11, 20, 25]), FIRST);
    }
}
