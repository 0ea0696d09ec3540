//! A repository for tests of backups, with its key.

use std::path::PathBuf;

use crate::{Error, Home, Outcome, Result};

/// It lies outside any home, and goes when it is dropped: machines can come back in a home that never saw them.
#[derive(Debug)]
pub struct Repository {
    dir: tempfile::TempDir,
}

impl Repository {
    /// Makes one with `keyframe repo init`.
    ///
    /// # Errors
    /// [`Error::File`] without room; [`Error::Failed`].
    pub fn init(home: &Home) -> Result<Self> {
        let trouble = |source| Error::File { verb: "make a directory in", path: std::env::temp_dir(), source };
        let repository = Self { dir: tempfile::tempdir().map_err(trouble)? };
        repository.run(home, &["repo", "init"])?.succeeded()?;
        Ok(repository)
    }

    /// Where it lies; besides it, in its directory, there is room for tricks.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// The two lines by which a policy's backup names it.
    #[must_use]
    pub fn in_policy(&self) -> String {
        let key = self.dir.path().join("key");
        format!("repository = \"{}\"\nkey_file = \"{}\"", self.path().display(), key.display())
    }

    /// [`Home::run`] of a command that is told of the repository.
    ///
    /// # Errors
    /// As [`Home::run`].
    pub fn run(&self, home: &Home, words: &[&str]) -> Result<Outcome> {
        self.run_until(home, "", words)
    }

    /// The same with a failpoint.
    ///
    /// # Errors
    /// As [`Home::run`].
    pub fn run_until(&self, home: &Home, failpoint: &str, words: &[&str]) -> Result<Outcome> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let (place, key) = (path("repo"), path("key"));
        let environment =
            [("KEYFRAME_REPO", place.as_str()), ("KEYFRAME_KEY_FILE", key.as_str()), ("KEYFRAME_FAILPOINT", failpoint)];
        home.run_with(&environment, words)
    }
}
