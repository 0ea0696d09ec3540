//! What a command says: one JSON document for scripts, or lines for people.

use std::fmt::Display;
use std::io::Write as _;

use keyframe_engine::{Error, Kind};
use serde::Serialize;
use serde_json::{Value, json};

/// An error as a person is told of it.
pub trait Failure: std::error::Error {
    /// What it means, in a word.
    fn kind_name(&self) -> &'static str;
    /// What is as it was.
    fn kept(&self) -> Option<String>;
    /// What to do.
    fn advice(&self) -> Option<String>;
}

impl Failure for Error {
    fn kind_name(&self) -> &'static str {
        kind_name(self.kind())
    }

    fn kept(&self) -> Option<String> {
        Self::kept(self)
    }

    fn advice(&self) -> Option<String> {
        Self::advice(self)
    }
}

impl Failure for keyframe_repo::Error {
    fn kind_name(&self) -> &'static str {
        match self.kind() {
            keyframe_repo::Kind::Failed => "failed",
            keyframe_repo::Kind::Usage => "usage",
            keyframe_repo::Kind::NotFound => "not-found",
            keyframe_repo::Kind::WrongKey => "wrong-key",
            keyframe_repo::Kind::Interrupted => "interrupted",
        }
    }

    fn kept(&self) -> Option<String> {
        Self::kept(self)
    }

    fn advice(&self) -> Option<String> {
        Self::advice(self)
    }
}

/// Where results go.
#[derive(Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// For scripts or for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether for scripts.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes a result: `document` under its schema for scripts, `text` for people.
    pub fn result<T: Serialize>(&self, schema: &str, document: &T, text: impl Display) {
        if self.json {
            self.document(
                schema,
                serde_json::to_value(document).unwrap_or_else(|error| json!({"error": error.to_string()})),
            );
        } else {
            // A reader that went away does not want to know.
            let _ = write!(std::io::stdout(), "{text}");
        }
    }

    /// Writes a line of a result that is too long to be kept until its end; for people only.
    pub fn line(&self, text: &str) {
        // A reader that went away does not want to know.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// Tells a person something beside a result.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "note: {text}");
    }

    fn document(&self, schema: &str, value: Value) {
        let mut object = match value {
            Value::Object(object) => object,
            other => serde_json::Map::from_iter([("result".to_owned(), other)]),
        };
        object.insert("schema".to_owned(), format!("keyframe.{schema}/1").into());
        let _ = writeln!(std::io::stdout(), "{:#}", Value::Object(object));
    }

    /// Says what happened, what was kept safe, and what to do.
    pub fn failure(&self, error: &impl Failure) {
        let sentence = self.trouble(error);
        if self.json {
            let document = json!({
                "error": sentence,
                "kind": error.kind_name(),
                "kept": error.kept(),
                "advice": error.advice(),
            });
            self.document("error", document);
        }
    }

    /// The same for people only, beside a result; returns what happened in one sentence.
    pub fn trouble(&self, error: &impl Failure) -> String {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let text = error.to_string();
            if causes.last() != Some(&text) && error_text_differs(&text, &causes) {
                causes.push(text);
            }
            cause = error.source();
        }
        let causes: Vec<String> = causes.into_iter().filter(|cause| *cause != error.to_string()).collect();
        let sentence = one_sentence(error, &causes);
        let _ = writeln!(std::io::stderr(), "error: {sentence}");
        if let Some(kept) = error.kept() {
            let _ = writeln!(std::io::stderr(), " kept: {kept}");
        }
        if let Some(advice) = error.advice() {
            let _ = writeln!(std::io::stderr(), "  try: {advice}");
        }
        sentence
    }
}

fn error_text_differs(text: &str, causes: &[String]) -> bool {
    causes.iter().all(|cause| !cause.contains(text))
}

fn one_sentence(error: &impl Failure, causes: &[String]) -> String {
    std::iter::once(error.to_string()).chain(causes.iter().cloned()).collect::<Vec<_>>().join(": ")
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Failed => "failed",
        Kind::Usage => "usage",
        Kind::Incomplete => "incomplete",
        Kind::NotFound => "not-found",
        Kind::Busy => "busy",
        Kind::WrongKey => "wrong-key",
        Kind::GaveWay => "gave-way",
        Kind::Interrupted => "interrupted",
    }
}

/// A table with aligned columns; the last one is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Milliseconds as people read them.
pub fn ms(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.1} ms"),
        value if value < 1000.0 => format!("{value:.0} ms"),
        value => format!("{:.1} s", value / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["NAME".into(), "STATE".into()], vec!["database".into(), "running".into()]];
        assert_eq!(table(&rows), "NAME      STATE\ndatabase  running\n");
    }

    #[test]
    fn milliseconds_have_few_digits() {
        assert_eq!([ms(1.62), ms(87.4), ms(2345.0)], ["1.6 ms", "87 ms", "2.3 s"]);
    }
}
