//! Who does what when: asks what is due, queues it, starts as much as may be at once, sees how it ends.
//!
//! [`Scheduler::tick`] is all of it, and the clock is its parameter: a simulated year goes through the same code. What is decided
//! is in the catalog before a command is started, so whoever comes after a crash knows that it may have been: an attempt that
//! nobody saw the end of is looked for first, and is not made twice.

mod achieved;
mod agenda;
mod groups;
mod remembered;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_policy::window::Work;
use keyframe_policy::{Deadlines, Due, Owed, Policies, Timetable};

use crate::catalog::Catalog;
use crate::commands::{self, Means, Todo};
use crate::error::Error;
use crate::fleet::{Fleet, LastLook, Machines, SeenSnapshot, Snapshots};
use crate::hands::{Hands, Look};
use crate::job::{Action, Duty, Job, JobId, State, Step};
use crate::outcome::{self, Next};
use achieved::{note_trouble, sign};
use agenda::Agenda;
pub use remembered::Remembered;
use room::Room;

/// A machine and the name of a duty.
pub type Key = (String, String);

/// How often a repository is pruned.
const PRUNED_EVERY: Duration = Duration::from_secs(24 * 3600);

/// How many wishes wait for one machine.
const ASKED_MOST: usize = 20;

/// The scheduler.
#[derive(Debug)]
pub struct Scheduler<F, H> {
    fleet: F,
    hands: H,
    catalog: Catalog,
    policies: Arc<Policies>,
    machines: Arc<Machines>,
    owed: Arc<BTreeMap<String, Owed>>,
    begun: HashMap<Key, Timestamp>,
    achieved: HashMap<Key, Job>,
    troubles: BTreeMap<Key, Job>,
    agenda: Agenda,
    /// When a job of each duty was begun last.
    turns: HashMap<Key, Timestamp>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs and times that the catalog does not know yet.
    unsaved: BTreeSet<JobId>,
    over: Vec<Job>,
    /// What was made since, although the jobs that made it are not over.
    made: Vec<(Key, Job)>,
    /// What is another machine's, or another repository's, of the same name.
    strange: Vec<Key>,
    /// When duties were begun; nothing for those that are due again.
    unsaved_begun: BTreeMap<(String, Duty), Option<Timestamp>>,
    paused: bool,
    draining: bool,
    asked_at: Timestamp,
    anchor: Option<String>,
    news: Vec<Job>,
}

/// A command that is about to be started.
#[derive(Debug)]
struct Starting {
    id: JobId,
    line: commands::Line,
    /// It is the first of its job.
    fresh: bool,
}

impl<F: Fleet, H: Hands> Scheduler<F, H> {
    /// One that goes on from what is remembered.
    ///
    /// # Errors
    /// [`Error::Catalog`] when that cannot be kept.
    pub fn new(
        fleet: F,
        hands: H,
        catalog: Catalog,
        policies: Arc<Policies>,
        remembered: Remembered,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let mut scheduler = Self {
            fleet,
            hands,
            catalog,
            policies,
            machines: Arc::default(),
            owed: Arc::default(),
            begun: remembered.begun,
            achieved: remembered.achieved,
            troubles: remembered.troubles,
            agenda: Agenda::default(),
            turns: HashMap::new(),
            jobs: remembered.open.into_iter().map(|job| (job.id.clone(), job)).collect(),
            unsaved: BTreeSet::new(),
            over: Vec::new(),
            made: Vec::new(),
            strange: Vec::new(),
            unsaved_begun: BTreeMap::new(),
            paused: false,
            draining: false,
            asked_at: now,
            anchor: None,
            news: Vec::new(),
        };
        scheduler.see_machines(now);
        Ok(scheduler)
    }

    /// What is owed, by machine.
    #[must_use]
    pub fn owed(&self) -> &Arc<BTreeMap<String, Owed>> {
        &self.owed
    }

