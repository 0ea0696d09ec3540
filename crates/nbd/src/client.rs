//! A client: one connection, one request at a time. Several connections go side by side.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::error::{Error, Result, protocol};
use crate::reply::{Head, error_of, statuses_of};
use crate::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, NAME_MOST, NBD_MAGIC, OPTION_MAGIC, OPTION_MOST, OPTION_REPLY_MAGIC,
    OptionHead, PAYLOAD_MOST, Request, chunk, command, info, option, option_reply, u16_at, u32_at, u64_at,
};

/// How long a server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most replies to one option.
const REPLIES_MOST: usize = 4096;

/// What a meta context says of a part of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Length in bytes, never 0.
    pub len: u32,
    /// The context's own word: of [`crate::wire::state`] for `base:allocation`, 1 where a dirty bitmap is set.
    pub word: u32,
}

/// A connection behind its negotiation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    bytes: u64,
    flags: u16,
    /// Names and ids of meta contexts, as the server numbered them.
    contexts: Vec<(String, u32)>,
    cookie: u64,
}

impl Client {
    /// Negotiates for an export: structured replies, and as many of these meta contexts as the server has.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such export, or no structured replies; [`Error::Protocol`], [`Error::Io`].
    pub fn connect(stream: UnixStream, export: &str, contexts: &[&str]) -> Result<Self> {
        if export.len() > NAME_MOST || contexts.iter().any(|context| context.len() > NAME_MOST) {
            return protocol("a name that is too long");
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, bytes: 0, flags: 0, contexts: Vec::new(), cookie: 0 };
        client.greet()?;
        client.option(option::STRUCTURED_REPLY, "structured replies", &[], |_, _, _| Ok(()))?;
        if !contexts.is_empty() {
            let mut data = string(export);
            data.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
            contexts.iter().for_each(|context| data.extend(string(context)));
            client.option(option::SET_META_CONTEXT, "meta contexts", &data, |client, kind, data| {
                if kind == option_reply::META_CONTEXT
                    && let Some(id) = u32_at(data, 0)
                {
                    let name = String::from_utf8_lossy(data.get(4..).unwrap_or_default()).into_owned();
                    client.contexts.push((name, id));
                }
                Ok(())
            })?;
        }
        let mut data = string(export);
        data.extend_from_slice(&0_u16.to_be_bytes());
        let mut told = false;
        client.option(option::GO, "the export", &data, |client, kind, data| {
            if kind == option_reply::INFO && u16_at(data, 0) == Some(info::EXPORT) {
                let (Some(bytes), Some(flags)) = (u64_at(data, 2), u16_at(data, 10)) else {
                    return protocol("half a description of an export");
                };
                (client.bytes, client.flags, told) = (bytes, flags, true);
            }
            Ok(())
        })?;
        if told { Ok(client) } else { protocol("an export without a length") }
    }

