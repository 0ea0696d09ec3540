//! A blocking QMP connection over a unix socket.
//!
//! One owner, no thread: every method that waits reads the socket itself, so the path from an event's
//! arrival to the caller is one `ppoll` and one `recv`. That is what a disk cut at QEMU's STOP needs:
//!
//! ```no_run
//! # use std::time::{Duration, Instant};
//! # use keyframe_qmp::{Client, EventKind, Incoming};
//! # fn cut(mut qmp: Client, migrate: serde_json::Value, cut: serde_json::Value) -> keyframe_qmp::Result<()> {
//! let deadline = Instant::now() + Duration::from_secs(10);
//! qmp.send("migrate", &migrate)?;
//! while let Some(incoming) = qmp.next_incoming(deadline)? {
//!     match incoming {
//!         Incoming::Event(e) if e.event.kind == EventKind::Stop => { qmp.send("transaction", &cut)?; }
//!         Incoming::Event(e) if e.event.kind == EventKind::Resume => println!("resumed at {:?}", e.at),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Times of arrival are taken right after the read, so they are exact while the caller waits in one
//! of these methods, and late by however long the caller did something else.
//!
//! States: connected, greeted and negotiated (what [`Client::connect`] returns), over. A fatal error
//! ([`Error::is_fatal`](crate::Error::is_fatal)) ends the connection; what had arrived before can
//! still be taken, then the error comes, then [`Error::Disconnected`](crate::Error::Disconnected).
//!
//! A monitor serves one client at a time. A second one connects, and waits in vain for its greeting.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::codec::{Body, ClientSalt, Event, Greeting, Lane, RequestId, Version, encode};
use crate::commands::Command;
use crate::error::{Error, Result};
use crate::frame::DEFAULT_LINE_LIMIT_BYTES;
use crate::inbox::{Bounds, Inbox, Incoming, Reply, TimedEvent};
use crate::session::Session;
use crate::transport::{Interest, Peer, Read, Transport, write_line};

/// Limits of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long [`Client::connect`] and methods without a deadline of their own wait.
    pub timeout: Duration,
    /// Longest line taken, in bytes.
    pub line_limit_bytes: usize,
    /// What the inbox holds.
    pub inbox: Bounds,
}

impl Options {
    /// The usual limits, with this timeout.
    #[must_use]
    pub fn with_timeout(timeout: Duration) -> Self {
        Self { timeout, line_limit_bytes: DEFAULT_LINE_LIMIT_BYTES, inbox: Bounds::default() }
    }
}

/// A QMP connection.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    session: Session,
    oob: bool,
    timeout: Duration,
}

