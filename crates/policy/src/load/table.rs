//! A TOML table read key by key: whatever is wrong with one is noted with its place, and the others are read all the same.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Mistake, Place, Severity};
use crate::calendar::CalendarError;

/// A file's text, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
}

/// Which bytes of a file.
pub(super) type Span = Range<usize>;

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text, mistakes: RefCell::default() }
    }

    pub(super) fn place(&self, span: &Span) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    pub(super) fn note(&self, severity: Severity, span: &Span, what: impl Into<String>, remedy: impl Into<String>) {
        let (what, remedy) = (what.into(), remedy.into());
        self.mistakes.borrow_mut().push(Mistake { place: self.place(span), severity, what, remedy });
    }

    pub(super) fn error(&self, span: &Span, what: impl Into<String>, remedy: impl Into<String>) {
        self.note(Severity::Error, span, what, remedy);
    }

    pub(super) fn warning(&self, span: &Span, what: impl Into<String>, remedy: impl Into<String>) {
        self.note(Severity::Warning, span, what, remedy);
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }
}

/// Something that was read, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Read<T> {
    pub value: T,
    pub span: Span,
}

/// A table, and which of its keys were asked for.
pub(super) struct Table<'t, 'i> {
    pub source: &'t Source<'t>,
    entries: &'t DeTable<'i>,
    /// What it is called, such as `policy.db.snapshot`.
    pub path: String,
    /// Where it begins.
    pub span: Span,
    asked: RefCell<Vec<&'static str>>,
}

impl<'t, 'i> Table<'t, 'i> {
    pub(super) fn new(source: &'t Source<'t>, entries: &'t DeTable<'i>, path: String, span: Span) -> Self {
        Self { source, entries, path, span, asked: RefCell::default() }
    }

