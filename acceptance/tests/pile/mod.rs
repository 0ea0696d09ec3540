//! A guest that writes, a pile of snapshots, and what their disks hold.

// Each test program uses what it needs.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};
use keyframe_engine::failpoint::Failpoint;
use serde_json::Value;

pub const SECOND: Duration = Duration::from_secs(1);
/// Disks are written all the time.
const WORDS: &str = "checker.mb=32 checker.rate=20 checker.diskrate=200";

pub fn worker<'h>(home: &'h Home, name: &str) -> Result<Machine<'h>> {
    worker_with(home, name, &["a", "b"])
}

pub fn worker_with<'h>(home: &'h Home, name: &str, disks: &[&str]) -> Result<Machine<'h>> {
    let mut spec = MachineSpec::small(&guests::small()?, "128M", WORDS);
    for disk in disks {
        spec = spec.disk(&home.empty_disk(&format!("{name}-{disk}.qcow2"), "32M")?);
    }
    let machine = Machine::start(home, name, &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

pub fn points(operation: &str) -> Vec<&'static str> {
    Failpoint::ALL.iter().map(|point| point.name()).filter(|name| name.starts_with(operation)).collect()
}

pub fn assert_works(machine: &Machine<'_>, when: &str) -> Result<()> {
    let serial = machine.serial()?;
    let first = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    let later = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    assert!(later.uptime_ms > first.uptime_ms, "{when}: the guest's time stands still");
    assert_eq!(machine.show()?.text("state")?, "running", "{when}");
    Ok(())
}

pub fn disk_only(home: &Home, machine: &Machine<'_>, name: &str) -> Result<()> {
    home.run(["snapshot", machine.name(), "--disk-only", "--name", name])?.succeeded().map(drop)
}

/// Lets the guest write for a while.
pub fn writes_on(machine: &Machine<'_>, heartbeats: usize) -> Result<()> {
    let serial = machine.serial()?;
    for _ in 0..heartbeats {
        serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    }
    Ok(())
}

/// What the disks of all snapshots hold, by snapshot and disk.
pub fn contents(home: &Home, machine: &Machine<'_>) -> Result<BTreeMap<String, Vec<blake3::Hash>>> {
    let listed = home.run(["snapshots", machine.name(), "--json"])?.succeeded()?;
    let mut contents = BTreeMap::new();
    for snapshot in listed.list("snapshots")? {
        let name = snapshot["name"].as_str().unwrap_or_default().to_owned();
        let shown = home.run(["show", &machine.at(&name), "--json"])?.succeeded()?;
        let disks = shown.list("disks")?.iter().map(|disk| content(home, &disk["layers"][0])).collect();
        contents.insert(name, disks);
    }
    Ok(contents)
}

pub fn content(home: &Home, top: &Value) -> blake3::Hash {
    let path = home.path().join(top["path"].as_str().unwrap());
    let raw: PathBuf = home.file("content.raw");
    let format = top["format"].as_str().unwrap();
    let mut convert = Command::new("qemu-img");
    let output = convert.args(["convert", "-U", "-f", format, "-O", "raw"]).arg(&path).arg(&raw).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    blake3::hash(&bytes)
}

pub fn wait_tidy(home: &Home, machine: &Machine<'_>, when: &str) {
    let journal = home.path().join("vms").join(machine.name()).join("journal.json");
    let deadline = Instant::now() + 60 * SECOND;
    while journal.exists() {
        assert!(Instant::now() < deadline, "{when}: nobody tidied up");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn layers_of(machine: &Machine<'_>) -> Result<usize> {
    Ok(machine.show()?.json["disks"][0]["layers"].as_array().map_or(0, Vec::len))
}

/// How a command ends at a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    KilledWithQemu,
    Failed,
}
