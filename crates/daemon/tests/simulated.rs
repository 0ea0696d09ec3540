//! Days of a simulated host, seeded: whatever fails, dies or is set wrong, what is owed is done, once.

#[allow(dead_code, reason = "each test program uses a part of the world")]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_daemon::alerts::Trouble;
use keyframe_daemon::catalog::{Catalog, Found};
use keyframe_daemon::job::Action;
use keyframe_daemon::scheduler::{Remembered, Scheduler};
use keyframe_daemon::verdict::{self, Row};
use world::{DAY, Faults, HOUR, Host, POLICIES, begin, place, play, policies, started};

/// How often each name was made: more than once is once too often.
fn made_twice(host: &Host) -> Vec<String> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (machine, name, _) in &host.0.borrow().made {
        *counts.entry((machine.clone(), name.clone())).or_default() += 1;
    }
    counts.into_iter().filter(|(_, count)| *count > 1).map(|((machine, name), _)| format!("{machine} {name}")).collect()
}

/// The hours of a machine in which no snapshot was made.
fn hours_without(host: &Host, machine: &str, hours: u64) -> Vec<u64> {
    let hour = |at: Timestamp| u64::try_from(at.duration_since(begin()).as_secs().max(0) / 3600).unwrap();
    let world = host.0.borrow();
    let made = world.made.iter().filter(|(of, name, _)| of == machine && name.starts_with("auto-"));
    let seen: BTreeSet<u64> = made.map(|(_, _, at)| hour(*at)).collect();
    (0..hours).filter(|hour| !seen.contains(hour)).collect()
}

