//! `label.json`: what was said about a snapshot after it was taken.
//!
//! A manifest is never changed, as it says what the snapshot *is*. Its name, note, owner, expiry and pin are what people say
//! about it, and can be said anew: here, and what is said here goes before the manifest. The document is not there
//! until something is said.

use keyframe_types::{SnapshotName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::state::home::SnapshotDir;
use crate::state::manifest::Manifest;
use crate::state::sealed::{self, Document};

/// What was said; what is `None` is as in the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SnapshotName>,
    /// Why it is there; empty for no note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// When it may be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Expires>,
    /// Kept whatever else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
}

/// When a snapshot may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expires {
    /// Only when someone says so.
    Never,
    /// From then on.
    At(Timestamp),
}

impl Document for Label {
    const SCHEMA: &'static str = "keyframe.label/1";
}

impl Label {
    /// Reads what was said about a snapshot. A label that is damaged says that it is, and holds the snapshot: it may have been
    /// pinned, or its expiry been taken back.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn read(dir: &SnapshotDir) -> Result<Self, Error> {
        match sealed::read(&dir.label()) {
            Ok(label) => Ok(label.unwrap_or_default()),
            Err(error @ (Error::Damaged { .. } | Error::Schema { .. })) => Ok(Self {
                note: Some(format!("{error}; `keyframe snapshot-set` writes it anew")),
                expires: Some(Expires::Never),
                pinned: Some(true),
                ..Self::default()
            }),
            Err(other) => Err(other),
        }
    }

    /// The same as [`Label::read`], and nothing instead of a damaged one: for saying it anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_to_change(dir: &SnapshotDir) -> Result<Self, Error> {
        match sealed::read(&dir.label()) {
            Ok(label) => Ok(label.unwrap_or_default()),
            Err(Error::Damaged { .. } | Error::Schema { .. }) => Ok(Self::default()),
            Err(other) => Err(other),
        }
    }

    /// Puts what was said over what the manifest says.
    pub fn apply(self, manifest: &mut Manifest) {
        if let Some(name) = self.name {
            manifest.name = name;
        }
        if let Some(note) = self.note {
            manifest.note = (!note.is_empty()).then_some(note);
        }
        if let Some(owner) = self.owner {
            manifest.owner = owner;
        }
        match self.expires {
            Some(Expires::Never) => manifest.expires = None,
            Some(Expires::At(instant)) => manifest.expires = Some(instant),
            None => {}
        }
        manifest.pinned = self.pinned.unwrap_or(manifest.pinned);
    }
}
