//! Which machines: by patterns of their names, and by tags.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of machine names: letters, digits, '.', '_', '-', with '*' for any characters and '?' for one"
)]
pub struct GlobError(String);

/// A pattern of machine names: `*` is any characters, `?` one; a `!` before it takes out what it matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Glob {
    text: String,
    excludes: bool,
}

impl Glob {
    /// Whether the pattern is what `name` looks like, whether that is chosen or taken out.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(self.text.as_bytes(), name.as_bytes())
    }

    /// Whether it takes out.
    #[must_use]
    pub fn excludes(&self) -> bool {
        self.excludes
    }
}

/// In steps of at most pattern times name: on a mismatch only the latest `*` takes one character more.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(whole: &str) -> Result<Self, GlobError> {
        let (text, excludes) = whole.strip_prefix('!').map_or((whole, false), |rest| (rest, true));
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'*' | b'?');
        if text.is_empty() || text.len() > 128 || !text.bytes().all(allowed) {
            return Err(GlobError(whole.to_owned()));
        }
        Ok(Self { text: text.to_owned(), excludes })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.excludes { "!" } else { "" }, self.text)
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.to_string()
    }
}

/// Why a text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tag: 1 to 64 letters, digits, '.', '_', '-', '/', '=' and ':'")]
pub struct TagError(String);

/// A word that machines or points are found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b'=' | b':');
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(allowed);
        if fits { Ok(Self(text.to_owned())) } else { Err(TagError(text.to_owned())) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A machine, as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Machines with a name that matches one of the patterns, or with one of the tags; never those that a `!` pattern matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Selector {
    /// Patterns of names.
    pub names: Vec<Glob>,
    /// Tags of `machine.toml`.
    pub tags: Vec<String>,
}

impl Selector {
    /// Whether it chooses this machine.
    #[must_use]
    pub fn chooses(&self, name: &str, tags: &[String]) -> bool {
        let matching = |excludes| self.names.iter().any(|glob| glob.excludes == excludes && glob.matches(name));
        !matching(true) && (matching(false) || tags.iter().any(|tag| self.tags.contains(tag)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, is) in [
            ("db", "db", true),
            ("db", "db1", false),
            ("db*", "db", true),
            ("db*", "adb", false),
            ("*db", "mydb", true),
            ("d?b", "dxb", true),
            ("d?b", "db", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "ababx", false),
            ("*", "anything", true),
            ("**x", "x", true),
        ] {
            assert_eq!(pattern.parse::<Glob>().unwrap().matches(name), is, "{pattern} {name}");
        }
        for text in ["", "!", "a b", "a/b", "[ab]", &"x".repeat(200)] {
            assert!(text.parse::<Glob>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_ends() {
        let pattern: Glob = format!("{}b", "*a".repeat(60)).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(10_000)));
    }

    #[test]
    fn a_selector_takes_names_or_tags_and_leaves_out_what_it_must() {
        let names = ["db*", "!db-test*"].map(|text| text.parse().unwrap()).to_vec();
        let selector = Selector { names, tags: vec!["prod".to_owned()] };
        let prod = ["prod".to_owned()];
        assert!(selector.chooses("db1", &[]));
        assert!(selector.chooses("web", &prod));
        assert!(!selector.chooses("web", &[]));
        assert!(!selector.chooses("db-test-1", &prod));
        assert!(!Selector::default().chooses("db1", &prod));
    }
}
