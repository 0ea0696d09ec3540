//! QEMU without Keyframe: its own snapshots, live migration to a file, and its floor.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keyframe_acceptance::bare::{BareQemu, BareSpec};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::monitor::Event;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, checker};
use keyframe_memory::collapse::{CollapseOptions, collapse_huge_pages};
use keyframe_vmstate::PageCount;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::figures::QemuFigures;
use super::guest::Ram;
use super::snapshot::AFTER;
use crate::say;

const DISK: &str = "disk0";
const TAG: &str = "bench";
/// Nothing takes longer: saving 8 GiB into a qcow2 file takes half a minute.
const WITHIN: Duration = Duration::from_secs(240);
const BOOT_WITHIN: Duration = Duration::from_secs(180);
/// How often the floor is measured.
const FLOORS: usize = 3;
/// How long an undisturbed guest is watched.
const QUIET: Duration = Duration::from_secs(3);

/// A bare QEMU with the guest at work in it.
pub struct Bare {
    qemu: BareQemu,
    ram: Ram,
}

/// Measures it all in a QEMU of its own.
///
/// # Errors
/// When QEMU or the guest does not do what it should.
pub fn measure(home: &Home, guest: &SmallGuest, ram: Ram) -> Result<QemuFigures> {
    let mut figures = QemuFigures::default();
    let mut bare = Bare::start(home, guest, ram)?;
    bare.quiet(&mut figures);
    say::note("captures into tmpfs");
    for _ in 0..FLOORS {
        bare.floor(&mut figures)?;
        bare.restore_huge_pages()?;
    }
    say::note("live migration to a file");
    bare.precopy(&mut figures, &home.file("precopy.migration"))?;
    say::note("snapshot-save and snapshot-load");
    bare.save(&mut figures)?;
    bare.load(&mut figures)?;
    match checker::first_complaint(&bare.qemu.serial().since(Mark::START)) {
        Some(line) => bail!("the guest in a bare QEMU is not intact: {line}"),
        None => Ok(figures),
    }
}

impl Bare {
    fn start(home: &Home, guest: &SmallGuest, ram: Ram) -> Result<Self> {
        let tag = format!("bare-{}", ram.mib());
        let disk = home.empty_disk(&format!("{tag}.qcow2"), "64G")?;
        let (words, memory, dir) = (ram.busy(), ram.option(), home.file(&tag));
        let spec =
            BareSpec { dir, guest, words: &words, memory: &memory, disks: vec![disk], direct: false, incoming: false };
        let qemu = BareQemu::start(&spec)?;
        qemu.serial().wait_for(Mark::START, "READY", BOOT_WITHIN)?;
        thread::sleep(AFTER);
        Ok(Self { qemu, ram })
    }

    fn quiet(&self, figures: &mut QemuFigures) {
        let (watch, start) = (self.qemu.serial().watch(), Instant::now());
        thread::sleep(QUIET);
        figures.quiet.push(watch.finish(start).longest);
    }

    fn event(&mut self, name: &str) -> Result<Event> {
        Ok(self.qemu.monitor.wait_for_event(name, WITHIN, |event| event.name == name)?)
    }

    fn pause(&mut self) -> Result<Duration> {
        let (stop, resume) = (self.event("STOP")?, self.event("RESUME")?);
        resume.at.duration_since(stop.at).context("QEMU resumed before it stopped")
    }

    fn migrate(&mut self, uri: &str) -> Result<()> {
        self.qemu.monitor.forget_events();
        self.qemu.monitor.execute("migrate", &json!({ "uri": uri }))?;
        let ended = |event: &Event| {
            let status = event.data.get("status").and_then(Value::as_str);
            event.name == "MIGRATION" && matches!(status, Some("completed" | "failed" | "cancelled"))
        };
        self.qemu.monitor.wait_for_event("the end of migration", WITHIN, ended)?;
        Ok(self.qemu.wait_until_migrated(WITHIN)?)
    }

