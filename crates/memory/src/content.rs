//! An image as the one file that it is, or would be if it shared no pages: for whoever stores it elsewhere.

use std::ops::Range;

use keyframe_vmstate::ExtentIndex;

use crate::{Error, MemoryImage};

impl MemoryImage {
    /// Length of the file, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.image().bytes
    }

    /// Where the file may have other bytes than zeros: in order, not overlapping, to 64 KiB.
    ///
    /// # Errors
    /// [`Error::Format`] for a layout that does not fit the file.
    pub fn content(&self) -> Result<Vec<Range<u64>>, Error> {
        let ranges = self.layout().non_page_ranges(self.image().bytes).map_err(|error| self.image().wrong(error))?;
        let mut content: Vec<Range<u64>> = ranges.into_iter().map(|(start, end)| start..end).collect();
        for (block, _) in self.ram().iter() {
            let Some(placed) = self.layout().get(block) else { continue };
            for extent in (0..).map_while(ExtentIndex::new) {
                let Some((offset, bytes)) = placed.extent(extent) else { break };
                if self.has_extent(block, extent) {
                    content.push(offset..offset + bytes as u64);
                }
            }
        }
        content.retain(|range| !range.is_empty());
        content.sort_by_key(|range| range.start);
        Ok(content)
    }

    /// Fills a buffer with the file's bytes from a place. They are compared with no sum: verify the image before, or
    /// whoever reads them again does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_content(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        self.read_pages(into, at)
    }
}
