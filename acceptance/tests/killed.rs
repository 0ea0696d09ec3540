//! `kill -9` of Keyframe at every step of every operation: the guest runs or is as it was, every committed snapshot is
//! intact, and the next command works. Needs QEMU.

use std::time::{Duration, Instant};

use keyframe_acceptance::checker::Heartbeat;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};
use keyframe_engine::failpoint::Failpoint;

const SECOND: Duration = Duration::from_secs(1);
const WORDS: &str = "checker.mb=48 checker.rate=20";

fn worker<'h>(home: &'h Home, name: &str) -> Result<Machine<'h>> {
    let mut spec = MachineSpec::small(&guests::small()?, "160M", WORDS);
    for disk in ["a", "b"] {
        spec = spec.disk(&home.empty_disk(&format!("{name}-{disk}.qcow2"), "64M")?);
    }
    let machine = Machine::start(home, name, &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn points(operation: &str) -> impl Iterator<Item = &'static str> {
    Failpoint::ALL.iter().map(|point| point.name()).filter(move |name| name.starts_with(operation))
}

/// The guest works: heartbeats come, and they move on.
fn assert_works(machine: &Machine<'_>, when: &str) -> Result<Heartbeat> {
    let serial = machine.serial()?;
    let first = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    let later = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    assert!(later.uptime_ms > first.uptime_ms, "{when}: the guest's time stands still");
    assert_eq!(machine.show()?.text("state")?, "running", "{when}");
    Ok(later)
}

fn names(home: &Home, machine: &Machine<'_>) -> Result<Vec<String>> {
    let listed = home.run(["snapshots", machine.name(), "--json"])?.succeeded()?;
    let name = |snapshot: &serde_json::Value| snapshot["name"].as_str().unwrap_or_default().to_owned();
    Ok(listed.list("snapshots")?.iter().map(name).collect())
}

