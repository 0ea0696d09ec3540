//! A simulated host: machines, repositories, commands that take time and fail, and a clock that somebody sets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_daemon::Error;
use keyframe_daemon::catalog::{Catalog, Found};
use keyframe_daemon::commands::Line;
use keyframe_daemon::fleet::{Fleet, LastLook, Machines, Seen, SeenSnapshot};
use keyframe_daemon::hands::{Hands, Look, Outcome};
use keyframe_daemon::job::{Job, JobId, State};
use keyframe_daemon::scheduler::{Remembered, Scheduler};
use keyframe_policy::Policies;
use serde_json::json;

pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Each machine is snapshotted each hour, backed up each night and drilled each Sunday.
pub const POLICIES: &str = r#"
    [host]
    jobs = 3
    time_zone = "UTC"

    [policy.standard]
    machines = { names = ["*"] }

    [policy.standard.snapshot]
    schedule = "hourly"
    keep = { last = 5 }

    [[policy.standard.backup]]
    name = "away"
    repository = "/srv/backup"
    schedule = "03:00"
    jitter = "30m"
    keep = { last = 3 }
    lock_days = 1

    [policy.standard.drill]
    schedule = "Sun 12:00"
    what = "point"
"#;

pub fn begin() -> Timestamp {
    "2026-11-02T00:30:00Z".parse().unwrap()
}

/// Numbers that look random and are the same for the same seed: `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        times > 0 && self.roll(times) == 0
    }
}

/// How often something goes wrong: one in so many; 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A command fails.
    pub fails: u64,
    /// A command is killed before it did anything.
    pub killed_before: u64,
    /// A command is killed after it did what it should.
    pub killed_after: u64,
    /// The daemon dies as it starts a command, before or after that.
    pub daemon_dies: u64,
}

/// A point.
#[derive(Debug, Clone)]
pub struct Point {
    pub id: String,
    pub tags: Vec<String>,
    pub created: Timestamp,
    /// Whose it is.
    pub machines: Vec<String>,
}

#[derive(Debug)]
struct Running {
    ends: Timestamp,
    outcome: Option<Outcome>,
    /// It goes on for ever, and does not end when it is asked.
    hangs: bool,
    /// No clock that is put back makes it longer.
    longest: Duration,
}

#[derive(Debug)]
pub struct World {
    pub now: Timestamp,
    pub dice: Dice,
    pub faults: Faults,
    pub repository_away: bool,
    pub daemon_died: bool,
    /// Commands that are started hang.
    pub hang: bool,
    /// How often commands were asked to end.
    pub asked_to_end: u64,
    /// When machines were looked at last; nothing while they are looked at all the time.
    pub looked: Option<Timestamp>,
    pub machines: Arc<Machines>,
    pub snapshots: BTreeMap<String, Vec<SeenSnapshot>>,
    pub points: BTreeMap<String, Vec<Point>>,
    /// Everything that was ever made: machine, name or tag, and when.
    pub made: Vec<(String, String, Timestamp)>,
    pub drills: usize,
    running: BTreeMap<JobId, (Vec<String>, Running)>,
    pub most_at_once: usize,
    pub two_on_one: bool,
    /// A machine that does not answer: commands on it fail.
    pub broken: Option<String>,
    /// A machine that does not come back in drills.
    pub does_not_come_back: Option<String>,
    pub commands: u64,
    /// Commands that take so long, and those that fail, by a word of theirs.
    pub takes: BTreeMap<&'static str, Duration>,
    pub fails_at: Vec<&'static str>,
    /// The arguments of all of them.
    pub lines: Vec<Vec<String>>,
    records: BTreeMap<JobId, Job>,
    /// Whether everything that was made is listed; for years it is only counted.
    pub keep_history: bool,
    /// How many there were of everything.
    pub counts: BTreeMap<&'static str, u64>,
}

/// The world, as the daemon's two sides of it share it.
#[derive(Debug, Clone)]
pub struct Host(pub Rc<RefCell<World>>);

