//! Memory images that share pages: when the engine has them share, makes them whole again, and gives space back.
//!
//! [`keyframe_memory::sharing`] does the work; here is the policy. A snapshot shares with the nearest ancestor that has
//! memory, after its commit, under the machine's lock: nobody else can be using a new image yet. Sharing is a saving and
//! never a reason for a snapshot to fail. An image is made whole where one file is needed: for forks that map it, for QEMU to
//! read it at once.
//!
//! Pins: a snapshot whose image a process needs is not deleted ([`crate::layers::runs_from`]), and as long as it is there
//! its map keeps the pages that it refers to. While some process is still being served from an image of the machine, nothing
//! is given back at all: the map that it goes by may be gone since.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keyframe_memory::sharing::{self, How, Sharing, SharingReport, Step};
use keyframe_memory::{Error as MemoryError, ImageStore, Keeping};
use keyframe_types::{ByteLen, SnapshotId, SnapshotRef};
use keyframe_vmstate::shared::SegmentId;
use serde::Serialize;

use crate::context::Context;
use crate::courtesy::aside;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::memory;
use crate::snapshots;
use crate::space;
use crate::state::home::VmDir;
use crate::state::manifest::Manifest;

/// A machine's images.
pub(crate) fn store(dir: &VmDir) -> ImageStore {
    ImageStore::of_machine(dir.root())
}

/// A snapshot, as files of memory name it.
pub(crate) fn segment(id: &SnapshotId) -> SegmentId {
    // An id is 16 hexadecimal digits: this does not fail.
    SegmentId::new(u64::from_str_radix(id.as_str(), 16).unwrap_or_default())
}

/// Kills or fails at a step where a test wants it.
fn step(step: Step) -> Result<(), MemoryError> {
    let point = match step {
        Step::MapWritten => Failpoint::ShareMapWritten,
        Step::Renamed => Failpoint::ShareRenamed,
        Step::Punched => Failpoint::SharePunched,
        Step::Kept => Failpoint::DeleteMemoryKept,
        Step::WholeWritten => Failpoint::WholeWritten,
        Step::WholeNamed => Failpoint::WholeNamed,
        Step::MapRemoved => Failpoint::WholeMapRemoved,
    };
    pass(point).map_err(|_| MemoryError::Stopped { step: point.name() })
}

fn trouble(id: &SnapshotId) -> impl FnOnce(MemoryError) -> Error + '_ {
    move |source| match source {
        MemoryError::Cancelled => Error::Interrupted,
        source => Error::Memory { id: id.clone(), source },
    }
}

/// What sharing saved.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Shared {
    /// Bytes of memory that lie in older snapshots' files, or share their extents.
    pub shared_bytes: ByteLen,
    /// Space that only this image takes now.
    pub bytes_on_disk: ByteLen,
    /// How long it took, in milliseconds.
    pub sharing_ms: f64,
}

/// Has a snapshot that was just committed share pages with the nearest ancestor that has memory. What goes wrong is a note:
/// the image is complete whatever happens. `None` when it stays as it is.
pub(crate) fn share_if_possible(ctx: &Context<'_>, machine: &Machine, id: &SnapshotId) -> Option<Shared> {
    let shared = share(ctx, machine, id).unwrap_or_else(|error| {
        ctx.progress.note(&format!("the memory image is complete, and shares nothing with older ones: {error}"));
        None
    });
    reclaim_if_possible(ctx, &machine.dir);
    shared
}

fn share(ctx: &Context<'_>, machine: &Machine, id: &SnapshotId) -> Result<Option<Shared>, Error> {
    let Some(manifest) = snapshots::read(&machine.dir, id)?.filter(|manifest| manifest.memory.is_some()) else {
        return Ok(None);
    };
    let Some(older) = ancestor_with_memory(&machine.dir, &manifest)? else { return Ok(None) };
    ctx.progress.step("comparing with the memory before");
    let store = store(&machine.dir);
    let sharing = aside(|| sharing::share(&store, segment(id), segment(&older), ctx.cancel, &step));
    let sharing = sharing.map_err(trouble(id))?;
    let report = match sharing {
        Sharing::Shared(report) => report,
        Sharing::Left(why) => {
            tracing::info!(?why, "memory left whole");
            return Ok(None);
        }
    };
    tracing::info!(
        pages = report.shared_pages,
        of = report.held_pages,
        runs = report.runs,
        files = report.segments,
        ms = report.elapsed.as_millis(),
        "memory shared"
    );
    told(&machine.dir, id, &report).map(Some)
}

