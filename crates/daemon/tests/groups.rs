//! Machines of a group on a simulated host, seeded: what is owed to them is done for all of them at once, or for none.

#[allow(dead_code, reason = "each test program uses a part of the world")]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use keyframe_daemon::fleet::Seen;
use keyframe_daemon::job::{Duty, Job, State};
use keyframe_daemon::scheduler::Remembered;
use keyframe_daemon::verdict::{self, Row};
use world::{DAY, Faults, HOUR, Host, POLICIES, Simulated, begin, place, play, policies, started};

/// Three machines of a group, and one that belongs to none.
fn shop() -> String {
    format!("{POLICIES}\n    [group.shop]\n    machines = {{ names = [\"vm000\", \"vm001\", \"vm002\"] }}\n")
}

const SHOP: [&str; 3] = ["vm000", "vm001", "vm002"];

/// Of each name the machines that something of this name was made of, and how many instants there were.
fn cuts(host: &Host) -> BTreeMap<String, (Vec<String>, usize)> {
    let mut cuts: BTreeMap<String, (Vec<String>, BTreeSet<Timestamp>)> = BTreeMap::new();
    for (machine, name, at) in &host.0.borrow().made {
        let cut = cuts.entry(name.clone()).or_default();
        cut.0.push(machine.clone());
        cut.1.insert(*at);
    }
    cuts.into_iter().map(|(name, (machines, instants))| (name, (machines, instants.len()))).collect()
}

fn open(daemon: &Simulated, duty: &Duty) -> Vec<Job> {
    daemon.jobs().filter(|job| job.duty() == Some(duty)).cloned().collect()
}

fn names(machines: &[&str]) -> Vec<String> {
    machines.iter().map(ToString::to_string).collect()
}

