//! What a server shows.

use std::io;
use std::ops::Range;

/// What a part of an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// It has bytes of its own.
    Data,
    /// It is zeros.
    Zero,
    /// It was never there: it is read as zeros, and whoever copies the export into an image that stands on nothing leaves it out.
    /// QEMU's `block-stream` does; it would read and note every zero otherwise.
    Absent,
}

/// A part of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes, never 0.
    pub len: u64,
    /// What it is.
    pub allocation: Allocation,
}

/// Bytes that a server shows. Calls come from several threads at once.
pub trait Export: Send + Sync {
    /// Length in bytes; it does not change.
    fn bytes(&self) -> u64;

    /// Fills a buffer from a place; both are within the export. An error is the reader's error: it is told as `EIO` with
    /// its words, and never as zeros.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// What a range, which is within the export and not empty, is made of: one extent at least, from its beginning, and
    /// as many further ones as are cheap to tell. The last one may reach behind the range, not behind the export.
    ///
    /// # Errors
    /// Why it cannot be told.
    fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>>;

    /// The range will be read soon.
    fn will_need(&self, range: Range<u64>);
}
