//! Several machines go on from one instant: each intact, each its own, the original untouched. Needs QEMU.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

fn original(home: &Home) -> Result<Machine<'_>> {
    let spec = MachineSpec::small(&guests::small()?, "384M", "checker.mb=100 checker.rate=20");
    let spec = spec.disk(&home.empty_disk("a.qcow2", "256M")?).disk(&home.empty_disk("b.qcow2", "256M")?);
    let machine = Machine::start(home, "original", &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

/// The machine's network address as its QEMU has it.
fn mac(machine: &Machine<'_>) -> Result<String> {
    let answer = machine.monitor()?.execute("query-rx-filter", &json!({}))?;
    let first = answer.as_array().and_then(|list| list.first()).and_then(|nic| nic.get("main-mac"));
    Ok(first.and_then(Value::as_str).unwrap_or_default().to_owned())
}

#[test]
fn three_forks_go_on_from_one_instant_each_on_its_own() -> Result<()> {
    let home = Home::new("fork")?;
    let machine = original(&home)?;
    machine.serial()?.wait_for(Mark::START, "VMGENID", 10 * SECOND)?;
    machine.snapshot("base")?;
    let token = machine.serial()?.next_heartbeat(Mark::START, SECOND)?.token;

    let mut generations = BTreeSet::new();
    let mut addresses = BTreeSet::from([mac(&machine)?]);
    let forks: Vec<_> = ["one", "two", "three"].map(|name| Machine::existing(&home, name)).into();
    for fork in &forks {
        home.run(["fork", &machine.at("base"), fork.name(), "--json"])?.succeeded()?;
        let serial = fork.serial()?;
        assert_eq!(serial.next_heartbeat(Mark::START, 60 * SECOND)?.token, token, "the same program goes on");
        generations.insert(serial.wait_for(Mark::START, "->", 30 * SECOND)?);
        addresses.insert(mac(fork)?);
    }
    assert_eq!(generations.len(), 3, "each has a generation id of its own: {generations:?}");
    assert_eq!(addresses.len(), 4, "each has a network address of its own: {addresses:?}");

    for one in forks.iter().chain([&machine]) {
        one.assert_intact(Mark::START)?;
    }
    // A fork's end and what it wrote are nobody else's business.
    forks[0].type_line("wreck")?;
    forks[0].serial()?.wait_for(Mark::START, "WRECKED", 30 * SECOND)?;
    forks[1].process()?.kill(home.path())?;
    forks[2].assert_intact(Mark::START)?;
    machine.assert_intact(Mark::START)
}

#[test]
fn a_number_of_forks_is_made_at_once() -> Result<()> {
    let home = Home::new("count")?;
    let machine = original(&home)?;
    machine.snapshot("base")?;
    home.run(["fork", &machine.at("base"), "copy", "--count", "2", "--json"])?.succeeded()?;
    let names: Vec<_> = fs::read_dir(home.path().join("vms"))
        .expect("the home has machines")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("copy"))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        let fork = Machine::existing(&home, name);
        assert_eq!(fork.show()?.text("state")?, "running");
        fork.assert_intact(Mark::START)?;
    }
    Ok(())
}

#[test]
fn when_some_of_several_do_not_come_to_run_the_others_stay_and_are_told() -> Result<()> {
    let home = Home::new("partial")?;
    let machine = original(&home)?;
    machine.snapshot("base")?;
    for point in ["fork-loaded!2", "fork-head-written!2"] {
        let outcome = home.run_until(point, ["fork", "original@base", "copy", "--count", "3", "--json"])?;
        assert_eq!(outcome.status, Some(3), "{point}: {}", outcome.stderr);
        assert_eq!(outcome.list("machines")?.len(), 1, "{point}");
        assert_eq!(outcome.json["not_made"]["names"], json!(["copy-2", "copy-3"]), "{point}");
        let listed = home.run(["vm", "list", "--json"])?.succeeded()?;
        let all: Vec<&str> = listed.list("machines")?.iter().filter_map(|vm| vm["name"].as_str()).collect();
        assert_eq!(all, ["copy-1", "original"], "{point}: what did not come to run is gone");
        let survivor = Machine::existing(&home, "copy-1");
        survivor.serial()?.next_heartbeat(Mark::START, 60 * SECOND)?;
        survivor.assert_intact(Mark::START)?;
        home.run(["vm", "stop", "copy-1", "--force"])?.succeeded()?;
        home.run(["vm", "remove", "copy-1"])?.succeeded()?;
    }
    let outcome = home.run_until("fork-prepared!2", ["fork", "original@base", "copy", "--count", "3"])?;
    assert_eq!(outcome.status, Some(1), "none had begun: {}", outcome.stderr);
    assert!(!home.path().join("vms/copy-1").exists());
    machine.assert_intact(Mark::START)
}
