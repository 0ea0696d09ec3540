//! Deeds that wait for a second person: somebody asked, and somebody else has to say yes.
//!
//! ```text
//!   waiting ── approved    by another caller whose role is good for the deed: its job is queued
//!           ├─ refused     by such a one
//!           ├─ withdrawn   by whoever asked
//!           └─ expired     by the clock
//! ```
//!
//! Each is a document of its own, `HOME/serve/approvals/ID.json`, written before anything follows from it. What was decided is never
//! open again, whatever the clock does. One that was approved when the daemon was killed may not have got its job: it is not done rather
//! than done twice. What is no such document is set aside and told; of one that is, the command is made again from what was wanted,
//! and has to be the same.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use keyframe_engine::state::durable;
use keyframe_policy::ApprovalRule;
use keyframe_types::VmName;
use serde::{Deserialize, Serialize};

use crate::access::{Caller, Role};
use crate::deeds::{Deed, Wanted};
use crate::error::{Error, IoContext as _};
use crate::job::{Action, JobId, JobIdError};

/// How many wait at once, and of one who asks.
const WAITING_MOST: usize = 100;
const WAITING_MOST_OF_ONE: usize = 20;
/// How often one asks within an hour: each time is on record, and others are to find theirs.
const ASKED_MOST_OF_ONE: usize = 60;
const HOUR: Duration = Duration::from_secs(3600);
/// How many that were decided are remembered, and for how long.
const DECIDED_MOST: usize = 200;
const DECIDED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest document, in bytes.
const LONGEST: usize = 256 << 10;

/// The name of one: made as a job's is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApprovalId(JobId);

impl TryFrom<String> for ApprovalId {
    type Error = JobIdError;

    fn try_from(text: String) -> Result<Self, JobIdError> {
        JobId::try_from(text).map(Self)
    }
}

impl FromStr for ApprovalId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has decided.
    Waiting,
    /// Another person said yes.
    Approved,
    /// Another person said no.
    Refused,
    /// Whoever asked does not want it any more.
    Withdrawn,
    /// Nobody decided in time.
    Expired,
}

impl State {
    /// As it is told.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
        }
    }
}

/// What somebody says to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Yes, by somebody else.
    Approve,
    /// No, by somebody else.
    Refuse,
    /// Not any more, by whoever asked.
    Withdraw,
}

impl Decision {
    /// As it is told.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Refuse => "refuse",
            Self::Withdraw => "withdraw",
        }
    }

    const fn leads_to(self) -> State {
        match self {
            Self::Approve => State::Approved,
            Self::Refuse => State::Refused,
            Self::Withdraw => State::Withdrawn,
        }
    }
}

/// Who decided, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A deed that waits, or waited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its name.
    pub id: ApprovalId,
    /// How far it is.
    pub state: State,
    /// Who asked.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Until when it waits.
    pub until: Timestamp,
    /// The machine.
    pub machine: String,
    /// Its UUID, as it was asked for: another machine by that name is none of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The role that the deed takes, and so whoever decides.
    pub role: Role,
    /// What is wanted, with every snapshot by its id.
    pub wanted: Wanted,
    /// The command: this one and no other is run.
    pub action: Action,
    /// What it would do, as it was when it was asked for.
    pub plan: Vec<String>,
    /// Who decided; nobody yet.
    pub decided: Option<Decided>,
    /// The job that came of it.
    pub job: Option<JobId>,
}

impl Approval {
    fn of(deed: Deed, uuid: Option<String>, by: &str, valid: Duration, now: Timestamp) -> Self {
        let Deed { machine, wanted, role, action, plan } = deed;
        Self {
            id: ApprovalId(JobId::at(now)),
            state: State::Waiting,
            by: by.to_owned(),
            at: now,
            // To the second: people read it.
            until: now
                .checked_add(valid)
                .and_then(|until| Timestamp::from_second(until.as_second()))
                .unwrap_or(Timestamp::MAX),
            machine: machine.to_string(),
            uuid,
            role,
            wanted,
            action,
            plan,
            decided: None,
            job: None,
        }
    }

    /// What it is about, in two words.
    #[must_use]
    pub fn what(&self) -> String {
        format!("{} {}", self.action.kind, self.machine)
    }

