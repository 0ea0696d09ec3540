//! `cargo xtask demo`: a Linux machine is taken at one instant while it works, wrecked, and brought back.
//!
//! The machine runs the checker of `guest/checker`, which judges its own memory and disks all the time; what it says on
//! its serial line is the evidence. Keyframe is used as a person would use it, through its commands, which are shown.
//! Times are measured from outside; only the pause, which nobody outside can see, is Keyframe's own figure.

mod figures;
mod guest;
pub mod serve;
mod stage;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use keyframe_acceptance::checker::Heartbeat;
use keyframe_acceptance::serial::Mark;

use self::figures::{Figures, milliseconds, seconds};
use self::guest::{Taken, Watched};
use self::stage::{HOME, REPOSITORY, Stage};
use crate::guests::{self, Guest};
use crate::{paths, run, say, setup};

const VM: &str = "demo";
const SNAPSHOT: &str = "demo@good";
/// Snapshots of a week that nobody looked after.
const PILE: [&str; 4] = ["monday", "tuesday", "wednesday", "thursday"];
const FORKS: [&str; 3] = ["copy-1", "copy-2", "copy-3"];
const APPEND: &str =
    "console=ttyS0 quiet panic=-1 checker.mb=200 checker.rate=40 checker.verify=60 checker.disks=vda,vdb";
/// What is on the third disk, which the guest leaves alone.
const FILES: &str = "desk";
const LETTER: &str = "letter.txt";
const LETTER_TEXT: &str = "Whoever reads this has it from a backup.\n";

/// How long the guest is watched after the snapshot, for its longest silence.
const AFTER_THE_SNAPSHOT: Duration = Duration::from_secs(1);

/// Sets up, builds, and plays it.
///
/// # Errors
/// When something cannot be built, a command fails, or the guest finds that it is not as it was.
pub fn demo() -> Result<()> {
    setup::setup()?;
    let guest = guests::ensure(Guest::Small, false)?;
    say::step("Building Keyframe");
    let build = ["build", "--release", "--package", "keyframe-cli"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    let begun = Instant::now();
    let stage = Stage::open(&paths::target().join("release/keyframe"), &guest)?;
    let figures = play(&stage)?;
    say::step(format_args!("The figures of this run ({})", stage.machine_shown()?));
    figures.show();
    stage.close()?;
    say::note("");
    say::note(format_args!("Everything is cleaned up. It took {}.", seconds(begun.elapsed())));
    Ok(())
}

fn play(stage: &Stage) -> Result<Figures> {
    let mut figures = Figures::default();
    let guest = boot(stage)?;
    let taken = snapshot(stage, &guest, &mut figures)?;
    let wrecked = wreck(stage, &guest)?;
    revert(stage, &guest, &taken, &wrecked, &mut figures)?;
    tidy(stage, &guest, &mut figures)?;
    fork(stage, &guest, &taken, &mut figures)?;
    let stored = backup(stage, &guest, &mut figures)?;
    lose_everything(stage)?;
    let point = first_point(stage)?;
    boot_from_repository(stage, &point, &stored, &mut figures)?;
    copy_a_file(stage, &point)?;
    Ok(figures)
}

fn boot(stage: &Stage) -> Result<Watched> {
    say::step("A Linux machine with two disks, and a third one with files");
    for disk in ["a.qcow2", "b.qcow2"] {
        stage.type_quietly("qemu-img", &["create", "-q", "-f", "qcow2", disk, "256M"])?;
    }
    stage.write(&Path::new(FILES).join(LETTER), LETTER_TEXT)?;
    stage.type_quietly("mke2fs", &["-q", "-t", "ext4", "-d", FILES, "c.raw", "32M"])?;
    let disks = ["--memory", "512M", "--disk", "a.qcow2", "--disk", "b.qcow2", "--disk", "c.raw"];
    let kernel = ["--kernel", "vmlinuz", "--initrd", "initrd", "--append", APPEND];
    stage.keyframe(&[&["vm", "create", VM], &disks[..], &kernel[..]].concat())?;
    stage.keyframe(&["vm", "start", VM])?;
    let guest = stage.watched(VM);
    guest.wait_until_at_work()?;
    say::note("");
    say::note("Linux is up. One program runs in it: it rewrites 200 MiB of memory at 40 MiB/s,");
    say::note("writes numbered blocks to both disks, reads everything back, and says CORRUPT");
    say::note("when memory or a disk is wrong, or when they are not of one and the same instant.");
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(400));
        show_beat(&guest.beat()?);
    }
    Ok(guest)
}

