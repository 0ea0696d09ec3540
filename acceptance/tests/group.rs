//! Machines of one application are cut at one instant, or none of them is. Needs QEMU.

use std::time::Duration;

use keyframe_acceptance::repository::Repository;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Daemon, Home, Machine, MachineSpec, Outcome, Result, guests};
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

/// What a machine's network card is plugged into, as its QEMU was told.
fn netdev(machine: &Machine<'_>) -> Result<String> {
    let arguments = std::fs::read(format!("/proc/{}/cmdline", machine.process()?.0)).expect("it runs");
    let arguments: Vec<_> = arguments.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let at = arguments.iter().position(|argument| argument == "-netdev").expect("it has a card");
    Ok(arguments[at + 1].to_string())
}

#[test]
fn a_group_is_one_point_and_comes_back_together() -> Result<()> {
    let home = Home::new("group-point")?;
    let repository = Repository::init(&home)?;
    let machines = [worker(&home, "web")?, worker(&home, "db")?];
    let backup = ["backup", "web", "db", "--group", "shop", "--memory", "--json"];
    let first = repository.run(&home, &backup)?.succeeded()?;
    assert_eq!(names(&first)?, ["db", "web"]);
    for member in first.list("machines")? {
        assert_eq!((&member["consistency"], &member["memory"]), (&"running-state".into(), &true.into()), "{member}");
        assert_eq!(member["changed_by"]["disk0"], "full", "{member}");
    }
    // The next stands on it; nothing of either is left on the machines.
    let second = repository.run(&home, &[&backup[..], &["--audit", "100%"]].concat())?.succeeded()?;
    for member in second.list("machines")? {
        assert_eq!(member["changed_by"]["disk0"], "bitmap", "{member}");
    }
    assert!(
        second.json["totals"]["new_bytes"].as_u64() < first.json["totals"]["new_bytes"].as_u64(),
        "{}",
        second.stdout
    );
    for machine in &machines {
        assert_eq!(snapshots(&home, machine.name())?, [] as [Value; 0]);
    }
    let listed = repository.run(&home, &["points", "--json"])?.succeeded()?;
    let of_group: Vec<_> = listed.list("points")?.iter().map(|point| (&point["name"], &point["group"])).collect();
    assert_eq!(of_group.len(), 4, "{}", listed.stdout);
    assert!(of_group.iter().all(|(_, group)| **group == "shop"), "{of_group:?}");
    // A machine's own next point stands on the group's, too.
    let alone = repository.run(&home, &["backup", "web", "--json"])?.succeeded()?;
    assert_ne!(alone.json["changed_by"]["disk0"], "full", "{}", alone.stdout);

    // What fails leaves no point, and nothing on the machines.
    let failed = repository.run_until(&home, "backup-held!", &["backup", "web", "db", "--group", "shop"])?;
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert_eq!(repository.run(&home, &["points", "db", "--json"])?.succeeded()?.list("points")?.len(), 2);
    for machine in &machines {
        assert_eq!(snapshots(&home, machine.name())?, [] as [Value; 0]);
        let mark = machine.serial()?.end();
        machine.serial()?.next_heartbeat(mark, Duration::from_secs(20))?;
        machine.assert_intact(mark)?;
    }
    let called_as_one = repository.run(&home, &["backup", "web", "db", "--group", "db"])?;
    assert_eq!(called_as_one.status, Some(2), "{}", called_as_one.stderr);

    // Together, on a network of their own, with their programs running; and one by itself.
    let at = format!("shop@{}", &second.text("id")?[..8]);
    repository.run(&home, &["restore", &at, "--as", "copy", "--run", "--json"])?.succeeded()?;
    let copies = ["copy-web", "copy-db"].map(|name| Machine::existing(&home, name));
    for copy in &copies {
        copy.serial()?.next_heartbeat(keyframe_acceptance::serial::Mark::START, Duration::from_secs(60))?;
        copy.assert_intact(keyframe_acceptance::serial::Mark::START)?;
    }
    let [web, db] = [netdev(&copies[0])?, netdev(&copies[1])?];
    assert!(web.contains("mcast=239.") && web.contains("localaddr=127.0.0.1"), "{web}");
    assert_eq!(web, db);
    let again = repository.run(&home, &["restore", &at, "--as", "copy"])?;
    assert_eq!(again.status, Some(1), "{}", again.stderr);
    for machine in machines.iter().chain(&copies) {
        home.run(["vm", "stop", machine.name(), "--force"])?.succeeded()?;
    }
    repository.run(&home, &["restore", &format!("db@{}", &second.text("id")?[..8]), "--as", "single"])?.succeeded()?;

    let drilled = repository.run(&home, &["drill", &at, "--json"])?.succeeded()?;
    assert_eq!(drilled.text("verdict")?, "passed");
    for member in drilled.list("machines")? {
        assert_eq!(member["together_with"].as_array().map(Vec::len), Some(1), "{member}");
        assert_eq!((&member["resume"]["verdict"], &member["cold"]["verdict"]), (&"passed".into(), &"passed".into()));
    }
    // A word on the whole point: it is drilled for both.
    let listed = repository.run(&home, &["points", "--json"])?.succeeded()?;
    let drilled = listed.list("points")?.iter().filter(|point| point["drilled"]["passed"] == true).count();
    assert_eq!(drilled, 2, "{}", listed.stdout);
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_daemon_gives_a_group_what_it_is_owed_together() -> Result<()> {
    let home = Home::new("group-serve")?;
    let [web, db] = [worker(&home, "web")?, worker(&home, "db")?];
    let repository = Repository::init(&home)?;
    let place = repository.in_policy();
    let text = format!(
        r#"
        [group.shop]
        machines = {{ names = ["web", "db"] }}
        within = "5s"
        [policy.shop]
        machines = {{ names = ["*"] }}
        [policy.shop.snapshot]
        schedule = "*:*:0/15"
        keep = {{ last = 1 }}
        ttl = "1h"
        [[policy.shop.backup]]
        name = "local"
        {place}
        schedule = "*:*:0/20"
        memory = true
        keep = {{ last = 1 }}
        lock_days = 1
        [policy.shop.drill]
        schedule = "hourly"
        what = ["point", "snapshot"]
        "#
    );
    home.write_policies("shop.toml", &text)?;
    let daemon = Daemon::start(&home, &[])?;
    let done = |kind: &str| -> Result<Vec<Value>> {
        let jobs = daemon.get("/api/v1/jobs?state=done&limit=1000")?.json();
        let all = jobs["jobs"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|job| job["kind"] == kind).collect())
    };
    let begun = std::time::Instant::now();
    for (kind, count) in [("snapshot", 3), ("backup", 2), ("drill", 1)] {
        while done(kind)?.len() < count {
            assert!(begun.elapsed() < 240 * SECOND, "{kind}: {}", daemon.get("/api/v1/jobs")?.json());
            std::thread::sleep(SECOND / 5);
        }
        for job in done(kind)? {
            assert_eq!((&job["group"], &job["machines"]), (&"shop".into(), &serde_json::json!(["db", "web"])), "{job}");
        }
    }
    let shown = daemon.wait_for("/api/v1/overview", 30 * SECOND, |shown| shown["counts"]["protected"] == 2)?;
    assert_eq!(shown["counts"]["protected"], 2, "{}", shown["machines"]);
    let [point_of_db, point_of_web] = [0, 1].map(|at| shown["machines"][at]["last_point"]["id"].clone());
    assert!(point_of_db.is_string() && point_of_db == point_of_web, "{}", shown["machines"]);
    // By each of its machines, too.
    let ids = |name: &str| -> Result<Vec<String>> {
        let jobs = daemon.get(&format!("/api/v1/jobs?state=done&machine={name}&limit=1000"))?.json();
        let jobs = jobs["jobs"].as_array().cloned().unwrap_or_default();
        assert!(jobs.iter().all(|job| job["machine"] == name), "{jobs:?}");
        Ok(jobs.iter().filter(|job| job["kind"] == "drill").map(|job| job["id"].to_string()).collect())
    };
    assert_eq!(ids("web")?, ids("db")?);
    assert_eq!(ids("web")?.len(), 1);

    // Nothing under way: what is there now is of whole groups.
    assert_eq!(daemon.post("/api/v1/pause", &serde_json::json!({}))?.status, 200);
    let under_way = |job: &Value| job["ended"].is_null() && job["began"].is_string();
    let quiet = |shown: &Value| !shown["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(under_way));
    let shown = daemon.wait_for("/api/v1/overview", 60 * SECOND, quiet)?;
    assert!(quiet(&shown), "{shown}");
    let failed = daemon.get("/api/v1/jobs?state=failed")?.json();
    assert_eq!(failed["jobs"], serde_json::json!([]));
    let taken = |name: &str| -> Result<Vec<String>> {
        let all = snapshots(&home, name)?;
        Ok(all.iter().filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect())
    };
    let of_group = taken("web")?;
    assert_eq!(of_group, taken("db")?);
    assert_eq!(of_group.len(), 1, "{of_group:?}");
    assert_one_instant(&home, &["web", "db"], &of_group[0])?;
    // Locked, so none went yet: one point for both, of the group's name.
    let points = repository.run(&home, &["points", "--json"])?.succeeded()?;
    let all = points.list("points")?;
    assert!(all.len() >= 4 && all.iter().all(|point| point["group"] == "shop"), "{}", points.stdout);
    assert!(all.iter().all(|point| point["locked_until"].is_string()), "{}", points.stdout);
    assert!(all.iter().all(|point| point["memory"] == true), "{}", points.stdout);
    daemon.kill()?;
    web.assert_intact(Mark::START)?;
    db.assert_intact(Mark::START)
}
