//! What a command takes, and one tool's whole course.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::baseline::Baseline;
use super::peers::Peer;
use crate::{run, say};

/// What a command took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_mib: f64,
}

/// An image that was stored, and how large the store was then.
#[derive(Debug)]
pub struct Stored {
    pub image: String,
    pub cost: Cost,
    pub store_bytes: u64,
}

/// What was measured of a tool.
#[derive(Debug)]
pub struct Tool {
    pub name: &'static str,
    pub deduplicates: bool,
    /// The days, then the memory images.
    pub stores: Vec<Stored>,
    pub restore: Option<Cost>,
    pub verify: Option<Cost>,
    /// Day 1 by the list of what changed, in a store that has day 0 alone.
    pub by_list: Option<(Cost, u64)>,
    /// Reads of 4 KiB at random: median and the 99th of 100, in microseconds.
    pub random_us: Option<(f64, f64)>,
}

impl Tool {
    pub fn full(&self) -> f64 {
        self.stores.first().map_or(f64::NAN, |stored| stored.cost.seconds)
    }

    /// The days after the first.
    pub fn next_days(&self) -> &[Stored] {
        self.stores.get(1..crate::images::DAYS as usize).unwrap_or_default()
    }

    /// The mean of the days after the first.
    pub fn next_day(&self) -> f64 {
        let days = self.next_days();
        days.iter().map(|stored| stored.cost.seconds).sum::<f64>() / days.len() as f64
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stores.last().map_or(0, |stored| stored.store_bytes)
    }

    /// All that every tool was asked to do.
    pub fn costs(&self) -> impl Iterator<Item = Cost> + '_ {
        self.stores.iter().map(|stored| stored.cost).chain(self.restore).chain(self.verify)
    }

    pub fn cpu_seconds(&self) -> f64 {
        self.costs().map(|cost| cost.cpu_seconds).sum()
    }

    pub fn peak_mib(&self) -> f64 {
        self.costs().map(|cost| cost.peak_mib).fold(0.0, f64::max)
    }
}

/// Lets a tool store all images, give one back and verify everything.
pub fn measure(peer: &Peer, images: &[PathBuf], baseline: &Baseline, scratch: &Path) -> Result<Tool> {
    let dir = tempfile::Builder::new().prefix("bench-repo-").tempdir_in(scratch)?;
    let course = Course { peer, dir: dir.path() };
    costs(&course.line(&peer.init, Path::new(""), ""), dir.path())?;
    let mut tool = Tool {
        name: peer.name,
        deduplicates: peer.deduplicates,
        stores: Vec::new(),
        restore: None,
        verify: None,
        by_list: None,
        random_us: None,
    };
    for image in images {
        let tag = tag(image)?;
        warm(image)?;
        let cost = costs(&course.line(&peer.store, image, tag), dir.path())?;
        let (seconds, cpu, peak) = (cost.seconds, cost.cpu_seconds, cost.peak_mib);
        say::note(format_args!("{tag}: {seconds:.1} s, {cpu:.1} CPU s, {peak:.0} MiB"));
        tool.stores.push(Stored { image: tag.to_owned(), cost, store_bytes: size(&course.store())? });
    }
    let last = images.get(crate::images::DAYS as usize - 1).context("there are days")?;
    warm(&course.store())?;
    if let Some(restore) = &peer.restore {
        tool.restore = Some(course.restore(restore, last)?);
    }
    if let Some(verify) = &peer.verify {
        tool.verify = Some(costs(&course.line(verify, Path::new(""), ""), dir.path())?);
    }
    if peer.name == "keyframe" {
        tool.random_us = Some(super::baseline::random_reads(&course.store(), &dir.path().join("key"), "day@day4")?);
    }
    if let (Some(store), [first, second, ..]) = (&peer.store_by_list, images) {
        fs::remove_dir_all(course.store())?;
        let key = dir.path().join("key");
        if key.exists() {
            fs::remove_file(key)?;
        }
        costs(&course.line(&peer.init, Path::new(""), ""), dir.path())?;
        costs(&course.line(&peer.store, first, "day0"), dir.path())?;
        let before = size(&course.store())?;
        warm(second)?;
        let line = course.line(store, second, "day1").replace("{list}", &baseline.list().display().to_string());
        let cost = costs(&line, dir.path())?;
        tool.by_list = Some((cost, size(&course.store())? - before));
    }
    Ok(tool)
}

/// One tool with its own directory.
struct Course<'a> {
    peer: &'a Peer,
    dir: &'a Path,
}

impl Course<'_> {
    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn line(&self, text: &str, image: &Path, tag: &str) -> String {
        text.replace("{dir}", &self.dir.display().to_string())
            .replace("{store}", &self.store().display().to_string())
            .replace("{image}", &image.display().to_string())
            .replace("{tag}", tag)
    }

    /// Restores an image and compares it.
    fn restore(&self, line: &str, image: &Path) -> Result<Cost> {
        let cost = costs(&self.line(line, image, tag(image)?), self.dir)?;
        let same = self.line("cmp {image} $(find {dir}/out -name '*.raw' -o -name image | head -1)", image, "");
        let compared = run::quiet(&mut run::command("sh", ["-c", &same]));
        compared.with_context(|| format!("what {} gave back differs", self.peer.name))?;
        fs::remove_dir_all(self.dir.join("out"))?;
        Ok(cost)
    }
}

fn tag(image: &Path) -> Result<&str> {
    image.file_stem().and_then(|name| name.to_str()).context("an image has a name")
}

/// Reads a file, or all files of a directory, so that it comes from the page cache.
fn warm(path: &Path) -> Result<()> {
    run::quiet(run::command("sh", ["-c", "find \"$1\" -type f -exec cat {} + > /dev/null", "warm"]).arg(path)).map(drop)
}

/// Runs a line of shell and tells what it took. What the last one left to be written is written first.
pub fn costs(line: &str, dir: &Path) -> Result<Cost> {
    run::quiet(&mut run::command("sync", []))?;
    let figures = dir.join("time");
    let mut command = run::command("/usr/bin/time", ["-f", "%e %U %S %M", "-o"]);
    command.arg(&figures).args(["sh", "-c", line]).current_dir(dir);
    run::quiet(&mut command)?;
    let text = fs::read_to_string(&figures)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [seconds, user, system, kib] = numbers.as_slice() else { bail!("time said {text:?}") };
    Ok(Cost { seconds: *seconds, cpu_seconds: user + system, peak_mib: kib / 1024.0 })
}

/// Bytes of all files in a directory.
fn size(dir: &Path) -> Result<u64> {
    let text = run::text(run::command("du", ["-s", "--apparent-size", "--block-size=1"]).arg(dir))?;
    let bytes = text.split_whitespace().next().and_then(|word| word.parse().ok());
    let bytes: u64 = bytes.with_context(|| format!("du said {text:?}"))?;
    ensure!(bytes > 0, "{} is empty", dir.display());
    Ok(bytes)
}
