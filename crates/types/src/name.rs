//! Names that people choose, safe to use as one path component.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a {what} cannot be empty")]
    Empty {
        /// Which kind of name was expected.
        what: &'static str,
    },
    /// Longer than a path component and a terminal column can take.
    #[error("a {what} has at most {limit} characters; this one has {length}")]
    TooLong {
        /// Which kind of name was expected.
        what: &'static str,
        /// How many characters it has.
        length: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A character that a path, a shell or QEMU's option syntax would trip over.
    #[error(
        "{character:?} cannot be part of a {what}: use letters, digits, '.', '_' and '-', and begin with a letter or digit"
    )]
    BadCharacter {
        /// Which kind of name was expected.
        what: &'static str,
        /// The first offending character.
        character: char,
    },
}

fn check(what: &'static str, limit: usize, text: &str) -> Result<(), NameError> {
    let length = text.chars().count();
    if length == 0 {
        return Err(NameError::Empty { what });
    }
    if length > limit {
        return Err(NameError::TooLong { what, length, limit });
    }
    let allowed =
        |(position, c): (usize, char)| c.is_ascii_alphanumeric() || (position > 0 && matches!(c, '.' | '_' | '-'));
    match text.chars().enumerate().find(|&entry| !allowed(entry)) {
        Some((_, character)) => Err(NameError::BadCharacter { what, character }),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            #[doc = concat!("The most characters a ", $what, " may have.")]
            pub const MAX_CHARS: usize = $limit;

            #[doc = concat!("Checks that `text` can be a ", $what, ".")]
            ///
            /// # Errors
            /// [`NameError`] says which rule is broken.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                check($what, $limit, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// The name of a machine: also the name of its directory.
    VmName,
    "machine name",
    64
);
name_type!(
    /// A name a person gave a snapshot; unique among the snapshots of one machine.
    SnapshotName,
    "snapshot name",
    64
);
name_type!(
    /// The name of a disk within its machine, such as `disk0`; part of QEMU node and device ids.
    DiskId,
    "disk id",
    16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken() {
        for text in ["a", "db-1", "web.example.org", "A_b-c.9", &"x".repeat(64)] {
            assert_eq!(VmName::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_would_escape_a_directory_are_refused() {
        let what = "machine name";
        assert_eq!(VmName::new(""), Err(NameError::Empty { what }));
        for (text, character) in
            [("a/b", '/'), ("..", '.'), ("-x", '-'), ("a b", ' '), ("a,b", ','), ("é", 'é'), ("a\0", '\0')]
        {
            assert_eq!(VmName::new(text), Err(NameError::BadCharacter { what, character }), "{text:?}");
        }
        let length = 300;
        assert_eq!(VmName::new("x".repeat(length)), Err(NameError::TooLong { what, length, limit: 64 }));
    }
}
