//! The logs that a report rests on.

use std::path::Path;

use jiff::Timestamp;
use keyframe_engine::drill::record::Verdict;
use keyframe_engine::evidence::Ledger;
use serde::Serialize;
use serde_json::Value;

use crate::audit;
use crate::error::Error;
use crate::outcome::took_ms;

/// The most flaws of a log that are told.
const MOST_FLAWS: usize = 20;
/// The longest document of a drill that is read, in bytes.
const MOST_DOCUMENT: u64 = 16 << 20;

/// A drill on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The name of its evidence.
    pub id: String,
    /// The machine.
    pub machine: String,
    /// The point: name, `@`, id.
    pub point: String,
    /// When it was entered.
    pub at: Timestamp,
    /// Whether it came back.
    pub passed: bool,
    /// How long that took, in milliseconds.
    pub took_ms: Option<u64>,
    /// What was seen, in a line.
    pub what: String,
}

/// A log, and whether it is as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogState {
    /// How many entries it has.
    pub entries: usize,
    /// The hash of the last one.
    pub head: Option<String>,
    /// What is wrong with it, the first of it.
    pub flaws: Vec<String>,
}

impl LogState {
    /// Whether every entry is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.flaws.is_empty()
    }
}

/// The evidence log: all drills, and whether it is sound.
///
/// # Errors
/// [`Error::Engine`] when it cannot be read.
pub fn evidence_log(ledger: &Ledger) -> Result<(Vec<Proof>, LogState), Error> {
    let lines = ledger.lines()?;
    let flaws = if lines.is_empty() { Vec::new() } else { ledger.verify(None, None)? };
    let proof = |line: &keyframe_engine::evidence::Line| {
        let entry = &line.entry;
        let document = document(&ledger.dir().join(&entry.document));
        Proof {
            id: entry.document.iter().next().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default(),
            machine: entry.point.split('@').next().unwrap_or_default().to_owned(),
            point: entry.point.clone(),
            at: entry.at.into(),
            passed: entry.verdict == Verdict::Passed,
            took_ms: took_ms(&document),
            what: document["trouble"].as_str().map_or_else(|| seen(&document), str::to_owned),
        }
    };
    let state = LogState {
        entries: lines.len(),
        head: lines.last().map(|line| line.hash.clone()),
        flaws: flaws.iter().take(MOST_FLAWS).map(|flaw| format!("entry {}: {}", flaw.line, flaw.what)).collect(),
    };
    Ok((lines.iter().map(proof).collect(), state))
}

fn document(path: &Path) -> Value {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_DOCUMENT).read_to_end(&mut bytes));
    // One that cannot be read is among the log's flaws.
    read.ok().and_then(|_| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null)
}

/// The first thing that was not as it should be.
fn seen(document: &Value) -> String {
    let checks = ["resume", "cold"].into_iter().filter_map(|way| document[way]["checks"].as_array()).flatten();
    let failed = checks.into_iter().find(|check| check["passed"] == false);
    failed.map_or_else(String::new, |check| {
        let (name, seen) = (check["name"].as_str().unwrap_or("?"), check["seen"].as_str().unwrap_or_default());
        format!("probe {name} failed: {seen}")
    })
}

/// The log of who did what, below `HOME/serve`.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
pub fn audit_log(serve: &Path) -> Result<LogState, Error> {
    let (entries, flaws) = audit::read(serve)?;
    Ok(LogState {
        entries: entries.len(),
        head: entries.last().map(|entry| entry.hash.clone()),
        flaws: flaws.iter().take(MOST_FLAWS).map(|flaw| format!("line {}: {}", flaw.line, flaw.what)).collect(),
    })
}
