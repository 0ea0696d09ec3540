//! Backups of machines that go on writing, without a snapshot: `backup --live`. Needs QEMU.

mod pile;

use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome, Repository, Result, Running, guests};
use serde_json::{Value, json};

use pile::{SECOND, assert_works, layers_of, points, wait_tidy, worker, worker_with, writes_on};

/// The command with its repository in its words, so that it can be started and left alone.
fn words(repository: &Repository, further: &[&str]) -> Vec<String> {
    let key = repository.path().with_file_name("key").display().to_string();
    let place = repository.path().display().to_string();
    let named = ["--repo", &place, "--key-file", &key].map(str::to_owned);
    further.iter().map(|word| (*word).to_owned()).chain(named).collect()
}

fn live(home: &Home, repository: &Repository, further: &[&str]) -> Result<Outcome> {
    let all: Vec<&str> = ["backup", "worker", "--live", "--json"].iter().chain(further).copied().collect();
    repository.run(home, &all)
}

/// A live backup that stands still at a failpoint.
fn live_until(home: &Home, repository: &Repository, failpoint: &str, further: &[&str]) -> Result<Running> {
    let all: Vec<&str> = ["backup", "worker", "--live", "--json"].iter().chain(further).copied().collect();
    home.start_until(failpoint, words(repository, &all))
}

fn points_of(home: &Home, repository: &Repository) -> Result<usize> {
    Ok(repository.run(home, &["points", "worker", "--json"])?.succeeded()?.list("points")?.len())
}

/// Nothing of a live backup is in QEMU or on disk, and the machine is as it would be without one.
fn assert_nothing_left(home: &Home, machine: &Machine<'_>, when: &str) -> Result<()> {
    let nodes = machine.monitor()?.execute("query-named-block-nodes", &json!({"flat": true}))?;
    let ours: Vec<&Value> = nodes
        .as_array()
        .into_iter()
        .flatten()
        .filter(|node| node["node-name"].as_str().is_some_and(|name| name.starts_with("fl-")))
        .collect();
    assert!(ours.is_empty(), "{when}: {ours:?}");
    let exports = machine.monitor()?.execute("query-block-exports", &json!({}))?;
    assert_eq!(exports, json!([]), "{when}");
    assert_eq!(scratch_files(home), Vec::<PathBuf>::new(), "{when}");
    assert_eq!(layers_of(machine)?, 1, "{when}: a layer more");
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    assert!(listed.list("snapshots")?.is_empty(), "{when}: a snapshot");
    Ok(())
}

fn scratch_files(home: &Home) -> Vec<PathBuf> {
    fn below(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                below(&entry.path(), found);
            } else if entry.file_name().to_string_lossy().contains("scratch") {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    below(home.path(), &mut found);
    found
}

/// The last write on each disk of a point, as the checker finds them when it boots from it. It complains when they are not of
/// one instant.
fn found_in(home: &Home, repository: &Repository, point: &str, token: &str) -> Result<Vec<u64>> {
    repository.run(home, &["restore", point, "--as", "again", "--run"])?.succeeded()?;
    let again = Machine::existing(home, "again");
    let line = again.serial()?.wait_for(Mark::START, &format!("FOUND session {token} seq "), 60 * SECOND)?;
    again.assert_intact(Mark::START)?;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "again"])?.succeeded()?;
    let numbers = line.split("seq ").nth(1).unwrap_or_default();
    Ok(numbers.trim().split(',').filter_map(|number| number.parse().ok()).collect())
}

