//! Things that go wrong from outside: damaged files, dead processes, full disks, two at once, bad names. Each leaves the
//! guest as it was, every committed snapshot intact, and a message that says what happened and what to do. Needs QEMU.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keyframe_acceptance::small_fs::SmallFs;
use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome, Result, guests};
use keyframe_engine::state::manifest::Manifest;
use keyframe_engine::state::sealed;
use keyframe_engine::state::tree::FrozenTop;

const SECOND: Duration = Duration::from_secs(1);
const WORDS: &str = "checker.mb=64 checker.rate=20";

fn worker_with<'h>(home: &'h Home, name: &str, memory: &str, words: &str) -> Result<Machine<'h>> {
    let spec = MachineSpec::small(&guests::small()?, memory, words);
    let spec = spec.disk(&home.empty_disk(&format!("{name}.qcow2"), "64M")?);
    let machine = Machine::start(home, name, &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn worker<'h>(home: &'h Home, name: &str) -> Result<Machine<'h>> {
    worker_with(home, name, "192M", WORDS)
}

fn assert_works(machine: &Machine<'_>) -> Result<()> {
    let serial = machine.serial()?;
    let first = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    let later = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    assert!(later.uptime_ms > first.uptime_ms, "the guest's time stands still");
    Ok(())
}

/// The command failed with this status and said so in words that hold all of `said`.
fn assert_refused(outcome: &Outcome, status: i32, said: &[&str]) {
    assert_eq!(outcome.status, Some(status), "{}: {}", outcome.command, outcome.stderr);
    for word in said {
        assert!(outcome.stderr.contains(word), "{}: no {word:?} in {}", outcome.command, outcome.stderr);
    }
}

fn snapshot_dir(home: &Home, machine: &Machine<'_>, snapshot: &Outcome) -> Result<PathBuf> {
    Ok(home.path().join("vms").join(machine.name()).join("snapshots").join(snapshot.text("id")?))
}

/// Changes one bit in the middle of the largest run of data in a file.
fn flip_a_bit_of_memory(image: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let length = file.metadata().unwrap().len();
    // Guest RAM is the largest block; its end holds what the checker allocated.
    let mut at = length / 2;
    let mut page = [0_u8; 4096];
    while page.iter().all(|&byte| byte == 0) {
        at += 4096;
        assert!(at < length, "no data in the second half of the image");
        file.read_exact_at(&mut page, at & !4095).unwrap();
    }
    let target = (at & !4095) + page.iter().position(|&byte| byte != 0).unwrap() as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, target).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], target).unwrap();
}

