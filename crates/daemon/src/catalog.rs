//! What the daemon remembers: jobs, and when each duty was last begun. SQLite, because one of thousands is found at once.
//!
//! It is no truth. Every job leaves its record in a directory of its own ([`crate::records`]); a catalog that is damaged is moved
//! aside, and made anew from those.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};

use crate::alerts::Alert;
use crate::error::{Error, IoContext as _};
use crate::job::{Duty, Job, JobId, State, digits};

/// The form of the tables, once what is in them is all that should be.
const FORM: i64 = 2;

const TABLES: &str = "
    DROP TABLE IF EXISTS job; DROP TABLE IF EXISTS begun; DROP TABLE IF EXISTS achieved; DROP TABLE IF EXISTS space;
    CREATE TABLE begun (machine TEXT NOT NULL, duty TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (machine, duty)) WITHOUT ROWID;
    CREATE TABLE achieved (
        machine TEXT NOT NULL, duty TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (machine, duty)
    ) WITHOUT ROWID;
    CREATE TABLE space (at INTEGER PRIMARY KEY, free INTEGER NOT NULL);
";

/// Jobs: a row for each machine that one is for, all with the whole job. One of them leads: by that alone a job is listed once.
/// `state` is the job's, `own_state` what it came to for the row's machine.
const JOBS: &str = "
    CREATE TABLE job (
        id TEXT NOT NULL, machine TEXT NOT NULL, leads INTEGER NOT NULL, kind TEXT NOT NULL, duty TEXT, state TEXT NOT NULL,
        own_state TEXT NOT NULL, over INTEGER NOT NULL, due INTEGER NOT NULL, ended INTEGER, document TEXT NOT NULL,
        PRIMARY KEY (id, machine)
    ) WITHOUT ROWID;
    CREATE INDEX job_by_machine ON job (machine, id);
    CREATE INDEX job_by_machine_and_state ON job (machine, own_state, id);
    CREATE INDEX job_by_machine_and_end ON job (machine, ended);
    CREATE INDEX job_open ON job (over, id);
    CREATE INDEX job_by_state ON job (state, leads, id);
    CREATE INDEX job_by_end ON job (ended);
    CREATE INDEX job_by_kind_and_end ON job (kind, state, ended);
";

/// From the form before: of which each job had one row.
const JOBS_FROM_FORM_1: &str = "
    ALTER TABLE job RENAME TO job_of_form_1;
    DROP INDEX job_by_machine; DROP INDEX job_open; DROP INDEX job_by_end; DROP INDEX IF EXISTS job_by_state;
    DROP INDEX IF EXISTS job_by_machine_and_state; DROP INDEX IF EXISTS job_by_machine_and_end;
    DROP INDEX IF EXISTS job_by_kind_and_end;
";
const JOBS_OF_FORM_1: &str = "
    INSERT INTO job SELECT id, machine, 1, kind, duty, state, state, over, due, ended, document FROM job_of_form_1;
    DROP TABLE job_of_form_1;
";

/// What came later, beside tables that are in use. A catalog without it works as well, only with less to tell.
const ADDITIONS: &str = "
    CREATE TABLE IF NOT EXISTS alert (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
";

/// The catalog of a home.
#[derive(Debug)]
pub struct Catalog {
    database: Connection,
    path: PathBuf,
    /// Why the one that this one stands in for cannot be opened.
    stands_in: Option<String>,
}

/// How it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It was there.
    Whole,
    /// There was none, or one that was never completed: it is empty until [`Catalog::complete`].
    Anew {
        /// Where one is that could not be used.
        aside: Option<PathBuf>,
    },
}

/// Which jobs are listed.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of this machine.
    pub machine: Option<String>,
    /// In this state.
    pub state: Option<State>,
    /// At most so many, the latest.
    pub limit: usize,
}

const FORGET_OLD: &str = "DELETE FROM job WHERE ended < ?1";
const FORGET_ROUTINE: &str = "DELETE FROM job WHERE ended < ?1 AND kind = 'snapshot' AND state = 'done'";

