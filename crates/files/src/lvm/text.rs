//! LVM's text format: sections of names with numbers, strings, lists and sections.

use std::collections::BTreeMap;

use crate::error::{Result, damaged};

/// Sections within sections: LVM has four.
const DEPTH_MOST: u32 = 8;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// Names and what they stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Section(BTreeMap<String, Value>);

impl Section {
    pub(super) fn number(&self, name: &str) -> Result<u64> {
        match self.0.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(damaged(format!("LVM's metadata have no number {name}"))),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&str> {
        match self.0.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(damaged(format!("LVM's metadata have no {name}"))),
        }
    }

    pub(super) fn list(&self, name: &str) -> &[Value] {
        match self.0.get(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.0.get(name) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        }
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }
}

/// Reads the whole text.
pub(super) fn parse(text: &str) -> Result<Section> {
    let mut words = Words { rest: text };
    section(&mut words, 0)
}

fn section(words: &mut Words<'_>, depth: u32) -> Result<Section> {
    if depth > DEPTH_MOST {
        return Err(damaged("LVM's metadata are nested too deeply"));
    }
    let mut all = Section::default();
    while let Some(word) = words.next() {
        match word {
            Word::Sign('}') if depth > 0 => return Ok(all),
            Word::Name(name) => {
                let value = match words.next() {
                    Some(Word::Sign('{')) => Value::Section(section(words, depth + 1)?),
                    Some(Word::Sign('=')) => value(words)?,
                    _ => return Err(odd()),
                };
                all.0.insert(name.to_owned(), value);
            }
            _ => return Err(odd()),
        }
    }
    if depth == 0 { Ok(all) } else { Err(odd()) }
}

fn value(words: &mut Words<'_>) -> Result<Value> {
    match words.next() {
        Some(Word::Sign('[')) => {
            let mut list = Vec::new();
            loop {
                match words.next() {
                    Some(Word::Sign(']')) => return Ok(Value::List(list)),
                    Some(Word::Sign(',')) => {}
                    Some(word) => list.push(plain(word)?),
                    None => return Err(odd()),
                }
            }
        }
        Some(word) => plain(word),
        None => Err(odd()),
    }
}

fn plain(word: Word<'_>) -> Result<Value> {
    match word {
        Word::Text(text) => Ok(Value::Text(text)),
        // A number below zero, or with a point, is nothing that is needed here.
        Word::Name(name) => Ok(Value::Number(name.parse().unwrap_or(u64::MAX))),
        Word::Sign(_) => Err(odd()),
    }
}

fn odd() -> crate::error::Error {
    damaged("LVM's metadata are not in its format")
}

enum Word<'a> {
    Name(&'a str),
    Text(String),
    Sign(char),
}

struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\0');
            let Some(comment) = self.rest.strip_prefix('#') else { break };
            self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        }
        let first = self.rest.chars().next()?;
        if first == '"' {
            return Some(self.quoted());
        }
        let in_name = |c: char| c.is_ascii_alphanumeric() || "_-+.".contains(c);
        if in_name(first) {
            let end = self.rest.find(|c: char| !in_name(c)).unwrap_or(self.rest.len());
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Some(Word::Name(name));
        }
        self.rest = self.rest.get(first.len_utf8()..).unwrap_or_default();
        Some(Word::Sign(first))
    }
}

impl<'a> Words<'a> {
    fn quoted(&mut self) -> Word<'a> {
        let (mut text, mut escaped) = (String::new(), false);
        let mut chars = self.rest.char_indices().skip(1);
        for (at, c) in chars.by_ref() {
            match c {
                _ if escaped => {
                    text.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Word::Text(text);
                }
                _ => text.push(c),
            }
        }
        self.rest = "";
        Word::Sign('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_group_is_read() {
        let text = "# made by hand\nvg0 {\n id = \"a-b\"\nseqno = 3 status = [\"READ\", \"x\\\"y\"]\nlv { root { n = 1 } }\n}\nversion = 1\n";
        let root = parse(text).unwrap();
        let (name, group) = root.sections().next().unwrap();
        assert_eq!((name, group.number("seqno").unwrap(), group.text("id").unwrap()), ("vg0", 3, "a-b"));
        assert_eq!(group.list("status")[1], Value::Text("x\"y".into()));
        assert_eq!(group.section("lv").unwrap().section("root").unwrap().number("n").unwrap(), 1);
    }

    #[test]
    fn what_is_cut_short_or_nested_without_end_is_refused() {
        for text in ["vg {", "vg = ", "vg = [1", "a = \"b", "}", &"a {".repeat(100)] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
