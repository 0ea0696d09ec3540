//! A month that was made up, with everything in it that can go wrong.

use std::path::Path;

use jiff::SignedDuration;
use keyframe_engine::Home;
use keyframe_engine::evidence::Ledger;

use super::*;
use crate::job::{Action, Duty, Job, Made as JobMade, State};

const POLICIES: &str = r#"
    [policy.prod]
    machines = { names = ["db"] }
    objectives = { rpo = "26h", rto = "10m" }
    [policy.prod.snapshot]
    schedule = "12:00"
    keep = { last = 3 }
    [[policy.prod.backup]]
    name = "away"
    repository = "sftp://backup.example/srv"
    key_file = "/etc/keyframe/key"
    schedule = "03:00"
    keep = { daily = 14 }
    lock_days = 7
    [policy.prod.drill]
    schedule = "weekly"
    what = "point"

    [policy.here]
    machines = { names = ["new"] }
    objectives = { rpo = "1h" }
    [policy.here.snapshot]
    schedule = "hourly"
    keep = { last = 3 }
"#;

fn at(text: &str) -> Timestamp {
    format!("2026-{text}:00Z").parse().unwrap()
}

fn later(at: Timestamp, minutes: i64) -> Timestamp {
    at + SignedDuration::from_mins(minutes)
}

fn october() -> Period {
    Period { from: at("10-01T00:00"), to: at("11-01T00:00"), time_zone: TimeZone::UTC }
}

fn owed(machine: &str) -> Option<Owed> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), POLICIES).unwrap();
    let loaded = keyframe_policy::load(&[dir.path()], at("10-01T00:00"));
    loaded.policies.unwrap_or_else(|| panic!("{:#?}", loaded.mistakes)).for_machine(machine, &[])
}

fn job(machine: &str, duty: Duty, due: Timestamp, minutes: i64, state: State) -> Job {
    let mut job = Job::owed(machine, &"prod".parse().unwrap(), duty, due, 0, due);
    (job.state, job.began, job.ended) = (state, Some(due), Some(later(due, minutes)));
    job
}

fn making(mut job: Job, id: &str, state_of: Timestamp) -> Job {
    job.made = Some(JobMade::new(id.to_owned(), state_of));
    job
}

fn drill(due: Timestamp, id: &str, passed: bool, took_ms: Option<u64>) -> Job {
    let state = if passed { State::Done } else { State::Failed };
    let mut job = making(job("db", Duty::Drill, due, 20, state), id, due);
    (job.refuted, job.what) = (!passed, Some("probe <img src=x onerror=alert(2)> failed".to_owned()));
    job.made.as_mut().unwrap().took_ms = took_ms;
    job
}

fn proof(id: &str, point: &str, at: Timestamp, passed: bool, took_ms: Option<u64>) -> Proof {
    let machine = point.split('@').next().unwrap().to_owned();
    Proof { id: id.to_owned(), machine, point: point.to_owned(), at, passed, took_ms, what: "as it was".to_owned() }
}

const WEB: &str = "web<script>alert(1)</script>";

/// Points each night at 3, but for the 10th and 11th; on the 12th after two more attempts; on the 31st something is missing.
fn catalog(dir: &Path) -> Catalog {
    let (mut catalog, _) = Catalog::open(&dir.join("catalog.db"), at("11-03T00:00")).unwrap();
    let away = || Duty::Backup("away".to_owned());
    let mut jobs = Vec::new();
    let nights = std::iter::successors(Some(at("09-29T03:00")), |night| Some(later(*night, 24 * 60)));
    for night in nights.take_while(|night| *night < at("11-03T00:00")) {
        let day = night.to_string()[5..10].to_owned();
        jobs.push(match day.as_str() {
            "10-10" | "10-11" => {
                let mut job = job("db", away(), night, 360, State::Failed);
                (job.attempt, job.what) = (8, Some("the repository cannot be reached".to_owned()));
                job
            }
            "10-12" => {
                let mut job = making(job("db", away(), night, 120, State::Done), &day, later(night, 110));
                job.attempt = 3;
                job
            }
            "10-31" => {
                let mut job = making(job("db", away(), night, 10, State::Incomplete), &day, night);
                job.what = Some("a sector could not be read".to_owned());
                job
            }
            _ => making(job("db", away(), night, 10, State::Done), &day, night),
        });
    }
    jobs.push(drill(at("10-05T12:00"), "e1", true, Some(240_000)));
    jobs.push(drill(at("10-19T12:00"), "e2", false, None));
    jobs.push(drill(at("10-26T12:00"), "e3", true, Some(700_000)));
    jobs.push(drill(at("11-02T12:00"), "e4", true, Some(300_000)));
    for hour in [at("10-20T12:00"), at("10-20T13:00")] {
        jobs.push(making(job("new", Duty::Snapshot, hour, 1, State::Done), "s", hour));
    }
    jobs.push(job("new", Duty::Snapshot, at("10-20T14:00"), 1, State::Cancelled));
    let action = Action { kind: "backup".to_owned(), arguments: Vec::new(), backup: Some("away".to_owned()) };
    let mut by_hand = Job::asked("old", action, "uid 0", at("10-07T10:00"));
    (by_hand.state, by_hand.ended, by_hand.what) = (State::Failed, Some(at("10-07T10:05")), Some("no".to_owned()));
    jobs.push(by_hand);
    catalog.change(|catalog| jobs.iter().try_for_each(|job| catalog.put(job))).unwrap();
    catalog
}

