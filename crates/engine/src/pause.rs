//! How long a pause will be, and keeping it short.
//!
//! QEMU's pause is spent write-protecting RAM, which goes by page-table entries: huge pages make it short. A
//! snapshot splits every huge page it meets; so afterwards the guest's memory is put back into huge pages, in
//! slices that the guest does not notice.

use std::time::Duration;

use keyframe_hypervisor::MachineDefinition;
use keyframe_types::ByteLen;

use crate::context::Context;
use crate::error::Error;
use crate::state::head::Process;

/// The pause with hardly any page-table entries: stopping vCPUs, flushing disks, stashing devices.
const BASE: Duration = Duration::from_micros(2000);
/// What each page-table entry adds. Measured: 38-45 ms for 4 GiB in small pages.
const PER_ENTRY_NS: u64 = 40;
/// What populating RAM adds to the pause when the guest is stopped first. Measured: 120 ms for 4 GiB.
const POPULATE_PER_GIB: Duration = Duration::from_millis(30);
/// An expected pause beyond this is worth putting memory into huge pages for, before the snapshot.
const WORTH_PREPARING: Duration = Duration::from_millis(6);

/// The longest pause that is acceptable.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    max: Option<Duration>,
}

impl Budget {
    /// At most `max`, if anything was said.
    #[must_use]
    pub fn new(max: Option<Duration>) -> Self {
        Self { max }
    }

    /// Prepares the machine's memory for a short pause and refuses when it would still be too long.
    ///
    /// # Errors
    /// [`Error::PauseTooLong`].
    pub fn admit(&self, ctx: &Context<'_>, process: &Process, definition: &MachineDefinition) -> Result<(), Error> {
        if expected(process) > WORTH_PREPARING {
            ctx.progress.step("putting the guest's memory into huge pages");
            restore_huge_pages(ctx, process, definition);
        }
        match self.max {
            Some(max) if expected(process) > max => Err(too_long(expected(process), max)),
            _ => Ok(()),
        }
    }

    /// [`Budget::admit`] of a guest that is stopped first, whatever happens.
    ///
    /// # Errors
    /// [`Error::PauseTooLong`].
    pub fn admit_stop_first(
        &self,
        ctx: &Context<'_>,
        process: &Process,
        definition: &MachineDefinition,
    ) -> Result<(), Error> {
        self.admit(ctx, process, definition)?;
        match self.max {
            Some(max) if expected_stop_first(process) > max => Err(too_long(expected_stop_first(process), max)),
            _ => Ok(()),
        }
    }

    /// Whether the guest may be stopped while its memory is populated.
    #[must_use]
    pub fn admits_stop_first(&self, process: &Process) -> bool {
        self.max.is_none_or(|max| expected_stop_first(process) <= max)
    }
}

fn too_long(expected: Duration, max: Duration) -> Error {
    Error::PauseTooLong { expected_ms: expected.as_secs_f64() * 1e3, allowed_ms: max.as_secs_f64() * 1e3 }
}

/// Resident memory of the process, all of it and the part in huge pages. Source: proc(5), smaps_rollup.
fn rollup(process: &Process) -> (ByteLen, ByteLen) {
    let path = format!("/proc/{}/smaps_rollup", process.instance.process.pid);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        ByteLen::from_bytes(kib.unwrap_or(0).saturating_mul(1024))
    };
    (field("Rss:"), field("AnonHugePages:"))
}

/// Memory of the process that is resident: no more than that has to be written.
#[must_use]
pub fn resident(process: &Process) -> ByteLen {
    rollup(process).0
}

/// The pause to expect of a cut at QEMU's own stop.
#[must_use]
pub fn expected(process: &Process) -> Duration {
    let (resident, huge) = rollup(process);
    let entries = resident.saturating_sub(huge).bytes() / 4096 + huge.bytes() / (2 << 20);
    BASE + Duration::from_nanos(entries.saturating_mul(PER_ENTRY_NS))
}

/// The pause to expect when the guest is stopped first.
#[must_use]
pub fn expected_stop_first(process: &Process) -> Duration {
    let gib = resident(process).bytes().div_ceil(1 << 30);
    expected(process) + POPULATE_PER_GIB * u32::try_from(gib).unwrap_or(u32::MAX)
}

/// Puts the guest's memory back into huge pages; says how much.
pub fn restore_huge_pages(ctx: &Context<'_>, process: &Process, definition: &MachineDefinition) -> ByteLen {
    let pid = process.instance.process.pid;
    match crate::memory::collapse(pid, definition.memory(), ctx.cancel) {
        Ok(restored) => restored,
        Err(error) => {
            ctx.progress
                .note(&format!("the guest's memory stays in small pages; the next pause will be longer: {error}"));
            ByteLen::ZERO
        }
    }
}
