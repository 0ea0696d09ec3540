//! All memory images of one machine, some of which share pages.
//!
//! ```text
//! snapshots/ID/memory.mapped    a whole image: QEMU loads and maps it
//! snapshots/ID/memory.pages     in its place, the own file of a shared image: pages that lie elsewhere are holes
//! snapshots/ID/memory.map       where those pages lie
//! memory/ID.pages               the file of a snapshot that was deleted while others needed pages of it
//! ```
//! Where a `memory.mapped` is, it is whole, whatever lies beside it: a map there belongs to a sharing that was not
//! finished, or to one that was undone. A page lies at the same offset in all of these files, so any file of a snapshot does
//! for those that refer to it, and `memory.mapped` may take the place of `memory.pages` at any time.
//!
//! Whoever changes files holds the machine's lock. Readers need none: they find a snapshot's file under one of its
//! names, and look again when it was renamed meanwhile. What they have open stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use keyframe_vmstate::shared::{SegmentId, SharedHeader, SharedMap};
use serde::{Deserialize, Serialize};

use crate::elsewhere::Elsewhere;
use crate::source::Source;
use crate::{Error, MemoryImage};

/// How often a reader looks for a file that is being renamed.
const LOOKS: u32 = 5;

/// Where a machine's memory images lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageStore {
    snapshots: PathBuf,
    kept: PathBuf,
}

/// How an image is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeping {
    /// In one file that QEMU loads.
    Whole,
    /// With a map: some of its pages lie in older snapshots' files.
    Shared,
}

impl ImageStore {
    /// The images of the machine in that directory.
    pub fn of_machine(dir: &Path) -> Self {
        Self { snapshots: dir.join("snapshots"), kept: dir.join("memory") }
    }

    /// The directory of a snapshot.
    pub(crate) fn dir(&self, id: SegmentId) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// The whole image.
    pub(crate) fn mapped(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.mapped")
    }

    /// A whole image that is being written. No other file's temporary name: a page server may just be writing a list of
    /// hot pages.
    pub(crate) fn unfinished(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.mapped.tmp")
    }

    /// The map of a shared image that is being written.
    pub(crate) fn unfinished_map(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.map.tmp")
    }

    /// The own file of a shared image.
    pub(crate) fn pages(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.pages")
    }

    /// The map of a shared image.
    pub(crate) fn map(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.map")
    }

    /// The checksums.
    pub(crate) fn sums(&self, id: SegmentId) -> PathBuf {
        self.dir(id).join("memory.b3")
    }

    /// What is left of a snapshot that is gone.
    pub(crate) fn kept(&self, id: SegmentId) -> PathBuf {
        self.kept.join(format!("{id}.pages"))
    }

    /// The directory of what is left of snapshots that are gone.
    pub(crate) fn kept_dir(&self) -> &Path {
        &self.kept
    }

    /// How an image is kept; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be told.
    pub fn keeping(&self, id: SegmentId) -> Result<Option<Keeping>, Error> {
        for _ in 0..LOOKS {
            if exists(&self.mapped(id))? {
                return Ok(Some(Keeping::Whole));
            }
            if exists(&self.map(id))? && exists(&self.pages(id))? {
                return Ok(Some(Keeping::Shared));
            }
        }
        Ok(None)
    }

    /// Opens a snapshot's image, whole or shared, as [`MemoryImage::open`] does.
    ///
    /// # Errors
    /// As [`MemoryImage::open`]; [`Error::NoSegment`] when the file of another snapshot is missing, and
    /// [`Error::Format`] for the map, too.
    pub fn open(&self, id: SegmentId) -> Result<MemoryImage, Error> {
        look_again(|| match MemoryImage::open(&self.mapped(id), &self.sums(id)) {
            Err(error) if error.is_missing(&self.mapped(id)) && exists(&self.map(id))? => self.open_shared(id),
            other => other,
        })
    }

    /// Opens an image by its map, whether there is a whole one or not.
    pub(crate) fn open_shared(&self, id: SegmentId) -> Result<MemoryImage, Error> {
        let map = self.read_map(id)?;
        let files = map.header().segments.iter().map(|segment| self.open_segment(id, segment.id));
        let files = files.collect::<Result<_, _>>()?;
        let own = Source::open(&self.pages(id))?;
        MemoryImage::assemble(own, Source::open(&self.sums(id))?, Some(Elsewhere::new(&self.map(id), map, files)))
    }

    /// The file of `id`, of which `reader` needs pages, under whichever name it has now.
    fn open_segment(&self, reader: SegmentId, id: SegmentId) -> Result<Source, Error> {
        for path in [self.mapped(id), self.pages(id), self.kept(id)] {
            match Source::open(&path) {
                Err(error) if error.is_missing(&path) => {}
                other => return other,
            }
        }
        Err(Error::NoSegment { map: self.map(reader), id })
    }

    /// The map of a shared image.
    pub(crate) fn read_map(&self, id: SegmentId) -> Result<SharedMap, Error> {
        let path = self.map(id);
        let bytes = read_at_most(&path, SharedMap::max_bytes())?;
        SharedMap::parse(&bytes).map_err(|source| Error::Format { path, source })
    }

    /// The maps of all shared images, without their runs.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`]: then nobody knows which pages are needed.
    pub fn headers(&self) -> Result<BTreeMap<SegmentId, SharedHeader>, Error> {
        self.headers_but(None)
    }

    /// The same without one of them, which may be damaged then.
    pub(crate) fn headers_but(&self, without: Option<SegmentId>) -> Result<BTreeMap<SegmentId, SharedHeader>, Error> {
        let mut headers = BTreeMap::new();
        for id in self.snapshots()?.into_iter().filter(|id| Some(*id) != without) {
            let path = self.map(id);
            let bytes = match read_at_most(&path, SharedHeader::MAX_BYTES) {
                Err(error) if error.is_missing(&path) => continue,
                other => other?,
            };
            if !exists(&self.mapped(id))? {
                let header = SharedHeader::parse(&bytes).map_err(|source| Error::Format { path, source })?;
                headers.insert(id, header);
            }
        }
        Ok(headers)
    }

    /// Every directory of a snapshot, committed or not.
    pub(crate) fn snapshots(&self) -> Result<Vec<SegmentId>, Error> {
        list(&self.snapshots, "")
    }

    /// Every file that is left of a snapshot that is gone.
    pub(crate) fn kept_files(&self) -> Result<Vec<SegmentId>, Error> {
        list(&self.kept, ".pages")
    }
}

/// The ids that name the entries of a directory, which need not exist.
fn list(dir: &Path, suffix: &str) -> Result<Vec<SegmentId>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        ids.extend(
            name.to_str().and_then(|name| name.strip_suffix(suffix)).and_then(|id| id.parse::<SegmentId>().ok()),
        );
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Tries again what failed for want of a file: it may have been renamed between two looks.
fn look_again<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..LOOKS {
        match attempt() {
            Err(Error::NoSegment { .. }) => {}
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    attempt()
}

pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look at", path))
}

/// A file's bytes, no more than that: what is longer is not the format.
fn read_at_most(path: &Path, bytes: usize) -> Result<Vec<u8>, Error> {
    let mut found = Vec::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.take(bytes as u64 + 1).read_to_end(&mut found).map_err(Error::io("read", path))?;
    Ok(found)
}