impl Wanted {
    /// Only conditions that there are: with others, that are true without being asked, no index would be of use.
    fn query(&self) -> (String, Vec<Value>) {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        // Of a machine, what came of it for that one.
        let state = if self.machine.is_some() { "own_state" } else { "state" };
        for (column, value) in [("machine", self.machine.as_deref()), (state, self.state.map(State::as_str))] {
            if let Some(value) = value {
                conditions.push(format!("{column} = ?"));
                values.push(Value::from(value.to_owned()));
            }
        }
        if self.machine.is_none() {
            conditions.push("leads = 1".to_owned());
        }
        let conditions = conditions.join(" AND ");
        values.push(Value::from(i64::try_from(self.limit).unwrap_or(i64::MAX)));
        (format!("SELECT document FROM job WHERE {conditions} ORDER BY id DESC LIMIT ?"), values)
    }
}

fn ended_query(machine: Option<&str>, from: Timestamp, until: Timestamp) -> (String, Vec<Value>) {
    let mut values: Vec<Value> = machine.map(|machine| Value::from(machine.to_owned())).into_iter().collect();
    values.extend([ms(from), ms(until)].map(Value::from));
    let which = if machine.is_some() { "machine = ?" } else { "leads = 1" };
    (format!("SELECT document FROM job WHERE {which} AND ended >= ? AND ended < ? ORDER BY id"), values)
}

fn as_seen(job: Job, machine: Option<&str>) -> Job {
    machine.map_or_else(|| job.clone(), |machine| job.seen_from(machine))
}