#[test]
fn machines_of_a_group_are_cut_stored_and_drilled_together() {
    let dir = place();
    let (host, policies) = (Host::new(4, 1, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY * 9);
    let all = cuts(&host);
    for (name, (machines, instants)) in &all {
        assert!(*machines == SHOP || machines == &["vm003"], "{name} is of {machines:?}");
        assert_eq!(*instants, 1, "{name}");
    }
    let of_shop = |kind: &str| all.iter().filter(|(name, (of, _))| name.starts_with(kind) && of.len() == 3).count();
    assert_eq!((of_shop("auto-"), of_shop("job-")), (9 * 24 + 1, 10), "at once, each hour, each night");
    let world = host.0.borrow();
    assert_eq!(
        world.points.iter().map(|(name, all)| (name.as_str(), all.len())).collect::<Vec<_>>(),
        [("shop", 3), ("vm003", 3)]
    );
    assert!(world.snapshots.values().all(|all| all.len() == 5), "{:?}", world.snapshots);
    assert_eq!(world.drills, 2 * 2, "the group's and the other's, at once and on one Sunday");
    drop(world);
    assert!(host.records().iter().all(|job| job.missed == 0), "each is asked for once, not once for each machine");
    let rows = verdict::rows(daemon.as_ref().unwrap(), host.now());
    let told = |row: &Row| {
        let (point, drill) = (row.last_point.as_ref().unwrap(), row.last_drill.as_ref().unwrap());
        (row.verdict, row.reasons.clone(), point.id.clone(), drill.passed, row.last_snapshot)
    };
    let [first, second, third, alone] = [0, 1, 2, 3].map(|at| told(&rows[at]));
    assert_eq!((first.0, &first.1), (verdict::Verdict::Protected, &vec![]));
    assert!(first == second && second == third, "of one point: {first:?} {second:?} {third:?}");
    assert_ne!(first.2, alone.2);
}

#[test]
fn a_groups_instants_are_its_own_whatever_dies() {
    let mut torn = 0;
    for seed in 1..=4 {
        let faults = Faults { fails: 12, killed_before: 25, killed_after: 25, daemon_dies: 20 };
        let dir = place();
        let (host, policies) = (Host::new(4, seed, begin(), faults), policies(&shop()));
        let (path, mut daemon) = (dir.path().join("catalog.db"), None);
        play(&host, &mut daemon, &path, &policies, DAY * 8);
        assert!(!host.0.borrow().two_on_one, "seed {seed}: two commands on one machine");
        let mut hours = BTreeSet::new();
        for (name, (machines, instants)) in cuts(&host) {
            // Of a cut in which the power went, some machines have their part; it is made again by another name.
            let partial = name.starts_with("auto-") && machines.len() < 3 && machines != ["vm003"];
            torn += usize::from(partial);
            assert!(instants == 1 && (partial || machines == SHOP || machines == ["vm003"]), "{name} {machines:?}");
            if machines == SHOP && name.starts_with("auto-") {
                let made = host.0.borrow().made.iter().find(|made| made.1 == name).unwrap().2;
                hours.insert(made.duration_since(begin()).as_hours());
            }
        }
        let without = (0..8 * 24).filter(|hour| !hours.contains(hour)).count();
        assert!(without <= 4, "seed {seed}: {without} hours in which not all of them were cut");
        let achieved = daemon.take().unwrap();
        let keys: BTreeSet<_> = achieved.achieved().keys().cloned().collect();
        assert_eq!(keys.len(), 4 * 3, "{keys:?}");
        drop(achieved);
        let known = Remembered::from_records(host.records());
        assert_eq!(known.achieved.keys().cloned().collect::<BTreeSet<_>>(), keys, "records tell the same");
        let again = started(&host, &path, &policies);
        assert_eq!(again.achieved().keys().cloned().collect::<BTreeSet<_>>(), keys, "and so does the catalog");
    }
    assert!(torn > 0, "no power cut came between the snapshots of a group: the check can fail");
}

#[test]
fn a_machine_that_goes_or_comes_changes_what_waits() {
    let dir = place();
    let (host, policies) = (Host::new(4, 3, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    // What is tried again is done for those that are left.
    host.0.borrow_mut().broken = Some("vm001".to_owned());
    play(&host, &mut daemon, &path, &policies, HOUR);
    let waiting = open(daemon.as_ref().unwrap(), &Duty::Snapshot);
    assert_eq!(waiting.iter().map(|job| job.machines().count()).collect::<Vec<_>>(), [3], "{waiting:?}");
    host.change_machines(|machines| drop(machines.remove("vm001")));
    play(&host, &mut daemon, &path, &policies, HOUR);
    let name = format!("auto-{}", waiting[0].id);
    assert_eq!(cuts(&host)[&name].0, ["vm000", "vm002"]);
    assert!(daemon.as_ref().unwrap().troubles().is_empty());
    // One that is there again is due at once, and all are cut with it.
    host.0.borrow_mut().broken = None;
    let before = cuts(&host);
    let other = shop().replace("\"vm002\"]", "\"vm002\", \"vm009\"]");
    let policies = world::policies(&other);
    daemon.as_mut().unwrap().use_policies(policies.clone(), host.now());
    host.change_machines(|machines| {
        for name in ["vm001", "vm009"] {
            machines.insert(name.to_owned(), Seen { state: "running".into(), ..Seen::default() });
        }
    });
    play(&host, &mut daemon, &path, &policies, HOUR / 4);
    let fresh: Vec<Vec<String>> =
        cuts(&host).into_iter().filter(|(name, _)| !before.contains_key(name)).map(|(_, cut)| cut.0).collect();
    assert_eq!(fresh, [names(&["vm000", "vm001", "vm002", "vm009"]), names(&["vm000", "vm001", "vm002", "vm009"])]);
}

#[test]
fn a_machine_that_was_away_while_its_group_waited_is_made_up_for() {
    let dir = place();
    let (host, policies) = (Host::new(4, 3, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    host.0.borrow_mut().repository_away = true;
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    let waiting = open(daemon.as_ref().unwrap(), &Duty::Backup("away".to_owned()));
    assert!(waiting.iter().any(|job| job.is_for("vm001")), "{waiting:?}");
    let away = host.0.borrow_mut().repository_away;
    assert!(away);
    let mut gone = None;
    host.change_machines(|machines| gone = machines.remove("vm001"));
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(60));
    // A restart does not forget that it is owed.
    daemon = None;
    host.change_machines(|machines| drop(machines.insert("vm001".to_owned(), gone.unwrap())));
    host.0.borrow_mut().repository_away = false;
    let back = host.now();
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    let world = host.0.borrow();
    let made = world.made.iter().any(|(of, name, at)| of == "vm001" && name.starts_with("job-") && *at >= back);
    assert!(made, "long before the next night: {:?}", world.made.last());
}

#[test]
fn a_snapshot_that_could_not_be_tested_is_tried_again_and_nobody_is_told_that_it_came_back() {
    let text = shop().replace("what = \"point\"", "what = \"snapshot\"");
    let dir = place();
    let (host, policies) = (Host::new(3, 5, begin(), Faults::default()), policies(&text));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    // Until Sunday, half past eleven.
    play(&host, &mut daemon, &path, &policies, DAY * 6 + HOUR * 11);
    host.0.borrow_mut().broken = Some("vm001".to_owned());
    play(&host, &mut daemon, &path, &policies, HOUR);
    let [waiting] = open(daemon.as_ref().unwrap(), &Duty::Drill).try_into().unwrap();
    let what = waiting.what.unwrap();
    assert!(waiting.attempt > 1 && what.starts_with("vm001@") && what.ends_with("was not tested: no room"), "{what}");
    host.0.borrow_mut().broken = None;
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    let rows = verdict::rows(daemon.as_ref().unwrap(), host.now());
    assert!(rows.iter().all(|row| row.last_drill.as_ref().is_some_and(|drill| drill.passed)), "{rows:?}");
    assert_eq!(rows[1].last_drill.as_ref().unwrap().took_ms, Some(700));
}

#[test]
fn who_leaves_a_group_with_a_policy_of_its_own_loses_nothing() {
    // What is done behind the point is done for those whose policy still says so.
    let dir = place();
    let (host, policies) = (Host::new(3, 3, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    let backup = Duty::Backup("away".to_owned());
    play(&host, &mut daemon, &path, &policies, DAY);
    let at_lock = |daemon: &Simulated| {
        open(daemon, &backup).into_iter().find(|job| format!("{:?}", job.steps.first()) == "Some(Lock)")
    };
    let until = host.now() + jiff::SignedDuration::from_hours(8);
    while at_lock(daemon.as_ref().unwrap()).is_none() && host.now() < until {
        play(&host, &mut daemon, &path, &policies, Duration::from_secs(5));
    }
    let job = at_lock(daemon.as_ref().unwrap()).expect("a backup that is about to lock its point");
    let text = shop().replace("[policy.standard]\n", "[policy.other]\n    machines = { names = [\"vm000\"] }\n    priority = 9\n    [policy.other.snapshot]\n    schedule = \"daily\"\n    keep = { last = 2 }\n\n    [policy.standard]\n");
    let other = world::policies(&text);
    daemon.as_mut().unwrap().use_policies(other.clone(), host.now());
    play(&host, &mut daemon, &path, &other, HOUR);
    let ended = daemon.as_ref().unwrap().catalog().job(&job.id).unwrap().unwrap();
    assert_eq!(ended.state, State::Done, "{ended:?}");
    let key = ("vm001".to_owned(), backup.key());
    let achieved = daemon.as_ref().unwrap().achieved();
    assert_eq!(achieved[&key].id, job.id, "it has its point");
}

#[test]
fn when_a_group_is_no_more_each_of_its_machines_gets_what_waited_for_all() {
    let dir = place();
    let (host, policies) = (Host::new(3, 3, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    host.0.borrow_mut().broken = Some("vm001".to_owned());
    play(&host, &mut daemon, &path, &policies, HOUR);
    let [waiting] = open(daemon.as_ref().unwrap(), &Duty::Snapshot).try_into().unwrap();
    let apart = world::policies(&shop().replace("[group.shop]", "[group.other]").replace("vm00", "vm10"));
    daemon.as_mut().unwrap().use_policies(apart.clone(), host.now());
    host.0.borrow_mut().broken = None;
    let before = cuts(&host);
    play(&host, &mut daemon, &path, &apart, HOUR / 4);
    let ended = daemon.as_ref().unwrap().catalog().job(&waiting.id).unwrap().unwrap();
    assert_eq!((ended.state, ended.what.as_deref()), (State::Cancelled, Some("the group shop is no more")));
    let is_fresh = |name: &String| name.starts_with("auto-") && !before.contains_key(name);
    let mut fresh: Vec<Vec<String>> =
        cuts(&host).into_iter().filter(|(name, _)| is_fresh(name)).map(|(_, cut)| cut.0).collect();
    fresh.sort();
    assert_eq!(fresh, SHOP.map(|name| names(&[name])));
}

#[test]
fn of_a_group_that_did_not_come_back_the_machine_that_did_not_is_told() {
    let dir = place();
    let (host, policies) = (Host::new(3, 5, begin(), Faults::default()), policies(&shop()));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    host.0.borrow_mut().does_not_come_back = Some("vm001".to_owned());
    play(&host, &mut daemon, &path, &policies, DAY * 7);
    let told = |daemon: &Simulated| {
        let rows = verdict::rows(daemon, host.now());
        rows.iter().map(|row| (row.last_drill.as_ref().unwrap().passed, row.reasons.clone())).collect::<Vec<_>>()
    };
    let failed = vec!["the last drill failed: it may not come back".to_owned()];
    let expected = [(true, vec![]), (false, failed), (true, vec![])];
    assert_eq!(told(daemon.as_ref().unwrap()), expected);
    daemon = None;
    play(&host, &mut daemon, &path, &policies, Duration::from_secs(5));
    assert_eq!(told(daemon.as_ref().unwrap()), expected, "after a restart, too");
    let jobs = daemon.unwrap().catalog().ended_since(Some("vm001"), begin(), host.now()).unwrap();
    let drill = jobs.iter().rev().find(|job| job.kind() == "drill").unwrap();
    assert_eq!((drill.state, drill.what.as_deref()), (State::Failed, Some("vm001: probe agent failed: nothing")));
}
