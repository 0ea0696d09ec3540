//! A snapshot in the middle is deleted while the guest drives its disk; beside it, QEMU's block-commit of copies of the
//! same layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keyframe_acceptance::bare::{BareQemu, BareSpec};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::monitor::Event;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};
use serde_json::{Value, json};

use super::layers::{self, LayerOnDisk};
use super::subject::{Area, Felt, Subject};
use super::{BOOT_WITHIN, MEMORY, Rounds, Size, WITHIN, WORDS};
use crate::bench::samples::Samples;
use crate::{run, say};

/// How long an undisturbed guest is watched.
const UNDISTURBED: Duration = Duration::from_secs(8);
/// Between the disk's beginning, which belongs to the checker, and the layers' data.
const DATA_FROM_MIB: u64 = 1024;

/// One merge of the two layers.
#[derive(Debug, Clone, Default)]
pub struct Merge {
    /// The whole command.
    pub wall_ms: f64,
    /// Bytes written by QEMU but for the guest's own.
    pub moved_bytes: u64,
    /// The guest before.
    pub before: Felt,
    /// The guest meanwhile.
    pub meanwhile: Felt,
}

/// What deleting the snapshot came to.
pub struct DeleteFigures {
    /// Data of the smaller of the two layers, in bytes.
    pub smaller_bytes: u64,
    /// What the command says it moved.
    pub told_bytes: u64,
    /// Keyframe, once each round.
    pub keyframe: Vec<Merge>,
    /// QEMU without Keyframe, once each round.
    pub bare: Vec<Merge>,
}

/// The two layers, lower and upper, that one merge makes one; and the chain's top.
struct Chain {
    top: PathBuf,
    all: Vec<LayerOnDisk>,
    upper: usize,
}

/// Measures both, on the same data, in turns: what else the host does disturbs both alike.
///
/// # Errors
/// When a command or QEMU fails.
pub fn measure(home: &Home, guest: &SmallGuest, size: Size, rounds: Rounds) -> Result<DeleteFigures> {
    let disk_mib = DATA_FROM_MIB + 2 * size.mib() + 64;
    let disk = home.empty_disk("delete.qcow2", &format!("{disk_mib}M"))?;
    let spec = MachineSpec::small(guest, MEMORY, WORDS).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "delete", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    say::note(format_args!("two layers of {size}"));
    let data = Area { from_mib: DATA_FROM_MIB, span_mib: 2 * size.mib() };
    let mut subject = Subject::of_keyframe(&machine)?;
    let snapshot = |name: &str| home.run(["snapshot", "delete", "--name", name, "--disk-only"])?.succeeded();
    snapshot("first")?;
    subject.fill(Area { span_mib: size.mib(), ..data })?;
    snapshot("middle")?;
    subject.fill(Area { from_mib: data.from_mib + size.mib(), span_mib: size.mib() })?;
    snapshot("last")?;
    subject.fill(Area::WRITTEN)?;
    let top = subject.active_file()?;
    drop(subject);
    home.run(["vm", "stop", "delete", "--force"])?.succeeded()?;

    let all = layers::below(&top)?;
    let chain = Chain { top, all, upper: 1 };
    let sizes: Vec<_> = chain.pair()?.iter().map(|layer| layer.bytes).collect();
    let smaller_bytes = sizes.iter().copied().min().unwrap_or(0);
    let (state, saved) = (home.path().join("vms/delete"), home.file("delete-saved"));
    if rounds.get() > 1 {
        copy_all(&state, &saved)?;
    }
    let mut figures = DeleteFigures { smaller_bytes, told_bytes: 0, keyframe: Vec::new(), bare: Vec::new() };
    for round in 1..=rounds.get() {
        say::note(format_args!("round {round}: block-commit in a bare QEMU"));
        figures.bare.push(bare_commit(home, guest, &chain, data)?);
        say::note(format_args!("round {round}: keyframe delete"));
        let booting = machine.serial()?.end();
        home.run(["vm", "start", "delete"])?.succeeded()?;
        machine.serial()?.wait_for(booting, "READY", BOOT_WITHIN)?;
        let (keyframe, told_bytes) = keyframe_delete(home, &machine, data)?;
        figures.keyframe.push(keyframe);
        figures.told_bytes = told_bytes;
        home.run(["vm", "stop", "delete", "--force"])?.succeeded()?;
        if round < rounds.get() {
            // The layers as they were, for the next round.
            fs::remove_dir_all(&state).context("cannot remove the machine")?;
            copy_all(&saved, &state)?;
        }
    }
    if rounds.get() > 1 {
        fs::remove_dir_all(&saved).context("cannot remove the copy of the machine")?;
    }
    home.run(["vm", "remove", "delete"])?.succeeded()?;
    fs::remove_file(&disk).context("cannot remove the disk")?;
    Ok(figures)
}

