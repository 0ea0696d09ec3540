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
const FAILURE: u32 = 4;
const UNSUPPORTED: u32 = 8;

/// Bytes of one read or write: what every server takes.
const BLOCK: usize = 32 * 1024;
/// Requests on their way at once; their answers fit into a pipe.
const WINDOW: usize = 64;
/// Longest message taken from a server.
const MESSAGE_MOST: usize = 1 << 20;
/// Entries of one directory that are taken from a server: many more than packs can be in one.
const ENTRIES_MOST: usize = 4 << 20;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const TYPE: u32 = 0o170_000;

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
        self.mode & TYPE == DIRECTORY
    }

    pub fn is_link(&self) -> bool {
        self.mode & TYPE == LINK
    }
}

impl Status {
    /// Whether the file is there, and its content cannot be had: so servers tell of a bad place on a disk.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(FAILURE, _))
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
        // It is shown to people: without what a terminal would obey.
        let plain = |text| String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(200).collect();
        let text = self.string().map(plain);
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

    /// Writes a new file whole, and durably where the server can do that; the first failure.
    pub fn write_file(&mut self, path: &str, bytes: &[u8]) -> Result<Status> {
        let handle = match self.create(path)? {
            Ok(handle) => handle,
            Err(status) => return Ok(status),
        };
        let mut outcome = self.write_all(&handle, bytes)?;
        if outcome == Status::Done {
            outcome = self.sync(&handle)?;
        }
        // Some file systems tell only now that there was no room.
        let closed = self.close(&handle)?;
        Ok(if outcome == Status::Done { closed } else { outcome })
    }

