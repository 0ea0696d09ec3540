//! A disk of which not everything can be read.
//!
//! A point without some sectors is better than none, if it says so: what cannot be read is stored as zeros, and listed.

use std::ops::Range;
use std::sync::Mutex;

use keyframe_repo::Result;
use keyframe_repo::source::{Source, SourceReader};

/// What is read at once where a larger read failed.
const SECTOR_BYTES: usize = 4096;
/// The most ranges that are listed, and the most that they may hold together. Of a disk of which more cannot be read it is
/// likely that all of it cannot: a server that went away, and no bad sectors.
const RANGES_MOST: usize = 4096;
const BYTES_MOST: u64 = 64 << 20;

/// A source that goes on behind what it cannot read.
pub struct Tolerant<'a> {
    source: &'a dyn Source,
    unreadable: Mutex<Vec<Range<u64>>>,
}

impl<'a> Tolerant<'a> {
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, unreadable: Mutex::default() }
    }

    /// What could not be read, in order.
    pub fn unreadable(self) -> Vec<Range<u64>> {
        let mut ranges = self.unreadable.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut().filter(|last| last.end >= range.start) {
                Some(last) => last.end = last.end.max(range.end),
                None => joined.push(range),
            }
        }
        joined
    }

    /// Notes a range; `false` when there are too many.
    fn note(&self, range: Range<u64>) -> bool {
        let mut ranges = self.unreadable.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match ranges.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => ranges.push(range),
        }
        ranges.len() <= RANGES_MOST && ranges.iter().map(|range| range.end - range.start).sum::<u64>() <= BYTES_MOST
    }
}

impl Source for Tolerant<'_> {
    fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    fn extents(&self) -> Result<Vec<Range<u64>>> {
        self.source.extents()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(Reader { inner: self.source.reader()?, all: self }))
    }
}

struct Reader<'a> {
    inner: Box<dyn SourceReader + Send + 'a>,
    all: &'a Tolerant<'a>,
}

impl SourceReader for Reader<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let Err(error) = self.inner.read(at, into) else { return Ok(()) };
        let mut place = at;
        let mut read = 0;
        for sector in into.chunks_mut(SECTOR_BYTES) {
            let end = place + sector.len() as u64;
            if self.inner.read(place, sector).is_err() {
                sector.fill(0);
                if !self.all.note(place..end) {
                    return Err(error);
                }
            } else {
                read += 1;
            }
            place = end;
        }
        tracing::debug!(at, read, "some of a disk cannot be read: {error}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of sevens with two bad places.
    struct Bad;

    impl Source for Bad {
        fn bytes(&self) -> u64 {
            1 << 20
        }

        fn extents(&self) -> Result<Vec<Range<u64>>> {
            Ok(std::iter::once(0..1 << 20).collect())
        }

        fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
            Ok(Box::new(Self))
        }
    }

    impl SourceReader for Bad {
        fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
            let end = at + into.len() as u64;
            if [5000, 70_000].iter().any(|bad| (at..end).contains(bad)) {
                let source = std::io::Error::from_raw_os_error(libc::EIO);
                return Err(keyframe_repo::Error::Io { action: "read", path: "disk".into(), source });
            }
            into.fill(7);
            Ok(())
        }
    }

    #[test]
    fn only_bad_sectors_are_missing_and_all_of_them_are_told() {
        let source = Tolerant::new(&Bad);
        let mut bytes = vec![1; 128 << 10];
        {
            let mut reader = source.reader().unwrap();
            let (low, high) = bytes.split_at_mut(64 << 10);
            // In any order, as several threads would.
            reader.read(64 << 10, high).unwrap();
            reader.read(0, low).unwrap();
        }
        let unreadable = source.unreadable();
        assert_eq!(unreadable, [4096..8192, 69_632..73_728]);
        for (at, byte) in bytes.iter().enumerate() {
            let missing = unreadable.iter().any(|range| range.contains(&(at as u64)));
            assert_eq!(*byte, if missing { 0 } else { 7 }, "at {at}");
        }
    }
}
