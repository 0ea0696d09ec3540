//! From files to [`Policies`], with every mistake's place and remedy.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

mod decode;
mod host;
mod sense;
mod table;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde::Serialize;
use toml::de::DeTable;

use crate::owed::Policies;
use table::{Read, Source, Table};

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The character of the line, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// How bad a mistake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// What is written cannot be meant, or not be kept: the files are not taken.
    Error,
    /// It may be meant; somebody should look.
    Warning,
}

/// Something wrong with what is written, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What became of reading the files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loaded {
    /// What they say; nothing where a mistake is an error.
    pub policies: Option<Policies>,
    /// All mistakes, by place.
    pub mistakes: Vec<Mistake>,
}

/// The most bytes a file has.
const LARGEST: u64 = 1 << 20;

/// Reads all policies below some directories: of each its `*.toml`, then those of its `conf.d`, by name.
///
/// A mistake in one file does not hide those in others: all are told at once. `now` is for what depends on it, such as schedules that
/// are never due any more.
#[must_use]
pub fn load(directories: &[&Path], now: Timestamp) -> Loaded {
    let mut mistakes = Vec::new();
    let files: Vec<PathBuf> = directories.iter().flat_map(|directory| files_in(directory, &mut mistakes)).collect();
    let texts: Vec<(PathBuf, String)> =
        files.into_iter().filter_map(|file| read(&file, &mut mistakes).map(|text| (file, text))).collect();
    let sources: Vec<Source<'_>> = texts.iter().map(|(file, text)| Source::new(file, text)).collect();
    let documents: Vec<_> = sources.iter().map(|source| (source, syntax(source))).collect();
    let tables = || documents.iter().filter_map(|(source, entries)| Some((*source, entries.as_ref()?.get_ref())));
    let root = |source, entries| Table::new(source, entries, String::new(), 0..0);
    let mut policies = Policies { files: texts.iter().map(|(file, _)| file.clone()).collect(), ..Policies::default() };
    // Zones first: a file may set the one that schedules of files before it are in.
    for (source, entries) in tables() {
        if let Some(host) = root(source, entries).table("host") {
            host::host(host, &mut policies.host);
        }
    }
    let zone = policies.host.time_zone.clone();
    for (source, entries) in tables() {
        let table = root(source, entries);
        let setting = decode::Setting { zone: &zone, now };
        for (name, inner) in table.tables_by_name("policy") {
            if let Some(policy) = decode::policy(&name, inner, setting) {
                once(source, &name, policies.policies.get(&policy.name).map(|known| &known.place));
                policies.policies.entry(policy.name.clone()).or_insert(policy);
            }
        }
        for (name, inner) in table.tables_by_name("group") {
            if let Some(group) = decode::group(&name, inner) {
                once(source, &name, policies.groups.get(&group.name).map(|known| &known.place));
                policies.groups.entry(group.name.clone()).or_insert(group);
            }
        }
        table.done_besides(&["host", "notify"]);
    }
    // Last: it names policies, those with a mistake among them.
    let known: HashSet<&str> = tables().flat_map(|(_, entries)| names(entries)).collect();
    for (source, entries) in tables() {
        if let Some(inner) = root(source, entries).table("notify") {
            host::notify(inner, &mut policies.notify, &known);
        }
    }
    drop(documents);
    mistakes.extend(policies.contradictions());
    mistakes.extend(sources.into_iter().flat_map(Source::into_mistakes));
    mistakes.sort();
    mistakes.dedup();
    let failed = mistakes.iter().any(|mistake| mistake.severity == Severity::Error);
    Loaded { policies: (!failed).then_some(policies), mistakes }
}

/// Where policies are unless somebody says otherwise: `policies` in the home when there is such a directory, else `/etc/keyframe`.
#[must_use]
pub fn default_directory(home: &Path) -> PathBuf {
    let own = home.join("policies");
    if own.is_dir() { own } else { PathBuf::from("/etc/keyframe") }
}

/// The files of a directory in the order in which they count.
fn files_in(directory: &Path, mistakes: &mut Vec<Mistake>) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for (inner, needed) in [(directory.to_owned(), true), (directory.join("conf.d"), false)] {
        let listed = std::fs::read_dir(&inner).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        match listed {
            Ok(entries) => {
                let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
                // What begins with a dot is an editor's.
                let hidden =
                    |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                files.retain(|path| path.extension().is_some_and(|ending| ending == "toml") && !hidden(path));
                files.sort();
                all.append(&mut files);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !needed => {}
            Err(error) => {
                let remedy = "name a directory that holds *.toml files and can be read";
                mistakes.push(whole_file(&inner, format!("the directory cannot be listed: {error}"), remedy));
            }
        }
    }
    all
}

fn whole_file(file: &Path, what: String, remedy: &str) -> Mistake {
    let place = Place { file: file.to_owned(), line: 1, column: 1 };
    Mistake { place, severity: Severity::Error, what, remedy: remedy.to_owned() }
}

/// The text of a file.
fn read(file: &Path, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let bytes = || -> std::io::Result<Vec<u8>> {
        let found = std::fs::metadata(file)?;
        // A pipe would be waited for.
        if !found.is_file() || found.len() > LARGEST {
            return Err(std::io::Error::other("it is not a file of at most 1 MiB"));
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::open(file)?, LARGEST), &mut bytes)?;
        Ok(bytes)
    };
    match bytes() {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let before = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
                let place = Source::new(file, &before).place(&(good..good));
                let what = "the file is not UTF-8 from here on".to_owned();
                let remedy = "save it as UTF-8".to_owned();
                mistakes.push(Mistake { place, severity: Severity::Error, what, remedy });
                None
            }
        },
        Err(error) => {
            let remedy = "make it readable, or take it out of the directory";
            mistakes.push(whole_file(file, format!("the file cannot be read: {error}"), remedy));
            None
        }
    }
}

/// A file as tables; nothing when it is no TOML.
fn syntax<'t>(source: &'t Source<'_>) -> Option<toml::Spanned<DeTable<'t>>> {
    let (table, errors) = DeTable::parse_recoverable(source.text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        source.error(&span, format!("this is no TOML: {}", error.message().replace('\n', ", ")), "see https://toml.io");
    }
    errors.is_empty().then_some(table)
}

/// The names of a file's policies.
fn names<'t>(entries: &'t DeTable<'_>) -> impl Iterator<Item = &'t str> {
    let policies = entries.get("policy").and_then(|value| value.get_ref().as_table());
    policies.into_iter().flat_map(|policies| policies.keys().map(|name| name.get_ref().as_ref()))
}

/// Notes a name that was given before.
fn once(source: &Source<'_>, name: &Read<String>, known: Option<&Place>) {
    if let Some(place) = known {
        let what = format!("the name {} is taken, at {place}", name.value);
        source.error(&name.span, what, "choose another, or take one of the two out");
    }
}
