//! The daemon's one thread that decides: takes wishes, lets the scheduler tick, keeps the log, publishes what is shown.

mod clock;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keyframe_engine::Home;
use keyframe_engine::state::durable;
use keyframe_engine::state::lock::Lock;
use tokio::sync::{broadcast, oneshot, watch};

use crate::access::{Caller, Role, Tokens};
use crate::alerts::{Alert, Alerts, Changes, Trouble};
use crate::approvals::{Approval, ApprovalId, Approvals, Decision};
use crate::audit::Audit;
use crate::ballast::Ballast;
use crate::catalog::{Catalog, Wanted};
use crate::deeds::Deed;
use crate::error::Error;
use crate::event::{Event, What};
use crate::fleet::Watched;
use crate::hands::Processes;
use crate::job::{Job, JobId, Request, State};
use crate::notify::Notifier;
use crate::places::Places;
use crate::recall::Recalled;
use crate::records::Records;
use crate::rules::Rules;
use crate::scheduler::Scheduler;
use crate::space::{Mark, Space};
use crate::unnoted::{Note, Unnoted};
use crate::verdict::{self, Severity};
use crate::view::{Counts, JobShown, Overview, PoliciesShown, View};
use clock::{Clock, since_boot};
use upkeep::Upkeep;

/// How long it waits for wishes between ticks.
const TICK: Duration = Duration::from_millis(250);
/// How often what is shown is made anew, although nothing happened: ages grow.
const SHOWN_EVERY: Duration = Duration::from_secs(5);
/// The same while commands are at work.
const SHOWN_EVERY_AT_WORK: Duration = Duration::from_secs(1);
/// How often room is noted.
const SPACE_EVERY: Duration = Duration::from_secs(600);
/// How often what is old is forgotten.
const FORGOTTEN_EVERY: Duration = Duration::from_secs(3600);
/// How long a machine is gone before it is told: `keyframe vm remove` leaves word of those that it removed.
const GONE_AFTER: Duration = Duration::from_secs(20);
/// How long it is told that a machine is gone.
const GONE_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long jobs are remembered.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(400 * 24 * 3600);
/// How long snapshots are that were taken as they should: there are most of them.
pub const ROUTINE_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long what their commands wrote is.
const ROUTINE_RECORDS_FOR: Duration = Duration::from_secs(2 * 24 * 3600);
/// How long what others' commands wrote is.
const RECORDS_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often those who listen are told that nothing happened.
const ALIVE_EVERY: Duration = Duration::from_secs(3600);
/// How long its end waits for what is to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(3);
/// How often a catalog is tried again that could not be opened.
const RECALLED_EVERY: Duration = Duration::from_secs(5);
/// How many events wait for a slow listener.
const HAPPENINGS: usize = 256;
/// How many jobs that are over are shown.
const LATEST: usize = 20;

/// How a daemon is set up.
#[derive(Debug)]
pub struct Config {
    /// The home that it serves.
    pub home: Home,
    /// Where policies are; where they always are if there is none.
    pub policies: Vec<PathBuf>,
    /// The `keyframe` that runs commands.
    pub program: PathBuf,
    /// Its version, as people are told.
    pub version: String,
    /// Set by whoever wants policies to be read again: SIGHUP.
    pub reload: Arc<AtomicBool>,
}

/// What somebody wants.
#[derive(Debug)]
pub enum Wish {
    /// Something done for a machine.
    Do(Deed),
    /// The same, once a second person approved it: every name in it was looked up, and its plan is complete.
    AskFor(Deed),
    /// A request decided on.
    Decide(ApprovalId, Decision, Role),
    /// A job ended.
    Cancel(JobId),
    /// Nothing new begun, or that again.
    Pause(bool),
    /// The policies read again.
    Reload,
}

/// A wish, whose it is, and where the answer goes.
#[derive(Debug)]
pub struct Wanting {
    /// What.
    pub wish: Wish,
    /// Who.
    pub by: String,
    /// What came of it.
    pub answer: oneshot::Sender<Result<Granted, Error>>,
}

/// What came of a wish.
#[derive(Debug)]
pub enum Granted {
    /// It is done.
    Done,
    /// It is queued.
    Job(Box<Job>),
    /// It waits for a second person, or is decided.
    Request(Box<Approval>),
}

