//! `cargo xtask bench repo`: storing the images of `bench-images` beside other stores, in one run on one machine.
//!
//! Each tool stores the days in their order and then the memory images, encrypted, then restores the last day and verifies
//! everything. Before each store the image is read once, so that it comes from the page cache. Times, CPU seconds and
//! memory are those of GNU time.

mod peers;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use self::peers::{Peer, peers};
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
    /// Where the stores go; a directory in it is made and removed.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Write the figures here, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a command took.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    cpu_seconds: f64,
    peak_mib: f64,
}

struct Row {
    name: &'static str,
    stores: Vec<(String, Cost, u64)>,
    restore: Option<Cost>,
    verify: Option<Cost>,
}

/// Measures.
///
/// # Errors
/// When there are no images, or a tool that is installed fails.
pub fn run(options: &Options) -> Result<()> {
    run::quiet(&mut run::command("/usr/bin/time", ["--version"])).context("GNU time is needed (Debian: time)")?;
    let images = images(&fs::canonicalize(&options.images).context("there is no directory of images")?)?;
    let wanted = |name: &str| options.tools.is_empty() || options.tools.iter().any(|tool| tool == name);
    if wanted("keyframe") {
        say::step("Building keyframe");
        let build = ["build", "--release", "--quiet", "-p", "keyframe-cli"];
        run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    }
    let scratch = options.scratch.clone().unwrap_or_else(paths::target);
    let mut rows = Vec::new();
    for peer in peers(&paths::target().join("release/keyframe")) {
        if !wanted(peer.name) {
            continue;
        }
        if run::quiet(&mut run::command("sh", ["-c", &format!("command -v {}", peer.program)])).is_err() {
            say::note(format_args!("{} is not installed", peer.name));
            continue;
        }
        say::step(format_args!("Measuring {}", peer.name));
        rows.push(measure(&peer, &images, &scratch)?);
    }
    println!("{}", table(&rows));
    if let Some(file) = &options.json {
        fs::write(file, format!("{:#}\n", document(&rows)))?;
    }
    Ok(())
}

fn images(dir: &Path) -> Result<Vec<PathBuf>> {
    let days = (0..crate::images::DAYS).map(|n| format!("day{n}.raw"));
    let images: Vec<PathBuf> = days.chain((0..3).map(|n| format!("mem{n}.raw"))).map(|name| dir.join(name)).collect();
    match images.iter().find(|image| !image.exists()) {
        Some(missing) => bail!("{} is missing: `cargo xtask bench-images --dir …` makes it", missing.display()),
        None => Ok(images),
    }
}

fn measure(peer: &Peer, images: &[PathBuf], scratch: &Path) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("bench-repo-").tempdir_in(scratch)?;
    let store = dir.path().join("store");
    let fill = |text: &str, image: &Path, tag: &str| {
        text.replace("{dir}", &dir.path().display().to_string())
            .replace("{store}", &store.display().to_string())
            .replace("{image}", &image.display().to_string())
            .replace("{tag}", tag)
    };
    let nothing = Path::new("");
    costs(&fill(&peer.init, nothing, ""), dir.path())?;
    let mut row = Row { name: peer.name, stores: Vec::new(), restore: None, verify: None };
    for image in images {
        let tag = image.file_stem().and_then(|name| name.to_str()).context("an image has a name")?;
        run::quiet(
            run::command("dd", ["of=/dev/null", "bs=1M", "status=none"]).arg(format!("if={}", image.display())),
        )?;
        let cost = costs(&fill(&peer.store, image, tag), dir.path())?;
        say::note(format_args!(
            "{tag}: {:.1} s, {:.1} CPU s, {:.0} MiB",
            cost.seconds, cost.cpu_seconds, cost.peak_mib
        ));
        row.stores.push((tag.to_owned(), cost, size(&store)?));
    }
    let last = images.iter().rfind(|image| image.to_string_lossy().contains("day")).context("there are days")?;
    if let Some(restore) = &peer.restore {
        row.restore = Some(costs(&fill(restore, last, "day4"), dir.path())?);
        let same = fill("cmp {image} $(find {dir}/out -name '*.raw' -o -name image | head -1)", last, "");
        run::quiet(&mut run::command("sh", ["-c", &same])).context("what came back differs")?;
        fs::remove_dir_all(dir.path().join("out"))?;
    }
    if let Some(verify) = &peer.verify {
        row.verify = Some(costs(&fill(verify, nothing, ""), dir.path())?);
    }
    Ok(row)
}

/// Runs a line of shell and tells what it took.
fn costs(line: &str, dir: &Path) -> Result<Cost> {
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

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| tool | full | next day (each) | memory (each) | stored, MB | restore | verify | CPU s | peak MiB |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let each = |part: &[(String, Cost, u64)]| {
            let words: Vec<_> = part.iter().map(|(_, cost, _)| format!("{:.1}", cost.seconds)).collect();
            words.join(", ")
        };
        let (days, memory) = row.stores.split_at(row.stores.len().min(crate::images::DAYS as usize));
        let (full, next) = days.split_at(days.len().min(1));
        let all = row.stores.iter().map(|(_, cost, _)| *cost).chain(row.restore).chain(row.verify);
        let cpu: f64 = all.clone().map(|cost| cost.cpu_seconds).sum();
        let peak = all.map(|cost| cost.peak_mib).fold(0.0, f64::max);
        let stored: Vec<_> = [full.last(), row.stores.last()]
            .into_iter()
            .flatten()
            .map(|(_, _, bytes)| (bytes / 1_000_000).to_string())
            .collect();
        let time = |cost: Option<Cost>| cost.map_or_else(|| "-".to_owned(), |cost| format!("{:.1}", cost.seconds));
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {cpu:.0} | {peak:.0} |\n",
            row.name,
            each(full),
            each(next),
            each(memory),
            stored.join(" / "),
            time(row.restore),
            time(row.verify)
        ));
    }
    text
}

fn document(rows: &[Row]) -> serde_json::Value {
    let cost =
        |cost: &Cost| json!({"seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds, "peak_mib": cost.peak_mib});
    let row = |row: &Row| {
        let stores: Vec<_> = row
            .stores
            .iter()
            .map(|(tag, took, bytes)| json!({"image": tag, "cost": cost(took), "store_bytes": bytes}))
            .collect();
        json!({
            "tool": row.name,
            "stores": stores,
            "restore": row.restore.as_ref().map(cost),
            "verify": row.verify.as_ref().map(cost),
        })
    };
    json!({"schema": "keyframe.bench-repo/1", "tools": rows.iter().map(row).collect::<Vec<_>>()})
}
