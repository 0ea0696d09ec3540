//! `cargo xtask bench snapshot`: sizes one after another, each first in a bare QEMU and then under Keyframe.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::{Home, process};

use super::figures::SizeFigures;
use super::guest::{self, Ram};
use super::{fork, keyframe, qemu, report, table};
use crate::guests::{self, Guest};
use crate::{paths, run, say, setup};

/// How long a guest is watched after what was done to it, and left alone before the next thing.
pub const AFTER: Duration = Duration::from_secs(1);
/// Every directory of ours begins with it.
const HOME: &str = "bench-snapshot";
/// A bare machine and its capture in memory, and as much for this machine itself.
const SPARE_MIB: u64 = 1536;

/// Five snapshots, and a state saved by QEMU itself.
const IMAGES: u64 = 6;

/// What to measure, and where to write it.
#[derive(Args)]
pub struct Options {
    /// Sizes of the machines' RAM
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values = ["1G", "4G", "8G"])]
    ram: Vec<Ram>,
    /// Write everything that was measured into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures and prints the table.
///
/// # Errors
/// When something cannot be built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    let small = guests::ensure(Guest::Small, false)?;
    let guest = SmallGuest { kernel: small.join("vmlinuz"), initrd: small.join("initrd") };
    let executable = build()?;
    let home = Home::new(HOME)?.with_executable(&executable);
    clear_leftovers(home.path(), HOME)?;
    let before = load_average()?;
    say::note(format_args!("load average {before:.1} before; anything above 1 disturbs what follows"));

    say::step("Forks and bare starts");
    let forks = fork::measure(&home, &guest)?;
    let (mut sizes, mut failed) = (Vec::new(), Vec::new());
    for ram in &options.ram {
        match measure_size(&home, &executable, &guest, *ram) {
            Ok(measured) => sizes.extend(measured),
            // What was measured before it is not lost.
            Err(error) => {
                say::note(format_args!("{ram} could not be measured: {error:#}"));
                failed.push(ram.to_string());
            }
        }
    }
    let load = [before, load_average()?];
    print!("{}", table::drawn(&report::rows(&sizes, Some(&forks))));
    if let Some(file) = &options.json {
        let document = report::document(&sizes, Some(&forks), load);
        fs::write(file, format!("{document:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    }
    say::note(format_args!(
        "took {} s; load average {:.1} before, {:.1} after",
        begun.elapsed().as_secs(),
        load[0],
        load[1]
    ));
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

fn measure_size(home: &Home, executable: &Path, guest: &SmallGuest, ram: Ram) -> Result<Option<SizeFigures>> {
    let (needed, available) = (2 * ram.mib() + SPARE_MIB, guest::available_mib()?);
    if available < needed {
        say::note(format_args!("{ram} left out: it needs {needed} MiB of memory, and {available} MiB can be had"));
        return Ok(None);
    }
    let (disk_needed, disk_free) = (IMAGES * ram.mib() + SPARE_MIB, guest::free_mib(home.path())?);
    if disk_free < disk_needed {
        say::note(format_args!("{ram} left out: it writes {disk_needed} MiB, and {disk_free} MiB are free"));
        return Ok(None);
    }
    say::step(format_args!("{ram}: QEMU on its own"));
    let qemu = qemu::measure(home, guest, ram)?;
    say::step(format_args!("{ram}: Keyframe"));
    let keyframe = keyframe::measure(home, executable, guest, ram)?;
    Ok(Some(SizeFigures { ram, qemu, keyframe }))
}

/// The program as people use it: optimised.
pub fn build() -> Result<PathBuf> {
    say::step("Building keyframe");
    let words = ["build", "--quiet", "--release", "--package", "keyframe-cli"];
    run::watched(run::command(env!("CARGO"), words).current_dir(paths::root()))?;
    let path = paths::target().join("release/keyframe");
    fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))
}

/// Ends and removes what runs that were killed have left: there is one home at a time, and ours is that one.
pub fn clear_leftovers(ours: &Path, named: &str) -> Result<()> {
    let parent = ours.parent().context("a home has a parent")?;
    let list = fs::read_dir(parent).with_context(|| format!("cannot list {}", parent.display()))?;
    for dir in list.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_bench = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(named));
        if is_bench && dir != ours {
            say::note(format_args!("clearing away {}", dir.display()));
            process::of_home(&dir).into_iter().try_for_each(|process| process.kill(&dir))?;
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    Ok(())
}

/// Of the last minute.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first.context("/proc/loadavg has no number")
}
