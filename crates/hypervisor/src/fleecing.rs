//! Disks as they were at one instant, while the guest writes on: QEMU's copy-before-write filters.
//!
//! ```text
//!   device ── filter ── active layer ── …        view ── filter     (what the disk was: read over NBD)
//!                └── scratch: what was there before the guest wrote
//! ```
//! The instant is when the filters come between the devices and their layers; with several disks the guest is stopped for
//! it. A filter that cannot keep what was there in time (the scratch file is full, the host's disk stands still) lets the guest
//! write all the same: the view is broken then, and every further read of it fails.
//!
//! Whatever state all of this was left in, [`remove`] takes it away. QEMU (10.0) dies of being told to put a node where it is
//! already, so it is looked at first.
//!
//! Source: block/copy-before-write.c, block/snapshot-access.c, tests/qemu-iotests/tests/image-fleecing of QEMU.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyframe_nbd::client::Client as Nbd;
use keyframe_nbd::wire::{BASE_ALLOCATION, state};
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{
    BlockExportAdd, BlockdevAdd, BlockdevDel, NbdServerStart, NbdServerStop, QueryBlock, QueryNamedBlockNodes,
};
use keyframe_qmp::ids::NodeName;
use keyframe_types::{ByteLen, DiskId, LayerId};
use serde_json::{Value, json};

use crate::error::{Error, IoContext as _};
use crate::launch::{NVRAM_DISK, disk_device, node_name};
use crate::{socket, tracking};

/// The socket of QEMU's NBD server, in its working directory.
const SOCKET: &str = "live.sock";
/// The flash device that holds the firmware's variables. Source: hw/i386/pc_sysfw.c of QEMU.
const FLASH_DEVICE: &str = "/machine/system.flash1";

/// A disk that is to be seen as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleece {
    /// The device's place in QEMU's tree.
    device: String,
    /// Its active layer's node.
    active: String,
    /// Which of the machine's disks it is: names follow from it.
    number: usize,
}

/// Where what was there before is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// A qcow2 image as large as the disk, on a file of [`Scratch::most`] bytes at least.
    pub path: PathBuf,
    /// How much may be kept.
    pub most: ByteLen,
}

impl Fleece {
    /// The machine's disk with this number, and its active layer.
    #[must_use]
    pub fn new(number: usize, disk: &DiskId, active: &LayerId) -> Self {
        let device = match disk.as_str() {
            NVRAM_DISK => FLASH_DEVICE.to_owned(),
            _ => format!("/machine/peripheral/{}", disk_device(disk)),
        };
        Self { device, active: node_name(active), number }
    }

    /// The active layer's node.
    #[must_use]
    pub fn active(&self) -> &str {
        &self.active
    }

    fn scratch(&self) -> String {
        format!("fl-scratch-{}", self.number)
    }

    fn filter(&self) -> String {
        format!("fl-filter-{}", self.number)
    }

    fn view(&self) -> String {
        format!("fl-view-{}", self.number)
    }

    /// Whether a device's path, as QEMU tells it of a backend, is this device's or of something in it.
    fn is_of(&self, qdev: &str) -> bool {
        qdev.strip_prefix(&self.device).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn put(&self, monitor: &mut Client, node: &str) -> Result<(), Error> {
        monitor.execute("qom-set", &json!({"path": self.device, "property": "drive", "value": node}))?;
        Ok(())
    }
}

fn add(monitor: &mut Client, options: Value) -> Result<(), Error> {
    let Value::Object(options) = options else { return Ok(()) };
    monitor.call(&BlockdevAdd::new(options))?;
    Ok(())
}

/// Opens scratch files and adds filters that nothing goes through yet. A write of the guest waits for at most `timeout`, in
/// whole seconds.
///
/// # Errors
/// [`Error::Qmp`]; some of it may be there then.
pub fn prepare(monitor: &mut Client, disks: &[(Fleece, Scratch)], timeout: Duration) -> Result<(), Error> {
    for (fleece, scratch) in disks {
        add(
            monitor,
            json!({
                "driver": "qcow2",
                "node-name": fleece.scratch(),
                "discard": "unmap",
                // Nobody wants it back after a power cut.
                "cache": {"no-flush": true},
                // What goes behind the bound is refused as a full disk would refuse it.
                "file": {
                    "driver": "raw",
                    "size": scratch.most.bytes(),
                    "file": {"driver": "file", "filename": scratch.path.to_string_lossy()},
                },
            }),
        )?;
        add(
            monitor,
            json!({
                "driver": "copy-before-write",
                "node-name": fleece.filter(),
                "file": fleece.active,
                "target": fleece.scratch(),
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": timeout.as_secs().max(1),
            }),
        )?;
    }
    Ok(())
}

/// Puts filters between devices and their layers. For several disks the guest must stand still.
///
/// # Errors
/// [`Error::Qmp`]; some may be there then.
pub fn attach<'a>(monitor: &mut Client, disks: impl IntoIterator<Item = &'a Fleece>) -> Result<(), Error> {
    disks.into_iter().try_for_each(|fleece| fleece.put(monitor, &fleece.filter()))
}

