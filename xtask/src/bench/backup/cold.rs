//! A Debian starts from its firmware: from its files, and straight from a repository.

use std::time::{Duration, Instant};

use anyhow::Result;
use keyframe_acceptance::guests::DebianGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Repository};
use serde_json::{Value, json};

use crate::bench::samples::Samples;
use crate::say;

const WITHIN: Duration = Duration::from_secs(300);

/// From typing the command until somebody is logged in.
#[derive(Default)]
pub struct Figures {
    /// `vm start`, its files here.
    pub files: Samples,
    /// `boot`, from a directory.
    pub repository: Samples,
}

impl Figures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({"files": self.files.to_json(), "repository": self.repository.to_json()})
    }
}

/// Measures, in turns.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &DebianGuest, rounds: u64) -> Result<Figures> {
    let spec = MachineSpec::with_memory("1G").direct_kernel(
        &guest.kernel,
        &guest.initrd,
        "root=/dev/vda2 console=ttyS0 quiet panic=-1",
    );
    let mut spec = spec.option("--accel", "tcg");
    for (name, disk) in [("system.qcow2", &guest.system_disk), ("data.qcow2", &guest.data_disk)] {
        let copy = home.file(name);
        std::fs::copy(disk, &copy)?;
        spec = spec.disk(&copy);
    }
    // What a first boot writes is written before anything is measured.
    let machine = Machine::start(home, "cold", &spec)?;
    machine.serial()?.wait_for(Mark::START, "(automatic login)", WITHIN)?;
    home.run(["vm", "stop", "cold", "--timeout", "180s"])?.succeeded()?;
    let repository = Repository::init(home)?;
    repository.run(home, &["backup", "cold"])?.succeeded()?;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say::note(format_args!("round {round}"));
        let mark = machine.serial()?.end();
        let begun = Instant::now();
        home.run(["vm", "start", "cold"])?.succeeded()?;
        machine.serial()?.wait_for(mark, "(automatic login)", WITHIN)?;
        figures.files.push(begun.elapsed());
        home.run(["vm", "stop", "cold", "--force"])?.succeeded()?;
        let begun = Instant::now();
        repository.run(home, &["boot", "cold", "--as", "again"])?.succeeded()?;
        let again = Machine::existing(home, "again");
        again.serial()?.wait_for(Mark::START, "(automatic login)", WITHIN)?;
        figures.repository.push(begun.elapsed());
        home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
        home.run(["vm", "remove", "again"])?.succeeded()?;
    }
    home.run(["vm", "remove", "cold"])?.succeeded()?;
    Ok(figures)
}
