//! How long merges take, and whether they end at all: what the guest writes against what the disk can merge.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use keyframe_hypervisor::Monitor;
use keyframe_qmp::commands::block::{QueryBlockstats, StatsOf};
use keyframe_types::ByteLen;
use serde::Serialize;

use crate::context::Context;
use crate::machine::Machine;
use crate::merge::plan::Run;

/// How long the guest is watched.
const WATCHED: Duration = Duration::from_millis(500);
/// How much of a layer is read to see how fast the disk is.
const SAMPLE_BYTES: usize = 32 << 20;
/// What each read asks for; a merge does the same.
const READ_BYTES: usize = 1 << 20;

/// What merges are going to be like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// What the guest writes now, in bytes per second; 0 for a machine that is off.
    pub guest_writes_per_s: u64,
    /// What the disk is thought to merge, in bytes per second: half of what it reads, or the limit that was set.
    pub merges_per_s: Option<u64>,
    /// How long all of it takes, in seconds; `None` if it does not end, or nobody knows.
    pub seconds: Option<f64>,
    /// Whether the merge of what the guest writes to catches up with it.
    pub converges: bool,
}

/// Watches the guest, reads a little, and tells what merging `runs` is going to be like.
#[must_use]
pub fn forecast(ctx: &Context<'_>, machine: &Machine, runs: &[Run], speed: Option<u64>) -> Forecast {
    let guest_writes_per_s = guest_writes(machine).unwrap_or(0);
    let disk = read_rate(ctx, runs).map(|rate| rate / 2);
    let merges_per_s = [speed, disk].into_iter().flatten().min().filter(|rate| *rate > 0);
    // Only what the guest writes to runs away from a merge, and only when it is pushed down.
    let chased = runs.iter().any(|run| run.active && run.into + 1 < run.layers.len());
    let moved: ByteLen = runs.iter().map(|run| run.cost.bytes_moved).sum();
    let converges = !chased || merges_per_s.is_none_or(|rate| rate > guest_writes_per_s);
    let left_over = |rate: u64| if chased { rate.saturating_sub(guest_writes_per_s) } else { rate };
    #[allow(clippy::cast_precision_loss)] // a forecast
    let seconds = merges_per_s
        .map(left_over)
        .filter(|rate| converges && *rate > 0)
        .map(|rate| ((moved.bytes() as f64 / rate as f64) * 10.0).round() / 10.0);
    Forecast { guest_writes_per_s, merges_per_s, seconds, converges }
}

fn guest_writes(machine: &Machine) -> Option<u64> {
    let mut monitor = machine.process()?.instance.monitor(Monitor::Engine).ok()?;
    let mut written = || -> Option<u64> {
        let stats = monitor.call(&QueryBlockstats::of(StatsOf::Devices)).ok()?;
        Some(stats.iter().map(|device| device.stats.wr_bytes).sum())
    };
    let (begun, before) = (Instant::now(), written()?);
    std::thread::sleep(WATCHED);
    let after = written()?;
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    Some(after.saturating_sub(before).saturating_mul(1000) / ms)
}

/// Bytes per second at which the first large layer is read past the page cache; `None` where that cannot be told.
fn read_rate(ctx: &Context<'_>, runs: &[Run]) -> Option<u64> {
    let layers = runs.iter().flat_map(|run| run.layers.iter().enumerate().filter(|(at, _)| *at != run.into));
    let largest =
        layers.map(|(_, layer)| ctx.home.absolute(&layer.path)).max_by_key(|path| crate::space::used(path))?;
    let mut file: File = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(largest).ok()?;
    // Direct reads want an aligned place in memory.
    let mut room = vec![0_u8; READ_BYTES + 4096];
    let aligned = room.as_ptr().align_offset(4096);
    let buffer = room.get_mut(aligned..aligned + READ_BYTES)?;
    let begun = Instant::now();
    let mut total = 0_usize;
    while total < SAMPLE_BYTES {
        match file.read(buffer).ok()? {
            0 => break,
            got => total += got,
        }
    }
    let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    (total >= READ_BYTES).then(|| (total as u64).saturating_mul(1_000_000) / us)
}