fn report() -> Report {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path());
    let proofs = [
        proof("e1", "db@10-05", at("10-05T12:20"), true, Some(240_000)),
        proof("e2", "db@10-19", at("10-19T12:20"), false, None),
        proof("e3", "db@10-26", at("10-26T12:20"), true, Some(700_000)),
        // By hand, and before the period.
        proof("h1", "db@10-28", at("10-28T09:00"), true, Some(500_000)),
        proof("h0", "db@09-29", at("09-30T09:00"), true, Some(1000)),
    ];
    let sources = Sources {
        host: "host1",
        machines: ["db", "new", WEB].map(|name| (name.to_owned(), owed(name))).into(),
        catalog: Some(&catalog),
        proofs: &proofs,
        evidence: LogState { entries: 5, head: Some("ab".repeat(32)), flaws: Vec::new() },
        audit: LogState::default(),
        notes: Vec::new(),
    };
    Report::of(sources, october(), at("11-03T00:00")).unwrap()
}

fn machine<'a>(report: &'a Report, name: &str) -> &'a MachineReport {
    report.machines.iter().find(|machine| machine.name == name).unwrap()
}

/// Kind, since when, and when it was settled.
fn told(machine: &MachineReport) -> Vec<(&'static str, Timestamp, Option<Timestamp>)> {
    let told = |one: &Exception| (one.kind.as_str(), one.at, one.settled.as_ref().map(|settled| settled.at));
    machine.exceptions.iter().map(told).collect()
}

#[test]
fn a_months_numbers_are_what_was_made() {
    let report = report();
    let db = machine(&report, "db");
    assert_eq!((db.policy.as_deref(), db.rpo_s, db.rto_s), (Some("prod"), Some(93_600), Some(600)));
    assert_eq!(
        db.points,
        Points {
            made: Made { count: 28, first: Some(at("10-01T03:00")), last: Some(at("10-30T03:00")) },
            incomplete: 1,
            drilled: 3,
            by_backup: [("away".to_owned(), 28)].into(),
        }
    );
    assert_eq!(db.jobs, Jobs { done: 28 + 2, retried: 1, incomplete: 1, failed: 2 + 1, cancelled: 0 });
    // From what the point of the 9th holds until the one of the 12th was complete.
    let gap = Gap { from: at("10-09T03:00"), until: at("10-12T05:00"), seconds: 266_400, ended: true };
    assert_eq!((db.longest_gap, db.saved_by), (Some(gap), "points"));
    assert_eq!((db.rpo_kept(), db.rto_kept()), (Some(false), Some(false)));
    let drills: Vec<_> =
        db.drills.iter().map(|drill| (drill.evidence.as_str(), drill.passed, drill.within_rto, drill.signed)).collect();
    assert_eq!(
        drills,
        [
            ("e1", true, Some(true), true),
            ("e2", false, None, true),
            ("e3", true, Some(false), true),
            ("h1", true, Some(true), true)
        ]
    );
    assert_eq!(
        told(db),
        [
            ("RPO missed", at("10-10T05:00"), Some(at("10-12T05:00"))),
            ("job failed", at("10-10T09:00"), Some(at("10-12T05:00"))),
            ("job failed", at("10-11T09:00"), Some(at("10-12T05:00"))),
            ("job retried", at("10-12T03:00"), Some(at("10-12T05:00"))),
            ("drill failed", at("10-19T12:20"), Some(at("10-26T12:20"))),
            ("RTO missed", at("10-26T12:20"), Some(at("10-28T09:00"))),
            // Settled after the period, and told.
            ("job incomplete", at("10-31T03:10"), Some(at("11-01T03:10"))),
            // What is incomplete saves nothing.
            ("RPO missed", at("10-31T05:00"), Some(at("11-01T03:10"))),
        ]
    );
    assert_eq!(db.exceptions[1].what, "backup away was given up after 8 attempts: the repository cannot be reached");
    assert_eq!(db.exceptions[3].what, "backup away was done at attempt 3, 2 h after it was due");
}