/// Nothing of an interrupted operation is left: no journal, no snapshot without a manifest, no process too many.
fn assert_tidy(home: &Home, machine: &Machine<'_>, when: &str) -> Result<()> {
    let dir = home.path().join("vms").join(machine.name());
    // A guard may still be at it.
    let deadline = Instant::now() + 20 * SECOND;
    while dir.join("journal.json").exists() {
        assert!(Instant::now() < deadline, "{when}: there is a journal");
        std::thread::sleep(Duration::from_millis(20));
    }
    for entry in std::fs::read_dir(dir.join("snapshots")).into_iter().flatten().flatten() {
        assert!(entry.path().join("manifest.json").exists(), "{when}: {:?} has no manifest", entry.path());
    }
    // What is left of a process that ended is removed file by file, by that guard, too.
    let instances = || {
        let all = std::fs::read_dir(dir.join("run")).into_iter().flatten().flatten();
        all.filter(|entry| entry.path().join("engine.sock").exists()).count()
    };
    while instances() != 1 {
        assert!(Instant::now() < deadline, "{when}: {} processes", instances());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_snapshot_killed_at_any_step_leaves_a_working_guest_and_no_debris() -> Result<()> {
    let home = Home::new("killed-snapshot")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    let mut passed_by = Vec::new();
    for point in points("snapshot-") {
        // What fails is taken back by the command itself; committed or not, the guest does not notice.
        let failing = format!("failing-{point}");
        let failed = home.run_until(&format!("{point}!"), ["snapshot", "worker", "--name", &failing])?;
        assert_works(&machine, &failing)?;
        assert_tidy(&home, &machine, &failing)?;
        let is_there = names(&home, &machine)?.contains(&failing);
        // Without a proof the guest is stopped first, which needs none.
        let never_fails = ["snapshot-frozen", "snapshot-proved", "snapshot-streaming"].contains(&point);
        let behind_the_commit = ["snapshot-committed", "snapshot-parent-written"].contains(&point);
        let status = if never_fails {
            0
        } else if behind_the_commit {
            3
        } else {
            1
        };
        assert_eq!(failed.status, Some(status), "{failing}: {}", failed.stderr);
        assert_eq!(is_there, never_fails || behind_the_commit, "{failing}");
        let outcome = home.run_until(point, ["snapshot", "worker", "--name", point])?;
        if outcome.status.is_some() {
            passed_by.push(point);
            continue;
        }
        // Nobody helps: the guard that the killed command posted sees to the guest.
        assert_works(&machine, point)?;
        let committed = ["snapshot-committed", "snapshot-parent-written"].contains(&point);
        // The next command finds everything in order and does its work.
        home.run(["snapshot", "worker", "--name", &format!("after-{point}"), "--json"])?.succeeded()?;
        let names = names(&home, &machine)?;
        assert_eq!(names.iter().any(|name| name == point), committed, "{point}: {names:?}");
        assert!(names.iter().any(|name| name == "good"), "{point}");
        assert_tidy(&home, &machine, point)?;
    }
    assert_eq!(passed_by, ["snapshot-frozen"], "no agent, no freeze; all others must be on the way");
    machine.assert_intact(Mark::START)?;
    for name in ["good", "snapshot-committed", "after-snapshot-streaming"] {
        let mark = machine.serial()?.end();
        machine.revert(name, &[])?;
        machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
        machine.assert_intact(machine.serial()?.end())?;
    }
    Ok(())
}

#[test]
fn a_snapshot_of_a_stopped_machine_killed_at_any_step_can_be_taken_again() -> Result<()> {
    let home = Home::new("killed-offline")?;
    let machine = worker(&home, "worker")?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    for point in ["snapshot-journaled", "snapshot-overlays-created", "snapshot-committed", "snapshot-parent-written"] {
        assert_eq!(home.run_until(point, ["snapshot", "worker", "--name", point])?.status, None, "{point}");
        home.run(["snapshot", "worker", "--name", &format!("after-{point}")])?.succeeded()?;
        let committed = !["snapshot-journaled", "snapshot-overlays-created"].contains(&point);
        assert_eq!(names(&home, &machine)?.iter().any(|name| name == point), committed, "{point}");
    }
    let mark = machine.serial()?.end();
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.wait_for(mark, "READY", 120 * SECOND)?;
    assert_works(&machine, "started again").map(drop)
}

#[test]
fn a_sharing_killed_at_any_step_leaves_every_image_readable() -> Result<()> {
    let home = Home::new("killed-share")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    for point in points("share-") {
        let failing = format!("failing-{point}");
        let failed = home.run_until(&format!("{point}!"), ["snapshot", "worker", "--name", &failing])?;
        assert_eq!(failed.status, Some(0), "{failing}: sharing is no reason to fail: {}", failed.stderr);
        assert_eq!(home.run_until(point, ["snapshot", "worker", "--name", point])?.status, None, "{point}");
        assert_works(&machine, point)?;
        machine.snapshot(&format!("after-{point}"))?;
        for name in [&failing, point, &format!("after-{point}"), "good"] {
            let mark = machine.serial()?.end();
            machine.revert(name, &["--strategy", "lazy"])?;
            machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
            machine.assert_intact(machine.serial()?.end())?;
        }
    }
    Ok(())
}

#[test]
fn an_image_killed_while_it_is_made_whole_can_be_used_as_before() -> Result<()> {
    let home = Home::new("killed-whole")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    for point in points("whole-") {
        machine.snapshot(point)?;
        let words = ["revert", &machine.at(point), "--discard", "--strategy", "eager"];
        assert_eq!(home.run_until(&format!("{point}!"), words)?.status, Some(1), "{point}");
        assert_works(&machine, point)?;
        if point == "whole-written" {
            assert_eq!(home.run_until(point, words)?.status, None, "{point}");
        }
        for strategy in ["lazy", "eager"] {
            let mark = machine.serial()?.end();
            machine.revert(point, &["--strategy", strategy])?;
            machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
            machine.assert_intact(machine.serial()?.end())?;
        }
        // The next one shares with it, as it is now.
        machine.snapshot(&format!("after-{point}"))?;
    }
    Ok(())
}

/// From here on the process of the present may be gone, and what is on disk is all there is of it.
const PRESENT_ON_DISK: [&str; 4] =
    ["revert-present-captured", "revert-present-ended", "revert-present-kept", "revert-old-gone"];

fn revert_loop(test: &str, how: &[&str], never: &[&str]) -> Result<()> {
    let home = Home::new(test)?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    let keeps = !how.contains(&"--discard");
    let mut passed_by = Vec::new();
    for point in points("revert-") {
        // Killed there, and then made to fail there.
        for at in [point.to_owned(), format!("{point}!")] {
            let before = names(&home, &machine)?;
            let words = ["revert", "worker@good"].into_iter().chain(how.iter().copied());
            let outcome = home.run_until(&at, words)?;
            if outcome.status == Some(0) {
                passed_by.push(point);
                continue;
            }
            assert_eq!(outcome.status.is_some(), at.ends_with('!'), "{at}: {}", outcome.stderr);
            // Past or present, one of them works on, without help.
            wait_tidy(&home, &machine, &at)?;
            assert_works(&machine, &at)?;
            let after = names(&home, &machine)?;
            assert!(before.iter().all(|name| after.contains(name)), "{at}: of {before:?} only {after:?} are left");
            assert_tidy(&home, &machine, &at)?;
            let mark = machine.serial()?.end();
            if let Some(kept) = after.iter().find(|name| !before.contains(name)) {
                // The present went with its memory, whatever happened to the command.
                let shown = home.run(["show", &machine.at(kept), "--json"])?.succeeded()?;
                assert_eq!(shown.text("consistency")?, "running-state", "{at}");
                machine.revert(kept, &[])?;
            } else {
                // One that fails while the present lives goes back to it.
                let goes_on = !PRESENT_ON_DISK.contains(&point) || at == "revert-present-captured!";
                assert!(!keeps || goes_on, "{at}: the present is lost");
                machine.revert("good", &[])?;
            }
            machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
        }
    }
    passed_by.dedup();
    assert_eq!(passed_by, never, "never reached, and expected never to be");
    machine.assert_intact(machine.serial()?.end())
}

/// The guard needs a moment to finish or to take back what was begun.
fn wait_tidy(home: &Home, machine: &Machine<'_>, when: &str) -> Result<()> {
    let journal = home.path().join("vms").join(machine.name()).join("journal.json");
    let deadline = Instant::now() + 60 * SECOND;
    while journal.exists() {
        assert!(Instant::now() < deadline, "{when}: the guard did not tidy up");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_lazy_revert_that_keeps_the_present_killed_at_any_step_ends_in_one_of_the_two() -> Result<()> {
    revert_loop("killed-revert-lazy", &["--strategy", "lazy"], &[])
}

#[test]
fn an_eager_revert_that_discards_the_present_killed_at_any_step_ends_in_one_of_the_two() -> Result<()> {
    let never = ["revert-present-captured", "revert-present-ended"];
    revert_loop("killed-revert-eager", &["--strategy", "eager", "--discard"], &never)
}

#[test]
fn a_fork_killed_at_any_step_is_whole_or_gone() -> Result<()> {
    let home = Home::new("killed-fork")?;
    let machine = worker(&home, "worker")?;
    let address = mac(&machine)?;
    machine.snapshot("good")?;
    for point in points("fork-") {
        assert_eq!(home.run_until(point, ["fork", "worker@good", "twin"])?.status, None, "{point}");
        let listed = home.run(["vm", "list", "--json"])?.succeeded()?;
        let all: Vec<&str> = listed.list("machines")?.iter().filter_map(|vm| vm["name"].as_str()).collect();
        if ["fork-head-written", "fork-running"].contains(&point) {
            // It is a machine. Nobody helps: whoever looked has seen to it that its guest is settled.
            assert_eq!(all, ["twin", "worker"], "{point}");
            wait_until_tidy(&home, "twin", point);
        } else {
            assert_eq!(all, ["worker"], "{point}: half a fork is left");
            home.run(["fork", "worker@good", "twin"])?.succeeded()?;
        }
        let twin = Machine::existing(&home, "twin");
        assert_ne!(mac(&twin)?, address, "{point}: the original's network address");
        let serial = twin.serial()?;
        serial.next_heartbeat(serial.end(), 20 * SECOND)?;
        twin.assert_intact(serial.end())?;
        home.run(["vm", "stop", "twin", "--force"])?.succeeded()?;
        home.run(["vm", "remove", "twin"])?.succeeded()?;
    }
    assert_works(&machine, "the original").map(drop)
}

/// Waits until a process in the background has tidied up.
fn wait_until_tidy(home: &Home, name: &str, when: &str) {
    let journal = home.path().join("vms").join(name).join("journal.json");
    let deadline = Instant::now() + 60 * SECOND;
    while journal.exists() {
        assert!(Instant::now() < deadline, "{when}: there is still a journal");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The network address that the guest sees.
fn mac(machine: &Machine<'_>) -> Result<String> {
    let answer = machine.monitor()?.execute("query-rx-filter", &serde_json::json!({}))?;
    Ok(answer[0]["main-mac"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_deletion_killed_at_any_step_is_finished_by_its_guard() -> Result<()> {
    let home = Home::new("killed-delete")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("good")?;
    for point in points("delete-") {
        machine.snapshot(point)?;
        assert_eq!(home.run_until(point, ["delete", &machine.at(point)])?.status, None, "{point}");
        // Nobody helps: the guard that the killed command posted finishes it.
        wait_tidy(&home, &machine, point)?;
        assert_eq!(names(&home, &machine)?, ["good"], "{point}");
        assert_tidy(&home, &machine, point)?;
        assert_works(&machine, point)?;
    }
    machine.assert_intact(Mark::START)?;
    machine.revert("good", &[]).map(drop)
}
