//! Whether the files of a machine's memory images are all there, and only those: structure, without reading a page.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::{SegmentId, SharedMap};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::reclaim::{leftovers, readers_of};
use crate::store::exists;
use crate::{Error, ImageStore};

/// Pages that a map says are in another file, and that file does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The image that needs them.
    pub reader: SegmentId,
    /// The file that should have them; the first of its names when it has none.
    pub file: PathBuf,
    /// How many.
    pub pages: u64,
}

/// What is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Files of deleted snapshots that no image refers to, and what interrupted operations left: [`super::reclaim`] removes them.
    pub orphans: Vec<PathBuf>,
    /// Files among those of deleted snapshots that have no such name.
    pub strangers: Vec<PathBuf>,
    /// Pages that are missing.
    pub torn: Vec<Torn>,
}

/// Looks at all files of a machine's images. Maps that cannot be read are passed over, as whoever opens their images is told; what
/// they may need is then no orphan.
///
/// # Errors
/// [`Error::Io`].
pub fn survey(store: &ImageStore) -> Result<Faults, Error> {
    let mut faults = Faults::default();
    let mut maps: BTreeMap<SegmentId, SharedMap> = BTreeMap::new();
    let mut all_read = true;
    for id in store.snapshots()? {
        for path in leftovers(store, id)? {
            faults.orphans.extend(exists(&path)?.then_some(path));
        }
        if exists(&store.mapped(id))? || !exists(&store.map(id))? {
            continue;
        }
        match store.read_map(id) {
            Ok(map) => drop(maps.insert(id, map)),
            Err(Error::Format { .. }) => all_read = false,
            Err(other) => return Err(other),
        }
    }
    let headers = maps.iter().map(|(id, map)| (*id, map.header().clone())).collect();
    for id in store.kept_files()? {
        let unfinished = exists(&store.mapped(id))? || exists(&store.pages(id))?;
        if all_read && !unfinished && readers_of(&headers, id).next().is_none() {
            faults.orphans.push(store.kept(id));
        }
    }
    faults.strangers = strangers(store)?;
    let mut data: BTreeMap<SegmentId, (PathBuf, Vec<Range<u64>>)> = BTreeMap::new();
    for (reader, map) in &maps {
        for (number, segment) in map.header().segments.iter().enumerate() {
            let (file, held) = match data.entry(segment.id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(pages_of(store, segment.id)?),
            };
            let runs = map.runs().iter().filter(|run| run.segment as usize == number);
            let pages = runs.map(|run| missing(held, run.first, run.end())).sum();
            if pages > 0 {
                faults.torn.push(Torn { reader: *reader, file: file.clone(), pages });
            }
        }
    }
    Ok(faults)
}

fn strangers(store: &ImageStore) -> Result<Vec<PathBuf>, Error> {
    let dir = store.kept_dir();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let known = store.kept_files()?;
    let mut strangers = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", dir))?.path();
        if !known.iter().any(|id| store.kept(*id) == path) {
            strangers.push(path);
        }
    }
    Ok(strangers)
}

/// The file of a snapshot, under whichever name it has, and the pages that it has data of.
fn pages_of(store: &ImageStore, id: SegmentId) -> Result<(PathBuf, Vec<Range<u64>>), Error> {
    for path in [store.mapped(id), store.pages(id), store.kept(id)] {
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                let file = other.map_err(Error::io("open", &path))?;
                let held = data_of(&file, &path)?;
                return Ok((path, held));
            }
        }
    }
    Ok((store.kept(id), Vec::new()))
}

/// Parts of a file that are no holes, in whole pages.
fn data_of(file: &File, path: &Path) -> Result<Vec<Range<u64>>, Error> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let failed = |errno: Errno| Error::io("look for holes in", path)(errno.into());
    let (mut held, mut at) = (Vec::new(), 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(held),
            start => start.map_err(failed)?,
        };
        at = seek(file, SeekFrom::Hole(start)).map_err(failed)?;
        held.push(start / PAGE..at / PAGE);
    }
}

/// How many pages of a run are in none of the parts, which are in order.
fn missing(held: &[Range<u64>], first: u64, end: u64) -> u64 {
    let from = held.partition_point(|part| part.end <= first);
    let parts = held.get(from..).unwrap_or_default().iter().take_while(|part| part.start < end);
    let there: u64 = parts.map(|part| part.end.min(end) - part.start.max(first)).sum();
    end - first - there
}

#[test]
fn what_is_missing_of_a_run_is_counted() {
    let held = [2..4, 6..10];
    for (first, end, expected) in [(2, 4, 0), (0, 3, 2), (3, 7, 2), (6, 10, 0), (9, 12, 2), (20, 21, 1), (4, 6, 2)] {
        assert_eq!(missing(&held, first, end), expected, "{first}..{end}");
    }
}
