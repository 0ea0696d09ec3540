//! A year of a simulated fleet, through the daemon's own scheduler and catalog: what it takes, and whether a promise is missed. Writes
//! one JSON document. `cargo xtask bench serve` runs it.

#[path = "../tests/world/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod world;

use std::time::{Duration, Instant};

use keyframe_daemon::job::State;
use keyframe_daemon::service::{REMEMBERED_FOR, ROUTINE_FOR};
use serde_json::json;
use world::{Faults, Host, place, play_in_steps, policies};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The simulated daemon looks each ten seconds: the real one four times a second, which finds nothing most of the time.
const STEP: Duration = Duration::from_secs(10);

const POLICIES: &str = r#"
    [host]
    jobs = 64
    jobs_per_disk = 8
    time_zone = "Europe/Berlin"

    [policy.standard]
    machines = { names = ["*"] }

    [policy.standard.snapshot]
    schedule = "hourly"
    jitter = "30m"
    keep = { hourly = 24, daily = 7 }

    [[policy.standard.backup]]
    name = "away"
    repository = "/srv/backup"
    schedule = "daily"
    jitter = "20h"
    keep = { last = 30 }

    [policy.standard.drill]
    schedule = "monthly"
    jitter = "6d"
    what = "point"
"#;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u32>().expect("MACHINES DAYS"));
    let (machines, days) = (arguments.next().unwrap_or(500), arguments.next().unwrap_or(365));
    let dir = place();
    let path = dir.path().join("catalog.db");
    let begin = "2027-01-01T00:00:00Z".parse().expect("a time");
    let host = Host::new(
        machines as usize,
        1,
        begin,
        Faults { fails: 500, killed_before: 2000, killed_after: 2000, daemon_dies: 50_000 },
    );
    host.0.borrow_mut().keep_history = false;
    let policies = policies(POLICIES);
    let (mut daemon, begun) = (None, Instant::now());
    let mut memory = Vec::new();
    for day in 0..days {
        play_in_steps(&host, &mut daemon, &path, &policies, DAY, STEP);
        let now = host.now();
        let before = |span: Duration| now.checked_sub(span).expect("a time");
        let catalog = daemon.as_ref().map(|daemon: &world::Simulated| daemon.catalog());
        catalog.map(|catalog| {
            catalog.forget(before(REMEMBERED_FOR), before(ROUTINE_FOR)).expect("old jobs are forgotten")
        });
        if day % 30 == 29 {
            memory.push(resident_mib());
        }
    }
    let wall = begun.elapsed().as_secs_f64();
    let open = daemon.map_or(0, |daemon| daemon.jobs().filter(|job| job.state == State::Waiting).count());
    let world = host.0.borrow();
    let count = |what| world.counts.get(what).copied().unwrap_or(0);
    let used_us = cpu_us();
    println!(
        "{}",
        json!({
            "machines": machines, "days": days, "wall_s": wall, "cpu_us_per_machine_day": used_us / f64::from(machines) / f64::from(days),
            "commands": world.commands, "jobs": count("jobs"), "snapshots": count("snapshots"), "points": count("points"),
            "drills": world.drills, "missed": count("missed"), "failed": count("failed"), "waiting_at_the_end": open,
            "snapshots_owed": u64::from(machines) * u64::from(days) * 24, "points_owed": u64::from(machines) * u64::from(days),
            "resident_mib": memory, "two_on_one_machine": world.two_on_one, "most_at_once": world.most_at_once,
        })
    );
}

/// What this process has used of processors, in microseconds: user and system time of `/proc/self/stat`, in ticks of 10 ms.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) * 10_000.0
}

/// What it has in memory, without what its catalog keeps on a file system in memory.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}
