//! Who did what, and how it ended: a log in which no line can be changed unseen.
//!
//! `HOME/serve/audit.jsonl` has an entry a line; each holds the BLAKE3 of the one before. The head of the chain is written into every
//! point that a policy makes (`audit N HASH` in its note), which nobody can change afterwards: whoever rewrites the log on this
//! host cannot rewrite those.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use keyframe_engine::state::durable;
use keyframe_engine::state::lock::Lock;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _};
use crate::job::digits;

/// What the first entry follows.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The longest text of an entry, and the longest argument, in characters.
const MOST: usize = 2000;
/// How many arguments an entry has at most: it says so when there were more.
const ARGUMENTS_MOST: usize = 500;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1.
    pub n: u64,
    /// When.
    pub at: Timestamp,
    /// Who: `uid 0`, `token NAME`, `policy NAME`, `keyframe serve`.
    pub who: String,
    /// What was done, or asked for.
    pub what: String,
    /// Of a command its arguments, each as it is. Entries of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// What came of it.
    pub result: String,
    /// The hash of the entry before.
    pub previous: String,
    /// BLAKE3 of the entry as JSON without spaces, with an empty hash.
    pub hash: String,
}

impl Entry {
    /// What was done, with a command's arguments told from each other.
    #[must_use]
    pub fn told(&self) -> String {
        let Some(arguments) = &self.arguments else { return self.what.clone() };
        let plain = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b))
        };
        let quoted =
            |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) };
        let words: Vec<String> = arguments.iter().map(quoted).collect();
        format!("{}: keyframe {}", self.what, words.join(" "))
    }

    fn sealed(mut self) -> Result<Self, Error> {
        self.hash = String::new();
        self.hash = blake3::hash(&serde_json::to_vec(&self)?).to_hex().to_string();
        Ok(self)
    }
}

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flaw {
    /// Which line, counted from 1.
    pub line: usize,
    /// What.
    pub what: String,
}

/// The log of a home.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    last: Option<Entry>,
    /// Where that begins.
    begins: u64,
    /// How long the file was then: others add to it, too.
    length: u64,
    /// What was found behind the last entry, and set aside.
    torn: Option<String>,
}

/// How much of the end of a long log is read for its last entry, in bytes: more than one has.
const END: u64 = 4 << 20;
/// How long somebody else may take to add an entry.
const PATIENCE: Duration = Duration::from_secs(10);

impl Audit {
    /// The log's file below `HOME/serve`.
    #[must_use]
    pub fn file(serve: &Path) -> PathBuf {
        serve.join("audit.jsonl")
    }

