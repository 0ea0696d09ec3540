//! Keyframe at work on a machine under load.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::{Mark, SerialLog};
use keyframe_acceptance::{Home, Machine, MachineSpec, checker};

use super::figures::KeyframeFigures;
use super::guest::{Held, Ram};
use super::peak::PeakWatch;
use super::snapshot::AFTER;
use crate::say;

/// Snapshots in a row.
const SNAPSHOTS: u32 = 5;
/// Reverts to the last of them.
const REVERTS: u32 = 3;
const BOOT_WITHIN: Duration = Duration::from_secs(180);
const WITHIN: Duration = Duration::from_secs(60);

/// A machine under Keyframe and what is known of it.
struct Bench<'a> {
    home: &'a Home,
    executable: &'a Path,
    machine: Machine<'a>,
    serial: SerialLog,
    figures: KeyframeFigures,
}

/// Takes snapshots in a row and reverts.
///
/// # Errors
/// When a command fails, or the guest's checker complains.
pub fn measure(home: &Home, executable: &Path, guest: &SmallGuest, ram: Ram) -> Result<KeyframeFigures> {
    let name = format!("busy-{}", ram.mib());
    let disk = home.empty_disk(&format!("{name}.qcow2"), "64G")?;
    let spec = MachineSpec::small(guest, &ram.option(), &ram.busy()).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, &name, &spec)?;
    let serial = machine.serial()?;
    serial.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    thread::sleep(AFTER);
    let mut bench = Bench { home, executable, machine, serial, figures: KeyframeFigures::default() };
    bench.figures.resident_mib = Held::by(bench.machine.process()?)?.rss_kib / 1024;
    say::note(format_args!("{SNAPSHOTS} snapshots"));
    for number in 1..=SNAPSHOTS {
        bench.snapshot(number)?;
    }
    say::note(format_args!("{REVERTS} reverts"));
    for _ in 0..REVERTS {
        bench.revert()?;
    }
    if let Some(line) = checker::first_complaint(&bench.serial.since(Mark::START)) {
        bail!("the guest is not intact: {line}");
    }
    home.run(["vm", "stop", &name, "--force"])?.succeeded()?;
    home.run(["vm", "remove", &name])?.succeeded()?;
    Ok(bench.figures)
}

impl Bench<'_> {
    fn snapshot(&mut self, number: u32) -> Result<()> {
        let peaks = PeakWatch::start(self.home.path(), self.executable);
        let (watch, start) = (self.serial.watch(), Instant::now());
        let taken = self.machine.snapshot(&format!("s{number}"))?;
        thread::sleep(AFTER);
        self.figures.silence.push(watch.finish(start).longest);
        self.figures.snapshot_peaks.merge(peaks.finish());
        self.figures.pause.push_ms(taken.number("pause_ms")?);
        self.figures.snapshot_total.push_ms(taken.number("total_ms")?);
        match taken.text("consistency")? {
            "running-state" => Ok(()),
            other => bail!("a snapshot of a running machine is called {other}"),
        }
    }

    fn revert(&mut self) -> Result<()> {
        thread::sleep(AFTER);
        let target = self.machine.at(&format!("s{SNAPSHOTS}"));
        let before = self.serial.next_heartbeat(self.serial.end(), WITHIN)?;
        let peaks = PeakWatch::start(self.home.path(), self.executable);
        let (mark, start) = (self.serial.end(), Instant::now());
        let command = self.home.start(["revert", &target, "--discard", "--json", "--strategy", "lazy"])?;
        self.serial.turned_back(mark, &before, WITHIN)?;
        self.figures.visible.push(start.elapsed());
        let reverted = command.wait()?.succeeded()?;
        self.figures.revert_peaks.merge(peaks.finish());
        self.figures.running.push_ms(reverted.number("running_ms")?);
        self.figures.hydrated.push_ms(reverted.number("hydrated_ms")?);
        Ok(())
    }
}