/// What the server shares with the service.
#[derive(Debug)]
pub struct Shared {
    /// The home.
    pub home: Home,
    /// `HOME/serve`.
    pub serve: PathBuf,
    /// The `keyframe` that runs commands.
    pub program: PathBuf,
    /// What jobs left.
    pub records: Records,
    /// What is shown.
    view: RwLock<Arc<View>>,
    /// Counts up whenever that changes.
    pub changes: watch::Sender<u64>,
    /// What happens, as it does.
    pub happenings: broadcast::Sender<Event>,
    /// Wishes.
    wishes: std::sync::mpsc::Sender<Wanting>,
    audit: Mutex<Audit>,
    /// Why nobody can come over the network.
    unheard: Mutex<Option<Trouble>>,
}

impl Shared {
    /// Says why nobody can come over the network, or that they can.
    pub fn heard(&self, trouble: Option<Trouble>) {
        *self.unheard.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What is shown now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hands a wish over.
    ///
    /// # Errors
    /// What became of it.
    pub async fn wish(&self, wish: Wish, by: &str) -> Result<Granted, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::Refused("the daemon is about to end".to_owned());
        self.wishes.send(Wanting { wish, by: by.to_owned(), answer }).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Notes who did what.
    ///
    /// # Errors
    /// When it cannot be noted: then it must not be done.
    pub fn note(&self, who: &str, what: &str, result: &str) -> Result<(), Error> {
        self.note_at(Timestamp::now(), who, what, result)
    }

    fn note_at(&self, at: Timestamp, who: &str, what: &str, result: &str) -> Result<(), Error> {
        self.audit.lock().unwrap_or_else(PoisonError::into_inner).add(at, who, what, result)
    }

    /// The same, of a command, with its arguments as they are.
    ///
    /// # Errors
    /// When it cannot be noted: then it must not be done.
    pub fn note_command(&self, who: &str, what: &str, arguments: &[String], result: &str) -> Result<(), Error> {
        let mut audit = self.audit.lock().unwrap_or_else(PoisonError::into_inner);
        audit.add_command(Timestamp::now(), who, what, arguments, result)
    }

    /// A catalog to read in.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn catalog(&self) -> Result<Catalog, Error> {
        Catalog::reader(&catalog_file(&self.serve))
    }
}

/// Where the catalog is.
#[must_use]
pub fn catalog_file(serve: &Path) -> PathBuf {
    serve.join("catalog.db")
}

/// The directory of a home's daemon.
#[must_use]
pub fn directory(home: &Home) -> PathBuf {
    home.root().join("serve")
}

/// The service.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    fleet: Watched,
    scheduler: Scheduler<Watched, Processes>,
    /// Why what was decided cannot be kept.
    unkept: Option<String>,
    recalled: Instant,
    ballast: Ballast,
    unnoted: Unnoted,
    rules: Rules,
    approvals: Approvals,
    alerts: Alerts,
    wishes: Receiver<Wanting>,
    space: Space,
    places: Places,
    version: String,
    reload: Arc<AtomicBool>,
    host: String,
    troubles: Vec<String>,
    events: Vec<Event>,
    notifier: Notifier,
    shown: Instant,
    noted: Option<Instant>,
    forgotten: Instant,
    alive: Instant,
    clock: Clock,
    /// Since when machines are gone that were there.
    lost: BTreeMap<String, Instant>,
    upkeep: Upkeep,
    /// Who wants that nothing is begun, as long as that is so.
    paused_by: Option<String>,
    /// The machines that there were at the last turn.
    known: BTreeSet<String>,
    _lock: Lock,
}

