//! Reverts to a memory image of its own and to one that shares pages with it, in turn.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};
use serde_json::{Value, json};

use super::BOOT_WITHIN;
use crate::bench::guest::Ram;
use crate::bench::samples::Samples;

const ROUNDS: usize = 5;
const BETWEEN: Duration = Duration::from_secs(1);

/// Reverts to one of the two.
#[derive(Default)]
pub struct Reverts {
    /// Until vCPUs ran.
    pub running: Samples,
    /// Until all memory was there.
    pub hydrated: Samples,
}

/// Both.
pub struct RevertFigures {
    /// The machine's RAM.
    pub ram: Ram,
    /// Bytes that the second image has in common with the first.
    pub shared_bytes: u64,
    /// To the image with all its pages in it.
    pub unshared: Reverts,
    /// To the one that refers to the other's.
    pub shared: Reverts,
}

/// Measures both on one machine.
///
/// # Errors
/// When a command fails, or nothing is shared.
pub fn measure(home: &Home, guest: &SmallGuest) -> Result<RevertFigures> {
    let ram = Ram::LEAST;
    let disk = home.empty_disk("revert.qcow2", "1G")?;
    let spec = MachineSpec::small(guest, &ram.option(), &ram.idle()).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "revert", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let first = machine.snapshot("unshared")?;
    thread::sleep(BETWEEN);
    let second = machine.snapshot("shared")?;
    let shared = |taken: &Value| taken.get("shared_bytes").and_then(Value::as_u64).unwrap_or(0);
    let shared_bytes = shared(&second.json);
    ensure!(shared(&first.json) == 0 && shared_bytes > 0, "the second image does not share pages with the first");
    let mut figures = RevertFigures { ram, shared_bytes, unshared: Reverts::default(), shared: Reverts::default() };
    for _ in 0..ROUNDS {
        figures.unshared.revert(&machine, "unshared")?;
        figures.shared.revert(&machine, "shared")?;
    }
    home.run(["vm", "stop", "revert", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "revert"])?.succeeded()?;
    Ok(figures)
}

impl Reverts {
    fn revert(&mut self, machine: &Machine<'_>, to: &str) -> Result<()> {
        thread::sleep(BETWEEN);
        let reverted = machine.revert(to, &["--strategy", "lazy"])?;
        self.running.push_ms(reverted.number("running_ms")?);
        self.hydrated.push_ms(reverted.number("hydrated_ms")?);
        Ok(())
    }

    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({ "running": self.running.to_json(), "hydrated": self.hydrated.to_json() })
    }
}