#[test]
fn nothing_is_missed_and_no_more_is_kept_than_should_be() {
    let dir = place();
    let (host, policies) = (Host::new(8, 1, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY * 9);
    for machine in 0..8 {
        let machine = format!("vm{machine:03}");
        assert_eq!(hours_without(&host, &machine, 9 * 24), Vec::<u64>::new(), "{machine}");
        assert_eq!(host.0.borrow().snapshots[&machine].len(), 5);
        assert_eq!(host.0.borrow().points[&machine].len(), 3);
    }
    let world = host.0.borrow();
    let points = world.made.iter().filter(|(_, name, _)| name.starts_with("job-")).count();
    assert_eq!(points, 8 * 10, "at once, and on nine nights");
    assert_eq!(world.drills, 8 * 2, "at once, and on one Sunday");
    assert!(!world.two_on_one && world.most_at_once == 3, "{}", world.most_at_once);
}

#[test]
fn what_is_owed_is_done_once_whatever_dies() {
    for seed in 1..=4 {
        let faults = Faults { fails: 12, killed_before: 25, killed_after: 25, daemon_dies: 20 };
        let dir = place();
        let (host, policies) = (Host::new(4, seed, begin(), faults), policies(POLICIES));
        let (path, mut daemon) = (dir.path().join("catalog.db"), None);
        play(&host, &mut daemon, &path, &policies, DAY * 8);
        assert_eq!(made_twice(&host), Vec::<String>::new(), "seed {seed}");
        assert!(!host.0.borrow().two_on_one, "seed {seed}: two commands on one machine");
        for machine in 0..4 {
            let machine = format!("vm{machine:03}");
            let without = hours_without(&host, &machine, 8 * 24);
            // Four attempts take longer than an hour: one hour in some hundreds may go without, and never two in a row.
            assert!(without.windows(2).all(|two| two[1] - two[0] > 1), "seed {seed}: {machine} {without:?}");
            assert!(without.len() <= 4, "seed {seed}: {machine} {without:?}");
        }
    }
}

#[test]
fn a_repository_that_is_away_for_days_is_backed_up_to_when_it_is_there_again() {
    let dir = place();
    let (host, policies) = (Host::new(3, 7, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    host.0.borrow_mut().repository_away = true;
    play(&host, &mut daemon, &path, &policies, DAY * 3);
    let troubled: BTreeSet<String> = daemon.as_ref().unwrap().troubles().keys().map(|key| key.1.clone()).collect();
    assert!(troubled.contains("backup:away"), "somebody must hear of it: {troubled:?}");
    host.0.borrow_mut().repository_away = false;
    let back = host.now();
    play(&host, &mut daemon, &path, &policies, DAY);
    for machine in 0..3 {
        let machine = format!("vm{machine:03}");
        let world = host.0.borrow();
        assert!(world.points[&machine].iter().any(|point| point.created > back), "{machine}");
        drop(world);
        assert_eq!(hours_without(&host, &machine, 5 * 24), Vec::<u64>::new(), "snapshots go on meanwhile");
    }
    assert!(daemon.unwrap().troubles().is_empty());
}

#[test]
fn clocks_that_are_set_make_neither_a_storm_nor_silence() {
    let dir = place();
    let (host, policies) = (Host::new(2, 3, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    let count = || host.0.borrow().made.len();
    // A month asleep: each duty is made up for once.
    let before = count();
    host.pass(DAY * 30);
    play(&host, &mut daemon, &path, &policies, HOUR / 2);
    assert_eq!(count() - before, 2 * 2, "a snapshot and a point of each");
    // A year ahead, by mistake, and back again.
    let right = host.now();
    host.pass(DAY * 365);
    play(&host, &mut daemon, &path, &policies, HOUR / 2);
    host.0.borrow_mut().now = right.checked_add(HOUR / 2).unwrap();
    let before = count();
    play(&host, &mut daemon, &path, &policies, DAY * 2);
    let made = count() - before;
    let expected = 2 * (48 + 2);
    assert!((expected - 4..=expected + 4).contains(&made), "{made} and not about {expected}");
    // A little back: nothing is done twice.
    let before = count();
    let back = host.now().checked_sub(Duration::from_secs(600)).unwrap();
    host.0.borrow_mut().now = back;
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(500));
    assert_eq!(count(), before);
}

#[test]
fn a_catalog_that_is_lost_is_made_anew_from_records() {
    let dir = place();
    let (host, policies) = (Host::new(3, 5, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY * 2);
    let known = daemon.take().map(|daemon| daemon.achieved().keys().cloned().collect::<BTreeSet<_>>()).unwrap();
    std::fs::write(&path, vec![0x5a; 100_000]).unwrap();
    let (catalog, found) = Catalog::open(&path, host.now()).unwrap();
    assert!(matches!(found, Found::Anew { aside: Some(_) }));
    let remembered = Remembered::from_records(host.records());
    assert_eq!(remembered.achieved.keys().cloned().collect::<BTreeSet<_>>(), known);
    let before = host.0.borrow().made.len();
    let policies: Arc<_> = policies;
    let fresh = Scheduler::new(host.clone(), host.clone(), catalog, Arc::clone(&policies), remembered, host.now());
    let mut daemon = Some(fresh.unwrap());
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(60));
    assert_eq!(host.0.borrow().made.len(), before, "nothing is done again");
    drop(daemon);
    // The same where it is simply gone.
    let path = dir.path().join("other.db");
    let mut daemon = Some(started(&host, &path, &policies));
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(60));
    assert_eq!(host.0.borrow().made.len(), before);
    host.0.borrow_mut().forget_records();
    let path = dir.path().join("third.db");
    let mut daemon = Some(started(&host, &path, &policies));
    play(&host, &mut daemon, &path, &policies, HOUR / 4);
    assert!(host.0.borrow().made.len() > before, "without records everything is due at once: the check can fail");
}

#[test]
fn what_always_fails_is_told_however_often_it_is_due() {
    let dir = place();
    let faults = Faults { fails: 1, ..Faults::default() };
    let (host, policies) = (Host::new(1, 9, begin(), faults), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    let told = |daemon: &Option<world::Simulated>| {
        daemon.as_ref().unwrap().troubles().keys().map(|key| key.1.clone()).collect::<BTreeSet<_>>()
    };
    assert!(told(&daemon).contains("snapshot"), "hourly snapshots fail for a day: {:?}", told(&daemon));
    daemon = None;
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(5));
    assert!(told(&daemon).contains("snapshot"), "after a restart, too: {:?}", told(&daemon));
}

#[test]
fn what_was_made_by_a_clock_that_ran_ahead_pushes_nothing_out() {
    let dir = place();
    let (host, policies) = (Host::new(1, 4, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, HOUR * 3);
    let right = host.now();
    host.pass(DAY * 365);
    play(&host, &mut daemon, &path, &policies, HOUR * 6);
    host.0.borrow_mut().now = right;
    play(&host, &mut daemon, &path, &policies, HOUR * 4);
    let world = host.0.borrow();
    let fresh = world.snapshots["vm000"].iter().filter(|one| one.created >= right && one.created <= world.now).count();
    assert!(fresh >= 3, "those of the right time stay: {:?}", world.snapshots["vm000"]);
}

#[test]
fn a_job_that_is_cancelled_goes_no_further() {
    let dir = place();
    let (host, policies) = (Host::new(1, 2, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    let daemon = daemon.as_mut().unwrap();
    let action = Action { kind: "snapshot".into(), arguments: vec!["noop".into(), "vm000".into()], backup: None };
    let job = daemon.ask("vm000", action, "uid 0", host.now()).unwrap();
    daemon.tick(host.now()).unwrap();
    let commands = host.0.borrow().commands;
    daemon.cancel(&job.id, "uid 0", host.now()).unwrap();
    host.pass(Duration::from_secs(1));
    daemon.tick(host.now()).unwrap();
    let ended = daemon.catalog().job(&job.id).unwrap().unwrap();
    assert_eq!(ended.state.as_str(), "cancelled", "{ended:?}");
    assert_eq!(host.0.borrow().commands, commands);
    assert!(daemon.cancel(&job.id, "uid 0", host.now()).is_err(), "it is over");
}

fn row(daemon: &Option<world::Simulated>, host: &Host, machine: usize) -> Row {
    verdict::rows(daemon.as_ref().unwrap(), host.now()).remove(machine)
}

fn reasons(row: &Row) -> Vec<&str> {
    row.why.iter().map(|reason| reason.id.as_str()).collect()
}

#[test]
fn what_is_overdue_is_a_reason_until_it_is_done() {
    let dir = place();
    let (host, policies) = (Host::new(1, 6, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY * 2);
    assert_eq!(reasons(&row(&daemon, &host, 0)), [""; 0]);
    // Nobody begins anything, and that is no reason as long as nothing is late by a whole interval.
    daemon.as_mut().unwrap().pause(true);
    play(&host, &mut daemon, &path, &policies, HOUR);
    assert_eq!(reasons(&row(&daemon, &host, 0)), [""; 0]);
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    assert_eq!(reasons(&row(&daemon, &host, 0)), ["overdue/snapshot"]);
    play(&host, &mut daemon, &path, &policies, DAY * 2);
    assert_eq!(reasons(&row(&daemon, &host, 0)), ["overdue/snapshot", "overdue/backup:away"]);
    // The drill was due on Sunday the 8th, and is late by a day on the 9th.
    play(&host, &mut daemon, &path, &policies, DAY * 4);
    let late = row(&daemon, &host, 0);
    assert_eq!(reasons(&late), ["overdue/snapshot", "overdue/backup:away", "overdue/drill"]);
    assert!(late.reasons[2].starts_with("its drill was due 2026-11-08T12:00:00Z, "), "{:?}", late.reasons);
    daemon.as_mut().unwrap().pause(false);
    play(&host, &mut daemon, &path, &policies, HOUR);
    assert_eq!(reasons(&row(&daemon, &host, 0)), [""; 0]);
}

#[test]
fn an_old_drill_is_a_reason_where_no_schedule_says_when_the_next_one_is() {
    let text = POLICIES.replace("[policy.standard.drill]\n    schedule = \"Sun 12:00\"\n    what = \"point\"", "");
    let text = text.replace("names = [\"*\"] }", "names = [\"*\"] }\n    objectives = { rto = \"1h\" }");
    assert!(text.contains("rto") && !text.contains("drill"), "{text}");
    let dir = place();
    let (host, policies) = (Host::new(1, 6, begin(), Faults::default()), policies(&text));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, HOUR);
    let action = Action { kind: "drill".into(), arguments: vec!["drill".into(), "vm000".into()], backup: None };
    daemon.as_mut().unwrap().ask("vm000", action, "uid 0", host.now()).unwrap();
    play(&host, &mut daemon, &path, &policies, HOUR);
    assert_eq!(reasons(&row(&daemon, &host, 0)), [""; 0]);
    host.pass(DAY * 100);
    play(&host, &mut daemon, &path, &policies, HOUR);
    assert_eq!(reasons(&row(&daemon, &host, 0)), ["old-drill"]);
}

#[test]
fn each_repository_is_held_to_a_promise_of_its_own() {
    let away = "lock_days = 1\n\n    [[policy.standard.backup]]\n    name = \"far\"\n    repository = \"/far\"\n    \
        schedule = \"Mon 04:00\"\n    keep = { last = 3 }\n    rpo = \"8d\"";
    let text =
        POLICIES.replace("lock_days = 1", away).replace("[\"*\"] }", "[\"*\"] }\n    objectives = { rpo = \"26h\" }");
    let dir = place();
    let (host, policies) = (Host::new(1, 6, begin(), Faults::default()), policies(&text));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY * 5);
    let kept = row(&daemon, &host, 0);
    assert_eq!(reasons(&kept), [""; 0]);
    assert_eq!(kept.rpo_by_backup["far"].objective_s, Some(8 * 86_400));
    assert!(kept.rpo_by_backup["far"].actual_s > Some(2 * 86_400) && kept.rpo.met == Some(true), "{kept:?}");
    // A repository that gets nothing any more is told, although the other has everything.
    let job = |name: &str, at: Timestamp| {
        let mut job = keyframe_daemon::job::Job::owed(
            "vm000",
            &"standard".parse().unwrap(),
            keyframe_daemon::job::Duty::Backup(name.to_owned()),
            at,
            0,
            at,
        );
        let made = keyframe_daemon::job::Made::new("x".into(), at);
        (job.state, job.ended, job.made) = (keyframe_daemon::job::State::Done, Some(at), Some(made));
        job
    };
    let (now, mut remembered) = (host.now(), Remembered::default());
    let ago = |hours: i64| now.checked_sub(jiff::SignedDuration::from_hours(hours)).unwrap();
    for (name, hours) in [("away", 30), ("far", 24)] {
        let job = job(name, ago(hours));
        remembered.achieved.insert(("vm000".to_owned(), format!("backup:{name}")), job);
    }
    let (catalog, _) = Catalog::open(&dir.path().join("other.db"), now).unwrap();
    let daemon = Scheduler::new(host.clone(), host.clone(), catalog, policies, remembered, now).unwrap();
    let row = verdict::rows(&daemon, now).remove(0);
    let rpo: Vec<&str> = reasons(&row).into_iter().filter(|id| id.starts_with("rpo")).collect();
    assert_eq!(rpo, ["rpo/away"]);
    assert_eq!((row.rpo.met, row.rpo.objective_s), (Some(false), Some(26 * 3600)));
}

#[test]
fn a_command_that_hangs_is_told_and_killed_some_time_after_it_was_asked_to_end() {
    let text = POLICIES.replace("jobs = 3", "jobs = 3\n    deadlines = { snapshot = \"30m\", cancel = \"2m\" }");
    let dir = place();
    let (host, policies) = (Host::new(1, 8, begin(), Faults::default()), policies(&text));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, HOUR);
    host.0.borrow_mut().hang = true;
    let action = Action { kind: "snapshot".into(), arguments: vec!["noop".into(), "vm000".into()], backup: None };
    let job = daemon.as_mut().unwrap().ask("vm000", action, "uid 0", host.now()).unwrap();
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(29 * 60));
    let hanging =
        |daemon: &world::Simulated| daemon.hanging(host.now()).map(|(job, ..)| job.id.clone()).collect::<Vec<_>>();
    assert_eq!(hanging(daemon.as_ref().unwrap()), []);
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(120));
    // A restart does not begin to count anew.
    daemon = None;
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(5));
    assert_eq!(hanging(daemon.as_ref().unwrap()), std::slice::from_ref(&job.id));
    let told = Trouble::at_work(daemon.as_ref().unwrap(), host.now());
    assert_eq!(
        told,
        [Trouble {
            id: format!("hangs/{}", job.id),
            severity: verdict::Severity::Critical,
            machine: Some("vm000".to_owned()),
            what: "its snapshot is at work for 31 min, 30 min are its deadline: it may hang".to_owned(),
            advice: format!(
                "see HOME/serve/jobs/{} for what it says; cancel it: it is asked to end, and killed after 2 min",
                job.id
            ),
        }]
    );
    daemon.as_mut().unwrap().cancel(&job.id, "uid 0", host.now()).unwrap();
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(110));
    assert_eq!(host.0.borrow().asked_to_end, 1, "a second time would end it on the spot");
    assert_eq!(daemon.as_ref().unwrap().jobs().filter(|open| open.id == job.id).count(), 1);
    host.0.borrow_mut().hang = false;
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(20));
    let ended = daemon.as_ref().unwrap().catalog().job(&job.id).unwrap().unwrap();
    assert_eq!((ended.state.as_str(), ended.what.as_deref()), ("cancelled", Some("cancelled: it was killed")));
    assert_eq!(hanging(daemon.as_ref().unwrap()), []);
}

#[test]
fn machines_that_are_not_looked_at_any_more_are_not_called_protected() {
    let dir = place();
    let (host, policies) = (Host::new(2, 8, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    let looked = host.now();
    host.0.borrow_mut().looked = Some(looked);
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(50));
    assert_eq!(row(&daemon, &host, 1).verdict, verdict::Verdict::Protected);
    assert_eq!(Trouble::at_work(daemon.as_ref().unwrap(), host.now()), []);
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(20));
    assert_eq!(
        Trouble::at_work(daemon.as_ref().unwrap(), host.now()),
        [Trouble {
            id: "not-looked".to_owned(),
            severity: verdict::Severity::Critical,
            machine: None,
            what: format!("machines were not looked at since {looked}: what is told of them is as old"),
            advice: "see the daemon's log for why, and restart it: what is at work goes on".to_owned(),
        }]
    );
    let blind = row(&daemon, &host, 1);
    assert_eq!((blind.verdict, blind.why[0].id.as_str()), (verdict::Verdict::AtRisk, verdict::NOT_LOOKED_AT));
    assert!(blind.reasons[0].starts_with(&format!("not looked at since {looked}")), "{:?}", blind.reasons);
}
