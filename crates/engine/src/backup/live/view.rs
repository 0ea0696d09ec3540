//! A disk as it was when the filters came into place, as something that a repository stores.

use std::ops::Range;
use std::path::Path;

use keyframe_hypervisor::fleecing::{self, Fleece, Survey};
use keyframe_nbd::client::Client as Nbd;
use keyframe_repo::source::{Source, SourceReader, union};
use keyframe_types::DiskId;

use crate::error::Error;

use super::watch::Watch;

/// A disk as it was.
pub struct View<'a> {
    disk: &'a DiskId,
    fleece: &'a Fleece,
    /// The process's directory.
    dir: &'a Path,
    bytes: u64,
    /// Where it may have other bytes than zeros: in order. All else is never asked for.
    data: Vec<Range<u64>>,
    watch: &'a Watch,
}

impl<'a> View<'a> {
    /// A view that QEMU says `survey` of, over layers which have other bytes than zeros in `below`.
    pub fn new(
        (disk, fleece): (&'a DiskId, &'a Fleece),
        dir: &'a Path,
        survey: &Survey,
        below: &[Range<u64>],
        watch: &'a Watch,
    ) -> Self {
        let of_active = union(survey.of_active.clone(), survey.bytes);
        let own = common(&of_active, &survey.not_zero);
        let through = common(&outside(&of_active, survey.bytes), below);
        let data = union(own.into_iter().chain(through).collect(), survey.bytes);
        Self { disk, fleece, dir, bytes: survey.bytes, data, watch }
    }

    fn connect(&self) -> keyframe_repo::Result<Nbd> {
        fleecing::open(self.dir, self.fleece).map_err(|error| {
            self.watch.stop(self.broken(error.to_string()));
            self.trouble(std::io::Error::other(error))
        })
    }

    fn broken(&self, reason: String) -> Error {
        Error::ViewBroken { disk: self.disk.clone(), reason }
    }

    fn trouble(&self, source: std::io::Error) -> keyframe_repo::Error {
        keyframe_repo::Error::Io { action: "read", path: self.disk.as_str().into(), source }
    }
}

impl Source for View<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn extents(&self) -> keyframe_repo::Result<Vec<Range<u64>>> {
        Ok(self.data.clone())
    }

    fn reader(&self) -> keyframe_repo::Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(Reader { view: self, nbd: self.connect()? }))
    }
}

struct Reader<'a> {
    view: &'a View<'a>,
    nbd: Nbd,
}

impl SourceReader for Reader<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> keyframe_repo::Result<()> {
        let view = self.view;
        let asked = at..at + into.len() as u64;
        into.fill(0);
        let first = view.data.partition_point(|extent| extent.end <= asked.start);
        for extent in view.data.iter().skip(first).take_while(|extent| extent.start < asked.end) {
            let part = extent.start.max(asked.start)..extent.end.min(asked.end);
            let place = (part.start - at) as usize..(part.end - at) as usize;
            let Some(buffer) = into.get_mut(place) else { continue };
            view.watch.turn().map_err(|stopped| view.trouble(stopped))?;
            self.nbd.read(part.start, buffer).map_err(|error| {
                // What the host's disk cannot read is this disk's bad luck; all else is the end of the view. QEMU
                // answers reads of a broken one with another error than that.
                if !matches!(error, keyframe_nbd::Error::Request { errno, .. } if errno == libc::EIO as u32) {
                    view.watch.stop(view.broken(reason_of(&error)));
                }
                view.trouble(std::io::Error::other(error))
            })?;
        }
        Ok(())
    }
}

fn reason_of(error: &keyframe_nbd::Error) -> String {
    match error {
        keyframe_nbd::Error::Request { .. } => {
            "what the guest was going to overwrite could not be kept in time, or found \
             no more room in the scratch file"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// What is in both of two lists in order.
fn common(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut found, mut others) = (Vec::new(), other.iter().peekable());
    for extent in one {
        while let Some(next) = others.peek().filter(|next| next.start < extent.end) {
            let both = next.start.max(extent.start)..next.end.min(extent.end);
            if !both.is_empty() {
                found.push(both);
            }
            if next.end > extent.end {
                break;
            }
            others.next();
        }
    }
    found
}

/// What a list in order leaves of so many bytes.
fn outside(extents: &[Range<u64>], bytes: u64) -> Vec<Range<u64>> {
    let mut at = 0;
    let mut gaps = Vec::new();
    for extent in extents {
        gaps.extend((at < extent.start).then_some(at..extent.start));
        at = extent.end;
    }
    gaps.extend((at < bytes).then_some(at..bytes));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_meet() {
        let of = |pairs: &[(u64, u64)]| pairs.iter().map(|(start, end)| *start..*end).collect::<Vec<_>>();
        let (one, other) = (of(&[(0, 10), (20, 30), (40, 50)]), of(&[(5, 22), (25, 45), (60, 70)]));
        assert_eq!(common(&one, &other), of(&[(5, 10), (20, 22), (25, 30), (40, 45)]));
        assert_eq!(common(&other, &one), common(&one, &other));
        assert_eq!(common(&one, &[]), []);
        assert_eq!(outside(&one, 60), of(&[(10, 20), (30, 40), (50, 60)]));
        assert_eq!(outside(&[], 7), of(&[(0, 7)]));
        assert_eq!(outside(&of(&[(0, 7)]), 7), []);
    }
}