    /// Reads exactly so many bytes; nothing when the file ends before, and the server's word when it cannot read it.
    pub fn read(
        &mut self,
        handle: &Handle,
        offset: u64,
        len: usize,
    ) -> Result<std::result::Result<Option<Vec<u8>>, Status>> {
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
            let mut failed = None;
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
                        Status::Failed(END_OF_FILE, _) => ended |= whole,
                        // The other answers are still on their way, and belong to nothing else.
                        status => failed = failed.or(Some(status)),
                    },
                    _ => return Err(nonsense()),
                }
            }
            if let Some(status) = failed {
                return Ok(Err(status));
            }
            if ended {
                return Ok(Ok(None));
            }
        }
        Ok(Ok(Some(bytes)))
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

    /// Renames; must not replace.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<Status> {
        let id = self.request(RENAME, |body| {
            string(body, from.as_bytes());
            string(body, to.as_bytes());
        })?;
        self.status_of(id)
    }

    /// Renames and replaces. Where the server has no way to do that at once, what is there is moved aside until it is done.
    pub fn replace(&mut self, from: &str, to: &str, aside: &str) -> Result<Status> {
        if self.can_replace {
            let id = self.request(EXTENDED, |body| {
                string(body, b"posix-rename@openssh.com");
                string(body, from.as_bytes());
                string(body, to.as_bytes());
            })?;
            return self.status_of(id);
        }
        // It may be of the kind that replaces, or there is nothing to replace.
        if self.rename(from, to)? == Status::Done {
            return Ok(Status::Done);
        }
        match self.rename(to, aside)? {
            Status::Done => {}
            status => return Ok(status),
        }
        let outcome = self.rename(from, to)?;
        if outcome == Status::Done {
            self.remove(aside)?;
        } else {
            self.rename(aside, to)?;
        }
        Ok(outcome)
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
        self.list_at_most(path, ENTRIES_MOST)
    }

    fn list_at_most(&mut self, path: &str, most: usize) -> Result<Vec<(String, Attributes)>> {
        let id = self.request(OPENDIR, |body| string(body, path.as_bytes()))?;
        let handle = match self.handle_of(id)? {
            Ok(handle) => handle,
            Err(Status::NoSuchFile) => return Ok(Vec::new()),
            Err(status) => return Err(Error::Refused { reason: format!("cannot list {path}: {status}") }),
        };
        let mut entries = Vec::new();
        let outcome = loop {
            let id = self.request(READDIR, |body| string(body, &handle))?;
            let (kind, body) = self.answer(id)?;
            let mut message = Message(&body);
            match kind {
                NAME => {
                    let count = message.u32()?;
                    // Who names nothing, or never ends, would be listened to for ever.
                    if count == 0 || entries.len() > most {
                        return Err(nonsense());
                    }
                    for _ in 0..count {
                        let name = String::from_utf8_lossy(message.string()?).into_owned();
                        message.string()?;
                        entries.push((name, message.attributes()?));
                    }
                }
                STATUS => match message.status()? {
                    Status::Failed(END_OF_FILE, _) => break Ok(entries),
                    status => break Err(Error::Refused { reason: format!("cannot list {path}: {status}") }),
                },
                _ => return Err(nonsense()),
            }
        };
        self.close(&handle)?;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as a server sends it.
    fn says(kind: u8, id: u32, body: &[u8]) -> Vec<u8> {
        let mut message = (body.len() as u32 + 5).to_be_bytes().to_vec();
        message.push(kind);
        message.extend_from_slice(&id.to_be_bytes());
        message.extend_from_slice(body);
        message
    }

    fn status(id: u32, code: u32, text: &str) -> Vec<u8> {
        let mut body = code.to_be_bytes().to_vec();
        string(&mut body, text.as_bytes());
        string(&mut body, b"");
        says(STATUS, id, &body)
    }

    fn text(kind: u8, id: u32, text: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        string(&mut body, text);
        says(kind, id, &body)
    }

    /// A connection to a server that says this, whatever it is asked.
    fn link(said: impl IntoIterator<Item = Vec<u8>>) -> Link<io::Cursor<Vec<u8>>, io::Sink> {
        let greeting = says(VERSION, 3, b"");
        let said = std::iter::once(greeting).chain(said).flatten().collect();
        Link::new(io::Cursor::new(said), io::sink()).unwrap()
    }

    #[test]
    fn a_write_that_fails_when_the_file_is_closed_has_failed() {
        for (written, closed) in [(FAILURE, 0), (0, FAILURE)] {
            let said = [text(HANDLE, 0, b"h"), status(1, written, "no room"), status(2, closed, "no room")];
            let outcome = link(said).write_file("a", b"bytes").unwrap();
            assert_eq!(outcome, Status::Failed(FAILURE, "no room".to_owned()));
        }
        let said = [text(HANDLE, 0, b"h"), status(1, 0, ""), status(2, 0, "")];
        assert_eq!(link(said).write_file("a", b"bytes").unwrap(), Status::Done);
    }

    #[test]
    fn a_failed_read_leaves_no_answers_behind() {
        let whole = vec![7; BLOCK];
        let said =
            [text(DATA, 0, &whole), status(1, FAILURE, "bad"), text(DATA, 2, &whole), status(3, NO_SUCH_FILE, "")];
        let mut link = link(said);
        let read = link.read(&b"h".to_vec(), 0, 3 * BLOCK).unwrap();
        assert!(read.unwrap_err().is_failure());
        assert!(link.stat("a").unwrap().is_none(), "the next answer is to the next request");
    }

    #[test]
    fn a_short_answer_is_asked_for_again_and_an_early_end_is_told() {
        let (part, rest) = (vec![1; 1000], vec![2; BLOCK - 1000]);
        let said = [text(DATA, 0, &part), status(1, END_OF_FILE, ""), text(DATA, 2, &rest), text(DATA, 3, b"end")];
        let read = link(said).read(&b"h".to_vec(), 0, BLOCK + 3).unwrap().unwrap().unwrap();
        assert_eq!(read, [&part[..], &rest, b"end"].concat());
        let said = [text(DATA, 0, &vec![1; BLOCK]), status(1, END_OF_FILE, "")];
        assert_eq!(link(said).read(&b"h".to_vec(), 0, BLOCK + 3).unwrap(), Ok(None));
        for wrong in [vec![], vec![0; BLOCK + 1]] {
            assert!(
                link([text(DATA, 0, &wrong)]).read(&b"h".to_vec(), 0, BLOCK).is_err(),
                "more or less than asked for"
            );
        }
    }

    #[test]
    fn a_listing_that_names_nothing_or_never_ends_is_given_up() {
        let one = |id: u32| {
            let mut body = 1_u32.to_be_bytes().to_vec();
            string(&mut body, b"a");
            string(&mut body, b"");
            body.extend_from_slice(&0_u32.to_be_bytes());
            says(NAME, id, &body)
        };
        let handle = || text(HANDLE, 0, b"h");
        let nothing = [handle(), says(NAME, 1, &[0; 4]), status(2, END_OF_FILE, ""), status(3, 0, "")];
        assert!(link(nothing).list("a").is_err());
        let endless = || std::iter::once(handle()).chain((1..100).map(one));
        assert!(link(endless()).list_at_most("a", 50).unwrap_err().is_transient());
        let ends =
            std::iter::once(handle()).chain((1..4).map(one)).chain([status(4, END_OF_FILE, ""), status(5, 0, "")]);
        assert_eq!(link(ends).list("a").unwrap().len(), 3);
        let refused = [handle(), status(1, FAILURE, "\u{1b}[2Jno"), status(2, 0, ""), status(3, NO_SUCH_FILE, "")];
        let mut link = link(refused);
        let error = link.list("a").unwrap_err();
        assert!(error.to_string().ends_with("cannot list a: [2Jno (4)"), "{error}");
        assert!(link.stat("a").unwrap().is_none(), "the directory was closed");
    }

    #[test]
    fn where_nothing_replaces_the_old_one_is_kept_until_the_new_one_is_there() {
        // Rename refused; moved aside; renamed; removed.
        let said = [status(0, FAILURE, ""), status(1, 0, ""), status(2, 0, ""), status(3, 0, "")];
        assert_eq!(link(said).replace("new", "object", "aside").unwrap(), Status::Done);
        // The second rename fails too: the old one goes back.
        let said = [status(0, FAILURE, ""), status(1, 0, ""), status(2, FAILURE, "no"), status(3, 0, "")];
        let mut link = link(said);
        assert!(link.replace("new", "object", "aside").unwrap().is_failure());
        assert!(link.from.position() as usize == link.from.get_ref().len(), "it was put back");
    }
}
