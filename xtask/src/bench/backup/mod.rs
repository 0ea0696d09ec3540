//! `cargo xtask bench backup`: backups of running machines and getting them back, beside other stores, in one run.

mod incremental;
mod state;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use keyframe_acceptance::Home;
use keyframe_acceptance::guests::SmallGuest;
use serde_json::json;

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
    #[arg(long, value_delimiter = ',', value_enum, value_name = "PARTS", default_values_t = [Part::Incremental, Part::State])]
    only: Vec<Part>,
    /// Write everything that was measured into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One hundredth of a large disk changed, beside restic and borg.
    Incremental,
    /// What a second point with memory adds.
    State,
}

/// Measures and prints the table.
///
/// # Errors
/// When something cannot be built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    let small = guests::ensure(Guest::Small, false)?;
    let small = SmallGuest { kernel: small.join("vmlinuz"), initrd: small.join("initrd") };
    let home = Home::new(HOME)?.with_executable(&snapshot::build()?);
    snapshot::clear_leftovers(home.path(), HOME)?;
    let before = snapshot::load_average()?;
    say::note(format_args!("load average {before:.1} before; anything above 1 disturbs what follows"));
    let (mut rows, mut document) = (Vec::new(), json!({"load_average_before": before}));
    for part in &options.only {
        say::step(format_args!("{part:?}"));
        match part {
            Part::Incremental => {
                let (needed, free) = (options.size * 4, guest::free_mib(home.path())?);
                if free < needed {
                    bail!("it writes {needed} MiB, and {free} MiB are free");
                }
                let figures = incremental::measure(&home, &small, options.size, options.rounds)?;
                document["incremental"] = figures.to_json();
                rows.extend(incremental_rows(&figures));
            }
            Part::State => {
                let figures = state::measure(&home, &small)?;
                document["state"] = figures.to_json();
                let share = figures.second_bytes as f64 / figures.first_bytes.max(1) as f64;
                rows.push(Row::told("running state of 1 GiB: first point", mib(figures.first_bytes)));
                rows.push(Row::judged(
                    "running state of 1 GiB: what a second point adds",
                    format!("<= 30 % = {}", mib(figures.first_bytes * 3 / 10)),
                    format!("{} ({:.0} %)", mib(figures.second_bytes), share * 100.0),
                    Some(share <= 0.3),
                ));
            }
        }
    }
    print!("{}", drawn(&rows));
    let after = snapshot::load_average()?;
    if let Some(file) = &options.json {
        document["load_average_after"] = json!(after);
        fs::write(file, format!("{document:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    }
    say::note(format_args!("took {} s; load average {before:.1} before, {after:.1} after", begun.elapsed().as_secs()));
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn incremental_rows(figures: &incremental::Figures) -> Vec<Row> {
    let gib = figures.size_mib as f64 / 1024.0;
    let name = |what: &str| format!("disk of {gib} GiB, running: {what}");
    let mut rows = vec![Row::told(name("first backup"), format!("{:.1} s", figures.full_ms / 1e3))];
    for peer in &figures.peers {
        rows.push(Row::told(name(&format!("first backup by {}", peer.name)), format!("{:.1} s", peer.full_ms / 1e3)));
    }
    let median = figures.again.median();
    let by = |what: &[String]| what.join(" ");
    rows.push(Row::judged(
        name("1 % changed"),
        "<= 2 s",
        format!("{} by {}", figures.again, by(&figures.changed_by)),
        median.map(|ms| ms <= 2000.0),
    ));
    let read = figures.read_bytes.iter().max().copied().unwrap_or(0);
    rows.push(Row::told(name("1 % changed, read of the disks"), mib(read)));
    for peer in &figures.peers {
        let target = peer.again.median().map(|theirs| theirs / 10.0);
        rows.push(Row::judged(
            name(&format!("1 % changed, against {}", peer.name)),
            target.map_or_else(String::new, |ms| format!("<= 1/10 = {ms:.0} ms")),
            format!("{} of {}", figures.again, peer.again),
            median.zip(target).map(|(ours, target)| ours <= target),
        ));
    }
    rows
}
