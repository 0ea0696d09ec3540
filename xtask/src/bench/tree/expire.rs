//! Many snapshots whose time is up go at once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};
use serde_json::{Value, json};

use super::layers;
use super::subject::{Area, Subject};
use super::{BOOT_WITHIN, MEMORY, WORDS};

/// Snapshots, and every how manyth of them stays.
const SNAPSHOTS: u64 = 30;
const STAYS_EVERY: u64 = 3;
const LAYER_MIB: u64 = 16;
const FROM_MIB: u64 = 1024;
/// Until the last of those that expire has.
const EXPIRED: Duration = Duration::from_secs(3);

/// What it came to.
pub struct ExpireFigures {
    /// Snapshots that went.
    pub gone: u64,
    /// Data of the layers that went, in bytes.
    pub own_bytes: u64,
    /// Bytes written by QEMU.
    pub moved_bytes: u64,
    /// Merges that were made.
    pub merges: u64,
    /// Layers that were part of more than one.
    pub twice: u64,
    /// The whole command.
    pub wall_ms: f64,
}

/// Measures.
///
/// # Errors
/// When a command or QEMU fails.
pub fn measure(home: &Home, guest: &SmallGuest) -> Result<ExpireFigures> {
    let disk = home.empty_disk("expire.qcow2", "4G")?;
    let spec = MachineSpec::small(guest, MEMORY, WORDS).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "expire", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let mut subject = Subject::of_keyframe(&machine)?;
    for number in 0..SNAPSHOTS {
        subject.fill(Area { from_mib: FROM_MIB + number * LAYER_MIB, span_mib: LAYER_MIB })?;
        let name = format!("e{number}");
        let stays = number % STAYS_EVERY == 0;
        let words = ["snapshot", "expire", "--name", &name, "--disk-only", "--ttl", if stays { "7d" } else { "1s" }];
        home.run(words)?.succeeded()?;
    }
    thread::sleep(EXPIRED);
    let before = layers::below(&subject.active_file()?)?;
    let (written, start) = (subject.moved_bytes()?, Instant::now());
    let expired = home.run(["expire", "expire", "--json"])?.succeeded()?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    let moved_bytes = subject.moved_bytes()?.saturating_sub(written);
    let after = layers::below(&subject.active_file()?)?;
    let went = before.iter().filter(|layer| !after.iter().any(|left| left.path == layer.path));
    let own_bytes = went.map(|layer| layer.bytes).sum();
    let told = expired.list("machines")?.first().context("expire tells of no machine")?;
    let list = |field: &str| told.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let merged = list("merged");
    let mut ids: Vec<_> = merged.iter().filter_map(|run| run.get("layers")?.as_array()).flatten().collect();
    let named = ids.len();
    ids.sort_by_key(|id| id.to_string());
    ids.dedup();
    home.run(["vm", "stop", "expire", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "expire"])?.succeeded()?;
    Ok(ExpireFigures {
        gone: list("snapshots").len() as u64,
        own_bytes,
        moved_bytes,
        merges: merged.len() as u64,
        twice: (named - ids.len()) as u64,
        wall_ms,
    })
}

impl ExpireFigures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({
            "gone": self.gone,
            "own_bytes": self.own_bytes,
            "moved_bytes": self.moved_bytes,
            "merges": self.merges,
            "layers_merged_twice": self.twice,
            "wall_ms": self.wall_ms,
        })
    }
}
