//! How tests of a snapshot ended, kept beside it: `tests.json`, and in `tests/` what was seen.
//!
//! Evidence is written first, then the record that names it: the commit. Evidence that no record names (of a command that was
//! killed in between, or of records that had to make room) goes at the next test.

use std::path::{Path, PathBuf};

use keyframe_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bringup::Strategy;
use crate::drill::picture::Picture;
use crate::error::{Error, IoContext as _};
use crate::evidence;
use crate::state::home::SnapshotDir;
use crate::state::sealed::Document;
use crate::state::{durable, sealed};

/// The most tests of one snapshot that are remembered.
const MOST_RECORDS: usize = 10;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It came back, and did all that was asked of it.
    Passed,
    /// It did not.
    Failed,
}

impl Verdict {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at: a step of coming back, or a probe.
    pub name: String,
    /// Whether it was as it should be.
    pub passed: bool,
    /// When that was seen, from the start of the throw-away machine's process, in milliseconds; `None` for what was looked at before,
    /// and for what did not pass.
    pub after_ms: Option<f64>,
    /// What was seen.
    pub seen: String,
}

/// One test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// When it began.
    pub started: Timestamp,
    /// How it ended.
    pub verdict: Verdict,
    /// How memory came back; `None` when it did not get that far.
    pub strategy: Option<Strategy>,
    /// The limit for all probes together, from the start of the throw-away machine's process, in milliseconds.
    pub within_ms: u64,
    /// From the start of the throw-away machine's process until its vCPUs ran, in milliseconds.
    pub running_ms: Option<f64>,
    /// The whole test, with the check of the memory image, in milliseconds.
    pub total_ms: f64,
    /// Everything that was looked at, in order.
    pub checks: Vec<Check>,
    /// Its screen at the end: a PNG in the snapshot's `tests/`.
    pub screenshot: Option<String>,
    /// The end of what it wrote to its serial console: a file in the snapshot's `tests/`.
    pub serial: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

impl TestRecord {
    /// What did not pass.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }
}

/// How the last test of a snapshot ended, for a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTest {
    /// When it began.
    pub started: Timestamp,
    /// How it ended.
    pub verdict: Verdict,
}

/// The document.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tests {
    /// The oldest first.
    tests: Vec<TestRecord>,
}

impl Document for Tests {
    const SCHEMA: &'static str = "keyframe.tests/1";
}

/// All tests of a snapshot that are remembered, the oldest first.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
pub(crate) fn read(dir: &SnapshotDir) -> Result<Vec<TestRecord>, Error> {
    Ok(sealed::read(&dir.tests())?.map_or_else(Vec::new, |tests: Tests| tests.tests))
}

/// How the last test ended; `None` for a snapshot that was never tested, or of whose tests nothing can be read.
pub(crate) fn last(dir: &SnapshotDir) -> Option<LastTest> {
    let tests: Briefly = sealed::read(&dir.tests()).ok().flatten()?;
    tests.tests.into_iter().next_back()
}

/// The document as a list of many snapshots needs it.
#[derive(Debug, Serialize, Deserialize)]
struct Briefly {
    tests: Vec<LastTest>,
}

impl Document for Briefly {
    const SCHEMA: &'static str = Tests::SCHEMA;
}

/// What was seen, on its way to disk.
#[derive(Debug)]
pub(crate) struct Evidence {
    dir: PathBuf,
    stem: String,
}

impl Evidence {
    /// For one test that began at `started`.
    pub(crate) fn of(snapshot: &SnapshotDir, started: Timestamp) -> Self {
        Self { dir: snapshot.evidence(), stem: evidence::stem(started) }
    }

    /// Keeps a picture; says under which name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn keep_picture(&self, picture: &Picture) -> Result<String, Error> {
        let bytes = picture.to_png().or_io("encode the picture for", &self.dir)?;
        self.keep(&format!("{}.png", self.stem), &bytes)
    }

    /// Keeps the end of a serial log; says under which name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn keep_serial(&self, text: &[u8]) -> Result<String, Error> {
        self.keep(&format!("{}.serial.log", self.stem), text)
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<String, Error> {
        durable::create_private_dir(&self.dir)?;
        durable::replace(&self.dir.join(name), bytes)?;
        Ok(name.to_owned())
    }
}

