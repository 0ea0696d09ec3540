//! From files to [`Policies`], with every mistake's place and remedy.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::owed::Policies;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The character of the line, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// How bad a mistake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// What is written cannot be meant, or not be kept: the files are not taken.
    Error,
    /// It may be meant; somebody should look.
    Warning,
}

/// Something wrong with what is written, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What became of reading the files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loaded {
    /// What they say; nothing where a mistake is an error.
    pub policies: Option<Policies>,
    /// All mistakes, by place.
    pub mistakes: Vec<Mistake>,
}

/// Reads all policies below some directories: of each its `*.toml`, then those of its `conf.d`, by name.
#[must_use]
pub fn load(_directories: &[&Path], _now: Timestamp) -> Loaded {
    todo!()
}