#[test]
fn disks_are_of_one_instant_while_the_guest_writes_on() -> Result<()> {
    let home = Home::new("live")?;
    let machine = worker(&home, "worker")?;
    let repository = Repository::init(&home)?;
    for (target, further, reason) in
        [("worker", "--memory", "memory of the same instant"), ("worker@any", "--json", "as it is now")]
    {
        let refused = repository.run(&home, &["backup", target, "--live", further])?;
        assert_eq!(refused.status, Some(2), "{target} {further}");
        assert!(format!("{}{}", refused.stdout, refused.stderr).contains(reason), "{}", refused.stderr);
    }
    let serial = machine.serial()?;
    let before = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    let running = live_until(&home, &repository, "live-shown", &["--tag", "first"])?;
    let instant = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    assert_eq!(scratch_files(&home), Vec::<PathBuf>::new(), "they have no names while they are used");
    let busy = home.run(["snapshot", "worker", "--disk-only"])?;
    assert_eq!(busy.status, Some(11), "its disks are not changed meanwhile: {}", busy.stderr);
    writes_on(&machine, 6)?;
    running.resume()?;
    let first = running.wait()?.succeeded()?;
    assert_eq!((first.text("consistency")?, first.text("taken")?), ("crash", "live"));
    assert_eq!(first.json["changed_by"]["disk0"], "full");
    assert!(first.json["live"]["scratch_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{}", first.json);
    let pause = first.number("pause_ms")?;
    assert!(pause > 0.0 && pause < 1000.0, "the guest stood still for two disks: {pause} ms");
    assert_nothing_left(&home, &machine, "after the first")?;
    assert_works(&machine, "after the first")?;
    let second = live(&home, &repository, &["--tag", "second"])?.succeeded()?;
    assert_eq!(second.json["changed_by"], json!({"disk0": "bitmap", "disk1": "bitmap"}));
    let listed = repository.run(&home, &["points", "worker", "--json"])?.succeeded()?;
    assert!(listed.list("points")?.iter().all(|point| point["taken"] == "live"), "{}", listed.json);
    let held = found_in(&home, &repository, "worker@first", &before.token)?;
    let (low, high) = (&before.sequences, &instant.sequences);
    let within = |number: usize| held[number] >= low[number] && held[number] <= high[number] + 1;
    assert!(held.len() == 2 && within(0) && within(1), "{held:?} is not between {low:?} and {high:?}");
    Ok(())
}

fn assert_same_as_now(home: &Home, machine: &Machine<'_>, repository: &Repository, point: &str) -> Result<()> {
    let shown = machine.show()?;
    let file = home.file("disk0.raw");
    let to = file.display().to_string();
    repository.run(home, &["restore", point, "--disk", "disk0", "--to", &to])?.succeeded()?;
    let layer = shown.json["disks"][0]["layers"][0].as_str().unwrap_or_default().to_owned();
    let mut compare = Command::new("qemu-img");
    let output = compare.args(["compare", "-U"]).arg(&file).arg(&layer).output().unwrap();
    assert!(output.status.success(), "{point}: {}", String::from_utf8_lossy(&output.stdout));
    std::fs::remove_file(&file).unwrap();
    Ok(())
}

#[test]
fn what_qemu_noted_since_is_what_changed() -> Result<()> {
    let home = Home::new("live-bitmaps")?;
    let machine = worker_with(&home, "worker", &["a"])?;
    let repository = Repository::init(&home)?;
    // While the guest stands still the point can be compared with its disks, byte by byte.
    let stored = |tag: &str, expected: &str| -> Result<()> {
        machine.monitor()?.execute("stop", &json!({}))?;
        let backup = live(&home, &repository, &["--tag", tag])?.succeeded()?;
        assert_eq!(backup.json["changed_by"], json!({"disk0": expected}), "{tag}");
        assert_eq!(machine.show()?.text("state")?, "paused", "{tag}: nobody has let it run");
        assert_same_as_now(&home, &machine, &repository, &format!("worker@{tag}"))?;
        machine.monitor()?.execute("cont", &json!({}))?;
        writes_on(&machine, 1)
    };
    stored("first", "full")?;
    stored("second", "bitmap")?;
    // One of the other kind goes by what was noted, too, and one behind it by what the other kind left.
    let other = repository.run(&home, &["backup", "worker", "--json"])?.succeeded()?;
    assert_eq!(other.json["changed_by"], json!({"disk0": "bitmap"}));
    writes_on(&machine, 1)?;
    // So does one with a snapshot between, on whose layer the present stands.
    home.run(["snapshot", "worker", "--disk-only", "--name", "between"])?.succeeded()?;
    writes_on(&machine, 1)?;
    stored("third", "bitmap")?;
    home.run(["delete", "worker@between"])?.succeeded()?;
    // A killed QEMU takes its notes with it: the history goes on.
    machine.process()?.kill(home.path())?;
    let mark = machine.serial()?.end();
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.next_heartbeat(mark, 60 * SECOND)?;
    stored("fourth", "compare")?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    let refused = live(&home, &repository, &[])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("without --live"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn one_that_ends_at_any_step_leaves_nothing_and_a_working_guest() -> Result<()> {
    let home = Home::new("live-killed")?;
    let machine = worker(&home, "worker")?;
    let repository = Repository::init(&home)?;
    let mut made = 0;
    for point in points("live-") {
        for (end, at) in [("killed", point.to_owned()), ("failed", format!("{point}!"))] {
            let when = format!("{point}, {end}");
            let outcome = repository.run_until(&home, &at, &["backup", "worker", "--live"])?;
            assert_eq!(outcome.status, if end == "killed" { None } else { Some(1) }, "{when}: {}", outcome.stderr);
            made += usize::from(point == "live-point-made");
            wait_tidy(&home, &machine, &when);
            assert_works(&machine, &when)?;
            assert_nothing_left(&home, &machine, &when)?;
            assert_eq!(points_of(&home, &repository)?, made, "{when}: half a point, or one that is lost");
        }
    }
    machine.assert_intact(Mark::START)?;
    // With QEMU all that it was told goes; files that still had names go with the next command.
    for point in ["live-scratch-made", "live-attaching"] {
        let pid = machine.process()?.0.to_string();
        let named = words(&repository, &["backup", "worker", "--live"]);
        let environment = [("KEYFRAME_FAILPOINT", point), ("KEYFRAME_FAILPOINT_WITH", pid.as_str())];
        let outcome = home.run_with(&environment, named)?;
        assert_eq!(outcome.status, None, "{point}: {}", outcome.stderr);
        wait_tidy(&home, &machine, point);
        assert_eq!(scratch_files(&home), Vec::<PathBuf>::new(), "{point}");
        let mark = machine.serial()?.end();
        home.run(["vm", "start", "worker"])?.succeeded()?;
        machine.serial()?.next_heartbeat(mark, 60 * SECOND)?;
        assert_nothing_left(&home, &machine, point)?;
    }
    // QEMU dies, and the command does not.
    let running = live_until(&home, &repository, "live-shown", &[])?;
    machine.process()?.kill(home.path())?;
    running.resume()?;
    let outcome = running.wait()?;
    assert_eq!(outcome.status, Some(1), "{}", outcome.stderr);
    assert!(!home.path().join("vms/worker/journal.json").exists(), "{}", outcome.stderr);
    assert_eq!(points_of(&home, &repository)?, made);
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.next_heartbeat(machine.serial()?.end(), 60 * SECOND)?;
    live(&home, &repository, &[])?.succeeded()?;
    assert_eq!(points_of(&home, &repository)?, made + 1);
    repository.run(&home, &["repo", "check"])?.succeeded().map(drop)
}

/// A machine with a disk that is full of what no repository has.
fn full_worker(home: &Home) -> Result<Machine<'_>> {
    let full = home.file("full.raw");
    let mut noise = std::io::Read::take(std::fs::File::open("/dev/urandom").unwrap(), 192 << 20);
    std::io::copy(&mut noise, &mut std::fs::File::create(&full).unwrap()).unwrap();
    let words = "checker.mb=32 checker.rate=20 checker.diskrate=200";
    let spec = MachineSpec::small(&guests::small()?, "128M", words);
    let machine = Machine::start(home, "worker", &spec.disk(&full).disk(&home.empty_disk("a.qcow2", "32M")?))?;
    machine.wait_until_checking()?;
    Ok(machine)
}

#[test]
fn the_guest_comes_first() -> Result<()> {
    let home = Home::new("live-gives-way")?;
    let machine = full_worker(&home)?;
    let repository = Repository::init(&home)?;
    // What it overwrites while the first disk is read finds no room.
    let elsewhere = home.file("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let place = elsewhere.display().to_string();
    let words = ["--scratch", &place, "--scratch-size", "4M", "--bandwidth", "8M"];
    let outcome = live(&home, &repository, &words)?;
    assert_eq!(outcome.status, Some(13), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot be read any more"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--scratch"), "it says what to do: {}", outcome.stderr);
    assert_eq!(points_of(&home, &repository)?, 0);
    assert_nothing_left(&home, &machine, "a full scratch file")?;
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);

    // No guest is as fast as this asks.
    let given_up = live(&home, &repository, &["--bandwidth", "8M", "--max-latency", "0ms"])?;
    assert_eq!(given_up.status, Some(13), "{}", given_up.stderr);
    assert!(given_up.stderr.contains("--max-latency"), "{}", given_up.stderr);
    assert_eq!(points_of(&home, &repository)?, 0);
    assert_nothing_left(&home, &machine, "a slow guest")?;

    // A slow repository is nobody's business but the backup's.
    let slow = live(&home, &repository, &["--bandwidth", "30M"])?.succeeded()?;
    assert!(slow.number("total_ms")? > 4000.0, "the repository was not slow: {}", slow.json);
    let took = slow.json["live"]["request_ms_max"].as_f64().unwrap_or(f64::MAX);
    assert!(took > 0.0 && took < 250.0, "{}", slow.json);
    assert_eq!(points_of(&home, &repository)?, 1);
    // The next one reads no more than was written since.
    let next = live(&home, &repository, &[])?.succeeded()?;
    let read = |outcome: &Outcome| outcome.json["totals"]["scanned_bytes"].as_u64().unwrap_or_default();
    assert!(read(&slow) > 192 << 20 && read(&next) < 64 << 20, "{} after {}", read(&next), read(&slow));
    machine.assert_intact(Mark::START)
}
