//! A series of snapshots stores its memory once, and any of them can go: what is left comes back as it was. Needs QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};
use keyframe_engine::state::sealed;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn worker(home: &Home) -> Result<Machine<'_>> {
    let words = "checker.mb=100 checker.rate=1";
    let spec = MachineSpec::small(&guests::small()?, "384M", words).disk(&home.empty_disk("disk.qcow2", "64M")?);
    let machine = Machine::start(home, "worker", &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn dir_of(home: &Home, machine: &Machine<'_>, id: &str) -> PathBuf {
    home.path().join("vms").join(machine.name()).join("snapshots").join(id)
}

/// Whether the image shares pages by a map.
fn is_mapped(dir: &Path) -> bool {
    let shared = dir.join("memory.map").exists();
    assert_eq!(shared, dir.join("memory.pages").exists(), "{}", dir.display());
    assert_ne!(shared, dir.join("memory.mapped").exists(), "{}", dir.display());
    shared
}

/// Lets a snapshot stand on its own, so that its parent can be deleted: whose memory lies where must not depend on that.
fn orphan(dir: &Path) {
    let path = dir.join("manifest.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    document["body"]["parent"] = Value::Null;
    let schema = document["schema"].as_str().unwrap();
    fs::write(&path, sealed::sealed(schema, &document["body"].to_string())).unwrap();
}

/// The machine is back at a snapshot and works on, and its memory is what its checker put there.
fn assert_comes_back(machine: &Machine<'_>, name: &str, how: &[&str]) -> Result<f64> {
    let mark = machine.serial()?.end();
    let reverted = machine.revert(name, how)?;
    machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
    machine.assert_intact(machine.serial()?.end())?;
    reverted.number("running_ms")
}

#[test]
fn a_series_takes_little_and_survives_the_loss_of_any_of_it() -> Result<()> {
    let home = Home::new("series")?;
    let machine = worker(&home)?;
    let token = machine.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token;
    let mut taken = Vec::new();
    for n in 0..6 {
        let snapshot = machine.snapshot(&format!("s{n}"))?;
        taken.push((dir_of(&home, &machine, snapshot.text("id")?), snapshot.number("bytes_on_disk")?));
        std::thread::sleep(SECOND);
    }
    let shared: Vec<_> = taken.iter().map(|(dir, _)| is_mapped(dir)).collect();
    assert_eq!(
        shared,
        [false, true, true, true, true, true],
        "this test's home lies on a file system without reflinks"
    );
    let (first, all): (f64, f64) = (taken[0].1, taken.iter().map(|(_, bytes)| bytes).sum());
    assert!(all <= 2.0 * first, "{all} bytes for six, {first} for the first");

    // The first goes, and one from the middle: others have pages in their files.
    for (dir, _) in &taken {
        orphan(dir);
    }
    for gone in ["s0", "s2"] {
        home.run(["delete", &machine.at(gone)])?.succeeded()?;
    }
    let kept = fs::read_dir(home.path().join("vms/worker/memory")).unwrap().count();
    assert_eq!(kept, 2, "their memory is needed");
    for name in ["s1", "s3", "s4", "s5"] {
        assert_comes_back(&machine, name, &["--strategy", "lazy"])?;
    }
    assert_eq!(machine.serial()?.next_heartbeat(machine.serial()?.end(), 20 * SECOND)?.token, token);

    // What needs one file gets it; the others do not notice.
    let exported = home.file("exported.mapped");
    home.run(["memory", "export", "worker@s4", exported.to_str().unwrap()])?.succeeded()?;
    assert_comes_back(&machine, "s3", &["--strategy", "eager"])?;
    assert!(!is_mapped(&taken[3].0) && is_mapped(&taken[4].0));
    assert!(fs::metadata(&exported).unwrap().len() == fs::metadata(taken[4].0.join("memory.pages")).unwrap().len());
    home.run(["fork", "worker@s5", "twin"])?.succeeded()?;
    assert!(!is_mapped(&taken[5].0));
    let twin = Machine::existing(&home, "twin");
    twin.serial()?.next_heartbeat(twin.serial()?.end(), 20 * SECOND)?;
    twin.assert_intact(twin.serial()?.end())?;
    home.run(["vm", "stop", "twin", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "twin"])?.succeeded()?;
    assert_comes_back(&machine, "s4", &[])?;

    // When the last that refers to them is gone, so are they.
    for gone in ["s1", "s3", "s4", "s5"] {
        home.run(["delete", &machine.at(gone)])?.succeeded()?;
    }
    assert_eq!(fs::read_dir(home.path().join("vms/worker/memory")).unwrap().count(), 0);
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_revert_chooses_to_read_a_shared_image_as_it_is() -> Result<()> {
    let home = Home::new("choice")?;
    let machine = worker(&home)?;
    machine.snapshot("first")?;
    let second = machine.snapshot("second")?;
    let reverted = machine.revert("second", &[])?;
    assert_eq!(reverted.text("strategy")?, "lazy");
    assert!(is_mapped(&dir_of(&home, &machine, second.text("id")?)), "it needed no whole one");
    Ok(())
}
