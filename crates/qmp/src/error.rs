//! What can go wrong between us and a monitor or an agent.
//!
//! Rules: a variant names the socket or the command it is about; a cause is chained, not repeated;
//! whether the connection can still be used is answered by [`Error::is_fatal`], not by guessing.

use std::path::PathBuf;
use std::time::Duration;

use crate::codec::{CommandError, ErrorClass, RequestId};

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that fails in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be connected.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// Socket that was tried.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path does not fit into a unix socket address.
    #[error("socket path is {len} bytes long, at most {max} are possible: {}", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// Longest possible, in bytes.
        max: usize,
    },
    /// Connected, but no greeting came: the peer hangs or serves another client.
    #[error("no greeting from {peer} within {waited:?}; a monitor serves one client at a time")]
    NoGreeting {
        /// Socket.
        peer: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The socket failed while reading or writing. The connection is over.
    #[error("I/O with {peer} failed")]
    Io {
        /// Socket.
        peer: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The peer closed the connection.
    #[error("{peer} closed the connection")]
    Disconnected {
        /// Socket.
        peer: String,
    },
    /// A line was longer than the limit. The connection is over.
    #[error("line at byte {offset} of the stream is longer than {limit_bytes} bytes")]
    LineTooLong {
        /// Where in the stream the line starts, in bytes since the connection began.
        offset: u64,
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// A line was no message of the protocol. The connection is over.
    #[error("line at byte {offset} of the stream is not a protocol message")]
    Malformed {
        /// Where in the stream the line starts, in bytes since the connection began.
        offset: u64,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A well-formed JSON line that is neither greeting, reply nor event. The connection is over.
    #[error("line at byte {offset} of the stream is neither greeting, reply nor event")]
    NotAMessage {
        /// Where in the stream the line starts, in bytes since the connection began.
        offset: u64,
    },
    /// An error that belongs to no request: the peer could not read what was sent.
    #[error("{peer} could not read a request: {desc}")]
    Unattributed {
        /// Socket.
        peer: String,
        /// QEMU's description.
        desc: String,
    },
    /// More messages that must not be dropped arrived than the inbox holds. The connection is over.
    #[error("unread events and replies of {peer} exceed {limit_bytes} bytes or {limit_messages} messages")]
    Overflow {
        /// Socket.
        peer: String,
        /// Byte limit.
        limit_bytes: usize,
        /// Message limit.
        limit_messages: usize,
    },
    /// The deadline passed before the reply came.
    #[error("no reply to {command} within {waited:?}")]
    Timeout {
        /// Command.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The deadline passed before the request was written entirely. The connection is over.
    #[error("{peer} did not take the request {command} within {waited:?}")]
    WriteTimeout {
        /// Socket.
        peer: String,
        /// Command.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// QEMU or the agent refused the command.
    #[error("{command}: {error}")]
    Command {
        /// Command.
        command: String,
        /// What was said.
        error: CommandError,
    },
    /// The reply is not of the expected shape.
    #[error("reply to {command} is not of the expected shape")]
    Reply {
        /// Command.
        command: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The command's arguments cannot be encoded.
    #[error("arguments of {command} cannot be encoded")]
    Encode {
        /// Command.
        command: String,
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// A command that must run out of band, on a monitor that does not offer it.
    #[error("{command} must run out of band, and {peer} does not offer that")]
    OobUnavailable {
        /// Socket.
        peer: String,
        /// Command.
        command: String,
    },
    /// Too many requests without a reply.
    #[error("{limit} requests wait for replies already")]
    TooManyPending {
        /// The limit.
        limit: usize,
    },
    /// Waited for a request that was never sent, or whose reply was taken already.
    #[error("request {id} has no reply to wait for")]
    UnknownRequest {
        /// The request.
        id: RequestId,
    },
    /// A name that QEMU would not take.
    #[error("{kind} {name:?} is not usable: {rule}")]
    BadName {
        /// What was named.
        kind: &'static str,
        /// The name.
        name: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The guest agent does not answer, not even to a synchronization request.
    #[error("guest agent at {peer} did not answer within {waited:?}")]
    AgentSilent {
        /// Socket.
        peer: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The system's random number source failed.
    #[error("no random number from the system")]
    Random {
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the connection is of no further use. Other errors concern one request only.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::PathTooLong { .. }
            | Self::NoGreeting { .. }
            | Self::Io { .. }
            | Self::Disconnected { .. }
            | Self::LineTooLong { .. }
            | Self::Malformed { .. }
            | Self::NotAMessage { .. }
            | Self::Overflow { .. }
            | Self::WriteTimeout { .. } => true,
            Self::Unattributed { .. }
            | Self::Timeout { .. }
            | Self::Command { .. }
            | Self::Reply { .. }
            | Self::Encode { .. }
            | Self::OobUnavailable { .. }
            | Self::TooManyPending { .. }
            | Self::UnknownRequest { .. }
            | Self::BadName { .. }
            | Self::AgentSilent { .. }
            | Self::Random { .. } => false,
        }
    }

    /// The class of a refusal by QEMU or the agent; `None` for every other failure.
    #[must_use]
    pub fn class(&self) -> Option<&ErrorClass> {
        match self {
            Self::Command { error, .. } => Some(&error.class),
            _ => None,
        }
    }

    /// Whether the peer refused the command, having read and understood it: nothing was done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Command { .. })
    }
}