    /// Whether it could have been asked for: what is read from a file is not believed.
    fn is_sound(&self) -> bool {
        let made = VmName::new(&self.machine).ok().and_then(|vm| Deed::of(&vm, self.wanted.clone()).ok());
        let longest = self.at.checked_add(ApprovalRule::LONGEST).unwrap_or(Timestamp::MAX);
        made.is_some_and(|deed| deed.action == self.action && deed.role == self.role && !deed.wanted.needs().is_empty())
            && self.until <= longest
            && (self.state == State::Waiting) == self.decided.is_none()
    }

    /// Whether this caller may decide so now.
    fn may(&self, decision: Decision, caller: &Caller, now: Timestamp) -> Result<(), Error> {
        let (id, own) = (&self.id, caller.who == self.by);
        if self.state != State::Waiting {
            return Err(Error::Refused(format!("{id} is {} already", self.state.as_str())));
        }
        if now >= self.until {
            return Err(Error::Refused(format!("{id} waited until {}: ask for it again", self.until)));
        }
        match decision {
            Decision::Withdraw if own => Ok(()),
            Decision::Withdraw => {
                Err(Error::NotAllowed(format!("{} asked for {id}: only who asked withdraws it", self.by)))
            }
            Decision::Approve | Decision::Refuse if own => Err(Error::NotAllowed(format!(
                "{} asked for {id} and does not decide on it: another person does",
                self.by
            ))),
            Decision::Approve | Decision::Refuse if caller.role < self.role => Err(Error::NotAllowed(format!(
                "{} has the role {}, and to decide on {id} takes {}",
                caller.who,
                caller.role.as_str(),
                self.role.as_str()
            ))),
            Decision::Approve | Decision::Refuse => Ok(()),
        }
    }
}

/// All of a home.
#[derive(Debug)]
pub struct Approvals {
    dir: PathBuf,
    all: BTreeMap<ApprovalId, Approval>,
}

