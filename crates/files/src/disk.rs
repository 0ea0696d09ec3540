//! Disks, and disks that are parts of others.

use std::sync::Arc;

use crate::error::{Error, Result, damaged};

/// Bytes that can be read anywhere. Nothing is ever written.
pub trait Disk: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills the buffer from this byte on: all of it, or an error, and then nothing in it may be used.
    ///
    /// # Errors
    /// [`Error::Damaged`] behind the end, since only damage makes anybody ask for that; [`Error::Disk`].
    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()>;
}

impl Disk for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at).map_err(|_| behind_end())?;
        let end = start.checked_add(into.len()).ok_or_else(behind_end)?;
        into.copy_from_slice(self.get(start..end).ok_or_else(behind_end)?);
        Ok(())
    }
}

/// A file, for tests and tools.
impl Disk for std::fs::File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let end = at.saturating_add(into.len() as u64);
        let trouble = |error: std::io::Error| Error::Disk { disk: "file".into(), at, end, reason: error.to_string() };
        self.read_exact_at(into, at).map_err(trouble)
    }
}

/// Nobody asks for what is behind a disk's end unless something on it says so.
pub(crate) fn behind_end() -> Error {
    damaged("something lies behind the end of the disk")
}

/// Bytes of a disk, in a vector of its own.
pub(crate) fn read_vec(disk: &dyn Disk, at: u64, len: usize) -> Result<Vec<u8>> {
    // Asked before memory is taken: a length that nobody vouches for.
    if at.checked_add(len as u64).is_none_or(|end| end > disk.len()) {
        return Err(behind_end());
    }
    let mut bytes = vec![0; len];
    disk.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// A contiguous part of a disk.
pub struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
}

impl Window {
    /// The part from `start` on; as much of it as there is.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, start: u64, len: u64) -> Self {
        let len = len.min(disk.len().saturating_sub(start));
        Self { disk, start, len }
    }
}

impl Disk for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.len) {
            return Err(behind_end());
        }
        self.disk.read_at(self.start + at, into)
    }
}

/// A piece of a [`Pieced`] disk: so many bytes, found there.
#[derive(Clone)]
pub struct Piece {
    /// Which disk.
    pub disk: Arc<dyn Disk>,
    /// Where on it.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

/// A disk put together of pieces of others, one after the other.
pub struct Pieced {
    /// Where each begins, and it.
    pieces: Vec<(u64, Piece)>,
    len: u64,
}

impl Pieced {
    /// Puts pieces together.
    ///
    /// # Errors
    /// [`Error::Damaged`] when they are longer than any disk.
    pub fn new(pieces: Vec<Piece>) -> Result<Self> {
        let mut len = 0u64;
        let mut placed = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let start = len;
            len = len.checked_add(piece.len).ok_or_else(|| damaged("a volume is longer than any disk"))?;
            placed.push((start, piece));
        }
        Ok(Self { pieces: placed, len })
    }
}

impl Disk for Pieced {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let here = at.checked_add(done as u64).ok_or_else(behind_end)?;
            let n = self.pieces.partition_point(|(start, piece)| start + piece.len <= here);
            let (start, piece) = self.pieces.get(n).ok_or_else(behind_end)?;
            let within = here - start;
            let rest = into.get_mut(done..).unwrap_or_default();
            let len = usize::try_from(piece.len - within).unwrap_or(usize::MAX).min(rest.len());
            let place = piece.start.checked_add(within).ok_or_else(behind_end)?;
            piece.disk.read_at(place, rest.get_mut(..len).unwrap_or_default())?;
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_across_their_borders_and_not_behind_the_end() {
        let disk: Arc<dyn Disk> = Arc::new((0..100u8).collect::<Vec<u8>>());
        let piece = |start, len| Piece { disk: Arc::clone(&disk), start, len };
        let pieced = Pieced::new(vec![piece(50, 4), piece(0, 0), piece(10, 6)]).unwrap();
        let mut buf = [0; 8];
        pieced.read_at(1, &mut buf).unwrap();
        assert_eq!(buf, [51, 52, 53, 10, 11, 12, 13, 14]);
        assert!(pieced.read_at(3, &mut buf).is_err());
        let window = Window::new(disk, 90, 100);
        assert_eq!(window.len(), 10);
        assert!(window.read_at(3, &mut buf).is_err() && window.read_at(2, &mut buf).is_ok());
    }
}
