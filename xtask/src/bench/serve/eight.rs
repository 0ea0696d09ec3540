//! Eight guests at once on a one-minute policy.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Daemon, Home, Machine, MachineSpec, Repository};
use serde_json::{Value, json};

use crate::bench::table::Row;
use crate::guests::{self, Guest};
use crate::say;

const GUESTS: u32 = 8;
const FOR: Duration = Duration::from_secs(240);
/// What they do: each says something every 20 ms, and writes a little.
const WORDS: &str = "checker.mb=32 checker.rate=2 checker.diskrate=10";

/// Lets them work, and looks at what came of it.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home) -> Result<(Vec<Row>, Value)> {
    let dir = guests::ensure(Guest::Small, false)?;
    let guest = SmallGuest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") };
    let mut machines = Vec::new();
    for number in 0..GUESTS {
        let disk = home.empty_disk(&format!("guest{number}.qcow2"), "256M")?;
        let spec = MachineSpec::small(&guest, "128M", WORDS).disk(&disk).option("--tag", "eight");
        machines.push(Machine::start(home, &format!("guest{number}"), &spec)?);
    }
    for machine in &machines {
        machine.wait_until_checking()?;
    }
    let repository = Repository::init(home)?;
    let policy = format!(
        "[host]\njobs = 2\njobs_per_disk = 2\n[policy.eight]\nmachines = {{ tags = [\"eight\"] }}\n[policy.eight.snapshot]\nschedule = \"minutely\"\n\
         keep = {{ last = 2 }}\n[[policy.eight.backup]]\nname = \"local\"\nrepository = \"{}\"\nkey_file = \"{}\"\nschedule = \"*:0/2\"\nkeep = {{ last = 2 }}\n",
        repository.path().display(),
        repository.path().with_file_name("key").display(),
    );
    fs::create_dir_all(home.path().join("policies"))?;
    fs::write(home.path().join("policies/eight.toml"), policy)?;
    let daemon = Daemon::start(home, &[])?;
    say::note(format_args!("{} s with all of them", FOR.as_secs()));
    std::thread::sleep(FOR);
    let jobs = daemon.get("/api/v1/jobs?limit=1000")?.json();
    let jobs = jobs["jobs"].as_array().cloned().unwrap_or_default();
    // Commands at work outlive it, and hold its standard error for as long: that is no trouble here.
    let _ = daemon.kill();
    let count =
        |kind: &str, state: &str| jobs.iter().filter(|job| job["kind"] == kind && job["state"] == state).count();
    let failed = jobs.iter().filter(|job| job["state"] == "failed" || job["attempt"].as_u64() > Some(1)).count();
    let mut intact = 0;
    for machine in &machines {
        intact += u32::from(machine.assert_intact(Mark::START).is_ok());
    }
    let (snapshots, points) = (count("snapshot", "done"), count("backup", "done"));
    let owed = GUESTS as usize * (FOR.as_secs() / 60) as usize;
    let name = |what: &str| format!("{GUESTS} guests at once for {} s: {what}", FOR.as_secs());
    let rows = vec![
        Row::judged(
            name("snapshots"),
            format!(">= {owed}, one a minute"),
            snapshots.to_string(),
            Some(snapshots >= owed),
        ),
        Row::told(name("points"), points.to_string()),
        Row::judged(name("jobs that failed or were tried again"), "0", failed.to_string(), Some(failed == 0)),
        Row::judged(name("guests intact"), GUESTS.to_string(), intact.to_string(), Some(intact == GUESTS)),
    ];
    Ok((rows, json!({"snapshots": snapshots, "owed": owed, "points": points, "failed": failed, "intact": intact})))
}
