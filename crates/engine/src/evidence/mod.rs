//! What was proved, kept so that an auditor can check it: documents in a log that cannot be changed unseen.
//!
//! ```text
//!   HOME/evidence/log.jsonl          an entry a line: which document, its BLAKE3, the hash of the entry before; signed
//!   HOME/evidence/signing.key        Ed25519, PKCS#8, readable by the owner alone
//!   HOME/evidence/signing.pub        its public half, 64 hexadecimal digits: keep a copy elsewhere
//!   HOME/evidence/ID/…               a document, its page, and what was seen
//! ```
//! Documents are durable before their entry is written: the entry is the commit. A line that a crash left half-written was
//! never an entry, and the next one takes its place. Who takes entries away from the end, or has the key, can deceive: a
//! copy of the log's last hash elsewhere tells.

mod page;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use keyframe_repo::ids::{hex, hex_decode};
use keyframe_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::drill::record::Verdict;
use crate::error::{Error, IoContext as _};
use crate::state::durable;
use crate::state::home::Home;
use crate::state::lock::Lock;

pub(crate) use page::{Seen, page};

/// How long somebody else may take to add an entry.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest log that is read, in bytes: some 200 000 entries.
const LOG_MOST: u64 = 256 << 20;
/// Lengths of what Ed25519 makes.
const PUBLIC_KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
/// What the first entry follows.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1.
    pub number: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The point: its name, `@` and its id.
    pub point: String,
    /// How it ended.
    pub verdict: Verdict,
    /// The document, relative to the log's directory.
    pub document: PathBuf,
    /// Its BLAKE3, in hexadecimal.
    pub blake3: String,
    /// The hash of the entry before.
    pub previous: String,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What it says.
    pub entry: Entry,
    /// BLAKE3 of the entry as JSON without spaces, its members in the order above.
    pub hash: String,
    /// Ed25519 signature of the hash's 32 bytes, in hexadecimal.
    pub signature: String,
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
pub struct Ledger {
    dir: PathBuf,
}

/// A name for what is kept of something that began at some time. A clock can be set back: names are told apart by more than the
/// time.
pub(crate) fn stem(at: Timestamp) -> String {
    let digits: String = at.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    format!("{digits}-{}", InstanceId::random().short())
}

