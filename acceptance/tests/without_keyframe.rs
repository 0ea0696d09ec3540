//! A snapshot is brought back with nothing but QEMU, by the script that docs/RESTORE-WITHOUT-KEYFRAME.md explains. Needs
//! QEMU, jq and Python.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyframe_acceptance::checker::first_complaint;
use keyframe_acceptance::error::Error;
use keyframe_acceptance::machine::type_line;
use keyframe_acceptance::serial::{Mark, SerialLog};
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};

const SECOND: Duration = Duration::from_secs(1);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/restore-without-keyframe.sh");

/// The script at work; it becomes QEMU. Dropping it kills it.
struct Restored {
    child: Child,
    dir: PathBuf,
}

impl Restored {
    fn start(snapshot: &Path, home: &Home) -> Result<Self> {
        let dir = home.file("restored");
        fs::create_dir(&dir).map_err(Error::file("create", &dir))?;
        let mut script = Command::new("sh");
        script.arg(SCRIPT).arg(snapshot).arg(home.path()).arg(&dir).stdin(Stdio::null());
        let child = script.spawn().map_err(|source| Error::Run { program: SCRIPT.to_owned(), source })?;
        Ok(Self { child, dir })
    }

    fn serial(&self) -> SerialLog {
        SerialLog::at(self.dir.join("serial.log"))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Every file below `dir`, with its length and the time of its last write.
fn looks_of(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut looks = Vec::new();
    for entry in fs::read_dir(dir).expect("a readable directory") {
        let entry = entry.expect("a readable entry");
        let meta = entry.metadata().expect("a file that can be looked at");
        if meta.is_dir() {
            looks.extend(looks_of(&entry.path()));
        } else if meta.is_file() {
            looks.push((entry.path(), meta.len(), meta.modified().expect("a time")));
        }
    }
    looks.sort();
    looks
}

#[test]
fn the_script_of_the_page_brings_back_the_running_program() -> Result<()> {
    let home = Home::new("without")?;
    let mut spec = MachineSpec::small(&guests::small()?, "384M", "checker.mb=100 checker.rate=20");
    for disk in ["a.qcow2", "b.qcow2"] {
        spec = spec.disk(&home.empty_disk(disk, "256M")?);
    }
    let machine = Machine::start(&home, "worker", &spec)?;
    machine.wait_until_checking()?;
    let serial = machine.serial()?;
    // The snapshot that is brought back stands on another one: its disks have two layers each, and its memory lies in
    // both files.
    machine.snapshot("below")?;
    let before = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    let taken = machine.snapshot("kept")?;
    let after = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    machine.process()?.kill(home.path())?;

    let vm = home.path().join("vms/worker");
    let looks = looks_of(&vm);
    let snapshot = vm.join("snapshots").join(taken.text("id")?);
    assert!(snapshot.join("memory.map").exists() && !snapshot.join("memory.mapped").exists(), "it does not share");
    let restored = Restored::start(&snapshot, &home)?;
    let serial = restored.serial();
    let first = serial.next_heartbeat(Mark::START, 60 * SECOND)?;
    assert_eq!(first.token, before.token, "another program: it was booted, not brought back");
    let instant = before.uptime_ms..after.uptime_ms + 1_000;
    assert!(instant.contains(&first.uptime_ms), "goes on at {} ms, taken within {instant:?}", first.uptime_ms);

    let mark = serial.end();
    type_line(&restored.dir.join("console.sock"), "verify")?;
    let verified = serial.wait_for(mark, "VERIFIED", 60 * SECOND)?;
    assert!(verified.contains("faults 0"), "{verified}");
    // By then every block of both disks was read at least once.
    std::thread::sleep(3 * SECOND);
    let later = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    assert_eq!(first_complaint(&serial.since(Mark::START)), None);
    assert!(later.sequences.iter().zip(&first.sequences).all(|(now, then)| now > then), "its disks stand still");
    drop(restored);
    assert_eq!(looks_of(&vm), looks, "nothing that belongs to the snapshot was written to");
    Ok(())
}
