//! The files that hold pages of a shared image besides its own, opened.

use std::path::{Path, PathBuf};

use keyframe_vmstate::shared::{SegmentId, SharedMap};
use keyframe_vmstate::sums::SumsHeader;

use crate::source::Source;

/// A map and the files of its segments, in the map's order.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    path: PathBuf,
    map: SharedMap,
    files: Vec<Source>,
}

impl Elsewhere {
    /// The map that was read from `path`; one file for each of its segments.
    pub fn new(path: &Path, map: SharedMap, files: Vec<Source>) -> Self {
        Self { path: path.to_owned(), map, files }
    }

    /// Where the map was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn map(&self) -> &SharedMap {
        &self.map
    }

    /// The file of a segment.
    pub fn file(&self, segment: usize) -> Option<&Source> {
        self.files.get(segment)
    }

    /// The segments with their files.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentId, &Source)> {
        self.map.header().segments.iter().map(|segment| segment.id).zip(&self.files)
    }

    /// Whether the map is of the image with these sums.
    pub fn is_of(&self, sums: &SumsHeader) -> bool {
        let header = self.map.header();
        header.image == sums.digest() && header.image_bytes == sums.image_bytes
    }
}