#[test]
fn each_backup_has_a_promise_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path());
    // Each Monday, but for the 19th.
    for day in ["09-28", "10-05", "10-12", "10-26", "11-02"] {
        let due = at(&format!("{day}T05:00"));
        let far = making(job("db", Duty::Backup("far".to_owned()), due, 10, State::Done), day, due);
        catalog.put(&far).unwrap();
    }
    let mut owed = owed("db").unwrap();
    let mut far = owed.backups[0].clone();
    (far.name, far.rpo) = ("far".parse().unwrap(), Some("8d".parse().unwrap()));
    owed.backups.push(far);
    let sources = Sources {
        host: "host1",
        machines: [("db".to_owned(), Some(owed))].into(),
        catalog: Some(&catalog),
        proofs: &[],
        evidence: LogState::default(),
        audit: LogState::default(),
        notes: Vec::new(),
    };
    let report = Report::of(sources, october(), at("11-03T00:00")).unwrap();
    let db = machine(&report, "db");
    let promises: Vec<_> =
        db.promises.iter().map(|one| (one.backup.as_deref(), one.rpo_s, one.longest_gap.unwrap().seconds)).collect();
    let fortnight = 14 * 86_400 + 600;
    assert_eq!(promises, [(Some("away"), Some(93_600), 266_400), (Some("far"), Some(691_200), fortnight)]);
    // The one that is furthest from its promise.
    assert_eq!((db.rpo_s, db.rpo_kept()), (Some(93_600), Some(false)));
    let missed: Vec<&str> = db
        .exceptions
        .iter()
        .filter(|one| one.kind == ExceptionKind::RpoMissed && one.what.contains("far"))
        .map(|one| one.what.as_str())
        .collect();
    assert_eq!(missed, ["nothing newer was saved by backup far for 14 d, and 8 d are promised"]);
    assert!(html::page(&report, "").contains("by backup far, from 2026-10-12 05:00 until 2026-10-26 05:10"));
}

#[test]
fn what_is_open_is_open() {
    let report = report();
    let new = machine(&report, "new");
    // Measured from its first job on, not from the period's beginning.
    let gap = Gap { from: at("10-20T13:00"), until: at("11-01T00:00"), seconds: 990_000, ended: false };
    assert_eq!((new.longest_gap, new.saved_by, new.snapshots.count), (Some(gap), "snapshots", 2));
    // An hour and a minute: the second snapshot was complete a minute after its hour.
    let missed = [("RPO missed", at("10-20T13:00"), Some(at("10-20T13:01"))), ("RPO missed", at("10-20T14:00"), None)];
    assert_eq!(told(new), missed);
    assert_eq!((new.jobs.cancelled, new.rto_kept()), (1, None));
    assert_eq!(told(machine(&report, WEB)), [("no policy", at("11-01T00:00"), None)]);
    let old = machine(&report, "old");
    assert!(!old.present && old.policy.is_none());
    assert_eq!(told(old), [("job failed", at("10-07T10:05"), None)]);
    let totals = &report.totals;
    assert_eq!((totals.machines, totals.with_policy, totals.without_policy, totals.gone), (4, 2, 1, 1));
    assert_eq!((totals.points, totals.points_incomplete, totals.points_drilled, totals.snapshots), (28, 1, 3, 2));
    assert_eq!((totals.drills_passed, totals.drills_failed), (3, 1));
    assert_eq!((totals.exceptions, totals.exceptions_open), (12, 3));
    assert_eq!(totals.rpo, Kept { kept: 0, missed: 2, not_measured: 0, not_promised: 2 });
    assert_eq!(totals.rto, Kept { kept: 0, missed: 1, not_measured: 0, not_promised: 3 });
    let kinds: Vec<_> = totals.by_kind.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(
        kinds,
        [
            ("no policy", 1),
            ("RPO missed", 4),
            ("RTO missed", 1),
            ("drill failed", 1),
            ("job failed", 3),
            ("job incomplete", 1),
            ("job retried", 1)
        ]
    );
}

#[test]
fn a_machine_of_which_nothing_was_saved_is_no_kept_promise() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = Catalog::open(&dir.path().join("catalog.db"), at("11-03T00:00")).unwrap();
    let failed = job("db", Duty::Backup("away".to_owned()), at("09-20T03:00"), 10, State::Failed);
    catalog.put(&failed).unwrap();
    let sources = Sources {
        host: "host1",
        machines: [("db".to_owned(), owed("db"))].into(),
        catalog: Some(&catalog),
        proofs: &[],
        evidence: LogState::default(),
        audit: LogState::default(),
        notes: Vec::new(),
    };
    let report = Report::of(sources, october(), at("10-11T00:00")).unwrap();
    let db = &report.machines[0];
    let gap = Gap { from: at("10-01T00:00"), until: at("10-11T00:00"), seconds: 864_000, ended: false };
    assert_eq!((db.longest_gap, db.rpo_kept(), db.rto_kept()), (Some(gap), Some(false), None));
    assert_eq!(told(db), [("RPO missed", at("10-02T02:00"), None)]);
    assert_eq!(report.totals.rto.not_measured, 1);
    assert!(report.notes.iter().any(|note| note.contains("The period is not over")), "{:?}", report.notes);
}