impl Approvals {
    /// Those below `HOME/serve`, and what was set aside of what is there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Engine`] when the directory cannot be read.
    pub fn open(serve: &Path) -> Result<(Self, Vec<String>), Error> {
        let dir = serve.join("approvals");
        durable::create_private_dir(&dir)?;
        let (mut all, mut troubles) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&dir).or_io("list", &dir)? {
            let path = entry.or_io("list", &dir)?.path();
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            match read(&path) {
                Ok(approval) => drop(all.insert(approval.id.clone(), approval)),
                Err(why) => troubles.push(set_aside(&path, &why)),
            }
        }
        Ok((Self { dir, all }, troubles))
    }

    fn path(&self, id: &ApprovalId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Writes one durably, and only then counts on it.
    fn keep(&mut self, approval: Approval) -> Result<(), Error> {
        let document = serde_json::to_vec_pretty(&approval)?;
        if document.len() > LONGEST {
            return Err(Error::Refused("what it would do is too long to be approved: ask for less at once".to_owned()));
        }
        durable::replace(&self.path(&approval.id), &document)?;
        self.all.insert(approval.id.clone(), approval);
        Ok(())
    }

    /// Those that wait, by age.
    pub fn waiting(&self) -> impl Iterator<Item = &Approval> {
        self.all.values().filter(|approval| approval.state == State::Waiting)
    }

    /// Those that wait, by age, then those that were decided, the latest first.
    #[must_use]
    pub fn shown(&self) -> Vec<Approval> {
        let mut decided: Vec<&Approval> =
            self.all.values().filter(|approval| approval.state != State::Waiting).collect();
        decided.sort_by_key(|approval| std::cmp::Reverse(approval.decided.as_ref().map(|decided| decided.at)));
        self.waiting().chain(decided).cloned().collect()
    }

    /// One that would wait, if there is room: nothing is kept yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when too many wait.
    pub fn prepare(
        &self,
        deed: Deed,
        uuid: Option<String>,
        by: &str,
        valid: Duration,
        now: Timestamp,
    ) -> Result<Approval, Error> {
        let hour = now.checked_sub(HOUR).unwrap_or(Timestamp::MIN)..=now;
        if self.all.values().filter(|one| one.by == by && hour.contains(&one.at)).count() >= ASKED_MOST_OF_ONE {
            return Err(Error::Refused(format!("{by} asked {ASKED_MOST_OF_ONE} times within an hour: wait")));
        }
        if self.waiting().filter(|approval| approval.by == by).count() >= WAITING_MOST_OF_ONE {
            let what = format!("{WAITING_MOST_OF_ONE} requests of {by} wait for an approval: withdraw some, or wait");
            return Err(Error::Refused(what));
        }
        if self.waiting().count() >= WAITING_MOST {
            return Err(Error::Refused(format!("{WAITING_MOST} requests wait for an approval: decide on some first")));
        }
        Ok(Approval::of(deed, uuid, by, valid, now))
    }

    /// Lets it wait.
    ///
    /// # Errors
    /// When it cannot be kept: then it does not wait.
    pub fn add(&mut self, approval: Approval) -> Result<(), Error> {
        self.keep(approval)
    }

    /// One that this caller may decide on so.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::NotAllowed`].
    pub fn decidable(
        &self,
        id: &ApprovalId,
        decision: Decision,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Approval, Error> {
        let found = self.all.get(id).ok_or_else(|| Error::Refused(format!("there is no request {id}")))?;
        found.may(decision, caller, now)?;
        Ok(found.clone())
    }

    /// Decides.
    ///
    /// # Errors
    /// When it cannot be kept: then it is not decided.
    pub fn decide(
        &mut self,
        mut approval: Approval,
        decision: Decision,
        by: &str,
        now: Timestamp,
    ) -> Result<Approval, Error> {
        approval.state = decision.leads_to();
        approval.decided = Some(Decided { by: by.to_owned(), at: now });
        self.keep(approval.clone())?;
        // Of those who ask and withdraw all day no more is remembered than of others.
        self.forget(now);
        Ok(approval)
    }

    /// Takes a decision back of which nothing came: it waits again.
    ///
    /// # Errors
    /// When it cannot be kept: then it stays decided.
    pub fn reopen(&mut self, mut approval: Approval) -> Result<(), Error> {
        (approval.state, approval.decided) = (State::Waiting, None);
        self.keep(approval)
    }

    /// Notes the job that came of one, if that can be kept: the job names both, too.
    pub fn became(&mut self, mut approval: Approval, job: JobId) -> Approval {
        approval.job = Some(job);
        if let Err(error) = self.keep(approval.clone()) {
            tracing::warn!("the job of {} cannot be kept: {error}", approval.id);
        }
        approval
    }

    /// Ends those for which nobody decided in time, and returns them.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Approval> {
        let late: Vec<Approval> = self.waiting().filter(|approval| now >= approval.until).cloned().collect();
        for mut approval in late.clone() {
            approval.state = State::Expired;
            approval.decided = Some(Decided { by: "keyframe serve".to_owned(), at: now });
            if let Err(error) = self.keep(approval.clone()) {
                // It ends all the same: its time is in its document.
                tracing::warn!("that {} expired cannot be kept: {error}", approval.id);
                self.all.insert(approval.id.clone(), approval);
            }
        }
        late
    }

    /// Forgets what was decided long ago.
    pub fn forget(&mut self, now: Timestamp) {
        let before = now.checked_sub(DECIDED_FOR).unwrap_or(Timestamp::MIN);
        let decided = self.shown().into_iter().filter_map(|approval| Some((approval.decided?.at, approval.id)));
        let old = decided.enumerate().filter(|(place, (at, _))| *place >= DECIDED_MOST || *at < before);
        for (_, (_, id)) in old {
            if let Err(error) = durable::remove_file(&self.path(&id)) {
                tracing::warn!("{id} cannot be removed: {error}");
            }
            self.all.remove(&id);
        }
    }
}

