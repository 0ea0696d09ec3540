//! What is written to a layer from some instant on: QEMU's dirty bitmaps.
//!
//! ```text
//!   active layer, qcow2     KEYFRAME-NAME.file, which QEMU keeps in the layer's file when it ends, and loads when it starts
//!      │ leave_file(): before a snapshot freezes the layer
//!      ▼
//!   frozen layer, or raw    KEYFRAME-NAME, which is lost with the process
//! ```
//! Who asks for one that is not there has to compare. QEMU (10.0) stores a bitmap when the node is closed or opened read-only,
//! and marks it as in use while it has the layer open for writing, so that one which a killed process left is told as
//! inconsistent; it is good for nothing then but to be removed. `blockdev-snapshot` opens the layer below read-only, and would
//! store what is there; and a merge that opens a frozen layer for writing would mark it, and store it again behind the end of the
//! merge. So none stays in a layer that is frozen. What other programs write through QEMU's own code while the machine is off is
//! noted, too, and who does not know bitmaps takes back the header's word for them (`autoclear_features`), upon which QEMU
//! forgets them. But a disk made smaller and larger again by `qemu-img resize` has zeros that no bitmap tells of: who starts a
//! machine lets those go whose file somebody wrote to meanwhile.
//!
//! Source: block/qcow2-bitmap.c of QEMU; docs/interop/qcow2.txt, "Bitmaps extension".

use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use keyframe_nbd::client::Client as Nbd;
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{
    BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapRemove, BlockExportAdd, DirtyBitmap, NbdServerStart,
    NbdServerStop, QueryNamedBlockNodes,
};
use keyframe_qmp::ids::NodeName;
use keyframe_types::SnapshotId;

use crate::error::{Error, IoContext as _};
use crate::socket;

/// How our bitmaps' names begin: others are somebody else's.
const PREFIX: &str = "keyframe-";
/// How the name of one ends that is kept in the layer's file.
const IN_FILE: &str = ".file";
/// A copy of one of them that notes nothing.
pub(crate) const KEPT: &str = "keyframe-kept";
/// The most that a layer has of them. Each costs a bit for every 64 KiB of the disk, and a little time of every write.
const MOST: usize = 8;
/// The socket of QEMU's NBD server, in its working directory.
const SOCKET: &str = "changes.sock";
/// Our export.
const EXPORT: &str = "keyframe-changes";

/// How long a bitmap is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// As long as the process.
    Process,
    /// As long as the layer is active, whatever process has it open, where its format can keep it.
    Layer,
}

/// Whether a bitmap's name is one of ours.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A name for an instant, the present one, that nothing else has.
#[must_use]
pub fn name_of_now() -> String {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", SnapshotId::random(), since_1970.as_nanos())
}

/// When a bitmap was begun, by its name: names end with a time in nanoseconds. The beginning of time for others.
fn begun(bitmap: &DirtyBitmap) -> u64 {
    let name = bitmap.name.as_deref().unwrap_or_default();
    let since = name.strip_suffix(IN_FILE).unwrap_or(name);
    since.rsplit_once('-').and_then(|(_, time)| time.parse().ok()).unwrap_or(0)
}

fn full_name(since: &str) -> String {
    format!("{PREFIX}{since}")
}

fn name_in_file(since: &str) -> String {
    format!("{PREFIX}{since}{IN_FILE}")
}

/// Our bitmaps of a node, in any order: QEMU lists those that it loaded from a file the other way round than it had them.
fn ours(monitor: &mut Client, node: &NodeName) -> Result<Vec<DirtyBitmap>, Error> {
    let nodes = monitor.call(&QueryNamedBlockNodes::flat())?;
    let bitmaps = nodes.into_iter().filter(|found| found.node_name.as_ref() == Some(node));
    let ours = |bitmap: &DirtyBitmap| bitmap.name.as_deref().is_some_and(is_ours);
    Ok(bitmaps.flat_map(|found| found.dirty_bitmaps).filter(ours).collect())
}

