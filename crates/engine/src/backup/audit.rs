//! Reading again a sample of what change tracking calls unchanged.

use std::ops::Range;
use std::sync::Arc;

use keyframe_repo::index::{Hooks, Index};
use keyframe_repo::source::Source;
use keyframe_repo::{ImageReader, Point, Repository, Run};
use keyframe_types::{ByteLen, SnapshotId};

use crate::error::Error;

/// What is read and compared at once.
const PIECE_BYTES: u64 = 1 << 20;
/// What the reader keeps: little, since every place is read once.
const CACHE_BYTES: usize = 8 << 20;

/// Compares disks with a point.
pub struct Auditor<'a> {
    repository: &'a Arc<Repository>,
    index: Arc<Index>,
    point: &'a Point,
    percent: u8,
}

/// What an audit of a disk came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audited {
    /// What was read again.
    pub read: ByteLen,
    /// Where it first differs, in bytes from the disk's beginning.
    pub differs_at: Option<u64>,
    /// Nothing can be told: something could not be read.
    pub failed: bool,
}

impl<'a> Auditor<'a> {
    /// Compares so many percent with this point.
    ///
    /// # Errors
    /// [`Error::Repository`]: without the right to read pages, too.
    pub fn new(repository: &'a Arc<Repository>, point: &'a Point, percent: u8) -> Result<Self, Error> {
        let index = Arc::new(repository.index(Hooks::Skip)?);
        Ok(Self { repository, index, point, percent })
    }

    /// Compares a sample of what is outside `changed`, another one each time.
    ///
    /// # Errors
    /// [`Error::Repository`], [`Error::Interrupted`].
    pub fn audit(
        &self,
        label: &str,
        source: &dyn Source,
        changed: &[Range<u64>],
        run: Run<'_>,
    ) -> Result<Audited, Error> {
        let mut audited = Audited { read: ByteLen::ZERO, differs_at: None, failed: false };
        let Some(image) = self.point.images.iter().find(|image| image.label == label) else { return Ok(audited) };
        let stored =
            ImageReader::new(Arc::clone(self.repository), Arc::clone(&self.index), image.clone(), CACHE_BYTES)?;
        let mut reader = source.reader()?;
        let bytes = image.bytes.min(source.bytes());
        let seed = SnapshotId::random();
        let (mut now, mut then) = (vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]);
        run.progress.step(&format!("auditing {label}"));
        for (number, at) in (0..bytes).step_by(PIECE_BYTES as usize).enumerate() {
            let end = (at + PIECE_BYTES).min(bytes);
            if !is_chosen(seed.as_str(), number, self.percent)
                || changed.iter().any(|range| range.start < end && range.end > at)
            {
                continue;
            }
            if run.cancel.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let len = (end - at) as usize;
            let (Some(now), Some(then)) = (now.get_mut(..len), then.get_mut(..len)) else { continue };
            reader.read(at, now)?;
            stored.read_at(at, then)?;
            audited.read = audited.read + ByteLen::from_bytes(end - at);
            if now != then {
                let within = now.iter().zip(then.iter()).position(|(now, then)| now != then).unwrap_or(0);
                audited.differs_at = Some(at + within as u64);
                break;
            }
        }
        Ok(audited)
    }
}

fn is_chosen(seed: &str, number: usize, percent: u8) -> bool {
    let hash = blake3::hash(format!("{seed} {number}").as_bytes());
    hash.as_bytes().first_chunk().is_some_and(|first| u32::from_le_bytes(*first) % 100 < u32::from(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_so_many_are_chosen_and_others_each_time() {
        let chosen =
            |seed: &str, percent| (0..10_000).filter(|&number| is_chosen(seed, number, percent)).collect::<Vec<_>>();
        assert_eq!(chosen("a", 100).len(), 10_000);
        assert_eq!(chosen("a", 0).len(), 0);
        assert!((300..700).contains(&chosen("a", 5).len()));
        assert_ne!(chosen("a", 5), chosen("b", 5));
    }
}