fn read(path: &Path) -> Result<Approval, String> {
    // What is no plain file may never end.
    let meta = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !meta.is_file() || meta.len() > LONGEST as u64 {
        return Err("it is no file, or too long a one".to_owned());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let approval: Approval = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if path.file_stem().is_none_or(|name| name != approval.id.to_string().as_str()) {
        return Err("it has another's name".to_owned());
    }
    if approval.is_sound() { Ok(approval) } else { Err("what it says cannot have been asked for".to_owned()) }
}

/// Puts what is no request where it is not read again, and says so.
fn set_aside(path: &Path, why: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_extension("json.unreadable");
    let moved = fs::rename(path, &aside).and_then(|()| durable::sync_parent(path).map_err(std::io::Error::other));
    let where_to = match moved {
        Ok(()) => format!("it is in approvals/{}", aside.file_name().unwrap_or_default().to_string_lossy()),
        Err(error) => format!("it cannot be moved aside: {error}"),
    };
    format!("{name} is no request for an approval ({why}): nothing comes of it, and {where_to}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VALID: Duration = Duration::from_secs(3600);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn who(who: &str, role: Role) -> Caller {
        Caller { who: who.to_owned(), role }
    }

    fn deletion() -> Deed {
        let wanted = serde_json::from_value(json!({"action": "delete", "snapshots": ["0123456789abcdef"]})).unwrap();
        Deed::of(&VmName::new("db").unwrap(), wanted).unwrap()
    }

    fn opened(serve: &Path) -> Approvals {
        let (approvals, troubles) = Approvals::open(serve).unwrap();
        assert_eq!(troubles, Vec::<String>::new());
        approvals
    }

    /// One that somebody with the token `ops` asked for.
    fn asked(approvals: &mut Approvals) -> Approval {
        let approval = approvals.prepare(deletion(), None, "token ops", VALID, at(0)).unwrap();
        approvals.add(approval.clone()).unwrap();
        approval
    }

    fn allowed(approvals: &Approvals, id: &ApprovalId, decision: Decision, caller: &Caller) -> Result<(), String> {
        approvals.decidable(id, decision, caller, at(10)).map(drop).map_err(|error| match error {
            Error::NotAllowed(what) => format!("not allowed: {what}"),
            error => error.to_string(),
        })
    }

    #[test]
    fn another_person_with_the_role_decides_and_only_who_asked_withdraws() {
        let dir = tempfile::tempdir().unwrap();
        let mut approvals = opened(dir.path());
        let id = asked(&mut approvals).id;
        let (ops, boss) = (who("token ops", Role::Admin), who("token boss", Role::Admin));
        let (root, lower) = (who("uid 0", Role::Admin), who("token night", Role::Restore));
        for decision in [Decision::Approve, Decision::Refuse] {
            let may = |caller| allowed(&approvals, &id, decision, caller);
            assert!(may(&ops).unwrap_err().starts_with("not allowed: token ops asked for"), "{decision:?}");
            assert!(may(&lower).unwrap_err().contains("has the role restore"), "{decision:?}");
            assert_eq!((may(&boss), may(&root)), (Ok(()), Ok(())), "{decision:?}");
        }
        assert_eq!(allowed(&approvals, &id, Decision::Withdraw, &ops), Ok(()));
        assert!(allowed(&approvals, &id, Decision::Withdraw, &boss).unwrap_err().starts_with("not allowed: "));
    }

    #[test]
    fn what_is_decided_stays_so_over_a_restart() {
        for decision in [Decision::Approve, Decision::Refuse, Decision::Withdraw] {
            let dir = tempfile::tempdir().unwrap();
            let mut approvals = opened(dir.path());
            let approval = asked(&mut approvals);
            assert_eq!(opened(dir.path()).waiting().collect::<Vec<_>>(), [&approval], "it waits, too");
            approvals.decide(approval.clone(), decision, "token boss", at(10)).unwrap();
            for approvals in [approvals, opened(dir.path())] {
                assert_eq!(approvals.waiting().count(), 0);
                let again = allowed(&approvals, &approval.id, Decision::Approve, &who("uid 0", Role::Admin));
                assert!(again.unwrap_err().contains("already"), "{decision:?}");
                assert_eq!(approvals.shown()[0].decided.as_ref().unwrap().by, "token boss");
            }
        }
    }

    #[test]
    fn nobody_decides_once_its_time_is_over_whatever_the_clock_does_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut approvals = opened(dir.path());
        let approval = asked(&mut approvals);
        let boss = who("token boss", Role::Admin);
        let may =
            |approvals: &Approvals, second| approvals.decidable(&approval.id, Decision::Approve, &boss, at(second));
        assert!(may(&approvals, 3599).is_ok());
        assert!(may(&approvals, 3600).is_err(), "before it is noted that it expired");
        assert_eq!(approvals.expire(at(3599)), []);
        assert_eq!(approvals.expire(at(3600)), std::slice::from_ref(&approval));
        assert_eq!(approvals.expire(at(3601)), [], "that is noted once");
        for mut approvals in [approvals, opened(dir.path())] {
            assert!(may(&approvals, 10).is_err(), "a clock that is put back does not open it again");
            assert_eq!((approvals.shown()[0].state, approvals.expire(at(4000))), (State::Expired, vec![]));
        }
    }

    #[test]
    fn what_is_no_request_is_set_aside_and_the_others_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut approvals = opened(dir.path());
        let good = asked(&mut approvals);
        let place = dir.path().join("approvals");
        let text = std::fs::read_to_string(approvals.path(&good.id)).unwrap();
        let changed = [
            ("half", text[..text.len() / 2].to_owned()),
            ("nothing", String::new()),
            ("long", format!("{text}{}", " ".repeat(LONGEST))),
            ("argument", text.replace("db@0123456789abcdef", "other@0123456789abcdef")),
            ("option", text.replace("\"delete\",\n      \"db", "\"delete\",\n      \"--detach\",\n      \"db")),
            ("role", text.replace("\"admin\"", "\"read\"")),
            ("machine", text.replace("\"machine\": \"db\"", "\"machine\": \"../db\"")),
            ("late", text.replace(&good.until.to_string(), "2099-01-01T00:00:00Z")),
            ("undecided", text.replace("\"waiting\"", "\"approved\"")),
        ];
        for (name, text) in &changed {
            let id = format!("20270115080000-{name}");
            let text = text.replace(&good.id.to_string(), &id);
            assert!(text.contains(&id) || text.len() < 300, "{name} was changed in what is meant");
            std::fs::write(place.join(format!("{id}.json")), text).unwrap();
        }
        std::fs::write(place.join("another.json"), &text).unwrap();
        std::fs::create_dir(place.join("directory.json")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.join("endless.json")).unwrap();
        let (found, troubles) = Approvals::open(dir.path()).unwrap();
        assert_eq!(found.shown(), std::slice::from_ref(&good));
        assert_eq!(troubles.len(), changed.len() + 3, "{troubles:#?}");
        assert!(troubles.iter().all(|what| what.contains("it is in approvals/")), "{troubles:#?}");
        assert_eq!(opened(dir.path()).shown(), [good], "they are told once");
    }

    #[test]
    fn who_asks_and_withdraws_all_the_time_is_told_to_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut approvals = opened(dir.path());
        let ask = |approvals: &Approvals, by: &str, second| approvals.prepare(deletion(), None, by, VALID, at(second));
        for second in 0..60 {
            let approval = ask(&approvals, "token ops", second).unwrap();
            approvals.add(approval.clone()).unwrap();
            approvals.decide(approval, Decision::Withdraw, "token ops", at(second)).unwrap();
        }
        assert!(ask(&approvals, "token ops", 60).unwrap_err().to_string().contains("60 times within an hour"));
        assert!(ask(&approvals, "token other", 60).is_ok());
        assert!(ask(&approvals, "token ops", 3601).is_ok(), "the first is more than an hour ago");
    }

    #[test]
    fn so_many_wait_and_so_many_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut approvals = opened(dir.path());
        let ask = |approvals: &mut Approvals, by: &str, second| {
            let approval = approvals.prepare(deletion(), None, by, VALID, at(second))?;
            approvals.add(approval.clone()).map(|()| approval)
        };
        for n in 0..WAITING_MOST {
            ask(&mut approvals, &format!("token t{}", n / WAITING_MOST_OF_ONE), 0).unwrap();
            if n + 1 == WAITING_MOST_OF_ONE {
                assert!(ask(&mut approvals, "token t0", 0).unwrap_err().to_string().contains("withdraw some"));
            }
        }
        assert_eq!(approvals.waiting().count(), WAITING_MOST);
        assert!(ask(&mut approvals, "uid 0", 0).unwrap_err().to_string().contains("decide on some first"));
        approvals.expire(at(4000));
        ask(&mut approvals, "uid 0", 4000).unwrap();
        let week = i64::try_from(DECIDED_FOR.as_secs()).unwrap();
        approvals.forget(at(week));
        assert!(approvals.shown().len() > WAITING_MOST, "what was decided at 4000 s is not old");
        approvals.forget(at(week + 4001));
        assert_eq!(approvals.shown().len(), 1, "only what waits");
        assert_eq!(opened(dir.path()).shown().len(), 1);
    }
}
