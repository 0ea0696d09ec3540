//! What changed on a disk since the point before.
//!
//! A frozen layer does not change, but a merge may put the bytes of others into its file. So a layer that the point before
//! held counts as it is only while its file looks as it did then: below it everything is as in that point, and the layers
//! above it say by their own allocation what is not. Where a merge in the running machine went into that layer, QEMU has
//! noted what was written to it since ([`keyframe_hypervisor::tracking`]), and that counts, too.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_hypervisor::LayerFormat;
use keyframe_hypervisor::launch::node_name;
use keyframe_hypervisor::tracking;
use keyframe_qcow2::Image;
use keyframe_qmp::Client;

use crate::error::Error;
use crate::state::head::{Chain, Fingerprint, Layer};
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

/// What may differ between a frozen chain and what a point holds of the disk; `None` when only comparing can tell.
///
/// # Errors
/// [`Error::Layer`] for a layer that cannot be read.
pub fn since(
    home: &Home,
    layers: &[Arc<Layer>],
    before: &DiskInPoint,
    running: Option<&mut Running<'_>>,
) -> Result<Option<Changes>, Error> {
    let Some((above, layer)) = placed(layers, before) else { return Ok(None) };
    let (by, mut extents) = if layer.frozen.is_some() && layer.frozen == before.fingerprint {
        (ChangedBy::Layers, Vec::new())
    } else {
        // Whatever keeps QEMU from telling, comparing finds the same.
        let noted = running.zip(noted_since(before)).and_then(|(running, name)| {
            let node = node_name(&layer.file);
            tracking::since(&mut running.monitor, running.dir, &node, &name).ok().flatten()
        });
        match noted {
            Some(noted) => (ChangedBy::Bitmap, noted),
            None => return Ok(None),
        }
    };
    // What could not be read then is tried again.
    extents.extend(before.unreadable.iter().cloned());
    if above.iter().any(|layer| layer.format != LayerFormat::Qcow2) {
        return Ok(None);
    }
    let paths: Vec<PathBuf> = above.iter().map(|layer| home.absolute(&layer.path)).collect();
    extents.extend(allocated(&paths, before.bytes.bytes())?);
    Ok(Some(Changes { by, extents }))
}

/// The layer of these, the topmost first, that the point before held, and those above it; `None` where there is none, or of a
/// disk that was made smaller: nothing behind its end must be kept.
fn placed<'l>(layers: &'l [Arc<Layer>], before: &DiskInPoint) -> Option<(&'l [Arc<Layer>], &'l Arc<Layer>)> {
    layers.first().filter(|top| before.bytes <= top.virtual_bytes)?;
    // A merge gives a layer another id; its file stays the one that it was.
    let depth = layers.iter().position(|layer| layer.file == before.file)?;
    let layer = layers.get(depth)?;
    Some((layers.get(..depth)?, layer))
}

/// The name under which QEMU notes what is written to the layer that a point held, if it does.
fn noted_since(before: &DiskInPoint) -> Option<String> {
    let by_merges = || before.fingerprint.as_ref().map(Fingerprint::as_name);
    before.noted_since.clone().or_else(by_merges)
}

/// What tells what changed in a chain whose topmost layer is being written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// What QEMU notes of the topmost layer under this name.
    Noted(String),
    /// This, and all that the topmost layer has itself.
    Below(Changes),
    /// Nothing: all of it is compared.
    Nothing,
}

/// What will tell what changed in a machine's present.
///
/// # Errors
/// [`Error::Layer`] for a layer that cannot be read.
pub fn basis(
    home: &Home,
    chain: &Chain,
    before: &DiskInPoint,
    running: Option<&mut Running<'_>>,
) -> Result<Basis, Error> {
    match placed(&chain.layers, before) {
        Some(([], _)) => Ok(noted_since(before).map_or(Basis::Nothing, Basis::Noted)),
        Some(([top, ..], _)) if top.format == LayerFormat::Qcow2 => {
            let below = chain.layers.get(1..).unwrap_or_default();
            Ok(since(home, below, before, running)?.map_or(Basis::Nothing, Basis::Below))
        }
        _ => Ok(Basis::Nothing),
    }
}

/// What layers say of a disk themselves, above one that had so many bytes.
fn allocated(layers: &[PathBuf], bytes_below: u64) -> Result<Vec<Range<u64>>, Error> {
    let mut extents = Vec::new();
    let mut shortest = bytes_below;
    for path in layers {
        let trouble = |source| Error::Layer { path: path.clone(), source };
        let image = Image::open(path).map_err(trouble)?;
        shortest = shortest.min(image.header().virtual_size().bytes());
        for extent in image.extents().map_err(trouble)? {
            // Zeros count: they hide what is below.
            let extent = extent.map_err(trouble)?;
            extents.push(extent.start.bytes()..extent.end().bytes());
        }
    }
    // A disk that was made smaller and larger again has zeros where it had been cut, and no layer says so.
    extents.extend((shortest < bytes_below).then_some(shortest..bytes_below));
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use keyframe_repo::source::open;

    use super::*;

    fn qemu(tool: &str, arguments: &[&str]) {
        let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
        assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn what_was_cut_off_and_came_back_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text = |path: &Path| path.display().to_string();
        let below = path("below.qcow2");
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", &text(&below), "8M"]);
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 8M", &text(&below)]);
        let mut backing = below;
        let mut above = Vec::new();
        for (name, size) in [("shorter.qcow2", "4M"), ("top.qcow2", "8M")] {
            let layer = path(name);
            let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &text(&backing), &text(&layer), size];
            qemu("qemu-img", &arguments);
            backing = layer.clone();
            above.insert(0, layer);
        }
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 64k", &text(&backing)]);
        let changed = allocated(&above, 8 << 20).unwrap();
        // What reads otherwise than below is in it.
        let source = open(&backing, Some(keyframe_qcow2::Format::Qcow2)).unwrap();
        let mut reader = source.reader().unwrap();
        for at in (0..source.bytes()).step_by(64 << 10) {
            let mut bytes = vec![0; 64 << 10];
            reader.read(at, &mut bytes).unwrap();
            let same = bytes == vec![7; 64 << 10];
            assert!(same || changed.iter().any(|extent| extent.contains(&at)), "byte {at} is {}", bytes[0]);
        }
        assert!(!changed.iter().any(|extent| extent.contains(&(3 << 20))), "what did not change is not read");
    }
}
