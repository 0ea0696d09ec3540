//! Files of snapshots that others refer to: kept when the snapshot goes, given back when nobody needs them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::{SegmentId, SharedHeader, SharedMap, SharedRun};

use super::punch::{self, FilePages};
use super::{Step, Steps, remove, sync_dir};
use crate::store::exists;
use crate::{Error, ImageStore};

/// Bytes that a shared image's own file may take besides its pages, headers and device state, before it is looked at whether
/// holes are missing.
const SLACK_BYTES: u64 = 4 << 20;

/// What [`reclaim`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes on disk that are free now.
    pub freed_bytes: u64,
    /// Files of deleted snapshots that are gone.
    pub files_removed: usize,
}

/// Saves the file of a snapshot that is about to go, if others refer to it or a map cannot be read and may: it gets a
/// second name. To be called before the snapshot's commit point of deletion, and again by whoever finishes that.
///
/// # Errors
/// [`Error::Io`]: the snapshot must not go then.
pub fn keep_for_others(store: &ImageStore, id: SegmentId, steps: Steps<'_>) -> Result<(), Error> {
    let is_needed = match store.headers_but(Some(id)) {
        Err(Error::Format { .. }) => true,
        others => others?.values().any(|header| header.refers_to(id)),
    };
    if is_needed {
        let (kept, dir) = (store.kept(id), store.kept_dir());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(Error::io("create", dir))?;
        sync_dir(dir.parent().unwrap_or(dir))?;
        for path in [store.mapped(id), store.pages(id)] {
            match std::fs::hard_link(&path, &kept) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Somebody began this before.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => break,
                other => {
                    other.map_err(Error::io("keep the memory of a snapshot as", &kept))?;
                    break;
                }
            }
        }
        sync_dir(dir)?;
    }
    steps(Step::Kept)
}

/// Gives back what nobody needs: files of deleted snapshots, or their pages, that no map refers to; pages that were to be
/// holes already when a sharing was interrupted; what an interrupted operation left.
///
/// Nobody may be reading a shared image of this machine that was made whole, or deleted, while they read: the map that they
/// go by is not counted any more.
///
/// # Errors
/// [`Error::Format`] when a map cannot be read: then nothing is given back. [`Error::Cancelled`], [`Error::Io`].
pub fn reclaim(store: &ImageStore, cancel: &AtomicBool) -> Result<Reclaimed, Error> {
    let mut reclaimed = Reclaimed::default();
    for id in store.snapshots()? {
        drop_leftovers(store, id)?;
    }
    let headers = store.headers()?;
    for id in store.kept_files()? {
        // While the snapshot's own directory has the file, its deletion is not finished.
        if exists(&store.mapped(id))? || exists(&store.pages(id))? {
            continue;
        }
        let path = store.kept(id);
        let before = allocated(&path)?;
        let readers: Vec<_> = readers_of(&headers, id).collect();
        if readers.is_empty() {
            remove(&path)?;
            sync_dir(store.kept_dir())?;
            reclaimed.files_removed += 1;
            reclaimed.freed_bytes += before;
        } else {
            let bytes = std::fs::metadata(&path).map_err(Error::io("look at", &path))?.len();
            let needed = needed_pages(store, &readers, id, bytes)?;
            needed.punch_others(&path, 0, bytes.div_ceil(PAGE_SIZE as u64), cancel)?;
            reclaimed.freed_bytes += before.saturating_sub(allocated(&path)?);
        }
    }
    for (id, header) in &headers {
        reclaimed.freed_bytes += finish_punching(store, *id, header, &headers, cancel)?;
    }
    Ok(reclaimed)
}

/// Who refers to that snapshot's file.
pub(super) fn readers_of(
    headers: &BTreeMap<SegmentId, SharedHeader>,
    id: SegmentId,
) -> impl Iterator<Item = SegmentId> {
    headers.iter().filter(move |(reader, header)| **reader != id && header.refers_to(id)).map(|(reader, _)| *reader)
}

/// The pages of the file of `id` that those images refer to.
pub(super) fn needed_pages(
    store: &ImageStore,
    readers: &[SegmentId],
    id: SegmentId,
    file_bytes: u64,
) -> Result<FilePages, Error> {
    let mut needed = FilePages::none(file_bytes);
    for reader in readers {
        let map = store.read_map(*reader)?;
        runs_in(&map, id).for_each(|run| needed.insert(run.first, run.end()));
    }
    Ok(needed)
}

/// The runs of a map that lie in the file of `id`.
fn runs_in(map: &SharedMap, id: SegmentId) -> impl Iterator<Item = &SharedRun> {
    let segment = map.header().segments.iter().position(|segment| segment.id == id);
    map.runs().iter().filter(move |run| Some(run.segment as usize) == segment)
}

/// Punches the holes of a sharing that was interrupted. A finished one is told by the space that its file takes.
fn finish_punching(
    store: &ImageStore,
    id: SegmentId,
    header: &SharedHeader,
    headers: &BTreeMap<SegmentId, SharedHeader>,
    cancel: &AtomicBool,
) -> Result<u64, Error> {
    let path = store.pages(id);
    if !exists(&path)? {
        return Ok(0);
    }
    let before = allocated(&path)?;
    let bitmaps = header.image_bytes / PAGE_SIZE as u64 / 8;
    let expected = (header.own_pages * PAGE_SIZE as u64).saturating_add(bitmaps + SLACK_BYTES);
    if before <= expected {
        return Ok(0);
    }
    let mut needed = Vec::new();
    for reader in readers_of(headers, id) {
        needed.extend(runs_in(&store.read_map(reader)?, id));
    }
    punch::own_file(&store.open_shared(id)?, &needed, cancel)?;
    Ok(before.saturating_sub(allocated(&path)?))
}

/// What an interrupted operation left beside an image.
pub(super) fn leftovers(store: &ImageStore, id: SegmentId) -> Result<Vec<PathBuf>, Error> {
    let mut leftovers: Vec<PathBuf> = vec![store.unfinished_map(id), store.unfinished(id)];
    if exists(&store.mapped(id))? {
        // It is whole: a map beside it belongs to a sharing that was not finished, or was taken back.
        leftovers.extend([store.map(id), store.pages(id)]);
    }
    Ok(leftovers)
}

/// Removes it.
fn drop_leftovers(store: &ImageStore, id: SegmentId) -> Result<(), Error> {
    leftovers(store, id)?.iter().try_for_each(|path| remove(path))
}

/// Space that a file takes.
pub(super) fn allocated(path: &std::path::Path) -> Result<u64, Error> {
    let blocks = std::fs::metadata(path).map_err(Error::io("look at", path))?.blocks();
    Ok(blocks.saturating_mul(512))
}
