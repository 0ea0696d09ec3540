//! Images to be stored: raw files, qcow2 chains, bytes in memory. What is a hole is known and never read.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_qcow2::{ChainReader, ExtentKind, Format, GuestOffset, Image, Layer};

use crate::error::{Error, Result};

/// An image that can be read by several threads.
pub trait Source: Sync {
    /// Its length in bytes.
    fn bytes(&self) -> u64;

    /// Where it may have other bytes than zeros: in order, not overlapping.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`].
    fn extents(&self) -> Result<Vec<Range<u64>>>;

    /// A reader for one thread.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`].
    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>>;
}

/// Reads an image.
pub trait SourceReader {
    /// Fills the buffer.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`]; [`Error::ImageShort`] where the image ends before.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()>;
}

/// Opens an image of either format.
///
/// # Errors
/// [`Error::Image`], [`Error::Io`].
pub fn open(path: &Path, format: Option<Format>) -> Result<Box<dyn Source>> {
    let image = |source| Error::Image { path: path.to_owned(), source: Box::new(source) };
    let format = format.map_or_else(|| keyframe_qcow2::probe(path), Ok).map_err(image)?;
    match format {
        Format::Raw => Ok(Box::new(RawSource::open(path)?)),
        Format::Qcow2 => Ok(Box::new(ChainSource::open(path)?)),
    }
}

/// A raw file or a block device.
#[derive(Debug)]
pub struct RawSource {
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
}

impl RawSource {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let trouble = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(trouble)?;
        let bytes = keyframe_qcow2::ReadAt::byte_len(&file).map_err(trouble)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), bytes })
    }
}

impl Source for RawSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn extents(&self) -> Result<Vec<Range<u64>>> {
        data_extents(&self.file, self.bytes).map_err(|source| Error::Io {
            action: "find the holes of",
            path: self.path.clone(),
            source,
        })
    }

    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(RawReader(self)))
    }
}

/// Where a file has data; all of it where the file system cannot tell.
fn data_extents(file: &File, bytes: u64) -> std::io::Result<Vec<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    let mut extents = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => return Ok(vec![Range { start: 0, end: bytes }]),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(bytes);
        if start >= end {
            break;
        }
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

struct RawReader<'a>(&'a RawSource);

impl SourceReader for RawReader<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        self.0.file.read_exact_at(into, at).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::ImageShort,
            _ => Error::Io { action: "read", path: self.0.path.clone(), source },
        })
    }
}

/// A qcow2 image with all that it hangs on.
#[derive(Debug)]
pub struct ChainSource {
    path: PathBuf,
    layers: Vec<Layer>,
    bytes: u64,
}

impl ChainSource {
    /// Opens the chain.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn open(path: &Path) -> Result<Self> {
        let layers = keyframe_qcow2::chain(path, Format::Qcow2);
        let layers = layers.map_err(|source| Error::Image { path: path.to_owned(), source: Box::new(source) })?;
        let bytes = layers.first().map_or(0, |layer| layer.virtual_size.bytes());
        Ok(Self { path: path.to_owned(), layers, bytes })
    }

    fn image_error(&self, source: keyframe_qcow2::Error) -> Error {
        Error::Image { path: self.path.clone(), source: Box::new(source) }
    }
}

impl Source for ChainSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn extents(&self) -> Result<Vec<Range<u64>>> {
        let mut extents = Vec::new();
        for layer in &self.layers {
            if layer.format() == Format::Raw {
                let raw = RawSource::open(&layer.path)?;
                extents.extend(raw.extents()?);
                continue;
            }
            let image = Image::open(&layer.path).map_err(|error| self.image_error(error))?;
            for extent in image.extents().map_err(|error| self.image_error(error))? {
                let extent = extent.map_err(|error| self.image_error(error))?;
                if extent.kind != ExtentKind::Zero {
                    extents.push(extent.start.bytes()..extent.end().bytes());
                }
            }
        }
        Ok(union(extents, self.bytes))
    }

    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        let reader = ChainReader::open(&self.layers).map_err(|error| self.image_error(error))?;
        Ok(Box::new(LayersReader { source: self, reader }))
    }
}

struct LayersReader<'a> {
    source: &'a ChainSource,
    reader: ChainReader,
}

impl SourceReader for LayersReader<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        self.reader.read_at(GuestOffset::new(at), into).map_err(|error| self.source.image_error(error))
    }
}

impl Source for [u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn extents(&self) -> Result<Vec<Range<u64>>> {
        Ok(union(vec![Range { start: 0, end: self.len() as u64 }], self.len() as u64))
    }

    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(self))
    }
}

impl SourceReader for &[u8] {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let part = start.checked_add(into.len()).and_then(|end| self.get(start..end));
        into.copy_from_slice(part.ok_or(Error::ImageShort)?);
        Ok(())
    }
}

/// The same extents in order, joined where they touch, within the image.
#[must_use]
pub fn union(mut extents: Vec<Range<u64>>, bytes: u64) -> Vec<Range<u64>> {
    extents.sort_by_key(|extent| extent.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(extents.len());
    for extent in extents {
        let extent = extent.start.min(bytes)..extent.end.min(bytes);
        match joined.last_mut() {
            _ if extent.is_empty() => {}
            Some(last) if extent.start <= last.end => last.end = last.end.max(extent.end),
            _ => joined.push(extent),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_joined_and_cut() {
        let all = union(vec![10..20, 0..5, 5..7, 15..30, 40..40, 90..200], 100);
        assert_eq!(all, [0..7, 10..30, 90..100]);
    }

    #[test]
    fn holes_of_raw_files_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(10 << 20).unwrap();
        file.as_file().write_all_at(&[1; 4096], 4 << 20).unwrap();
        let source = RawSource::open(file.path()).unwrap();
        let extents = source.extents().unwrap();
        assert!(extents.iter().any(|extent| extent.contains(&(4 << 20))));
        assert!(extents.iter().map(|extent| extent.end - extent.start).sum::<u64>() < 10 << 20);
        let mut buffer = [0; 4];
        source.reader().unwrap().read(4 << 20, &mut buffer).unwrap();
        assert_eq!(buffer, [1; 4]);
    }
}
