//! What changed on a disk since the point before.
//!
//! A frozen layer does not change, but a merge may put the bytes of others into its file. So a layer that the point before
//! held counts only while its file looks as it did then: below it everything is as in that point, and the layers above
//! it say by their own allocation what is not.

use std::ops::Range;

use keyframe_hypervisor::LayerFormat;
use keyframe_qcow2::Image;

use crate::error::Error;
use crate::state::head::Chain;
use crate::state::home::Home;
use crate::state::tree::LayerRef;

use super::point::DiskInPoint;

/// The extents of a chain that may differ from what a point holds of the disk; `None` when only comparing can tell.
///
/// # Errors
/// [`Error::Layer`] for a layer that cannot be read.
pub fn by_layers(home: &Home, chain: &Chain, before: &DiskInPoint) -> Result<Option<Vec<Range<u64>>>, Error> {
    let Some(fingerprint) = &before.fingerprint else { return Ok(None) };
    let held = |layer: &LayerRef| *layer == before.layer;
    let Some(depth) = chain.layers.iter().position(|layer| held(&LayerRef::to(layer))) else { return Ok(None) };
    let (above, below) = chain.layers.split_at(depth);
    if below.first().and_then(|layer| layer.frozen.as_ref()) != Some(fingerprint) {
        return Ok(None);
    }
    let mut extents = Vec::new();
    for layer in above {
        if layer.format != LayerFormat::Qcow2 {
            return Ok(None);
        }
        let path = home.absolute(&layer.path);
        let trouble = |source| Error::Layer { path: path.clone(), source };
        let image = Image::open(&path).map_err(trouble)?;
        for extent in image.extents().map_err(trouble)? {
            // Zeros count: they hide what is below.
            let extent = extent.map_err(trouble)?;
            extents.push(extent.start.bytes()..extent.end().bytes());
        }
    }
    Ok(Some(extents))
}
