//! The server: one connection after the other's bytes, and a socket with many.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::error::{Error, Result, protocol};
use crate::export::{Allocation, Export};
use crate::handshake::{ALLOCATION_ID, Agreement, Handshake, Next, Offer};
use crate::reply::{chunk_head, error_chunk, simple};
use crate::wire::{OptionHead, PAYLOAD_MOST, Request, chunk, command, command_flag, errno, state};

/// A client has so long to negotiate; how long it may be silent behind that is its own affair.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// The most options of one negotiation.
const OPTIONS_MOST: usize = 64;
/// The most extents that one block status tells.
const EXTENTS_MOST: usize = 1 << 16;
/// Requests of one connection that are worked at side by side: one that waits for a distant store does not hold up those behind it.
const READERS_MOST: usize = 4;
/// How often a socket looks whether it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Serves one connection to its end. Requests are answered as they are done, not as they came.
///
/// # Errors
/// [`Error::Io`] and [`Error::Protocol`] of this connection; a client that says good bye, or just goes, is no error.
pub fn serve_connection(stream: &UnixStream, name: &str, export: &dyn Export) -> Result<()> {
    stream.set_read_timeout(Some(HANDSHAKE_PATIENCE))?;
    let Some(agreed) = negotiate(stream, Offer { name, bytes: export.bytes() })? else { return Ok(()) };
    stream.set_read_timeout(None)?;
    let connection = Connection { stream, answering: Mutex::new(()), export, agreed, failure: Mutex::new(None) };
    let (queue, requests) = mpsc::sync_channel(READERS_MOST);
    let (requests, pending) = (Mutex::new(requests), AtomicUsize::new(0));
    let taken_in = std::thread::scope(|scope| {
        // It goes with this closure: then readers end.
        let queue = queue;
        let mut readers = 0;
        while let Some(request) = connection.next()? {
            if pending.fetch_add(1, Ordering::Relaxed) >= readers && readers < READERS_MOST {
                readers += 1;
                scope.spawn(|| connection.read_queue(&requests, &pending));
            }
            if queue.send(request).is_err() {
                break;
            }
        }
        Ok(())
    });
    match lock(&connection.failure).take() {
        Some(failure) => Err(failure),
        None => taken_in,
    }
}

