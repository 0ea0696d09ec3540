//! A directory on another machine, over SFTP.
//!
//! The connection is the system's `ssh`, so everything the admin configured for it holds: aliases, keys, jump hosts, known hosts.
//! It never asks a question (`BatchMode`). Calls share one connection; one that breaks is made anew by the next call.
//!
//! An object is written beside (`tmp/`), synced where the server can (`fsync@openssh.com`), and renamed. Whether a rename
//! replaces decides about [`Put::Create`]: the protocol's own rename must not replace, OpenSSH's `posix-rename` does.

pub(crate) mod wire;

use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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
}

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
        let mut arguments = vec!["-o".to_owned(), "BatchMode=yes".to_owned()];
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
        let outcome = work(&mut connection.link);
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

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }
}

/// Makes a directory unless it is there.
fn make_dir(link: &mut Link<ChildStdout, ChildStdin>, dir: &str) -> Result<()> {
    if link.stat(dir)?.is_some_and(|attributes| attributes.is_dir()) {
        return Ok(());
    }
    match link.mkdir(dir)? {
        Status::Done => Ok(()),
        // Somebody else was faster.
        _ if link.stat(dir)?.is_some_and(|attributes| attributes.is_dir()) => Ok(()),
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
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let beside = self.path(&format!("tmp/{}-{number}-{clock}", std::process::id()));
        self.call(|link| {
            make_dir(link, &self.path("tmp"))?;
            // packs/ab lies in packs.
            if let Some((above, _)) = dir.rsplit_once('/').filter(|(above, _)| above.len() > self.root.len()) {
                make_dir(link, above)?;
            }
            make_dir(link, &dir)?;
            let handle = link.create(&beside)?.map_err(|status| refused("create", &beside, &status))?;
            let written = link.write_all(&handle, bytes)?;
            let written = if written == Status::Done { link.sync(&handle)? } else { written };
            link.close(&handle)?;
            let placed = match written {
                Status::Done => link.rename(&beside, &path, mode == Put::Replace)?,
                failed => failed,
            };
            if placed == Status::Done {
                return Ok(());
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
            let bytes = if there < end { Ok(None) } else { link.read(&handle, offset, len) };
            link.close(&handle)?;
            bytes?.ok_or_else(|| Error::Short { name: name.to_string(), end })
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

    fn creates_exclusively(&self) -> Result<bool> {
        Ok(true)
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
        assert_eq!(store.arguments, ["-o", "BatchMode=yes", "-p", "2222", "-s", "--", "me@host", "sftp"]);
        assert_eq!(SftpStore::new("sftp://host/~/backup").unwrap().root, "backup");
        for bad in ["/a", "sftp://host", "sftp:///a", "sftp://-oProxyCommand=x/a", "sftp://host:x/a", "sftp://a b/c"] {
            assert!(SftpStore::new(bad).is_err(), "{bad}");
        }
    }
}
