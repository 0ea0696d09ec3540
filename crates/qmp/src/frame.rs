//! Bytes to lines: incremental, bounded, without I/O.
//!
//! Feed it slices of any cut with [`LineDecoder::push`], take lines with [`LineDecoder::next_line`].
//! A line ends with `\n`; a `\r` before it and empty lines are dropped. What is kept is one
//! unfinished line at most plus the finished ones of the last push; an unfinished line longer than
//! the limit is an error before it grows further.

use crate::error::{Error, Result};

/// Longest line taken by default: the size that QEMU itself accepts for one token.
/// `query-named-block-nodes` of a long chain is some MiB. Source: `qobject/json-streamer.c`, `MAX_TOKEN_SIZE`.
pub const DEFAULT_LINE_LIMIT_BYTES: usize = 64 << 20;

/// Below this much consumed prefix the buffer is not moved.
const COMPACT_BYTES: usize = 64 << 10;

/// Splits a byte stream into lines.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: Vec<u8>,
    /// Start of the first line not taken yet.
    start: usize,
    /// Everything before this was searched for a line end already.
    searched: usize,
    /// Stream offset of `buffer[0]`.
    base: u64,
    limit: usize,
}

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Where in the stream it starts.
    pub offset: u64,
}

impl LineDecoder {
    /// A decoder for lines of at most `limit_bytes`, the line end not counted.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, searched: 0, base: 0, limit: limit_bytes }
    }

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`Error::LineTooLong`]; the stream cannot be followed any further then.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let found = unsearched.iter().position(|&b| b == b'\n');
            let end = found.map_or(self.buffer.len(), |at| self.searched + at);
            let offset = self.base + self.start as u64;
            if end - self.start > self.limit {
                return Err(Error::LineTooLong { offset, limit_bytes: self.limit });
            }
            if found.is_none() {
                self.searched = end;
                return Ok(None);
            }
            let line = self.start..end;
            self.start = end + 1;
            self.searched = self.start;
            if !trim(&self.buffer[line.clone()]).is_empty() {
                return Ok(Some(Line { bytes: trim(&self.buffer[line]), offset }));
            }
        }
    }

    /// Forgets everything pushed so far, finished lines included.
    pub fn discard(&mut self) {
        self.base += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(COMPACT_BYTES);
        self.start = 0;
        self.searched = 0;
    }

    /// Bytes pushed so far, over the whole stream.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    fn compact(&mut self) {
        if self.start == self.buffer.len() {
            self.discard();
        } else if self.start >= COMPACT_BYTES && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.base += self.start as u64;
            self.searched -= self.start;
            self.start = 0;
        }
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(decoder: &mut LineDecoder, bytes: &[u8]) -> Vec<(Vec<u8>, u64)> {
        decoder.push(bytes);
        let mut all = Vec::new();
        while let Some(line) = decoder.next_line().unwrap() {
            all.push((line.bytes.to_vec(), line.offset));
        }
        all
    }

    #[test]
    fn lines_are_cut_at_their_ends() {
        let mut decoder = LineDecoder::new(10);
        assert_eq!(lines(&mut decoder, b"one\r\n\n\r\ntwo\nthr"), [(b"one".to_vec(), 0), (b"two".to_vec(), 8)]);
        assert_eq!(lines(&mut decoder, b"ee\n"), [(b"three".to_vec(), 12)]);
        assert_eq!(decoder.total_bytes(), 18);
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_more_does_not() {
        let mut decoder = LineDecoder::new(4);
        assert_eq!(lines(&mut decoder, b"1234\n"), [(b"1234".to_vec(), 0)]);
        decoder.push(b"12345");
        assert!(matches!(decoder.next_line(), Err(Error::LineTooLong { offset: 5, limit_bytes: 4 })));
    }

    #[test]
    fn a_finished_line_over_the_limit_is_refused_too() {
        let mut decoder = LineDecoder::new(4);
        decoder.push(b"ok\n12345\n");
        assert_eq!(decoder.next_line().unwrap().unwrap().bytes, b"ok");
        assert!(matches!(decoder.next_line(), Err(Error::LineTooLong { offset: 3, .. })));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_lines(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400),
            cuts in proptest::collection::vec(1usize..50, 1..20),
        ) {
            let whole = lines(&mut LineDecoder::new(1000), &bytes);
            let mut decoder = LineDecoder::new(1000);
            let (mut rest, mut pieces, mut all) = (&bytes[..], cuts.iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
                all.extend(lines(&mut decoder, now));
                rest = later;
            }
            prop_assert_eq!(all, whole);
        }
    }
}
