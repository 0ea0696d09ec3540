//! Names of objects.

use std::fmt;

use crate::error::{Error, Result};

/// Most bytes of a name.
const LONGEST: usize = 120;

/// A name: one to three parts of lower-case letters, digits and `-`, with slashes between. Safe as a path, as a key of an
/// object store and in a URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let good = |part: &str| {
            let plain = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            plain && part.bytes().next().is_some_and(|b| b != b'-')
        };
        if text.len() > LONGEST || text.split('/').count() > 3 || !text.split('/').all(good) {
            return Err(Error::BadName { name: text.chars().take(LONGEST).collect() });
        }
        Ok(Self(text))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last part.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Whether it lies in an area: whether it begins with this and a slash.
    #[must_use]
    pub fn is_in(&self, area: &str) -> bool {
        self.0.strip_prefix(area).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for text in ["config", "packs/ab/abcdef01", "keys/0-1"] {
            assert_eq!(ObjectName::new(text).unwrap().as_str(), text);
        }
        for text in ["", "/", "a/", "/a", "..", "a/../b", "A", "a b", "a/b/c/d", "-a", ".a", "a\\b", &"a".repeat(121)] {
            assert!(ObjectName::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_area_is_a_whole_part() {
        let name = ObjectName::new("packs/ab/cd").unwrap();
        assert!(name.is_in("packs") && name.is_in("packs/ab") && !name.is_in("pack") && !name.is_in("packs/ab/cd"));
        assert_eq!(name.leaf(), "cd");
    }
}