/// A directory with everything in it and its times, and on the disk.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    run::watched(run::command("cp", ["--archive", "--sparse=always"]).arg(from).arg(to))?;
    run::watched(run::command("sync", ["--file-system"]).arg(to))
}

impl Chain {
    /// The lower and the upper.
    fn pair(&self) -> Result<[&LayerOnDisk; 2]> {
        let layers = self.all.get(self.upper + 1).zip(self.all.get(self.upper));
        layers.map(|(lower, upper)| [lower, upper]).context("the chain is shorter than it should be")
    }
}

fn keyframe_delete(home: &Home, machine: &Machine<'_>, data: Area) -> Result<(Merge, u64)> {
    let mut subject = Subject::of_keyframe(machine)?;
    subject.drive("mixed", data)?;
    let before = subject.felt_for(UNDISTURBED);
    let (written, mark, start) = (subject.moved_bytes()?, subject.mark(), Instant::now());
    let deleted = home.run(["delete", &machine.at("middle"), "--json"])?.succeeded()?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    let moved_bytes = subject.moved_bytes()?.saturating_sub(written);
    let meanwhile = subject.felt_since(mark);
    subject.rest()?;
    let told = deleted.json.pointer("/machines/0/bytes_moved").and_then(Value::as_u64);
    Ok((Merge { wall_ms, moved_bytes, before, meanwhile }, told.context("delete does not tell what it moved")?))
}

fn bare_commit(home: &Home, guest: &SmallGuest, chain: &Chain, data: Area) -> Result<Merge> {
    let dir = home.file("bare-commit");
    fs::create_dir_all(&dir).context("cannot make a directory")?;
    let copies = copy(chain, &dir)?;
    let (top, upper, lower) = match (copies.first(), copies.get(chain.upper), copies.get(chain.upper + 1)) {
        (Some(top), Some(upper), Some(lower)) => (top.clone(), upper.clone(), lower.clone()),
        _ => bail!("the chain is shorter than it should be"),
    };
    let disks = vec![top];
    let spec = BareSpec { dir: dir.clone(), guest, words: WORDS, memory: MEMORY, disks, direct: true, incoming: false };
    let qemu = BareQemu::start(&spec)?;
    let merge = commit(&qemu, data, &upper, &lower)?;
    drop(qemu);
    fs::remove_dir_all(&dir).context("cannot remove the copies")?;
    Ok(merge)
}

fn commit(qemu: &BareQemu, data: Area, upper: &Path, lower: &Path) -> Result<Merge> {
    qemu.serial().wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let mut subject = Subject::of_bare(qemu)?;
    subject.drive("mixed", data)?;
    let before = subject.felt_for(UNDISTURBED);
    let (written, mark, start) = (subject.moved_bytes()?, subject.mark(), Instant::now());
    let order = json!({ "job-id": "commit", "device": "disk0", "top": upper, "base": lower });
    subject.monitor.execute("block-commit", &order)?;
    let ended = |event: &Event| matches!(event.name.as_str(), "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED");
    let event = subject.monitor.wait_for_event("the end of block-commit", WITHIN, ended)?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    if let Some(error) = event.data.get("error") {
        bail!("QEMU's block-commit failed: {error}");
    }
    let moved_bytes = subject.moved_bytes()?.saturating_sub(written);
    let meanwhile = subject.felt_since(mark);
    Ok(Merge { wall_ms, moved_bytes, before, meanwhile })
}

/// The same layers once more, each on the copy of the one below it; the top first.
fn copy(chain: &Chain, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut copies: Vec<PathBuf> = Vec::new();
    for (number, layer) in chain.all.iter().enumerate().rev() {
        let copy = dir.join(format!("{number}.qcow2"));
        run::watched(run::command("cp", ["--sparse=always"]).arg(&layer.path).arg(&copy))?;
        if let Some(below) = copies.last() {
            let words = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
            run::watched(run::command("qemu-img", words).arg(below).arg(&copy))?;
        }
        copies.push(copy);
    }
    copies.reverse();
    run::watched(run::command("sync", ["--file-system"]).arg(&chain.top))?;
    Ok(copies)
}

/// The middle of what the rounds came to; nothing if one was not measured.
pub fn median(merges: &[Merge], of: impl Fn(&Merge) -> Option<f64>) -> Option<f64> {
    let mut samples = Samples::default();
    merges.iter().try_for_each(|merge| of(merge).map(|value| samples.push_ms(value)))?;
    samples.median()
}

impl Merge {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({
            "wall_ms": self.wall_ms,
            "moved_bytes": self.moved_bytes,
            "before": self.before.to_json(),
            "meanwhile": self.meanwhile.to_json(),
        })
    }
}
