//! A working machine is taken at one instant, wrecked, and brought back: memory, two disks, and the program in it.
//! Needs QEMU.

use std::time::{Duration, Instant};

use keyframe_acceptance::checker::{Heartbeat, first_complaint};
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};

const SECOND: Duration = Duration::from_secs(1);
const WORDS: &str = "checker.mb=150 checker.rate=40";

/// What was seen of a program just before and just after a snapshot was taken.
struct Taken {
    before: Heartbeat,
    after: Heartbeat,
}

impl Taken {
    /// Sees that a heartbeat comes from the same program, at the snapshot's instant or a little later.
    fn assert_continued_by(&self, beat: &Heartbeat) {
        assert_eq!(beat.token, self.before.token, "another program: the machine was booted, not brought back");
        let slack_ms = 1_000;
        let instant = self.before.uptime_ms..self.after.uptime_ms + slack_ms;
        assert!(instant.contains(&beat.uptime_ms), "goes on at {} ms, taken within {instant:?} ms", beat.uptime_ms);
        assert!(beat.pages_rewritten >= self.before.pages_rewritten, "memory is older than the snapshot");
        let pairs = beat.sequences.iter().zip(&self.before.sequences);
        assert!(pairs.clone().all(|(now, then)| now >= then), "disks are older than the snapshot: {beat:?}");
        assert_eq!(pairs.count(), 2);
    }
}

fn working_machine<'h>(home: &'h Home, name: &str) -> Result<Machine<'h>> {
    let mut spec = MachineSpec::small(&guests::small()?, "512M", WORDS);
    for disk in ["a", "b"] {
        spec = spec.disk(&home.empty_disk(&format!("{name}-{disk}.qcow2"), "256M")?);
    }
    let machine = Machine::start(home, name, &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn take(machine: &Machine<'_>, snapshot: &str) -> Result<Taken> {
    let serial = machine.serial()?;
    let before = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    let (watch, start) = (serial.watch(), Instant::now());
    let outcome = machine.snapshot(snapshot)?;
    let after = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    let silence = watch.finish(start);

    assert_eq!(outcome.text("consistency")?, "running-state");
    assert_eq!(outcome.text("name")?, snapshot);
    assert!(!outcome.text("id")?.is_empty());
    let (pause_ms, total_ms) = (outcome.number("pause_ms")?, outcome.number("total_ms")?);
    assert!(pause_ms > 0.0 && pause_ms <= total_ms, "paused {pause_ms} ms of {total_ms} ms");
    // What an older snapshot has already is not written twice.
    let held = outcome.number("bytes_on_disk")? + outcome.number("shared_bytes")?;
    assert!(held > 150e6, "less than the memory that is in use");
    assert!(silence.heartbeats > 0, "the guest said nothing while it was taken");
    println!("{snapshot}: paused {pause_ms:.1} ms, silent {:.0} ms at most", silence.longest.as_secs_f64() * 1e3);
    assert!(silence.longest < 5 * SECOND, "silent for {:?}", silence.longest);
    Ok(Taken { before, after })
}

fn wreck(machine: &Machine<'_>) -> Result<()> {
    let serial = machine.serial()?;
    let mark = serial.end();
    machine.type_line("wreck")?;
    serial.wait_for(mark, "WRECKED memory", 30 * SECOND)?;
    serial.wait_for(mark, "CORRUPT passes", 10 * SECOND).map(drop)
}

/// Reverts and sees that the very program goes on, with nothing to complain about.
fn bring_back(machine: &Machine<'_>, snapshot: &str, taken: &Taken, strategy: &str) -> Result<()> {
    let serial = machine.serial()?;
    let last = serial.last_heartbeat(Mark::START).expect("it had a heartbeat");
    let mark = serial.end();
    let outcome = machine.revert(snapshot, &["--strategy", strategy])?;
    assert_eq!(outcome.text("strategy")?, strategy);
    let (turn, first) = serial.turned_back(mark, &last, 30 * SECOND)?;
    println!("{snapshot} {strategy}: running after {:.0} ms", outcome.number("running_ms")?);
    taken.assert_continued_by(&first);
    machine.assert_intact(turn)?;
    let later = serial.next_heartbeat(serial.end(), 10 * SECOND)?;
    assert!(later.pages_rewritten > first.pages_rewritten, "it does not work any more");
    assert!(later.sequences.iter().zip(&first.sequences).all(|(now, then)| now > then), "its disks stand still");
    Ok(())
}

#[test]
fn a_wrecked_machine_is_brought_back_again_and_again() -> Result<()> {
    let home = Home::new("again")?;
    let machine = working_machine(&home, "worker")?;
    let taken = take(&machine, "good")?;
    machine.assert_intact(Mark::START)?;
    for strategy in ["eager", "lazy", "eager", "lazy"] {
        wreck(&machine)?;
        bring_back(&machine, "good", &taken, strategy)?;
    }
    Ok(())
}

#[test]
fn snapshots_of_a_machine_that_was_brought_back_are_as_good() -> Result<()> {
    let home = Home::new("chain")?;
    let machine = working_machine(&home, "worker")?;
    for (round, strategy) in ["lazy", "eager", "lazy"].into_iter().enumerate() {
        let name = format!("round-{round}");
        let taken = take(&machine, &name)?;
        wreck(&machine)?;
        bring_back(&machine, &name, &taken, strategy)?;
    }
    let listed = home.run(["snapshots", machine.name(), "--json"])?.succeeded()?;
    assert_eq!(listed.list("snapshots")?.len(), 3);
    Ok(())
}

#[test]
fn a_crashed_kernel_and_a_killed_qemu_are_no_hindrance() -> Result<()> {
    let home = Home::new("dead")?;
    let machine = working_machine(&home, "worker")?;
    let taken = take(&machine, "alive")?;

    let serial = machine.serial()?;
    let mark = serial.end();
    machine.type_line("panic")?;
    serial.wait_for(mark, "Kernel panic", 30 * SECOND)?;
    bring_back(&machine, "alive", &taken, "lazy")?;

    machine.process()?.kill(home.path())?;
    bring_back(&machine, "alive", &taken, "eager")
}

#[test]
fn the_guest_is_told_that_it_was_brought_back() -> Result<()> {
    let home = Home::new("genid")?;
    let machine = working_machine(&home, "worker")?;
    let serial = machine.serial()?;
    serial.wait_for(Mark::START, "VMGENID", 10 * SECOND)?;
    take(&machine, "first")?;
    for strategy in ["lazy", "eager"] {
        let mark = serial.end();
        machine.revert("first", &["--strategy", strategy])?;
        let line = serial.wait_for(mark, "->", 30 * SECOND)?;
        assert!(line.contains("VMGENID"), "{line}");
    }
    Ok(())
}

#[test]
fn the_original_is_intact_while_it_is_taken_many_times() -> Result<()> {
    let home = Home::new("many")?;
    let machine = working_machine(&home, "worker")?;
    for round in 0..6 {
        take(&machine, &format!("s{round}"))?;
    }
    machine.assert_intact(Mark::START)?;
    assert_eq!(first_complaint(&machine.serial()?.since(Mark::START)), None);
    Ok(())
}
