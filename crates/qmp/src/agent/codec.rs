//! The guest agent's replies: bytes to messages, without I/O.
//!
//! The agent's channel has no beginning: what comes first may be the rest of a reply to somebody
//! before us. So the agent precedes the reply to `guest-sync-delimited` with a byte 0xFF, which is
//! never part of JSON, and [`Decoder`] forgets everything before such a byte.
//!
//! Source: `qga/qapi-schema.json`, `guest-sync-delimited`; `docs/interop/qmp-spec.rst`, "QGA Synchronization".

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::codec::{Body, CommandError, present};
use crate::error::{Error, Result};
use crate::frame::LineDecoder;

/// Precedes a synchronization, in both directions.
pub const SENTINEL: u8 = 0xff;

/// Longest reply taken. The agent captures at most 16 MiB of a command's output for each of its two
/// streams, and sends them in base64. Source: `qga/commands.c`, `GUEST_EXEC_MAX_OUTPUT`.
pub const LINE_LIMIT_BYTES: usize = 48 << 20;

/// A reply: its value, or why the agent refused.
pub type Answer = std::result::Result<Body, CommandError>;

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    error: Option<CommandError>,
}

/// Decodes an agent's bytes.
#[derive(Debug)]
pub struct Decoder {
    lines: LineDecoder,
}

impl Decoder {
    /// A decoder for lines of at most `line_limit_bytes`.
    #[must_use]
    pub fn new(line_limit_bytes: usize) -> Self {
        Self { lines: LineDecoder::new(line_limit_bytes) }
    }

    /// Adds bytes as they came. Everything before the last [`SENTINEL`] in them is forgotten.
    pub fn push(&mut self, bytes: &[u8]) {
        let last = bytes.iter().rposition(|&byte| byte == SENTINEL);
        let Some(at) = last else { return self.lines.push(bytes) };
        let (stale, fresh) = bytes.split_at(at + 1);
        self.lines.push(stale);
        self.lines.discard();
        self.lines.push(fresh);
    }

    /// The next reply, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`Error::LineTooLong`]: nothing more can be had before [`Decoder::forget`] or a sentinel.
    /// [`Error::Malformed`], [`Error::NotAMessage`]: the line is skipped.
    pub fn next_answer(&mut self) -> Result<Option<Answer>> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        let offset = line.offset;
        let wire: Wire = serde_json::from_slice(line.bytes).map_err(|source| Error::Malformed { offset, source })?;
        match wire {
            Wire { value: Some(value), .. } => Ok(Some(Ok(Body::from_raw(value)))),
            Wire { error: Some(error), .. } => Ok(Some(Err(error))),
            Wire { value: None, error: None } => Err(Error::NotAMessage { offset }),
        }
    }

    /// Forgets everything pushed so far.
    pub fn forget(&mut self) {
        self.lines.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answers(decoder: &mut Decoder) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match decoder.next_answer() {
                Ok(Some(Ok(body))) => all.push(body.text().to_owned()),
                Ok(Some(Err(error))) => all.push(error.to_string()),
                Ok(None) => return all,
                Err(error) => all.push(format!("{error}")),
            }
        }
    }

    #[test]
    fn what_stands_before_a_sentinel_is_forgotten() {
        let mut decoder = Decoder::new(100);
        decoder.push(b"{\"return\": 1}\n{\"retu");
        decoder.push(b"rn\": 2}\n\xff{\"return\": 3}\n");
        decoder.push(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n");
        assert_eq!(answers(&mut decoder), ["3", "no"]);
    }

    #[test]
    fn a_sentinel_ends_a_line_that_never_ends() {
        let mut decoder = Decoder::new(8);
        decoder.push(&[b'x'; 100]);
        assert!(matches!(decoder.next_answer(), Err(Error::LineTooLong { .. })));
        decoder.push(b"xx\xff\n1\n");
        assert_eq!(answers(&mut decoder).len(), 1);
    }

    proptest! {
        #[test]
        fn after_a_sentinel_any_history_is_the_same(
            history in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..220,
        ) {
            let mut bytes = history;
            bytes.extend(b"\xff{\"return\": 77}\n");
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut decoder = Decoder::new(1 << 20);
            decoder.push(first);
            if second.contains(&SENTINEL) {
                answers(&mut decoder);
            }
            decoder.push(second);
            let last = answers(&mut decoder).pop();
            prop_assert_eq!(last.as_deref(), Some("77"));
        }
    }
}
