//! `cargo xtask bench tree`: what it takes to keep snapshots in order, beside what QEMU takes for the same.

mod delete;
mod depth;
mod expire;
mod layers;
mod list;
mod report;
mod revert;
mod subject;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use keyframe_acceptance::Home;
use keyframe_acceptance::guests::SmallGuest;

use super::{guest, snapshot, table};
use crate::guests::{self, Guest};
use crate::{say, setup};

const HOME: &str = "bench-tree";
/// A guest that does nothing of its own accord.
const WORDS: &str = "checker.mb=8 checker.rate=0 checker.verify=0 checker.diskrate=0 checker.tick_ms=100";
const MEMORY: &str = "512M";
const BOOT_WITHIN: Duration = Duration::from_secs(120);
/// Nothing takes longer.
const WITHIN: Duration = Duration::from_secs(240);
const MOST_MIB: u64 = 64 << 10;
/// Room besides the layers: everything else that is measured, one after another.
const SPARE_MIB: u64 = 4096;

/// What to measure, and where to write it.
#[derive(Args)]
pub struct Options {
    /// Changed data of the snapshot that is deleted; seven times as much room is needed
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    size: Size,
    /// How often deletions and depths are measured, in turns with what they are compared with
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: Rounds,
    /// How many snapshots are listed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    listed: u32,
    /// Only these parts
    #[arg(long, value_name = "PARTS", value_delimiter = ',', default_values = ["delete", "depth", "expire", "revert", "list"])]
    only: Vec<Part>,
    /// Write everything that was measured into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A middle snapshot goes while the guest works.
    Delete,
    /// Reads through deep chains.
    Depth,
    /// Many snapshots go at once.
    Expire,
    /// Reverts from shared memory images.
    Revert,
    /// Listing very many snapshots.
    List,
}

/// How often something is measured: once to twenty times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds(u32);

impl Rounds {
    /// As a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Rounds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| (1..=20).contains(number));
        number.map(Self).ok_or_else(|| format!("{text:?} is not a number from 1 to 20"))
    }
}

/// Size of a layer's data, in MiB: 64 MiB to 64 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// In MiB.
    pub const fn mib(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size of a layer: write 64M to {}G", MOST_MIB >> 10);
        let (number, unit_mib) = match (text.strip_suffix('G'), text.strip_suffix('M')) {
            (Some(number), _) => (number, 1024),
            (None, Some(number)) => (number, 1),
            (None, None) => return Err(bad()),
        };
        let mib = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_mib)).ok_or_else(bad)?;
        if (64..=MOST_MIB).contains(&mib) { Ok(Self(mib)) } else { Err(bad()) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1024) { write!(f, "{} GiB", self.0 / 1024) } else { write!(f, "{} MiB", self.0) }
    }
}

/// What was measured.
#[derive(Default)]
pub struct Figures {
    delete: Option<delete::DeleteFigures>,
    depth: Vec<depth::AtDepth>,
    expire: Option<expire::ExpireFigures>,
    revert: Option<revert::RevertFigures>,
    list: Option<list::ListFigures>,
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
    let home = Home::new(HOME)?.with_executable(&snapshot::build()?);
    snapshot::clear_leftovers(home.path(), HOME)?;
    let before = snapshot::load_average()?;
    say::note(format_args!("load average {before:.1} before; anything above 1 disturbs what follows"));
    let (mut figures, mut failed) = (Figures::default(), Vec::new());
    for part in &options.only {
        say::step(format_args!("{part:?}"));
        // What was measured before it is not lost.
        if let Err(error) = measure(&home, &guest, options, *part, &mut figures) {
            say::note(format_args!("{part:?} could not be measured: {error:#}"));
            failed.push(format!("{part:?}"));
        }
    }
    let load = [before, snapshot::load_average()?];
    print!("{}", table::drawn(&report::rows(&figures)));
    if let Some(file) = &options.json {
        let document = report::document(&figures, load);
        fs::write(file, format!("{document:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let took_s = begun.elapsed().as_secs();
    say::note(format_args!("took {took_s} s; load average {:.1} before, {:.1} after", load[0], load[1]));
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(())
}

fn measure(home: &Home, guest: &SmallGuest, options: &Options, part: Part, figures: &mut Figures) -> Result<()> {
    match part {
        Part::Delete => {
            let (needed, free) = (7 * options.size.mib() + SPARE_MIB, guest::free_mib(home.path())?);
            if free < needed {
                bail!("it writes {needed} MiB, and {free} MiB are free");
            }
            figures.delete = Some(delete::measure(home, guest, options.size, options.rounds)?);
        }
        Part::Depth => figures.depth = depth::measure(home, guest, options.rounds)?,
        Part::Expire => figures.expire = Some(expire::measure(home, guest)?),
        Part::Revert => figures.revert = Some(revert::measure(home, guest)?),
        Part::List => figures.list = Some(list::measure(home, guest, options.listed)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_bounded() {
        assert_eq!("3".parse::<Rounds>().unwrap().get(), 3);
        assert!(["0", "21", "", "x"].iter().all(|text| text.parse::<Rounds>().is_err()));
    }

    #[test]
    fn sizes_are_read_and_bounded() {
        assert_eq!("4G".parse::<Size>().unwrap().to_string(), "4 GiB");
        assert_eq!("100M".parse::<Size>().unwrap().to_string(), "100 MiB");
        for text in ["", "4", "63M", "65G", "99999999999999999999G", "18446744073709551615G"] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
    }
}
