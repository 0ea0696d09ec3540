//! A machine's state in a repository, and back: with its running state on a home that never saw it, disk by disk, and with
//! what changed since the point before told by layers. Needs QEMU.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Repository, Result, guests};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn worker(home: &Home) -> Result<Machine<'_>> {
    let mut spec = MachineSpec::small(&guests::small()?, "192M", "checker.mb=48 checker.rate=20");
    for disk in ["a", "b"] {
        spec = spec.disk(&home.empty_disk(&format!("{disk}.qcow2"), "64M")?);
    }
    let machine = Machine::start(home, "worker", &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn same_bytes(one: &std::path::Path, other: &std::path::Path) -> bool {
    let compared = Command::new("qemu-img").args(["compare", "-q"]).arg(one).arg(other).status();
    compared.is_ok_and(|status| status.success())
}

#[test]
fn a_running_machine_comes_back_in_a_home_that_never_saw_it() -> Result<()> {
    let home = Home::new("backup")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    let token = machine.serial()?.next_heartbeat(Mark::START, SECOND)?.token;
    let backup = repository.run(&home, &["backup", "worker", "--memory", "--json"])?.succeeded()?;
    assert_eq!(backup.text("consistency")?, "running-state");
    assert_eq!(backup.json["changed_by"]["disk0"], "full");
    machine.assert_intact(Mark::START)?;
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    assert!(listed.list("snapshots")?.is_empty(), "the snapshot for it was let go");
    assert_eq!(machine.show()?.json["disks"][0]["layers"].as_array().map(Vec::len), Some(1), "and its layer merged");

    // QEMU has noted what was written since, and a second one reads no more than that.
    let second = repository.run(&home, &["backup", "worker", "--memory", "--tag", "second", "--json"])?.succeeded()?;
    assert_eq!(second.json["changed_by"]["disk0"], "bitmap");
    assert_eq!(second.json["audited_bytes"], Value::Null);
    let points = repository.run(&home, &["points", "worker", "--json"])?.succeeded()?;
    assert_eq!(points.list("points")?.len(), 2);

    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "worker"])?.succeeded()?;
    // Homes of tests are there one at a time.
    drop(machine);
    drop(home);
    let elsewhere = Home::new("backup-elsewhere")?;
    for point in [format!("worker@{}", &backup.text("id")?[..12]), "worker@second".to_owned()] {
        repository.run(&elsewhere, &["restore", &point, "--as", "again", "--run", "--json"])?.succeeded()?;
        let again = Machine::existing(&elsewhere, "again");
        let serial = again.serial()?;
        assert_eq!(serial.next_heartbeat(Mark::START, 60 * SECOND)?.token, token, "the same program goes on");
        again.assert_intact(Mark::START)?;
        // It is a machine like any other.
        again.snapshot("of-the-restored")?;
        again.revert("of-the-restored", &[])?;
        elsewhere.run(["vm", "stop", "again", "--force"])?.succeeded()?;
        elsewhere.run(["vm", "remove", "again"])?.succeeded()?;
    }
    Ok(())
}

