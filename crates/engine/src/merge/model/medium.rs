//! What a power cut leaves of a tree of files: what was synced, and of the rest whatever it likes.
//!
//! A file's bytes, its length and its time of last write are durable when the file was synced; its name when its
//! directory was. Of what was written since, any part may have reached the disk, in any order: each write, or each sector, by
//! itself, so that a later write may be there without an earlier one. Changes of one directory happen in their order, as in
//! every journalling file system; those of different directories do not wait for each other.

use std::collections::BTreeMap;
use std::fs::{self, FileTimes};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Dice;
use super::tape::Event;

/// What disks write wholly or not at all.
const SECTOR: usize = 512;

/// A file's bytes and its time of last write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    modified_ns: i64,
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }
}

/// A write, or a change of length, that was not synced yet.
#[derive(Debug, Clone)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8>, modified_ns: i64 },
    SetLen { bytes: usize, modified_ns: i64 },
}

/// A file: what is durable of it, and what is not.
#[derive(Debug, Clone)]
struct File {
    durable: Content,
    pending: Vec<Pending>,
}

/// What a name stands for: files keep their number whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Dir,
}

/// A change of a directory.
#[derive(Debug, Clone)]
enum Change {
    Add(PathBuf, Entry),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

type Names = BTreeMap<PathBuf, Entry>;

fn apply(names: &mut Names, change: &Change) {
    match change {
        Change::Add(path, entry) => drop(names.insert(path.clone(), *entry)),
        Change::Remove(path) => drop(names.remove(path)),
        Change::Rename(from, to) => {
            if let Some(entry) = names.remove(from) {
                names.insert(to.clone(), entry);
            }
        }
    }
}

/// How much of what was not synced reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survives {
    /// Nothing.
    Nothing,
    /// Everything: the disk is a prefix of what was written.
    Everything,
    /// Some writes.
    SomeWrites,
    /// Some sectors of each write.
    SomeSectors,
}

impl Survives {
    pub(super) const ALL: [Self; 4] = [Self::Nothing, Self::Everything, Self::SomeWrites, Self::SomeSectors];
}

/// A tree of files on a disk with a cache.
#[derive(Debug, Clone)]
pub(super) struct Medium {
    root: PathBuf,
    files: Vec<File>,
    /// Names as running programs see them.
    seen: Names,
    /// Names that are durable.
    names: Names,
    /// Changes of directories, by directory, that are not.
    changes: BTreeMap<PathBuf, Vec<Change>>,
}

impl Medium {
    /// What lies below `root`, all of it durable.
    pub(super) fn of(root: &Path) -> Self {
        let mut medium = Self {
            root: root.to_owned(),
            files: Vec::new(),
            seen: Names::new(),
            names: Names::new(),
            changes: BTreeMap::new(),
        };
        medium.scan(root);
        medium.names = medium.seen.clone();
        medium
    }

    fn scan(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::metadata(&path).unwrap();
            if metadata.is_dir() {
                self.seen.insert(path.clone(), Entry::Dir);
                self.scan(&path);
                continue;
            }
            let modified_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            let durable = Content { bytes: fs::read(&path).unwrap(), modified_ns };
            self.seen.insert(path, Entry::File(self.files.len()));
            self.files.push(File { durable, pending: Vec::new() });
        }
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        match self.seen.get(path) {
            Some(Entry::File(number)) => self.files.get_mut(*number),
            _ => None,
        }
    }

    fn change(&mut self, dir: &Path, change: Change) {
        apply(&mut self.seen, &change);
        self.changes.entry(dir.to_owned()).or_default().push(change);
    }

    /// Something happens.
    pub(super) fn happens(&mut self, event: &Event) {
        let dir_of = |path: &Path| path.parent().unwrap().to_owned();
        match event {
            Event::Write { path, offset, bytes, modified_ns } => {
                let pending = Pending::Write {
                    offset: usize::try_from(*offset).unwrap(),
                    bytes: bytes.clone(),
                    modified_ns: *modified_ns,
                };
                self.file(path).unwrap().pending.push(pending);
            }
            Event::SetLen { path, bytes, modified_ns } => {
                let bytes = usize::try_from(*bytes).unwrap();
                self.file(path).unwrap().pending.push(Pending::SetLen { bytes, modified_ns: *modified_ns });
            }
            Event::SyncFile { path } => {
                let file = self.file(path).unwrap();
                file.durable = file.with(Survives::Everything, &mut Dice(1));
                file.pending.clear();
            }
            Event::SyncDir { path } => {
                for change in self.changes.remove(path).unwrap_or_default() {
                    apply(&mut self.names, &change);
                }
            }
            Event::MakeFile { path } => {
                let durable = Content { bytes: Vec::new(), modified_ns: 0 };
                self.files.push(File { durable, pending: Vec::new() });
                let entry = Entry::File(self.files.len() - 1);
                self.change(&dir_of(path), Change::Add(path.clone(), entry));
            }
            Event::MakeDir { path } => self.change(&dir_of(path), Change::Add(path.clone(), Entry::Dir)),
            Event::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "within a directory");
                self.change(&dir_of(to), Change::Rename(from.clone(), to.clone()));
            }
            Event::Remove { path } => self.change(&dir_of(path), Change::Remove(path.clone())),
        }
    }

    /// Puts in place below the root what a power cut might leave now.
    pub(super) fn cut_power(&self, survives: Survives, dice: &mut Dice) {
        let mut names = self.names.clone();
        for changes in self.changes.values() {
            let kept = match survives {
                Survives::Nothing => 0,
                Survives::Everything => changes.len(),
                Survives::SomeWrites | Survives::SomeSectors => dice.below(changes.len() + 1),
            };
            changes.iter().take(kept).for_each(|change| apply(&mut names, change));
        }
        for entry in fs::read_dir(&self.root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        for (path, entry) in &names {
            // A directory whose own name is lost takes with it what is in it.
            if !path.parent().unwrap().is_dir() {
                continue;
            }
            match entry {
                Entry::Dir => {
                    fs::create_dir(path).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
                }
                Entry::File(number) => put(path, &self.files[*number].with(survives, dice)),
            }
        }
    }

    /// Checks that what was recorded is all that happened.
    pub(super) fn assert_complete(&self) {
        let real = Self::of(&self.root);
        let told = |names: &Names| names.keys().cloned().collect::<Vec<_>>();
        assert_eq!(told(&self.seen), told(&real.seen), "what is there, and what was recorded");
        for (path, entry) in &real.seen {
            if let (Entry::File(real_number), Some(Entry::File(number))) = (entry, self.seen.get(path)) {
                let recorded = self.files[*number].with(Survives::Everything, &mut Dice(1));
                let same = recorded.bytes == real.files[*real_number].durable.bytes;
                assert!(same, "{} was written to unseen", path.display());
            }
        }
    }
}

