//! Where batches go: the image file, opened twice, and the sums.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use keyframe_vmstate::mapped::MappedLayout;
use keyframe_vmstate::sums::{PagePlace, PageValue, SumsHeader};
use keyframe_vmstate::{PAGE_SIZE, PageCount, PageIndex};
use rustix::fs::{OFlags, fstatvfs};

use super::ImagePaths;
use super::batch::{Batch, Kind, Run};
use super::progress::{CaptureProgress, DirectIo};
use super::sums::SumTable;
use crate::Error;

/// The fresh files of an image.
#[derive(Debug)]
pub(super) struct Files {
    pub path: PathBuf,
    /// Through the page cache: headers, bitmaps, device state.
    pub cached: File,
    /// Round it: pages. `Err` tells why not.
    direct: Result<File, io::Error>,
    /// Set when direct I/O was refused at the first write.
    refused: OnceLock<io::Error>,
    pub sums: File,
    pub sums_path: PathBuf,
}

impl Files {
    /// Creates both files; neither may exist.
    pub fn create(paths: &ImagePaths) -> Result<Self, Error> {
        let create = |path: &Path| {
            let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
            opened.map_err(Error::io("create", path))
        };
        let (cached, sums) = (create(&paths.mapped)?, create(&paths.sums)?);
        let flags = OFlags::DIRECT.bits().cast_signed();
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(&paths.mapped);
        let (path, sums_path) = (paths.mapped.clone(), paths.sums.clone());
        Ok(Self { path, cached, direct, refused: OnceLock::new(), sums, sums_path })
    }

    /// Writes pages. A file system that refuses direct I/O gets them through the page cache.
    fn write_pages(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Ok(direct) if self.refused.get().is_none() => {
                match direct.write_all_at(bytes, offset) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        // Two writers may find out at once; one reason is enough.
                        let _ = self.refused.set(error);
                        self.cached.write_all_at(bytes, offset)
                    }
                    written => written,
                }
            }
            _ => self.cached.write_all_at(bytes, offset),
        }
    }

    /// Whether direct I/O was possible.
    pub fn direct_io(self) -> DirectIo {
        match (self.direct, self.refused.into_inner()) {
            (Err(error), _) | (_, Some(error)) => DirectIo::Refused(error),
            (Ok(_), None) => DirectIo::Used,
        }
    }
}

/// Everything a writer needs. Shared by all of them.
#[derive(Debug)]
pub(super) struct Target<'p> {
    pub files: Files,
    pub layout: MappedLayout,
    pub sums: SumTable,
    pub progress: &'p CaptureProgress,
}