impl Client {
    /// Connects, reads the greeting and negotiates, all within `timeout`, which later calls without a
    /// deadline of their own use as well.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::PathTooLong`], [`Error::NoGreeting`], or what ended the connection.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        Self::connect_with(path, Options::with_timeout(timeout))
    }

    /// [`Client::connect`] with limits of the caller's.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let start = Instant::now();
        let transport = Transport::connect(path.as_ref(), start + options.timeout)?;
        Self::greet(transport, options, start)
    }

    /// [`Client::connect`] over a socket that is connected already, such as one end of a pair whose
    /// other end QEMU got with `-chardev socket,fd=`.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self> {
        Self::greet(Transport::from_stream(stream)?, Options::with_timeout(timeout), Instant::now())
    }

    fn greet(transport: Transport, options: Options, start: Instant) -> Result<Self> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::Random { source: errno.into() })?;
        let salt = ClientSalt::from_random(random);
        let session = Session::new(transport.peer(), salt, options.line_limit_bytes, options.inbox);
        let mut client = Self { transport, session, oob: false, timeout: options.timeout };
        client.negotiate(start, start + options.timeout)?;
        Ok(client)
    }

    fn negotiate(&mut self, start: Instant, deadline: Instant) -> Result<()> {
        while self.session.greeting().is_none() {
            if let Some(error) = self.session.failure() {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(Error::NoGreeting { peer: self.peer(), waited: start.elapsed() });
            }
            self.fill(deadline);
        }
        self.oob = self.session.greeting().is_some_and(Greeting::offers_oob);
        let enable: &[&str] = if self.oob { &["oob"] } else { &[] };
        self.exchange(Lane::InBand, "qmp_capabilities", &json!({ "enable": enable }), None, deadline)?;
        Ok(())
    }

    /// QEMU's version, from its greeting.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.session.greeting().map(|greeting| &greeting.version)
    }

    /// Whether commands can be run out of band.
    #[must_use]
    pub fn has_oob(&self) -> bool {
        self.oob
    }

    /// Name of the socket, for messages.
    #[must_use]
    pub fn peer(&self) -> String {
        self.transport.peer().to_owned()
    }

    /// Changes how long methods without a deadline of their own wait.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Events dropped because nobody took them in time; never an essential one.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.session.dropped_events()
    }

    /// Replies dropped because they belonged to no request of ours.
    #[must_use]
    pub fn foreign_replies(&self) -> u64 {
        self.session.foreign_replies()
    }

    /// Runs a typed command and waits for its reply, in its own lane.
    ///
    /// # Errors
    /// [`Error::Command`] where QEMU refuses; [`Error::Timeout`] (a reply that comes later is dropped,
    /// and whether the command took effect is unknown); [`Error::Reply`]; [`Error::OobUnavailable`];
    /// or what ended the connection.
    pub fn call<C: Command>(&mut self, command: &C) -> Result<C::Reply> {
        self.call_until(command, Instant::now() + self.timeout)
    }

    /// [`Client::call`] with a deadline.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_until<C: Command>(&mut self, command: &C, deadline: Instant) -> Result<C::Reply> {
        self.exchange(C::LANE, C::NAME, command, None, deadline)?.to(C::NAME)
    }

    /// [`Client::call`] with a file descriptor attached, which QEMU duplicates.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_with_fd<C: Command>(&mut self, command: &C, fd: BorrowedFd<'_>) -> Result<C::Reply> {
        let deadline = Instant::now() + self.timeout;
        self.exchange(C::LANE, C::NAME, command, Some(fd), deadline)?.to(C::NAME)
    }

    /// Runs a command by name. Arguments that encode to `null` (`&()`) are left out.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn execute<A: Serialize + ?Sized>(&mut self, command: &str, arguments: &A) -> Result<Value> {
        self.execute_as(command, arguments)
    }

    /// [`Client::execute`] with a reply of a known shape.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn execute_as<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        self.exchange(Lane::InBand, command, arguments, None, deadline)?.to(command)
    }

    /// [`Client::execute`] out of band: overtakes what waits, works while QEMU's main loop hangs, and
    /// is possible for few commands (`migrate-recover`, `migrate-pause`, `yank`).
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn exec_oob<A: Serialize + ?Sized>(&mut self, command: &str, arguments: &A) -> Result<Value> {
        let deadline = Instant::now() + self.timeout;
        self.exchange(Lane::OutOfBand, command, arguments, None, deadline)?.to(command)
    }

    /// [`Client::execute`] with a file descriptor attached (`getfd`, `add-fd`), which QEMU duplicates.
    ///
    /// There is no variant that does not wait: QEMU keeps only the descriptors that came last, so
    /// another descriptor must not be sent before the command that fetches this one has run.
    /// Source: `chardev/char-socket.c`, `tcp_chr_recv`.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn execute_with_fd<A: Serialize + ?Sized>(
        &mut self,
        command: &str,
        arguments: &A,
        fd: BorrowedFd<'_>,
    ) -> Result<Value> {
        let deadline = Instant::now() + self.timeout;
        self.exchange(Lane::InBand, command, arguments, Some(fd), deadline)?.to(command)
    }

    /// Sends a command without waiting for its reply, which comes by [`Client::next_incoming`] or
    /// [`Client::wait_reply`].
    ///
    /// # Errors
    /// [`Error::Encode`], [`Error::TooManyPending`], [`Error::WriteTimeout`], or what ended the connection.
    pub fn send<A: Serialize + ?Sized>(&mut self, command: &str, arguments: &A) -> Result<RequestId> {
        let deadline = Instant::now() + self.timeout;
        self.request(Lane::InBand, command, arguments, None, deadline)
    }

    /// [`Client::send`] of a typed command, in its own lane.
    ///
    /// # Errors
    /// As [`Client::send`]; [`Error::OobUnavailable`].
    pub fn start<C: Command>(&mut self, command: &C) -> Result<RequestId> {
        let deadline = Instant::now() + self.timeout;
        self.request(C::LANE, C::NAME, command, None, deadline)
    }

    /// The next reply or event in order of arrival, or `None` when the deadline has passed. A deadline
    /// in the past takes what has arrived without waiting.
    ///
    /// # Errors
    /// What ended the connection, after everything that had arrived was taken.
    pub fn next_incoming(&mut self, deadline: Instant) -> Result<Option<Incoming>> {
        self.wait_for(deadline, Inbox::pop)
    }

    /// The next event, or `None` when the deadline has passed. Replies stay where they are.
    ///
    /// # Errors
    /// As [`Client::next_incoming`].
    pub fn next_event(&mut self, deadline: Instant) -> Result<Option<TimedEvent>> {
        self.wait_event(|_| true, deadline)
    }

    /// The next event that `wanted` accepts, or `None` when the deadline has passed. Everything else
    /// stays where it is, in order. Events that came before the call count.
    ///
    /// # Errors
    /// As [`Client::next_incoming`].
    pub fn wait_event(
        &mut self,
        mut wanted: impl FnMut(&Event) -> bool,
        deadline: Instant,
    ) -> Result<Option<TimedEvent>> {
        let taken = self.wait_for(deadline, |inbox| {
            inbox.take(|incoming| matches!(incoming, Incoming::Event(timed) if wanted(&timed.event)))
        })?;
        Ok(taken.and_then(|incoming| match incoming {
            Incoming::Event(timed) => Some(timed),
            Incoming::Reply(_) => None,
        }))
    }

    /// The reply to one request, or `None` when the deadline has passed; then it can be waited for
    /// again. Everything else stays where it is.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`] where the reply was taken already; what ended the connection.
    pub fn wait_reply(&mut self, id: RequestId, deadline: Instant) -> Result<Option<Reply>> {
        // What does not wait for a reply has it here already, or never will.
        let deadline = if self.session.is_pending(id) { deadline } else { Instant::now() };
        let is_it = |incoming: &Incoming| matches!(incoming, Incoming::Reply(reply) if reply.id == id);
        match self.wait_for(deadline, |inbox| inbox.take(is_it))? {
            Some(Incoming::Reply(reply)) => Ok(Some(reply)),
            _ if self.session.is_pending(id) => Ok(None),
            _ => Err(Error::UnknownRequest { id }),
        }
    }

    /// Says that nobody will ask for this reply: it is dropped, now or when it comes.
    pub fn abandon(&mut self, id: RequestId) {
        self.session.abandon(id);
    }

    fn exchange<A: Serialize + ?Sized>(
        &mut self,
        lane: Lane,
        command: &str,
        arguments: &A,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Body> {
        let start = Instant::now();
        let id = self.request(lane, command, arguments, fd, deadline)?;
        match self.wait_reply(id, deadline) {
            Ok(Some(reply)) => reply.body(),
            Ok(None) => {
                self.abandon(id);
                Err(Error::Timeout { command: command.to_owned(), waited: start.elapsed() })
            }
            Err(error) => Err(error),
        }
    }

    fn request<A: Serialize + ?Sized>(
        &mut self,
        lane: Lane,
        command: &str,
        arguments: &A,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<RequestId> {
        if lane == Lane::OutOfBand && !self.oob {
            return Err(Error::OobUnavailable { peer: self.peer(), command: command.to_owned() });
        }
        if let Some(error) = self.session.failure() {
            return Err(error);
        }
        let id = self.session.begin(command)?;
        let sent = encode(lane, command, arguments, Some(id)).and_then(|line| self.write(command, &line, fd, deadline));
        match sent {
            Ok(()) => Ok(id),
            Err(error) => {
                self.session.retract(id);
                Err(error)
            }
        }
    }

    fn write(&mut self, command: &str, line: &[u8], fd: Option<BorrowedFd<'_>>, deadline: Instant) -> Result<()> {
        let written = write_line(self, command, line, fd, deadline);
        if written.is_err() {
            // A line half written cannot be taken back, and what came before the end is still wanted.
            self.drain();
        }
        written
    }

    fn wait_for(
        &mut self,
        deadline: Instant,
        mut take: impl FnMut(&mut Inbox) -> Option<Incoming>,
    ) -> Result<Option<Incoming>> {
        let mut expired = false;
        loop {
            if let Some(incoming) = take(self.session.inbox()) {
                return Ok(Some(incoming));
            }
            // Errors that concern no request and do not end the connection come here as well.
            if let Some(error) = self.session.failure() {
                return Err(error);
            }
            if expired {
                return Ok(None);
            }
            // Looks once after the deadline, and not again, however much keeps coming.
            expired = Instant::now() >= deadline;
            self.fill(deadline);
        }
    }

    /// Waits for input until the deadline, and takes it.
    fn fill(&mut self, deadline: Instant) {
        match self.transport.wait(Interest::Read, deadline) {
            Ok(ready) if !ready.readable => {}
            Ok(_) => drop(self.take_input()),
            Err(error) => self.session.end(Some(error)),
        }
    }

    /// Takes what can be read now.
    fn take_input(&mut self) -> Progress {
        match self.transport.read() {
            Ok(Read::Bytes(bytes)) => {
                self.session.push(bytes, Instant::now());
                return Progress::Some;
            }
            Ok(Read::Nothing) => {}
            Ok(Read::End) => self.session.end(None),
            Err(error) => self.session.end(Some(error)),
        }
        Progress::Nothing
    }

    /// Takes all that came before the peer went away.
    fn drain(&mut self) {
        while !self.session.is_over() && self.take_input() == Progress::Some {}
        self.session.end(None);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Some,
    Nothing,
}

impl Peer for Client {
    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn absorb(&mut self) -> Result<()> {
        self.take_input();
        let ended = if self.session.is_over() { self.session.failure() } else { None };
        ended.map_or(Ok(()), Err)
    }
}
