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

/// A machine with one disk that writes on, and its live backups.
struct Noted<'h> {
    home: &'h Home,
    machine: Machine<'h>,
    repository: Repository,
}

impl<'h> Noted<'h> {
    fn new(home: &'h Home) -> Result<Self> {
        Ok(Self { home, machine: worker_with(home, "worker", &["a"])?, repository: Repository::init(home)? })
    }

    /// Stores what is written by now, by what is expected to tell what changed; while the guest stands still, to be compared with
    /// its disk byte by byte.
    fn stored(&self, tag: &str, expected: &str) -> Result<()> {
        self.machine.monitor()?.execute("stop", &json!({}))?;
        let backup = live(self.home, &self.repository, &["--tag", tag])?.succeeded()?;
        assert_same_as_now(self.home, &self.machine, &self.repository, &format!("worker@{tag}"))?;
        assert_eq!(backup.json["changed_by"], json!({"disk0": expected}), "{tag}");
        self.machine.monitor()?.execute("cont", &json!({}))?;
        writes_on(&self.machine, 1)
    }

    fn started(&self) -> Result<()> {
        let mark = self.machine.serial()?.end();
        self.home.run(["vm", "start", "worker"])?.succeeded()?;
        self.machine.serial()?.next_heartbeat(mark, 60 * SECOND).map(drop)
    }

    fn stopped(&self) -> Result<()> {
        self.home.run(["vm", "stop", "worker", "--force"])?.succeeded().map(drop)
    }

    fn layers(&self) -> Result<Vec<PathBuf>> {
        let shown = self.machine.show()?;
        let paths = shown.json["disks"][0]["layers"].as_array().cloned().unwrap_or_default();
        Ok(paths.iter().filter_map(Value::as_str).map(PathBuf::from).collect())
    }

    /// Nobody has written to a frozen layer, and nothing of ours is in one.
    fn assert_frozen(&self, when: &str) -> Result<()> {
        for layer in self.layers()?.iter().skip(1) {
            assert_eq!(bitmaps_in(layer), Vec::<String>::new(), "{when}: {}", layer.display());
        }
        let outcome = self.home.run(["check", "worker", "--data"])?;
        assert_eq!(outcome.status, Some(0), "{when}: {}{}", outcome.stdout, outcome.stderr);
        Ok(())
    }

    /// The same, and no document or table is wrong.
    fn assert_whole(&self, when: &str) -> Result<()> {
        self.assert_frozen(when)?;
        let outcome = self.home.run(["fsck", "worker"])?;
        assert_eq!(outcome.status, Some(0), "{when}: {}{}", outcome.stdout, outcome.stderr);
        Ok(())
    }
}

/// The names of bitmaps in a layer's file.
fn bitmaps_in(layer: &Path) -> Vec<String> {
    let output = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(layer).output().unwrap();
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    bitmaps.iter().filter_map(|bitmap| bitmap["name"].as_str()).map(str::to_owned).collect()
}