impl Host {
    pub fn new(machines: usize, seed: u64, now: Timestamp, faults: Faults) -> Self {
        let seen = |number: usize| {
            (
                format!("vm{number:03}"),
                Seen { state: "running".into(), devices: vec![number as u64], ..Seen::default() },
            )
        };
        Self(Rc::new(RefCell::new(World {
            now,
            dice: Dice::new(seed),
            faults,
            repository_away: false,
            daemon_died: false,
            hang: false,
            asked_to_end: 0,
            looked: None,
            machines: Arc::new((0..machines).map(seen).collect()),
            snapshots: BTreeMap::new(),
            points: BTreeMap::new(),
            made: Vec::new(),
            drills: 0,
            running: BTreeMap::new(),
            most_at_once: 0,
            two_on_one: false,
            broken: None,
            does_not_come_back: None,
            commands: 0,
            takes: BTreeMap::new(),
            fails_at: Vec::new(),
            lines: Vec::new(),
            records: BTreeMap::new(),
            keep_history: true,
            counts: BTreeMap::new(),
        })))
    }

    pub fn now(&self) -> Timestamp {
        self.0.borrow().now
    }

    /// Puts machines on disks of the host: each has one of its own otherwise.
    pub fn put_on(&self, devices: impl Fn(&str) -> Vec<u64>) {
        self.change_machines(|machines| machines.iter_mut().for_each(|(name, seen)| seen.devices = devices(name)));
    }

    /// Other machines are there from now on.
    pub fn change_machines(&self, change: impl FnOnce(&mut Machines)) {
        let mut machines = (*self.0.borrow().machines).clone();
        change(&mut machines);
        self.0.borrow_mut().machines = Arc::new(machines);
    }

    pub fn pass(&self, span: Duration) {
        let mut world = self.0.borrow_mut();
        world.now = world.now.checked_add(span).unwrap();
    }

    /// When the next command ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.0.borrow().running.values().map(|(_, running)| running.ends).min()
    }

    /// The jobs whose commands are at work.
    pub fn at_work(&self) -> Vec<JobId> {
        self.0.borrow().running.keys().cloned().collect()
    }

    /// What jobs' own records tell.
    pub fn records(&self) -> Vec<Job> {
        self.0.borrow().records.values().cloned().collect()
    }
}

impl Fleet for Host {
    fn machines(&mut self) -> Arc<Machines> {
        Arc::clone(&self.0.borrow().machines)
    }

    fn last_look(&self) -> LastLook {
        let world = self.0.borrow();
        let at = world.looked.unwrap_or(world.now);
        LastLook { at, ago: world.now.duration_since(at).unsigned_abs() }
    }

    fn snapshots(&mut self, machine: &str) -> Result<Vec<SeenSnapshot>, Error> {
        Ok(self.0.borrow().snapshots.get(machine).cloned().unwrap_or_default())
    }
}

fn option<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
    let pairs = arguments.windows(2).filter(|pair| pair[0] == name);
    pairs.map(|pair| pair[1].as_str()).collect()
}

impl World {
    /// Loses what jobs' own records tell.
    pub fn forget_records(&mut self) {
        self.records.clear();
    }

    fn fresh_id(&mut self) -> String {
        format!("{:016x}", self.dice.roll(u64::MAX))
    }

    fn ended(exit: i32, document: serde_json::Value) -> Outcome {
        let error = (exit != 0).then(|| "something went wrong".to_owned());
        Outcome { exit, document: Some(document), error }
    }