#[test]
fn a_machine_goes_back_in_place_and_only_what_differs_is_written() -> Result<()> {
    let home = Home::new("backup-in-place")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    repository.run(&home, &["backup", "worker", "--tag", "then"])?.succeeded()?;
    let words = ["restore", "worker@then", "--in-place", "--json"];
    let refused = repository.run(&home, &words)?;
    assert_eq!(refused.status, Some(1), "it runs: {}", refused.stderr);
    machine.serial()?.next_heartbeat(machine.serial()?.end(), 20 * SECOND)?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    let killed = repository.run_until(&home, "in-place-layers-made", &words)?;
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let restored = repository.run(&home, &words)?.succeeded()?;
    let kept = restored.json["in_place"]["kept"].as_str().unwrap_or_default().to_owned();
    for disk in restored.json["in_place"]["disks"].as_array().unwrap() {
        assert!(disk["written"].as_u64().is_some_and(|bytes| bytes < 16 << 20), "{}", restored.json);
    }
    let shown = machine.show()?;
    for (number, disk) in ["disk0", "disk1"].iter().enumerate() {
        let file = home.file(&format!("{disk}.raw"));
        let to = file.display().to_string();
        repository.run(&home, &["restore", "worker@then", "--disk", disk, "--to", &to])?.succeeded()?;
        let path = shown.json["disks"][number]["layers"][0].as_str().unwrap_or_default().to_owned();
        assert!(same_bytes(&file, std::path::Path::new(&path)), "{disk} is not as in the point");
    }
    home.run(["fsck", "worker"])?.succeeded()?;
    let mark = machine.serial()?.end();
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.wait_for(mark, "READY", 60 * SECOND)?;
    machine.assert_intact(mark)?;
    // The present that was is a snapshot like any other.
    machine.revert(&kept, &[])?;
    let mark = machine.serial()?.end();
    machine.serial()?.next_heartbeat(mark, 60 * SECOND)?;
    machine.assert_intact(mark)
}

#[test]
fn what_qemu_noted_is_what_changed() -> Result<()> {
    let home = Home::new("backup-bitmaps")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    let backup_of = |name: &str, expected: &str| -> Result<()> {
        home.run(["snapshot", "worker", "--disk-only", "--name", name])?.succeeded()?;
        let backup = repository.run(&home, &["backup", &machine.at(name), "--tag", name, "--json"])?.succeeded()?;
        let shown = home.run(["show", &machine.at(name), "--json"])?.succeeded()?;
        for (number, disk) in ["disk0", "disk1"].iter().enumerate() {
            assert_eq!(backup.json["changed_by"][disk], expected, "{name}");
            let path = shown.json["disks"][number]["layers"][0]["path"].as_str().unwrap_or_default().to_owned();
            let file = home.file(&format!("{name}-{disk}.qcow2"));
            let to = file.display().to_string();
            let words = ["restore", &format!("worker@{name}"), "--disk", disk, "--to", &to];
            repository.run(&home, &words)?.succeeded()?;
            assert!(same_bytes(&file, &home.path().join(path)), "{name}: {disk} of the point is not the snapshot's");
        }
        // What is written now goes into the layer that the point knows: first by the merge, then by the guest itself.
        home.run(["delete", &machine.at(name)])?.succeeded()?;
        machine.serial()?.next_heartbeat(machine.serial()?.end(), 20 * SECOND).map(drop)
    };
    backup_of("first", "full")?;
    backup_of("second", "bitmap")?;
    backup_of("third", "bitmap")?;
    // A killed QEMU takes its notes with it. The history goes on.
    machine.process()?.kill(home.path())?;
    let mark = machine.serial()?.end();
    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.serial()?.next_heartbeat(mark, 60 * SECOND)?;
    backup_of("fourth", "compare")?;
    backup_of("fifth", "bitmap")?;
    machine.assert_intact(mark)
}

