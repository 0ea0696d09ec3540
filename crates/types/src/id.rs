//! Identifiers that Keyframe draws itself: 64 random bits, written as 16 lower-case hexadecimal digits.
//!
//! They are random and not counted so that two hosts, or a copy of a home directory, never give the
//! same id to different things, and so that short prefixes tell them apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an identifier of 16 hexadecimal digits")]
pub struct IdError(String);

const DIGITS: usize = 16;

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_hex() -> String {
    let mut bytes = [0_u8; DIGITS / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => unreachable!("getrandom without flags fails only when interrupted: {errno}"),
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Draws a fresh one.
            #[must_use]
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// The 16 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first eight digits: enough for a person to tell a few thousand apart.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..8]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() == DIGITS && is_hex(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError(text.to_owned()))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id_type!(
    /// Identifies a snapshot for ever.
    SnapshotId
);
id_type!(
    /// Identifies an instant at which several machines were cut.
    GroupCutId
);
id_type!(
    /// Identifies one layer file of a disk.
    LayerId
);
id_type!(
    /// Identifies one QEMU process that carried a machine.
    InstanceId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_id_reads_back() {
        let id = SnapshotId::random();
        assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id);
        assert_ne!(id, SnapshotId::random());
        assert_eq!(id.short(), &id.as_str()[..8]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "../../etc/passwd."] {
            assert!(text.parse::<SnapshotId>().is_err(), "{text:?}");
        }
    }
}
