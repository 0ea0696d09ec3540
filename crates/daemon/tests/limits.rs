//! A hundred machines on two disks of a simulated host, all of them due at the same instant: how much is at work at once, and who
//! goes first.

#[allow(dead_code, reason = "each test program uses a part of the world")]
mod world;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use keyframe_daemon::job::{Action, Job, JobId, Request, State};
use world::{Faults, HOUR, Host, Simulated, begin, place, play_watched, policies};

const JOBS: usize = 5;
const JOBS_PER_DISK: usize = 3;
/// Of the policy that may have one job at once, and of the one that may have one on each disk.
const OF_NARROW: usize = 1;
const OF_THIN_PER_DISK: usize = 1;

/// All are due at the same instant: at once, as nothing was ever made, and at noon. Forty machines have no limits of their own.
fn crowd() -> String {
    let policy = |name: &str, machines: &str, limits: &str| {
        format!(
            r#"
            [policy.{name}]
            machines = {{ names = [{machines}] }}
            {limits}
            [policy.{name}.snapshot]
            schedule = "12:00"
            keep = {{ last = 1 }}
            [[policy.{name}.backup]]
            name = "away"
            repository = "/srv/backup"
            schedule = "12:00"
            keep = {{ last = 1 }}
            [policy.{name}.drill]
            schedule = "12:00"
            what = "point"
            "#
        )
    };
    format!(
        "[host]\njobs = {JOBS}\njobs_per_disk = {JOBS_PER_DISK}\ntime_zone = \"UTC\"\n{}{}{}",
        policy("free", r#""vm00?", "vm01?", "vm02?", "vm03?""#, ""),
        policy("narrow", r#""vm04?", "vm05?", "vm06?""#, &format!("limits = {{ jobs = {OF_NARROW} }}")),
        policy("thin", r#""vm07?", "vm08?", "vm09?""#, &format!("limits = {{ jobs_per_disk = {OF_THIN_PER_DISK} }}")),
    )
}

/// Three of four machines are on the first disk.
fn device(machine: &str) -> u64 {
    let number: u64 = machine.trim_start_matches("vm").parse().unwrap();
    u64::from(number.is_multiple_of(4))
}

fn policy(job: &Job) -> &str {
    match &job.request {
        Request::Owed { policy, .. } => policy,
        Request::Asked(_) => "",
    }
}

/// What is at work.
struct AtWork<'j>(Vec<&'j Job>);

impl AtWork<'_> {
    fn count(&self, of: impl Fn(&Job) -> bool) -> usize {
        self.0.iter().filter(|job| of(job)).count()
    }

    /// Which limits keep one more job from being begun.
    fn keep_out(&self, job: &Job) -> Vec<&'static str> {
        // What is done in a repository alone takes no machine, and no disk of the host.
        let at_machine = job.is_at_machines();
        let machine = at_machine && self.count(|one| one.is_at_machines() && one.machine == job.machine) > 0;
        if job.duty().is_none() {
            return machine.then_some("machine").into_iter().collect();
        }
        let on_disk = |one: &Job| at_machine && one.is_at_machines() && device(&one.machine) == device(&job.machine);
        let of_policy = |one: &Job| policy(one) == policy(job);
        let reached = [
            ("machine", machine),
            ("host", self.0.len() >= JOBS),
            ("disk", self.count(on_disk) >= JOBS_PER_DISK),
            ("policy", policy(job) == "narrow" && self.count(of_policy) >= OF_NARROW),
            (
                "disk of policy",
                policy(job) == "thin" && self.count(|one| on_disk(one) && of_policy(one)) >= OF_THIN_PER_DISK,
            ),
        ];
        reached.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
    }
}

/// What was seen of limits, look by look.
#[derive(Default)]
struct Watch {
    known: HashSet<JobId>,
    /// The most that policies owe at once: of the host, of a disk, of a policy, of a policy on a disk.
    most: BTreeMap<&'static str, usize>,
    /// Each limit that kept a job waiting for which everything else had room.
    binding: BTreeSet<&'static str>,
    /// Jobs that somebody asked for, which began although the host was full.
    beyond: usize,
    /// The kinds of jobs, as the first of each began.
    kinds: Vec<String>,
}

impl Watch {
    fn see(&mut self, host: &Host, daemon: &Simulated) {
        let at_work = AtWork(daemon.jobs().filter(|job| job.state == State::Running).collect());
        let mut ids: Vec<JobId> = at_work.0.iter().map(|job| job.id.clone()).collect();
        ids.sort();
        assert_eq!(ids, host.at_work(), "what the daemon calls running is at work");
        self.count(&at_work);
        let fresh: Vec<&Job> = at_work.0.iter().copied().filter(|job| self.known.insert(job.id.clone())).collect();
        for job in &fresh {
            self.beyond += usize::from(job.duty().is_none() && at_work.0.len() > JOBS);
            if !self.kinds.iter().any(|kind| kind == job.kind()) {
                self.kinds.push(job.kind().to_owned());
            }
        }
        for waiting in daemon.jobs().filter(|job| job.state == State::Waiting && job.retry_at.is_none()) {
            let kept_out = at_work.keep_out(waiting);
            assert!(!kept_out.is_empty(), "nothing keeps {} of {} waiting", waiting.kind(), waiting.machine);
            if let [alone] = kept_out[..] {
                self.binding.insert(alone);
            }
            // Nor would anything, without those of less weight that were begun just now.
            let lesser = |job: &Job| fresh.iter().any(|one| one.id == job.id) && job.priority() < waiting.priority();
            let others = AtWork(at_work.0.iter().copied().filter(|job| !lesser(job)).collect());
            assert!(
                !others.keep_out(waiting).is_empty(),
                "{} of {} waits for what weighs less",
                waiting.kind(),
                waiting.machine
            );
        }
    }