fn damaged(path: &Path, reason: impl ToString) -> Error {
    Error::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

fn hash_of(entry: &Entry) -> Result<blake3::Hash, Error> {
    serde_json::to_vec(entry).map(|bytes| blake3::hash(&bytes)).map_err(|source| Error::Encode { source })
}

impl Ledger {
    /// The log of `home`, whether it exists or not.
    #[must_use]
    pub fn of(home: &Home) -> Self {
        Self { dir: home.root().join("evidence") }
    }

    /// Where documents lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log.jsonl")
    }

    fn public_key_file(&self) -> PathBuf {
        self.dir.join("signing.pub")
    }

    /// A directory for a document and what belongs to it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn place(&self, at: Timestamp) -> Result<PathBuf, Error> {
        let dir = self.dir.join(stem(at));
        durable::create_private_dir(&dir)?;
        Ok(dir)
    }

    /// Adds an entry for a document, which is durable already.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] for a log or a key that cannot be read: nothing is added to what is broken.
    pub(crate) fn add(&self, point: &str, verdict: Verdict, document: &Path) -> Result<Entry, Error> {
        let _lock = Lock::wait(&self.dir.join("lock"), "keeping evidence", PATIENCE)?;
        let key = self.key()?;
        let (lines, whole) = self.read()?;
        let bytes = std::fs::read(document).or_io("read", document)?;
        let last = lines.last();
        let entry = Entry {
            number: last.map_or(1, |line| line.entry.number + 1),
            at: Timestamp::now(),
            point: point.to_owned(),
            verdict,
            document: document.strip_prefix(&self.dir).unwrap_or(document).to_owned(),
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            previous: last.map_or_else(|| NOTHING.to_owned(), |line| line.hash.clone()),
        };
        let hash = hash_of(&entry)?;
        let line = Line {
            entry: entry.clone(),
            hash: hash.to_hex().to_string(),
            signature: hex(key.sign(hash.as_bytes()).as_ref()),
        };
        let mut text = serde_json::to_vec(&line).map_err(|source| Error::Encode { source })?;
        text.push(b'\n');
        let path = self.log();
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            // Behind the last whole line: half of one was never an entry.
            file.set_len(whole)?;
            file.seek(SeekFrom::End(0))?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().or_io("write", &path)?;
        durable::sync_dir(&self.dir)?;
        Ok(entry)
    }

    /// Signs a document by the key of this home, which is made if there is none. Returns the public key and the signature, both in
    /// hexadecimal; [`is_signed`] checks them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`] for a key that cannot be read; [`Error::BadRequest`] for what is so short that it could be
    /// taken for the hash of an entry.
    pub fn sign(&self, document: &[u8]) -> Result<(String, String), Error> {
        if document.len() <= blake3::OUT_LEN {
            return Err(Error::BadRequest { what: "what is to be signed is too short to be a document".to_owned() });
        }
        durable::create_private_dir(&self.dir)?;
        let _lock = Lock::wait(&self.dir.join("lock"), "signing", PATIENCE)?;
        let key = self.key()?;
        Ok((hex(key.public_key().as_ref()), hex(key.sign(document).as_ref())))
    }

    fn key(&self) -> Result<Ed25519KeyPair, Error> {
        let path = self.dir.join("signing.key");
        if !path.try_exists().or_io("look at", &path)? {
            if self.log().try_exists().or_io("look at", &self.log())? {
                return Err(damaged(
                    &path,
                    "it is missing, and there is a log: put it back, or move the evidence away",
                ));
            }
            let trouble = |_| Error::BadRequest { what: "this host cannot make an Ed25519 key".to_owned() };
            let pair = Ed25519KeyPair::generate().map_err(trouble)?;
            let pkcs8 = pair.to_pkcs8().map_err(trouble)?;
            durable::replace(&self.public_key_file(), format!("{}\n", hex(pair.public_key().as_ref())).as_bytes())?;
            durable::replace(&path, pkcs8.as_ref())?;
        }
        let bytes = std::fs::read(&path).or_io("read", &path)?;
        Ed25519KeyPair::from_pkcs8(&bytes).map_err(|_| damaged(&path, "it is no Ed25519 key in PKCS#8"))
    }

    /// All whole lines, and how many bytes they are.
    fn read(&self) -> Result<(Vec<Line>, u64), Error> {
        let path = self.log();
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
            other => other.or_io("open", &path)?,
        };
        let mut text = Vec::new();
        file.take(LOG_MOST + 1).read_to_end(&mut text).or_io("read", &path)?;
        if text.len() as u64 > LOG_MOST {
            return Err(damaged(&path, "it is too long to be read: move the evidence away, and begin anew"));
        }
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = text.get(..whole).unwrap_or_default().split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let parse = |line: &[u8]| serde_json::from_slice(line).map_err(|error| damaged(&path, error));
        Ok((lines.map(parse).collect::<Result<_, _>>()?, whole as u64))
    }

    /// All entries, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`].
    pub fn lines(&self) -> Result<Vec<Line>, Error> {
        self.read().map(|(lines, _)| lines)
    }

    /// Checks every entry: its hash, its signature, that it follows the one before, and its document. `public_key` is a copy
    /// kept elsewhere, in hexadecimal; the home's own if `None`. `head` is the hash of an entry that must be there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Damaged`] for a log that cannot be taken apart, or no public key.
    pub fn verify(&self, public_key: Option<&str>, head: Option<&str>) -> Result<Vec<Flaw>, Error> {
        let (lines, _) = self.read()?;
        let missing = |what: &str| Ok(vec![Flaw { line: lines.len(), what: what.to_owned() }]);
        if head.is_some_and(|head| lines.iter().all(|line| line.hash != head)) {
            return missing("the entry with this hash is not there: the log was cut short, or changed");
        }
        if lines.is_empty() {
            let has_key = self.public_key_file().try_exists().or_io("look at", &self.public_key_file())?;
            return if has_key { missing("there is a key, and no entry: the log was removed") } else { Ok(Vec::new()) };
        }
        let path = self.public_key_file();
        let text = match public_key {
            Some(text) => text.to_owned(),
            None => std::fs::read_to_string(&path).or_io("read", &path)?,
        };
        let mut key = [0; PUBLIC_KEY_BYTES];
        if !hex_decode(text.trim(), &mut key) {
            return Err(damaged(&path, "it is not 64 hexadecimal digits"));
        }
        let key = UnparsedPublicKey::new(&ED25519, key);
        let mut flaws = Vec::new();
        let mut previous = NOTHING.to_owned();
        for (at, line) in lines.iter().enumerate() {
            let mut flaw = |what: &str| flaws.push(Flaw { line: at + 1, what: what.to_owned() });
            let hash = hash_of(&line.entry)?;
            if hash.to_hex().as_str() != line.hash {
                flaw("the entry was changed: its hash is another");
            }
            if line.entry.previous != previous {
                flaw("it does not follow the entry before: one was changed, added or taken away");
            }
            if line.entry.number != at as u64 + 1 {
                flaw("it is not counted on from the entry before");
            }
            let mut signature = [0; SIGNATURE_BYTES];
            let signed = hex_decode(&line.signature, &mut signature) && key.verify(hash.as_bytes(), &signature).is_ok();
            if !signed {
                flaw("its signature is not by this key");
            }
            let inside = line.entry.document.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            match std::fs::read(self.dir.join(&line.entry.document)) {
                _ if !inside => flaw("its document lies elsewhere"),
                Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == line.entry.blake3 => {
                    self.changed_files(&line.entry.document, &bytes).iter().for_each(|what| flaw(what));
                }
                Ok(_) => flaw("its document was changed"),
                Err(error) => flaw(&format!("its document cannot be read: {error}")),
            }
            previous.clone_from(&line.hash);
        }
        Ok(flaws)
    }

    /// What is wrong with the files that a document names.
    fn changed_files(&self, document: &Path, bytes: &[u8]) -> Vec<String> {
        let dir = self.dir.join(document.parent().unwrap_or(Path::new("")));
        let Ok(Files { files }) = serde_json::from_slice(bytes) else { return Vec::new() };
        let is_as_told =
            |name: &str, told: &str| !name.contains('/') && hash_of_file(&dir.join(name)).is_ok_and(|now| now == *told);
        let changed = files.iter().filter(|(name, told)| !is_as_told(name, told));
        changed.map(|(name, _)| format!("{name} was changed, or cannot be read")).collect()
    }
}