/// Waits until so many memory images have begun to grow: QEMU is writing the last of them.
fn wait_for_images(snapshots: &Path, count: usize) {
    let deadline = Instant::now() + 60 * SECOND;
    let has = |entry: &fs::DirEntry, name| fs::metadata(entry.path().join(name)).is_ok_and(|image| image.len() > 0);
    let begun = |entry: &fs::DirEntry| has(entry, "memory.mapped") || has(entry, "memory.pages");
    while fs::read_dir(snapshots).into_iter().flatten().flatten().filter(begun).count() < count {
        assert!(Instant::now() < deadline, "no memory image begins to grow");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_flipped_bit_in_memory_never_reaches_the_guest() -> Result<()> {
    let home = Home::new("bit")?;
    let machine = worker(&home, "worker")?;
    let good = machine.snapshot("good")?;
    let bad = machine.snapshot("bad")?;
    // It shares pages with the good one until it is read at once: then all of it is in one file.
    machine.revert("bad", &["--strategy", "eager"])?;
    flip_a_bit_of_memory(&snapshot_dir(&home, &machine, &bad)?.join("memory.mapped"));
    for strategy in ["eager", "lazy"] {
        let outcome = home.run(["revert", "worker@bad", "--strategy", strategy])?;
        // On demand the new process may be gone before it is asked what became of it: then all that is said is that.
        let died = strategy == "lazy" && outcome.stderr.contains("closed the connection");
        assert_refused(&outcome, 1, if died { &[] } else { &["checksum", "memory.mapped"] });
        assert_works(&machine)?;
        machine.assert_intact(machine.serial()?.end())?;
    }
    assert_refused(&home.run(["fork", "worker@bad", "twin"])?, 1, &["checksum"]);
    assert!(!good.text("id")?.is_empty());
    machine.revert("good", &[])?;
    assert_works(&machine)
}

#[test]
fn a_manifest_cut_short_is_named_and_harms_no_other() -> Result<()> {
    let home = Home::new("manifest")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    let cut = machine.snapshot("cut")?;
    let path = snapshot_dir(&home, &machine, &cut)?.join("manifest.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let listed = home.run(["snapshots", "worker", "--json"])?;
    assert_eq!(listed.status, Some(3), "{}", listed.stderr);
    assert_eq!(listed.list("snapshots")?.len(), 1);
    assert_eq!(listed.list("damaged")?.len(), 1);
    let outcome = home.run(["revert", &format!("worker@{}", cut.text("id")?)])?;
    assert_refused(&outcome, 1, &["manifest.json", "damaged"]);
    machine.revert("good", &[])?;
    assert_works(&machine)
}

#[test]
fn a_layer_that_is_missing_or_was_touched_is_noticed_before_anything_happens() -> Result<()> {
    let home = Home::new("layers")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("first")?;
    machine.snapshot("second")?;
    let base = home.file("worker.qcow2");
    let kept = fs::metadata(&base).unwrap().modified().unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&base).unwrap();
    file.set_modified(kept + SECOND).unwrap();
    assert_refused(
        &home.run(["revert", "worker@first"])?,
        1,
        &["worker.qcow2", "from outside", "--accept-touched-layers"],
    );
    assert_works(&machine)?;
    file.set_modified(kept).unwrap();
    fs::rename(&base, home.file("elsewhere.qcow2")).unwrap();
    assert_refused(&home.run(["revert", "worker@second"])?, 1, &["worker.qcow2", "does not exist"]);
    fs::rename(home.file("elsewhere.qcow2"), &base).unwrap();
    assert_works(&machine)?;
    machine.revert("first", &[])?;
    assert_works(&machine)
}

#[test]
fn a_snapshot_from_another_qemu_is_refused_by_its_version() -> Result<()> {
    let home = Home::new("version")?;
    let machine = worker(&home, "worker")?;
    let taken = machine.snapshot("old")?;
    let path = snapshot_dir(&home, &machine, &taken)?.join("manifest.json");
    let mut manifest: Manifest<FrozenTop> = sealed::read(&path).unwrap().unwrap();
    manifest.qemu.version.major -= 1;
    sealed::write(&path, &manifest).unwrap();
    assert_refused(&home.run(["revert", "worker@old"])?, 1, &["was taken with QEMU", "KEYFRAME_QEMU"]);
    assert_works(&machine)?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn qemu_killed_in_the_middle_of_a_snapshot_is_said_and_loses_no_snapshot() -> Result<()> {
    let home = Home::new("qemu-dies")?;
    let machine = worker_with(&home, "worker", "768M", "checker.mb=500 checker.rate=20")?;
    machine.snapshot("good")?;
    let qemu = machine.process()?;
    let snapshot = home.start(["snapshot", "worker", "--name", "lost"])?;
    wait_for_images(&home.path().join("vms/worker/snapshots"), 2);
    qemu.kill(home.path())?;
    let outcome = snapshot.wait()?;
    assert_eq!(outcome.status, Some(1), "{}", outcome.stderr);
    assert_eq!(machine.show()?.text("state")?, "crashed");
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    assert_eq!(listed.list("snapshots")?.len(), 1);
    machine.revert("good", &[])?;
    assert_works(&machine)?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_page_server_that_is_killed_is_replaced_and_the_guest_goes_on() -> Result<()> {
    let home = Home::new("pages-die")?;
    let machine = worker_with(&home, "worker", "768M", "checker.mb=500 checker.rate=20")?;
    machine.snapshot("good")?;
    for victim in ["internal-page-worker", "internal-pages"] {
        let revert = home.start(["revert", "worker@good", "--discard", "--strategy", "lazy", "--json"])?;
        let deadline = Instant::now() + 30 * SECOND;
        while !kill_in(home.path(), victim) {
            assert!(Instant::now() < deadline, "no {victim} was seen");
            std::thread::sleep(Duration::from_millis(1));
        }
        let outcome = revert.wait()?;
        // Killed before it had sent the devices, QEMU cannot go on, and the present does; afterwards it can.
        if outcome.status == Some(0) {
            assert!(outcome.number("hydrated_ms")? > 0.0);
        } else {
            assert_eq!(outcome.status, Some(1), "{}", outcome.stderr);
        }
        assert_works(&machine)?;
        machine.assert_intact(machine.serial()?.end())?;
    }
    Ok(())
}

/// Kills the first process that has this word and this home in its command line.
fn kill_in(home: &Path, word: &str) -> bool {
    let home = home.to_string_lossy();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(word) && line.contains(&*home) {
            return Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success();
        }
    }
    false
}

#[test]
fn a_full_disk_during_capture_leaves_the_guest_running_and_nothing_else() -> Result<()> {
    let home = Home::new("full")?;
    let machine = worker(&home, "worker")?;
    let snapshots = home.path().join("vms/worker/snapshots");
    {
        let _small = SmallFs::mount(&snapshots, "40m");
        let outcome = home.run(["snapshot", "worker", "--name", "big"])?;
        assert_eq!(outcome.status, Some(1), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("kept:"), "{}", outcome.stderr);
        assert_works(&machine)?;
        assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0, "debris on the full file system");
    }
    machine.snapshot("fits")?;
    machine.revert("fits", &[])?;
    assert_works(&machine)?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn the_second_of_two_commands_is_told_that_the_first_is_at_work() -> Result<()> {
    let home = Home::new("two")?;
    let machine = worker_with(&home, "worker", "768M", "checker.mb=500 checker.rate=20")?;
    let first = home.start(["snapshot", "worker", "--name", "first"])?;
    wait_for_images(&home.path().join("vms/worker/snapshots"), 1);
    assert_refused(&home.run(["snapshot", "worker", "--name", "second"])?, 11, &["snapshot worker", "pid"]);
    assert_eq!(first.wait()?.status, Some(0));
    machine.snapshot("second")?;
    assert_works(&machine)
}

#[test]
fn an_interrupted_snapshot_leaves_a_running_guest_and_no_debris() -> Result<()> {
    let home = Home::new("interrupt")?;
    let machine = worker_with(&home, "worker", "768M", "checker.mb=500 checker.rate=20")?;
    let snapshot = home.start(["snapshot", "worker", "--name", "never"])?;
    let dir = home.path().join("vms/worker/snapshots");
    wait_for_images(&dir, 1);
    let pid = snapshot.process().0.to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(snapshot.wait()?.status, Some(130));
    assert_works(&machine)?;
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "debris");
    assert_eq!(machine.show()?.json["disks"][0]["layers"].as_array().map(Vec::len), Some(1), "a layer too many");
    machine.snapshot("now")?;
    machine.assert_intact(keyframe_acceptance::serial::Mark::START)
}

#[test]
fn names_and_requests_that_cannot_be_are_refused_in_words() -> Result<()> {
    let home = Home::new("names")?;
    let disk = home.empty_disk("disk.qcow2", "16M")?;
    let disk = disk.to_str().unwrap();
    let long = "x".repeat(300);
    for name in ["a/b", "a b", "..", "", &long] {
        assert_refused(&home.run(["vm", "create", name, "--disk", disk])?, 2, &["machine name"]);
    }
    home.run(["vm", "create", "one", "--disk", disk])?.succeeded()?;
    assert_refused(&home.run(["vm", "create", "one"])?, 1, &["there is a machine one already"]);
    assert_refused(&home.run(["vm", "create", "two", "--disk", disk])?, 1, &["is a disk of machine one"]);
    assert_refused(&home.run(["vm", "create", "two", "--", "-device", "vfio-pci,host=0"])?, 2, &["vfio-pci"]);
    for name in ["a/b", "a b", &long] {
        assert_refused(&home.run(["snapshot", "one", "--name", name])?, 2, &["snapshot name"]);
    }
    assert_refused(&home.run(["vm", "show", "none"])?, 10, &["there is no machine none"]);
    assert_refused(&home.run(["revert", "one@none"])?, 10, &["there is no snapshot none"]);
    assert_refused(&home.run(["snapshot"])?, 2, &["Usage"]);
    Ok(())
}

#[test]
fn an_agent_that_never_answers_costs_seconds_and_is_said() -> Result<()> {
    let home = Home::new("agent")?;
    let machine = worker(&home, "worker")?;
    let begun = Instant::now();
    assert_refused(&home.run(["snapshot", "worker", "--freeze"])?, 1, &["could not be frozen"]);
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    assert_works(&machine)?;
    let outcome = home.run(["snapshot", "worker", "--freeze=try", "--json"])?;
    assert_eq!(outcome.status, Some(3), "done, but not frozen: {}", outcome.stderr);
    assert_eq!(outcome.text("consistency")?, "running-state");
    assert!(outcome.list("notes")?.iter().any(|note| note.as_str().is_some_and(|text| text.contains("not frozen"))));
    Ok(())
}