    /// Does what a command does.
    fn carry_out(&mut self, arguments: &[String], began: Timestamp) -> Outcome {
        let needs_repository = !option(arguments, "--repo").is_empty();
        if needs_repository && self.repository_away {
            return Self::ended(1, json!({"error": "the repository does not answer"}));
        }
        if self.dice.clone().one_in(self.faults.fails) {
            self.dice.roll(2);
            return Self::ended(1, json!({"error": "no luck"}));
        }
        self.dice.roll(2);
        if let Some(word) = self.fails_at.iter().find(|word| arguments.iter().any(|argument| argument == **word)) {
            return Self::ended(1, json!({"error": format!("{word} does not work")}));
        }
        let (machine, tag) = arguments.get(1).and_then(|named| named.split_once('@')).map_or_else(
            || (arguments.get(1).cloned().unwrap_or_default(), None),
            |(machine, tag)| (machine.to_owned(), Some(tag.to_owned())),
        );
        let machines: Vec<String> =
            arguments[1..].iter().take_while(|argument| !argument.starts_with("--")).cloned().collect();
        let is_broken = |named: &String| {
            let whose = if arguments[0] == "drill" { &machine } else { named };
            self.broken.as_ref() == Some(whose)
        };
        if machines.iter().any(is_broken) {
            return Self::ended(1, json!({"error": "it does not answer"}));
        }
        match arguments[0].as_str() {
            "snapshot" => {
                let name = option(arguments, "--name")[0].to_owned();
                let has = |machine: &String| {
                    self.snapshots.get(machine).is_some_and(|all| all.iter().any(|one| one.name == name))
                };
                if machines.iter().any(has) {
                    return Self::ended(1, json!({"error": "there is one of that name"}));
                }
                let expires = option(arguments, "--ttl").first().map(|ttl| {
                    let seconds = ttl.trim_end_matches('s').parse().unwrap();
                    began.checked_add(Duration::from_secs(seconds)).unwrap()
                });
                let mut parts = Vec::new();
                for machine in &machines {
                    let (id, owner) = (self.fresh_id(), option(arguments, "--owner")[0].to_owned());
                    let taken = SeenSnapshot {
                        id: id.clone(),
                        name: name.clone(),
                        created: began,
                        owner,
                        expires,
                        held: false,
                    };
                    self.snapshots.entry(machine.clone()).or_default().push(taken);
                    self.note(machine.clone(), name.clone(), began);
                    parts.push(json!({"vm": machine, "id": id, "consistency": "running-state", "pause_ms": 5.0}));
                    if self.torn_in(parts.len(), machines.len()) {
                        return Self::ended(137, json!({}));
                    }
                }
                let [one] = parts.as_slice() else { return Self::ended(0, json!({"machines": parts})) };
                Self::ended(0, one.clone())
            }
            "delete" => {
                for reference in &arguments[1..] {
                    let (machine, id) = reference.split_once('@').unwrap();
                    self.snapshots.get_mut(machine).unwrap().retain(|one| one.id != id);
                }
                Self::ended(0, json!({}))
            }
            "expire" => {
                let now = self.now;
                for machine in machines {
                    self.snapshots.entry(machine).or_default().retain(|one| one.expires.is_none_or(|at| at > now));
                }
                Self::ended(0, json!({}))
            }
            "backup" => {
                let id = self.fresh_id();
                let tags: Vec<String> = option(arguments, "--tag").iter().map(ToString::to_string).collect();
                let tag = tags.iter().find(|tag| tag.starts_with("job-")).unwrap().clone();
                let group = option(arguments, "--group").first().map(ToString::to_string);
                assert_eq!(group.is_some(), machines.len() > 1, "{arguments:?}");
                let name = group.unwrap_or_else(|| machine.clone());
                let point = Point { id: id.clone(), tags, created: began, machines: machines.clone() };
                self.points.entry(name).or_default().push(point);
                for machine in machines.clone() {
                    self.note(machine, tag.clone(), began);
                }
                let parts: Vec<_> = machines.iter().map(|vm| json!({"vm": vm, "consistency": "crash"})).collect();
                let totals = json!({"stored_bytes": 1});
                Self::ended(
                    0,
                    json!({"id": id, "state_of": began, "consistency": "crash", "totals": totals, "machines": parts}),
                )
            }
            "points" => {
                let points: Vec<_> = self
                    .points
                    .values()
                    .flatten()
                    .filter(|point| point.machines.contains(&machine))
                    .map(|point| json!({"id": point.id, "state_of": point.created, "tags": point.tags}))
                    .collect();
                Self::ended(0, json!({"points": points}))
            }
            "repo" if arguments[1] == "forget" => {
                let machine = option(arguments, "--name")[0].to_owned();
                let last: usize = option(arguments, "--keep-last").first().map_or(0, |last| last.parse().unwrap());
                let points = self.points.entry(machine).or_default();
                points.drain(..points.len().saturating_sub(last));
                Self::ended(0, json!({}))
            }
            "test" => {
                self.drills += 1;
                let is_broken = |reference: &&String| {
                    self.broken.as_ref().is_some_and(|broken| reference.starts_with(&format!("{broken}@")))
                };
                let (untested, tested): (Vec<&String>, Vec<&String>) = machines.iter().partition(is_broken);
                let test = |reference: &&String| {
                    let (vm, id) = reference.split_once('@').unwrap();
                    json!({"vm": vm, "id": id, "verdict": "passed", "total_ms": 700.0, "checks": []})
                };
                let untested: Vec<_> =
                    untested.iter().map(|snapshot| json!({"snapshot": snapshot, "error": "no room"})).collect();
                let tests: Vec<_> = tested.iter().map(test).collect();
                let exit = if untested.is_empty() { 0 } else { 3 };
                Self::ended(exit, json!({"passed": true, "tests": tests, "not_tested": untested}))
            }
            "drill" => {
                self.drills += 1;
                let of = |point: &str, bad: bool| {
                    let verdict = if bad { "failed" } else { "passed" };
                    let checks = json!([{"name": "agent", "passed": !bad, "seen": "nothing"}]);
                    let resume = json!({"verdict": verdict, "total_ms": 900.0, "checks": checks});
                    json!({"point": point, "verdict": verdict, "restored_ms": 100.0, "resume": resume})
                };
                let bad = |machine: &String| self.does_not_come_back.as_ref() == Some(machine);
                let mut points = self.points.get(&machine).into_iter().flatten();
                let has_tag = |point: &&Point| tag.as_ref().is_none_or(|tag| point.tags.contains(tag));
                let whose = points.rfind(has_tag).map(|point| point.machines.clone());
                let whose = whose.unwrap_or_else(|| vec![machine.clone()]);
                let exit = i32::from(whose.iter().any(bad));
                let parts: Vec<_> = whose.iter().map(|vm| of(&format!("{vm}@1"), bad(vm))).collect();
                match parts.as_slice() {
                    [one] => Self::ended(exit, one.clone()),
                    parts => Self::ended(exit, json!({"point": format!("{machine}@1"), "machines": parts})),
                }
            }
            _ => Self::ended(0, json!({})),
        }
    }

