//! A directory on another machine, over SFTP.
//!
//! The connection is the system's `ssh`, so everything the admin configured for it holds: aliases, keys, jump hosts, known hosts.
//! It never asks a question (`BatchMode`). Calls share one connection; one that breaks is made anew by the next call.
//!
//! An object is written beside (`tmp/`), synced where the server can (`fsync@openssh.com`), and renamed; then its length is asked
//! for, as some servers take what they have no room for. Whether a rename replaces decides about [`Put::Create`]: the
//! protocol's own rename must not replace, OpenSSH's `posix-rename` does. Some servers' own does, so it is tried before it is
//! relied on.
//!
//! The protocol has no way to sync a directory: the last objects before a power cut of the server may be gone after it, on file
//! systems that keep to the order of renames the latest only. What a broken connection leaves in `tmp/` is never read, and
//! removed by [`SftpStore::tidy`]. On a server without `posix-rename` what is replaced, which only a repair does, lies in `tmp/`
//! for a moment.
//!
//! Nothing of the protocol tells one directory from another. `tmp/` does: where it was once seen, nothing is written any more when it is
//! gone, as another directory, such as an empty one that a file system was mounted on, has taken the place of the one that was used.

pub(crate) mod wire;

use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use self::wire::{Attributes, Link, Status};
use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

/// A directory over SFTP.
#[derive(Debug)]
pub struct SftpStore {
    program: String,
    arguments: Vec<String>,
    root: String,
    shown: String,
    connection: Mutex<Option<Connection>>,
    counter: AtomicU64,
    /// Whether `tmp/` was there: that is what the directory is known by.
    known: AtomicBool,
    /// Whether renaming does not replace, once it was tried.
    exclusive: OnceLock<bool>,
}

const TEMPORARY: &str = "tmp";