/// Puts a test on record, forgets the oldest when there are too many, and removes evidence that no record names. Says
/// what could not be kept. The caller holds the snapshot's claim.
///
/// # Errors
/// [`Error::Io`] when the record cannot be written; the older ones are then as they were.
pub(crate) fn add(dir: &SnapshotDir, record: &TestRecord) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let mut tests = match read(dir) {
        Ok(tests) => tests,
        Err(error @ (Error::Damaged { .. } | Error::Schema { .. })) => {
            notes.push(format!("earlier tests are forgotten: {error}"));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    tests.push(record.clone());
    let spare = tests.len().saturating_sub(MOST_RECORDS);
    tests.drain(..spare);
    sealed::write(&dir.tests(), &Tests { tests: tests.clone() })?;
    if let Err(error) = drop_unnamed(&dir.evidence(), &tests) {
        notes.push(format!("evidence of tests that nobody remembers stays for now: {error}"));
    }
    Ok(notes)
}

fn drop_unnamed(dir: &Path, tests: &[TestRecord]) -> Result<(), Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.or_io("list", dir)?,
    };
    for entry in entries {
        let entry = entry.or_io("list", dir)?;
        let name = entry.file_name();
        let named = |file: &String| name.to_str() == Some(file.as_str());
        if !tests.iter().any(|test| test.screenshot.iter().chain(&test.serial).any(named)) {
            durable::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Writes a list of tests without waiting for the disk.
#[cfg(test)]
pub(crate) fn put_for_a_test(dir: &SnapshotDir, tests: &[TestRecord]) {
    let body = serde_json::to_string_pretty(&Tests { tests: tests.to_vec() }).unwrap();
    std::fs::write(dir.tests(), sealed::sealed(Tests::SCHEMA, &body)).unwrap();
}

#[cfg(test)]
mod tests {
    use keyframe_types::{SnapshotId, VmName};

    use super::*;
    use crate::state::home::Home;

    fn record(serial: Option<String>) -> TestRecord {
        TestRecord {
            started: Timestamp::now(),
            verdict: Verdict::Failed,
            strategy: Some(Strategy::Mapped),
            within_ms: 60_000,
            running_ms: Some(120.5),
            total_ms: 300.0,
            checks: vec![Check { name: "agent".into(), passed: false, after_ms: None, seen: "silence".into() }],
            screenshot: None,
            serial,
            notes: vec![],
        }
    }

    #[test]
    fn the_newest_are_kept_with_their_evidence_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let machine = Home::open(root.path()).unwrap().vm(&VmName::new("db").unwrap());
        let dir = machine.snapshot(&SnapshotId::random());
        std::fs::create_dir_all(dir.root()).unwrap();
        assert!(read(&dir).unwrap().is_empty() && last(&dir).is_none());
        // Left by a command that was killed before its record.
        Evidence::of(&dir, Timestamp::now()).keep_serial(b"x").unwrap();
        for _ in 0..MOST_RECORDS + 3 {
            let started = Timestamp::now();
            let kept = Evidence::of(&dir, started).keep_serial(b"hello").unwrap();
            assert!(add(&dir, &record(Some(kept))).unwrap().is_empty());
        }
        let tests = read(&dir).unwrap();
        assert_eq!(tests.len(), MOST_RECORDS);
        assert_eq!(std::fs::read_dir(dir.evidence()).unwrap().count(), MOST_RECORDS);
        assert!(tests.iter().all(|test| dir.evidence().join(test.serial.as_ref().unwrap()).exists()));
        assert_eq!(last(&dir).map(|last| last.verdict), Some(Verdict::Failed));
        assert_eq!(tests[0].failed().count(), 1);
    }

    #[test]
    fn a_damaged_record_is_said_and_does_not_stand_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let machine = Home::open(root.path()).unwrap().vm(&VmName::new("db").unwrap());
        let dir = machine.snapshot(&SnapshotId::random());
        std::fs::create_dir_all(dir.root()).unwrap();
        std::fs::write(dir.tests(), "{").unwrap();
        assert!(last(&dir).is_none());
        assert_eq!(add(&dir, &record(None)).unwrap().len(), 1);
        assert_eq!(read(&dir).unwrap().len(), 1);
    }
}