    /// Waits for an answer however long it takes: a server may itself be waiting for a store that is away. The connection's end
    /// is still noticed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wait_for_ever(&self) -> Result<()> {
        Ok(self.stream.set_read_timeout(None)?)
    }

    /// Length of the export in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The export's transmission flags, of [`crate::wire::flags`].
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Whether block status tells of a meta context.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|(known, _)| known == name)
    }

    /// Fills a buffer of at most [`PAYLOAD_MOST`] bytes.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Request`]; [`Error::Protocol`] and [`Error::Io`], behind which the connection is of no use.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let len = self.within(offset, into.len() as u64)?;
        let cookie = self.ask(command::READ, offset, len)?;
        let range = offset..offset + u64::from(len);
        // Chunks may come in any order but must cover the range, or a buffer would keep what was in it.
        let (mut covered, mut failure) = (0_u64, None);
        loop {
            let (done, kind, data_len) = match self.head(cookie)? {
                Head::Simple { errno: 0, .. } => {
                    return protocol("a simple reply to a read, where chunks were agreed on");
                }
                Head::Simple { errno, .. } => return Err(request_error(errno, offset, String::new())),
                Head::Chunk { done, kind, len, .. } => (done, kind, len),
            };
            match kind {
                chunk::OFFSET_DATA if data_len >= 8 => {
                    let part = self.place(&range, u64::from(data_len) - 8)?;
                    let buffer = into.get_mut(part).ok_or(Error::Protocol { what: "data that nobody asked for" })?;
                    self.stream.read_exact(buffer)?;
                    covered += u64::from(data_len) - 8;
                }
                chunk::OFFSET_HOLE if data_len == 12 => {
                    let mut place = [0; 12];
                    self.stream.read_exact(&mut place)?;
                    let at = u64_at(&place, 0).unwrap_or(u64::MAX);
                    let hole = u64::from(u32_at(&place, 8).unwrap_or(0));
                    let part = part_of(&range, at, hole)?;
                    into.get_mut(part).ok_or(Error::Protocol { what: "a hole that nobody asked for" })?.fill(0);
                    covered += hole;
                }
                _ => failure = failure.or(self.other(kind, data_len, offset)?),
            }
            if done {
                break;
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if covered == u64::from(len) => Ok(()),
            None => protocol("a read that was answered in part, or twice"),
        }
    }

    /// What a meta context says of a range, from its beginning: one extent at least; those told may end before the range does.
    ///
    /// # Errors
    /// [`Error::Refused`] for a context that was not agreed on; as [`Client::read`].
    pub fn block_status(&mut self, context: &str, range: Range<u64>) -> Result<Vec<Status>> {
        let known = self.contexts.iter().find(|(name, _)| name == context).map(|(_, id)| *id);
        let refused = || Error::Refused { option: "block status", why: format!("{context} was not agreed on") };
        let id = known.ok_or_else(refused)?;
        let most = u64::from(!0xffff_u32);
        let len = range.end.saturating_sub(range.start).min(most);
        if len == 0 || range.start.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(Error::Range { offset: range.start, len, bytes: self.bytes });
        }
        let cookie = self.ask(command::BLOCK_STATUS, range.start, len as u32)?;
        let (mut found, mut failure) = (None, None);
        loop {
            let (done, kind, data_len) = match self.head(cookie)? {
                Head::Simple { errno, .. } => return Err(request_error(errno, range.start, String::new())),
                Head::Chunk { done, kind, len, .. } => (done, kind, len),
            };
            if kind == chunk::BLOCK_STATUS {
                let mut data = vec![0; data_len as usize];
                self.stream.read_exact(&mut data)?;
                let (of, extents) = statuses_of(&data)?;
                if of == id {
                    found = Some(extents.into_iter().map(|(len, word)| Status { len, word }).collect());
                }
            } else {
                failure = failure.or(self.other(kind, data_len, range.start)?);
            }
            if done {
                break;
            }
        }
        match (failure, found) {
            (Some(failure), _) => Err(failure),
            (None, Some(found)) => Ok(found),
            (None, None) => protocol("block status without the context that was asked for"),
        }
    }

    /// Says good bye.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn disconnect(mut self) -> Result<()> {
        self.ask(command::DISCONNECT, 0, 0).map(drop)
    }

    fn greet(&mut self) -> Result<()> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        if (u64_at(&greeting, 0), u64_at(&greeting, 8)) != (Some(NBD_MAGIC), Some(OPTION_MAGIC)) {
            return protocol("not a server of the newstyle");
        }
        let server = u16_at(&greeting, 16).unwrap_or(0);
        if server & FLAG_FIXED_NEWSTYLE == 0 {
            return protocol("not a server of the fixed newstyle");
        }
        let flags = u32::from(FLAG_FIXED_NEWSTYLE | (server & FLAG_NO_ZEROES));
        Ok(self.stream.write_all(&flags.to_be_bytes())?)
    }

    /// Sends an option and takes its replies up to the acknowledgement.
    fn option(
        &mut self,
        which: u32,
        name: &'static str,
        data: &[u8],
        mut take: impl FnMut(&mut Self, u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| Error::Protocol { what: "an option that is too long" })?;
        let mut bytes = OptionHead { option: which, len }.encode().to_vec();
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes)?;
        for _ in 0..REPLIES_MOST {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head)?;
            let magic = u64_at(&head, 0) == Some(OPTION_REPLY_MAGIC) && u32_at(&head, 8) == Some(which);
            let (Some(kind), Some(len)) = (u32_at(&head, 12), u32_at(&head, 16)) else {
                return protocol("half a reply");
            };
            if !magic || len > OPTION_MOST {
                return protocol("a reply to an option that was not asked, or one that is too long");
            }
            let mut data = vec![0; len as usize];
            self.stream.read_exact(&mut data)?;
            if kind & option_reply::ERROR_BIT != 0 {
                let words = String::from_utf8_lossy(&data);
                let why = if words.is_empty() { format!("reply {kind:#x}") } else { words.into_owned() };
                return Err(Error::Refused { option: name, why });
            }
            if kind == option_reply::ACK {
                return Ok(());
            }
            take(self, kind, &data)?;
        }
        protocol("an option with replies without end")
    }

    fn within(&self, offset: u64, len: u64) -> Result<u32> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        u32::try_from(len).ok().filter(|len| fits && *len <= PAYLOAD_MOST && *len > 0).ok_or(Error::Range {
            offset,
            len,
            bytes: self.bytes,
        })
    }

    fn ask(&mut self, command: u16, offset: u64, len: u32) -> Result<u64> {
        self.cookie += 1;
        let request = Request { flags: 0, command, cookie: self.cookie, offset, len };
        self.stream.write_all(&request.encode())?;
        Ok(self.cookie)
    }

    fn head(&mut self, cookie: u64) -> Result<Head> {
        let mut first = [0; Head::SIMPLE_BYTES];
        self.stream.read_exact(&mut first)?;
        let mut bytes = first.to_vec();
        if Head::is_chunk(&first)? {
            bytes.resize(Head::CHUNK_BYTES, 0);
            self.stream.read_exact(bytes.get_mut(Head::SIMPLE_BYTES..).unwrap_or_default())?;
        }
        let head = Head::decode(&bytes)?;
        let (Head::Simple { cookie: theirs, .. } | Head::Chunk { cookie: theirs, .. }) = head;
        if theirs == cookie { Ok(head) } else { protocol("a reply to a request that was not made") }
    }

    /// Reads the offset of a data chunk and tells which part of the buffer it is for.
    fn place(&mut self, range: &Range<u64>, len: u64) -> Result<Range<usize>> {
        let mut offset = [0; 8];
        self.stream.read_exact(&mut offset)?;
        part_of(range, u64::from_be_bytes(offset), len)
    }

    /// Takes in a chunk that carries no data: the error that it tells of.
    fn other(&mut self, kind: u16, len: u32, offset: u64) -> Result<Option<Error>> {
        if len > OPTION_MOST {
            return protocol("a long chunk of a kind that is not known");
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        match kind {
            chunk::NONE => Ok(None),
            kind if kind & chunk::ERROR_BIT != 0 => {
                let (errno, message) = error_of(&data)?;
                let behind = 6 + message.len();
                let at = if kind == chunk::ERROR_OFFSET { u64_at(&data, behind).unwrap_or(offset) } else { offset };
                Ok(Some(request_error(errno, at, message)))
            }
            _ => protocol("a chunk of a kind that is not known"),
        }
    }
}

fn request_error(errno: u32, offset: u64, message: String) -> Error {
    Error::Request { errno, offset, message }
}

fn part_of(range: &Range<u64>, at: u64, len: u64) -> Result<Range<usize>> {
    let outside = Error::Protocol { what: "a chunk outside of what was asked for" };
    let (Some(start), Some(end)) = (at.checked_sub(range.start), at.checked_add(len)) else { return Err(outside) };
    if end > range.end {
        return Err(outside);
    }
    match (usize::try_from(start), usize::try_from(end - range.start)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(outside),
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