    /// Opens it to add to it. What a crash leaves behind the last entry, half a line or what is none, was never an entry: it is set
    /// aside beside the log, an entry says so, and the chain goes on from the last one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(serve: &Path) -> Result<Self, Error> {
        durable::create_private_dir(serve)?;
        let path = Self::file(serve);
        let _lock = lock(&path)?;
        Ok(Self::scan(path, None, 0)?.0)
    }

    /// The same of a log that may be long, for one entry: only its end is read, unless something is wrong with that.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_end(serve: &Path) -> Result<Self, Error> {
        let path = Self::file(serve);
        let locked = lock(&path)?;
        let mut file = options().open(&path).or_io("open", &path)?;
        let length = file.metadata().or_io("look at", &path)?.len();
        let from = length.saturating_sub(END);
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(from)).or_io("read", &path)?;
        file.take(END).read_to_end(&mut end).or_io("read", &path)?;
        // The last line, whole.
        let line = end.strip_suffix(b"\n").map(|lines| {
            let begins = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            (from + begins as u64, &lines[begins..])
        });
        let last = line.and_then(|(begins, line)| Some((begins, serde_json::from_slice::<Entry>(line).ok()?)));
        match last {
            Some((begins, last)) => Ok(Self { path, last: Some(last), begins, length, torn: None }),
            None => {
                drop(locked);
                Self::open(serve)
            }
        }
    }

    /// One that is read when the first entry is added: it could not be opened.
    #[must_use]
    pub fn unread(serve: &Path) -> Self {
        Self { path: Self::file(serve), last: None, begins: 0, length: 0, torn: None }
    }

    /// What was found behind the last entry when it was opened.
    #[must_use]
    pub fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }

    /// Reads it from where an entry begins, and says whether the entry with the hash `known` is in that.
    fn scan(path: PathBuf, known: Option<&str>, from: u64) -> Result<(Self, bool), Error> {
        let mut file = options().open(&path).or_io("open", &path)?;
        file.seek(SeekFrom::Start(from)).or_io("read", &path)?;
        let (mut last, mut begins, mut whole, mut length, mut line) = (None, from, from, from, Vec::new());
        let (mut reader, mut is_there) = (BufReader::new(&mut file), known.is_none());
        loop {
            line.clear();
            length += reader.read_until(b'\n', &mut line).or_io("read", &path)? as u64;
            match line.last() {
                None => break,
                Some(b'\n') => {}
                Some(_) => continue,
            }
            if let Ok(entry) = serde_json::from_slice::<Entry>(&line) {
                is_there |= known == Some(&entry.hash);
                (last, begins, whole) = (Some(entry), length - line.len() as u64, length);
            }
        }
        let mut audit = Self { path, last, begins, length: whole, torn: None };
        if length > whole {
            audit.set_aside(&mut file, length - whole)?;
        }
        Ok((audit, is_there))
    }

    /// Takes away what is behind the last entry, and keeps it in a file of its own.
    fn set_aside(&mut self, file: &mut File, bytes: u64) -> Result<(), Error> {
        let (at, mut rest) = (Timestamp::now(), Vec::new());
        file.seek(SeekFrom::Start(self.length)).or_io("read", &self.path)?;
        file.take(bytes).read_to_end(&mut rest).or_io("read", &self.path)?;
        let name = format!("audit.torn-{}-{}", digits(at), &blake3::hash(&rest).to_hex()[..8]);
        let aside = self.path.with_file_name(&name);
        durable::replace(&aside, &rest)?;
        file.set_len(self.length).or_io("cut", &self.path)?;
        let what = format!("{bytes} bytes behind the last entry of the audit log were none; they are in {name}");
        tracing::error!("{what}");
        self.append(at, "keyframe serve", "the log was torn", None, &what)?;
        self.torn = Some(what);
        Ok(())
    }

    /// Adds an entry, durably.
    ///
    /// # Errors
    /// [`Error::Io`]: then there is no such entry.
    pub fn add(&mut self, at: Timestamp, who: &str, what: &str, result: &str) -> Result<(), Error> {
        self.add_entry(at, who, what, None, result)
    }

    /// The same, of a command, with its arguments as they are.
    ///
    /// # Errors
    /// [`Error::Io`]: then there is no such entry.
    pub fn add_command(
        &mut self,
        at: Timestamp,
        who: &str,
        what: &str,
        arguments: &[String],
        result: &str,
    ) -> Result<(), Error> {
        self.add_entry(at, who, what, Some(arguments), result)
    }

    fn add_entry(
        &mut self,
        at: Timestamp,
        who: &str,
        what: &str,
        arguments: Option<&[String]>,
        result: &str,
    ) -> Result<(), Error> {
        let _lock = lock(&self.path)?;
        let length = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        let before = self.last.as_ref().map(|last| (last.n, last.hash.clone()));
        if length != self.length {
            // Others added to it: what was before that need not be read again, unless it is not as it was.
            let from = if length > self.length && self.ends_as_known()? { self.begins } else { 0 };
            let known = before.as_ref().map(|(_, hash)| hash.as_str());
            let (found, is_there) = Self::scan(self.path.clone(), known, from)?;
            *self = found;
            if let Some((n, hash)) = before.filter(|_| !is_there) {
                let behind = self.last.as_ref().map_or(0, |last| last.n);
                let what = format!("behind {behind}; the last was {n} {hash}");
                self.append(at, "keyframe serve", "the log was cut", None, &what)?;
            }
        }
        self.append(at, who, what, arguments, result)
    }

    /// Whether the last entry that is known is where it was.
    fn ends_as_known(&self) -> Result<bool, Error> {
        let Some(last) = &self.last else { return Ok(false) };
        let mut file = options().open(&self.path).or_io("open", &self.path)?;
        file.seek(SeekFrom::Start(self.begins)).or_io("read", &self.path)?;
        let mut line = Vec::new();
        let length = self.length.saturating_sub(self.begins);
        file.take(length).read_to_end(&mut line).or_io("read", &self.path)?;
        let is_last = |line: &[u8]| serde_json::from_slice::<Entry>(line).is_ok_and(|entry| entry == *last);
        Ok(line.strip_suffix(b"\n").is_some_and(is_last))
    }

    fn append(
        &mut self,
        at: Timestamp,
        who: &str,
        what: &str,
        arguments: Option<&[String]>,
        result: &str,
    ) -> Result<(), Error> {
        let short = |text: &str| text.chars().take(MOST).collect::<String>();
        let listed = |arguments: &[String]| {
            let more = arguments.len().checked_sub(ARGUMENTS_MOST + 1).map(|more| format!("… and {} more", more + 1));
            arguments.iter().take(ARGUMENTS_MOST).map(|one| short(one)).chain(more).collect()
        };
        let entry = Entry {
            n: self.last.as_ref().map_or(1, |last| last.n + 1),
            at,
            who: short(who),
            what: short(what),
            arguments: arguments.map(listed),
            result: short(result),
            previous: self.last.as_ref().map_or_else(|| NOTHING.to_owned(), |last| last.hash.clone()),
            hash: String::new(),
        };
        let entry = entry.sealed()?;
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let mut file = options().open(&self.path).or_io("open", &self.path)?;
        let end = file.seek(SeekFrom::End(0)).or_io("read", &self.path)?;
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if let Err(error) = written {
            let _ = file.set_len(end);
            return Err(error).or_io("write", &self.path);
        }
        self.last = Some(entry);
        self.begins = end;
        self.length = end + line.len() as u64;
        Ok(())
    }

    /// What is written into points: the number and the hash of the last entry.
    #[must_use]
    pub fn head(&self) -> Option<String> {
        self.last.as_ref().map(|last| format!("{} {}", last.n, last.hash))
    }
}

