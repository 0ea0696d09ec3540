//! What images that share pages take, and what deleting some of them would give back.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use keyframe_vmstate::PAGE_SIZE;
use keyframe_vmstate::shared::{SegmentId, SharedHeader};

use super::punch::FilePages;
use super::reclaim::{allocated, needed_pages, readers_of};
use crate::store::exists;
use crate::{Error, ImageStore};

/// What one image takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageSpace {
    /// Bytes on disk of the files in its snapshot's directory that are its memory, without extents that the file system
    /// lets other files share.
    pub own_bytes: u64,
    /// Bytes of its pages that lie in other snapshots' files.
    pub elsewhere_bytes: u64,
    /// How many other images refer to its file.
    pub readers: usize,
    /// Bytes that deleting it alone would free: its own without pages that others refer to, and pages that deleted snapshots
    /// left for it alone. At least that: where there are more maps than can be read for a listing, it counts nothing of
    /// what others refer to.
    pub freed_bytes: u64,
}

/// Maps are read for a listing as long as they are no larger than this together.
const MAPS_BYTES: u64 = 32 << 20;

/// What each image of a machine takes. Reads a few hundred bytes of each, and the maps of all as far as they are not too many.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a map.
pub fn space(store: &ImageStore) -> Result<BTreeMap<SegmentId, ImageSpace>, Error> {
    let headers = store.headers()?;
    let mut readers: BTreeMap<SegmentId, usize> = BTreeMap::new();
    for segment in headers.values().flat_map(|header| &header.segments) {
        *readers.entry(segment.id).or_default() += 1;
    }
    let mut spaces = BTreeMap::new();
    for id in store.snapshots()? {
        let own_bytes = files(store, id).iter().map(|path| if_there(path)).sum::<Result<u64, Error>>()?;
        let elsewhere = headers.get(&id).map_or(0, SharedHeader::shared_pages);
        let elsewhere_bytes = elsewhere.saturating_mul(PAGE_SIZE as u64);
        if own_bytes > 0 {
            let readers = readers.get(&id).copied().unwrap_or(0);
            let freed_bytes = if readers == 0 { own_bytes } else { 0 };
            spaces.insert(id, ImageSpace { own_bytes, elsewhere_bytes, readers, freed_bytes });
        }
    }
    let map_bytes = headers.keys().map(|id| if_there(&store.map(*id))).sum::<Result<u64, Error>>()?;
    if map_bytes <= MAPS_BYTES {
        match count_freed(store, headers.keys(), &mut spaces) {
            // What was counted so far is the least that comes free; whoever opens that image is told.
            Err(Error::Format { .. }) => {}
            // It was deleted meanwhile: whoever lists takes no lock.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(spaces)
}

/// Pages of one file that images refer to.
struct Wanted {
    /// By any.
    once: FilePages,
    /// By more than one.
    twice: FilePages,
    /// Whether the file is all that is left of a deleted snapshot.
    is_kept: bool,
}

/// Counts what deleting each of them alone would free.
fn count_freed<'a>(
    store: &ImageStore,
    readers: impl Iterator<Item = &'a SegmentId>,
    spaces: &mut BTreeMap<SegmentId, ImageSpace>,
) -> Result<(), Error> {
    let mut wanted: BTreeMap<SegmentId, Wanted> = BTreeMap::new();
    let mut maps = Vec::new();
    for reader in readers {
        let map = store.read_map(*reader)?;
        for run in map.runs() {
            let Some(segment) = map.header().segments.get(run.segment as usize) else { continue };
            let pages = match wanted.entry(segment.id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Wanted::none(store, segment.id)),
            };
            pages.once.insert_counting(&mut pages.twice, run.first, run.end());
        }
        maps.push((*reader, map));
    }
    for (id, pages) in &wanted {
        if let Some(space) = spaces.get_mut(id) {
            let others = pages.once.count().saturating_mul(PAGE_SIZE as u64);
            space.freed_bytes = space.own_bytes.saturating_sub(others);
        }
    }
    for (reader, map) in maps {
        let Some(space) = spaces.get_mut(&reader) else { continue };
        for run in map.runs() {
            let segment = map.header().segments.get(run.segment as usize);
            let left = segment.and_then(|segment| wanted.get(&segment.id)).filter(|pages| pages.is_kept);
            let alone = left.map_or(0, |pages| pages.once.count_without(&pages.twice, run.first, run.end()));
            space.freed_bytes += alone.saturating_mul(PAGE_SIZE as u64);
        }
    }
    Ok(())
}