impl Service {
    /// Takes the home, and goes on where the last daemon was. Where there is no room for what it would write, it shows that, and goes on
    /// as soon as there is some.
    ///
    /// # Errors
    /// [`Error::Engine`] with `Busy` when another serves it; whatever else keeps it from starting.
    pub fn start(config: Config, over: &Arc<AtomicBool>) -> Result<(Self, Arc<Shared>), Error> {
        let now = Timestamp::now();
        let serve = directory(&config.home);
        durable::create_private_dir(&serve)?;
        let lock = Lock::take(&serve.join("lock"), "serve")?;
        let ballast = Ballast::of(&serve);
        let records = Records::of(&serve);
        let Recalled { catalog, remembered, trouble } = Recalled::whatever_the_room(&serve, &records, now)?;
        let mut troubles: Vec<String> = trouble.into_iter().collect();
        let rules = Rules::read(config.home.root(), &serve, config.policies, now);
        let fleet = Watched::watch(&config.home, Arc::clone(over))?;
        let hands = Processes::new(config.program.clone(), config.home.root().to_owned(), records.clone());
        let space = Space::of(config.home.root(), marks(&catalog)?, now);
        let alerts = alerts_before(&catalog);
        let notifier = Notifier::start(&rules.policies.notify);
        let clock = Clock::of(now, catalog.last_ended()?);
        let policies = Arc::clone(&rules.policies);
        let mut scheduler = Scheduler::new(fleet.clone(), hands, catalog, policies, remembered, now)?;
        let paused_by = std::fs::read_to_string(paused_file(&serve)).ok();
        scheduler.pause(paused_by.is_some());
        let known = scheduler.machines().keys().cloned().collect();
        let (wish, wishes) = std::sync::mpsc::channel();
        let audit = match Audit::open(&serve) {
            Err(error) if error.may_want_room() => Audit::unread(&serve),
            audit => audit?,
        };
        troubles.extend(audit.torn().map(str::to_owned));
        let (approvals, unreadable) = Approvals::open(&serve)?;
        let shared = Arc::new(Shared {
            home: config.home,
            serve,
            program: config.program,
            records,
            view: RwLock::default(),
            changes: watch::Sender::new(0),
            happenings: broadcast::Sender::new(HAPPENINGS),
            wishes: wish,
            audit: Mutex::new(audit),
            unheard: Mutex::default(),
        });
        let mut service = Self {
            shared: Arc::clone(&shared),
            fleet,
            scheduler,
            unkept: None,
            recalled: Instant::now(),
            ballast,
            unnoted: Unnoted::default(),
            rules,
            approvals,
            alerts,
            wishes,
            space,
            places: Places::default(),
            version: config.version,
            reload: config.reload,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            troubles,
            events: Vec::new(),
            notifier,
            shown: Instant::now(),
            noted: None,
            forgotten: Instant::now(),
            alive: Instant::now(),
            clock,
            lost: BTreeMap::new(),
            upkeep: Upkeep::default(),
            paused_by,
            known,
            _lock: lock,
        };
        let version = service.version.clone();
        service.note_if_possible("keyframe serve", "start", &version);
        for what in unreadable {
            service.note_if_possible("keyframe serve", "read requests for approvals", &what);
            service.troubles.push(what);
        }
        service.expire(now);
        service.show(now);
        Ok((service, shared))
    }