fn told(dir: &VmDir, id: &SnapshotId, report: &SharingReport) -> Result<Shared, Error> {
    const PAGE: u64 = keyframe_vmstate::PAGE_SIZE as u64;
    let snapshot = dir.snapshot(id);
    let own = match report.how {
        How::Mapped => space::used(&snapshot.memory_pages()) + space::used(&snapshot.memory_map()),
        How::Extents => ByteLen::from_bytes(sharing::exclusive_bytes(&snapshot.memory()).map_err(trouble(id))?),
    };
    Ok(Shared {
        shared_bytes: ByteLen::from_bytes(report.shared_pages.saturating_mul(PAGE)),
        bytes_on_disk: own + space::used(&snapshot.sums()),
        sharing_ms: (report.elapsed.as_secs_f64() * 1e6).round() / 1e3,
    })
}

/// The nearest ancestor that has memory. One that cannot be read ends the search.
fn ancestor_with_memory(dir: &VmDir, of: &Manifest) -> Result<Option<SnapshotId>, Error> {
    let (mut next, mut seen) = (of.parent.clone(), BTreeSet::new());
    while let Some(id) = next.filter(|id| seen.insert(id.clone())) {
        match snapshots::read(dir, &id)? {
            Some(manifest) if manifest.memory.is_some() => return Ok(Some(manifest.id)),
            Some(manifest) => next = manifest.parent,
            None => return Ok(None),
        }
    }
    Ok(None)
}

/// Before a snapshot goes: if others refer to its memory, that gets a second name. May be done again.
///
/// # Errors
/// [`Error::Memory`]; the snapshot must not go then.
pub(crate) fn keep_for_others(dir: &VmDir, id: &SnapshotId) -> Result<(), Error> {
    sharing::keep_for_others(&store(dir), segment(id), &step).map_err(trouble(id))
}

/// Gives back memory that nobody refers to any more, unless somebody is being served from an image of the machine. The
/// next operation tries again what fails.
pub(crate) fn reclaim_if_possible(ctx: &Context<'_>, dir: &VmDir) {
    let reclaimed = layers::serves_anyone(ctx.home, dir).and_then(|busy| {
        if busy {
            return Ok(());
        }
        let reclaimed = sharing::reclaim(&store(dir), ctx.cancel);
        reclaimed.map(drop).map_err(|source| Error::SharedMemory { dir: dir.root().to_owned(), source })
    });
    if let Err(error) = reclaimed {
        ctx.progress.note(&format!("memory that nothing needs any more stays for now: {error}"));
    }
}

/// How a snapshot's memory is kept; `None` when it has none.
///
/// # Errors
/// [`Error::Memory`] when that cannot be told.
pub fn keeping(dir: &VmDir, id: &SnapshotId) -> Result<Option<Keeping>, Error> {
    store(dir).keeping(segment(id)).map_err(trouble(id))
}

/// Makes a shared image whole, where one file is needed. Nothing happens to one that is.
///
/// # Errors
/// [`Error::NoSpace`] before anything is begun; [`Error::Memory`], [`Error::Interrupted`]: the image is then as it was.
pub(crate) fn make_whole(ctx: &Context<'_>, dir: &VmDir, manifest: &Manifest) -> Result<(), Error> {
    if keeping(dir, &manifest.id)? != Some(Keeping::Shared) {
        return Ok(());
    }
    let image = memory::open(dir, manifest)?;
    let needed = ByteLen::from_bytes(sharing::whole_bytes(&image));
    space::check(dir.root(), needed)?;
    drop(image);
    ctx.progress.note(&format!(
        "the memory of {} lies partly in older snapshots' files; it is made whole, which takes {needed}",
        manifest.name
    ));
    ctx.progress.step("making the memory image whole");
    sharing::make_whole(&store(dir), segment(&manifest.id), ctx.cancel, &step).map_err(trouble(&manifest.id))
}

/// What an export came to.
#[derive(Debug, Serialize)]
pub struct Export {
    /// The snapshot.
    pub id: SnapshotId,
    /// The file that was written.
    pub file: PathBuf,
    /// Space that it takes.
    pub bytes_on_disk: ByteLen,
}