#[derive(Debug)]
struct Connection {
    child: Child,
    link: Link<ChildStdout, ChildStdin>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended by itself; either way nobody needs it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl SftpStore {
    /// `sftp://[USER@]HOST[:PORT]/PATH`; `/~/PATH` is below the home directory. HOST may be an alias of ssh's configuration.
    ///
    /// # Errors
    /// [`Error::BadAddress`].
    pub fn new(address: &str) -> Result<Self> {
        let bad = |why| Error::BadAddress { text: address.to_owned(), why };
        let rest = address.strip_prefix("sftp://").ok_or_else(|| bad("it does not begin with sftp://"))?;
        let (host, path) = rest.split_once('/').ok_or_else(|| bad("there is no path behind the host"))?;
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| bad("the port is no number"))?)),
            None => (host, None),
        };
        // What begins with a dash would be an option of ssh.
        if host.is_empty() || host.starts_with('-') || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(bad("there is no host"));
        }
        let root = path.strip_prefix("~/").map_or_else(|| format!("/{path}"), str::to_owned);
        // Without the second a connection that died is waited for, for hours.
        let mut arguments = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=30"].map(str::to_owned).to_vec();
        if let Some(port) = port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        arguments.extend(["-s".to_owned(), "--".to_owned(), host.to_owned(), "sftp".to_owned()]);
        Ok(Self::through("ssh", arguments, root.trim_end_matches('/'), address))
    }

    /// Through a program that speaks SFTP on its standard input and output.
    #[must_use]
    pub fn through(program: &str, arguments: Vec<String>, root: &str, shown: &str) -> Self {
        Self {
            program: program.to_owned(),
            arguments,
            root: root.to_owned(),
            shown: shown.to_owned(),
            connection: Mutex::new(None),
            counter: AtomicU64::new(0),
            known: AtomicBool::new(false),
            exclusive: OnceLock::new(),
        }
    }

    /// Makes the directory where it is not there.
    ///
    /// # Errors
    /// What the server says.
    pub fn create_root(&self) -> Result<()> {
        self.call(|link| {
            let parts: Vec<&str> = self.root.split('/').collect();
            for end in 1..=parts.len() {
                let dir = parts.get(..end).unwrap_or_default().join("/");
                if !dir.is_empty() {
                    make_dir(link, &dir)?;
                }
            }
            Ok(())
        })
    }

    /// Whether the directory is there.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn has_root(&self) -> Result<bool> {
        self.call(|link| link.stat(&self.root).map(|found| found.is_some_and(|attributes| attributes.is_dir())))
    }

    fn call<T>(&self, work: impl FnOnce(&mut Link<ChildStdout, ChildStdin>) -> Result<T>) -> Result<T> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match &mut *kept {
            Some(connection) => connection,
            none => none.insert(self.connect()?),
        };
        let outcome = self.get_to_know(&mut connection.link).and_then(|()| work(&mut connection.link));
        if outcome.as_ref().is_err_and(Error::is_transient) {
            // Whatever is still on its way belongs to nobody.
            *kept = None;
        }
        outcome
    }

    fn connect(&self) -> Result<Connection> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let spawned = command.spawn();
        let mut child = spawned.map_err(|source| Error::Io { action: "run", path: self.program.clone(), source })?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(from), Some(to)) => {
                let link = Link::new(from, to)?;
                Ok(Connection { child, link })
            }
            _ => Err(Error::Unavailable { reason: "ssh has no input or output".to_owned() }),
        }
    }

    /// Looks for what the directory is known by, before anything else is done with it.
    fn get_to_know(&self, link: &mut Link<ChildStdout, ChildStdin>) -> Result<()> {
        if !self.known.load(Ordering::Relaxed) && is_dir(link, &self.path(TEMPORARY))? {
            self.known.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// That it is the directory that it was: before anything is made in it.
    fn is_there(&self, link: &mut Link<ChildStdout, ChildStdin>) -> Result<()> {
        let dir = self.path(TEMPORARY);
        if !self.known.load(Ordering::Relaxed) {
            make_dir(link, &dir)?;
            self.known.store(true, Ordering::Relaxed);
        } else if !is_dir(link, &dir)? {
            let reason = format!(
                "cannot write below {}: {dir} was there and is gone, so another directory may have its place",
                self.root
            );
            return Err(Error::Refused { reason });
        }
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// A name in `tmp/` that nobody else uses.
    fn temporary(&self) -> String {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        self.path(&format!("{TEMPORARY}/{}-{number}-{clock}", std::process::id()))
    }

    /// Removes what broken connections left half-written and `age` ago, by the server's clock.
    ///
    /// # Errors
    /// What the server says.
    pub fn tidy(&self, age: Duration) -> Result<u64> {
        let (probe, dir) = (self.temporary(), self.path(TEMPORARY));
        self.call(|link| {
            if link.stat(&dir)?.is_none() {
                return Ok(0);
            }
            match link.write_file(&probe, b"")? {
                Status::Done => {}
                status => return Err(refused("create", &probe, &status)),
            }
            let now = link.stat(&probe)?.map_or(0, |attributes| attributes.modified_s);
            link.remove(&probe)?;
            let mut removed = 0;
            for (leaf, attributes) in link.list(&dir)? {
                let passed = now.checked_sub(attributes.modified_s).map(u64::from);
                let old = passed.is_some_and(|passed| Duration::from_secs(passed) >= age);
                if old && crate::local::is_temporary(&leaf) && !attributes.is_dir() {
                    removed += u64::from(link.remove(&format!("{dir}/{leaf}"))? == Status::Done);
                }
            }
            Ok(removed)
        })
    }

    /// Whether a rename does not replace: tried, as the word of the protocol is not kept by all.
    fn try_creating(&self) -> Result<bool> {
        let (first, second, target) = (self.temporary(), self.temporary(), self.temporary());
        self.call(|link| {
            self.is_there(link)?;
            let mut renamed = Vec::new();
            for file in [&first, &second] {
                match link.write_file(file, b"whose?")? {
                    Status::Done => renamed.push(link.rename(file, &target)?),
                    status => return Err(refused("create", file, &status)),
                }
            }
            // What is left is read by nobody.
            for file in [&first, &second, &target] {
                link.remove(file)?;
            }
            match renamed.as_slice() {
                [Status::Done, second] => Ok(*second != Status::Done),
                [status, _] => Err(refused("rename to", &target, status)),
                _ => Ok(false),
            }
        })
    }
}

fn is_dir(link: &mut Link<ChildStdout, ChildStdin>, path: &str) -> Result<bool> {
    Ok(link.stat(path)?.is_some_and(|attributes| attributes.is_dir()))
}

/// Makes a directory unless it is there.
fn make_dir(link: &mut Link<ChildStdout, ChildStdin>, dir: &str) -> Result<()> {
    if is_dir(link, dir)? {
        return Ok(());
    }
    match link.mkdir(dir)? {
        Status::Done => Ok(()),
        // Somebody else was faster.
        _ if is_dir(link, dir)? => Ok(()),
        status => Err(refused("make a directory", dir, &status)),
    }
}

fn refused(action: &str, path: &str, status: &Status) -> Error {
    Error::Refused { reason: format!("cannot {action} {path}: {status}") }
}

fn not_found(name: &ObjectName) -> Error {
    Error::NotFound { name: name.to_string() }
}

impl Store for SftpStore {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        let path = self.path(name.as_str());
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
        let (beside, aside) = (self.temporary(), self.temporary());
        self.call(|link| {
            self.is_there(link)?;
            // packs/ab lies in packs.
            if let Some((above, _)) = dir.rsplit_once('/').filter(|(above, _)| above.len() > self.root.len()) {
                make_dir(link, above)?;
            }
            make_dir(link, &dir)?;
            let placed = match (link.write_file(&beside, bytes)?, mode) {
                (Status::Done, Put::Create) => link.rename(&beside, &path)?,
                (Status::Done, Put::Replace) => link.replace(&beside, &path, &aside)?,
                (failed, _) => failed,
            };
            if placed == Status::Done {
                let len = link.stat(&path)?.map(|attributes| attributes.len);
                let there = len.is_some_and(|len| len == bytes.len() as u64);
                let reason = || format!("it has {len:?} bytes of {path} after it took {}", bytes.len());
                return if there { Ok(()) } else { Err(Error::Refused { reason: reason() }) };
            }
            link.remove(&beside)?;
            if mode == Put::Create && link.stat(&path)?.is_some() {
                return Err(Error::Exists { name: name.to_string() });
            }
            Err(refused("write", &path, &placed))
        })
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        let len = self.stat(name)?.len;
        if len > limit {
            return Err(Error::TooLarge { name: name.to_string(), len, limit });
        }
        self.get_range(name, 0, usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let path = self.path(name.as_str());
        self.call(|link| {
            let handle = match link.open(&path)? {
                Err(Status::NoSuchFile) => return Err(not_found(name)),
                handle => handle.map_err(|status| refused("open", &path, &status))?,
            };
            let end = offset.saturating_add(len as u64);
            // Before memory is taken: the length may come from a hostile repository.
            let there = link.stat(&path)?.map_or(0, |attributes| attributes.len);
            let bytes = if there < end { Ok(None) } else { link.read(&handle, offset, len)? };
            link.close(&handle)?;
            match bytes {
                Ok(bytes) => bytes.ok_or_else(|| Error::Short { name: name.to_string(), end }),
                Err(status) if status.is_failure() => {
                    let source = std::io::Error::other(status.to_string());
                    Err(Error::Unreadable { name: name.to_string(), source })
                }
                Err(status) => Err(refused("read", &path, &status)),
            }
        })
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        let found = self.call(|link| link.stat(&self.path(name.as_str())))?;
        found.map(|attributes| entry(name.clone(), &attributes)).ok_or_else(|| not_found(name))
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut pending = vec![area.to_owned()];
        while let Some(area) = pending.pop() {
            for (leaf, attributes) in self.call(|link| link.list(&self.path(&area)))? {
                let text = format!("{area}/{leaf}");
                // What is no name of ours is not ours.
                let Ok(name) = ObjectName::new(text.as_str()) else { continue };
                // What a link leads to is what would be read.
                let attributes = match attributes.is_link() {
                    false => Some(attributes),
                    true => self.call(|link| link.stat(&self.path(&text)))?,
                };
                let Some(attributes) = attributes else { continue };
                if attributes.is_dir() {
                    pending.push(text);
                } else {
                    found.push(entry(name, &attributes));
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let path = self.path(name.as_str());
        match self.call(|link| link.remove(&path))? {
            Status::Done | Status::NoSuchFile => Ok(()),
            status => Err(refused("remove", &path, &status)),
        }
    }

    /// Tried at the first call.
    fn creates_exclusively(&self) -> Result<bool> {
        if let Some(known) = self.exclusive.get() {
            return Ok(*known);
        }
        let tried = self.try_creating()?;
        Ok(*self.exclusive.get_or_init(|| tried))
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

fn entry(name: ObjectName, attributes: &Attributes) -> Entry {
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(attributes.modified_s.into());
    Entry { name, len: attributes.len, modified }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OpenSSH's server, as every Debian has it.
    const SERVER: &str = "/usr/lib/openssh/sftp-server";

    #[test]
    fn it_conforms() {
        assert!(std::path::Path::new(SERVER).exists(), "this test needs {SERVER} (Debian: openssh-sftp-server)");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b").display().to_string();
        let store = SftpStore::through(SERVER, Vec::new(), &root, "sftp://test/");
        assert!(!store.has_root().unwrap());
        store.create_root().unwrap();
        assert!(store.has_root().unwrap());
        crate::conformance::run(&store).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("a/b/tmp")).unwrap().count(), 0, "nothing is left half-written");
    }

    /// OpenSSH's server without some of what it can do.
    fn without(refused: &str, root: &std::path::Path) -> SftpStore {
        let arguments = vec!["-P".to_owned(), refused.to_owned()];
        SftpStore::through(SERVER, arguments, &root.display().to_string(), "sftp://test/")
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    fn left_in_tmp(root: &std::path::Path) -> usize {
        std::fs::read_dir(root.join("tmp")).map_or(0, Iterator::count)
    }

    #[test]
    fn a_server_without_extensions_conforms() {
        let dir = tempfile::tempdir().unwrap();
        crate::conformance::run(&without("posix-rename,fsync", dir.path())).unwrap();
        assert_eq!(left_in_tmp(dir.path()), 0);
    }

    #[test]
    fn a_connection_that_dies_at_any_byte_leaves_objects_whole_and_is_made_anew() {
        let (old, new) = (b"what was there".as_slice(), b"what comes".as_slice());
        let way = |cut: &str| vec!["-c".to_owned(), cut.to_owned()];
        let mut broken = 0;
        for (refused, replaces_at_once) in [("none-of-these", true), ("posix-rename", false)] {
            for at in (10..800).step_by(9) {
                // What is asked and what is answered ends behind so many bytes.
                let asked = format!("exec {SERVER} -P {refused} < <(exec dd bs=1 count={at} status=none)");
                let answered = format!("exec dd bs=1 count={at} status=none < <(exec {SERVER} -P {refused})");
                for cut in [asked, answered] {
                    let dir = tempfile::tempdir().unwrap();
                    let root = dir.path().display().to_string();
                    let whole = without(refused, dir.path());
                    whole.put(&name("index/2"), old, Put::Create).unwrap();
                    let dying = SftpStore::through("/bin/bash", way(&cut), &root, "sftp://test/");
                    for (object, before, mode) in
                        [(name("index/1"), None, Put::Create), (name("index/2"), Some(old), Put::Replace)]
                    {
                        let outcome = dying.put(&object, new, mode);
                        let there = whole.get(&object, 100).ok();
                        match &outcome {
                            Ok(()) => assert_eq!(there.as_deref(), Some(new), "{cut}"),
                            Err(error) => {
                                broken += 1;
                                assert!(error.is_transient(), "{cut}: {error}");
                                // Where nothing replaces, the old one may be aside when the connection dies.
                                let aside = there.is_none() && !replaces_at_once;
                                assert!(aside || there.as_deref() == before || there.as_deref() == Some(new), "{cut}");
                            }
                        }
                        // Again, as one does.
                        let again = whole.put(&object, new, mode);
                        let is_there = mode == Put::Create && matches!(again, Err(Error::Exists { .. }));
                        assert!(again.is_ok() || is_there, "{cut}: {again:?}");
                        assert_eq!(whole.get(&object, 100).unwrap(), new);
                    }
                    // The dying server may still be at its last request.
                    let tidied = || whole.tidy(Duration::ZERO).is_ok() && left_in_tmp(dir.path()) == 0;
                    assert!(
                        (0..200).any(|_| tidied() || {
                            std::thread::sleep(Duration::from_millis(10));
                            false
                        }),
                        "{cut}"
                    );
                }
            }
        }
        assert!(broken > 100, "{broken} were broken off");
    }

    #[test]
    fn only_what_is_ours_and_old_is_tidied() {
        let dir = tempfile::tempdir().unwrap();
        let store = without("none-of-these", dir.path());
        assert_eq!(store.tidy(Duration::ZERO).unwrap(), 0);
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        for file in ["12-3-45", "notes.txt", "12-x"] {
            std::fs::write(dir.path().join("tmp").join(file), b"half").unwrap();
        }
        assert_eq!(store.tidy(Duration::from_secs(3600)).unwrap(), 0);
        assert_eq!(store.tidy(Duration::ZERO).unwrap(), 1);
        assert_eq!(left_in_tmp(dir.path()), 2);
    }

    #[test]
    fn nothing_is_made_anew_where_the_directory_was() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("repo"), dir.path().join("away"));
        std::fs::create_dir(&root).unwrap();
        without("none-of-these", &root).put(&name("packs/ab/1"), b"x", Put::Create).unwrap();
        // One that has written, and one that has only read, as who opens a repository does first.
        let [writer, reader] = ["none-of-these", "posix-rename"].map(|refused| without(refused, &root));
        writer.put(&name("packs/ab/2"), b"x", Put::Create).unwrap();
        reader.get(&name("packs/ab/1"), 10).unwrap();
        std::fs::rename(&root, &away).unwrap();
        let objects = ["packs/ab/3", "packs/cd/4", "config"];
        for (store, object) in [&writer, &reader].into_iter().flat_map(|store| objects.map(|object| (store, object))) {
            assert!(store.put(&name(object), b"x", Put::Create).is_err(), "{object}");
        }
        assert!(!root.exists());
        // Another in its place, such as what a file system was mounted on.
        std::fs::create_dir(&root).unwrap();
        for store in [&writer, &reader] {
            let refused = store.put(&name("packs/ab/3"), b"x", Put::Replace).unwrap_err().to_string();
            assert!(
                refused.contains("cannot write below") && refused.contains("repo/tmp was there and is gone"),
                "{refused}"
            );
            assert!(store.creates_exclusively().is_err());
        }
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        std::fs::remove_dir(&root).unwrap();
        std::fs::rename(&away, &root).unwrap();
        writer.put(&name("packs/cd/4"), b"x", Put::Create).unwrap();
        reader.put(&name("packs/cd/5"), b"x", Put::Create).unwrap();
        assert_eq!(reader.list("packs").unwrap().len(), 4);
    }

    #[test]
    fn links_are_listed_as_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let store = without("none-of-these", dir.path());
        store.put(&name("packs/ab/1"), b"1234", Put::Create).unwrap();
        std::fs::rename(dir.path().join("packs/ab"), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("packs/ab")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("packs/cd")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("packs/ef")).unwrap();
        let listed: Vec<_> = store.list("packs").unwrap().into_iter().map(|entry| (entry.name, entry.len)).collect();
        assert_eq!(listed, [(name("packs/ab/1"), 4)]);
    }

    #[test]
    fn a_server_that_dies_is_unavailable_and_asked_again() {
        let store = SftpStore::through("/bin/true", Vec::new(), "/nowhere", "sftp://test/");
        for _ in 0..2 {
            let error = store.list("packs").unwrap_err();
            assert!(error.is_transient(), "{error:?}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        let store = SftpStore::new("sftp://me@host:2222/srv/backup/").unwrap();
        assert_eq!(store.root, "/srv/backup");
        assert_eq!(
            store.arguments,
            ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", "-p", "2222", "-s", "--", "me@host", "sftp"]
        );
        assert_eq!(SftpStore::new("sftp://host/~/backup").unwrap().root, "backup");
        for bad in ["/a", "sftp://host", "sftp:///a", "sftp://-oProxyCommand=x/a", "sftp://host:x/a", "sftp://a b/c"] {
            assert!(SftpStore::new(bad).is_err(), "{bad}");
        }
    }
}
