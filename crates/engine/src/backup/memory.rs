//! A memory image as something that a repository stores.

use std::ops::Range;

use keyframe_memory::MemoryImage;
use keyframe_repo::source::{Source, SourceReader};
use keyframe_repo::{Error, Result};

/// A snapshot's memory, wherever its pages lie.
#[derive(Debug)]
pub struct MemorySource(pub MemoryImage);

fn trouble(image: &MemoryImage, error: keyframe_memory::Error) -> Error {
    Error::Io { action: "read", path: image.path().to_owned(), source: std::io::Error::other(error) }
}

impl Source for MemorySource {
    fn bytes(&self) -> u64 {
        self.0.content_bytes()
    }

    fn extents(&self) -> Result<Vec<Range<u64>>> {
        self.0.content().map_err(|error| trouble(&self.0, error))
    }

    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(Reader(&self.0)))
    }
}

struct Reader<'a>(&'a MemoryImage);

impl SourceReader for Reader<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        self.0.read_content(at, into).map_err(|error| trouble(self.0, error))
    }
}
