//! The policies that count: those of the files, as long as nothing is wrong with them.
//!
//! While a file has a mistake, what was in force before stays, over restarts, too: the files of the last good set are kept in
//! `HOME/serve/policies`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use keyframe_engine::state::durable;
use keyframe_policy::{Mistake, Policies, Severity};

use crate::error::{Error, IoContext as _};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A file, and what tells that it changed.
type Mark = (PathBuf, Option<SystemTime>, u64);

/// The policies, and where they come from.
#[derive(Debug)]
pub struct Rules {
    home: PathBuf,
    directories: Vec<PathBuf>,
    kept: PathBuf,
    marks: Vec<Mark>,
    looked: Instant,
    /// Those that count.
    pub policies: Arc<Policies>,
    /// What is wrong with the files.
    pub mistakes: Vec<Mistake>,
    /// Whether those that count are what the files say.
    pub usable: bool,
    /// Since when.
    pub loaded: Timestamp,
}

impl Rules {
    /// Reads them: from `directories`, or from where policies are when there is none.
    #[must_use]
    pub fn read(home: &Path, serve: &Path, directories: Vec<PathBuf>, now: Timestamp) -> Self {
        let mut rules = Self {
            home: home.to_owned(),
            directories,
            kept: serve.join("policies"),
            marks: Vec::new(),
            looked: Instant::now(),
            policies: Arc::default(),
            mistakes: Vec::new(),
            usable: false,
            loaded: now,
        };
        let kept = keyframe_policy::load(&[&rules.kept], now).policies;
        rules.policies = Arc::new(kept.unwrap_or_default());
        rules.reload(now);
        rules
    }

    fn places(&self) -> Vec<PathBuf> {
        if self.directories.is_empty() {
            vec![keyframe_policy::default_directory(&self.home)]
        } else {
            self.directories.clone()
        }
    }

    /// Reads them again if a file changed. Returns whether anything is other than before.
    pub fn look(&mut self, now: Timestamp) -> bool {
        if self.looked.elapsed() < EVERY {
            return false;
        }
        self.looked = Instant::now();
        marks(&self.places()) != self.marks && self.reload(now)
    }

    /// Reads them again. Returns whether anything is other than before.
    pub fn reload(&mut self, now: Timestamp) -> bool {
        let places = self.places();
        self.marks = marks(&places);
        let directories: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
        let loaded = keyframe_policy::load(&directories, now);
        let before = (self.usable, std::mem::replace(&mut self.mistakes, loaded.mistakes));
        self.usable = loaded.policies.is_some();
        let Some(policies) = loaded.policies else {
            let errors = self.mistakes.iter().filter(|mistake| mistake.severity == Severity::Error).count();
            tracing::error!("policies have {errors} mistake(s): what was in force before stays");
            return (self.usable, &self.mistakes) != (before.0, &before.1);
        };
        self.loaded = now;
        let changed = *self.policies != policies;
        if changed {
            if let Err(error) = self.keep(&policies.files) {
                tracing::warn!("the policies cannot be kept for a start with a mistake in them: {error}");
            }
            self.policies = Arc::new(policies);
        }
        changed || (self.usable, &self.mistakes) != (before.0, &before.1)
    }

    /// Copies the files of a set that can be used.
    fn keep(&self, files: &[PathBuf]) -> Result<(), Error> {
        // Aside first: a part of the policies is not kept in place of all.
        let aside = self.kept.with_extension("next");
        durable::remove_dir(&aside)?;
        durable::create_private_dir(&aside)?;
        for (number, file) in files.iter().enumerate() {
            // One that vanished just now is noticed at the next look.
            let Ok(text) = std::fs::read(file) else { continue };
            durable::replace(&aside.join(format!("{number:04}.toml")), &text)?;
        }
        durable::remove_dir(&self.kept)?;
        std::fs::rename(&aside, &self.kept).or_io("rename", &aside)?;
        Ok(durable::sync_parent(&self.kept)?)
    }
}

fn marks(places: &[PathBuf]) -> Vec<Mark> {
    let listed = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut marks: Vec<Mark> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
            .map(|path| {
                let meta = std::fs::metadata(&path).ok();
                let modified = meta.as_ref().and_then(|meta| meta.modified().ok());
                (path, modified, meta.map_or(0, |meta| meta.len()))
            })
            .collect();
        marks.sort();
        marks
    };
    places.iter().flat_map(|place| [listed(place), listed(&place.join("conf.d"))]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "[policy.a]\nmachines = { names = [\"*\"] }\n[policy.a.snapshot]\nschedule = \"hourly\"\nkeep = { last = 2 }\n";

    #[test]
    fn a_mistake_leaves_what_was_in_force_over_a_restart_too() {
        let home = tempfile::tempdir().unwrap();
        let (serve, files) = (home.path().join("serve"), home.path().join("policies"));
        std::fs::create_dir_all(&serve).unwrap();
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("a.toml"), GOOD).unwrap();
        let now = Timestamp::now();
        let mut rules = Rules::read(home.path(), &serve, Vec::new(), now);
        assert!(rules.usable && rules.policies.policies.len() == 1, "{:?}", rules.mistakes);
        std::fs::write(files.join("a.toml"), GOOD.replace("hourly", "hourlyy")).unwrap();
        assert!(rules.reload(now), "something is said of it");
        assert!(!rules.usable && rules.policies.policies.len() == 1);
        let again = Rules::read(home.path(), &serve, Vec::new(), now);
        assert!(!again.usable && again.policies.policies.len() == 1, "the copy counts");
        std::fs::write(files.join("a.toml"), GOOD.replace("hourly", "daily")).unwrap();
        assert!(rules.reload(now) && rules.usable);
        assert!(!rules.reload(now), "nothing changed");
    }
}