impl File {
    /// What is on the disk when so much of what is pending survives.
    fn with(&self, survives: Survives, dice: &mut Dice) -> Content {
        let mut content = self.durable.clone();
        for pending in &self.pending {
            let kept = match survives {
                Survives::Nothing => return content,
                Survives::Everything | Survives::SomeSectors => true,
                Survives::SomeWrites => dice.below(2) == 0,
            };
            if !kept {
                continue;
            }
            match pending {
                Pending::Write { offset, bytes, modified_ns } => {
                    let mut from = 0;
                    while from < bytes.len() {
                        // As far as the sector's end.
                        let to = (from + SECTOR - (offset + from) % SECTOR).min(bytes.len());
                        if survives != Survives::SomeSectors || dice.below(2) == 0 {
                            content.write(offset + from, &bytes[from..to]);
                        }
                        from = to;
                    }
                    content.modified_ns = *modified_ns;
                }
                Pending::SetLen { bytes, modified_ns } => {
                    content.bytes.resize(*bytes, 0);
                    content.modified_ns = *modified_ns;
                }
            }
        }
        content
    }
}

fn put(path: &Path, content: &Content) {
    let file = fs::File::create_new(path).unwrap();
    // Holes stay holes.
    file.set_len(content.bytes.len() as u64).unwrap();
    for (at, block) in content.bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at as u64 * 4096).unwrap();
        }
    }
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(content.modified_ns.unsigned_abs());
    file.set_times(FileTimes::new().set_modified(modified)).unwrap();
}

#[test]
fn what_was_synced_stays_and_of_the_rest_any_part() {
    let root = tempfile::tempdir().unwrap();
    let (path, other) = (root.path().join("a"), root.path().join("b"));
    fs::write(&path, vec![1; 2048]).unwrap();
    let mut medium = Medium::of(root.path());
    let write = |offset, byte| Event::Write { path: path.clone(), offset, bytes: vec![byte; 1024], modified_ns: 5 };
    medium.happens(&write(0, 2));
    medium.happens(&Event::SyncFile { path: path.clone() });
    medium.happens(&write(1024, 3));
    medium.happens(&Event::MakeFile { path: other.clone() });
    let mut seen = BTreeMap::new();
    let mut dice = Dice(7);
    for turn in 0..200 {
        medium.cut_power(Survives::ALL[turn % 4], &mut dice);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..1024], [2; 1024]);
        *seen.entry((bytes[1024], bytes[1536], other.exists())).or_insert(0) += 1;
    }
    // Each sector old or new, the name there or not.
    assert_eq!(seen.len(), 8, "{seen:?}");
    medium.happens(&Event::SyncFile { path: path.clone() });
    medium.happens(&Event::SyncDir { path: root.path().to_owned() });
    medium.cut_power(Survives::Nothing, &mut dice);
    assert_eq!((fs::read(&path).unwrap()[1536], other.exists()), (3, true));
}
