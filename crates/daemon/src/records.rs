//! What a job leaves in a directory of its own, so that nothing depends on a database.
//!
//! ```text
//!   HOME/serve/jobs/ID/job.json      the job as it was when its last command began, or when it was over
//!   HOME/serve/jobs/ID/hand.lock     held by the process that runs its command
//!   HOME/serve/jobs/ID/hand.pid      its command: pid, when that was started, in which boot
//!   HOME/serve/jobs/ID/hand.err      what that process says, when it cannot do what it is for
//!   HOME/serve/jobs/ID/N.out         the document that its command number N wrote
//!   HOME/serve/jobs/ID/N.err         what it told a person
//!   HOME/serve/jobs/ID/N.progress    how far it is
//!   HOME/serve/jobs/ID/N.exit        its exit status: it has ended
//! ```

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use keyframe_engine::state::durable;
use serde_json::Value;

use crate::error::{Error, IoContext as _};
use crate::job::{Job, JobId, State};

/// The longest document of a command that is read, in bytes.
const DOCUMENT_MOST: u64 = 16 << 20;

/// How long past its time a record is looked at whether it may go.
const LOOKED_AT_FOR: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// When the job was queued that a directory is named after.
fn queued(name: &str) -> Option<Timestamp> {
    let digits = name.get(..14).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", digits).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

fn record(place: &Path) -> Option<Job> {
    serde_json::from_slice(&fs::read(place.join("job.json")).ok()?).ok()
}

/// Whether nothing more happens to a job; one without a record that can be read is none.
fn is_over(place: &Path) -> bool {
    record(place).is_none_or(|job| job.state.is_over())
}

fn is_routine(place: &Path) -> bool {
    record(place).is_some_and(|job| job.state == State::Done && job.kind() == "snapshot")
}

/// The directories of all jobs.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those below `HOME/serve`.
    #[must_use]
    pub fn of(serve: &Path) -> Self {
        Self { dir: serve.join("jobs") }
    }

    /// The directory of one job.
    #[must_use]
    pub fn place(&self, id: &JobId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// A file of one of its commands.
    #[must_use]
    pub fn file(&self, id: &JobId, command: u32, ending: &str) -> PathBuf {
        self.place(id).join(format!("{command}.{ending}"))
    }

    /// Writes a job's record, durably.
    ///
    /// # Errors
    /// [`Error::Engine`] for what cannot be written.
    pub fn keep(&self, job: &Job) -> Result<(), Error> {
        let place = self.place(&job.id);
        durable::create_private_dir(&place)?;
        durable::replace(&place.join("job.json"), &serde_json::to_vec_pretty(job)?)?;
        Ok(())
    }

    /// All records that can be read, by age.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be listed.
    pub fn all(&self) -> Result<Vec<Job>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_io("list", &self.dir)?,
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let path = entry.or_io("list", &self.dir)?.path().join("job.json");
            let Ok(bytes) = fs::read(&path) else { continue };
            match serde_json::from_slice::<Job>(&bytes) {
                Ok(job) => jobs.push(job),
                Err(error) => tracing::warn!("{} is no record of a job: {error}", path.display()),
            }
        }
        jobs.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(jobs)
    }

    /// Removes what jobs left that were queued before `before`, and before `routine` what is left of snapshots that were taken as
    /// they should.
    pub fn forget(&self, before: Timestamp, routine: Timestamp) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for (entry, queued) in
            entries.filter_map(|entry| Some((entry.path(), queued(&entry.file_name().to_string_lossy())?)))
        {
            // Those that stay beyond that were looked at when they were as old.
            let looked_at = routine.checked_sub(LOOKED_AT_FOR).unwrap_or(Timestamp::MIN);
            // A clock that jumped makes nobody's work old.
            if (queued < before && is_over(&entry)) || ((looked_at..routine).contains(&queued) && is_routine(&entry)) {
                // The next time, otherwise.
                let _ = fs::remove_dir_all(&entry);
            }
        }
    }

    /// The document that a command wrote.
    #[must_use]
    pub fn document(&self, id: &JobId, command: u32) -> Option<Value> {
        let file = fs::File::open(self.file(id, command, "out")).ok()?;
        let mut text = String::new();
        file.take(DOCUMENT_MOST).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The end of what a command told a person, at most `most` bytes.
    #[must_use]
    pub fn log(&self, id: &JobId, command: u32, most: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = fs::File::open(self.file(id, command, "err"))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
            let mut bytes = Vec::new();
            file.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// How far a command is, as it says itself.
    #[must_use]
    pub fn progress(&self, id: &JobId, command: u32) -> Option<Value> {
        let bytes = fs::read(self.file(id, command, "progress")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use keyframe_policy::PolicyName;

    use super::*;
    use crate::job::Duty;

    #[test]
    fn what_is_old_goes_and_routine_earlier() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::of(dir.path());
        let day = |day: i64| Timestamp::from_second(1_800_000_000 + day * 86_400).unwrap();
        let policy: PolicyName = "standard".parse().unwrap();
        let kept = |at, duty, state| {
            let mut job = Job::owed("db", &policy, duty, at, 0, at);
            job.state = state;
            records.keep(&job).unwrap();
            job.id
        };
        let ancient = kept(day(0), Duty::Drill, State::Done);
        let routine = kept(day(8), Duty::Snapshot, State::Done);
        let failed = kept(day(8), Duty::Snapshot, State::Failed);
        let fresh = kept(day(10), Duty::Snapshot, State::Done);
        records.forget(day(1), day(9));
        let left: Vec<JobId> = records.all().unwrap().into_iter().map(|job| job.id).collect();
        assert!(!left.contains(&ancient) && !left.contains(&routine), "{left:?}");
        assert!(left.contains(&failed) && left.contains(&fresh), "{left:?}");
    }
}