impl Target<'_> {
    /// Hashes and writes a batch.
    pub fn write(&self, batch: &Batch) -> Result<(), Error> {
        for (run, bytes) in batch.runs() {
            let Some(block) = self.layout.get(run.block) else {
                continue;
            };
            match run.kind {
                Kind::Zero => self.zeroes(run, block.block().pages())?,
                Kind::Data => {
                    self.hash(run, block.block().pages(), bytes)?;
                    let offset = block.pages_offset() + run.first.byte_offset();
                    let written = self.files.write_pages(bytes, offset);
                    written.map_err(|source| self.write_error(source))?;
                    self.progress.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Sums of a run: whole extents in one piece, the rest page by page.
    fn hash(&self, run: Run, pages: PageCount, bytes: &[u8]) -> Result<(), Error> {
        let mut whole: Option<(u64, Vec<u8>)> = None;
        for part in parts(run, pages) {
            let from = (part.first.get() - run.first.get()) as usize * PAGE_SIZE;
            let part_bytes = bytes.get(from..from + part.count * PAGE_SIZE).unwrap_or_default();
            if part.is_whole {
                let Some(ordinal) = self.ordinal(run, &part) else {
                    continue;
                };
                let sums = &mut whole.get_or_insert_with(|| (ordinal, Vec::new())).1;
                sums.extend(blake3::hash(part_bytes).as_bytes());
            } else {
                self.flush(&mut whole)?;
                let (pages_of, _) = part_bytes.as_chunks::<PAGE_SIZE>();
                self.partial(run, pages, &part, |place, n| {
                    pages_of.get(n).map_or_else(|| place.zero_value(), |page| place.value(page))
                })?;
            }
        }
        self.flush(&mut whole)
    }

    /// Zeroes matter only to extents that have other pages; a whole extent of them is the default.
    fn zeroes(&self, run: Run, pages: PageCount) -> Result<(), Error> {
        for part in parts(run, pages).filter(|part| !part.is_whole) {
            self.partial(run, pages, &part, |place, _| place.zero_value())?;
        }
        Ok(())
    }

    fn partial(
        &self,
        run: Run,
        pages: PageCount,
        part: &Part,
        value: impl Fn(PagePlace, usize) -> PageValue,
    ) -> Result<(), Error> {
        let values: Vec<_> = (0..part.count)
            .filter_map(|n| {
                let place = PagePlace::new(pages, part.first.checked_add(n as u64)?)?;
                Some((place, value(place, n)))
            })
            .collect();
        let Some(ordinal) = self.ordinal(run, part) else {
            return Ok(());
        };
        match self.sums.insert(ordinal, &values) {
            Some(sum) => self.write_sums(ordinal, sum.as_bytes()),
            None => Ok(()),
        }
    }

    fn ordinal(&self, run: Run, part: &Part) -> Option<u64> {
        self.layout.ram().extent_ordinal(run.block, part.first.extent())
    }

    fn flush(&self, whole: &mut Option<(u64, Vec<u8>)>) -> Result<(), Error> {
        whole.take().map_or(Ok(()), |(ordinal, sums)| self.write_sums(ordinal, &sums))
    }

    fn write_sums(&self, first_ordinal: u64, sums: &[u8]) -> Result<(), Error> {
        let offset = SumsHeader::sum_offset(self.layout.ram(), first_ordinal);
        self.files.sums.write_all_at(sums, offset).map_err(|source| self.write_error(source))
    }

    /// A full disk is worth its own message: how much there is and how much may still come.
    pub fn write_error(&self, source: io::Error) -> Error {
        let path = self.files.path.clone();
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if !full.contains(&source.kind()) {
            return Error::Io { action: "write", path, source };
        }
        let written_bytes = self.progress.written_bytes.load(Ordering::Relaxed);
        let seen_bytes = self.progress.seen_bytes.load(Ordering::Relaxed);
        let free_bytes = fstatvfs(&self.files.cached).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let missing_bytes = self.layout.ram().total_bytes().saturating_sub(seen_bytes);
        Error::NoSpace { path, written_bytes, missing_bytes, free_bytes, source }
    }
}

/// The part of a run that lies in one extent.
struct Part {
    first: PageIndex,
    count: usize,
    is_whole: bool,
}

fn parts(run: Run, pages: PageCount) -> impl Iterator<Item = Part> {
    let mut left = run.count;
    let mut at = Some(run.first);
    std::iter::from_fn(move || {
        let first = at.filter(|_| left > 0)?;
        let in_extent = pages.pages_in_extent(first.extent());
        let count = in_extent.saturating_sub(first.within_extent()).min(left as usize);
        left -= count as u64;
        at = first.checked_add(count as u64).filter(|_| count > 0);
        Some(Part { first, count, is_whole: count == in_extent })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyframe_vmstate::BlockIndex;

    #[test]
    fn a_run_is_cut_at_extents() {
        let page = |n| PageIndex::new(n).expect("small");
        let block = BlockIndex::new(0).expect("small");
        let run = Run { kind: Kind::Data, block, first: page(14), count: 24 };
        let cut = |pages| {
            let pages = PageCount::new(pages).expect("small");
            let parts = parts(run, pages);
            parts.map(|part| (part.first.get(), part.count, part.is_whole)).collect::<Vec<_>>()
        };
        assert_eq!(cut(100), [(14, 2, false), (16, 16, true), (32, 6, false)]);
        assert_eq!(cut(38), [(14, 2, false), (16, 16, true), (32, 6, true)]);
    }
}
