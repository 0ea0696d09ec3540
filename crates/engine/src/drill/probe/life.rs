//! The guest shows life: what is asked where nothing else is declared.
//!
//! A snapshot that comes back proves itself by what only a working guest does, and the report says by which:
//!
//! | sign | counts for a machine that goes on | that boots |
//! |---|---|---|
//! | its agent answers | yes; and where an agent was connected, nothing else does | yes |
//! | it writes to its serial console | yes | yes |
//! | it writes to a disk | yes | yes |
//! | it reads from a disk | yes | no: firmware reads, too |
//! | its processors' registers change | after a while without any other sign: an idle guest shows no more | no: firmware runs, too |
//!
//! The screen is no sign: what it shows comes back with the memory, whether anything lives behind it or not.

use std::time::{Duration, Instant};

use keyframe_qmp::agent::Ping;
use serde::Deserialize;
use serde_json::json;

use super::{Look, Probe, quoted};
use crate::drill::throwaway::Throwaway;

/// How long a guest that goes on has for a better sign than registers that change.
const IDLE_AFTER: Duration = Duration::from_secs(3);

/// Looks for signs of life.
#[derive(Debug, Default)]
pub(super) struct Life {
    first: Option<Instant>,
    /// The first disk requests that were counted.
    requests: Option<Requests>,
    registers: Option<String>,
}

/// What the guest has asked of its disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Requests {
    reads: u64,
    writes: u64,
}

impl Requests {
    /// Source: `BlockDeviceStats` in qapi/block-core.json.
    fn count(machine: &mut Throwaway) -> Option<Self> {
        #[derive(Deserialize)]
        struct Device {
            stats: Stats,
        }
        #[derive(Deserialize)]
        struct Stats {
            rd_operations: u64,
            wr_operations: u64,
        }
        let devices: Vec<Device> = machine.monitor().execute_as("query-blockstats", &json!({})).ok()?;
        Some(Self {
            reads: devices.iter().map(|device| device.stats.rd_operations).sum(),
            writes: devices.iter().map(|device| device.stats.wr_operations).sum(),
        })
    }
}

impl Life {
    fn disk_sign(&mut self, machine: &mut Throwaway) -> Option<String> {
        let now = Requests::count(machine)?;
        let first = *self.requests.get_or_insert(now);
        if now.writes > first.writes {
            return Some(format!("the guest writes to its disks: {} requests", now.writes - first.writes));
        }
        let reads = now.reads.saturating_sub(first.reads);
        (reads > 0 && !machine.booted).then(|| format!("the guest reads from its disks: {reads} requests"))
    }

    fn registers_sign(&mut self, machine: &mut Throwaway) -> Option<String> {
        let now = machine.human("info registers -a").ok()?;
        let before = self.registers.replace(now.clone())?;
        (before != now).then(|| {
            "its processors' registers change: they execute instructions, and nothing more is known of it; declare a \
             [[probe]] in its machine.toml"
                .to_owned()
        })
    }
}

impl Probe for Life {
    fn name(&self) -> String {
        "life".to_owned()
    }

    fn look(&mut self, machine: &mut Throwaway, by: Instant) -> Look {
        let first = *self.first.get_or_insert_with(Instant::now);
        if machine.has_agent() {
            return match machine.ask(&Ping {}, by.saturating_duration_since(Instant::now())) {
                Ok(_) => Look::Passed("the guest's agent answers".to_owned()),
                Err(error) => Look::NotYet(format!("the guest's agent was connected, and does not answer: {error}")),
            };
        }
        let said = machine.serial();
        if !said.is_empty() {
            return Look::Passed(format!("the guest writes to its serial console: {}", quoted(&said)));
        }
        if let Some(sign) = self.disk_sign(machine) {
            return Look::Passed(sign);
        }
        if !machine.booted
            && first.elapsed() > IDLE_AFTER
            && let Some(sign) = self.registers_sign(machine)
        {
            return Look::Passed(sign);
        }
        Look::NotYet("no sign of life: no word on the serial console, no disk request, no agent".to_owned())
    }
}
