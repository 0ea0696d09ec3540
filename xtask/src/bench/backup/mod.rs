//! `cargo xtask bench backup`: backups of running machines and getting them back, beside other stores, in one run.

mod boot;
mod cold;
mod database;
mod files;
mod incremental;
mod rows;
mod state;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use keyframe_acceptance::guests::{DebianGuest, SmallGuest};
use keyframe_acceptance::{Home, process};
use serde_json::{Value, json};

use super::table::{Row, drawn};
use super::{guest, snapshot};
use crate::guests::{self, Guest};
use crate::{say, setup};

const HOME: &str = "bench-backup";

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Size of the disk that is backed up, in MiB; four times as much is needed.
    #[arg(long, value_name = "MIB", default_value_t = 8192)]
    size: u64,
    /// How often it is backed up again.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u64,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "PARTS", default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Write everything that was measured into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Ends and removes what a part has left behind.
fn clear(home: &Home) -> Result<()> {
    for process in process::of_home(home.path()) {
        process.kill(home.path())?;
    }
    for entry in fs::read_dir(home.path())? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One hundredth of a large disk changed, beside restic and borg.
    Incremental,
    /// What a second point with memory adds.
    State,
    /// A running state, straight from a repository.
    Boot,
    /// A start from the firmware, straight from a repository.
    Cold,
    /// A database at work while it is backed up.
    Database,
    /// A directory in a huge image.
    Files,
}

impl Part {
    const ALL: [Self; 6] = [Self::Incremental, Self::State, Self::Boot, Self::Cold, Self::Database, Self::Files];

    fn measure(self, home: &Home, options: &Options) -> Result<(Vec<Row>, Value)> {
        let rounds = options.rounds;
        Ok(match self {
            Self::Incremental => {
                let (needed, free) = (options.size * 4, guest::free_mib(home.path())?);
                if free < needed {
                    bail!("it writes {needed} MiB, and {free} MiB are free");
                }
                let figures = incremental::measure(home, &small()?, options.size, rounds)?;
                (rows::incremental(&figures), figures.to_json())
            }
            Self::State => {
                let figures = state::measure(home, &small()?)?;
                (rows::state(&figures), figures.to_json())
            }
            Self::Boot => {
                let figures = boot::measure(home, &small()?, rounds)?;
                (rows::boot(&figures), figures.to_json())
            }
            Self::Cold => {
                let figures = cold::measure(home, &debian()?, rounds)?;
                (rows::cold(&figures), figures.to_json())
            }
            Self::Database => {
                let figures = database::measure(home, &debian()?, rounds)?;
                (rows::database(&figures), figures.to_json())
            }
            Self::Files => {
                let listing = files::measure(home, rounds)?;
                (rows::files(&listing), listing.to_json())
            }
        })
    }
}

fn small() -> Result<SmallGuest> {
    let dir = guests::ensure(Guest::Small, false)?;
    Ok(SmallGuest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") })
}

fn debian() -> Result<DebianGuest> {
    let dir = guests::ensure(Guest::Debian, false)?;
    let [kernel, initrd, system_disk, data_disk] =
        ["vmlinuz", "initrd", "disk.qcow2", "data.qcow2"].map(|name| dir.join(name));
    Ok(DebianGuest { kernel, initrd, system_disk, data_disk })
}

/// Measures and prints the table.
///
/// # Errors
/// When something cannot be built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    let home = Home::new(HOME)?.with_executable(&snapshot::build()?);
    snapshot::clear_leftovers(home.path(), HOME)?;
    let before = snapshot::load_average()?;
    say::note(format_args!("load average {before:.1} before; anything above 1 disturbs what follows"));
    let (mut rows, mut document) = (Vec::new(), json!({"load_average_before": before}));
    let mut failed = Vec::new();
    for part in &options.only {
        say::step(format_args!("{part:?}"));
        match part.measure(&home, options) {
            Ok((of_part, measured)) => {
                rows.extend(of_part);
                document[format!("{part:?}").to_lowercase()] = measured;
            }
            // What the other parts come to is told all the same.
            Err(error) => {
                say::failure(format_args!("{part:?}: {error:#}"));
                failed.push(format!("{part:?}"));
                clear(&home)?;
            }
        }
    }
    print!("{}", drawn(&rows));
    let after = snapshot::load_average()?;
    if let Some(file) = &options.json {
        document["load_average_after"] = json!(after);
        fs::write(file, format!("{document:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    say::note(format_args!("took {} s; load average {before:.1} before, {after:.1} after", begun.elapsed().as_secs()));
    Ok(())
}
