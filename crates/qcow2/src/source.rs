//! Where an image's bytes come from: a file, or memory in tests and fuzzing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result, io as io_error};
use crate::units::HostOffset;

/// Bytes at fixed places. Reading never moves anything, so one source serves many readers.
pub trait ReadAt {
    /// Reads at most `buf.len()` bytes at `at`; 0 only at or behind the end. May read less than asked.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<usize>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn byte_len(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<usize> {
        FileExt::read_at(self, buf, at.bytes())
    }

    /// Works for block devices too, whose metadata tells no length.
    fn byte_len(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<usize> {
        let rest = usize::try_from(at.bytes()).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = rest.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }

    fn byte_len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<usize> {
        self.as_slice().read_at(buf, at)
    }

    fn byte_len(&self) -> io::Result<u64> {
        self.as_slice().byte_len()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> io::Result<usize> {
        (**self).read_at(buf, at)
    }

    fn byte_len(&self) -> io::Result<u64> {
        (**self).byte_len()
    }
}

/// Opens a plain file or block device for reading, and nothing else: opening a pipe that a header names
/// would wait for its other end.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(io_error("open it"))?;
    let kind = file.metadata().map_err(io_error("read its metadata"))?.file_type();
    if kind.is_file() || kind.is_block_device() { Ok(file) } else { Err(Error::NotAFile) }
}

/// Reads until the buffer is full or the source ends; returns the number of bytes read.
pub(crate) fn read_up_to(source: &(impl ReadAt + ?Sized), buf: &mut [u8], at: HostOffset) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Some(here) = at.checked_add(done as u64) else { break };
        match source.read_at(rest, here) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read")(error)),
        }
    }
    Ok(done)
}

/// Reads exactly this much, or says that the file ends before.
pub(crate) fn read_exact(
    source: &(impl ReadAt + ?Sized),
    buf: &mut [u8],
    at: HostOffset,
    what: &'static str,
) -> Result<()> {
    let need_bytes = buf.len() as u64;
    if read_up_to(source, buf, at)? as u64 == need_bytes {
        return Ok(());
    }
    let file_bytes = source.byte_len().map_err(io_error("read the length of the file"))?;
    Err(Error::Truncated { what, at, need_bytes, file_bytes })
}
