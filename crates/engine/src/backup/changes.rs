//! What changed on a disk since the point before.
//!
//! A frozen layer does not change, but a merge may put the bytes of others into its file. So a layer that the point before
//! held counts as it is only while its file looks as it did then: below it everything is as in that point, and the layers
//! above it say by their own allocation what is not. Where a merge in the running machine went into that layer, QEMU has
//! noted what was written to it since ([`keyframe_hypervisor::tracking`]), and that counts, too.

use std::ops::Range;
use std::path::Path;

use keyframe_hypervisor::LayerFormat;
use keyframe_hypervisor::launch::node_name;
use keyframe_hypervisor::tracking;
use keyframe_qcow2::Image;
use keyframe_qmp::Client;

use crate::error::Error;
use crate::state::head::{Chain, Layer};
use crate::state::home::Home;

use super::point::{ChangedBy, DiskInPoint};

/// What may differ from what a point holds of a disk, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Who: layers or a bitmap.
    pub by: ChangedBy,
    /// Extents in bytes; they may overlap and come in any order.
    pub extents: Vec<Range<u64>>,
}

/// The machine's process, which has the chain open.
#[derive(Debug)]
pub struct Running<'a> {
    /// Its monitor.
    pub monitor: Client,
    /// Its directory.
    pub dir: &'a Path,
}

/// What may differ between a chain and what a point holds of the disk; `None` when only comparing can tell.
///
/// # Errors
/// [`Error::Layer`] for a layer that cannot be read.
pub fn since(
    home: &Home,
    chain: &Chain,
    before: &DiskInPoint,
    running: Option<&mut Running<'_>>,
) -> Result<Option<Changes>, Error> {
    let bytes = chain.top()?.virtual_bytes;
    let Some(fingerprint) = before.fingerprint.as_ref().filter(|_| before.bytes <= bytes) else {
        // Of a disk that was made smaller nothing behind its end must be kept.
        return Ok(None);
    };
    // A merge gives a layer another id; its file stays the one that it was.
    let Some(depth) = chain.layers.iter().position(|layer| layer.file == before.file) else { return Ok(None) };
    let (above, below) = chain.layers.split_at(depth);
    let Some(layer) = below.first() else { return Ok(None) };
    let (by, mut extents) = if layer.frozen.as_ref() == Some(fingerprint) {
        (ChangedBy::Layers, Vec::new())
    } else {
        // Whatever keeps QEMU from telling, comparing finds the same.
        let noted = running.and_then(|running| {
            let node = node_name(&layer.file);
            tracking::since(&mut running.monitor, running.dir, &node, &fingerprint.as_name()).ok().flatten()
        });
        match noted {
            Some(noted) => (ChangedBy::Bitmap, noted),
            None => return Ok(None),
        }
    };
    // What could not be read then is tried again.
    extents.extend(before.unreadable.iter().cloned());
    for layer in above {
        if layer.format != LayerFormat::Qcow2 {
            return Ok(None);
        }
        add_allocated(home, layer, &mut extents)?;
    }
    Ok(Some(Changes { by, extents }))
}

fn add_allocated(home: &Home, layer: &Layer, extents: &mut Vec<Range<u64>>) -> Result<(), Error> {
    let path = home.absolute(&layer.path);
    let trouble = |source| Error::Layer { path: path.clone(), source };
    let image = Image::open(&path).map_err(trouble)?;
    for extent in image.extents().map_err(trouble)? {
        // Zeros count: they hide what is below.
        let extent = extent.map_err(trouble)?;
        extents.push(extent.start.bytes()..extent.end().bytes());
    }
    Ok(())
}