#[test]
fn where_snapshots_are_forgotten_their_absence_is_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(dir.path());
    let of = |now: Timestamp| {
        let sources = Sources {
            host: "host1",
            machines: [("new".to_owned(), owed("new"))].into(),
            catalog: Some(&catalog),
            proofs: &[],
            evidence: LogState::default(),
            audit: LogState::default(),
            notes: Vec::new(),
        };
        Report::of(sources, october(), now).unwrap()
    };
    let told = |report: &Report| report.notes.iter().any(|note| note.contains("are remembered for 30 days"));
    // Those before the 26th of October are not remembered any more.
    let late = of(at("11-25T00:00"));
    let gap = machine(&late, "new").longest_gap.unwrap();
    assert_eq!((gap.from, told(&late)), (at("10-20T13:00"), true));
    let later = of(at("12-10T00:00"));
    assert_eq!((machine(&later, "new").longest_gap, told(&later)), (None, true));
    assert!(!told(&of(at("10-30T00:00"))));
}

#[test]
fn without_any_job_nothing_is_measured_and_that_is_said() {
    let sources = Sources {
        host: "host1",
        machines: [("db".to_owned(), owed("db"))].into(),
        catalog: None,
        proofs: &[],
        evidence: LogState::default(),
        audit: LogState::default(),
        notes: Vec::new(),
    };
    let report = Report::of(sources, october(), at("11-03T00:00")).unwrap();
    assert_eq!((report.machines[0].longest_gap, report.totals.rpo.not_measured), (None, 1));
    assert!(report.notes[0].starts_with("No job is remembered here"), "{:?}", report.notes);
    assert!(html::page(&report, "").contains("not measured"));
}

#[test]
fn the_page_is_whole_and_takes_nothing_for_markup() {
    let report = report();
    let page = html::page(&report, &"cd".repeat(32));
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    assert!(page.contains("web&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("probe &lt;img src=x onerror=alert(2)&gt; failed"));
    for asset in ["src=\"", "href=", "url(", "http:", "https:", "@import"] {
        assert!(!page.contains(asset), "{asset}");
    }
    assert!(page.contains("@media print") && page.contains(&"cd".repeat(32)));
    assert!(page.contains(
        "28, from 2026-10-01 03:00 to 2026-10-30 03:00 (away 28); besides them 1 incomplete; 3 brought back by a drill"
    ));
    assert!(page.contains("<b class=\"bad\">missed</b> 3 d of 26 h"));
    let clauses: Vec<&str> = report.mapping.iter().map(|one| one.clause).collect();
    assert_eq!(
        clauses,
        ["A1.2", "A1.3", "CC7.5", "A.8.13", "A.8.15", "A.5.30", "Art. 21(2)(c)", "Art. 11(6)", "Art. 12"]
    );
    for one in &report.mapping {
        assert!(page.contains(&format!("<b>{}</b>", one.clause)), "{}", one.clause);
        assert!(!one.facts.is_empty() && !one.not_measured.is_empty(), "{}", one.clause);
    }
    assert!(page.contains("This is no certification and claims no more than was measured"));
    assert!(page.contains(
        "<li>3 drills passed and 1 failed; 3 of the points made were brought back by a drill that passed</li>"
    ));
}

#[test]
fn a_document_that_was_changed_is_not_what_was_signed() {
    let root = tempfile::tempdir().unwrap();
    let ledger = Ledger::of(&Home::open(&root.path().join("home")).unwrap());
    let dir = root.path().join("out");
    let written = files::write(&report(), &ledger, &dir).unwrap();
    assert_eq!(files::verify(&dir, None).unwrap(), written.public_key);
    assert_eq!(files::verify(&dir, Some(&written.public_key)).unwrap(), written.public_key);
    assert!(files::verify(&dir, Some(&"07".repeat(32))).is_err(), "another's key");
    let text = std::fs::read_to_string(&written.document).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["schema"], SCHEMA);
    for (from, to) in [("\"drills_failed\": 1", "\"drills_failed\": 0"), ("\n}\n", "\n} \n")] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&written.document, text.replacen(from, to, 1)).unwrap();
        assert!(files::verify(&dir, None).is_err(), "{from}");
    }
    // Signed anew by whoever changed it: a copy of the key, kept elsewhere, tells.
    let stranger = Ledger::of(&Home::open(&root.path().join("stranger")).unwrap());
    files::write(&report(), &stranger, &dir).unwrap();
    assert!(files::verify(&dir, None).is_ok() && files::verify(&dir, Some(&written.public_key)).is_err());
}