    fn get(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.asked.borrow_mut().push(key);
        self.entries.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.get_ref() == key)
    }

    fn named(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn wrong_kind(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let what = format!("{} is {} {}", self.named(key), article(value.get_ref()), value.get_ref().type_str());
        self.source.error(&value.span(), what, format!("write {wanted}"));
    }

    /// A text, as it stands.
    pub(super) fn text(&self, key: &'static str, wanted: &str) -> Option<Read<String>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Read { value: text.to_string(), span: value.span() }),
            _ => {
                self.wrong_kind(key, value, wanted);
                None
            }
        }
    }

    /// A text that means something.
    pub(super) fn parsed<T>(&self, key: &'static str, wanted: &str) -> Option<Read<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.parsed_by(key, wanted, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// A text that a function reads.
    pub(super) fn parsed_by<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Read<T>> {
        let Read { value, span } = self.text(key, wanted)?;
        match read(&value) {
            Ok(value) => Some(Read { value, span }),
            Err(error) => {
                self.source.error(&span, format!("{}: {error}", self.named(key)), format!("write {wanted}"));
                None
            }
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Clone>(&self, key: &'static str, words: &[(&str, T)]) -> Option<Read<T>> {
        let all = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        self.parsed_by(key, &format!("one of {all}"), |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| value.clone()).ok_or_else(|| format!("{text:?} is not known"))
        })
    }

    pub(super) fn flag(&self, key: &'static str) -> Option<Read<bool>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(Read { value: *flag, span: value.span() }),
            _ => {
                self.wrong_kind(key, value, "true or false");
                None
            }
        }
    }

    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<Read<i64>> {
        let value = self.get(key)?;
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_kind(key, value, &wanted);
            return None;
        };
        let read = i64::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| range.contains(number));
        if read.is_none() {
            self.source.error(&value.span(), format!("{} is out of range", self.named(key)), format!("write {wanted}"));
        }
        read.map(|number| Read { value: number, span: value.span() })
    }

    /// A list of texts, each read by a function; those that cannot be read are left out, and noted.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl Fn(&str) -> Result<T, CalendarError>,
    ) -> Option<Vec<Read<T>>> {
        let value = self.get(key)?;
        let DeValue::Array(entries) = value.get_ref() else {
            self.wrong_kind(key, value, &format!("a list: [{wanted}]"));
            return None;
        };
        let mut all = Vec::new();
        for entry in entries.iter() {
            let DeValue::String(text) = entry.get_ref() else {
                self.wrong_kind(key, entry, wanted);
                continue;
            };
            match read(text) {
                Ok(value) => all.push(Read { value, span: entry.span() }),
                Err(error) => self.misread(key, text, &entry.span(), &error),
            }
        }
        Some(all)
    }

    /// A list of texts that mean something.
    pub(super) fn parsed_list<T>(&self, key: &'static str, wanted: &str) -> Option<Vec<Read<T>>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.list(key, wanted, |text| {
            text.parse().map_err(|error: T::Err| CalendarError { at: 0..text.len(), what: error.to_string() })
        })
    }

    /// A text in which the wrong part can be pointed at.
    pub(super) fn pointed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&str) -> Result<T, CalendarError>,
    ) -> Option<Read<T>> {
        let Read { value: text, span } = self.text(key, wanted)?;
        match read(&text) {
            Ok(value) => Some(Read { value, span }),
            Err(error) => {
                self.misread(key, &text, &span, &error);
                None
            }
        }
    }

    fn misread(&self, key: &str, text: &str, span: &Span, error: &CalendarError) {
        // Within plain quotes the text is in the file as it was read.
        let inner = span.start + 1..span.end.saturating_sub(1);
        let plain = self.source.text.get(inner.clone()) == Some(text);
        let at = if plain { inner.start + error.at.start..inner.start + error.at.end } else { span.clone() };
        let (what, remedy) = error.what.split_once(": ").unwrap_or((&error.what, ""));
        let remedy = if remedy.is_empty() { "see docs/POLICIES.md, \"Schedules and windows\"" } else { remedy };
        self.source.error(&at, format!("{} = {text:?}: {what}", self.named(key)), remedy);
    }

    /// A table below this one.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'t, 'i>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table::new(self.source, entries, self.named(key), value.span())),
            _ => {
                self.wrong_kind(key, value, &format!("a table: [{}]", self.named(key)));
                None
            }
        }
    }

    /// Tables below this one that people name.
    pub(super) fn tables_by_name(&self, key: &'static str) -> Vec<(Read<String>, Table<'t, 'i>)> {
        let Some(outer) = self.table(key) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for (name, value) in outer.entries.iter() {
            let path = format!("{key}.{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(entries) => {
                    let read = Read { value: name.get_ref().to_string(), span: name.span() };
                    // A table of dotted keys has no place of its own.
                    all.push((read, Table::new(self.source, entries, path, name.span())));
                }
                _ => self.source.error(&name.span(), format!("{path} is not a table"), format!("write [{key}.NAME]")),
            }
        }
        all
    }

    /// A list of tables: `[[key]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'t, 'i>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let DeValue::Array(entries) = value.get_ref() else {
            self.wrong_kind(key, value, &format!("[[{}]], with two brackets", self.named(key)));
            return Vec::new();
        };
        let mut all = Vec::new();
        for entry in entries.iter() {
            match entry.get_ref() {
                DeValue::Table(table) => all.push(Table::new(self.source, table, self.named(key), entry.span())),
                _ => self.wrong_kind(key, entry, &format!("[[{}]]", self.named(key))),
            }
        }
        all
    }

    /// A value that may be a word or a table.
    pub(super) fn word(&self, key: &'static str) -> Option<Read<String>> {
        let value = self.get(key)?;
        let text = value.get_ref().as_str()?;
        Some(Read { value: text.to_owned(), span: value.span() })
    }

    /// Notes that a key is not there; one that is and cannot be read has been noted already.
    pub(super) fn missing(&self, key: &str, remedy: &str) {
        if !self.has(key) {
            self.source.error(&self.span, format!("{} is missing", self.named(key)), remedy);
        }
    }

    /// Notes every key that nobody asked for.
    pub(super) fn done(self) {
        self.done_besides(&[]);
    }

    /// The same, where some were asked for elsewhere.
    pub(super) fn done_besides(self, others: &[&'static str]) {
        let mut asked = self.asked.take();
        asked.extend(others);
        for (name, _) in self.entries.iter().filter(|(name, _)| !asked.contains(&&**name.get_ref())) {
            let word = name.get_ref();
            let nearest = asked.iter().map(|known| (distance(word, known), *known)).min();
            let remedy = match nearest.filter(|(distance, _)| *distance <= 2) {
                Some((_, known)) => format!("did you mean {known}?"),
                None => format!("here can be: {}", sorted(&asked).join(", ")),
            };
            self.source.error(&name.span(), format!("{} is not known", self.named(word)), remedy);
        }
    }
}

fn sorted(words: &[&'static str]) -> Vec<&'static str> {
    let mut words = words.to_vec();
    words.sort_unstable();
    words.dedup();
    words
}

fn article(value: &DeValue<'_>) -> &'static str {
    if matches!(value, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" }
}

/// How many letters differ: Levenshtein's distance; a long word is far from all.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 40 {
        return a.len();
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