fn lock(path: &Path) -> Result<Lock, Error> {
    Ok(Lock::wait(&path.with_extension("lock"), "audit", PATIENCE)?)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// All entries, and what is wrong with the chain. Half a line at the end is no entry, and no flaw.
///
/// # Errors
/// [`Error::Io`].
pub fn read(serve: &Path) -> Result<(Vec<Entry>, Vec<Flaw>), Error> {
    let path = Audit::file(serve);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        file => file.or_io("open", &path)?,
    };
    let (mut entries, mut flaws): (Vec<Entry>, Vec<Flaw>) = (Vec::new(), Vec::new());
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).or_io("read", &path)?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let mut flaw = |what: String| flaws.push(Flaw { line: number, what });
        let entry = match serde_json::from_slice::<Entry>(&line) {
            Ok(entry) => entry,
            Err(error) => {
                flaw(format!("it is no entry: {error}"));
                continue;
            }
        };
        if entry.clone().sealed()?.hash != entry.hash {
            flaw("it was changed: its hash is another".to_owned());
        }
        let previous = entries.last().map_or(NOTHING, |last| last.hash.as_str());
        if entry.previous != previous {
            flaw("what it follows is not the line before: one was changed, added or taken away".to_owned());
        }
        entries.push(entry);
    }
    Ok((entries, flaws))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-11-29T12:00:00Z".parse().unwrap()
    }

    fn written(dir: &Path) -> Vec<String> {
        let mut audit = Audit::open(dir).unwrap();
        for what in ["snapshot db", "delete db@old", "pause"] {
            audit.add(at(), "uid 0", what, "done").unwrap();
        }
        std::fs::read_to_string(Audit::file(dir)).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_was_added_is_read_and_sound() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        Audit::open(dir.path()).unwrap().add(at(), "uid 0", "after opening anew", "done").unwrap();
        let (entries, flaws) = read(dir.path()).unwrap();
        assert_eq!((entries.len(), entries[3].n, flaws), (4, 4, vec![]));
    }

    #[test]
    fn whatever_is_changed_added_or_taken_away_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let lines = written(dir.path());
        let flaws_of = |lines: Vec<String>| {
            std::fs::write(Audit::file(dir.path()), format!("{}\n", lines.join("\n"))).unwrap();
            read(dir.path()).unwrap().1
        };
        assert!(flaws_of(lines.clone()).is_empty());
        let mut changed = lines.clone();
        changed[1] = changed[1].replace("delete db@old", "delete db@new");
        assert_eq!(flaws_of(changed)[0].line, 2);
        assert!(!flaws_of(vec![lines[0].clone(), lines[2].clone()]).is_empty(), "taken away");
        assert!(!flaws_of(vec![lines[0].clone(), lines[0].clone(), lines[1].clone()]).is_empty(), "added");
        assert!(!flaws_of(vec![lines[0].clone(), "nonsense".to_owned(), lines[1].clone()]).is_empty());
    }

    #[test]
    fn two_who_add_make_one_chain() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (Audit::open(dir.path()).unwrap(), Audit::open(dir.path()).unwrap());
        for _ in 0..3 {
            one.add(at(), "keyframe serve", "snapshot db", "done").unwrap();
            other.add(at(), "uid 0", "token add anna", "done").unwrap();
        }
        let (entries, flaws) = read(dir.path()).unwrap();
        assert_eq!((entries.len(), flaws), (6, vec![]));
    }

    #[test]
    fn of_a_long_one_the_end_is_enough_and_what_is_wrong_with_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        // There is none yet.
        Audit::open_end(dir.path()).unwrap().add(at(), "uid 0", "first", "done").unwrap();
        let mut kept = Audit::open(dir.path()).unwrap();
        for _ in 0..3 {
            Audit::open_end(dir.path()).unwrap().add(at(), "uid 0", "typed", "done").unwrap();
            kept.add(at(), "keyframe serve", "snapshot db", "done").unwrap();
        }
        let (entries, flaws) = read(dir.path()).unwrap();
        assert_eq!((entries.len(), flaws), (7, vec![]));
        // Half a line behind the last entry.
        let mut text = std::fs::read_to_string(Audit::file(dir.path())).unwrap();
        text.push_str("{\"n\":8,");
        std::fs::write(Audit::file(dir.path()), &text).unwrap();
        Audit::open_end(dir.path()).unwrap().add(at(), "uid 0", "after that", "done").unwrap();
        let (entries, flaws) = read(dir.path()).unwrap();
        assert_eq!((entries.len(), flaws, entries[7].what.as_str()), (9, vec![], "the log was torn"));
        // What it knew is another by now, and there is more of it.
        let text = std::fs::read_to_string(Audit::file(dir.path())).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        std::fs::write(
            Audit::file(dir.path()),
            format!("{}\n{}\n{}\n", lines[..6].join("\n"), "x".repeat(9000), lines[8]),
        )
        .unwrap();
        kept.add(at(), "keyframe serve", "next", "done").unwrap();
        let (entries, _) = read(dir.path()).unwrap();
        assert!(entries.iter().any(|entry| entry.what == "the log was cut"), "{entries:#?}");
    }

    #[test]
    fn one_that_is_cut_while_it_is_kept_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let lines = written(dir.path());
        let mut audit = Audit::open(dir.path()).unwrap();
        std::fs::write(Audit::file(dir.path()), format!("{}\n", lines[0])).unwrap();
        audit.add(at(), "uid 0", "next", "done").unwrap();
        let (entries, flaws) = read(dir.path()).unwrap();
        assert!(flaws.is_empty(), "{flaws:?}");
        assert_eq!((entries.len(), entries[1].what.as_str(), entries[2].what.as_str()), (3, "the log was cut", "next"));
        assert!(entries[1].result.starts_with("behind 1; the last was 3 "), "{}", entries[1].result);
        // The last entry made unreadable: it is not only torn, it was there.
        let text = std::fs::read_to_string(Audit::file(dir.path())).unwrap();
        std::fs::write(Audit::file(dir.path()), &text[..text.len() - 9]).unwrap();
        audit.add(at(), "uid 0", "after that", "done").unwrap();
        let (entries, flaws) = read(dir.path()).unwrap();
        let said: Vec<&str> = entries[2..].iter().map(|entry| entry.what.as_str()).collect();
        assert_eq!((said, flaws), (vec!["the log was torn", "the log was cut", "after that"], vec![]));
    }

    #[test]
    fn what_a_crash_left_behind_the_last_entry_is_set_aside_and_said() {
        for torn in ["{\"n\":4,\"at\"", "\0\0\0\0", "\0\0\n", "{\"n\":4}\n{\"n\":5"] {
            let dir = tempfile::tempdir().unwrap();
            let lines = written(dir.path());
            std::fs::write(Audit::file(dir.path()), format!("{}\n{torn}", lines.join("\n"))).unwrap();
            let mut audit = Audit::open(dir.path()).unwrap();
            assert!(audit.torn().is_some());
            audit.add(at(), "uid 0", "next", "done").unwrap();
            let (entries, flaws) = read(dir.path()).unwrap();
            assert_eq!((entries.len(), flaws), (5, vec![]), "{torn:?}");
            assert_eq!((entries[3].what.as_str(), entries[4].what.as_str()), ("the log was torn", "next"));
            let aside = entries[3].result.rsplit(' ').next().unwrap();
            assert_eq!(std::fs::read_to_string(dir.path().join(aside)).unwrap(), torn);
            assert!(Audit::open(dir.path()).unwrap().torn().is_none(), "it is said once");
        }
    }

    #[test]
    fn arguments_are_told_apart_and_entries_without_them_stay_sound() {
        let dir = tempfile::tempdir().unwrap();
        // As an earlier version wrote it.
        let old = r#"{"n":1,"at":"2026-11-29T12:00:00Z","who":"uid 0","what":"keyframe snapshot db","result":"asked for","previous":"0000000000000000000000000000000000000000000000000000000000000000","hash":""}"#;
        let hash = blake3::hash(old.as_bytes()).to_hex();
        let old = old.replace("\"hash\":\"\"", &format!("\"hash\":\"{hash}\""));
        std::fs::write(Audit::file(dir.path()), format!("{old}\n")).unwrap();
        let mut audit = Audit::open(dir.path()).unwrap();
        let one = ["snapshot", "db", "--note", "a b"].map(str::to_owned);
        let other = ["snapshot", "db", "--note", "a", "b"].map(str::to_owned);
        audit.add_command(at(), "uid 0", "snapshot db", &one, "asked for").unwrap();
        audit.add_command(at(), "uid 0", "snapshot db", &other, "asked for").unwrap();
        let (entries, flaws) = read(dir.path()).unwrap();
        assert_eq!(flaws, []);
        assert_eq!(entries[0].arguments, None);
        assert_eq!(
            (entries[1].arguments.as_deref(), entries[2].arguments.as_deref()),
            (Some(&one[..]), Some(&other[..]))
        );
        assert_eq!(entries[1].told(), "snapshot db: keyframe snapshot db --note 'a b'");
        let text = std::fs::read_to_string(Audit::file(dir.path())).unwrap();
        std::fs::write(Audit::file(dir.path()), text.replace("\"a b\"", "\"a\",\"b\"")).unwrap();
        assert_eq!(read(dir.path()).unwrap().1[0].line, 2);
    }
}
