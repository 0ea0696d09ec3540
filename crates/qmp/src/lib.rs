//! QEMU's two line-JSON protocols: QMP (the machine's monitor) and the guest agent's.
//!
//! | module | what | I/O |
//! |---|---|---|
//! | [`frame`] | bytes to lines, bounded, any cut of the bytes | none |
//! | [`codec`] | lines to QMP messages and back | none |
//! | [`inbox`] | arrived messages in order; what may be dropped when nobody reads | none |
//! | [`session`] | open requests, arrival, failure: a conversation without its socket | none |
//! | [`client`] | a QMP connection over a unix socket | socket |
//! | [`commands`] | typed commands and their replies | none |
//! | [`agent`] | the guest agent: codec, commands, connection | socket |
//! | [`agent`] | the guest agent's codec and client | socket |
//!
//! The crate knows the protocols and nothing of what they are used for: no retries, no policy, no
//! opinion on which command follows which. Everything a peer sends is treated as hostile: lines,
//! queues and waiting times have limits, and nothing a peer sends makes this crate panic.

mod error;
#[macro_use]
mod macros;
mod transport;

pub mod agent;
pub mod client;
pub mod codec;
pub mod commands;
pub mod frame;
pub mod ids;
pub mod inbox;
pub mod session;

pub use agent::Agent;
pub use client::Client;
pub use codec::{Body, CommandError, ErrorClass, Event, EventKind, Lane, RequestId, Version};
pub use commands::Command;
pub use error::{Error, Result};
pub use inbox::{Incoming, Reply, TimedEvent};
