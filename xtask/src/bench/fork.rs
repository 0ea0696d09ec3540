//! Many forks of one idle machine, against as many bare QEMU processes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keyframe_acceptance::bare::{BareQemu, BareSpec};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::process::ProcessId;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};
use serde_json::Value;

use super::figures::ForkFigures;
use super::guest::{Held, Ram};
use super::samples::Samples;

const COUNT: u32 = 10;
const WITHIN: Duration = Duration::from_secs(60);
/// How long forks run before their memory is looked at.
const SETTLE: Duration = Duration::from_secs(5);

/// Forks a machine that has filled its memory and idles.
///
/// # Errors
/// When a command fails, or a fork does not run.
pub fn measure(home: &Home, guest: &SmallGuest) -> Result<ForkFigures> {
    let ram = Ram::LEAST;
    let bare_starts = bare_starts(home, guest, ram)?;
    let disk = home.empty_disk("idle.qcow2", "1G")?;
    let spec = MachineSpec::small(guest, &ram.option(), &ram.idle()).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "idle", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", WITHIN)?;
    machine.snapshot("s")?;
    home.run(["vm", "stop", "idle", "--force"])?.succeeded()?;

    let (mut running, mut command) = (Samples::default(), Samples::default());
    let (start, count) = (Instant::now(), COUNT.to_string());
    let made = home.run(["fork", &machine.at("s"), "fork", "--count", &count, "--json"])?.succeeded()?;
    command.push(start.elapsed());
    let each = made.list("machines")?.iter().filter_map(|one| one.get("running_ms").and_then(Value::as_f64));
    each.max_by(f64::total_cmp).into_iter().for_each(|last| running.push_ms(last));
    let names = made.list("machines")?.iter().filter_map(|one| one.get("name").and_then(Value::as_str));
    let forks: Vec<_> = names.map(|name| Machine::existing(home, name)).collect();
    let held = forks.iter().map(|fork| fork.process().context("a fork has a process"));
    let processes = held.collect::<Result<Vec<ProcessId>>>()?;
    for fork in &forks {
        fork.serial()?.next_heartbeat(Mark::START, WITHIN)?;
    }
    thread::sleep(SETTLE);
    let held = processes.iter().map(|process| Held::by(*process)).collect::<Result<Vec<_>>>()?;
    for fork in &forks {
        home.run(["vm", "stop", fork.name(), "--force"])?.succeeded()?;
    }
    Ok(ForkFigures {
        ram,
        count: COUNT,
        running,
        command,
        bare_starts,
        pss_kib: held.iter().map(|held| held.pss_kib).collect(),
        private_kib: held.iter().map(|held| held.private_kib).collect(),
    })
}

/// They wait for a saved state, as a fork does, so none takes the processor from the next one by booting.
fn bare_starts(home: &Home, guest: &SmallGuest, ram: Ram) -> Result<Samples> {
    let disks = (0..COUNT).map(|number| home.empty_disk(&format!("start-{number}.qcow2"), "1G"));
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    let (words, memory, mut samples) = (ram.idle(), ram.option(), Samples::default());
    let (start, mut running) = (Instant::now(), Vec::new());
    for disk in disks {
        let dir = disk.with_extension("run");
        let spec =
            BareSpec { dir, guest, words: &words, memory: &memory, disks: vec![disk], direct: false, incoming: true };
        running.push(BareQemu::start(&spec)?);
    }
    samples.push(start.elapsed());
    Ok(samples)
}
