//! Typed commands: a struct for each, serialized as its arguments, with the type of its reply.
//!
//! Thin on purpose: no command does anything but say its name and members as QEMU's schema spells
//! them. Members that are not here can be had by [`Client::execute`](crate::Client::execute).
//! Replies read only what is named here and skip the rest, so that a newer QEMU is understood.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::codec::Lane;

pub mod block;
pub mod device;
pub mod job;
pub mod machine;
pub mod migration;

/// A command of the monitor.
pub trait Command: Serialize {
    /// Its name.
    const NAME: &'static str;
    /// Where it runs.
    const LANE: Lane = Lane::InBand;
    /// What it returns.
    type Reply: DeserializeOwned;
}

/// The reply of a command that returns nothing: an empty object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Empty {}

/// Declares that a struct is the arguments of a command.
macro_rules! command {
    ($type:ty, $name:literal -> $reply:ty) => {
        impl crate::commands::Command for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    };
    ($type:ty, oob $name:literal -> $reply:ty) => {
        impl crate::commands::Command for $type {
            const NAME: &'static str = $name;
            const LANE: crate::codec::Lane = crate::codec::Lane::OutOfBand;
            type Reply = $reply;
        }
    };
}
use command;
