//! The daemon's own scheduler and catalog, on a simulated fleet: `crates/daemon/examples/simulate.rs`.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bench::table::Row;
use crate::{paths, run};

/// Plays it.
///
/// # Errors
/// When it cannot be built, or breaks.
pub fn measure(machines: u32, days: u32) -> Result<(Vec<Row>, Value)> {
    let build = ["build", "--release", "--package", "keyframe-daemon", "--example", "simulate"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    let program = paths::target().join("release/examples/simulate");
    let words = [machines.to_string(), days.to_string()];
    let said = run::text(std::process::Command::new(&program).args(&words))?;
    let figures: Value = serde_json::from_str(&said).context("the simulation tells no JSON")?;
    Ok((rows(&figures), figures))
}

fn rows(figures: &Value) -> Vec<Row> {
    let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    let name = |what: &str| format!("{} machines over {} simulated days: {what}", figures["machines"], figures["days"]);
    let share = |made: &str, owed: &str| number(made) / number(owed);
    let memory: Vec<f64> = figures["resident_mib"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let flat = memory.first().zip(memory.last()).map(|(first, last)| *last <= first * 1.2 + 16.0);
    vec![
        Row::judged(
            name("wall time"),
            "minutes",
            format!("{:.0} s", number("wall_s")),
            Some(number("wall_s") < 1800.0),
        ),
        Row::told(name("commands run"), format!("{}", figures["commands"])),
        Row::told(
            name("scheduler and catalog"),
            format!("{:.0} us of CPU per machine and day", number("cpu_us_per_machine_day")),
        ),
        Row::judged(
            name("promises missed"),
            "0",
            format!("{} of {} jobs; {} given up", figures["missed"], figures["jobs"], figures["failed"]),
            Some(number("missed") == 0.0),
        ),
        Row::judged(
            name("snapshots"),
            "all that are owed",
            format!("{} of {}", figures["snapshots"], figures["snapshots_owed"]),
            Some(share("snapshots", "snapshots_owed") >= 0.9999),
        ),
        Row::judged(
            name("points"),
            "all that are owed",
            format!("{} of {}", figures["points"], figures["points_owed"]),
            Some(share("points", "points_owed") >= 0.999),
        ),
        Row::judged(
            name("memory after a month, and at the end"),
            "flat",
            memory
                .first()
                .zip(memory.last())
                .map_or_else(String::new, |(first, last)| format!("{first} MiB, {last} MiB")),
            flat,
        ),
    ]
}