    /// The power goes when snapshots of a group are taken of some machines, and not of others.
    fn torn_in(&mut self, taken: usize, of: usize) -> bool {
        taken < of && self.faults.killed_after > 0 && self.dice.one_in(self.faults.killed_after)
    }

    fn count(&mut self, what: &'static str, more: u64) {
        *self.counts.entry(what).or_default() += more;
    }

    fn note(&mut self, machine: String, name: String, at: Timestamp) {
        self.count(if name.starts_with("auto-") { "snapshots" } else { "points" }, 1);
        if self.keep_history {
            self.made.push((machine, name, at));
        }
    }
}

impl Hands for Host {
    fn start(&mut self, job: &Job, line: &Line) -> Result<(), Error> {
        let mut world = self.0.borrow_mut();
        if world.daemon_died {
            return Err(Error::Refused("nobody is there".to_owned()));
        }
        if world.keep_history {
            world.records.insert(job.id.clone(), job.clone());
        }
        let dies = world.faults.daemon_dies;
        if world.dice.one_in(dies) {
            world.daemon_died = true;
            if world.dice.one_in(2) {
                return Err(Error::Refused("the daemon died before it started this".to_owned()));
            }
        }
        world.commands += 1;
        let usual = Duration::from_secs(5 + world.dice.roll(90));
        let takes = world.takes.iter().find(|(word, _)| line.arguments.iter().any(|argument| argument == **word));
        let takes = takes.map_or(usual, |(_, takes)| *takes);
        let ends = world.now.checked_add(takes).unwrap();
        if world.keep_history {
            world.lines.push(line.arguments.clone());
        }
        let faults = world.faults;
        let began = world.now;
        let outcome = if world.dice.one_in(faults.killed_before) {
            None
        } else {
            let outcome = world.carry_out(&line.arguments, began);
            match (world.dice.one_in(faults.killed_after), world.dice.one_in(2)) {
                (false, _) => Some(outcome),
                (true, true) => None,
                // The command was killed, and who ran it was not.
                (true, false) => Some(Outcome { exit: 137, document: None, error: None }),
            }
        };
        let machines: Vec<String> = job.machines().filter(|_| job.is_at_machines()).map(str::to_owned).collect();
        world.two_on_one |= world.running.values().any(|(of, _)| machines.iter().any(|machine| of.contains(machine)));
        let hangs = world.hang;
        world.running.insert(
            job.id.clone(),
            (machines, Running { ends, outcome, hangs, longest: takes + Duration::from_secs(30) }),
        );
        world.most_at_once = world.most_at_once.max(world.running.len());
        Ok(())
    }

