//! The SFTP protocol, version 3, as OpenSSH speaks it. Source: draft-ietf-secsh-filexfer-02; OpenSSH `PROTOCOL`.

use std::fmt;
use std::io::{self, Read, Write};

use crate::error::{Error, Result};

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED: u8 = 200;

const END_OF_FILE: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const UNSUPPORTED: u32 = 8;

/// Bytes of one read or write: what every server takes.
const BLOCK: usize = 32 * 1024;
/// Requests on their way at once; their answers fit into a pipe.
const WINDOW: usize = 64;
/// Longest message taken from a server.
const MESSAGE_MOST: usize = 1 << 20;
const DIRECTORY: u32 = 0o040_000;

/// What a server says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Done,
    NoSuchFile,
    Failed(u32, String),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::NoSuchFile => f.write_str("there is no such file"),
            Self::Failed(code, text) => write!(f, "{text} ({code})"),
        }
    }
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    pub len: u64,
    pub mode: u32,
    pub modified_s: u32,
}

impl Attributes {
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == DIRECTORY
    }
}

/// A connection.
#[derive(Debug)]
pub struct Link<R, W> {
    from: R,
    to: W,
    next_id: u32,
    can_sync: bool,
    can_replace: bool,
}

type Handle = Vec<u8>;

fn gone(error: &io::Error) -> Error {
    Error::Unavailable { reason: format!("the SFTP connection broke: {error}") }
}

fn nonsense() -> Error {
    Error::Unavailable { reason: "the SFTP server does not keep to the protocol".to_owned() }
}

/// Reads fields of a message.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(nonsense)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| nonsense())
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn attributes(&mut self) -> Result<Attributes> {
        let mut attributes = Attributes::default();
        let flags = self.u32()?;
        if flags & 1 != 0 {
            attributes.len = u64::from(self.u32()?) << 32 | u64::from(self.u32()?);
        }
        if flags & 2 != 0 {
            self.take(8)?;
        }
        if flags & 4 != 0 {
            attributes.mode = self.u32()?;
        }
        if flags & 8 != 0 {
            self.u32()?;
            attributes.modified_s = self.u32()?;
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }

    fn status(&mut self) -> Result<Status> {
        let code = self.u32()?;
        let text = self.string().map(|text| String::from_utf8_lossy(text).chars().take(200).collect());
        Ok(match code {
            0 => Status::Done,
            NO_SUCH_FILE => Status::NoSuchFile,
            code => Status::Failed(code, text.unwrap_or_default()),
        })
    }
}

fn string(into: &mut Vec<u8>, text: &[u8]) {
    into.extend_from_slice(&(text.len() as u32).to_be_bytes());
    into.extend_from_slice(text);
}

impl<R: Read, W: Write> Link<R, W> {
    /// Greets.
    pub fn new(from: R, to: W) -> Result<Self> {
        let mut link = Self { from, to, next_id: 0, can_sync: false, can_replace: false };
        link.send(INIT, &3_u32.to_be_bytes())?;
        let (kind, body) = link.receive()?;
        let mut message = Message(&body);
        if kind != VERSION || message.u32()? < 3 {
            return Err(nonsense());
        }
        while !message.0.is_empty() {
            let (name, _) = (message.string()?, message.string()?);
            link.can_sync |= name == b"fsync@openssh.com";
            link.can_replace |= name == b"posix-rename@openssh.com";
        }
        Ok(link)
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(body.len() + 5);
        message.extend_from_slice(&(body.len() as u32 + 1).to_be_bytes());
        message.push(kind);
        message.extend_from_slice(body);
        self.to.write_all(&message).and_then(|()| self.to.flush()).map_err(|error| gone(&error))
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut len = [0; 4];
        self.from.read_exact(&mut len).map_err(|error| gone(&error))?;
        let len = u32::from_be_bytes(len) as usize;
        if len == 0 || len > MESSAGE_MOST {
            return Err(nonsense());
        }
        let mut body = vec![0; len];
        self.from.read_exact(&mut body).map_err(|error| gone(&error))?;
        let kind = body.remove(0);
        Ok((kind, body))
    }

