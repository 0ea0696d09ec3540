//! `cargo xtask bench serve`: a simulated year of 500 machines, the page's answers for as many, eight real guests at once.

mod answers;
mod eight;
mod year;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use keyframe_acceptance::Home;
use serde_json::json;

use super::snapshot;
use super::table::drawn;
use crate::{say, setup};

const HOME: &str = "bench-serve";

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How many machines there are.
    #[arg(long, value_name = "N", default_value_t = 500)]
    machines: u32,
    /// How many days are simulated.
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_enum, value_name = "PARTS", default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Write everything that was measured into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The scheduler, over a simulated year.
    Year,
    /// What the page asks for.
    Answers,
    /// Eight real guests on a one-minute policy.
    Eight,
}

impl Part {
    const ALL: [Self; 3] = [Self::Year, Self::Answers, Self::Eight];
}

/// One of a part's own, gone with all its machines at the end: the next part is measured without them.
fn home() -> Result<Home> {
    let home = Home::new(HOME)?.with_executable(&snapshot::build()?);
    snapshot::clear_leftovers(home.path(), HOME)?;
    Ok(home)
}

/// Measures and prints the table.
///
/// # Errors
/// When something cannot be built, started or measured.
pub fn run(options: &Options) -> Result<()> {
    let begun = Instant::now();
    setup::setup()?;
    let before = snapshot::load_average()?;
    say::note(format_args!("load average {before:.1} before; anything above 1 disturbs what follows"));
    let (mut rows, mut document) = (Vec::new(), json!({"load_average_before": before}));
    for part in &options.only {
        say::step(format_args!("{part:?}"));
        let (of_part, measured) = match part {
            Part::Year => year::measure(options.machines, options.days)?,
            Part::Answers => answers::measure(&home()?, options.machines)?,
            Part::Eight => eight::measure(&home()?)?,
        };
        rows.extend(of_part);
        document[format!("{part:?}").to_lowercase()] = measured;
    }
    print!("{}", drawn(&rows));
    if let Some(file) = &options.json {
        fs::write(file, format!("{document:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let after = snapshot::load_average()?;
    say::note(format_args!("took {} s; load average {before:.1} before, {after:.1} after", begun.elapsed().as_secs()));
    Ok(())
}