fn qemu(tool: &str, arguments: &[&str], path: &Path, further: &[&str]) {
    let output = Command::new(tool).args(arguments).arg(path).args(further).output().unwrap();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_was_noted_outlives_qemu() -> Result<()> {
    let home = Home::new("live-stopped")?;
    let noted = Noted::new(&home)?;
    let machine = &noted.machine;
    noted.stored("first", "full")?;
    // A command ends it.
    noted.stopped()?;
    let layer = noted.layers()?.remove(0);
    assert_eq!(bitmaps_in(&layer).len(), 1);
    qemu("qemu-img", &["check", "-q"], &layer, &[]);
    noted.started()?;
    writes_on(machine, 1)?;
    noted.stored("second", "bitmap")?;
    // The guest ends it.
    machine.type_line("poweroff")?;
    let deadline = std::time::Instant::now() + 60 * SECOND;
    while machine.show()?.text("state")? != "stopped" {
        assert!(std::time::Instant::now() < deadline, "the guest does not shut down");
        std::thread::sleep(SECOND / 10);
    }
    noted.started()?;
    writes_on(machine, 1)?;
    noted.stored("third", "bitmap")?;
    // A killed QEMU leaves one that says nothing.
    noted.stopped()?;
    noted.started()?;
    machine.process()?.kill(home.path())?;
    let left = bitmaps_in(&layer);
    assert!(!left.is_empty(), "they are there, and in use");
    noted.started()?;
    noted.stored("fourth", "compare")?;
    noted.stored("fifth", "bitmap")?;
    // Nobody but QEMU writes: a disk that is made smaller and larger again has zeros that nobody notes.
    noted.stopped()?;
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 31M 1M"], &layer, &[]);
    noted.started()?;
    noted.stored("sixth", "compare")?;
    noted.stopped()?;
    qemu("qemu-img", &["resize", "-q", "--shrink"], &layer, &["31M"]);
    qemu("qemu-img", &["resize", "-q"], &layer, &["32M"]);
    noted.started()?;
    noted.stored("seventh", "compare")?;
    noted.stored("eighth", "bitmap")?;
    // There are never more than a few, and the youngest are kept, in whichever order QEMU loads them.
    for round in 0..9 {
        noted.stored(&format!("more-{round}"), "bitmap")?;
        if round == 7 {
            noted.stopped()?;
            noted.started()?;
        }
    }
    noted.stopped()?;
    assert!((2..=8).contains(&bitmaps_in(&layer).len()), "{:?}", bitmaps_in(&layer));
    qemu("qemu-img", &["check", "-q"], &layer, &[]);
    home.run(["vm", "remove", "worker"])?.succeeded()?;
    assert_eq!(bitmaps_in(&layer), Vec::<String>::new(), "its owner has it back");
    qemu("qemu-img", &["check", "-q"], &layer, &[]);
    noted.repository.run(&home, &["repo", "check"])?.succeeded().map(drop)
}

#[test]
fn what_was_noted_leaves_a_layer_that_is_frozen() -> Result<()> {
    let home = Home::new("live-frozen")?;
    let noted = Noted::new(&home)?;
    let machine = &noted.machine;
    let snapshot = |words: &[&str]| -> Result<()> {
        let all = ["snapshot", "worker"].iter().chain(words);
        home.run(all.copied().collect::<Vec<_>>())?.succeeded().map(drop)
    };
    noted.stored("first", "full")?;
    noted.stopped()?;
    noted.started()?;
    writes_on(machine, 1)?;
    // It runs, and what was noted is in the file.
    assert!(!bitmaps_in(&noted.layers()?[0]).is_empty());
    snapshot(&["--name", "running"])?;
    noted.assert_whole("a snapshot of a running machine")?;
    writes_on(machine, 1)?;
    noted.stored("second", "bitmap")?;
    noted.stopped()?;
    noted.assert_whole("QEMU has ended")?;
    noted.started()?;
    writes_on(machine, 1)?;
    noted.stored("third", "bitmap")?;
    // A merge opens what was frozen for writing.
    snapshot(&["--disk-only", "--name", "second"])?;
    writes_on(machine, 1)?;
    home.run(["delete", "worker@running"])?.succeeded()?;
    noted.assert_whole("a merge below")?;
    // The file that the point before was in is merged away.
    noted.stored("fourth", "compare")?;
    home.run(["delete", "worker@second"])?.succeeded()?;
    home.run(["consolidate", "worker"])?.succeeded()?;
    noted.assert_whole("a merge of all")?;
    let by = live(&home, &noted.repository, &["--tag", "fifth"])?.succeeded()?;
    assert_ne!(by.json["changed_by"]["disk0"], "full");
    noted.stored("sixth", "bitmap")?;
    // It is off, and what was noted is in the file.
    noted.stopped()?;
    snapshot(&["--name", "off"])?;
    noted.assert_whole("a snapshot of a machine that is off")?;
    noted.started()?;
    writes_on(machine, 1)?;
    noted.stored("seventh", "compare")?;
    noted.stopped()?;
    noted.assert_whole("QEMU has ended again")?;
    // Another past, and this one again.
    noted.started()?;
    writes_on(machine, 1)?;
    snapshot(&["--name", "fork"])?;
    writes_on(machine, 1)?;
    noted.stored("eighth", "bitmap")?;
    noted.stopped()?;
    noted.started()?;
    machine.revert("fork", &[])?.succeeded()?;
    noted.assert_whole("a present that is kept")?;
    writes_on(machine, 1)?;
    noted.stored("ninth", "compare")?;
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    let kept = listed.list("snapshots")?.last().and_then(|kept| kept["name"].as_str().map(str::to_owned));
    machine.revert(&kept.unwrap_or_default(), &[])?.succeeded()?;
    noted.assert_whole("the other present")?;
    writes_on(machine, 1)?;
    noted.stored("tenth", "compare")?;
    // Merged while nobody has it open.
    noted.stopped()?;
    home.run(["delete", "worker@off", "worker@fork"])?.succeeded()?;
    noted.assert_whole("merged while it was off")?;
    noted.started()?;
    writes_on(machine, 1)?;
    let by = live(&home, &noted.repository, &["--tag", "eleventh"])?.succeeded()?;
    assert_ne!(by.json["changed_by"]["disk0"], "full");
    noted.stored("twelfth", "bitmap")?;
    noted.repository.run(&home, &["repo", "check"])?.succeeded().map(drop)
}

#[test]
fn what_was_noted_outlives_a_snapshot_that_is_taken_back() -> Result<()> {
    let home = Home::new("live-taken-back")?;
    let noted = Noted::new(&home)?;
    let machine = &noted.machine;
    noted.stored("first", "full")?;
    for (number, at) in
        ["snapshot-overlays-opened", "snapshot-proved!", "snapshot-cut", "snapshot-head-written"].iter().enumerate()
    {
        noted.stopped()?;
        noted.started()?;
        writes_on(machine, 1)?;
        // One that could not be proved is tried again; the others end there.
        let outcome = home.run_until(at, ["snapshot", "worker", "--name", &format!("s{number}")])?;
        assert!(outcome.status.is_none() || at.ends_with('!'), "{at}: {:?} {}", outcome.status, outcome.stderr);
        wait_tidy(&home, machine, at);
        noted.assert_frozen(at)?;
        writes_on(machine, 1)?;
        noted.stored(&format!("after-{number}"), "bitmap")?;
    }
    // QEMU dies with it, and takes along what was noted.
    noted.stopped()?;
    noted.started()?;
    let pid = machine.process()?.0.to_string();
    let environment = [("KEYFRAME_FAILPOINT", "snapshot-cut"), ("KEYFRAME_FAILPOINT_WITH", pid.as_str())];
    let outcome = home.run_with(&environment, ["snapshot", "worker"])?;
    assert_eq!(outcome.status, None, "{}", outcome.stderr);
    wait_tidy(&home, machine, "QEMU killed");
    noted.started()?;
    noted.assert_frozen("QEMU killed")?;
    noted.stored("last", "compare")?;
    noted.stored("very-last", "bitmap")
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
