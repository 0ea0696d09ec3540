//! What the page asks for, of a home with many machines.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use keyframe_acceptance::{Daemon, Home};
use serde_json::{Value, json};

use crate::bench::samples::Samples;
use crate::bench::table::Row;
use crate::say;

const POLICY: &str = "[policy.far]\nmachines = { names = [\"*\"] }\n[policy.far.snapshot]\nschedule = \"yearly\"\nkeep = { last = 1 }\n\
    [policy.far.windows]\nallowed = [\"Sun 03:00-03:01\"]\napplies_to = [\"snapshot\"]\n";
const ROUNDS: u32 = 20;
/// How long the daemon may take to look at all machines for the first time.
const SEEN_WITHIN: Duration = Duration::from_secs(120);

/// Makes the machines, and asks.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, machines: u32) -> Result<(Vec<Row>, Value)> {
    say::note(format_args!("making {machines} machines"));
    for number in 0..machines {
        let disk = home.empty_disk(&format!("disk{number}.qcow2"), "64M")?;
        let words =
            ["vm", "create", &format!("vm{number:03}"), "--memory", "64M", "--disk", &disk.display().to_string()];
        home.run(words)?.succeeded()?;
    }
    fs::create_dir_all(home.path().join("policies"))?;
    fs::write(home.path().join("policies/far.toml"), POLICY)?;
    let begun = Instant::now();
    let daemon = Daemon::start(home, &[])?;
    let all = |shown: &Value| shown["counts"]["machines"] == machines;
    ensure!(all(&daemon.wait_for("/api/v1/overview", SEEN_WITHIN, all)?), "not all machines are seen");
    let started = begun.elapsed();
    let timed = |path: &str| -> Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let answer = daemon.get(path)?;
            samples.push(begun.elapsed());
            ensure!(answer.status == 200, "{path}: {}", answer.status);
        }
        Ok(samples)
    };
    let (page, overview, listing) = (timed("/")?, timed("/api/v1/overview")?, timed("/api/v1/machines")?);
    let figures = json!({"started_ms": started.as_millis(), "page": page.to_json(), "overview": overview.to_json(), "listing": listing.to_json()});
    daemon.kill()?;
    let name = |what: &str| format!("{machines} machines: {what}");
    let first = page.median().zip(overview.median()).map(|(page, overview)| page + overview);
    let rows = vec![
        Row::told(name("from the daemon's start until all are seen"), format!("{} ms", started.as_millis())),
        Row::judged(
            name("page and overview, what the first view waits for"),
            "<= 200 ms with drawing",
            format!("{page} and {overview}"),
            first.map(|ms| ms <= 200.0),
        ),
        Row::judged(name("listing"), "<= 100 ms", listing.to_string(), listing.median().map(|ms| ms <= 100.0)),
    ];
    Ok((rows, figures))
}
