//! Snapshots go from anywhere in the tree while the guest works, whatever dies meanwhile. Needs QEMU.
//!
//! Every loop ends in a full comparison: what each remaining snapshot's disks hold is what they held before.

mod pile;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::small_fs::SmallFs;
use keyframe_acceptance::{Home, Machine, Result};
use serde_json::Value;

use pile::{
    End, SECOND, assert_works, contents, disk_only, layers_of, points, wait_tidy, worker, worker_with, writes_on,
};

/// Deletes `gone`, with the command ending at each step of its merges in every way; `others` stay.
fn merge_loop(test: &str, gone: &str, never: &[&str]) -> Result<()> {
    let home = Home::new(test)?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("keep")?;
    let mut passed_by = Vec::new();
    for point in points("merge-") {
        for end in [End::Killed, End::KilledWithQemu, End::Failed] {
            let when = format!("{gone} {point} {end:?}");
            disk_only(&home, &machine, "middle")?;
            writes_on(&machine, 12)?;
            disk_only(&home, &machine, "last")?;
            let mut before = contents(&home, &machine)?;
            before.remove(gone);
            let at = if end == End::Failed { format!("{point}!") } else { point.to_owned() };
            let pid = machine.process()?.0.to_string();
            let with = if end == End::KilledWithQemu { pid.as_str() } else { "" };
            let outcome = home.run_with(
                &[("KEYFRAME_FAILPOINT", &at), ("KEYFRAME_FAILPOINT_WITH", with)],
                ["delete", &machine.at(gone)],
            )?;
            match (outcome.status, end) {
                (None, End::Killed | End::KilledWithQemu) | (Some(3), End::Failed) => {}
                (Some(0), _) => passed_by.push(point),
                (status, _) => panic!("{when}: {status:?}: {}", outcome.stderr),
            }
            if end == End::KilledWithQemu && outcome.status.is_none() {
                let mark = machine.serial()?.end();
                home.run(["vm", "start", "worker"])?.succeeded()?;
                // What the guest had not flushed may be lost with QEMU; what a snapshot holds may not.
                machine.serial()?.next_heartbeat(mark, 120 * SECOND)?;
            } else {
                wait_tidy(&home, &machine, &when);
                assert_works(&machine, &when)?;
            }
            assert_eq!(contents(&home, &machine)?, before, "{when}: what is left reads otherwise");
            // Whatever is left of the merge is done now.
            home.run(["consolidate", "worker"])?.succeeded()?;
            assert_eq!(contents(&home, &machine)?, before, "{when}: after consolidating");
            assert_eq!(layers_of(&machine)?, 3, "{when}: two snapshots and the present");
            let rest = if gone == "middle" { "last" } else { "middle" };
            home.run(["delete", &machine.at(rest)])?.succeeded()?;
            assert_eq!(layers_of(&machine)?, 2, "{when}: one snapshot and the present");
            assert_works(&machine, &when)?;
        }
    }
    passed_by.dedup();
    assert_eq!(passed_by, never, "never reached, and expected never to be");
    let mark = machine.serial()?.end();
    machine.revert("keep", &[])?;
    machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_merge_of_frozen_layers_ended_at_any_step_loses_nothing() -> Result<()> {
    merge_loop("merge-frozen", "middle", &[])
}

#[test]
fn a_merge_of_the_present_ended_at_any_step_loses_nothing() -> Result<()> {
    merge_loop("merge-present", "last", &[])
}

#[test]
fn any_snapshot_goes_and_the_guest_does_not_notice() -> Result<()> {
    let home = Home::new("any-goes")?;
    let machine = worker(&home, "worker")?;
    for name in ["one", "two", "three", "four"] {
        machine.snapshot(name)?;
        writes_on(&machine, 3)?;
    }
    // A second branch beside the first.
    machine.revert("two", &[])?;
    writes_on(&machine, 3)?;
    machine.snapshot("side")?;
    writes_on(&machine, 3)?;
    let mut expected = contents(&home, &machine)?;
    let tree = |home: &Home| -> Result<BTreeMap<String, Option<String>>> {
        let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
        let all = listed.list("snapshots")?;
        let name = |id: &Value| all.iter().find(|other| other["id"] == *id).and_then(|other| other["name"].as_str());
        let pair = |snapshot: &Value| {
            let parent = name(&snapshot["parent"]).map(str::to_owned);
            (snapshot["name"].as_str().unwrap_or_default().to_owned(), parent)
        };
        Ok(all.iter().map(pair).collect())
    };
    // The root, one that two branches stand on, a leaf of the other branch, what the present descends from.
    for (gone, parent_of) in
        [("one", ("two", None)), ("two", ("three", None)), ("four", ("side", None)), ("side", ("three", None))]
    {
        let planned = home.run(["delete", &machine.at(gone), "--dry-run", "--json"])?.succeeded()?;
        assert_eq!(planned.list("snapshots")?.len(), 1);
        assert_eq!(contents(&home, &machine)?, expected, "a plan changes nothing");
        home.run(["delete", &machine.at(gone)])?.succeeded()?;
        expected.remove(gone);
        assert_eq!(contents(&home, &machine)?, expected, "{gone} is gone");
        let (child, parent) = parent_of;
        if expected.contains_key(child) {
            assert_eq!(tree(&home)?.get(child), Some(&parent.map(|parent: &str| parent.to_owned())), "{gone} is gone");
        }
        assert_works(&machine, gone)?;
    }
    machine.assert_intact(machine.serial()?.end())?;
    let mark = machine.serial()?.end();
    machine.revert("three", &[])?;
    machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
    machine.assert_intact(machine.serial()?.end())?;
    home.run(["delete", &machine.at("three")])?.succeeded()?;
    assert_eq!(layers_of(&machine)?, 1, "the disk that was given is all that is left");
    assert_works(&machine, "without snapshots")?;
    // The given disk is whole: the machine boots from it alone.
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    let mark = machine.serial()?.end();
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.wait_for(mark, "READY", 120 * SECOND)?;
    machine.assert_intact(mark)
}

#[test]
fn what_a_fork_stands_on_is_held_until_it_has_a_copy_of_its_own() -> Result<()> {
    let home = Home::new("detach")?;
    let machine = worker(&home, "worker")?;
    disk_only(&home, &machine, "before")?;
    machine.snapshot("base")?;
    home.run(["fork", "worker@base", "twin", "--strategy", "eager"])?.succeeded()?;
    let twin = Machine::existing(&home, "twin");
    assert_works(&twin, "a fork")?;
    let refused = home.run(["delete", "worker@base"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("twin") && refused.stderr.contains("--detach"), "{}", refused.stderr);
    // What lies below is needed by both, and the snapshot of it by nobody: its layer stays.
    home.run(["delete", "worker@before"])?.succeeded()?;
    assert_eq!((layers_of(&machine)?, layers_of(&twin)?), (3, 3));
    assert_works(&twin, "without what its origin followed")?;
    twin.assert_intact(twin.serial()?.end())?;
    home.run(["delete", "worker@base", "--detach"])?.succeeded()?;
    assert_eq!(layers_of(&machine)?, 1);
    assert_eq!(layers_of(&twin)?, 1);
    assert_works(&machine, "the original")?;
    assert_works(&twin, "the fork")?;
    twin.assert_intact(twin.serial()?.end())?;
    // Nothing of the original is needed any more.
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "worker"])?.succeeded()?;
    assert_works(&twin, "alone")
}