/// Serves every connection of a socket, each in a thread of its own, until it is told to end and all have gone.
///
/// # Errors
/// [`Error::Io`] when the socket itself fails. What happens to one connection does not matter to the others.
pub fn serve_socket(listener: &UnixListener, name: &str, export: &Arc<dyn Export>, end: &AtomicBool) -> Result<()> {
    listener.set_nonblocking(true)?;
    std::thread::scope(|scope| {
        while !end.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    let export = Arc::clone(export);
                    // A client that does not speak NBD, or breaks off, has seen to itself.
                    scope.spawn(move || drop(serve_connection(&stream, name, &*export)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TICK),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

/// Negotiates; `None` when the client has said good bye.
fn negotiate(mut stream: &UnixStream, offer: Offer<'_>) -> Result<Option<Agreement>> {
    stream.write_all(&Handshake::greeting())?;
    let mut client_flags = [0; 4];
    stream.read_exact(&mut client_flags)?;
    let mut handshake = Handshake::new(offer, u32::from_be_bytes(client_flags))?;
    for _ in 0..OPTIONS_MOST {
        let mut head = [0; OptionHead::BYTES];
        stream.read_exact(&mut head)?;
        let head = OptionHead::decode(&head)?;
        let mut data = vec![0; head.len as usize];
        stream.read_exact(&mut data)?;
        let mut out = Vec::new();
        let next = handshake.answer(head.option, &data, &mut out)?;
        stream.write_all(&out)?;
        match next {
            Next::Option => {}
            Next::Transmission(agreed) => return Ok(Some(agreed)),
            Next::End => return Ok(None),
        }
    }
    protocol("a negotiation without end")
}

struct Connection<'a> {
    stream: &'a UnixStream,
    /// Held while a reply is written, so that replies do not mix.
    answering: Mutex<()>,
    export: &'a dyn Export,
    agreed: Agreement,
    /// What ended a reader.
    failure: Mutex<Option<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection<'_> {
    /// Takes in requests up to one that takes time; `None` when there are no more.
    fn next(&self) -> Result<Option<Request>> {
        loop {
            let mut bytes = [0; Request::BYTES];
            match (&mut &*self.stream).read_exact(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                other => other?,
            }
            let request = Request::decode(&bytes)?;
            match request.command {
                command::DISCONNECT => return Ok(None),
                command::READ | command::BLOCK_STATUS => return Ok(Some(request)),
                command::FLUSH => self.done(request)?,
                command::CACHE => match self.range(request) {
                    Some(range) => {
                        self.export.will_need(range);
                        self.done(request)?;
                    }
                    None => self.fail(request, errno::EINVAL, "behind the export's end")?,
                },
                command::WRITE => {
                    // Its data are on their way and have to be taken in.
                    if request.len > PAYLOAD_MOST {
                        return protocol("a write that is longer than one may be");
                    }
                    io::copy(&mut self.stream.take(u64::from(request.len)), &mut io::sink())?;
                    self.fail(request, errno::EPERM, "read-only")?;
                }
                _ => self.fail(request, errno::EPERM, "read-only, or not known here")?,
            }
        }
    }

    /// Answers what takes time, one after the other, until there is no more.
    fn read_queue(&self, requests: &Mutex<mpsc::Receiver<Request>>, pending: &AtomicUsize) {
        let mut buffer = Vec::new();
        loop {
            let Ok(request) = lock(requests).recv() else { return };
            if lock(&self.failure).is_some() {
                // Nobody is there any more; whoever takes requests in must not wait for us.
                continue;
            }
            let answered = match request.command {
                command::READ => self.read(request, &mut buffer),
                _ => self.block_status(request),
            };
            pending.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = answered {
                lock(&self.failure).get_or_insert(error);
                // Whoever takes requests in has nothing more to wait for.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn answer(&self, bytes: &[u8]) -> Result<()> {
        let _alone = lock(&self.answering);
        Ok((&mut &*self.stream).write_all(bytes)?)
    }

    /// The range of a request; `None` where it is empty or not within the export.
    fn range(&self, request: Request) -> Option<std::ops::Range<u64>> {
        let end = request.offset.checked_add(u64::from(request.len))?;
        (request.len > 0 && end <= self.export.bytes()).then_some(request.offset..end)
    }

    fn read(&self, request: Request, buffer: &mut Vec<u8>) -> Result<()> {
        if self.range(request).is_none() || request.len > PAYLOAD_MOST {
            return self.fail(request, errno::EINVAL, "behind the export's end, or too much at once");
        }
        let len = request.len as usize;
        let head = if self.agreed.structured { 28 } else { 16 };
        buffer.clear();
        buffer.resize(head + len, 0);
        let Some((reply, data)) = buffer.split_at_mut_checked(head) else {
            return protocol("a reply without room");
        };
        if let Err(error) = self.export.read(request.offset, data) {
            return self.fail(request, errno::EIO, &error.to_string());
        }
        if self.agreed.structured {
            let (first, place) = reply.split_at_mut(20);
            first.copy_from_slice(&chunk_head(true, chunk::OFFSET_DATA, request.cookie, request.len + 8));
            place.copy_from_slice(&request.offset.to_be_bytes());
        } else {
            reply.copy_from_slice(&simple(request.cookie, 0));
        }
        self.answer(buffer)
    }

    fn block_status(&self, request: Request) -> Result<()> {
        let range = self.range(request).filter(|_| self.agreed.allocation);
        let Some(range) = range else {
            return self.fail(request, errno::EINVAL, "no meta context, or behind the export's end");
        };
        let extents = match self.export.extents(range.clone()) {
            Ok(extents) => extents,
            Err(error) => return self.fail(request, errno::EIO, &error.to_string()),
        };
        let one = request.flags & command_flag::REQ_ONE != 0;
        let most = if one { 1 } else { EXTENTS_MOST };
        let mut data = ALLOCATION_ID.to_be_bytes().to_vec();
        let mut at = range.start;
        for extent in extents.into_iter().take(most) {
            // Only the last of several may reach behind what was asked for; with REQ_ONE none may.
            let len = extent.len.min(range.end.saturating_sub(at));
            let Some(len) = u32::try_from(len).ok().filter(|len| *len > 0) else { break };
            let status = match extent.allocation {
                Allocation::Data => 0,
                Allocation::Zero => state::HOLE | state::ZERO,
                Allocation::Absent => state::HOLE,
            };
            data.extend_from_slice(&len.to_be_bytes());
            data.extend_from_slice(&status.to_be_bytes());
            at += u64::from(len);
        }
        if data.len() == 4 {
            return self.fail(request, errno::EIO, "nothing is known of this place");
        }
        let mut bytes = chunk_head(true, chunk::BLOCK_STATUS, request.cookie, data.len() as u32).to_vec();
        bytes.append(&mut data);
        self.answer(&bytes)
    }

    fn done(&self, request: Request) -> Result<()> {
        let bytes = if self.agreed.structured {
            chunk_head(true, chunk::NONE, request.cookie, 0).to_vec()
        } else {
            simple(request.cookie, 0).to_vec()
        };
        self.answer(&bytes)
    }

    fn fail(&self, request: Request, errno: u32, why: &str) -> Result<()> {
        let bytes = if self.agreed.structured {
            error_chunk(request.cookie, errno, why)
        } else {
            simple(request.cookie, errno).to_vec()
        };
        self.answer(&bytes)
    }
}