/// Notes what is written to a layer's node from now on, under a name that says since when. One that is there already is
/// left as it is: it notes more.
///
/// # Errors
/// [`Error::Qmp`]: nothing is noted then.
pub fn begin(monitor: &mut Client, node: &str, since: &str, lasts: Lasts) -> Result<(), Error> {
    let node = NodeName::new(node)?;
    let (mut there, lost): (Vec<_>, Vec<_>) =
        ours(monitor, &node)?.into_iter().partition(|bitmap| !bitmap.inconsistent);
    if named(&there, since).is_some() {
        return Ok(());
    }
    there.sort_by_key(|bitmap| std::cmp::Reverse(begun(bitmap)));
    let too_many = there.iter().skip(MOST - 1).filter(|bitmap| !bitmap.busy);
    for name in lost.iter().chain(too_many).filter_map(|bitmap| bitmap.name.clone()) {
        monitor.call(&BlockDirtyBitmapRemove { node: node.clone(), name })?;
    }
    if lasts == Lasts::Layer {
        let add = BlockDirtyBitmapAdd { persistent: true, ..noting(&node, name_in_file(since)) };
        match monitor.call(&add) {
            // A raw file, or a qcow2 image of long ago.
            Err(keyframe_qmp::Error::Command { .. }) => {}
            added => return Ok(added.map(drop)?),
        }
    }
    monitor.call(&noting(&node, full_name(since)))?;
    Ok(())
}

fn noting(node: &NodeName, name: String) -> BlockDirtyBitmapAdd {
    BlockDirtyBitmapAdd { node: node.clone(), name, disabled: false, persistent: false }
}

/// Lets nothing of ours stay in the file of a layer that is going to be frozen: what is noted of it is noted in the process from
/// here on.
///
/// # Errors
/// [`Error::Qmp`]: what was noted is noted still.
pub fn leave_file(monitor: &mut Client, node: &str) -> Result<(), Error> {
    let node = NodeName::new(node)?;
    let all = ours(monitor, &node)?;
    for bitmap in all.iter().filter(|bitmap| bitmap.persistent) {
        let Some(name) = bitmap.name.clone() else { continue };
        if let (Some(in_process), false) = (name.strip_suffix(IN_FILE), bitmap.inconsistent) {
            // Who was killed here has left both. Until the other is gone nobody believes this one: it may be half.
            if !all.iter().any(|other| other.name.as_deref() == Some(in_process)) {
                monitor.call(&noting(&node, in_process.to_owned()))?;
            }
            let (node, target) = (node.clone(), in_process.to_owned());
            monitor.call(&BlockDirtyBitmapMerge { node, target, bitmaps: vec![name.clone()] })?;
        }
        monitor.call(&BlockDirtyBitmapRemove { node: node.clone(), name })?;
    }
    Ok(())
}

/// Notes no more under a name; one that is not there is passed over.
///
/// # Errors
/// [`Error::Qmp`].
pub fn end(monitor: &mut Client, node: &str, since: &str) -> Result<(), Error> {
    let node = NodeName::new(node)?;
    [full_name(since), name_in_file(since)].into_iter().try_for_each(|name| remove(monitor, &node, name))
}

fn remove(monitor: &mut Client, node: &NodeName, name: String) -> Result<(), Error> {
    if ours(monitor, node)?.iter().any(|bitmap| bitmap.name.as_ref() == Some(&name)) {
        monitor.call(&BlockDirtyBitmapRemove { node: node.clone(), name })?;
    }
    Ok(())
}

/// The bitmap that notes under a name. Where there are two, the one in the file has it all.
fn named<'b>(bitmaps: &'b [DirtyBitmap], since: &str) -> Option<&'b DirtyBitmap> {
    let find = |name: String| bitmaps.iter().find(|bitmap| bitmap.name.as_ref() == Some(&name));
    find(name_in_file(since)).or_else(|| find(full_name(since)))
}

/// The name of the bitmap that can be relied on for what was written since `since`, if there is one.
fn usable(bitmaps: &[DirtyBitmap], since: &str) -> Option<String> {
    let is_usable = |bitmap: &&DirtyBitmap| bitmap.recording && !bitmap.inconsistent && !bitmap.busy;
    named(bitmaps, since).filter(is_usable)?.name.clone()
}

/// Keeps what was noted under a name as it is now, as a bitmap called [`KEPT`], while the guest writes on; `false` when it was
/// not noted. QEMU shows a bitmap of a node that is written to only when it notes nothing itself.
///
/// # Errors
/// [`Error::Qmp`].
pub fn keep(monitor: &mut Client, node: &str, since: &str) -> Result<bool, Error> {
    let node = NodeName::new(node)?;
    let Some(name) = usable(&ours(monitor, &node)?, since) else { return Ok(false) };
    let kept = KEPT.to_owned();
    monitor.call(&BlockDirtyBitmapAdd { disabled: true, ..noting(&node, kept.clone()) })?;
    monitor.call(&BlockDirtyBitmapMerge { node, target: kept, bitmaps: vec![name] })?;
    Ok(true)
}

/// Lets go of what [`keep`] kept, if it did.
///
/// # Errors
/// [`Error::Qmp`].
pub fn let_go(monitor: &mut Client, node: &str) -> Result<(), Error> {
    remove(monitor, &NodeName::new(node)?, KEPT.to_owned())
}

