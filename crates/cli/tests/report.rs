//! `keyframe report` as a person types it, over a catalog that was made up. No daemon runs.

mod bench;

use std::fs;

use bench::Bench;
use jiff::{SignedDuration, Timestamp};
use keyframe_daemon::catalog::Catalog;
use keyframe_daemon::job::{Duty, Job, Made, State};

const POLICY: &str = "[host]\ntime_zone = \"Europe/Berlin\"\n[policy.prod]\nmachines = { names = [\"db\"] }\nobjectives = { rpo = \"26h\" }\n\
    [[policy.prod.backup]]\nname = \"away\"\nrepository = \"/srv/backup\"\nschedule = \"03:00\"\nkeep = { daily = 14 }\n";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A home with two machines, and points of one of them around midnight in Berlin on the 1st and on the 4th of October.
fn home() -> Bench {
    let mut bench = Bench::bare();
    for name in ["db", "web"] {
        let dir = bench.path("machines/vms").join(name);
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "schema = \"keyframe.machine/1\"\nname = \"{name}\"\nuuid = \"0\"\nmemory_mib = 64\ncpus = 1\n\
             machine_type = \"pc-q35-10.0\"\n"
        );
        fs::write(dir.join("machine.toml"), text).unwrap();
    }
    for dir in ["machines/policies", "machines/serve"] {
        fs::create_dir_all(bench.path(dir)).unwrap();
    }
    fs::write(bench.path("machines/policies/a.toml"), POLICY).unwrap();
    let now = at("2026-10-05T00:00:00Z");
    let (catalog, _) = Catalog::open(&bench.path("machines/serve/catalog.db"), now).unwrap();
    let times = [
        "2026-09-30T21:50:00Z",
        "2026-09-30T22:10:00Z",
        "2026-10-01T21:00:00Z",
        "2026-10-03T21:50:00Z",
        "2026-10-03T22:10:00Z",
    ];
    for time in times.map(at) {
        let mut job = Job::owed("db", &"prod".parse().unwrap(), Duty::Backup("away".to_owned()), time, 0, time);
        job.state = State::Done;
        job.ended = Some(time + SignedDuration::from_secs(60));
        job.made = Some(Made::new("p".to_owned(), time));
        catalog.put(&job).unwrap();
    }
    bench.set("KEYFRAME_HOME", &bench.path("machines").display().to_string());
    bench
}

const OCTOBER: [&str; 5] = ["report", "--from", "2026-10-01", "--to", "2026-10-03"];

#[test]
fn days_are_whole_and_those_of_the_policies_zone() {
    let bench = home();
    let report = bench.run(&[&["--json"], &OCTOBER[..]].concat()).with(0).json();
    assert_eq!(report["schema"], "keyframe.report/1");
    let period = &report["period"];
    assert_eq!((&period["from"], &period["to"]), (&"2026-09-30T22:00:00Z".into(), &"2026-10-03T22:00:00Z".into()));
    assert_eq!((&report["totals"]["points"], &report["totals"]["without_policy"]), (&3.into(), &1.into()));
    let db = &report["machines"][0];
    assert_eq!((&db["name"], &db["policy"], &db["rpo_s"]), (&"db".into(), &"prod".into(), &93_600.into()));
    // From the point of the 1st at 23:00 until the one of the 3rd at 23:50 was complete, a minute after.
    assert_eq!(
        (&db["longest_gap"]["seconds"], &db["exceptions"][0]["kind"]),
        (&(48 * 3600 + 51 * 60).into(), &"rpo-missed".into())
    );
    assert_eq!(db["exceptions"][0]["settled"]["at"], "2026-10-03T21:51:00Z");
    // Scripts get the document alone.
    assert!(!bench.path("keyframe-report-2026-10-01-2026-10-03").exists());
}

#[test]
fn what_is_written_is_signed_and_a_change_is_seen() {
    let bench = home();
    let told = bench.run(&OCTOBER).with(0).out;
    assert!(
        told.contains("2 machines, 1 of them without a policy\n3 points, 0 besides them incomplete; 0 snapshots\n"),
        "{told}"
    );
    let dir = "keyframe-report-2026-10-01-2026-10-03";
    let key = fs::read_to_string(bench.path("machines/evidence/signing.pub")).unwrap();
    assert!(told.contains(&format!("signature: {dir}/report.json.sig, by key {key}")), "{told}");
    let page = fs::read_to_string(bench.path(dir).join("report.html")).unwrap();
    assert!(
        page.contains("from <b>2026-10-01 00:00</b> until <b>2026-10-04 00:00</b>") && page.contains("Europe/Berlin")
    );
    bench.run(&["report", "--verify", dir]).with(0);
    bench.run(&["report", "--verify", dir, "--public-key", key.trim()]).with(0);
    bench.run(&["report", "--verify", dir, "--public-key", &"0".repeat(64)]).with(1);
    let document = bench.path(dir).join("report.json");
    let text = fs::read_to_string(&document).unwrap();
    fs::write(&document, text.replacen("\"points\": 3", "\"points\": 4", 1)).unwrap();
    let refused = bench.run(&["--json", "report", "--verify", dir]).with(1).json();
    assert_eq!((&refused["schema"], &refused["sound"]), (&"keyframe.report-verified/1".into(), &false.into()));
}

#[test]
fn what_cannot_be_told_is_refused() {
    let mut bench = home();
    bench.run(&["report", "--from", "2026-10-03", "--to", "2026-10-01"]).with(2);
    bench.run(&["report", "--from", "2199-10-03", "--to", "2199-10-04"]).with(2);
    bench.run(&["report", "--from", "2026-10-03"]).with(2);
    fs::write(bench.path("machines/policies/b.toml"), "[policy.x]\n").unwrap();
    let refused = bench.run(&OCTOBER).with(2);
    assert!(refused.err.contains("policy check"), "{}", refused.err);
    bench.set("KEYFRAME_HOME", &bench.path("nowhere").display().to_string());
    bench.run(&OCTOBER).with(2);
    assert!(!bench.path("nowhere").exists());
}
