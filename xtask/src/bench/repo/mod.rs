//! `cargo xtask bench repo`: storing the images of `bench-images` beside other stores, in one run on one machine.
//!
//! Each tool stores the days in their order and then the memory images, encrypted, then restores the last day and verifies
//! everything. Before each store the image is read once, so that it comes from the page cache. Times, CPU seconds and
//! memory are those of GNU time. Beside the tools there is a bare loop (`crates/repo/examples/bare_loop.rs`): the least
//! that any of them has to do.

mod baseline;
pub mod install;
mod judge;
mod measure;
mod peers;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::baseline::Baseline;
use self::measure::{Tool, measure};
use self::peers::peers;
use super::table::drawn;
use crate::{paths, run, say};

/// What to store, and with what.
#[derive(clap::Args)]
pub struct Options {
    /// Images made by `cargo xtask bench-images`.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Tools to measure; those that are not installed are left out, and the table says so.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    tools: Vec<String>,
    /// Install the other tools first: restic, borg and casync through apt, rustic and bupstash through cargo.
    #[arg(long)]
    install: bool,
    /// Where the stores go; a directory in it is made and removed.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Write the figures here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// When there are no images, or a tool that is installed fails.
pub fn run(options: &Options) -> Result<()> {
    run::quiet(&mut run::command("/usr/bin/time", ["--version"])).context("GNU time is needed (Debian: time)")?;
    let images = images(&fs::canonicalize(&options.images).context("there is no directory of images")?)?;
    if options.install {
        install::all()?;
    }
    say::step("Building keyframe and the bare loop");
    let build = ["build", "--release", "--quiet", "-p", "keyframe-cli"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    let build = ["build", "--release", "--quiet", "-p", "keyframe-repo", "--example", "bare_loop"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;

    let scratch = options.scratch.clone().unwrap_or_else(paths::target);
    say::step("Measuring the bare loop");
    let baseline = Baseline::measure(&images, &scratch)?;
    let wanted = |name: &str| options.tools.is_empty() || options.tools.iter().any(|tool| tool == name);
    let mut tools: Vec<Tool> = Vec::new();
    for peer in peers(&paths::target().join("release/keyframe")) {
        if !wanted(peer.name) {
            continue;
        }
        if !install::is_there(&peer.program) {
            say::note(format_args!("{} is not installed", peer.name));
            continue;
        }
        say::step(format_args!("Measuring {}", peer.name));
        tools.push(measure(&peer, &images, &baseline, &scratch)?);
    }
    println!("{}", judge::side_by_side(&tools));
    println!("{}", drawn(&judge::rows(&tools, &baseline)));
    if let Some(file) = &options.json {
        fs::write(file, format!("{:#}\n", judge::document(&tools, &baseline)))?;
    }
    Ok(())
}

/// The images of a set, in the order in which they are stored: days, then memory.
fn images(dir: &std::path::Path) -> Result<Vec<PathBuf>> {
    let days = (0..crate::images::DAYS).map(|n| format!("day{n}.raw"));
    let images: Vec<PathBuf> = days.chain((0..3).map(|n| format!("mem{n}.raw"))).map(|name| dir.join(name)).collect();
    match images.iter().find(|image| !image.exists()) {
        Some(missing) => bail!("{} is missing: `cargo xtask bench-images --dir …` makes it", missing.display()),
        None => Ok(images),
    }
}