/// The extents of a layer's node that were written to since `since`, in bytes, in order; `None` when that was not noted.
/// `dir` is the process's directory.
///
/// # Errors
/// [`Error::Qmp`] when QEMU refuses, [`Error::Changes`] when it cannot be read.
pub fn since(monitor: &mut Client, dir: &Path, node: &str, since: &str) -> Result<Option<Vec<Range<u64>>>, Error> {
    let node = NodeName::new(node)?;
    let Some(name) = usable(&ours(monitor, &node)?, since) else { return Ok(None) };
    let socket = dir.join(SOCKET);
    stop_left_server(monitor, dir);
    monitor.call(&NbdServerStart::unix(SOCKET))?;
    let read = monitor
        .call(&BlockExportAdd::nbd(EXPORT, &node, &name))
        .map_err(Error::from)
        .and_then(|_| read(&socket, node.as_str(), &name));
    let stopped = monitor.call(&NbdServerStop {});
    let extents = read?;
    stopped?;
    Ok(Some(extents))
}

/// Stops the server that a command was killed with here. If it is another one, starting ours says so.
pub(crate) fn stop_left_server(monitor: &mut Client, dir: &Path) {
    if dir.join(SOCKET).exists() {
        let _ = monitor.call(&NbdServerStop {});
    }
}

fn read(socket: &Path, export: &str, bitmap: &str) -> Result<Vec<Range<u64>>, Error> {
    let context = format!("qemu:dirty-bitmap:{bitmap}");
    let stream = socket::connect(socket).or_io("connect to", socket)?;
    let trouble = |source| Error::Changes { source };
    let mut nbd = Nbd::connect(stream, export, &[&context]).map_err(trouble)?;
    let extents = extents_where(&mut nbd, &context, |word| word & DIRTY != 0).map_err(trouble)?;
    // It has said all that was asked for.
    let _ = nbd.disconnect();
    Ok(extents)
}

/// Where a meta context's word is such that `wanted` says so, in order, joined.
pub(crate) fn extents_where(
    nbd: &mut Nbd,
    context: &str,
    wanted: impl Fn(u32) -> bool,
) -> keyframe_nbd::Result<Vec<Range<u64>>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < nbd.bytes() {
        for status in nbd.block_status(context, at..nbd.bytes())? {
            // The last may reach behind the end.
            let end = (at + u64::from(status.len)).min(nbd.bytes());
            match extents.last_mut().filter(|last| last.end == at) {
                _ if !wanted(status.word) => {}
                Some(last) => last.end = end,
                None => extents.push(at..end),
            }
            at = end;
        }
    }
    Ok(extents)
}

/// Source: docs/interop/nbd.txt of QEMU.
pub(crate) const DIRTY: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(name: &str) -> DirtyBitmap {
        DirtyBitmap {
            name: Some(name.to_owned()),
            recording: true,
            busy: false,
            inconsistent: false,
            persistent: name.ends_with(IN_FILE),
            count: 0,
            granularity: 65536,
        }
    }

    #[test]
    fn names_tell_which_is_the_youngest() {
        let (older, younger) = (name_of_now(), name_of_now());
        let of_a_merge = bitmap(&full_name("196616-1700000000123456789"));
        let all = [bitmap(&full_name(&older)), bitmap(&name_in_file(&younger))].map(|bitmap| begun(&bitmap));
        assert!(0 < begun(&of_a_merge) && begun(&of_a_merge) < all[0] && all[0] < all[1], "{older} {younger}");
        assert_eq!(begun(&bitmap(KEPT)), 0);
    }

    #[test]
    fn only_a_bitmap_that_has_it_all_is_believed() {
        let (half, whole) = (bitmap("keyframe-a"), bitmap("keyframe-a.file"));
        let lost = DirtyBitmap { recording: false, inconsistent: true, ..whole.clone() };
        let told = |bitmaps: &[&DirtyBitmap]| {
            let bitmaps: Vec<_> = bitmaps.iter().map(|bitmap| (*bitmap).clone()).collect();
            usable(&bitmaps, "a")
        };
        assert_eq!(told(&[&half]), half.name);
        assert_eq!(told(&[&half, &whole]), whole.name, "a merge that was killed has left half");
        assert_eq!(told(&[&half, &lost]), None);
        assert_eq!(told(&[&DirtyBitmap { recording: false, ..whole.clone() }]), None);
        assert_eq!(told(&[&DirtyBitmap { busy: true, ..half.clone() }]), None);
        assert_eq!(told(&[&bitmap("keyframe-ab"), &bitmap("keyframe-b.file")]), None);
    }
}