impl Wanted {
    fn none(store: &ImageStore, id: SegmentId) -> Self {
        let bytes = |path: PathBuf| std::fs::metadata(path).ok().map(|found| found.len());
        let own = bytes(store.mapped(id)).or_else(|| bytes(store.pages(id)));
        // One that is missing has no pages; whoever opens the image is told.
        let len = own.or_else(|| bytes(store.kept(id))).unwrap_or(0);
        Self { once: FilePages::none(len), twice: FilePages::none(len), is_kept: own.is_none() }
    }
}

/// The files of an image in its snapshot's directory.
fn files(store: &ImageStore, id: SegmentId) -> [std::path::PathBuf; 4] {
    [store.mapped(id), store.pages(id), store.map(id), store.sums(id)]
}

fn if_there(path: &Path) -> Result<u64, Error> {
    if exists(path)? { exclusive_bytes(path) } else { Ok(0) }
}

/// Bytes that deleting the memory of all of those snapshots together would free: what none of the others refers to. Pages that the file system itself
/// lets files share are counted only where no other file has them.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for a map.
pub fn freed_by(store: &ImageStore, gone: &BTreeSet<SegmentId>) -> Result<u64, Error> {
    let headers = store.headers()?;
    let mut freed = 0_u64;
    for id in gone {
        for path in [store.map(*id), store.sums(*id)] {
            freed += if_there(&path)?;
        }
        for path in [store.mapped(*id), store.pages(*id)] {
            if exists(&path)? {
                let survivors: Vec<_> = readers_of(&headers, *id).filter(|reader| !gone.contains(reader)).collect();
                let kept = needed(store, &survivors, *id, &path)?;
                freed += exclusive_bytes(&path)?.saturating_sub(kept);
            }
        }
    }
    for id in store.kept_files()? {
        let (path, readers) = (store.kept(id), readers_of(&headers, id).collect::<Vec<_>>());
        let survivors: Vec<_> = readers.iter().copied().filter(|reader| !gone.contains(reader)).collect();
        if survivors.len() < readers.len() {
            freed += needed(store, &readers, id, &path)?.saturating_sub(needed(store, &survivors, id, &path)?);
        }
    }
    Ok(freed)
}

/// Bytes of a snapshot's file that those images refer to.
fn needed(store: &ImageStore, readers: &[SegmentId], id: SegmentId, path: &Path) -> Result<u64, Error> {
    if readers.is_empty() {
        return Ok(0);
    }
    let bytes = std::fs::metadata(path).map_err(Error::io("look at", path))?.len();
    Ok(needed_pages(store, readers, id, bytes)?.count().saturating_mul(PAGE_SIZE as u64))
}

/// `struct fiemap` with room for some `struct fiemap_extent`, of linux/fiemap.h.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const EXTENTS: usize = 512;
const _: () = assert!(size_of::<FiemapExtent>() == 56);
/// `_IOWR('f', 11, struct fiemap)`: the struct's own 32 bytes, without the list behind it.
const FS_IOC_FIEMAP: u32 = 3 << 30 | 32 << 16 | 0x66 << 8 | 11;
const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;

/// File systems whose files never share extents, by `f_type` of statfs(2): ext2 to ext4, tmpfs.
const NEVER_SHARE: [u32; 2] = [0xef53, 0x0102_1994];

/// Bytes on disk of a file that it shares with no other; all that it takes where the file system does not tell.
///
/// # Errors
/// [`Error::Io`].
pub fn exclusive_bytes(path: &Path) -> Result<u64, Error> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let status = rustix::fs::fstatfs(&file).map_err(|errno| Error::io("look at", path)(errno.into()))?;
    if NEVER_SHARE.contains(&(status.f_type as u32)) {
        return allocated(path);
    }
    let none = FiemapExtent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let (mut shared, mut start) = (0_u64, 0_u64);
    loop {
        let mut map = Box::new(Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [none; EXTENTS],
        });
        // SAFETY: the kernel reads and writes `map`, which lives through the call and has room for as many extents as it
        // announces; the descriptor is open.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP.into(), &raw mut *map) };
        if result != 0 {
            return allocated(path);
        }
        let found = map.extents.get(..map.mapped_extents as usize).unwrap_or_default();
        let of_others = found.iter().filter(|extent| extent.flags & FIEMAP_EXTENT_SHARED != 0);
        shared += of_others.map(|extent| extent.length).sum::<u64>();
        match found.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => start = last.logical.saturating_add(last.length),
            _ => break,
        }
    }
    Ok(allocated(path)?.saturating_sub(shared))
}