    /// The machines, as they were seen last.
    #[must_use]
    pub fn machines(&self) -> &Arc<Machines> {
        &self.machines
    }

    /// The policies that count.
    #[must_use]
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Jobs that are not over, by age.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The latest job of each duty that ended well; of drills, that ended at all.
    #[must_use]
    pub fn achieved(&self) -> &HashMap<Key, Job> {
        &self.achieved
    }

    /// Duties whose last job was given up.
    #[must_use]
    pub fn troubles(&self) -> &BTreeMap<Key, Job> {
        &self.troubles
    }

    /// Jobs that began or were over since this was asked last, as they were then.
    pub fn take_news(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.news)
    }

    /// When a duty was queued last.
    #[must_use]
    pub fn begun(&self, machine: &str, duty: &Duty) -> Option<Timestamp> {
        self.begun.get(&(machine.to_owned(), duty.key())).copied()
    }

    /// When machines were looked at last.
    #[must_use]
    pub fn last_look(&self) -> LastLook {
        self.fleet.last_look()
    }

    /// Jobs whose present command is at work for longer than its deadline, and for how long.
    pub fn hanging(&self, now: Timestamp) -> impl Iterator<Item = (&Job, Duration, Duration)> {
        let late = move |job: &Job| {
            let deadline = deadline(&self.policies.host.deadlines, job.kind());
            let began = job.command_began.or(job.began).filter(|began| *began < now)?;
            let at_work = now.duration_since(began).unsigned_abs();
            (at_work > deadline).then_some((at_work, deadline))
        };
        let running = self.jobs.values().filter(|job| job.state == State::Running);
        running.filter_map(move |job| late(job).map(|(at_work, deadline)| (job, at_work, deadline)))
    }

    /// What it remembers in.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// When a duty is looked at next: when it is due, as far as is known.
    #[must_use]
    pub fn next_of(&self, machine: &str, duty: &Duty) -> Option<Timestamp> {
        self.agenda.at(machine, duty)
    }

    /// The earliest time at which there may be something to do, besides seeing how commands end.
    #[must_use]
    pub fn wakes(&self) -> Option<Timestamp> {
        let retries = self.jobs.values().filter(|job| job.state == State::Waiting).filter_map(|job| job.retry_at);
        retries.chain(self.agenda.next()).min()
    }

    /// Whether nothing new is begun, by somebody's wish.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Begins nothing new, or goes on: what was missed meanwhile is caught up once.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The command that a machine wants, whatever policies say: one that goes on where another was ended, or one that lets go what is
    /// past its time.
    pub fn upkeep_of(&mut self, machine: &str, now: Timestamp) -> Option<&'static str> {
        let seen = self.machines.get(machine)?;
        if seen.unfinished {
            return Some("consolidate");
        }
        if seen.snapshots == 0 {
            return None;
        }
        let is_over = |one: &SeenSnapshot| one.expires.is_some_and(|at| at <= now) && !one.held;
        self.fleet.snapshots(machine).ok()?.iter().any(is_over).then_some("expire")
    }

    /// Whether nothing is begun any more.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Begins nothing any more.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// What is written into each point, so that the log of who did what cannot be changed unseen.
    pub fn anchor(&mut self, head: Option<String>) {
        self.anchor = head;
    }

    /// Uses other policies from now on.
    pub fn use_policies(&mut self, policies: Arc<Policies>, now: Timestamp) {
        self.policies = policies;
        self.reckon(now);
    }

    /// Queues what somebody asks for.
    ///
    /// # Errors
    /// [`Error::Refused`] for a machine that is not there; [`Error::Catalog`] when it cannot be kept: nothing is queued then.
    pub fn ask(&mut self, machine: &str, action: Action, by: &str, now: Timestamp) -> Result<Job, Error> {
        if !self.machines.contains_key(machine) {
            return Err(Error::Refused(format!("there is no machine {machine}")));
        }
        if self.draining {
            return Err(Error::Refused("the daemon is about to end".to_owned()));
        }
        if self.jobs.values().filter(|job| job.duty().is_none() && job.is_for(machine)).count() >= ASKED_MOST {
            return Err(Error::Refused(format!(
                "{ASKED_MOST} wishes for {machine} are not granted yet: wait, or cancel some"
            )));
        }
        let job = Job::asked(machine, action, by, now);
        self.catalog.change(|catalog| catalog.put(&job))?;
        self.jobs.insert(job.id.clone(), job.clone());
        Ok(job)
    }

    /// Ends a job: at once where it waits, otherwise its command is asked to.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that is over or was never there.
    pub fn cancel(&mut self, id: &JobId, by: &str, now: Timestamp) -> Result<Job, Error> {
        let Some(mut job) = self.jobs.get(id).cloned() else {
            return Err(Error::Refused(format!("there is no job {id} that could be cancelled")));
        };
        self.catalog.can_keep()?;
        job.cancelling = true;
        if job.state == State::Running {
            self.keep(job.clone());
            self.press(job, now);
            job = self.jobs[id].clone();
        } else if job.refuted {
            // That it did not come back stays said.
            job.steps.clear();
            job = self.finish(job, State::Failed, now);
        } else {
            job.what = Some(format!("cancelled by {by}"));
            job = self.finish(job, State::Cancelled, now);
        }
        self.save()?;
        Ok(job)
    }

    /// Does all that is to be done at `now`. Returns whether anything changed.
    ///
    /// # Errors
    /// [`Error::Catalog`] when what was decided cannot be kept: then nothing is started, and the next tick tries again.
    pub fn tick(&mut self, now: Timestamp) -> Result<bool, Error> {
        // A clock that was put back makes what was reckoned by it worthless.
        if now < self.asked_at {
            self.reckon(now);
            self.jobs.values_mut().for_each(|job| job.retry_at = None);
        }
        self.asked_at = now;
        self.see_machines(now);
        self.catalog.can_keep()?;
        let mut changed = self.see_commands(now);
        self.regroup(now);
        if !self.paused && !self.draining {
            while let Some((machine, duty)) = self.agenda.due(now) {
                changed |= self.ask_about(&machine, &duty, now);
            }
        }
        let starting = self.choose(now);
        changed |= !starting.is_empty() || !self.over.is_empty();
        if let Err(error) = self.save() {
            starting.iter().for_each(|starting| self.take_back(starting));
            return Err(error);
        }
        for starting in starting {
            self.start(&starting.id, &starting.line, now);
        }
        self.save()?;
        Ok(changed)
    }

    /// Machines come, go, and get other tags.
    fn see_machines(&mut self, now: Timestamp) {
        let machines = self.fleet.machines();
        if Arc::ptr_eq(&machines, &self.machines) {
            return;
        }
        fn named(machines: &Machines) -> impl Iterator<Item = (&String, &Vec<String>)> {
            machines.iter().map(|(name, seen)| (name, &seen.tags))
        }
        let known = named(&machines).eq(named(&self.machines));
        let same = known && machines.values().map(|seen| &seen.uuid).eq(self.machines.values().map(|seen| &seen.uuid));
        self.machines = machines;
        if !same {
            self.reckon(now);
        }
    }

    /// Reckons anew what is owed, and when.
    fn reckon(&mut self, now: Timestamp) {
        let owed = |(name, seen): (&String, &crate::fleet::Seen)| {
            Some((name.clone(), self.policies.for_machine(name, &seen.tags)?))
        };
        self.owed = Arc::new(self.machines.iter().filter_map(owed).collect());
        self.agenda = Agenda::default();
        self.forget_strangers(now);
        let all: Vec<(String, Duty)> = self
            .owed
            .iter()
            .flat_map(|(name, owed)| duties(owed).into_iter().map(move |duty| (name.clone(), duty)))
            .collect();
        for (machine, duty) in all {
            let at = self.decide(&machine, &duty, now);
            match at {
                Some(Due::Now { .. } | Due::Forget { .. }) => self.agenda.put(&machine, &duty, now),
                Some(Due::At { at, .. }) => self.agenda.put(&machine, &duty, at),
                Some(Due::Never) | None => {}
            }
        }
        let live =
            |key: &Key| self.owed.get(&key.0).is_some_and(|owed| duties(owed).iter().any(|duty| duty.key() == key.1));
        self.troubles.retain(|key, _| live(key));
    }

    fn decide(&self, machine: &str, duty: &Duty, now: Timestamp) -> Option<Due> {
        let owed = self.owed.get(machine)?;
        let (timetable, work) = timetable(owed, duty)?;
        let last = self.begun.get(&(machine.to_owned(), duty.key())).copied();
        Some(Due::decide(timetable, last, now).within(&owed.windows, work, now))
    }

    /// Queues a duty if it is due, with the machines that it is done together with; puts it on the agenda again.
    fn ask_about(&mut self, machine: &str, duty: &Duty, now: Timestamp) -> bool {
        let Some(due) = self.decide(machine, duty, now) else { return false };
        let band = self.band(machine);
        let queued = match due {
            Due::Now { since, missed } => {
                self.queue(&band, duty, since, missed, now);
                band.iter().for_each(|one| self.stamp(one, duty, due.stamp(now)));
                true
            }
            Due::Forget { .. } => {
                self.stamp(machine, duty, now);
                false
            }
            Due::At { .. } | Due::Never => false,
        };
        let asked: &[String] = if queued { &band } else { &[machine.to_owned()] };
        for one in asked {
            if let Some(Due::At { at, .. }) = self.decide(one, duty, now) {
                self.agenda.put(one, duty, at);
            }
        }
        queued
    }

    fn stamp(&mut self, machine: &str, duty: &Duty, at: Timestamp) {
        self.begun.insert((machine.to_owned(), duty.key()), at);
        self.unsaved_begun.insert((machine.to_owned(), duty.clone()), Some(at));
    }

    /// Takes back that a duty was begun, as nothing will come of it: it is due as soon as it is owed.
    fn unstamp(&mut self, machine: &str, duty: &Duty, now: Timestamp) {
        self.begun.remove(&(machine.to_owned(), duty.key()));
        self.unsaved_begun.insert((machine.to_owned(), duty.clone()), None);
        if self.owed.get(machine).is_some_and(|owed| duties(owed).contains(duty)) {
            self.agenda.put(machine, duty, now);
        }
    }

    /// Notes that a job is other than the catalog knows it.
    fn keep(&mut self, job: Job) {
        self.unsaved.insert(job.id.clone());
        self.jobs.insert(job.id.clone(), job);
    }

    /// Makes everything that was decided durable.
    fn save(&mut self) -> Result<(), Error> {
        if self.unsaved.is_empty() && self.over.is_empty() && self.unsaved_begun.is_empty() && self.strange.is_empty() {
            return Ok(());
        }
        let (jobs, over, begun) = (&self.jobs, &self.over, &self.unsaved_begun);
        let (made, strange) = (&self.made, &self.strange);
        let unsaved: Vec<&Job> = self.unsaved.iter().filter_map(|id| jobs.get(id)).collect();
        self.catalog.change(|catalog| {
            unsaved.iter().copied().chain(over).try_for_each(|job| catalog.put(job))?;
            strange.iter().try_for_each(|(machine, duty)| catalog.not_achieved(machine, duty))?;
            made.iter().try_for_each(|((machine, duty), job)| catalog.achieve(machine, duty, job))?;
            begun.iter().try_for_each(|((machine, duty), at)| match at {
                Some(at) => catalog.begin(machine, duty, *at),
                None => catalog.not_begun(machine, duty),
            })
        })?;
        self.unsaved.clear();
        self.over.clear();
        self.made.clear();
        self.strange.clear();
        self.unsaved_begun.clear();
        Ok(())
    }

    /// How commands do that are at work.
    fn see_commands(&mut self, now: Timestamp) -> bool {
        let running: Vec<Job> = self.jobs.values().filter(|job| job.state == State::Running).cloned().collect();
        let mut changed = false;
        for job in running {
            let look = self.hands.look(&job);
            if look != Look::AtWork {
                changed = true;
                self.settle(job, look, now);
            } else if job.cancelling {
                self.press(job, now);
            }
        }
        changed
    }

    /// Asks a command to end, once: asked a second time, it would drop everything. After a while it is killed.
    fn press(&mut self, mut job: Job, now: Timestamp) {
        match job.asked_to_end {
            // It may not have been there yet to be asked.
            None if self.hands.cancel(&job) => {
                job.asked_to_end = Some(now);
                self.keep(job);
            }
            None => {}
            Some(at) if now.duration_since(at).unsigned_abs() >= self.policies.host.deadlines.cancel => {
                self.hands.kill(&job);
            }
            Some(_) => {}
        }
    }

    fn settle(&mut self, mut job: Job, look: Look, now: Timestamp) {
        let pruning_failed = |job: &Job| job.steps.first() == Some(&Step::Prune);
        let next = outcome::settle(&mut job, look, now);
        sign(&mut job);
        if matches!(next, Next::GoOn) && !job.counted {
            self.count(&mut job);
        }
        if let Some(repository) = Some(&job).filter(|job| pruning_failed(job)).and_then(|job| self.repository(job)) {
            // Still the step that it was: it is due as before.
            if matches!(next, Next::Again(_) | Next::Over(_)) {
                self.begun.remove(&pruning(&repository));
            }
        }
        match next {
            Next::GoOn => {
                job.state = State::Waiting;
                self.keep(job);
            }
            Next::Again(after) => {
                job.state = State::Waiting;
                job.retry_at = now.checked_add(after).ok();
                self.keep(job);
            }
            Next::Over(state) => drop(self.finish(job, state, now)),
        }
    }

    fn finish(&mut self, mut job: Job, state: State, now: Timestamp) -> Job {
        job.given_up = state == State::Failed && !job.steps.is_empty();
        job.state = state;
        job.ended = Some(now);
        job.retry_at = None;
        job.steps.clear();
        self.jobs.remove(&job.id);
        self.unsaved.remove(&job.id);
        self.hands.over(&job);
        self.count_ended(&job);
        self.over.push(job.clone());
        self.news.push(job.clone());
        job
    }

    /// Makes a job that was not started one that waits again.
    fn take_back(&mut self, starting: &Starting) {
        let Some(mut job) = self.jobs.get(&starting.id).cloned() else { return };
        if job.steps.first() == Some(&Step::Prune)
            && let Some(repository) = self.repository(&job)
        {
            // It is due as before.
            self.begun.remove(&pruning(&repository));
        }
        job.state = State::Waiting;
        job.commands -= 1;
        if starting.fresh {
            job.began = None;
            self.news.retain(|news| news.id != job.id);
        }
        self.keep(job);
    }

    /// The commands that may be started now; their jobs are noted as running.
    fn choose(&mut self, now: Timestamp) -> Vec<Starting> {
        let ready = |job: &&Job| job.state == State::Waiting && job.retry_at.is_none_or(|at| at <= now);
        let mut waiting: Vec<Job> = self.jobs.values().filter(ready).cloned().collect();
        // What has begun is brought to its end first.
        waiting.sort_by_key(|job| (std::cmp::Reverse((job.began.is_some(), job.priority())), job.due));
        let mut room = Room::of(self);
        let mut starting = Vec::new();
        let mut first: BTreeSet<JobId> = BTreeSet::new();
        for job in waiting {
            // In its place one that it gives way to.
            let mut job = match self.before(&job, &room, &first, now) {
                Some(other) => {
                    first.insert(other.id.clone());
                    other
                }
                None if first.contains(&job.id) => continue,
                None => job,
            };
            let fresh = job.began.is_none();
            let begins = fresh || job.attempt > 1 && matches!(job.steps.first(), Some(Step::Main | Step::Drill(_)));
            if begins && !self.may_begin(&job, now) {
                continue;
            }
            if !room.has(&job, self) {
                // Younger ones do not take from it, disk by disk, what it waits for.
                room.reserve(&job, self);
                continue;
            }
            if let Some(line) = self.next_line(&mut job, now) {
                room.take(&job, self);
                job.state = State::Running;
                if matches!(job.steps.first(), Some(Step::Main | Step::Drill(_))) {
                    job.whose = self.whose(&job);
                }
                job.began = job.began.or(Some(now));
                (job.command_began, job.asked_to_end) = (Some(now), None);
                job.retry_at = None;
                job.commands += 1;
                if fresh {
                    self.news.push(job.clone());
                    if let Some(duty) = job.duty() {
                        self.turns.extend(job.machines().map(|machine| ((machine.to_owned(), duty.key()), now)));
                    }
                }
                starting.push(Starting { id: job.id.clone(), line, fresh });
                self.keep(job);
            }
        }
        starting
    }

    /// Which job of less weight goes before a duty's, on the same machine: one that has waited since before the duty's own latest turn.
    /// What comes due faster than it is done would leave nothing for others.
    fn before(&self, job: &Job, room: &Room, first: &BTreeSet<JobId>, now: Timestamp) -> Option<Job> {
        let duty = job.duty().filter(|_| job.began.is_none() && !first.contains(&job.id))?;
        let turn = job.machines().filter_map(|machine| self.turns.get(&(machine.to_owned(), duty.key()))).max()?;
        let waits = |other: &Job| {
            let ready =
                other.state == State::Waiting && other.began.is_none() && other.retry_at.is_none_or(|at| at <= now);
            ready && other.duty().is_some() && other.priority() < job.priority() && other.due < *turn
        };
        let beside = |other: &Job| job.machines().any(|machine| other.is_for(machine));
        let goes = |other: &&Job| {
            let ours = waits(other) && beside(other) && !first.contains(&other.id);
            ours && self.may_begin(other, now) && room.has(other, self)
        };
        self.jobs.values().filter(goes).max_by_key(|other| other.priority()).cloned()
    }

    /// Whether a job may be begun now: what somebody asked for always, what is owed when nothing is paused and a window permits it.
    fn may_begin(&self, job: &Job, now: Timestamp) -> bool {
        let Some(duty) = job.duty() else { return true };
        let owed = self.owed_by_its_policy(job);
        let permitted = owed.and_then(|owed| Some(owed.windows.permit(timetable(owed, duty)?.1, now)));
        // What is owed no more is looked at all the same: it is withdrawn.
        !self.paused && !self.draining && permitted.unwrap_or(true)
    }

    /// The next command of a job; nothing when the job is over without one.
    fn next_line(&mut self, job: &mut Job, now: Timestamp) -> Option<commands::Line> {
        let snapshots = self.snapshots(job);
        loop {
            let repository = self.repository(job);
            let pruned = repository.as_ref().and_then(|repository| self.begun.get(&pruning(repository)).copied());
            let owed = self.owed_by_its_policy(job);
            let host = &self.policies.host;
            let means = Means {
                owed,
                snapshots: &snapshots,
                now,
                share: host.bandwidth.map(|limit| (limit.bytes() / u64::from(host.jobs.max(1))).max(1)),
                prune_due: pruned.is_none_or(|at| now.duration_since(at).unsigned_abs() >= PRUNED_EVERY),
                anchor: self.anchor.as_deref(),
            };
            let step = job.steps.first().copied();
            match commands::todo(job, means) {
                Todo::Run(line) => {
                    if let (Some(Step::Prune), Some(repository)) = (step, repository) {
                        let (machine, duty) = pruning(&repository);
                        self.begun.insert((machine, duty), now);
                    }
                    return Some(line);
                }
                Todo::Nothing if job.steps.is_empty() => {
                    let state = outcome::verdict(job);
                    self.finish(job.clone(), state, now);
                    return None;
                }
                Todo::Nothing => {
                    outcome::passed_over(job, &snapshots);
                    sign(job);
                }
                // What was made, or proved, is not undone by that.
                Todo::Withdrawn(why) if job.made.is_some() || job.refuted => {
                    job.leave_untidy(step.map_or("what is left of it", Step::what), Some(&why));
                    job.steps.clear();
                    let state = outcome::verdict(job);
                    self.finish(job.clone(), state, now);
                    return None;
                }
                Todo::Withdrawn(why) => {
                    job.what = Some(why);
                    let ended = self.finish(job.clone(), State::Cancelled, now);
                    self.leave_to_other_policies(&ended, now);
                    return None;
                }
            }
        }
    }

    fn snapshots(&mut self, job: &Job) -> Snapshots {
        if !matches!(job.duty(), Some(Duty::Snapshot | Duty::Drill)) {
            return Snapshots::new();
        }
        let mut all = Snapshots::new();
        for machine in job.machines() {
            match self.fleet.snapshots(machine) {
                Ok(snapshots) => drop(all.insert(machine.to_owned(), snapshots)),
                // The command will say so, too: it is started, and fails for the same reason.
                Err(error) => tracing::warn!("{machine}: {error}"),
            }
        }
        all
    }

    fn repository(&self, job: &Job) -> Option<String> {
        let name = job.backup()?;
        let owed = self.owed_by_its_policy(job)?;
        owed.backups.iter().find(|backup| backup.name.as_str() == name).map(|backup| backup.repository.clone())
    }

    fn start(&mut self, id: &JobId, line: &commands::Line, now: Timestamp) {
        let Some(job) = self.jobs.get(id).cloned() else { return };
        if let Err(error) = self.hands.start(&job, line) {
            tracing::error!("{} of {}: {error}", job.kind(), job.subject());
            self.settle(job, Look::Vanished, now);
        }
    }
}