fn snapshot(stage: &Stage, guest: &Watched, figures: &mut Figures) -> Result<Taken> {
    say::step("A snapshot, while it works");
    let before = guest.beat()?;
    let (watch, start) = (guest.serial().watch(), Instant::now());
    stage.keyframe(&["snapshot", VM, "--name", "good"])?;
    let after = guest.beat()?;
    thread::sleep(AFTER_THE_SNAPSHOT);
    let silence = watch.finish(start);
    let recorded = stage.look(&["show", SNAPSHOT])?;
    figures.add("pause, STOP to RESUME, as QEMU tells it", recorded.pointer("/cost/pause_ms"))?;
    figures.add_time("longest silence of the guest, seen from outside", silence.longest);
    figures.add("the whole snapshot command", recorded.pointer("/cost/total_ms"))?;
    say::note("");
    say::note(format_args!(
        "The guest, which speaks every 20 ms, was never silent for longer than {}.",
        milliseconds(silence.longest)
    ));
    show_beat(&guest.beat()?);
    Ok(Taken { before, after })
}

fn wreck(stage: &Stage, guest: &Watched) -> Result<Heartbeat> {
    say::step("The disaster");
    say::note("A typed `wreck` makes the guest scribble over its own memory and both disks.");
    let mark = guest.serial().end();
    stage.type_at_console(VM, "wreck")?;
    for line in guest.wait_until_wrecked(mark)? {
        say::bad(line);
    }
    guest.beat()
}

fn revert(stage: &Stage, guest: &Watched, taken: &Taken, wrecked: &Heartbeat, figures: &mut Figures) -> Result<()> {
    say::step("Back");
    let mark = guest.serial().end();
    let turn = guest.wait_for_turn(mark, wrecked);
    stage.keyframe(&["revert", SNAPSHOT, "--discard"])?;
    let turn = turn.join()?;
    figures.add_time("from typing revert to the guest's first word", turn.after);
    let first = &turn.beat;
    say::step("Did the program notice?");
    taken.check_continued_by(first)?;
    say::good(format_args!("the same session   {} before, {} now", taken.before.token, first.token));
    let [then, broken, now] =
        [&taken.before, wrecked, first].map(|beat| seconds(Duration::from_millis(beat.uptime_ms)));
    say::good(format_args!("its clock goes on  snapshot asked for at {then}, wrecked by {broken}, now at {now}"));
    let verified = guest.verify(stage, VM)?;
    let complaint = guest.complaint_since(turn.mark);
    ensure!(complaint.is_none(), "the guest is not intact: {}", complaint.unwrap_or_default());
    say::good(format_args!("memory is whole    {verified}"));
    say::good("both disks too     read back for three seconds without a complaint");
    show_beat(&guest.beat()?);
    Ok(())
}

/// A pile of snapshots is put in order while the guest works.
fn tidy(stage: &Stage, guest: &Watched, figures: &mut Figures) -> Result<()> {
    say::step("A pile of snapshots, put in order");
    for name in PILE {
        let ttl = if name == "tuesday" { "7d" } else { "1s" };
        stage.type_quietly("keyframe", &["snapshot", VM, "--disk-only", "--name", name, "--ttl", ttl])?;
        thread::sleep(Duration::from_millis(250));
    }
    stage.keyframe(&["snapshots", VM])?;
    let deep = layers(stage)?;
    say::note(format_args!("The guest reads its disks through {deep} layers by now. All but one have had their time."));
    // The last one's second passes.
    thread::sleep(Duration::from_secs(1));
    let (watch, start) = (guest.serial().watch(), Instant::now());
    let mark = guest.serial().end();
    stage.keyframe(&["expire", VM])?;
    let silence = watch.finish(start);
    let shallow = layers(stage)?;
    ensure!(shallow < deep, "no layer went: {shallow} of {deep} are left");
    stage.keyframe(&["snapshots", VM])?;
    guest.wait_for_good_verdict(mark)?;
    say::good(format_args!("{deep} layers became {shallow}, and the guest has found every block on its disks"));
    say::note(format_args!("It was never silent for longer than {}.", milliseconds(silence.longest)));
    figures.add_time("longest silence while layers were merged", silence.longest);
    show_beat(&guest.beat()?);
    Ok(())
}

/// How many layers the guest's first disk has.
fn layers(stage: &Stage) -> Result<usize> {
    let shown = stage.look(&["vm", "show", VM])?;
    let layers = shown.pointer("/disks/0/layers").and_then(serde_json::Value::as_array);
    Ok(layers.map_or(0, Vec::len))
}