    fn look(&mut self, job: &Job) -> Look {
        let mut world = self.0.borrow_mut();
        let now = world.now;
        match world.running.get(&job.id) {
            None => Look::Vanished,
            Some((_, running)) if running.hangs => Look::AtWork,
            // A clock that was put back does not make a command longer.
            Some((_, running))
                if running.ends > now && running.ends.duration_since(now) < running.longest.try_into().unwrap() =>
            {
                Look::AtWork
            }
            Some(_) => world
                .running
                .remove(&job.id)
                .and_then(|(_, running)| running.outcome)
                .map_or(Look::Vanished, Look::Ended),
        }
    }

    fn cancel(&mut self, job: &Job) -> bool {
        let mut world = self.0.borrow_mut();
        let now = world.now;
        world.asked_to_end += 1;
        let Some((_, running)) = world.running.get_mut(&job.id) else { return false };
        if !running.hangs {
            running.ends = now;
            running.outcome = Some(World::ended(130, json!({})));
        }
        true
    }

    fn kill(&mut self, job: &Job) {
        let mut world = self.0.borrow_mut();
        let now = world.now;
        if let Some((_, running)) = world.running.get_mut(&job.id) {
            running.ends = now;
            running.outcome = Some(World::ended(137, json!({})));
            running.hangs = false;
        }
    }

    fn over(&mut self, job: &Job) {
        let mut world = self.0.borrow_mut();
        world.count("jobs", 1);
        world.count("missed", job.missed.into());
        world.count("failed", u64::from(job.state == State::Failed));
        if world.keep_history {
            world.records.insert(job.id.clone(), job.clone());
        }
    }
}

/// A place for catalogs that need not outlive a power cut, where syncing costs nothing.
pub fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

pub fn policies(text: &str) -> Arc<Policies> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policies.toml"), text).unwrap();
    let loaded = keyframe_policy::load(&[dir.path()], Timestamp::now());
    Arc::new(loaded.policies.unwrap_or_else(|| panic!("{:?}", loaded.mistakes)))
}

pub type Simulated = Scheduler<Host, Host>;

/// The daemon, started on what its catalog remembers.
pub fn started(host: &Host, catalog: &Path, policies: &Arc<Policies>) -> Simulated {
    host.0.borrow_mut().daemon_died = false;
    let (mut catalog, found) = Catalog::open(catalog, host.now()).unwrap();
    if found != Found::Whole {
        let jobs = host.records();
        let remembered = Remembered::from_records(jobs.clone());
        catalog.change(|catalog| remembered.put(&jobs, catalog).and_then(|()| catalog.complete())).unwrap();
    }
    let remembered = Remembered::of(&catalog).unwrap();
    Scheduler::new(host.clone(), host.clone(), catalog, Arc::clone(policies), remembered, host.now()).unwrap()
}

/// Lets `span` of the world's time pass, and starts the daemon again whenever it dies.
pub fn play(host: &Host, scheduler: &mut Option<Simulated>, path: &Path, policies: &Arc<Policies>, span: Duration) {
    play_in_steps(host, scheduler, path, policies, span, Duration::from_secs(1));
}

/// The same with a daemon that looks no more often than each `step`.
pub fn play_in_steps(
    host: &Host,
    scheduler: &mut Option<Simulated>,
    path: &Path,
    policies: &Arc<Policies>,
    span: Duration,
    step: Duration,
) {
    play_watched(host, scheduler, path, policies, (span, step), |_| {});
}

/// The same, and shows to `see` what each look of the daemon came to.
pub fn play_watched(
    host: &Host,
    scheduler: &mut Option<Simulated>,
    path: &Path,
    policies: &Arc<Policies>,
    (span, step): (Duration, Duration),
    mut see: impl FnMut(&Simulated),
) {
    let until = host.now().checked_add(span).unwrap();
    loop {
        let daemon = scheduler.get_or_insert_with(|| started(host, path, policies));
        daemon.tick(host.now()).unwrap();
        daemon.take_news();
        if host.0.borrow().daemon_died {
            *scheduler = None;
            host.pass(Duration::from_secs(3));
            continue;
        }
        see(daemon);
        let next = daemon.wakes().into_iter().chain(host.next_end()).min().unwrap_or(until);
        let now = host.now();
        let soonest = now.checked_add(step).unwrap();
        if next.min(until) > now {
            host.0.borrow_mut().now = next.max(soonest).min(until);
        } else if now < until {
            host.pass(step);
        }
        if host.now() >= until {
            return;
        }
    }
}
