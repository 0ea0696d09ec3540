//! Headers put right, so that a crash in between is known for what it is.
//!
//! Writing a header changes the file's fingerprint, by which a frozen layer is known to be untouched. So: `mending.json` says
//! which layer; its header; `tree.json` with the new fingerprint: **the commit**; `mending.json` removed. Whoever finds a
//! `mending.json` does the same again.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::fsck::layers::set_backing;
use crate::state::durable;
use crate::state::head::{Fingerprint, Layer};
use crate::state::home::{Home, VmDir};
use crate::state::sealed::{self, Document};
use crate::state::tree::{LayerRef, TreeDocument, TreeLayer, Trees};

/// A header that is being put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mending {
    /// The layer.
    pub(super) layer: LayerRef,
}

impl Document for Mending {
    const SCHEMA: &'static str = "keyframe.mending/1";
}

impl Mending {
    /// Where it lies.
    pub(super) fn path(dir: &VmDir) -> PathBuf {
        dir.root().join("mending.json")
    }

    /// The one that was interrupted.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Schema`], [`Error::Io`].
    pub(super) fn read(dir: &VmDir) -> Result<Option<Self>, Error> {
        sealed::read(&Self::path(dir))
    }
}

/// Puts the header of a machine's layer right. The caller holds the machine's lock.
///
/// # Errors
/// [`Error::Layer`] when somebody has the file open, [`Error::Damaged`] when `tree.json` tells nothing of the layer, [`Error::Io`].
pub(super) fn mend(home: &Home, dir: &VmDir, layer: &LayerRef) -> Result<(), Error> {
    let path = Mending::path(dir);
    let unfinished = Mending::read(dir)?.is_some_and(|mending| mending.layer == *layer);
    match TreeDocument::read(dir)?.find(&layer.layer).cloned() {
        Some(entry) => frozen(home, dir, layer, &entry, unfinished)?,
        None => active(home, dir, layer)?,
    }
    durable::remove_file(&path)
}

fn frozen(home: &Home, dir: &VmDir, name: &LayerRef, entry: &TreeLayer, unfinished: bool) -> Result<(), Error> {
    let below = Trees::of(home).below(&entry.disk, entry.below.clone())?;
    // One that somebody else wrote to stays known as such, whatever its header says.
    let known = unfinished || entry.layer.check_untouched(home).is_ok();
    if known {
        sealed::write(&Mending::path(dir), &Mending { layer: name.clone() })?;
        pass(Failpoint::MendingNoted)?;
    }
    set_backing(home, &entry.layer, below.layers.first().map(|layer| &**layer))?;
    pass(Failpoint::MendingHeaderWritten)?;
    if known && entry.layer.frozen.is_some() {
        let path = home.absolute(&entry.layer.path);
        // The header is durable, the time of its write is not yet.
        durable::sync_file(&path)?;
        let frozen = Some(Fingerprint::of(&path)?);
        let mut tree = TreeDocument::read(dir)?;
        tree.put(TreeLayer { layer: Arc::new(Layer { frozen, ..Layer::clone(&entry.layer) }), ..entry.clone() });
        tree.write(dir)?;
        pass(Failpoint::MendingCommitted)?;
    }
    Ok(())
}

/// An active layer has no fingerprint: its header is all there is to write.
fn active(home: &Home, dir: &VmDir, name: &LayerRef) -> Result<(), Error> {
    let head = Trees::of(home).head(dir)?;
    let chains = head.iter().flat_map(|head| head.chains());
    let mut own = chains.filter(|chain| chain.layers.first().is_some_and(|top| LayerRef::to(top) == *name));
    let Some(chain) = own.next() else {
        return Err(Error::Damaged { path: dir.tree(), reason: format!("layer {} is not in it", name.layer) });
    };
    set_backing(home, chain.top()?, chain.layers.get(1).map(|layer| &**layer))
}
