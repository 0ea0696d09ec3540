//! `VM@SNAP`, as zfs writes it.

use std::fmt;
use std::str::FromStr;

use crate::name::{NameError, SnapshotName, VmName};

/// Why a text does not name a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// There is no `@`, or nothing behind it.
    #[error("{0:?} does not name a snapshot: write VM@SNAP, SNAP being a name, an id or the beginning of an id")]
    NoSnapshot(String),
    /// One of the two sides is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// What a person typed behind the `@`: a name, an id, or the beginning of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSelector(SnapshotName);

impl SnapshotSelector {
    /// The text to look for.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for SnapshotSelector {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        Ok(Self(SnapshotName::new(text)?))
    }
}

impl fmt::Display for SnapshotSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A snapshot of a machine, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRef {
    /// The machine.
    pub vm: VmName,
    /// Which of its snapshots.
    pub snapshot: SnapshotSelector,
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.vm, self.snapshot)
    }
}

impl FromStr for SnapshotRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        match text.split_once('@') {
            Some((vm, snapshot)) if !snapshot.is_empty() => {
                Ok(Self { vm: VmName::new(vm)?, snapshot: snapshot.parse()? })
            }
            _ => Err(RefError::NoSnapshot(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_two_names() {
        let parsed: SnapshotRef = "db@before-upgrade".parse().unwrap();
        assert_eq!((parsed.vm.as_str(), parsed.snapshot.as_str()), ("db", "before-upgrade"));
        assert_eq!(parsed.to_string(), "db@before-upgrade");
        for text in ["db", "db@", "@x", "db@a/b", "d b@x", ""] {
            assert!(text.parse::<SnapshotRef>().is_err(), "{text:?}");
        }
    }
}
