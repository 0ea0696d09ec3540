//! How far a machine is that runs straight from a repository, and waiting until it is wholly local.

use std::time::{Duration, Instant};

use keyframe_types::{ByteLen, VmName};
use serde::Serialize;

use super::document::Standing;
use super::server::{self, DiskProgress};
use super::shelf::{Lost, Reach};
use crate::context::Context;
use crate::error::Error;
use crate::machine::Machine;
use crate::pages::HydrationReport;

/// How often it is looked.
const TICK: Duration = Duration::from_millis(100);

/// What a machine stands on in a repository, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootStatus {
    /// The point.
    pub point: String,
    /// Where the repository is.
    pub repository: String,
    /// Whether somebody shows it to the machine.
    pub served: bool,
    /// Whether it can be read.
    pub reach: Reach,
    /// Disks that are not all here.
    pub disks: Vec<DiskProgress>,
    /// Memory that is not all here.
    pub memory: Option<HydrationReport>,
    /// Places that the repository cannot give: reading them is an I/O error for the guest.
    pub lost: Vec<Lost>,
    /// Reads that failed.
    pub failures: u64,
    /// Why pulling does not go on, where it does not.
    pub trouble: Option<String>,
    /// How often the server died and was replaced.
    pub restarts: u32,
}

/// How far a machine is; `None` for one that is wholly local.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Io`].
pub fn status(machine: &Machine) -> Result<Option<BootStatus>, Error> {
    let Some(standing) = Standing::read(&machine.dir)? else { return Ok(None) };
    let state = server::state(&machine.dir);
    let fresh = |standing: &super::document::StandingDisk| DiskProgress {
        disk: standing.disk.clone(),
        done_bytes: 0,
        total_bytes: standing.image.bytes,
    };
    let known = |disk: DiskProgress| {
        let known = state.iter().flat_map(|state| &state.disks).find(|known| known.disk == disk.disk);
        known.cloned().unwrap_or(disk)
    };
    Ok(Some(BootStatus {
        disks: standing.disks.iter().map(fresh).map(known).collect(),
        memory: standing.memory.as_ref().and_then(|_| machine.hydration()),
        point: standing.point,
        repository: standing.place.repository,
        served: state.as_ref().is_some_and(|state| state.supervisor.is_alive()),
        reach: state.as_ref().map(|state| state.reach.clone()).unwrap_or_default(),
        lost: state.as_ref().map(|state| state.lost.clone()).unwrap_or_default(),
        failures: state.as_ref().map_or(0, |state| state.failures),
        trouble: state.as_ref().and_then(|state| state.trouble.clone()),
        restarts: state.map_or(0, |state| state.restarts),
    }))
}

impl BootStatus {
    /// How much of the disks is here, in percent.
    #[must_use]
    pub fn percent(&self) -> u64 {
        let (done, total) = self.bytes();
        done.saturating_mul(100).checked_div(total).unwrap_or(100)
    }

    /// Bytes of disks that were looked at, and all.
    fn bytes(&self) -> (u64, u64) {
        let sum = |what: fn(&DiskProgress) -> u64| self.disks.iter().map(what).fold(0, u64::saturating_add);
        (sum(|disk| disk.done_bytes), sum(|disk| disk.total_bytes))
    }

    /// In a few words, for a list.
    #[must_use]
    pub fn brief(&self) -> String {
        match &self.reach {
            Reach::Away { .. } if self.served => "waits for its repository".to_owned(),
            _ if !self.lost.is_empty() => format!("{} place(s) of its repository cannot be read", self.lost.len()),
            _ => format!("from a repository, {} % local", self.percent()),
        }
    }

    /// In a sentence or two.
    #[must_use]
    pub fn sentence(&self) -> String {
        let disks: Vec<String> = self.disks.iter().map(|disk| disk.disk.to_string()).collect();
        let (_, total) = self.bytes();
        let mut text = format!("{} in {}: ", self.point, self.repository);
        text.push_str(&match (disks.is_empty(), &self.memory) {
            (true, Some(memory)) => format!("memory: {}", memory.sentence()),
            (true, None) => "almost nothing any more".to_owned(),
            (false, Some(memory)) => format!("memory first ({}), then {}", memory.brief(), disks.join(", ")),
            (false, None) => {
                format!("{} % of {} ({}) are local", self.percent(), disks.join(", "), ByteLen::from_bytes(total))
            }
        });
        if let Reach::Away { since, reason } = &self.reach {
            text.push_str(&format!(
                "; it is away since {since} ({reason}): the guest waits for what it reads from there"
            ));
        }
        if let Some(first) = self.lost.first() {
            text.push_str(&format!(
                "; {} place(s) cannot be read there, and are I/O errors for the guest, such as {} bytes {} to {}: {}",
                self.lost.len(),
                first.image,
                first.at,
                first.end,
                first.reason
            ));
        }
        if !self.served {
            text.push_str("; nobody shows it to the machine now, which is so while it is off");
        }
        text
    }

    /// Why it does not come to its end by itself.
    fn stuck(&self) -> Option<String> {
        match (&self.lost.first(), &self.reach) {
            (Some(_), _) | (None, Reach::Away { .. }) => Some(self.sentence()),
            (None, _) => None,
        }
    }
}

/// Waits until a machine is wholly local.
///
/// # Errors
/// [`Error::NotLocal`] when it is off, or when for so long its repository was away or could not be read; [`Error::Interrupted`]:
/// it goes on by itself then.
pub fn wait(ctx: &Context<'_>, vm: &VmName, patience: Duration) -> Result<(), Error> {
    ctx.progress.step("bringing it here");
    let mut stuck_since = None;
    loop {
        crate::recover::recover_if_idle(ctx, vm);
        let machine = Machine::open(ctx.home, vm)?;
        let Some(status) = status(&machine)? else { return Ok(()) };
        if machine.process().is_none() {
            let reason = format!("it is off, and its disks come here while it runs; {}", status.sentence());
            return Err(Error::NotLocal { vm: vm.clone(), reason });
        }
        match status.stuck() {
            None => stuck_since = None,
            Some(reason) => {
                let since = *stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= patience {
                    return Err(Error::NotLocal { vm: vm.clone(), reason });
                }
            }
        }
        ctx.check()?;
        match &status.memory {
            Some(memory) => {
                ctx.progress.bytes(memory.pages_sent.saturating_mul(4096), memory.pages_held.saturating_mul(4096));
            }
            None => {
                let (done, total) = status.bytes();
                ctx.progress.bytes(done, total);
            }
        }
        std::thread::sleep(TICK);
    }
}
