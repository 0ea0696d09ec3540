//! What can go wrong with a repository.
//!
//! Rules: a variant's text says what happened and to which object; causes are chained, not repeated. [`Error::kind`] is what
//! scripts go by.

use std::path::PathBuf;

use keyframe_store::Error as StoreError;

use crate::ids::ObjectId;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a failure means for a script: the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It failed.
    Failed,
    /// It was asked for in a way that cannot be right.
    Usage,
    /// There is no such thing.
    NotFound,
    /// The key does not fit.
    WrongKey,
    /// A person interrupted it.
    Interrupted,
}

/// Everything that fails in a repository.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text is its documentation; fields are what the text shows
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no repository in {place}")]
    NoRepository { place: String },
    #[error("there is a repository in {place} already")]
    RepositoryExists { place: String },
    #[error("{object} is of version {found}; this program knows {known}")]
    Version { object: String, found: u16, known: u16 },
    #[error("{object} is damaged: {why}")]
    Damaged { object: String, why: &'static str },
    #[error("no key of the repository can be opened with this {tried}")]
    WrongKey { tried: &'static str },
    #[error("this key may not {action}")]
    NotAllowed { action: &'static str },
    #[error("{what}")]
    Usage { what: String },
    #[error("the key file {path} {why}")]
    KeyFile { path: PathBuf, why: String },
    #[error("{what} needs a store that creates objects exclusively, and {place} does not")]
    NotExclusive { place: String, what: &'static str },
    #[error("there is no point {name}")]
    NoPoint { name: String },
    #[error("{name} could be any of several points: {candidates}")]
    Ambiguous { name: String, candidates: String },
    #[error("frame {number} of pack {pack} is in no pack that is there")]
    MissingFrame { pack: ObjectId, number: u32 },
    #[error("bytes {at} to {end} of the image {image} cannot be read")]
    Unreadable { image: String, at: u64, end: u64, source: Box<Error> },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot read the image {path}")]
    Image { path: PathBuf, source: Box<keyframe_qcow2::Error> },
    #[error("the image changed its size or was cut short while it was read")]
    ImageShort,
    #[error("an image has at most {limit} bytes; this one has {found}")]
    ImageTooLarge { found: u64, limit: u64 },
    #[error("cryptography failed in {what}")]
    Crypto { what: &'static str },
    #[error("compression failed")]
    Compression(#[source] std::io::Error),
    #[error("what the backup refers to was pruned while it ran")]
    Fenced,
    #[error("others pruned all the while, and it could not be finished beside them")]
    Overtaken,
    #[error("an image before this one could not be stored, so no point can be made")]
    Broken,
    #[error("a part of the pipeline ended before its work was done")]
    Pipeline,
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What it means for a script.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoRepository { .. } | Self::NoPoint { .. } => Kind::NotFound,
            Self::WrongKey { .. } => Kind::WrongKey,
            Self::Usage { .. } | Self::Ambiguous { .. } | Self::RepositoryExists { .. } => Kind::Usage,
            Self::Interrupted => Kind::Interrupted,
            _ => Kind::Failed,
        }
    }

    /// What is as it was.
    #[must_use]
    pub fn kept(&self) -> Option<String> {
        let text = match self {
            Self::WrongKey { .. }
            | Self::NotAllowed { .. }
            | Self::RepositoryExists { .. }
            | Self::Version { .. }
            | Self::NotExclusive { .. } => "nothing was changed",
            Self::Overtaken => "nothing that a point needs was removed",
            Self::Fenced | Self::Broken | Self::ImageShort | Self::Image { .. } | Self::Interrupted => {
                "every point that was there is as it was"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// What a person can do.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        let text = match self {
            Self::NoRepository { .. } => "`keyframe repo init` makes one; --repo or KEYFRAME_REPO names it",
            Self::WrongKey { .. } => "name the key file with --key-file, or give the passphrase in KEYFRAME_PASSPHRASE",
            Self::NoPoint { .. } => "`keyframe image list` shows what there is",
            Self::Damaged { .. }
            | Self::MissingFrame { .. }
            | Self::Unreadable { .. }
            | Self::Store(StoreError::Short { .. } | StoreError::NotFound { .. } | StoreError::Unreadable { .. }) => {
                "`keyframe repo repair` mends what parity covers; `keyframe repo verify` tells all that is damaged"
            }
            Self::Version { .. } => "use a newer Keyframe",
            Self::NotExclusive { what: "making a repository", .. } => {
                "make sure that nobody else makes a repository there at this moment, and say so with --alone"
            }
            Self::NotExclusive { .. } => "use a service that keeps to If-None-Match, and a policy that demands it",
            Self::Fenced => "run it again; or let prune wait longer (--grace) than the longest backup",
            Self::Overtaken => "run it again when the other prune is done",
            Self::Store(StoreError::Full { .. }) => "free space; `keyframe repo prune` frees what nothing refers to",
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// Whether something is not as it was written, or not there: what others hold is not in question.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Version { .. } | Self::MissingFrame { .. } | Self::Unreadable { .. } => true,
            Self::Store(error) => {
                matches!(error, StoreError::NotFound { .. } | StoreError::Short { .. } | StoreError::Unreadable { .. })
            }
            _ => false,
        }
    }

    /// Whether what was looked for may be elsewhere by now: a prune moves frames and removes packs.
    pub(crate) fn may_have_moved(&self) -> bool {
        match self {
            Self::MissingFrame { .. } => true,
            Self::Store(error) => error.is_not_found(),
            _ => false,
        }
    }

    pub(crate) fn damaged(object: impl std::fmt::Display, why: &'static str) -> Self {
        Self::Damaged { object: object.to_string(), why }
    }
}