/// Changes a byte of what a chain shows, in its lowest layer that shows any, and nothing that tells of it.
fn write_behind_the_back(chain: &std::path::Path) {
    let map = Command::new("qemu-img").args(["map", "-U", "--output=json"]).arg(chain).output().unwrap();
    let map: Vec<Value> = serde_json::from_slice(&map.stdout).unwrap();
    let shown = map.iter().filter(|extent| extent["data"] == true);
    let data = shown.max_by_key(|extent| extent["depth"].as_u64()).unwrap();
    let (at, depth) = (data["offset"].as_u64().unwrap(), data["depth"].as_u64().unwrap() as usize);
    let mut info = Command::new("qemu-img");
    let info = info.args(["info", "-U", "--backing-chain", "--output=json"]).arg(chain).output().unwrap();
    let info: Vec<Value> = serde_json::from_slice(&info.stdout).unwrap();
    let layer = info[depth]["filename"].as_str().unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(layer).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    file.set_modified(modified).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn what_layers_say_changed_is_what_changed() -> Result<()> {
    let home = Home::new("backup-layers")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    let mut layers = Vec::new();
    for name in ["one", "two", "three"] {
        home.run(["snapshot", "worker", "--disk-only", "--name", name])?.succeeded()?;
        let backup = repository.run(&home, &["backup", &machine.at(name), "--tag", name, "--json"])?.succeeded()?;
        let expected = if name == "one" { "full" } else { "layers" };
        assert_eq!(backup.json["changed_by"]["disk1"], expected, "{name}");
        assert_eq!(backup.json["snapshot_kept"], true);
        let shown = home.run(["show", &machine.at(name), "--json"])?.succeeded()?;
        let path = shown.json["disks"][1]["layers"][0]["path"].as_str().unwrap_or_default().to_owned();
        layers.push((name, home.path().join(path)));
        machine.serial()?.next_heartbeat(machine.serial()?.end(), 20 * SECOND)?;
    }
    for (name, layer) in &layers {
        let file = home.file(&format!("{name}.qcow2"));
        let to = file.display().to_string();
        let words = ["restore", &format!("worker@{name}"), "--disk", "disk1", "--to", &to];
        repository.run(&home, &words)?.succeeded()?;
        assert!(same_bytes(&file, layer), "{name}: the point's disk is not the snapshot's");
        assert_eq!(repository.run(&home, &words)?.status, Some(2), "a file that is there is not written over");
    }
    assert!(!same_bytes(&layers[0].1, &layers[2].1), "nothing changed: the test shows nothing");
    // A merge changes what a layer's file holds: then only comparing can tell.
    home.run(["delete", "worker@two", "worker@three"])?.succeeded()?;
    home.run(["snapshot", "worker", "--disk-only", "--name", "four"])?.succeeded()?;
    let backup = repository.run(&home, &["backup", "worker@four", "--json"])?.succeeded()?;
    assert_eq!(backup.json["changed_by"]["disk1"], "compare");
    // An audit does not take the layers' word for it.
    let audited = ["backup", "worker@four", "--audit", "100%", "--json"];
    let backup = repository.run(&home, &audited)?.succeeded()?;
    assert_eq!(backup.json["changed_by"]["disk1"], "layers");
    assert!(backup.number("audited_bytes")? >= f64::from(64 << 20), "{}", backup.json);
    let shown = home.run(["show", "worker@four", "--json"])?.succeeded()?;
    let path = shown.json["disks"][1]["layers"][0]["path"].as_str().unwrap_or_default().to_owned();
    write_behind_the_back(&home.path().join(&path));
    let backup = repository.run(&home, &audited)?;
    assert_eq!(backup.status, Some(3), "{}", backup.stderr);
    assert_eq!(backup.json["changed_by"]["disk1"], "compare");
    let file = home.file("behind.qcow2");
    let to = file.display().to_string();
    repository.run(&home, &["restore", "worker", "--disk", "disk1", "--to", &to])?.succeeded()?;
    assert!(same_bytes(&file, &home.path().join(path)), "the point is right in spite of it");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_left() -> Result<()> {
    let home = Home::new("backup-refused")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    home.run(["snapshot", "worker", "--disk-only", "--name", "disks"])?.succeeded()?;
    let refused = repository.run(&home, &["backup", "worker@disks", "--memory"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert_eq!(repository.run(&home, &["backup", "none"])?.status, Some(10));
    assert_eq!(repository.run(&home, &["restore", "worker", "--as", "new"])?.status, Some(10), "no point yet");
    std::fs::write(repository.path().with_file_name("key"), format!("{}\n", "0".repeat(64))).expect("written");
    assert_ne!(repository.run(&home, &["backup", "worker@disks"])?.status, Some(0));
    machine.assert_intact(Mark::START)
}