    /// RAM and devices into memory that belongs to no file system a disk could slow down.
    fn floor(&mut self, figures: &mut QemuFigures) -> Result<()> {
        self.qemu.enable(&["events", "background-snapshot", "mapped-ram"])?;
        let sink: OwnedFd = memfd_create("bench-sink", MemfdFlags::CLOEXEC).context("cannot make a file in memory")?;
        let uri = format!("file:/proc/{}/fd/{}", std::process::id(), sink.as_raw_fd());
        let (watch, start) = (self.qemu.serial().watch(), Instant::now());
        self.migrate(&uri)?;
        thread::sleep(AFTER);
        figures.floor_silence.push(watch.finish(start).longest);
        figures.floor_pause.push(self.pause()?);
        Ok(())
    }

    /// What Keyframe does after each snapshot; without it the floor of the next capture would be higher.
    fn restore_huge_pages(&self) -> Result<()> {
        let pid = i32::try_from(self.qemu.process().0).ok().and_then(Pid::from_raw).context("QEMU has a number")?;
        let pages = PageCount::from_bytes(self.ram.bytes()).context("RAM is whole pages")?;
        collapse_huge_pages(pid, pages, &CollapseOptions::default(), &AtomicBool::new(false))?;
        Ok(())
    }

    fn precopy(&mut self, figures: &mut QemuFigures, file: &Path) -> Result<()> {
        self.qemu.disable(&["background-snapshot", "mapped-ram"])?;
        self.qemu.monitor.execute("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
        let (watch, start) = (self.qemu.serial().watch(), Instant::now());
        self.migrate(&format!("file:{}", file.display()))?;
        self.qemu.monitor.execute("cont", &json!({}))?;
        thread::sleep(AFTER);
        figures.precopy_silence.push(watch.finish(start).longest);
        figures.precopy_pause.push(self.pause()?);
        fs::remove_file(file).context("cannot remove the migration's file")
    }

    fn job(&mut self, command: &str) -> Result<()> {
        self.qemu.monitor.forget_events();
        let arguments = json!({ "job-id": command, "tag": TAG, "vmstate": DISK, "devices": [DISK] });
        self.qemu.monitor.execute(command, &arguments)?;
        Ok(())
    }

    fn end_job(&mut self, command: &str) -> Result<()> {
        let ended = |event: &Event| {
            let is = |name: &str, value: &str| event.data.get(name).and_then(Value::as_str) == Some(value);
            event.name == "JOB_STATUS_CHANGE" && is("id", command) && is("status", "concluded")
        };
        self.qemu.monitor.wait_for_event("the end of a job", WITHIN, ended)?;
        let jobs = self.qemu.monitor.execute("query-jobs", &json!({}))?;
        let errors = jobs.as_array().into_iter().flatten().find_map(|job| job.get("error"));
        if let Some(error) = errors {
            bail!("QEMU's {command} failed: {error}");
        }
        self.qemu.monitor.execute("job-dismiss", &json!({ "id": command }))?;
        Ok(())
    }

    fn save(&mut self, figures: &mut QemuFigures) -> Result<()> {
        self.job("snapshot-save")?;
        self.end_job("snapshot-save")?;
        figures.save_pause.push(self.pause()?);
        Ok(())
    }

    fn load(&mut self, figures: &mut QemuFigures) -> Result<()> {
        thread::sleep(AFTER);
        let serial = self.qemu.serial();
        let before = serial.next_heartbeat(serial.end(), WITHIN)?;
        let (mark, start) = (serial.end(), Instant::now());
        self.job("snapshot-load")?;
        self.event("RESUME")?;
        figures.load_running.push(start.elapsed());
        // A load that failed resumes the guest, too.
        self.end_job("snapshot-load")?;
        serial.turned_back(mark, &before, WITHIN)?;
        figures.load_visible.push(start.elapsed());
        Ok(())
    }
}
