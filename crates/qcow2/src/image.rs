//! An image opened for reading.

use std::fs::File;
use std::path::Path;

use crate::error::Result;
use crate::header::Header;
use crate::source::{ReadAt, open_file};

/// An image: its header, and where its bytes come from.
#[derive(Debug)]
pub struct Image<S = File> {
    source: S,
    header: Header,
}

impl Image<File> {
    /// Opens a file for reading and checks its header. No lock is taken: the caller knows that nobody
    /// writes to it.
    ///
    /// # Errors
    /// As [`Header::read`], within [`Error::Image`](crate::Error::Image).
    pub fn open(path: &Path) -> Result<Self> {
        open_file(path).and_then(Self::new).map_err(|error| error.of_image(path))
    }
}

impl<S: ReadAt> Image<S> {
    /// An image in these bytes.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn new(source: S) -> Result<Self> {
        let header = Header::read(&source)?;
        Ok(Self { source, header })
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its bytes.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.source
    }
}