fn ms(at: Timestamp) -> i64 {
    at.as_millisecond()
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Catalog {
    /// Opens the one at `path`, or makes one, which is to be completed.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Io`] when none can be made there.
    pub fn open(path: &Path, now: Timestamp) -> Result<(Self, Found), Error> {
        match Self::usable(path) {
            Ok((catalog, true)) => return Ok((catalog, Found::Whole)),
            Ok((catalog, false)) => return Ok((catalog, Found::Anew { aside: None })),
            // What is wrong with the place is not wrong with the catalog: nothing is moved for that.
            Err(error) if is_of_the_place(&error) => return Err(error),
            Err(error) => tracing::error!("the catalog is made anew: {error}"),
        }
        let aside = path.with_extension(format!("damaged-{}", digits(now)));
        std::fs::rename(path, &aside).or_io("move aside", path)?;
        for ending in ["-wal", "-shm"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(ending);
            let mut kept = aside.clone().into_os_string();
            kept.push(ending);
            // Where there is none.
            let _ = std::fs::rename(beside, kept);
        }
        Ok((Self::usable(path)?.0, Found::Anew { aside: Some(aside) }))
    }

    /// Says that one that was made anew has in it what records tell: with that, it is found whole. Within [`Catalog::change`], so that
    /// one that was completed in part is not.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn complete(&self) -> Result<(), Error> {
        Ok(self.database.pragma_update(None, "user_version", FORM)?)
    }

    /// One that is only read, beside whoever writes it.
    ///
    /// # Errors
    /// [`Error::Catalog`] when there is none, or none that can be read.
    pub fn reader(path: &Path) -> Result<Self, Error> {
        use rusqlite::OpenFlags;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        database.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(Self { database, path: path.to_owned(), stands_in: None })
    }

    /// An empty one, in memory.
    pub(crate) fn in_memory(path: &Path) -> Result<Self, Error> {
        let database = Connection::open_in_memory()?;
        database.execute_batch(&format!("BEGIN; {TABLES} {JOBS} {ADDITIONS} COMMIT;"))?;
        Ok(Self { database, path: path.to_owned(), stands_in: None })
    }

    /// The same as a stand-in for one that cannot be opened now, and why not: what is in it can be read, and what would have to be kept
    /// cannot be.
    pub(crate) fn standing_in(mut self, why: String) -> Self {
        self.stands_in = Some(why);
        self
    }

    /// Whether it stands in for one that cannot be opened now.
    #[must_use]
    pub fn stands_in(&self) -> bool {
        self.stands_in.is_some()
    }

    /// Says why nothing can be kept in it.
    ///
    /// # Errors
    /// [`Error::Refused`] when it stands in for another.
    pub fn can_keep(&self) -> Result<(), Error> {
        let refused = |why: &String| Error::Refused(format!("the catalog cannot be opened: {why}"));
        self.stands_in.as_ref().map_or(Ok(()), |why| Err(refused(why)))
    }

    /// One that can be used, and whether it is complete.
    fn usable(path: &Path) -> Result<(Self, bool), Error> {
        let database = Connection::open(path)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        // Nothing that was answered for is lost in a power cut.
        database.pragma_update(None, "synchronous", "FULL")?;
        database.pragma_update(None, "wal_autocheckpoint", 2000)?;
        database.busy_timeout(std::time::Duration::from_secs(5))?;
        let sound: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if sound != "ok" {
            return Err(Error::Refused(format!("SQLite finds it damaged: {sound}")));
        }
        let form: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match form {
            0 => database.execute_batch(&format!("BEGIN; {TABLES} {JOBS} COMMIT;"))?,
            1 => database.execute_batch(&format!(
                "BEGIN; {JOBS_FROM_FORM_1} {JOBS} {JOBS_OF_FORM_1} PRAGMA user_version = {FORM}; COMMIT;"
            ))?,
            FORM => {}
            other => return Err(Error::Refused(format!("it is of form {other}, and this daemon knows {FORM}"))),
        }
        if let Err(error) = database.execute_batch(ADDITIONS) {
            tracing::warn!("the catalog stays as it was made: {error}");
        }
        let catalog = Self { database, path: path.to_owned(), stands_in: None };
        // Damage that only shows in what is read.
        catalog.open_jobs()?;
        catalog.begun()?;
        Ok((catalog, form != 0))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does what `change` does, all of it or nothing, durably.
    ///
    /// # Errors
    /// Those of `change`; [`Error::Catalog`]; [`Error::Refused`] when it stands in for another.
    pub fn change<T>(&mut self, change: impl FnOnce(&Self) -> Result<T, Error>) -> Result<T, Error> {
        self.can_keep()?;
        self.database.execute_batch("BEGIN IMMEDIATE")?;
        match change(self) {
            Ok(done) => {
                if let Err(error) = self.database.execute_batch("COMMIT") {
                    let _ = self.database.execute_batch("ROLLBACK");
                    return Err(error.into());
                }
                Ok(done)
            }
            Err(error) => {
                let _ = self.database.execute_batch("ROLLBACK");
                Err(error)
            }
        }
    }

    /// Keeps a job as it is now.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn put(&self, job: &Job) -> Result<(), Error> {
        // Machines may have left it, and it may be for one alone now.
        self.database.prepare_cached("DELETE FROM job WHERE id = ?1")?.execute([job.id.as_str()])?;
        let mut statement = self.database.prepare_cached(
            "INSERT INTO job (id, machine, leads, kind, duty, state, own_state, over, due, ended, document)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?;
        let document = serde_json::to_string(job)?;
        for machine in job.machines() {
            statement.execute(params![
                job.id.as_str(),
                machine,
                machine == job.machine,
                job.kind(),
                job.duty().map(Duty::key),
                job.state.as_str(),
                job.seen_from(machine).state.as_str(),
                job.state.is_over(),
                ms(job.due),
                job.ended.map(ms),
                document,
            ])?;
        }
        Ok(())
    }

    /// Remembers when a duty was begun.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn begin(&self, machine: &str, duty: &Duty, at: Timestamp) -> Result<(), Error> {
        let mut statement = self.database.prepare_cached("INSERT OR REPLACE INTO begun VALUES (?1, ?2, ?3)")?;
        statement.execute(params![machine, duty.key(), ms(at)])?;
        Ok(())
    }

    /// Forgets that a duty was begun: it is due.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn not_begun(&self, machine: &str, duty: &Duty) -> Result<(), Error> {
        let mut statement = self.database.prepare_cached("DELETE FROM begun WHERE machine = ?1 AND duty = ?2")?;
        statement.execute(params![machine, duty.key()])?;
        Ok(())
    }

    /// When each duty of each machine was begun last.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn begun(&self) -> Result<HashMap<(String, String), Timestamp>, Error> {
        let mut statement = self.database.prepare_cached("SELECT machine, duty, at FROM begun")?;
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), time(row.get(2)?))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Remembers the latest job of its kind that ended well.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn achieve(&self, machine: &str, duty: &str, job: &Job) -> Result<(), Error> {
        let mut statement = self.database.prepare_cached("INSERT OR REPLACE INTO achieved VALUES (?1, ?2, ?3)")?;
        statement.execute(params![machine, duty, serde_json::to_string(job)?])?;
        Ok(())
    }

    /// Forgets what was achieved: it was another machine's, or in another repository.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn not_achieved(&self, machine: &str, duty: &str) -> Result<(), Error> {
        let mut statement = self.database.prepare_cached("DELETE FROM achieved WHERE machine = ?1 AND duty = ?2")?;
        statement.execute(params![machine, duty])?;
        Ok(())
    }

    /// The latest job of each duty that ended well, or was a drill and ended at all.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn achieved(&self) -> Result<HashMap<(String, String), Job>, Error> {
        let mut statement = self.database.prepare_cached("SELECT machine, duty, document FROM achieved")?;
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, String>(2)?)))?;
        rows.map(|row| {
            let (key, document) = row?;
            Ok((key, serde_json::from_str(&document)?))
        })
        .collect()
    }

    /// Jobs that are not over, by age.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn open_jobs(&self) -> Result<Vec<Job>, Error> {
        let mut statement =
            self.database.prepare_cached("SELECT document FROM job WHERE over = 0 AND leads = 1 ORDER BY id")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
    }

    /// The latest job that was given up of each duty of which none ended well since.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn troubles(&self) -> Result<BTreeMap<(String, String), Job>, Error> {
        let mut statement = self.database.prepare_cached(
            "SELECT machine, duty, document FROM job AS failed
             WHERE over = 1 AND state = 'failed' AND own_state = 'failed' AND duty IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM job AS later WHERE later.machine = failed.machine AND later.id > failed.id
                 AND later.duty = failed.duty AND later.own_state IN ('done', 'incomplete'))
             ORDER BY id",
        )?;
        let rows =
            statement.query_map([], |row| Ok(((row.get::<_, String>(0)?, row.get(1)?), row.get::<_, String>(2)?)))?;
        rows.map(|row| {
            let (key, document) = row?;
            let job: Job = serde_json::from_str(&document)?;
            let seen = job.seen_from(&key.0);
            Ok((key, seen))
        })
        .collect()
    }

    /// One job.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn job(&self, id: &JobId) -> Result<Option<Job>, Error> {
        let mut statement = self.database.prepare_cached("SELECT document FROM job WHERE id = ?1 LIMIT 1")?;
        let document: Option<String> = statement.query_row([id.as_str()], |row| row.get(0)).optional()?;
        document.map(|document| Ok(serde_json::from_str(&document)?)).transpose()
    }

    /// The latest jobs, the latest first; those of a machine as it has them.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn jobs(&self, wanted: &Wanted) -> Result<Vec<Job>, Error> {
        let (query, values) = wanted.query();
        let mut statement = self.database.prepare_cached(&query)?;
        let rows = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(as_seen(serde_json::from_str(&row?)?, wanted.machine.as_deref()))).collect()
    }

    /// Jobs that ended at `from` or later, by age; those of a machine as it has them.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn ended_since(&self, machine: Option<&str>, from: Timestamp, until: Timestamp) -> Result<Vec<Job>, Error> {
        let (query, values) = ended_query(machine, from, until);
        let mut statement = self.database.prepare_cached(&query)?;
        let rows = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(as_seen(serde_json::from_str(&row?)?, machine))).collect()
    }

    /// Machines of which a job ended at `from` or later.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn machines_between(&self, from: Timestamp, until: Timestamp) -> Result<Vec<String>, Error> {
        let mut statement =
            self.database.prepare_cached("SELECT DISTINCT machine FROM job WHERE ended >= ?1 AND ended < ?2")?;
        let rows = statement.query_map(params![ms(from), ms(until)], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// When the oldest job ended that is remembered.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn first_ended(&self) -> Result<Option<Timestamp>, Error> {
        let first: Option<i64> = self.database.query_row("SELECT min(ended) FROM job", [], |row| row.get(0))?;
        Ok(first.map(time))
    }

    /// When the latest job ended that is remembered.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn last_ended(&self) -> Result<Option<Timestamp>, Error> {
        let last: Option<i64> = self.database.query_row("SELECT max(ended) FROM job", [], |row| row.get(0))?;
        Ok(last.map(time))
    }

    /// Forgets jobs that were over before `before`, and snapshots that were taken as they should before `routine`; returns how many.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn forget(&self, before: Timestamp, routine: Timestamp) -> Result<usize, Error> {
        let jobs = self.database.prepare_cached(FORGET_OLD)?.execute([ms(before)])?
            + self.database.prepare_cached(FORGET_ROUTINE)?.execute([ms(routine)])?;
        self.database.execute("DELETE FROM space WHERE at < ?1", [ms(before)])?;
        Ok(jobs)
    }

    /// Remembers which alerts there are: those that are new, and without those that are no more.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn note_alerts(&self, raised: &[Alert], cleared: &[Alert]) -> Result<(), Error> {
        let change = self.database.unchecked_transaction()?;
        for alert in raised {
            let document = serde_json::to_string(alert)?;
            change.execute("INSERT OR REPLACE INTO alert VALUES (?1, ?2)", params![alert.id, document])?;
        }
        for alert in cleared {
            change.execute("DELETE FROM alert WHERE id = ?1", [&alert.id])?;
        }
        Ok(change.commit()?)
    }

    /// The alerts that were noted.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`].
    pub fn alerts(&self) -> Result<Vec<Alert>, Error> {
        let mut statement = self.database.prepare("SELECT document FROM alert ORDER BY id")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
    }

    /// Remembers how much room there was.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn note_space(&self, at: Timestamp, free: u64) -> Result<(), Error> {
        let free = i64::try_from(free).unwrap_or(i64::MAX);
        self.database.execute("INSERT OR REPLACE INTO space VALUES (?1, ?2)", params![ms(at), free])?;
        Ok(())
    }

    /// How much room there was, by time.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn space(&self) -> Result<Vec<(Timestamp, u64)>, Error> {
        let mut statement = self.database.prepare_cached("SELECT at, free FROM space ORDER BY at")?;
        let rows = statement.query_map([], |row| {
            let free: i64 = row.get(1)?;
            Ok((time(row.get(0)?), u64::try_from(free).unwrap_or(0)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Whether a catalog cannot be used for want of room or rights, which making it anew would not change.
fn is_of_the_place(error: &Error) -> bool {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure,
    };
    matches!(error, Error::Catalog(rusqlite::Error::SqliteFailure(cause, _)) if matches!(
        cause.code,
        CannotOpen | DatabaseBusy | DatabaseLocked | DiskFull | PermissionDenied | ReadOnly | SystemIoFailure
    ))
}

#[cfg(test)]
mod tests {
    use keyframe_policy::PolicyName;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-29T12:00:00Z".parse().unwrap()
    }

    fn job() -> Job {
        let policy: PolicyName = "standard".parse().unwrap();
        Job::owed("db", &policy, Duty::Backup("away".to_owned()), now(), 0, now())
    }

    #[test]
    fn a_groups_job_is_found_by_each_of_its_machines_and_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = Catalog::open(&dir.path().join("catalog.db"), now()).unwrap();
        let mut group = job().for_group("shop", ["db", "mail", "web"].map(str::to_owned));
        catalog.put(&group).unwrap();
        group.retain(|machine| machine != "mail");
        (group.state, group.ended) = (State::Failed, Some(now()));
        catalog.put(&group).unwrap();
        let wanted = |machine: Option<&str>| Wanted { machine: machine.map(str::to_owned), state: None, limit: 10 };
        for (machine, jobs) in [(None, 1), (Some("db"), 1), (Some("web"), 1), (Some("mail"), 0)] {
            assert_eq!(catalog.jobs(&wanted(machine)).unwrap().len(), jobs, "{machine:?}");
        }
        assert_eq!(catalog.job(&group.id).unwrap().as_ref(), Some(&group));
        let after = now() + jiff::SignedDuration::from_secs(1);
        assert_eq!(catalog.ended_since(None, now(), after).unwrap(), std::slice::from_ref(&group));
        assert_eq!(catalog.ended_since(Some("web"), now(), after).unwrap(), [group.seen_from("web")]);
        let troubled: Vec<(String, String)> = catalog.troubles().unwrap().into_keys().collect();
        assert_eq!(troubled, ["db", "web"].map(|machine| (machine.to_owned(), "backup:away".to_owned())));
        // Of two machines one is left, then none: it is the first one's, and nothing of it is another's.
        for (stays, left) in [("web", vec!["web"]), ("nobody", vec!["db"])] {
            let mut job = job().for_group("shop", ["db", "web"].map(str::to_owned));
            catalog.put(&job).unwrap();
            job.retain(|machine| machine == stays);
            catalog.put(&job).unwrap();
            let open: Vec<String> = catalog.open_jobs().unwrap().into_iter().map(|job| job.machine).collect();
            assert_eq!(open, left);
            (job.state, job.ended) = (State::Cancelled, Some(now()));
            catalog.put(&job).unwrap();
            assert_eq!(catalog.open_jobs().unwrap(), []);
        }
        // By itself again.
        let mut alone = job();
        alone.machine = "web".to_owned();
        (alone.state, alone.ended) = (State::Done, Some(now()));
        alone.id = JobId::try_from("99991129000000-later".to_owned()).unwrap();
        catalog.put(&alone).unwrap();
        assert_eq!(catalog.troubles().unwrap().into_keys().map(|key| key.0).collect::<Vec<_>>(), ["db"]);
    }

    #[test]
    fn one_of_the_form_before_goes_on_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let database = Connection::open(&path).unwrap();
        let before = include_str!("catalog/form-1.sql");
        database.execute_batch(before).unwrap();
        drop(database);
        let (catalog, found) = Catalog::open(&path, now()).unwrap();
        assert_eq!(found, Found::Whole);
        let open = catalog.open_jobs().unwrap();
        assert_eq!(open.iter().map(|job| job.machine.as_str()).collect::<Vec<_>>(), ["web"]);
        assert_eq!(catalog.jobs(&Wanted { limit: 10, ..Wanted::default() }).unwrap().len(), 2);
        assert_eq!(catalog.begun().unwrap().len(), 1);
        drop(catalog);
        assert_eq!(
            Catalog::open(&path, now()).unwrap().0.jobs(&Wanted { limit: 10, ..Wanted::default() }).unwrap().len(),
            2
        );
    }

    #[test]
    fn what_was_put_is_found_again_after_opening_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let (mut catalog, found) = Catalog::open(&path, now()).unwrap();
        assert_eq!(found, Found::Anew { aside: None });
        let (open, mut over) = (job(), job());
        (over.state, over.ended) = (State::Done, Some(now()));
        let duty = over.duty().unwrap().clone();
        let change = |catalog: &Catalog| {
            catalog.put(&open)?;
            catalog.put(&over)?;
            catalog.begin("db", &duty, now())?;
            catalog.achieve("db", &duty.key(), &over)?;
            catalog.complete()
        };
        catalog.change(change).unwrap();
        drop(catalog);
        let (catalog, _) = Catalog::open(&path, now()).unwrap();
        assert_eq!(catalog.open_jobs().unwrap(), std::slice::from_ref(&open));
        assert_eq!(catalog.job(&over.id).unwrap(), Some(over.clone()));
        let key = ("db".to_owned(), "backup:away".to_owned());
        assert_eq!(catalog.begun().unwrap()[&key], now());
        assert_eq!(catalog.achieved().unwrap()[&key], over);
        let all = Wanted { limit: 10, ..Wanted::default() };
        assert_eq!(catalog.jobs(&all).unwrap().len(), 2);
        let done = Wanted { state: Some(State::Done), machine: Some("db".to_owned()), limit: 10 };
        assert_eq!(catalog.jobs(&done).unwrap(), [over]);
    }

    #[test]
    fn a_reader_sees_what_is_written_beside_it_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        assert!(Catalog::reader(&path).is_err() && !path.exists());
        let (catalog, _) = Catalog::open(&path, now()).unwrap();
        let reader = Catalog::reader(&path).unwrap();
        let mut over = job();
        (over.state, over.ended) = (State::Done, Some(now()));
        catalog.put(&over).unwrap();
        assert_eq!(reader.job(&over.id).unwrap(), Some(over.clone()));
        assert_eq!(reader.first_ended().unwrap(), Some(now()));
        let after = now() + jiff::SignedDuration::from_secs(1);
        assert_eq!(reader.machines_between(now(), after).unwrap(), ["db"]);
        assert!(reader.machines_between(after, after).unwrap().is_empty());
        assert!(reader.put(&over).is_err());
        // A daemon that was killed leaves its log, and no index of it.
        let killed = tempfile::tempdir().unwrap();
        for name in ["catalog.db", "catalog.db-wal"] {
            std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
        }
        let reader = Catalog::reader(&killed.path().join("catalog.db")).unwrap();
        assert_eq!(reader.job(&over.id).unwrap(), Some(over));
    }

    #[test]
    fn no_question_reads_the_whole_table() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = Catalog::open(&dir.path().join("catalog.db"), now()).unwrap();
        let plan = |(query, values): (String, Vec<Value>)| {
            let mut statement = catalog.database.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let steps = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            steps.map(Result::unwrap).collect::<Vec<String>>().join("; ")
        };
        let asked = |machine: Option<&str>, state| {
            let wanted = Wanted { machine: machine.map(str::to_owned), state, limit: 10 };
            plan(wanted.query())
        };
        let db = Some("db");
        assert_eq!(asked(db, None), "SEARCH job USING INDEX job_by_machine (machine=?)");
        assert_eq!(asked(None, Some(State::Failed)), "SEARCH job USING INDEX job_by_state (state=? AND leads=?)");
        let both = asked(db, Some(State::Failed));
        assert_eq!(both, "SEARCH job USING INDEX job_by_machine_and_state (machine=? AND own_state=?)");
        // In the order of the table, until there are enough.
        assert_eq!(asked(None, None), "SCAN job");
        let ended = plan(ended_query(db, now(), now()));
        assert!(ended.contains("USING INDEX job_by_machine_and_end (machine=? AND ended>? AND ended<?)"), "{ended}");
        let ended = plan(ended_query(None, now(), now()));
        assert!(ended.contains("USING INDEX job_by_end (ended>? AND ended<?)"), "{ended}");
        let forgets = |query: &str| plan((query.to_owned(), vec![Value::from(0)]));
        assert_eq!(forgets(FORGET_OLD), "SEARCH job USING INDEX job_by_end (ended<?)");
        assert_eq!(
            forgets(FORGET_ROUTINE),
            "SEARCH job USING INDEX job_by_kind_and_end (kind=? AND state=? AND ended<?)"
        );
    }

    #[test]
    fn alerts_are_found_again_as_they_were_raised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let alert = |id: &str| Alert {
            id: id.to_owned(),
            severity: crate::verdict::Severity::Critical,
            machine: Some("db".to_owned()),
            what: "it is so".to_owned(),
            advice: "see to it".to_owned(),
            since: now(),
        };
        let (catalog, _) = Catalog::open(&path, now()).unwrap();
        catalog.note_alerts(&[alert("a"), alert("b")], &[]).unwrap();
        catalog.note_alerts(&[], &[alert("a")]).unwrap();
        drop(catalog);
        let (catalog, _) = Catalog::open(&path, now()).unwrap();
        assert_eq!(catalog.alerts().unwrap(), [alert("b")]);
    }

    #[test]
    fn a_change_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut catalog, _) = Catalog::open(&dir.path().join("catalog.db"), now()).unwrap();
        let failed: Result<(), Error> = catalog.change(|catalog| {
            catalog.put(&job())?;
            Err(Error::Refused("no".to_owned()))
        });
        assert!(failed.is_err());
        assert!(catalog.open_jobs().unwrap().is_empty());
    }

    #[test]
    fn one_that_is_damaged_is_moved_aside_and_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let (mut catalog, _) = Catalog::open(&path, now()).unwrap();
        catalog.change(|catalog| (0..200).try_for_each(|_| catalog.put(&job()))).unwrap();
        drop(catalog);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[4096..middle].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let (catalog, found) = Catalog::open(&path, now()).unwrap();
        let Found::Anew { aside: Some(aside) } = found else { panic!("{found:?}") };
        assert_eq!(std::fs::read(aside).unwrap(), bytes, "nothing is thrown away");
        assert!(catalog.open_jobs().unwrap().is_empty());
        drop(catalog);
        std::fs::write(
            &path,
            b"no database at all, but longer than a header of one hundred bytes would be, to be sure of that",
        )
        .unwrap();
        assert!(matches!(Catalog::open(&path, now()).unwrap().1, Found::Anew { aside: Some(_) }));
    }

    #[test]
    fn one_that_was_never_completed_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.db");
        let (mut catalog, _) = Catalog::open(&path, now()).unwrap();
        // Killed while it was filled from records.
        catalog.change(|catalog| catalog.put(&job())).unwrap();
        drop(catalog);
        let (mut catalog, found) = Catalog::open(&path, now()).unwrap();
        assert_eq!(found, Found::Anew { aside: None });
        assert!(catalog.open_jobs().unwrap().is_empty(), "a part of it is not taken for all");
        catalog.change(|catalog| catalog.put(&job()).and_then(|()| catalog.complete())).unwrap();
        drop(catalog);
        let (catalog, found) = Catalog::open(&path, now()).unwrap();
        assert_eq!((found, catalog.open_jobs().unwrap().len()), (Found::Whole, 1));
    }

    #[test]
    fn what_was_given_up_is_remembered_until_it_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let (mut catalog, _) = Catalog::open(&dir.path().join("catalog.db"), now()).unwrap();
        let ended = |second: i64, state| {
            let policy: PolicyName = "standard".parse().unwrap();
            let at = now().checked_add(std::time::Duration::from_secs(second.unsigned_abs())).unwrap();
            let mut job = Job::owed("db", &policy, Duty::Backup("away".to_owned()), at, 0, at);
            (job.state, job.ended) = (state, Some(at));
            job
        };
        catalog.change(|catalog| catalog.put(&ended(1, State::Failed))).unwrap();
        assert_eq!(catalog.troubles().unwrap().len(), 1);
        catalog.change(|catalog| catalog.put(&ended(2, State::Cancelled))).unwrap();
        assert_eq!(catalog.troubles().unwrap().len(), 1);
        catalog.change(|catalog| catalog.put(&ended(3, State::Done))).unwrap();
        assert!(catalog.troubles().unwrap().is_empty());
    }
}