/// Writes a snapshot's memory as one file that stock QEMU loads (`-incoming file:…` with `mapped-ram`), each extent compared
/// with its checksum. `file` must not exist.
///
/// # Errors
/// [`Error::NoMemory`], [`Error::NoSpace`], [`Error::Memory`]; no file is left then.
pub fn export(ctx: &Context<'_>, reference: &SnapshotRef, file: &Path) -> Result<Export, Error> {
    // Nothing may be given back while it is read.
    let (_lock, machine) = Machine::lock(ctx, &reference.vm, &format!("memory export {reference}"))?;
    let manifest = snapshots::find(&machine.dir, &reference.vm, &reference.snapshot)?;
    let image = memory::open(&machine.dir, &manifest)?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    space::check(parent, ByteLen::from_bytes(sharing::whole_bytes(&image)))?;
    ctx.progress.step("writing memory");
    sharing::export(&image, file, ctx.cancel).map_err(trouble(&manifest.id))?;
    Ok(Export { id: manifest.id, file: file.to_owned(), bytes_on_disk: space::used(file) })
}

/// What a snapshot's memory takes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemorySpace {
    /// Space of its own files.
    pub own_bytes: ByteLen,
    /// Bytes of its pages that lie in other snapshots' files.
    pub elsewhere_bytes: ByteLen,
    /// How many other snapshots refer to its file.
    pub readers: usize,
    /// Space that deleting it alone gives back, at least.
    pub freed_bytes: ByteLen,
}

/// What the memory of each of a machine's snapshots takes; cheap enough for a listing.
///
/// # Errors
/// [`Error::SharedMemory`] when a map cannot be read.
pub fn memory_space(
    dir: &VmDir,
    of: impl Iterator<Item = SnapshotId>,
) -> Result<std::collections::BTreeMap<SnapshotId, MemorySpace>, Error> {
    let spaces = sharing::space(&store(dir));
    let spaces = spaces.map_err(|source| Error::SharedMemory { dir: dir.root().to_owned(), source })?;
    let of = of.filter_map(|id| {
        let found = spaces.get(&segment(&id))?;
        let space = MemorySpace {
            own_bytes: ByteLen::from_bytes(found.own_bytes),
            elsewhere_bytes: ByteLen::from_bytes(found.elsewhere_bytes),
            readers: found.readers,
            freed_bytes: ByteLen::from_bytes(found.freed_bytes),
        };
        Some((id, space))
    });
    Ok(of.collect())
}

/// Bytes of memory images that deleting these snapshots of a machine together would free.
///
/// # Errors
/// [`Error::SharedMemory`] when a map cannot be read.
pub fn memory_freed<'a>(dir: &VmDir, gone: impl Iterator<Item = &'a SnapshotId>) -> Result<ByteLen, Error> {
    let gone: BTreeSet<_> = gone.map(segment).collect();
    let freed = sharing::freed_by(&store(dir), &gone);
    freed.map(ByteLen::from_bytes).map_err(|source| Error::SharedMemory { dir: dir.root().to_owned(), source })
}

#[cfg(test)]
mod tests {
    use keyframe_vmstate::shared::{SharedImage, SharedMap, SharedRun};

    use super::*;
    use crate::snapshot::undo::drop_uncommitted;
    use crate::state::home::Home;

    #[test]
    fn memory_that_others_refer_to_outlives_a_directory_without_a_manifest() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let dir = home.vm(&"db".parse().unwrap());
        let (lost, reader) = (SnapshotId::random(), SnapshotId::random());
        for id in [&lost, &reader] {
            std::fs::create_dir_all(dir.snapshot(id).root()).unwrap();
            std::fs::write(dir.snapshot(id).memory_pages(), id.as_str()).unwrap();
        }
        std::fs::write(dir.snapshot(&reader).manifest(), "{}").unwrap();
        let of = SharedImage { image_bytes: 1 << 20, own_pages: 0, image: blake3::hash(b"") };
        let map = SharedMap::new(of, &[segment(&lost)], vec![SharedRun { first: 1, count: 2, segment: 0 }]).unwrap();
        std::fs::write(dir.snapshot(&reader).memory_map(), map.to_bytes()).unwrap();
        drop_uncommitted(&dir).unwrap();
        assert!(!dir.snapshot(&lost).root().exists() && dir.snapshot(&reader).root().exists());
        let kept = dir.root().join("memory").join(format!("{lost}.pages"));
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), lost.as_str());
        assert!(memory_freed(&dir, [&reader].into_iter()).unwrap().bytes() > 0);
        // When the reader goes too, so does what it referred to.
        std::fs::remove_file(dir.snapshot(&reader).manifest()).unwrap();
        drop_uncommitted(&dir).unwrap();
        sharing::reclaim(&store(&dir), &std::sync::atomic::AtomicBool::new(false)).unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn a_snapshot_is_the_same_in_files_of_memory() {
        let id: SnapshotId = "00ff00ff12345678".parse().unwrap();
        assert_eq!(segment(&id).to_string(), id.as_str());
    }
}
