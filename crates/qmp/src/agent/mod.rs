//! A blocking connection to QEMU's guest agent.
//!
//! The peer is a program inside the guest, behind a serial line that QEMU offers as a unix socket. It
//! may be absent, late, restarted in the middle of a reply, or hostile. So:
//!
//! * every call has a time limit, and nothing waits without one;
//! * before the first call, and after every failure, the two are synchronized: a 0xFF to clear what
//!   the agent has read so far, and `guest-sync-delimited` with a random number, whose answer marks
//!   where old replies end;
//! * replies are bounded, and everything in them is a claim of the guest's.
//!
//! States: out of step (at the beginning, and after any failure but a refusal), in step. A call brings
//! the first to the second before it does anything else; that takes one round trip.
//!
//! The socket serves one client at a time, as the monitor does.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use crate::codec::{Body, Lane, encode};
use crate::error::{Error, Result};
use crate::transport::{Interest, Peer, Read, Transport, write_line};

pub mod codec;
mod commands;

pub use commands::{
    Address, AgentCommand, AgentInfo, Captured, ClockNs, CommandInfo, Exec, ExecStatus, Exited, Frozen, FsfreezeFreeze,
    FsfreezeStatus, FsfreezeThaw, GetTime, Info, Interface, NetworkGetInterfaces, Ping, SetTime, Started,
};

use codec::{Answer, Decoder, LINE_LIMIT_BYTES, SENTINEL};

const SYNC: &str = "guest-sync-delimited";

/// A connection to a guest agent.
#[derive(Debug)]
pub struct Agent {
    transport: Transport,
    decoder: Decoder,
    in_step: bool,
}

impl Agent {
    /// Connects to the socket; whether an agent answers is seen at the first call.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::PathTooLong`].
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        Transport::connect(path.as_ref(), Instant::now() + timeout).map(Self::over)
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn from_stream(stream: UnixStream) -> Result<Self> {
        Transport::from_stream(stream).map(Self::over)
    }

    fn over(transport: Transport) -> Self {
        Self { transport, decoder: Decoder::new(LINE_LIMIT_BYTES), in_step: false }
    }

    /// Runs a command and waits for its reply, both within `timeout`.
    ///
    /// # Errors
    /// [`Error::AgentSilent`]: no synchronization, the command was not sent. [`Error::Timeout`]: the
    /// command was sent and may still take effect. [`Error::Command`]: the agent refused.
    /// [`Error::Reply`], [`Error::Malformed`], [`Error::NotAMessage`], [`Error::LineTooLong`]: the reply
    /// is not what it should be; the next call synchronizes again. [`Error::Disconnected`],
    /// [`Error::Io`], [`Error::WriteTimeout`]: the connection is over.
    pub fn call<C: AgentCommand>(&mut self, command: &C, timeout: Duration) -> Result<C::Reply> {
        self.execute(C::NAME, command, timeout)?.to(C::NAME)
    }

    /// Runs a command by name.
    ///
    /// # Errors
    /// As [`Agent::call`].
    pub fn execute<A: Serialize + ?Sized>(&mut self, command: &str, arguments: &A, timeout: Duration) -> Result<Body> {
        let start = Instant::now();
        let deadline = start + timeout;
        let line = encode(Lane::InBand, command, arguments, None)?;
        self.synchronize(start, deadline)?;
        self.in_step = false;
        write_line(self, command, &line, None, deadline)?;
        let Some(answer) = self.wait_answer(deadline)? else {
            return Err(Error::Timeout { command: command.to_owned(), waited: start.elapsed() });
        };
        self.in_step = true;
        answer.map_err(|error| Error::Command { command: command.to_owned(), error })
    }

    fn synchronize(&mut self, start: Instant, deadline: Instant) -> Result<()> {
        if self.in_step {
            return Ok(());
        }
        self.decoder.forget();
        let id = random_id()?;
        let mut line = vec![SENTINEL];
        line.extend(encode(Lane::InBand, SYNC, &json!({ "id": id }), None)?);
        write_line(self, SYNC, &line, None, deadline)?;
        loop {
            match self.wait_answer(deadline) {
                Ok(Some(Ok(body))) if is_id(&body, id) => break,
                // Replies to somebody else, and what is left of them.
                Ok(_) | Err(Error::Malformed { .. } | Error::NotAMessage { .. }) => {}
                Err(Error::LineTooLong { .. }) => self.decoder.forget(),
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                let peer = self.transport.peer().to_owned();
                return Err(Error::AgentSilent { peer, waited: start.elapsed() });
            }
        }
        self.in_step = true;
        Ok(())
    }

    /// The next reply, or `None` when the deadline has passed, however much keeps coming.
    fn wait_answer(&mut self, deadline: Instant) -> Result<Option<Answer>> {
        loop {
            if let Some(answer) = self.decoder.next_answer()? {
                return Ok(Some(answer));
            }
            if !self.transport.wait(Interest::Read, deadline)?.readable {
                return Ok(None);
            }
            self.absorb()?;
            if Instant::now() >= deadline {
                return self.decoder.next_answer();
            }
        }
    }
}

impl Peer for Agent {
    fn transport(&self) -> &Transport {
        &self.transport
    }

    fn absorb(&mut self) -> Result<()> {
        match self.transport.read()? {
            Read::Bytes(bytes) => self.decoder.push(bytes),
            Read::Nothing => {}
            Read::End => return Err(Error::Disconnected { peer: self.transport.peer().to_owned() }),
        }
        Ok(())
    }
}

fn is_id(body: &Body, id: i64) -> bool {
    body.to::<Value>(SYNC).is_ok_and(|value| value.as_i64() == Some(id))
}

/// Not negative, and small enough for whoever reads numbers as doubles.
fn random_id() -> Result<i64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::Random { source: errno.into() })?;
    Ok(i64::from_le_bytes(bytes) & ((1 << 53) - 1))
}
