//! The running state of a machine of 1 GiB in a repository: what a second point of it adds.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Repository};
use serde_json::{Value, json};

use crate::bench::guest::Ram;

const BOOT_WITHIN: Duration = Duration::from_secs(300);
/// The guest works on between the two points.
const BETWEEN: Duration = Duration::from_secs(10);

/// What it came to, in bytes of the repository.
pub struct Figures {
    pub first_bytes: u64,
    pub second_bytes: u64,
}

impl Figures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({"first_bytes": self.first_bytes, "second_bytes": self.second_bytes})
    }
}

/// Makes two points of a working machine whose memory is full.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &SmallGuest) -> Result<Figures> {
    let ram = Ram::LEAST;
    let spec = MachineSpec::small(guest, &ram.option(), &ram.idle()).disk(&home.empty_disk("state.qcow2", "1G")?);
    let machine = Machine::start(home, "state", &spec.option("--accel", "tcg"))?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let repository = Repository::init(home)?;
    let point = || -> Result<u64> {
        let made = repository.run(home, &["backup", "state", "--memory", "--json"])?.succeeded()?;
        made.json["totals"]["stored_bytes"].as_u64().context("a backup tells what it stored")
    };
    let first_bytes = point()?;
    thread::sleep(BETWEEN);
    let second_bytes = point()?;
    home.run(["vm", "stop", "state", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "state"])?.succeeded()?;
    Ok(Figures { first_bytes, second_bytes })
}