    /// Serves until `over`, then leaves what is at work to itself: whoever starts next finds it.
    pub fn run(mut self, over: &AtomicBool, mut beat: impl FnMut()) {
        while !over.load(Ordering::Relaxed) {
            match self.wishes.recv_timeout(TICK) {
                Ok(wanting) => self.grant(wanting),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(wanting) = self.wishes.try_recv() {
                self.grant(wanting);
            }
            if self.reload.swap(false, Ordering::Relaxed) {
                self.rules.reload(Timestamp::now());
                self.use_rules("SIGHUP", Timestamp::now());
            }
            self.turn(Timestamp::now());
            beat();
        }
        self.scheduler.drain();
        self.show(Timestamp::now());
        let waiting = self.scheduler.jobs().filter(|job| job.state == State::Running).count();
        let result = format!("{waiting} job(s) go on by themselves");
        self.note_if_possible("keyframe serve", "stop", &result);
        let untold = self.notifier.finish(TOLD_WITHIN);
        if untold > 0 {
            tracing::warn!("{untold} message(s) reached nobody");
        }
    }

    fn turn(&mut self, now: Timestamp) {
        self.ballast.look();
        self.unnoted.write(|note| noted(&self.shared, note));
        self.recall(now);
        if self.rules.look(now) {
            self.use_rules("keyframe serve", now);
        }
        let audit = self.shared.audit.lock().unwrap_or_else(PoisonError::into_inner).head();
        self.scheduler.anchor(audit);
        let ticked = self.scheduler.tick(now);
        // Nothing was started when it could not be kept. The next tick tries again.
        let unkept = ticked.as_ref().err().map(Error::told);
        if let Some(why) = unkept.as_ref().filter(|_| self.unkept.is_none()) {
            tracing::error!("what was decided cannot be kept, nothing is begun until it can: {why}");
        }
        let changed = unkept.is_some() != self.unkept.is_some() || ticked.unwrap_or(false);
        self.unkept = unkept;
        let news = self.scheduler.take_news();
        let told = !news.is_empty();
        news.iter().for_each(|job| self.tell(job));
        let changed = self.expire(now) || changed;
        self.note_machines();
        self.forget_removed(now);
        // It is tried at each turn until it is kept.
        let _ = self.keep_pause();
        self.keep_up(now);
        self.look_after(now);
        let at_work = self.scheduler.jobs().any(|job| job.state == State::Running);
        let every = if at_work { SHOWN_EVERY_AT_WORK } else { SHOWN_EVERY };
        if changed || told || self.shown.elapsed() >= every {
            self.show(now);
        }
    }

    /// Notes a job that began or was over, and tells those who are to be told, of each of its machines.
    fn tell(&mut self, job: &Job) {
        if job.state.is_over() {
            let of = job.backup().map(|backup| format!(" {backup}")).unwrap_or_default();
            let (what, result) = (format!("{} {}{of}", job.kind(), job.subject()), job.told().unwrap_or_default());
            self.note_if_possible(&job.by, &what, &format!("{}: {result} (job {})", job.state.as_str(), job.id));
        }
        job.machines().for_each(|machine| self.tell_of(&job.seen_from(machine)));
    }

    fn tell_of(&mut self, job: &Job) {
        let of = job.backup().map(|backup| format!(" {backup}")).unwrap_or_default();
        let with = job.together.as_ref().map(|together| format!(" with group {}", together.group)).unwrap_or_default();
        let what = format!("{} {}{of}{with}", job.kind(), job.machine);
        let result = job.told().unwrap_or_default();
        let kind = match job.state {
            State::Running => What::JobBegan,
            State::Done => What::JobDone,
            State::Incomplete => What::JobIncomplete,
            State::Failed => What::JobFailed,
            State::Waiting | State::Cancelled => return,
        };
        let policy = match &job.request {
            Request::Owed { policy, .. } => Some(policy.clone()),
            Request::Asked(_) => None,
        };
        let advice =
            (job.state == State::Failed).then(|| format!("see HOME/serve/jobs/{} for all that it said", job.id));
        self.events.push(Event {
            what: kind,
            at: job.ended.or(job.began).unwrap_or(job.due),
            host: self.host.clone(),
            machine: Some(job.machine.clone()),
            policy,
            id: job.id.to_string(),
            kind: Some(job.kind().to_owned()),
            severity: None,
            text: if result.is_empty() {
                format!("{what}: {}", job.state.as_str())
            } else {
                format!("{what}: {result}")
            },
            advice,
        });
    }

    fn alert(&self, what: What, alert: &Alert, now: Timestamp) -> Event {
        let policy = alert.machine.as_ref().and_then(|name| self.scheduler.owed().get(name));
        Event {
            what,
            at: now,
            host: self.host.clone(),
            machine: alert.machine.clone(),
            policy: policy.map(|owed| owed.policy.to_string()),
            id: alert.id.clone(),
            kind: None,
            severity: Some(alert.severity),
            text: alert.what.clone(),
            advice: Some(alert.advice.clone()),
        }
    }

    /// What is done from time to time.
    fn look_after(&mut self, now: Timestamp) {
        if self.noted.is_none_or(|at| at.elapsed() >= SPACE_EVERY) {
            self.noted = Some(Instant::now());
            self.space = std::mem::take(&mut self.space).again(self.shared.home.root(), now);
            self.places.look(self.shared.home.root(), self.places_of_data(), now);
            if let Err(error) = self.scheduler.catalog().note_space(now, self.space.free_bytes) {
                tracing::warn!("the room that is left cannot be noted: {error}");
            }
        }
        if self.forgotten.elapsed() >= FORGOTTEN_EVERY && self.clock.is_right(now, since_boot()) {
            self.forgotten = Instant::now();
            let long_gone = now.checked_sub(GONE_FOR).unwrap_or(Timestamp::MIN);
            let gone: Vec<String> = self.scheduler.gone().map(str::to_owned).collect();
            let told = |name: &String| self.alerts.since(&gone_id(name)).is_some_and(|since| since < long_gone);
            for name in gone.iter().filter(|name| told(name)) {
                self.scheduler.forget_machine(name, now);
            }
            let before = |span: Duration| now.checked_sub(span).unwrap_or(Timestamp::MIN);
            if let Err(error) = self.scheduler.catalog().forget(before(REMEMBERED_FOR), before(ROUTINE_FOR)) {
                tracing::warn!("old jobs cannot be forgotten: {error}");
            }
            self.shared.records.forget(before(RECORDS_FOR), before(ROUTINE_RECORDS_FOR));
            self.approvals.forget(now);
        }
        if self.alive.elapsed() >= ALIVE_EVERY {
            self.alive = Instant::now();
            let counts = self.shared.view().overview.counts;
            self.events.push(Event {
                what: What::Alive,
                at: now,
                host: self.host.clone(),
                machine: None,
                policy: None,
                id: "alive".to_owned(),
                kind: None,
                severity: None,
                text: format!("{} of {} machines are protected", counts.protected, counts.machines),
                advice: None,
            });
        }
    }

    fn grant(&mut self, wanting: Wanting) {
        let now = Timestamp::now();
        let granted = self.granted(wanting.wish, &wanting.by, now);
        // Whoever is answered sees what came of it; who went away does not want to know.
        self.show(now);
        let _ = wanting.answer.send(granted);
    }

    fn granted(&mut self, wish: Wish, by: &str, now: Timestamp) -> Result<Granted, Error> {
        match wish {
            // Whichever way a deed came here: what needs an approval is not done without.
            Wish::Do(deed) if self.needs_approval(&deed) => {
                Err(Error::Refused("the policies ask for a second person's approval of this now: ask again".to_owned()))
            }
            Wish::Do(Deed { machine, action, .. }) => {
                let what = format!("{} {machine}", action.kind);
                self.shared.note_command(by, &what, &action.arguments, "asked for")?;
                let job = self.scheduler.ask(machine.as_str(), action, by, now)?;
                Ok(Granted::Job(Box::new(job)))
            }
            Wish::AskFor(deed) => self.let_wait(deed, by, now),
            Wish::Decide(id, decision, role) => {
                let caller = Caller { who: by.to_owned(), role };
                match decision {
                    Decision::Approve => self.approve(&id, &caller, now),
                    Decision::Refuse | Decision::Withdraw => self.decline(&id, decision, &caller, now),
                }
            }
            Wish::Cancel(id) => {
                self.note_if_possible(by, &format!("cancel job {id}"), "asked for");
                let job = self.scheduler.cancel(&id, by, now)?;
                Ok(Granted::Job(Box::new(job)))
            }
            Wish::Pause(paused) => {
                self.scheduler.pause(paused);
                self.paused_by = paused.then(|| by.to_owned());
                let result = match self.keep_pause() {
                    Ok(()) => "done".to_owned(),
                    Err(error) => format!("done; kept for the next start as soon as there is room: {error}"),
                };
                self.note_if_possible(by, if paused { "pause" } else { "resume" }, &result);
                Ok(Granted::Done)
            }
            Wish::Reload => {
                self.rules.reload(now);
                self.use_rules(by, now);
                Ok(Granted::Done)
            }
        }
    }

    fn needs_approval(&self, deed: &Deed) -> bool {
        let asked_for = &self.rules.policies.host.approval.asked_for;
        deed.wanted.needs().iter().any(|need| asked_for.contains(need))
    }

    /// Keeps a deed until a second person decides.
    fn let_wait(&mut self, deed: Deed, by: &str, now: Timestamp) -> Result<Granted, Error> {
        let uuid = self.scheduler.machines().get(deed.machine.as_str()).map(|seen| seen.uuid.clone());
        let approval = self.approvals.prepare(deed, uuid, by, self.rules.policies.host.approval.valid, now)?;
        let result = format!("{}: it waits for a second person until {}", approval.id, approval.until);
        self.shared.note_command(by, &approval.what(), &approval.action.arguments, &result)?;
        self.approvals.add(approval.clone())?;
        Ok(Granted::Request(Box::new(approval)))
    }

    /// Queues what waited, if it may still be done.
    fn approve(&mut self, id: &ApprovalId, caller: &Caller, now: Timestamp) -> Result<Granted, Error> {
        let approval = self.approvals.decidable(id, Decision::Approve, caller, now)?;
        if !Tokens::of(&self.shared.serve).still_may(&approval.by, approval.role, approval.at)? {
            let what = format!("{} asked for {id}, and may not any more: refuse it", approval.by);
            return Err(Error::Refused(what));
        }
        if !self.scheduler.machines().contains_key(&approval.machine) {
            return Err(Error::Refused(format!("there is no machine {} any more: refuse {id}", approval.machine)));
        }
        let seen = self.scheduler.machines().get(&approval.machine).map(|seen| seen.uuid.as_str());
        if approval.uuid.as_deref().is_some_and(|uuid| seen != Some(uuid)) {
            let what =
                format!("{} is another machine by now than the one that {id} is about: refuse it", approval.machine);
            return Err(Error::Refused(what));
        }
        let what = format!("approve {}", approval.what());
        let result = format!("{id}, which {} asked for", approval.by);
        self.shared.note_command(&caller.who, &what, &approval.action.arguments, &result)?;
        let (machine, action) = (approval.machine.clone(), approval.action.clone());
        let by = format!("{}, approved by {}", approval.by, caller.who);
        // Decided before it is queued: whatever happens in between, it is not done twice.
        let approval = self.approvals.decide(approval, Decision::Approve, &caller.who, now)?;
        match self.scheduler.ask(&machine, action, &by, now) {
            Ok(job) => Ok(Granted::Request(Box::new(self.approvals.became(approval, job.id)))),
            Err(error) => {
                self.note_if_possible(
                    "keyframe serve",
                    &what,
                    &format!("{id} waits on, it could not be queued: {error}"),
                );
                self.approvals.reopen(approval)?;
                Err(error)
            }
        }
    }

    /// Nothing comes of what waited. That is done even when it cannot be noted, as long as it can be kept.
    fn decline(
        &mut self,
        id: &ApprovalId,
        decision: Decision,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Granted, Error> {
        let approval = self.approvals.decidable(id, decision, caller, now)?;
        let (what, result) =
            (format!("{} {}", decision.as_str(), approval.what()), format!("{id}, which {} asked for", approval.by));
        let approval = self.approvals.decide(approval, decision, &caller.who, now)?;
        self.note_if_possible(&caller.who, &what, &result);
        Ok(Granted::Request(Box::new(approval)))
    }

    /// Ends what waited too long. Returns whether anything did.
    fn expire(&mut self, now: Timestamp) -> bool {
        let late = self.approvals.expire(now);
        for approval in &late {
            let result = format!("{}, which {} asked for: nobody decided", approval.id, approval.by);
            self.note_if_possible("keyframe serve", &format!("expire {}", approval.what()), &result);
        }
        !late.is_empty()
    }

    /// Notes what was done already, or makes less happen: that is done even when it cannot be noted yet, as the disk may be full.
    fn note_if_possible(&mut self, who: &str, what: &str, result: &str) {
        let [who, what, result] = [who, what, result].map(str::to_owned);
        let note = Note { at: Timestamp::now(), who, what, result };
        self.unnoted.note(note, |note| noted(&self.shared, note));
    }

    /// Goes on from a catalog that there was no room to open at the start, once there is.
    fn recall(&mut self, now: Timestamp) {
        if !self.scheduler.catalog().stands_in() || self.recalled.elapsed() < RECALLED_EVERY {
            return;
        }
        self.recalled = Instant::now();
        if let Err(error) = self.try_recall(now) {
            tracing::debug!("the catalog cannot be opened yet: {}", error.told());
        }
    }

    fn try_recall(&mut self, now: Timestamp) -> Result<(), Error> {
        let shared = &self.shared;
        let Recalled { catalog, remembered, trouble } = Recalled::from_catalog(&shared.serve, &shared.records, now)?;
        let (space, alerts) = (Space::of(shared.home.root(), marks(&catalog)?, now), alerts_before(&catalog));
        // The one before began nothing: there is nothing that only its hands know.
        let hands = Processes::new(shared.program.clone(), shared.home.root().to_owned(), shared.records.clone());
        let (fleet, policies) = (self.fleet.clone(), Arc::clone(&self.rules.policies));
        let paused = self.scheduler.paused();
        self.scheduler = Scheduler::new(fleet, hands, catalog, policies, remembered, now)?;
        self.scheduler.pause(paused);
        (self.space, self.alerts) = (space, alerts);
        self.troubles.extend(trouble);
        tracing::info!("the catalog could be opened: it goes on from there");
        Ok(())
    }

    fn use_rules(&mut self, by: &str, now: Timestamp) {
        let result = if self.rules.usable { "they count" } else { "a mistake: what was in force before stays" };
        self.note_if_possible(by, "read policies", result);
        self.scheduler.use_policies(Arc::clone(&self.rules.policies), now);
        self.notifier.use_settings(&self.rules.policies.notify);
        self.show(now);
    }

    /// Makes anew what is shown.
    fn show(&mut self, now: Timestamp) {
        self.shown = Instant::now();
        let rows = verdict::rows(&self.scheduler, now);
        let troubles = self.all_troubles(now);
        let changes = self.alerts.look(&rows, &self.rules, &self.space, &troubles, now);
        let raised: Vec<Event> = changes.raised.iter().map(|alert| self.alert(What::AlertRaised, alert, now)).collect();
        let cleared: Vec<Event> =
            changes.cleared.iter().map(|alert| self.alert(What::AlertCleared, alert, now)).collect();
        self.events.extend(raised.into_iter().chain(cleared));
        if changes != Changes::default() {
            let noted = self.scheduler.catalog().note_alerts(&changes.raised, &changes.cleared);
            if let Err(error) = noted {
                tracing::warn!("since when alerts are so cannot be noted: {error}");
            }
        }
        for event in self.events.drain(..) {
            self.notifier.tell(&event);
            // Where nobody listens.
            let _ = self.shared.happenings.send(event);
        }
        let alerts = self.alerts.all();
        let jobs = self.jobs_shown();
        let overview = Overview {
            schema: "keyframe.overview/1",
            now,
            version: self.version.clone(),
            host: self.host.clone(),
            home: self.shared.home.root().to_owned(),
            looked: self.scheduler.last_look().at,
            paused: self.scheduler.paused(),
            draining: self.scheduler.draining(),
            disk: self.space.clone(),
            policies: PoliciesShown {
                usable: self.rules.usable,
                files: self.rules.policies.files.clone(),
                loaded: self.rules.loaded,
                mistakes: self.rules.mistakes.iter().map(Into::into).collect(),
            },
            counts: Counts { approvals: self.approvals.waiting().count(), ..Counts::of(&rows, &jobs, &alerts) },
            approval: (&self.rules.policies.host.approval).into(),
            alerts,
            machines: rows,
            jobs,
        };
        let view = View {
            overview,
            seen: Arc::clone(self.scheduler.machines()),
            owed: Arc::clone(self.scheduler.owed()),
            approvals: self.approvals.shown(),
        };
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Directories with disks of machines, and repositories.
    fn places_of_data(&self) -> BTreeSet<PathBuf> {
        let disks = self.scheduler.machines().values().flat_map(|seen| &seen.disks);
        let disks = disks.filter_map(|(_, path)| path.parent().map(Path::to_owned));
        let backups = self.scheduler.owed().values().flat_map(|owed| &owed.backups);
        let local = backups.filter(|backup| !backup.repository.contains("://"));
        disks.chain(local.map(|backup| PathBuf::from(&backup.repository))).collect()
    }

    /// What is wrong with the daemon itself, and with what it does.
    fn all_troubles(&self, now: Timestamp) -> Vec<Trouble> {
        let said = self.troubles.iter().cloned().chain(self.notifier.troubles()).map(Trouble::in_log);
        let mut all: Vec<Trouble> = said.collect();
        all.extend(self.shared.unheard.lock().unwrap_or_else(PoisonError::into_inner).clone());
        all.extend(self.unkept.as_deref().map(unkept));
        all.extend(self.unnoted.trouble());
        all.extend(self.ballast.trouble());
        all.extend(self.approvals.waiting().map(|approval| Trouble {
            id: format!("approval/{}", approval.id),
            severity: Severity::Warning,
            machine: Some(approval.machine.clone()),
            what: format!(
                "{} asked for: {}; it waits for a second person's approval until {}",
                approval.by,
                approval.what(),
                approval.until
            ),
            advice: format!(
                "approve or refuse {} in the dashboard or with `keyframe approvals`, as another one with the role {}",
                approval.id,
                approval.role.as_str()
            ),
        }));
        all.extend(Trouble::at_work(&self.scheduler, now));
        all.extend(self.places.troubles());
        let missed = |name: &&str| self.lost.get(*name).is_none_or(|at| at.elapsed() >= GONE_AFTER);
        all.extend(self.scheduler.gone().filter(missed).map(|name| Trouble {
            id: gone_id(name),
            severity: Severity::Critical,
            machine: Some(name.to_owned()),
            what: "it is gone: it was looked after, and nothing is done for it any more".to_owned(),
            advice: format!(
                "`keyframe points` lists what is left of it, `keyframe restore` brings it back; it was not removed by \
                 `keyframe vm remove`, which would have left word; this ends by itself after {}",
                keyframe_types::text::span(GONE_FOR.as_secs())
            ),
        }));
        all
    }

    fn jobs_shown(&self) -> Vec<JobShown> {
        let mut open: Vec<&Job> = self.scheduler.jobs().collect();
        open.sort_by_key(|job| (job.state != State::Running, job.due));
        let shown = |job: &Job| {
            let at_work = job.state == State::Running;
            let progress = at_work.then(|| self.shared.records.progress(&job.id, job.commands)).flatten();
            JobShown::of(job, progress)
        };
        let mut jobs: Vec<JobShown> = open.into_iter().map(shown).collect();
        let latest = Wanted { limit: LATEST + jobs.len(), ..Wanted::default() };
        match self.scheduler.catalog().jobs(&latest) {
            Ok(latest) => {
                let over = latest.iter().filter(|job| job.state.is_over()).take(LATEST);
                jobs.extend(over.map(|job| JobShown::of(job, None)));
            }
            Err(error) => tracing::warn!("the latest jobs cannot be listed: {error}"),
        }
        jobs
    }
}

/// By which name it is told that a machine is gone.
fn gone_id(machine: &str) -> String {
    format!("gone/{machine}")
}

/// Where `keyframe vm remove` leaves word of whom it removed.
#[must_use]
pub fn removed_dir(serve: &Path) -> PathBuf {
    serve.join("removed")
}

/// What is there while nothing is to be begun: who wanted that.
fn paused_file(serve: &Path) -> PathBuf {
    serve.join("paused")
}

fn noted(shared: &Shared, note: &Note) -> Result<(), Error> {
    shared.note_at(note.at, &note.who, &note.what, &note.result)
}

/// The trouble that what was decided cannot be kept.
fn unkept(why: &str) -> Trouble {
    Trouble {
        id: "unkept".to_owned(),
        severity: Severity::Critical,
        machine: None,
        what: format!("what is decided cannot be kept, and nothing is begun until it can: {why}"),
        advice: "make room, `keyframe cost` says what takes it; what is due is caught up by itself".to_owned(),
    }
}

/// How much room there was.
fn marks(catalog: &Catalog) -> Result<Vec<Mark>, Error> {
    Ok(catalog.space()?.into_iter().map(|(at, free_bytes)| Mark { at, free_bytes }).collect())
}

/// Goes on from the alerts that the daemon before told.
fn alerts_before(catalog: &Catalog) -> Alerts {
    Alerts::after(catalog.alerts().unwrap_or_else(|error| {
        tracing::warn!("since when alerts are so is not known: {error}");
        Vec::new()
    }))
}