/// Shows disks as they were, read-only, on a socket in QEMU's own directory; with what [`tracking::keep`] kept of those
/// that it is said of. `dir` is that directory.
///
/// # Errors
/// [`Error::Qmp`]; some may be there then.
pub fn show<'a>(
    monitor: &mut Client,
    dir: &Path,
    disks: impl IntoIterator<Item = (&'a Fleece, bool)>,
) -> Result<(), Error> {
    tracking::stop_left_server(monitor, dir);
    monitor.call(&NbdServerStart::unix(SOCKET))?;
    for (fleece, keeps) in disks {
        add(monitor, json!({"driver": "snapshot-access", "node-name": fleece.view(), "file": fleece.filter()}))?;
        let (view, active) = (NodeName::new(fleece.view())?, NodeName::new(&fleece.active)?);
        let bitmaps: &[_] = if keeps { &[(&active, tracking::KEPT)] } else { &[] };
        monitor.call(&BlockExportAdd::nbd_with(&view, bitmaps))?;
    }
    Ok(())
}

/// Takes away whatever is there of all this; the guest goes on. What is gone already is passed over.
///
/// # Errors
/// [`Error::Qmp`] when something stays.
pub fn remove<'a>(
    monitor: &mut Client,
    dir: &Path,
    disks: impl IntoIterator<Item = &'a Fleece> + Clone,
) -> Result<(), Error> {
    // A server that another command was killed with stays until that is tidied up.
    if dir.join(SOCKET).exists() {
        // One that does not run any more refuses.
        let _ = monitor.call(&NbdServerStop {});
    }
    let nodes = monitor.call(&QueryNamedBlockNodes::flat())?;
    let there: BTreeSet<NodeName> = nodes.into_iter().filter_map(|node| node.node_name).collect();
    let delete = |monitor: &mut Client, name: String| -> Result<(), Error> {
        let node_name = NodeName::new(name)?;
        if there.contains(&node_name) {
            monitor.call(&BlockdevDel { node_name })?;
        }
        Ok(())
    };
    let backends = monitor.call(&QueryBlock {})?;
    for fleece in disks.clone() {
        delete(monitor, fleece.view())?;
        let filter = fleece.filter();
        let is_in_place = backends.iter().any(|backend| {
            let node = backend.inserted.as_ref().and_then(|node| node.node_name.as_ref());
            backend.qdev.as_deref().is_some_and(|qdev| fleece.is_of(qdev))
                && node.is_some_and(|node| node.as_str() == filter)
        });
        if is_in_place {
            fleece.put(monitor, &fleece.active)?;
        }
        delete(monitor, filter)?;
        delete(monitor, fleece.scratch())?;
    }
    disks.into_iter().try_for_each(|fleece| tracking::let_go(monitor, &fleece.active))
}

/// A disk as it was, over a connection of one's own.
///
/// # Errors
/// [`Error::Io`] when nobody listens, [`Error::Changes`] when it is not shown.
pub fn open(dir: &Path, fleece: &Fleece) -> Result<Nbd, Error> {
    let socket = dir.join(SOCKET);
    let stream = socket::connect(&socket).or_io("connect to", &socket)?;
    let kept = kept_context();
    Nbd::connect(stream, &fleece.view(), &[BASE_ALLOCATION, &kept]).map_err(|source| Error::Changes { source })
}

fn kept_context() -> String {
    format!("qemu:dirty-bitmap:{}", tracking::KEPT)
}

/// What QEMU says of a disk as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Its length.
    pub bytes: u64,
    /// What the active layer has itself, zeros and data. It may say of more than it had: what the guest wrote since.
    pub of_active: Vec<Range<u64>>,
    /// What may have other bytes than zeros, as far as the active layer tells: all that it does not have itself counts.
    pub not_zero: Vec<Range<u64>>,
    /// What was kept of what had been noted; `None` where nothing was.
    pub kept: Option<Vec<Range<u64>>>,
}

/// Asks all that is known of a disk as it was, without reading it.
///
/// # Errors
/// [`Error::Changes`].
pub fn survey(nbd: &mut Nbd) -> Result<Survey, Error> {
    let trouble = |source| Error::Changes { source };
    let kept = kept_context();
    // A view tells of the active layer alone. What that does not have is told as a hole of unknown content.
    let is_below = |word: u32| word & (state::HOLE | state::ZERO) == state::HOLE;
    let of_active = tracking::extents_where(nbd, BASE_ALLOCATION, |word| !is_below(word)).map_err(trouble)?;
    let not_zero = tracking::extents_where(nbd, BASE_ALLOCATION, |word| word & state::ZERO == 0).map_err(trouble)?;
    let kept = nbd.has_context(&kept).then(|| tracking::extents_where(nbd, &kept, |word| word & tracking::DIRTY != 0));
    Ok(Survey { bytes: nbd.bytes(), of_active, not_zero, kept: kept.transpose().map_err(trouble)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_place() {
        let fleece = Fleece::new(0, &DiskId::new("disk1").unwrap(), &LayerId::random());
        assert!(fleece.is_of("/machine/peripheral/d-disk1/virtio-backend"));
        assert!(!fleece.is_of("/machine/peripheral/d-disk10/virtio-backend"));
        let flash = Fleece::new(1, &DiskId::new(NVRAM_DISK).unwrap(), &LayerId::random());
        assert!(flash.is_of("/machine/system.flash1") && !flash.is_of("/machine/system.flash0"));
    }
}
