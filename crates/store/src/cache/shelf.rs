//! The directory of a cache: entries by name and range, each with a checksum, thrown away by when they were used last.
//!
//! An entry is a file `AB/OBJECT/RANGE`, written beside and renamed, never synced: one that a power cut spoiled has a wrong
//! checksum and is thrown away.

use std::fs::{self, File, FileTimes};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::ObjectName;

const MAGIC: &[u8; 8] = b"KFCACHE1";
const SUM_BYTES: usize = 32;
const TEMPORARY: &str = "tmp";
/// A writer that did not finish in this time is gone.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Part of an object; none for all of it.
type Part = Option<(u64, usize)>;

#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    limit: u64,
    /// Bytes that may still be added before the directory is looked through; none before the first time.
    credit: Mutex<Option<u64>>,
    counter: AtomicU64,
}

impl Shelf {
    pub fn new(dir: &Path, limit: u64) -> Self {
        Self { dir: dir.to_owned(), limit, credit: Mutex::new(None), counter: AtomicU64::new(0) }
    }

    /// What is kept, if it is as it was. What is not is thrown away.
    pub fn find(&self, name: &ObjectName, part: Part) -> Option<Vec<u8>> {
        let path = self.path(name, part);
        let file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        // Nothing larger was ever kept.
        let read = (&file).take(self.limit.saturating_add(1000)).read_to_end(&mut bytes);
        let head = MAGIC.len() + SUM_BYTES;
        let good = read.is_ok()
            && bytes.starts_with(MAGIC)
            && bytes.split_at_checked(head).is_some_and(|(head, content)| head.ends_with(&sum(name, part, content)));
        if !good {
            remove(&path);
            return None;
        }
        // Where the time cannot be set it is thrown away a little early.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        bytes.drain(..head);
        Some(bytes)
    }

    /// Keeps it, if that works; one that would take more than a quarter of the room is not kept.
    pub fn keep(&self, name: &ObjectName, part: Part, content: &[u8]) {
        let len = (MAGIC.len() + SUM_BYTES + content.len()) as u64;
        if len > self.limit / 4 || !self.make_room(len) {
            return;
        }
        let path = self.path(name, part);
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let own: *const Self = self;
        let beside = self.dir.join(TEMPORARY).join(format!("{}-{}-{number}", std::process::id(), own.addr()));
        let written = File::create_new(&beside).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(&sum(name, part, content))?;
            file.write_all(content)?;
            let dir = path.parent().unwrap_or(&self.dir);
            // Its directory may be thrown away between the two.
            (0..3)
                .map(|_| fs::create_dir_all(dir).and_then(|()| fs::rename(&beside, &path)))
                .find(Result::is_ok)
                .transpose()
        });
        if !matches!(written, Ok(Some(()))) {
            remove(&beside);
        }
    }

    /// Throws everything of an object away.
    pub fn forget(&self, name: &ObjectName) {
        // What stays although it should not is still what it was when it was read.
        let _ = fs::remove_dir_all(self.object_dir(name));
    }

    fn object_dir(&self, name: &ObjectName) -> PathBuf {
        let digest = blake3::hash(name.as_str().as_bytes()).to_hex();
        let (first, rest) = digest[..32].split_at(2);
        self.dir.join(first).join(rest)
    }

    fn path(&self, name: &ObjectName, part: Part) -> PathBuf {
        let leaf = part.map_or_else(|| "whole".to_owned(), |(offset, len)| format!("{offset}-{len}"));
        self.object_dir(name).join(leaf)
    }

    /// Whether there is room for so many bytes. Other processes add to it as well, so each looks anew after an eighth of it.
    fn make_room(&self, len: u64) -> bool {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        if credit.is_none() && make_dir(&self.dir.join(TEMPORARY)).is_err() {
            return false;
        }
        if credit.is_none_or(|credit| credit < len) {
            let kept = self.throw_away(len);
            *credit = Some(self.limit.saturating_sub(kept).min(self.limit / 8).max(len));
        }
        *credit = credit.map(|credit| credit.saturating_sub(len));
        true
    }

    /// Looks through the directory; throws away what was not used for the longest time when there is too much. Gives the bytes
    /// that are kept.
    fn throw_away(&self, wanted: u64) -> u64 {
        let now = SystemTime::now();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for area in entries(&self.dir) {
            if area.ends_with(TEMPORARY) {
                entries(&area).into_iter().filter(|path| is_abandoned(path, now)).for_each(|path| remove(&path));
                continue;
            }
            let objects = entries(&area).into_iter().flat_map(|object| entries(&object));
            files.extend(objects.filter_map(|path| {
                let metadata = path.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            }));
        }
        let mut kept: u64 = files.iter().map(|(_, len, _)| len).sum();
        if kept + wanted <= self.limit - self.limit / 8 {
            return kept;
        }
        files.sort();
        for (_, len, path) in files {
            if kept + wanted <= self.limit / 4 * 3 {
                break;
            }
            remove(&path);
            // The last one of its object takes the directories with it; others keep them.
            path.ancestors().skip(1).take(2).for_each(|dir| drop(fs::remove_dir(dir)));
            kept -= len;
        }
        kept
    }
}

fn sum(name: &ObjectName, part: Part, content: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("keyframe store cache 1: an entry");
    let (offset, len) = part.map_or((u64::MAX, u64::MAX), |(offset, len)| (offset, len as u64));
    hasher.update(&offset.to_le_bytes()).update(&len.to_le_bytes());
    hasher.update(&(name.as_str().len() as u64).to_le_bytes()).update(name.as_str().as_bytes()).update(content);
    *hasher.finalize().as_bytes()
}

/// Nobody hears of it when it fails: then it is there a little longer.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn is_abandoned(path: &Path, now: SystemTime) -> bool {
    let modified = path.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > ABANDONED))
}

/// For its owner alone: names and times of objects tell something too.
fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
