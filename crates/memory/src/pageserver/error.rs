//! What stops a page server.

use std::io;
use std::path::PathBuf;

use keyframe_vmstate::postcopy::PostcopyError;

use crate::Error;

/// How far the revert had come when the server stopped: it decides what can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The destination has not confirmed its devices. It gives up by itself; start a fresh QEMU.
    Opening,
    /// The vCPUs may run. The destination pauses the migration and can be taken up again with a resume.
    Serving,
    /// The last page and the end are out, only the destination's goodbye is missing.
    Ending,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Opening => "before the machine ran",
            Self::Serving => "while pages were served",
            Self::Ending => "after the last page",
        })
    }
}

/// Why a page server stopped before the memory was complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageServerError {
    /// Nobody listens on the socket.
    #[error("{socket}: QEMU does not listen for pages there")]
    Connect {
        /// How far the revert had come.
        stage: Stage,
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket failed.
    #[error("the connection to QEMU failed {stage}")]
    Socket {
        /// How far the revert had come.
        stage: Stage,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU closed the connection or is gone.
    #[error("QEMU closed the connection {stage}")]
    Lost {
        /// How far the revert had come.
        stage: Stage,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer within {seconds} s {stage}")]
    Silent {
        /// How far the revert had come.
        stage: Stage,
        /// How long was waited.
        seconds: u64,
    },
    /// QEMU said that the migration failed.
    #[error("QEMU gave the migration up with error {code} {stage}")]
    GivenUp {
        /// How far the revert had come.
        stage: Stage,
        /// QEMU's number for it.
        code: u32,
    },
    /// The conversation went wrong.
    #[error("the conversation with QEMU went wrong {stage}")]
    Protocol {
        /// How far the revert had come.
        stage: Stage,
        /// What was wrong.
        source: PostcopyError,
    },
    /// A page cannot be had, or is not what was captured. It was not sent, nor any other of its extent.
    #[error("the snapshot's memory is not to be had {stage}")]
    Page {
        /// How far the revert had come.
        stage: Stage,
        /// Which page and why.
        source: Error,
    },
    /// The snapshot's memory cannot be opened.
    #[error("the snapshot's memory cannot be opened")]
    Image {
        /// How far the revert had come.
        stage: Stage,
        /// Why not.
        source: Error,
    },
    /// A thread, an event or a buffer could not be had.
    #[error("the page server could not be set up")]
    Setup {
        /// How far the revert had come.
        stage: Stage,
        /// What the system said.
        source: io::Error,
    },
}

impl PageServerError {
    /// How far the revert had come.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        match self {
            Self::Connect { stage, .. }
            | Self::Socket { stage, .. }
            | Self::Lost { stage }
            | Self::Silent { stage, .. }
            | Self::GivenUp { stage, .. }
            | Self::Protocol { stage, .. }
            | Self::Page { stage, .. }
            | Self::Image { stage, .. }
            | Self::Setup { stage, .. } => *stage,
        }
    }
}
