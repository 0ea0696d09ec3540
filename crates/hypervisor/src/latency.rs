//! How long a guest waits for its disks, as QEMU itself counts it.
//!
//! What has not completed yet is not counted: who waits for ever is told by nobody.

use std::collections::HashMap;
use std::time::Duration;

use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{BlockDeviceStats, QueryBlockstats, StatsOf};

use crate::error::Error;

/// What each device had completed when it was looked at last.
#[derive(Debug, Default)]
pub struct Served {
    before: HashMap<String, Completed>,
}

/// Requests of a device, since it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Completed {
    requests: u64,
    took_ns: u64,
}

impl Completed {
    fn of(stats: &BlockDeviceStats) -> Self {
        Self {
            requests: stats.rd_operations + stats.wr_operations + stats.flush_operations,
            took_ns: stats.rd_total_time_ns + stats.wr_total_time_ns + stats.flush_total_time_ns,
        }
    }

    /// How long one took that completed after `before`; `None` where none did.
    fn each_since(self, before: Self) -> Option<Duration> {
        let requests = self.requests.saturating_sub(before.requests);
        let took_ns = self.took_ns.saturating_sub(before.took_ns);
        took_ns.checked_div(requests).map(Duration::from_nanos)
    }
}

impl Served {
    /// How long a request took on the slowest device, all that it completed since the last look taken together; `None` where
    /// nothing was completed, and at the first look.
    ///
    /// # Errors
    /// [`Error::Qmp`].
    pub fn since_last(&mut self, monitor: &mut Client) -> Result<Option<Duration>, Error> {
        let stats = monitor.call(&QueryBlockstats::of(StatsOf::Devices))?;
        let mut slowest = None;
        for device in stats {
            let Some(path) = device.qdev else { continue };
            let now = Completed::of(&device.stats);
            if let Some(before) = self.before.insert(path, now) {
                slowest = slowest.max(now.each_since(before));
            }
        }
        Ok(slowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_completed_since_counts() {
        let of = |requests, took_ns| Completed { requests, took_ns };
        assert_eq!(of(12, 9_000).each_since(of(10, 5_000)), Some(Duration::from_nanos(2_000)));
        assert_eq!(of(10, 5_000).each_since(of(10, 5_000)), None);
        assert_eq!(of(1, 1).each_since(of(10, 5_000)), None, "a device that was plugged in anew");
    }
}