    fn count(&mut self, at_work: &AtWork<'_>) {
        let owed = AtWork(at_work.0.iter().copied().filter(|job| job.duty().is_some()).collect());
        let mut most = |what, count: usize, limit: usize| {
            assert!(count <= limit, "{count} at once, and the limit of the {what} is {limit}");
            let before = self.most.entry(what).or_default();
            *before = count.max(*before);
        };
        most("host", owed.0.len(), JOBS);
        most("policy", owed.count(|job| policy(job) == "narrow"), OF_NARROW);
        for disk in [0, 1] {
            let on_disk = |job: &Job| job.is_at_machines() && device(&job.machine) == disk;
            most("disk", owed.count(on_disk), JOBS_PER_DISK);
            most("disk of policy", owed.count(|job| on_disk(job) && policy(job) == "thin"), OF_THIN_PER_DISK);
        }
    }
}

/// How many snapshots, points and drills there are of each machine.
fn made(host: &Host) -> BTreeMap<String, [usize; 3]> {
    let mut made: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for job in host.records().iter().filter(|job| job.state == State::Done && job.duty().is_some()) {
        let place = ["snapshot", "backup", "drill"].iter().position(|kind| *kind == job.kind()).unwrap();
        made.entry(job.machine.clone()).or_default()[place] += 1;
    }
    made
}

#[test]
fn a_hundred_machines_due_at_one_instant_get_all_of_it_once_and_never_too_much_at_once() {
    let dir = place();
    let (host, policies) = (Host::new(100, 11, begin(), Faults::default()), policies(&crowd()));
    host.put_on(|machine| vec![device(machine)]);
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    let mut asked = 0;
    for round in 1..=2 {
        let mut watch = Watch::default();
        let mut play = |daemon: &mut Option<Simulated>, span| {
            let see = |daemon: &Simulated| watch.see(&host, daemon);
            play_watched(&host, daemon, &path, &policies, (span, Duration::from_secs(1)), see);
        };
        play(&mut daemon, HOUR / 60);
        // Somebody wants something when the host has its hands full: of machines on both disks, and of one that is at work.
        let daemon_at_work = daemon.as_mut().unwrap();
        let busy = daemon_at_work.jobs().find(|job| job.state == State::Running).unwrap().machine.clone();
        for machine in ["vm001", "vm044", "vm072", "vm099", &busy] {
            let action = Action { kind: "start".into(), arguments: vec!["start".into(), machine.into()], backup: None };
            daemon_at_work.ask(machine, action, "uid 0", host.now()).unwrap();
            asked += 1;
        }
        play(&mut daemon, Duration::from_secs((11 * 60 + 29) * 60 - 60));
        assert_eq!(daemon.as_ref().unwrap().jobs().count(), 0, "round {round}: all is done before noon");
        assert_eq!(
            watch.most,
            [("disk", JOBS_PER_DISK), ("disk of policy", OF_THIN_PER_DISK), ("host", JOBS), ("policy", OF_NARROW)]
                .into(),
            "round {round}: no more than that, and that much"
        );
        let all = ["disk", "disk of policy", "host", "machine", "policy"];
        assert_eq!(watch.binding, all.into(), "round {round}: each limit alone keeps something waiting");
        assert!(watch.beyond > 0, "round {round}: what somebody asks for waits for no limit");
        assert_eq!(watch.kinds, ["snapshot", "start", "backup", "drill"], "round {round}");
        let made = made(&host);
        assert_eq!(made.len(), 100);
        for (machine, counts) in made {
            assert_eq!(counts, [round; 3], "{machine}");
        }
        // The next noon.
        let noon = "2026-11-02T12:00:00Z".parse::<jiff::Timestamp>().unwrap();
        host.0.borrow_mut().now = noon.checked_add(HOUR * 24 * (u32::try_from(round).unwrap() - 1)).unwrap();
    }
    let world = host.0.borrow();
    assert!(!world.two_on_one);
    assert_eq!((world.made.len(), world.drills), (100 * 2 * 2, 100 * 2), "nothing twice");
    let names: BTreeSet<_> = world.made.iter().map(|(machine, name, _)| (machine, name)).collect();
    assert_eq!(names.len(), world.made.len(), "nothing twice");
    drop(world);
    let records = host.records();
    assert_eq!(records.len(), 100 * 3 * 2 + asked);
    assert!(records.iter().all(|job| job.state == State::Done && job.missed == 0 && job.attempt == 1));
}

#[test]
fn backups_share_what_the_host_may_send() {
    let text = crowd().replace("time_zone", "bandwidth = \"10M\"\ntime_zone");
    let text = text.replacen("name = \"away\"", "name = \"away\"\nbandwidth = \"1M\"", 1);
    let dir = place();
    let (host, policies) = (Host::new(100, 12, begin(), Faults::default()), policies(&text));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play_watched(&host, &mut daemon, &path, &policies, (HOUR * 6, Duration::from_secs(1)), |_| {});
    let world = host.0.borrow();
    let backups: Vec<&Vec<String>> = world.lines.iter().filter(|line| line[0] == "backup").collect();
    assert_eq!(backups.len(), 100);
    for line in backups {
        let limits: Vec<&str> =
            line.windows(2).filter(|two| two[0] == "--bandwidth").map(|two| two[1].as_str()).collect();
        // A fifth of the host's, as five are at work at once; of those whose policy has less, that.
        let limit = if line[1].as_str() < "vm040" { "1048576" } else { "2097152" };
        assert_eq!(limits, [limit], "{line:?}");
    }
}
