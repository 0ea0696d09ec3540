//! What a test can fail with before its own assertions do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the kit could not do what a test asked for.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file or socket that cannot be used.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program that cannot be started, or whose end cannot be waited for.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program that failed although the test depends on it.
    #[error("{command} ended with {status}\n{stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A program that did not come to an end, and was killed.
    #[error("{command} hung for {after:?}\n{stderr}")]
    Hung {
        /// What was run.
        command: String,
        /// For how long.
        after: Duration,
        /// What it said.
        stderr: String,
    },
    /// A program that ended, while something it started keeps its outputs open.
    #[error("{command} ended, but its outputs are held open by what it left behind\n{stderr}")]
    HeldOpen {
        /// What was run.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// JSON that lacks what the contract promises.
    #[error("{command} told no {field}: {json}")]
    Json {
        /// What was run.
        command: String,
        /// What is missing or of the wrong type.
        field: &'static str,
        /// What it told instead.
        json: String,
    },
    /// A guest that did not say what was waited for.
    #[error("no {what:?} within {within:?}; the last it said:\n{tail}")]
    Silent {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// The end of its serial log.
        tail: String,
    },
    /// A guest whose checker found a fault.
    #[error("the guest is not intact: {line}")]
    Corrupt {
        /// The first complaint.
        line: String,
    },
    /// QMP that cannot be understood or says no.
    #[error("QMP {command}: {answer}")]
    Monitor {
        /// What was asked.
        command: String,
        /// What came back.
        answer: String,
    },
    /// A page that does not become what was waited for, or a browser that says no.
    #[error("browser: {command}: {answer}")]
    Browser {
        /// What was asked.
        command: String,
        /// What came back, or what the page shows instead.
        answer: String,
    },
    /// A process that is not one of the test's own, which was not touched.
    #[error("process {pid} does not belong to {home}: left alone")]
    NotOurs {
        /// Its number.
        pid: u32,
        /// The test's home.
        home: PathBuf,
    },
}

impl Error {
    /// For `map_err`: what was tried with which path.
    pub fn file<E: Into<io::Error>>(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source: source.into() }
    }
}

/// Tests print errors with `Debug` when they return one: so it reads like the message, with what caused it.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
