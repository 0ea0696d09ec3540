//! Ways through Keyframe that the other tests do not take, a scenario each. Needs QEMU.

use std::time::{Duration, Instant};

use keyframe_acceptance::checker::Heartbeat;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

fn spec(home: &Home, memory: &str, words: &str) -> Result<MachineSpec> {
    Ok(MachineSpec::small(&guests::small()?, memory, words).disk(&home.empty_disk("disk.qcow2", "64M")?))
}

fn small(home: &Home) -> Result<Machine<'_>> {
    start(home, &spec(home, "192M", "checker.mb=48 checker.rate=20")?)
}

fn start<'h>(home: &'h Home, spec: &MachineSpec) -> Result<Machine<'h>> {
    let machine = Machine::start(home, "worker", spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

/// The guest works, and nothing is wrong with it.
fn assert_works(machine: &Machine<'_>) -> Result<Heartbeat> {
    let serial = machine.serial()?;
    let mark = serial.end();
    let first = serial.next_heartbeat(mark, 20 * SECOND)?;
    let later = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    assert!(later.uptime_ms > first.uptime_ms, "the guest's time stands still");
    assert_eq!(machine.show()?.text("state")?, "running");
    machine.assert_intact(mark)?;
    Ok(later)
}

fn wait_for_state(machine: &Machine<'_>, state: &str) -> Result<()> {
    let deadline = Instant::now() + 30 * SECOND;
    while machine.show()?.text("state")? != state {
        assert!(Instant::now() < deadline, "not {state}: {}", machine.show()?.stdout);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn the_present_that_a_revert_kept_can_be_gone_back_to() -> Result<()> {
    let home = Home::new("kept")?;
    let machine = small(&home)?;
    machine.snapshot("past")?;
    for strategy in ["lazy", "eager"] {
        let serial = machine.serial()?;
        let before = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
        let mark = serial.end();
        let past = ["revert", "worker@past", "--strategy", strategy, "--json"];
        let reverted = home.run(past)?.succeeded()?;
        let kept = reverted.text("kept_name")?.to_owned();
        serial.turned_back(mark, &before, 30 * SECOND)?;
        assert_works(&machine)?;
        machine.revert(&kept, &["--strategy", strategy])?;
        let now = assert_works(&machine)?;
        assert_eq!(now.token, before.token, "{strategy}: another program goes on");
        assert!(now.pages_rewritten >= before.pages_rewritten, "{strategy}: the kept present is older than it was");
    }
    Ok(())
}

#[test]
fn a_cut_that_nothing_proves_stops_the_guest_first_where_that_is_allowed() -> Result<()> {
    let home = Home::new("stop-first")?;
    let machine = small(&home)?;
    let unproved = "snapshot-proved!";
    // Two attempts fail, the third holds.
    let taken = home.run_until("snapshot-proved!1", ["snapshot", "worker", "--name", "retried", "--json"])?;
    assert_eq!(taken.succeeded()?.text("cut")?, "at-qemus-stop");
    let taken = home.run_until(unproved, ["snapshot", "worker", "--name", "stopped", "--json"])?.succeeded()?;
    assert_eq!((taken.text("cut")?, taken.text("consistency")?), ("stop-first", "running-state"));
    assert_works(&machine)?;
    // The populate pass is inside its pause: a millisecond is not enough for it.
    let refused = home.run_until(unproved, ["snapshot", "worker", "--name", "never", "--max-pause", "1ms"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert_works(&machine)?;
    for name in ["stopped", "retried"] {
        let mark = machine.serial()?.end();
        machine.revert(name, &[])?;
        machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
        assert_works(&machine)?;
    }
    Ok(())
}

#[test]
fn a_machine_that_cannot_stand_beside_itself_is_kept_first_and_brought_back() -> Result<()> {
    let home = Home::new("exclusive")?;
    let spec = spec(&home, "192M", "checker.mb=48 checker.rate=20")?.for_qemu(&["-device", "virtio-balloon-pci"]);
    let machine = start(&home, &spec)?;
    machine.snapshot("past")?;
    let serial = machine.serial()?;
    let before = serial.next_heartbeat(serial.end(), 20 * SECOND)?;
    let mark = serial.end();
    let reverted = home.run(["revert", "worker@past", "--json"])?.succeeded()?;
    serial.turned_back(mark, &before, 30 * SECOND)?;
    assert_works(&machine)?;
    machine.revert(reverted.text("kept_name")?, &[])?;
    let now = assert_works(&machine)?;
    assert!(now.token == before.token && !now.is_before(&before), "{now:?} after {before:?}");
    Ok(())
}

#[test]
fn a_paused_machine_comes_back_paused_and_goes_on_when_told() -> Result<()> {
    let home = Home::new("paused")?;
    let machine = small(&home)?;
    let serial = machine.serial()?;
    let token = serial.next_heartbeat(Mark::START, 20 * SECOND)?.token;
    machine.monitor()?.execute("stop", &json!({}))?;
    assert_eq!(machine.show()?.text("state")?, "paused");
    let taken = machine.snapshot("still")?;
    assert_eq!((taken.text("state")?, taken.text("consistency")?), ("paused", "running-state"));
    assert_eq!(machine.show()?.text("state")?, "paused", "the snapshot let it run");
    for strategy in ["lazy", "eager"] {
        home.run(["vm", "start", "worker"])?.succeeded()?;
        assert_eq!(assert_works(&machine)?.token, token, "{strategy}");
        machine.revert("still", &["--strategy", strategy])?;
        assert_eq!(machine.show()?.text("state")?, "paused", "{strategy}: it was paused then");
    }
    home.run(["vm", "start", "worker"])?.succeeded()?;
    assert_eq!(assert_works(&machine)?.token, token);
    Ok(())
}

#[test]
fn a_disk_only_snapshot_is_booted_from() -> Result<()> {
    let home = Home::new("disk-only")?;
    let machine = small(&home)?;
    let serial = machine.serial()?;
    let token = serial.next_heartbeat(serial.end(), 20 * SECOND)?.token;
    let taken = home.run(["snapshot", "worker", "--name", "disks", "--disk-only", "--json"])?.succeeded()?;
    assert_eq!((taken.text("consistency")?, taken.number("ram_bytes")?), ("crash", 0.0));
    let mark = serial.end();
    let reverted = home.run(["revert", "worker@disks", "--json"])?.succeeded()?;
    assert_eq!(reverted.text("strategy")?, "cold");
    serial.wait_for(mark, "READY", 120 * SECOND)?;
    assert_ne!(assert_works(&machine)?.token, token, "it was booted");
    machine.revert(reverted.text("kept_name")?, &[])?;
    assert_eq!(assert_works(&machine)?.token, token, "the present that was kept has its memory");
    Ok(())
}

#[test]
fn forks_with_memory_of_their_own_can_be_snapshotted() -> Result<()> {
    let home = Home::new("own-memory")?;
    let machine = small(&home)?;
    machine.snapshot("base")?;
    let serial = machine.serial()?;
    let token = serial.next_heartbeat(serial.end(), 20 * SECOND)?.token;
    for strategy in ["lazy", "eager"] {
        let made = home.run(["fork", "worker@base", strategy, "--strategy", strategy, "--json"])?.succeeded()?;
        assert_eq!(made.text("strategy")?, strategy);
        let fork = Machine::existing(&home, strategy);
        assert_eq!(assert_works(&fork)?.token, token, "{strategy}: the same program goes on");
        fork.snapshot("own")?;
        fork.revert("own", &[])?;
        assert_eq!(assert_works(&fork)?.token, token, "{strategy}");
        home.run(["vm", "stop", strategy, "--force"])?.succeeded()?;
    }
    assert_works(&machine).map(drop)
}

#[test]
fn a_pause_that_is_not_allowed_is_refused_or_given_up_with_memory() -> Result<()> {
    let home = Home::new("max-pause")?;
    let machine = small(&home)?;
    let refused = home.run(["snapshot", "worker", "--max-pause", "0ms"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("more than the 0 ms allowed"), "{}", refused.stderr);
    let taken = home.run(["snapshot", "worker", "--max-pause", "0ms", "--or-disk-only", "--json"])?;
    assert_eq!((taken.status, taken.text("consistency")?), (Some(3), "crash"), "done, but less than was asked for");
    home.run(["snapshot", "worker", "--max-pause", "10s", "--json"])?.succeeded()?;
    assert_works(&machine).map(drop)
}

#[test]
fn a_guest_that_shuts_down_is_told_from_a_qemu_that_dies() -> Result<()> {
    let home = Home::new("endings")?;
    let machine = small(&home)?;
    machine.type_line("poweroff")?;
    wait_for_state(&machine, "stopped")?;
    assert_eq!(machine.show()?.text("ended")?, "guest-shutdown");
    let taken = machine.snapshot("off")?;
    assert_eq!(taken.text("consistency")?, "filesystem", "the guest had let go of its disks");
    assert_eq!(machine.show()?.json["ended"], json!(null), "it is on record");

    home.run(["vm", "start", "worker"])?.succeeded()?;
    machine.process()?.kill(home.path())?;
    assert_eq!(machine.show()?.text("state")?, "crashed");
    assert_eq!(machine.show()?.text("ended")?, "crash");
    home.run(["vm", "start", "worker"])?.succeeded()?;
    Ok(())
}

#[test]
fn looking_does_not_wait_for_a_command_that_is_at_work() -> Result<()> {
    let home = Home::new("looking")?;
    let spec = spec(&home, "768M", "checker.mb=500 checker.rate=20")?;
    let machine = start(&home, &spec)?;
    let snapshot = home.start(["snapshot", "worker", "--name", "slow"])?;
    let mut busy = 0;
    while snapshot.process().is_running() {
        let begun = Instant::now();
        let shown = machine.show()?;
        assert!(["running", "paused"].contains(&shown.text("state")?), "{}", shown.stdout);
        assert!(begun.elapsed() < 4 * SECOND, "waited for {:?}", begun.elapsed());
        busy += u32::from(shown.json["busy"].as_str().is_some_and(|holder| holder.contains("snapshot worker")));
    }
    assert!(busy > 0, "nobody said who is at work");
    assert_eq!(snapshot.wait()?.status, Some(0));
    assert_works(&machine).map(drop)
}

#[test]
fn a_machine_with_uefi_firmware_is_brought_back_and_forked() -> Result<()> {
    let home = Home::new("uefi")?;
    let spec = spec(&home, "256M", "checker.mb=48 checker.rate=20")?.option("--firmware", "uefi");
    let machine = start(&home, &spec)?;
    let token = machine.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token;
    machine.snapshot("base")?;
    for strategy in ["lazy", "eager"] {
        machine.revert("base", &["--strategy", strategy])?;
        assert_eq!(assert_works(&machine)?.token, token, "{strategy}");
    }
    home.run(["fork", "worker@base", "twin"])?.succeeded()?;
    let twin = Machine::existing(&home, "twin");
    assert_eq!(assert_works(&twin)?.token, token, "the same program goes on");
    assert_works(&machine).map(drop)
}

#[test]
fn what_is_pinned_holds_its_machine_and_a_deletion_says_what_it_frees() -> Result<()> {
    let home = Home::new("remove")?;
    let disk = home.empty_disk("disk.qcow2", "64M")?;
    home.run(["vm", "create", "idle", "--disk", disk.to_str().unwrap()])?.succeeded()?;
    for name in ["one", "two", "three"] {
        home.run(["snapshot", "idle", "--name", name])?.succeeded()?;
    }
    let words = ["delete", "idle@two", "idle@three", "--json"];
    let planned = home.run(words.iter().copied().chain(["--dry-run"]))?.succeeded()?;
    let gone = home.run(words)?.succeeded()?;
    assert_eq!(planned.list("snapshots")?, gone.list("snapshots")?, "what was planned is what was done");
    assert_eq!(gone.list("snapshots")?.len(), 2);

    home.run(["snapshot", "idle", "--name", "kept", "--pin"])?.succeeded()?;
    let refused = home.run(["vm", "remove", "idle"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("kept is pinned"), "{}", refused.stderr);
    let planned = home.run(["vm", "remove", "idle", "--force", "--dry-run", "--json"])?.succeeded()?;
    assert_eq!(planned.json["removal"]["snapshots"], json!(["one", "kept"]), "{}", planned.stdout);
    assert_eq!(home.run(["snapshots", "idle", "--json"])?.succeeded()?.list("snapshots")?.len(), 2, "only planned");
    home.run(["vm", "remove", "idle", "--force"])?.succeeded()?;
    assert_eq!(home.run(["vm", "show", "idle"])?.status, Some(10));
    assert!(disk.exists(), "a disk that was given stays");
    Ok(())
}
