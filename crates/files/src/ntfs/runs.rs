//! Where an attribute's clusters are: runs, each as the distance from the one before.

use crate::bytes::Fields as _;
use crate::error::{Result, damaged};

/// Runs of one attribute; more than this is nobody's.
const RUNS_MOST: usize = 1 << 20;

/// Clusters that follow each other: how many, and the first on the disk; nowhere for zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub count: u64,
    pub at: Option<u64>,
}

/// All of them, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs(pub Vec<Run>);

impl Runs {
    pub(super) fn parse(raw: &[u8]) -> Result<Self> {
        let (mut at, mut here, mut runs) = (0, 0i64, Vec::new());
        while let head @ 1.. = raw.u8(at)? {
            let (len_bytes, place_bytes) = (usize::from(head & 15), usize::from(head >> 4));
            if len_bytes == 0 || len_bytes > 8 || place_bytes > 8 {
                return Err(damaged("an NTFS run"));
            }
            let count = signed(raw.part(at + 1, len_bytes)?);
            let step = signed(raw.part(at + 1 + len_bytes, place_bytes)?);
            at += 1 + len_bytes + place_bytes;
            let count = u64::try_from(count).map_err(|_| damaged("an NTFS run of less than nothing"))?;
            let place = if place_bytes == 0 {
                None
            } else {
                here = here.checked_add(step).ok_or_else(|| damaged("an NTFS run"))?;
                Some(u64::try_from(here).map_err(|_| damaged("an NTFS run lies before the disk"))?)
            };
            runs.push(Run { count, at: place });
        }
        Ok(Self(runs))
    }

    /// Adds what follows.
    pub(super) fn extend(&mut self, more: Self) -> Result<()> {
        self.0.extend(more.0);
        if self.0.len() > RUNS_MOST { Err(damaged("an NTFS file is in too many pieces")) } else { Ok(()) }
    }

    /// How many clusters.
    pub(super) fn clusters(&self) -> u64 {
        self.0.iter().fold(0, |sum, run| sum.saturating_add(run.count))
    }
}

fn signed(bytes: &[u8]) -> i64 {
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    if bytes.is_empty() { 0 } else { i64::from_le_bytes(wide) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_go_forth_back_and_nowhere() {
        let runs = Runs::parse(&[0x21, 0x18, 0x34, 0x56, 0x01, 0x10, 0x11, 0x08, 0xf0, 0]).unwrap();
        let run = |count, at| Run { count, at };
        assert_eq!(runs.0, [run(0x18, Some(0x5634)), run(0x10, None), run(8, Some(0x5624))]);
        assert!(Runs::parse(&[0x21, 0x18]).is_err() && Runs::parse(&[0x11, 1, 0x80, 0]).is_err());
    }
}