/// The name under which it is remembered when a repository was pruned last.
fn pruning(repository: &str) -> Key {
    (String::new(), format!("prune:{repository}"))
}

/// How long one command of a job of a kind may be at work.
fn deadline(deadlines: &Deadlines, kind: &str) -> Duration {
    match kind {
        "snapshot" => deadlines.snapshot,
        "backup" => deadlines.backup,
        "drill" | "test" => deadlines.drill,
        _ => deadlines.other,
    }
}

/// What a machine is owed again and again.
#[must_use]
pub fn duties(owed: &Owed) -> Vec<Duty> {
    let snapshot = owed.snapshot.is_some().then_some(Duty::Snapshot);
    let backups = owed.backups.iter().map(|backup| Duty::Backup(backup.name.to_string()));
    let drill = owed.drill.is_some().then_some(Duty::Drill);
    snapshot.into_iter().chain(backups).chain(drill).collect()
}

pub(crate) fn timetable<'a>(owed: &'a Owed, duty: &Duty) -> Option<(Timetable<'a>, Work)> {
    match duty {
        Duty::Snapshot => Some((owed.snapshot_times()?, Work::Snapshot)),
        Duty::Backup(name) => {
            let backup = owed.backups.iter().find(|backup| backup.name.as_str() == name)?;
            Some((owed.backup_times(backup), Work::Backup))
        }
        Duty::Drill => Some((owed.drill_times()?, Work::Drill)),
    }
}
