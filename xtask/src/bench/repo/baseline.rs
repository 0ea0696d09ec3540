//! The bare loop: what any store has to do at the least, measured by the same clock.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{paths, run, say};

/// What the bare loop took.
#[derive(Debug)]
pub struct Baseline {
    scratch: tempfile::TempDir,
    /// Seconds for each image, in the order in which they are stored.
    pub images: Vec<f64>,
    /// Reading, hashing and compressing just what changed on day 1: seconds, bytes read, bytes compressed.
    pub changes: (f64, u64, u64),
}

impl Baseline {
    /// Runs it.
    pub fn measure(images: &[PathBuf], scratch: &Path) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("bench-repo-").tempdir_in(scratch)?;
        let out = scratch.path().join("out");
        for image in images {
            run::quiet(run::command("dd", ["of=/dev/null", "bs=1M"]).arg(format!("if={}", image.display())))?;
        }
        let text = run::text(bare_loop().arg("images").arg(&out).args(images))?;
        let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<serde_json::Result<_>>()?;
        let seconds: Option<Vec<f64>> = lines.iter().map(|line| line["seconds"].as_f64()).collect();
        let [first, second, ..] = images else { anyhow::bail!("there are days") };
        let list = run::text(bare_loop().arg("changes").arg(first).arg(second))?;
        std::fs::write(scratch.path().join("list"), list)?;
        let measured = run::text(bare_loop().arg("extents").arg(&out).arg(second).arg(scratch.path().join("list")))?;
        let measured: Value = serde_json::from_str(&measured)?;
        std::fs::remove_file(&out)?;
        let number = |name: &str| measured[name].as_u64().with_context(|| format!("no {name} in {measured}"));
        let took = measured["seconds"].as_f64().context("no seconds")?;
        let baseline = Self {
            images: seconds.context("the bare loop tells seconds")?,
            changes: (took, number("read")?, number("stored")?),
            scratch,
        };
        say::note(format_args!("{:.1?} s; by the list of changes {took:.1} s", baseline.images));
        Ok(baseline)
    }

    /// The list of what changed from day 0 to day 1.
    pub fn list(&self) -> PathBuf {
        self.scratch.path().join("list")
    }

    pub fn document(&self) -> Value {
        let (seconds, read, stored) = self.changes;
        json!({"images": self.images, "changes": {"seconds": seconds, "read_bytes": read, "stored_bytes": stored}})
    }
}

/// Median and the 99th of 100 of reads of 4 KiB at random places that hold data, in microseconds.
pub fn random_reads(store: &Path, key: &Path, point: &str) -> Result<(f64, f64)> {
    let text = run::text(bare_loop().arg("random").arg(store).arg(key).args([point, "2000"]))?;
    let told: Value = serde_json::from_str(&text)?;
    let number = |name: &str| told[name].as_f64().with_context(|| format!("no {name} in {told}"));
    Ok((number("median_us")?, number("p99_us")?))
}

fn bare_loop() -> std::process::Command {
    std::process::Command::new(paths::target().join("release/examples/bare_loop"))
}