#[test]
fn what_is_past_its_time_goes_in_one_pass_and_what_is_pinned_stays() -> Result<()> {
    let home = Home::new("expire")?;
    let machine = worker(&home, "worker")?;
    for (number, further) in [["--ttl", "1s"], ["--ttl", "1s"], ["--ttl", "7d"], ["--ttl", "1s"]].iter().enumerate() {
        let name = format!("s{number}");
        let mut words = vec!["snapshot", "worker", "--disk-only", "--name", &name];
        words.extend(further);
        if number == 1 {
            words.push("--pin");
        }
        home.run(words)?.succeeded()?;
        writes_on(&machine, 2)?;
    }
    std::thread::sleep(2 * SECOND);
    let planned = home.run(["expire", "--dry-run", "--json"])?.succeeded()?;
    let of_worker = &planned.list("machines")?[0];
    assert_eq!(of_worker["snapshots"].as_array().map(Vec::len), Some(2), "{of_worker}");
    assert_eq!(of_worker["stays"][0]["name"], "s1", "{of_worker}");
    let expired = home.run(["expire", "--json"])?.succeeded()?;
    assert_eq!(expired.list("machines")?[0]["failed"], Value::Null);
    let left: Vec<String> = contents(&home, &machine)?.into_keys().collect();
    assert_eq!(left, ["s1", "s2"]);
    assert_works(&machine, "after expiry")?;
    machine.assert_intact(Mark::START)
}

#[test]
fn a_full_disk_during_a_merge_leaves_everything_as_it_was() -> Result<()> {
    let home = Home::new("merge-full")?;
    let machine = worker_with(&home, "worker", &["a"])?;
    let layers = home.path().join("vms/worker/layers/disk0");
    let _small = SmallFs::mount(&layers, "200m");
    // What is above is less than what is below, and is pushed down.
    for (name, heartbeats) in [("zero", 100), ("one", 30), ("two", 1)] {
        disk_only(&home, &machine, name)?;
        writes_on(&machine, heartbeats)?;
    }
    let mut before = contents(&home, &machine)?;
    before.remove("one");
    // So slow that the file system fills up meanwhile.
    let deleting = home.start(["delete", "worker@one", "--speed", "16K"])?;
    let journal = home.path().join("vms/worker/journal.json");
    let deadline = Instant::now() + 20 * SECOND;
    while std::fs::read_to_string(&journal).map_or(true, |text| !text.contains("merge")) {
        assert!(Instant::now() < deadline, "no merge was begun");
        std::thread::sleep(Duration::from_millis(5));
    }
    let filler = layers.join("filler");
    std::fs::write(&filler, vec![1; 150 << 20]).unwrap();
    let outcome = deleting.wait()?;
    assert_eq!(outcome.status, Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("are free"), "{}", outcome.stderr);
    assert_works(&machine, "a full disk")?;
    assert_eq!(contents(&home, &machine)?, before);
    // With no room for it, it is not begun.
    let refused = home.run(["consolidate", "worker"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    std::fs::remove_file(&filler).unwrap();
    home.run(["consolidate", "worker"])?.succeeded()?;
    assert_eq!(contents(&home, &machine)?, before);
    assert_works(&machine, "room again")?;
    machine.assert_intact(Mark::START)?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded().map(drop)
}
