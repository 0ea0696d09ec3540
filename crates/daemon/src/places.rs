//! How much room there is where machines' disks and repositories in directories are, besides the home's file system.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use crate::alerts::Trouble;
use crate::space::Space;

/// File systems, each by a directory on it.
#[derive(Debug, Default)]
pub struct Places {
    seen: Arc<Mutex<BTreeMap<PathBuf, Space>>>,
    looking: Arc<AtomicBool>,
}

impl Places {
    /// Looks at all of them but the home's, in a thread of its own: one that does not answer keeps nobody else waiting. While it
    /// does, nobody looks again.
    pub fn look(&self, home: &Path, paths: BTreeSet<PathBuf>, now: Timestamp) {
        if self.looking.swap(true, Ordering::Relaxed) {
            return;
        }
        let (seen, looking, home) = (Arc::clone(&self.seen), Arc::clone(&self.looking), home.to_owned());
        let look = move || {
            let before = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let fresh = looked_at(&home, &paths, before, now);
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            looking.store(false, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("places".to_owned()).spawn(look) {
            self.looking.store(false, Ordering::Relaxed);
            tracing::warn!("nobody looks how much room there is: {error}");
        }
    }

    /// Where there will be none soon.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let advice = "make room there: disks of machines or a repository are on it; `keyframe repo prune` frees what points let go";
        let of = |(path, space): (&PathBuf, &Space)| {
            space.trouble(
                &format!("space/{}", path.display()),
                &format!("the file system of {}", path.display()),
                advice,
            )
        };
        seen.iter().filter_map(of).collect()
    }
}

fn looked_at(
    home: &Path,
    paths: &BTreeSet<PathBuf>,
    mut before: BTreeMap<PathBuf, Space>,
    now: Timestamp,
) -> BTreeMap<PathBuf, Space> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    let mut known: BTreeSet<u64> = device(home).into_iter().collect();
    let fresh = |path: &&PathBuf| device(path).is_some_and(|device| known.insert(device));
    let places: Vec<&PathBuf> = paths.iter().filter(fresh).collect();
    places.into_iter().map(|path| (path.clone(), before.remove(path).unwrap_or_default().again(path, now))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_other_file_system_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let paths: BTreeSet<PathBuf> = [dir.path(), elsewhere.path(), Path::new("/dev/shm"), Path::new("/nowhere")]
            .into_iter()
            .map(Path::to_owned)
            .collect();
        let first = looked_at(dir.path(), &paths, BTreeMap::new(), now);
        assert_eq!(first.keys().collect::<Vec<_>>(), [Path::new("/dev/shm")]);
        assert!(first[Path::new("/dev/shm")].total_bytes > 0);
        let later = now.checked_add(std::time::Duration::from_secs(600)).unwrap();
        let second = looked_at(dir.path(), &paths, first, later);
        assert_eq!(second[Path::new("/dev/shm")].history.len(), 2, "what was seen before is remembered");
    }

    #[test]
    fn one_that_is_nearly_full_is_told() {
        let places = Places::default();
        let full = Space { total_bytes: 1000, free_bytes: 49, ..Space::default() };
        let filling = Space { total_bytes: 1000, free_bytes: 500, full_in_days: Some(3.0), ..Space::default() };
        let roomy = Space { total_bytes: 1000, free_bytes: 500, full_in_days: Some(30.0), ..Space::default() };
        let all = [("/full", full), ("/filling", filling), ("/roomy", roomy)];
        *places.seen.lock().unwrap() = all.into_iter().map(|(path, space)| (path.into(), space)).collect();
        let told: Vec<String> = places.troubles().into_iter().map(|trouble| trouble.what).collect();
        assert_eq!(
            told,
            [
                "the file system of /filling will be full in 3.0 days, if it goes on like this",
                "the file system of /full is nearly full"
            ]
        );
    }
}
