//! Images of one machine that share pages.
//!
//! A capture writes a whole image. When that is committed, [`share`] compares it with the image of an older snapshot, page by
//! page, and what both have is stored once from then on:
//!
//! * where the file system lets files share extents (xfs, btrfs), it is told to; both images stay whole.
//! * elsewhere the new image gets a map ([`keyframe_vmstate::shared`]) of the files in which those pages lie, and holes in
//!   their place. A map names the file that really has the page, so no image stands on a chain of others.
//!
//! ```text
//! map written, synced ─▶ memory.mapped renamed to memory.pages, synced ─▶ holes punched
//! └── whole ───────────────────────────────┘└── shared: read through the map ──────────
//! ```
//! At every instant the image is one or the other. The other name sees to it that nothing but Keyframe takes a file with
//! missing pages for an image. [`make_whole`] goes the way back, [`keep_for_others`] saves a file whose snapshot is
//! about to be deleted, and [`reclaim`] gives back the space of pages that nobody refers to any more.
//!
//! Everything here needs the machine's lock, and nothing here may be called for an image that somebody else has open as a
//! whole: holes would appear in it. Memory stays below 16 MiB for guests up to 16 GiB; beyond that, a few bits for each page more.

mod clone;
mod compare;
mod punch;
mod reclaim;
mod space;
mod survey;
mod whole;

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use keyframe_vmstate::shared::{SegmentId, SharedImage, SharedMap};

pub use reclaim::{Reclaimed, keep_for_others, reclaim};
pub use space::{ImageSpace, exclusive_bytes, freed_by, space};
pub use survey::{Faults, Torn, survey};
pub use whole::{export, make_whole, whole_bytes};

use crate::{Error, ImageStore, MemoryImage};
use clone::Cloned;
use compare::Common;

/// A step behind which files are in another state than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The map is on disk; the image is whole.
    MapWritten,
    /// The image has its new name and is read through its map.
    Renamed,
    /// Pages that lie elsewhere are holes.
    Punched,
    /// The file of a snapshot that others refer to has its second name.
    Kept,
    /// A whole image is written beside the shared one.
    WholeWritten,
    /// It has its name: the image is whole.
    WholeNamed,
    /// The map is gone.
    MapRemoved,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::MapWritten,
        Self::Renamed,
        Self::Punched,
        Self::Kept,
        Self::WholeWritten,
        Self::WholeNamed,
        Self::MapRemoved,
    ];
}

/// Called behind each step; an error ends the operation there, as a crash would.
pub type Steps<'a> = &'a (dyn Fn(Step) -> Result<(), Error> + Sync);

/// Why an image was left whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Its memory is laid out in another way than the older one's.
    OtherLayout,
    /// Too little is the same.
    TooDifferent,
    /// The file system can neither share extents nor punch holes.
    NoWay,
    /// It is not whole any more.
    Already,
}

/// How pages came to be stored once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By a map: the image is [`crate::Keeping::Shared`] now.
    Mapped,
    /// By the file system: the image is still whole.
    Extents,
}

/// What came of [`share`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing was changed.
    Left(Left),
    /// Pages are stored once.
    Shared(SharingReport),
}

/// What a sharing achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharingReport {
    /// In which way.
    pub how: How,
    /// Pages that the image holds.
    pub held_pages: u64,
    /// Of these, pages that lie in older snapshots' files.
    pub shared_pages: u64,
    /// In how many runs.
    pub runs: usize,
    /// In how many files.
    pub segments: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// Stores pages of the image `id` once that the image `older` has at the same place.
///
/// # Errors
/// [`Error::Cancelled`], and what reading either image or changing files may meet. The image is complete in any case.
pub fn share(
    store: &ImageStore,
    id: SegmentId,
    older: SegmentId,
    cancel: &AtomicBool,
    steps: Steps<'_>,
) -> Result<Sharing, Error> {
    let begun = Instant::now();
    let new = match MemoryImage::open(&store.mapped(id), &store.sums(id)) {
        Err(error) if error.is_missing(&store.mapped(id)) => return Ok(Sharing::Left(Left::Already)),
        other => other?,
    };
    let old = store.open(older)?;
    if new.layout().blocks() != old.layout().blocks() {
        return Ok(Sharing::Left(Left::OtherLayout));
    }
    if !compare::survey(&new, &old, cancel)?.is_worthwhile() {
        return Ok(Sharing::Left(Left::TooDifferent));
    }
    let common = compare::compare(&new, &old, older, cancel)?;
    if common.runs.is_empty() {
        return Ok(Sharing::Left(Left::TooDifferent));
    }
    let report = |how, common: &Common| SharingReport {
        how,
        held_pages: common.held,
        shared_pages: common.pages(),
        runs: common.runs.len(),
        segments: common.segments.len(),
        elapsed: begun.elapsed(),
    };
    let report = match clone::clone_common(store, id, (&new, &old), common, cancel, steps)? {
        Cloned::Done(common) => report(How::Extents, &common),
        Cloned::Unsupported(_) if !punch::is_possible(&store.unfinished_map(id))? => {
            return Ok(Sharing::Left(Left::NoWay));
        }
        Cloned::Unsupported(common) => {
            drop(old);
            let report = report(How::Mapped, &common);
            refer(store, id, &new, common, cancel, steps)?;
            report
        }
    };
    Ok(Sharing::Shared(SharingReport { elapsed: begun.elapsed(), ..report }))
}

/// Writes the map and gives up the pages.
fn refer(
    store: &ImageStore,
    id: SegmentId,
    new: &MemoryImage,
    common: Common,
    cancel: &AtomicBool,
    steps: Steps<'_>,
) -> Result<(), Error> {
    let of = SharedImage {
        image_bytes: new.mapped().file_bytes(),
        own_pages: common.held - common.pages(),
        image: new.header().digest(),
    };
    let (map_path, dir) = (store.map(id), store.dir(id));
    let wrong = |source| Error::Format { path: map_path.clone(), source };
    let map = SharedMap::new(of, &common.segments, common.runs).map_err(wrong)?;
    write_durably(&map_path, &store.unfinished_map(id), &map.to_bytes())?;
    drop(map);
    steps(Step::MapWritten)?;
    rename(&store.mapped(id), &store.pages(id))?;
    sync_dir(&dir)?;
    steps(Step::Renamed)?;
    // Nothing is given up before it is seen to be there under its new name.
    let image = store.open_shared(id).or_else(|error| {
        rename(&store.pages(id), &store.mapped(id))?;
        sync_dir(&dir)?;
        remove(&map_path)?;
        Err(error)
    })?;
    punch::own_file(&image, &[], cancel)?;
    steps(Step::Punched)
}

/// Writes a file that is there as a whole or not at all.
fn write_durably(path: &Path, unfinished: &Path, bytes: &[u8]) -> Result<(), Error> {
    remove(unfinished)?;
    let mut file = crate::create_private(unfinished).map_err(Error::io("create", unfinished))?;
    file.write_all(bytes).map_err(Error::io("write", unfinished))?;
    file.sync_all().map_err(Error::io("sync", unfinished))?;
    rename(unfinished, path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(Error::io("rename", from))
}

/// Removes a file; nothing happens when there is none.
fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", path)),
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("make durable", dir))
}