    fn request(&mut self, kind: u8, fields: impl FnOnce(&mut Vec<u8>)) -> Result<u32> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut body = id.to_be_bytes().to_vec();
        fields(&mut body);
        self.send(kind, &body)?;
        Ok(id)
    }

    /// The answer to a request; answers come in the order of requests, as OpenSSH gives them.
    fn answer(&mut self, id: u32) -> Result<(u8, Vec<u8>)> {
        let (kind, mut body) = self.receive()?;
        if Message(&body).u32()? != id {
            return Err(nonsense());
        }
        body.drain(..4);
        Ok((kind, body))
    }

    fn status_of(&mut self, id: u32) -> Result<Status> {
        match self.answer(id)? {
            (STATUS, body) => Message(&body).status(),
            _ => Err(nonsense()),
        }
    }

    fn handle_of(&mut self, id: u32) -> Result<std::result::Result<Handle, Status>> {
        match self.answer(id)? {
            (HANDLE, body) => Ok(Ok(Message(&body).string()?.to_vec())),
            (STATUS, body) => Message(&body).status().map(Err),
            _ => Err(nonsense()),
        }
    }

    fn open_with(&mut self, path: &str, flags: u32, mode: Option<u32>) -> Result<std::result::Result<Handle, Status>> {
        let id = self.request(OPEN, |body| {
            string(body, path.as_bytes());
            body.extend_from_slice(&flags.to_be_bytes());
            body.extend_from_slice(&mode.map_or(0, |_| 4_u32).to_be_bytes());
            body.extend(mode.into_iter().flat_map(u32::to_be_bytes));
        })?;
        self.handle_of(id)
    }

    /// Opens a file for reading.
    pub fn open(&mut self, path: &str) -> Result<std::result::Result<Handle, Status>> {
        self.open_with(path, 1, None)
    }

    /// Creates a file that is not there, for its owner alone.
    pub fn create(&mut self, path: &str) -> Result<std::result::Result<Handle, Status>> {
        const WRITE_CREATE_EXCLUSIVELY: u32 = 2 | 8 | 0x20;
        self.open_with(path, WRITE_CREATE_EXCLUSIVELY, Some(0o600))
    }

    /// Closes a handle.
    pub fn close(&mut self, handle: &Handle) -> Result<Status> {
        let id = self.request(CLOSE, |body| string(body, handle))?;
        self.status_of(id)
    }

    /// Writes a file from its beginning; the first failure.
    pub fn write_all(&mut self, handle: &Handle, bytes: &[u8]) -> Result<Status> {
        let mut outcome = Status::Done;
        for (number, window) in bytes.chunks(BLOCK * WINDOW).enumerate() {
            let mut ids = Vec::with_capacity(WINDOW);
            for (block, part) in window.chunks(BLOCK).enumerate() {
                let at = ((number * WINDOW + block) * BLOCK) as u64;
                ids.push(self.request(WRITE, |body| {
                    string(body, handle);
                    body.extend_from_slice(&at.to_be_bytes());
                    string(body, part);
                })?);
            }
            for id in ids {
                let status = self.status_of(id)?;
                if outcome == Status::Done {
                    outcome = status;
                }
            }
        }
        Ok(outcome)
    }

    /// Reads exactly so many bytes; nothing when the file ends before.
    pub fn read(&mut self, handle: &Handle, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let mut asked = Vec::with_capacity(WINDOW);
            let mut at = bytes.len();
            while asked.len() < WINDOW && at < len {
                let part = BLOCK.min(len - at);
                let id = self.request(READ, |body| {
                    string(body, handle);
                    body.extend_from_slice(&offset.wrapping_add(at as u64).to_be_bytes());
                    body.extend_from_slice(&(part as u32).to_be_bytes());
                })?;
                asked.push((id, part));
                at += part;
            }
            let mut whole = true;
            let mut ended = false;
            for (id, part) in asked {
                match self.answer(id)? {
                    (DATA, body) => {
                        let data = Message(&body).string()?;
                        if data.is_empty() || data.len() > part {
                            return Err(nonsense());
                        }
                        // Behind a short answer the others do not join on: they are asked for again.
                        if whole {
                            bytes.extend_from_slice(data);
                            whole = data.len() == part;
                        }
                    }
                    (STATUS, body) => match Message(&body).status()? {
                        Status::Failed(END_OF_FILE, _) => ended = whole,
                        status => return Err(Error::Refused { reason: format!("cannot read: {status}") }),
                    },
                    _ => return Err(nonsense()),
                }
            }
            if ended {
                return Ok(None);
            }
        }
        Ok(Some(bytes))
    }

    /// Has the server sync a file, where it can.
    pub fn sync(&mut self, handle: &Handle) -> Result<Status> {
        if !self.can_sync {
            return Ok(Status::Done);
        }
        let id = self.request(EXTENDED, |body| {
            string(body, b"fsync@openssh.com");
            string(body, handle);
        })?;
        match self.status_of(id)? {
            Status::Failed(UNSUPPORTED, _) => Ok(Status::Done),
            status => Ok(status),
        }
    }

    /// Renames; replaces only when told to.
    pub fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<Status> {
        if replace && !self.can_replace {
            self.remove(to)?;
        }
        let id = if replace && self.can_replace {
            self.request(EXTENDED, |body| {
                string(body, b"posix-rename@openssh.com");
                string(body, from.as_bytes());
                string(body, to.as_bytes());
            })?
        } else {
            self.request(RENAME, |body| {
                string(body, from.as_bytes());
                string(body, to.as_bytes());
            })?
        };
        self.status_of(id)
    }

    /// Removes a file.
    pub fn remove(&mut self, path: &str) -> Result<Status> {
        let id = self.request(REMOVE, |body| string(body, path.as_bytes()))?;
        self.status_of(id)
    }

    /// Makes a directory for its owner alone.
    pub fn mkdir(&mut self, path: &str) -> Result<Status> {
        let id = self.request(MKDIR, |body| {
            string(body, path.as_bytes());
            body.extend_from_slice(&4_u32.to_be_bytes());
            body.extend_from_slice(&0o700_u32.to_be_bytes());
        })?;
        self.status_of(id)
    }

    /// What is known of a file; nothing when there is none.
    pub fn stat(&mut self, path: &str) -> Result<Option<Attributes>> {
        let id = self.request(STAT, |body| string(body, path.as_bytes()))?;
        match self.answer(id)? {
            (ATTRS, body) => Message(&body).attributes().map(Some),
            (STATUS, body) => match Message(&body).status()? {
                Status::NoSuchFile => Ok(None),
                status => Err(Error::Refused { reason: format!("cannot look at {path}: {status}") }),
            },
            _ => Err(nonsense()),
        }
    }

    /// The entries of a directory; none when there is no directory.
    pub fn list(&mut self, path: &str) -> Result<Vec<(String, Attributes)>> {
        let id = self.request(OPENDIR, |body| string(body, path.as_bytes()))?;
        let handle = match self.handle_of(id)? {
            Ok(handle) => handle,
            Err(Status::NoSuchFile) => return Ok(Vec::new()),
            Err(status) => return Err(Error::Refused { reason: format!("cannot list {path}: {status}") }),
        };
        let mut entries = Vec::new();
        loop {
            let id = self.request(READDIR, |body| string(body, &handle))?;
            let (kind, body) = self.answer(id)?;
            let mut message = Message(&body);
            match kind {
                NAME => {
                    for _ in 0..message.u32()? {
                        let name = String::from_utf8_lossy(message.string()?).into_owned();
                        message.string()?;
                        entries.push((name, message.attributes()?));
                    }
                }
                STATUS => match message.status()? {
                    Status::Failed(END_OF_FILE, _) => break,
                    status => return Err(Error::Refused { reason: format!("cannot list {path}: {status}") }),
                },
                _ => return Err(nonsense()),
            }
        }
        self.close(&handle)?;
        Ok(entries)
    }
}
