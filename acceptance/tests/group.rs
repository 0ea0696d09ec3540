//! Machines of one application are cut at one instant, or none of them is. Needs QEMU.

use std::time::Duration;

use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome, Result, guests};
use keyframe_types::Timestamp;
use serde_json::Value;

const WORDS: &str = "checker.mb=48 checker.rate=20";

fn worker<'h>(home: &'h Home, name: &str) -> Result<Machine<'h>> {
    let spec = MachineSpec::small(&guests::small()?, "192M", WORDS);
    let machine = Machine::start(home, name, &spec.disk(&home.empty_disk(&format!("{name}.qcow2"), "64M")?))?;
    machine.wait_until_checking()?;
    Ok(machine)
}

/// When a machine was stopped, by its QEMU's event and to the millisecond, and for how long.
fn stood_still(home: &Home, name: &str, snapshot: &str) -> Result<(Timestamp, Duration)> {
    let shown = home.run(["show", &format!("{name}@{snapshot}"), "--json"])?.succeeded()?;
    let manifest = &shown.json;
    let stop = serde_json::from_value(manifest["created"].clone()).expect("a time");
    let pause_ms = manifest["cost"]["pause_ms"].as_f64().expect("a span");
    Ok((stop, Duration::from_secs_f64(pause_ms / 1e3)))
}

/// Sees that there was an instant at which all of them stood still.
fn assert_one_instant(home: &Home, names: &[&str], snapshot: &str) -> Result<()> {
    let spans: Vec<_> = names.iter().map(|name| stood_still(home, name, snapshot)).collect::<Result<_>>()?;
    let last_stop = spans.iter().map(|(stop, _)| *stop).max().expect("there are some");
    for (stop, pause) in &spans {
        let waited = stop.until(last_stop);
        assert!(waited < *pause, "one ran on before the last stood still: {spans:?}");
    }
    println!("{snapshot}: {spans:?}");
    Ok(())
}

fn names(taken: &Outcome) -> Result<Vec<&str>> {
    Ok(taken.list("machines")?.iter().filter_map(|member| member["vm"].as_str()).collect())
}

fn snapshots(home: &Home, name: &str) -> Result<Vec<Value>> {
    Ok(home.run(["snapshots", name, "--json"])?.succeeded()?.list("snapshots")?.to_vec())
}

#[test]
fn machines_of_a_group_are_of_one_instant() -> Result<()> {
    let home = Home::new("group")?;
    let [web, db] = [worker(&home, "web")?, worker(&home, "db")?];
    // One that is off belongs to it, too.
    home.run(
        ["vm", "create", "spare", "--memory", "64M", "--disk"]
            .map(Into::into)
            .into_iter()
            .chain([home.empty_disk("spare.qcow2", "16M")?.into_os_string()]),
    )?
    .succeeded()?;

    let whole = home.run(["snapshot", "web", "spare", "db", "--name", "whole", "--json"])?.succeeded()?;
    assert_eq!(names(&whole)?, ["db", "spare", "web"]);
    assert!(whole.number("window_ms")? > 0.0 && whole.number("window_ms")? < 1e3, "{}", whole.stdout);
    for member in whole.list("machines")? {
        let expected = if member["vm"] == "spare" { "crash" } else { "running-state" };
        assert_eq!(member["consistency"], expected, "{member}");
        assert_eq!(member["name"], "whole");
    }
    assert_one_instant(&home, &["web", "db"], "whole")?;
    let disks = home.run(["snapshot", "db", "web", "--disk-only", "--name", "disks", "--json"])?.succeeded()?;
    assert!(disks.list("machines")?.iter().all(|member| member["pause_ms"].as_f64().is_some_and(|ms| ms > 0.0)));
    assert_one_instant(&home, &["web", "db"], "disks")?;
    for machine in [&web, &db] {
        let listed = snapshots(&home, machine.name())?;
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0]["group"]["machines"], serde_json::json!(["db", "spare", "web"]));
        assert_eq!(listed[0]["group"]["id"], whole.json["group"]);
    }

    // Each comes back by itself as from any snapshot, and finds nothing wrong.
    for machine in [&web, &db] {
        let mark = machine.serial()?.end();
        machine.revert("whole", &[])?;
        machine.wait_until_checking()?;
        machine.assert_intact(mark)?;
    }
    assert!(home.run(["check", "web", "--data"])?.succeeded().is_ok());
    Ok(())
}

#[test]
fn what_fails_in_one_is_taken_back_in_all() -> Result<()> {
    let home = Home::new("group-trouble")?;
    let machines = [worker(&home, "web")?, worker(&home, "db")?];
    let untouched = |failed: &str| -> Result<()> {
        for machine in &machines {
            assert_eq!(snapshots(&home, machine.name())?, [] as [Value; 0], "{failed}");
            assert_eq!(machine.show()?.text("state")?, "running", "{failed}");
            let mark = machine.serial()?.end();
            machine.serial()?.next_heartbeat(mark, Duration::from_secs(20))?;
            machine.assert_intact(mark)?;
        }
        Ok(())
    };
    let take = ["snapshot", "web", "db", "--name", "never"];
    // The second that comes by fails: the other is through, and waits.
    for step in ["snapshot-overlays-opened", "snapshot-cut", "snapshot-captured"] {
        let failed = home.run_until(&format!("{step}!2"), take)?;
        assert_eq!(failed.status, Some(1), "{step}: {}", failed.stderr);
        assert!(failed.stderr.contains("were not snapshotted together"), "{}", failed.stderr);
        untouched(step)?;
    }
    let killed = home.run_until("snapshot-captured", take)?;
    assert_eq!(killed.status, None, "{}", killed.stderr);
    untouched("killed")?;

    // A name that one of them has is refused before anything happens to any.
    home.run(["snapshot", "db", "--disk-only", "--name", "never"])?.succeeded()?;
    let refused = home.run(take)?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert_eq!(snapshots(&home, "web")?, [] as [Value; 0]);
    let twice = home.run(["snapshot", "db", "db"])?;
    assert_eq!(twice.status, Some(2), "{}", twice.stderr);
    Ok(())
}