/// Whether a document has this signature by this key, both in hexadecimal.
#[must_use]
pub fn is_signed(document: &[u8], public_key: &str, signature: &str) -> bool {
    let (mut key, mut made) = ([0; PUBLIC_KEY_BYTES], [0; SIGNATURE_BYTES]);
    let read = hex_decode(public_key.trim(), &mut key) && hex_decode(signature.trim(), &mut made);
    read && UnparsedPublicKey::new(&ED25519, key).verify(document, &made).is_ok()
}

/// Files beside a document, by their names, with their BLAKE3 in hexadecimal: a member of every document.
#[derive(Debug, Deserialize)]
struct Files {
    #[serde(default)]
    files: BTreeMap<String, String>,
}

fn hash_of_file(path: &Path) -> std::io::Result<String> {
    std::fs::read(path).map(|bytes| blake3::hash(&bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let root = tempfile::tempdir().unwrap();
        let ledger = Ledger::of(&Home::open(root.path()).unwrap());
        for number in 0..3 {
            add(&ledger, number);
        }
        (root, ledger)
    }

    fn add(ledger: &Ledger, number: usize) -> PathBuf {
        let dir = ledger.place(Timestamp::now()).unwrap();
        let document = dir.join("drill.json");
        durable::replace(&document, format!("{{\"number\": {number}}}").as_bytes()).unwrap();
        ledger.add("db@1234", Verdict::Passed, &document).unwrap();
        document
    }

    #[test]
    fn what_is_changed_is_seen() {
        let (_root, ledger) = ledger();
        assert_eq!(ledger.verify(None, None).unwrap(), []);
        let text = std::fs::read_to_string(ledger.log()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let tampered = [
            ("another verdict", text.replacen("passed", "failed", 1)),
            ("one taken out", format!("{}\n{}\n", lines[0], lines[2])),
            ("two exchanged", format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2])),
        ];
        for (what, tampered) in tampered {
            std::fs::write(ledger.log(), tampered).unwrap();
            assert!(!ledger.verify(None, None).unwrap().is_empty(), "{what}");
        }
        std::fs::write(ledger.log(), &text).unwrap();
        assert_eq!(ledger.verify(None, None).unwrap(), []);
        let stranger = hex(&[7; 32]);
        assert_eq!(ledger.verify(Some(&stranger), None).unwrap().len(), 3, "another's key");
        let document = ledger.dir().join(&ledger.lines().unwrap()[1].entry.document);
        std::fs::write(document, "{}").unwrap();
        assert_eq!(ledger.verify(None, None).unwrap().len(), 1);
    }

    #[test]
    fn a_document_is_signed_by_the_key_of_the_log() {
        let (_root, ledger) = ledger();
        let document = b"{\"schema\": \"keyframe.report/1\", \"machines\": []}".to_vec();
        let (key, signature) = ledger.sign(&document).unwrap();
        assert_eq!(std::fs::read_to_string(ledger.public_key_file()).unwrap().trim(), key);
        assert!(is_signed(&document, &key, &signature));
        let mut changed = document.clone();
        changed[12] ^= 1;
        assert!(!is_signed(&changed, &key, &signature));
        assert!(!is_signed(&document, &hex(&[7; 32]), &signature) && !is_signed(&document, &key, "00"));
        assert!(ledger.sign(&[0; 32]).is_err(), "an entry's hash is no document");
        assert_eq!(ledger.verify(None, None).unwrap(), []);
    }

    #[test]
    fn half_a_line_was_never_an_entry() {
        let (_root, ledger) = ledger();
        let text = std::fs::read_to_string(ledger.log()).unwrap();
        std::fs::write(ledger.log(), &text[..text.len() - 20]).unwrap();
        assert_eq!(ledger.lines().unwrap().len(), 2);
        add(&ledger, 3);
        assert_eq!(ledger.lines().unwrap().len(), 3);
        assert_eq!(ledger.verify(None, None).unwrap(), []);
    }

    #[test]
    fn the_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_root, ledger) = ledger();
        let mode = std::fs::metadata(ledger.dir().join("signing.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