fn fork(stage: &Stage, original: &Watched, taken: &Taken, figures: &mut Figures) -> Result<()> {
    say::step("Three more, from the same instant");
    let forks = FORKS.map(|name| (name, stage.watched(name)));
    let first_words: Vec<_> = forks.iter().map(|(_, guest)| guest.wait_for_first_word()).collect();
    let count = FORKS.len().to_string();
    stage.keyframe(&["fork", SNAPSHOT, "copy", "--count", &count])?;
    say::note("");
    for ((name, guest), first) in forks.iter().zip(first_words) {
        let first = first.join()?;
        taken.check_continued_by(&first.beat)?;
        figures.add_time(&format!("from typing fork to the first word of {name}"), first.after);
        guest.wait_for_good_verdict(first.mark)?;
        say::good(format_args!(
            "{name} goes on at {}, session {}",
            seconds(Duration::from_millis(first.beat.uptime_ms)),
            first.beat.token
        ));
    }
    let mark = original.serial().end();
    original.wait_for_good_verdict(mark)?;
    say::good("the original works on beside them");
    stage.keyframe(&["vm", "list"])?;
    for (name, guest) in &forks {
        if let Some(complaint) = guest.complaint_since(Mark::START) {
            bail!("{name} is not intact: {complaint}");
        }
    }
    Ok(())
}

/// The machine goes into a repository, with its running state.
fn backup(stage: &Stage, guest: &Watched, figures: &mut Figures) -> Result<Taken> {
    say::step("A snapshot is no backup");
    for (name, value) in REPOSITORY {
        say::typed(format_args!("export {name}={value}"));
    }
    stage.keyframe(&["repo", "init"])?;
    let before = guest.beat()?;
    let (watch, start) = (guest.serial().watch(), Instant::now());
    stage.keyframe(&["backup", VM, "--memory"])?;
    let after = guest.beat()?;
    let silence = watch.finish(start);
    figures.add_time("longest silence of the guest while it is backed up", silence.longest);
    say::note("");
    say::note(format_args!(
        "The guest worked on, and was never silent for longer than {}.",
        milliseconds(silence.longest)
    ));
    stage.keyframe(&["backup", VM, "--memory"])?;
    say::note("The second point reads and stores what has changed.");
    stage.keyframe(&["points"])?;
    Ok(Taken { before, after })
}

/// The machine, its home and its disks go.
fn lose_everything(stage: &Stage) -> Result<()> {
    say::step("The host burns down");
    for name in FORKS.iter().chain([&VM]) {
        stage.type_quietly("keyframe", &["vm", "stop", name, "--force"])?;
    }
    stage.type_quietly("rm", &["-r", HOME, "a.qcow2", "b.qcow2", "c.raw", FILES])?;
    say::bad("No machine, no snapshot and no disk is left. There is the repository, and its key.");
    Ok(())
}

/// The first point in the repository, as it is named at the command line.
fn first_point(stage: &Stage) -> Result<String> {
    let points = stage.look(&["points"])?;
    let id = points.pointer("/points/0/id").and_then(serde_json::Value::as_str);
    let id = id.context("the repository holds no point")?;
    Ok(format!("{VM}@{}", id.get(..8).unwrap_or(id)))
}

/// It runs straight from the repository, and is wholly local soon.
fn boot_from_repository(stage: &Stage, point: &str, stored: &Taken, figures: &mut Figures) -> Result<()> {
    say::step("Booted from the repository");
    let guest = stage.watched(VM);
    let first_word = guest.wait_for_first_word();
    stage.keyframe(&["boot", point, "--as", VM])?;
    let first = first_word.join()?;
    stored.check_continued_by(&first.beat)?;
    figures.add_time("from typing boot to the guest's first word", first.after);
    say::good(format_args!("the same session goes on: {}", first.beat.token));
    show_beat(&guest.beat()?);
    stage.keyframe(&["boot", "--wait", VM])?;
    guest.wait_for_good_verdict(first.mark)?;
    say::good("memory and both disks are whole, and the repository is needed no more");
    stage.keyframe(&["vm", "list"])?;
    Ok(())
}

/// One file comes out of the point; nobody mounts anything.
fn copy_a_file(stage: &Stage, point: &str) -> Result<()> {
    say::step("A file out of the point");
    let path = format!("disk2:/{LETTER}");
    stage.keyframe(&["files", point, "ls", "disk2:/"])?;
    stage.keyframe(&["files", point, "cp", &path, "."])?;
    let copied = stage.read(Path::new(LETTER))?;
    ensure!(copied == LETTER_TEXT, "{LETTER} does not read as it was written: {copied:?}");
    say::good(format_args!("{LETTER} reads: {}", copied.trim_end()));
    Ok(())
}

fn show_beat(beat: &Heartbeat) {
    let sequences: Vec<_> = beat.sequences.iter().map(|number| format!("{number:>5}")).collect();
    say::note(format_args!(
        "  the guest: up {:>7}   session {}   pages rewritten {:>7}   disk writes {}",
        seconds(Duration::from_millis(beat.uptime_ms)),
        beat.token,
        beat.pages_rewritten,
        sequences.join(" ")
    ));
}
