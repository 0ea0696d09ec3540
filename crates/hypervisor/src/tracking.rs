//! What is written to a layer from some instant on: QEMU's dirty bitmaps.
//!
//! A bitmap lives in the process and is lost with it; who asks for one that is not there has to compare. It is never stored
//! in a layer's file: a frozen layer's file must not change when QEMU ends.

use std::ops::Range;
use std::path::Path;

use keyframe_nbd::client::Client as Nbd;
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{
    BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapRemove, BlockExportAdd, DirtyBitmap, NbdServerStart,
    NbdServerStop, QueryNamedBlockNodes,
};
use keyframe_qmp::ids::NodeName;

use crate::error::{Error, IoContext as _};
use crate::socket;

/// How our bitmaps' names begin: others are somebody else's.
const PREFIX: &str = "keyframe-";
/// A copy of one of them that notes nothing.
pub(crate) const KEPT: &str = "keyframe-kept";
/// The most that a layer has of them. Each costs a bit for every 64 KiB of the disk, and a little time of every write.
const MOST: usize = 8;
/// The socket of QEMU's NBD server, in its working directory.
const SOCKET: &str = "changes.sock";
/// Our export.
const EXPORT: &str = "keyframe-changes";

fn full_name(since: &str) -> String {
    format!("{PREFIX}{since}")
}

/// Our bitmaps of a node that can be relied on, as QEMU lists them: the youngest first.
fn ours(monitor: &mut Client, node: &NodeName) -> Result<Vec<DirtyBitmap>, Error> {
    let nodes = monitor.call(&QueryNamedBlockNodes::flat())?;
    let bitmaps = nodes.into_iter().filter(|found| found.node_name.as_ref() == Some(node));
    let is_ours = |bitmap: &DirtyBitmap| bitmap.name.as_ref().is_some_and(|name| name.starts_with(PREFIX));
    Ok(bitmaps.flat_map(|found| found.dirty_bitmaps).filter(is_ours).collect())
}

/// Notes what is written to a layer's node from now on, under a name that says since when. One that is there already is
/// left as it is: it notes more.
///
/// # Errors
/// [`Error::Qmp`]: nothing is noted then.
pub fn begin(monitor: &mut Client, node: &str, since: &str) -> Result<(), Error> {
    let (node, name) = (NodeName::new(node)?, full_name(since));
    let there = ours(monitor, &node)?;
    if there.iter().any(|bitmap| bitmap.name.as_ref() == Some(&name)) {
        return Ok(());
    }
    for old in there.iter().skip(MOST - 1).filter(|bitmap| !bitmap.busy) {
        if let Some(name) = old.name.clone() {
            monitor.call(&BlockDirtyBitmapRemove { node: node.clone(), name })?;
        }
    }
    monitor.call(&BlockDirtyBitmapAdd { node, name, disabled: false })?;
    Ok(())
}

/// Notes no more under a name; one that is not there is passed over.
///
/// # Errors
/// [`Error::Qmp`].
pub fn end(monitor: &mut Client, node: &str, since: &str) -> Result<(), Error> {
    remove(monitor, &NodeName::new(node)?, full_name(since))
}

fn remove(monitor: &mut Client, node: &NodeName, name: String) -> Result<(), Error> {
    if ours(monitor, node)?.iter().any(|bitmap| bitmap.name.as_ref() == Some(&name)) {
        monitor.call(&BlockDirtyBitmapRemove { node: node.clone(), name })?;
    }
    Ok(())
}

/// Keeps what was noted under a name as it is now, as a bitmap called [`KEPT`], while the guest writes on; `false` when it was
/// not noted. QEMU shows a bitmap of a node that is written to only when it notes nothing itself.
///
/// # Errors
/// [`Error::Qmp`].
pub fn keep(monitor: &mut Client, node: &str, since: &str) -> Result<bool, Error> {
    let (node, name) = (NodeName::new(node)?, full_name(since));
    if !ours(monitor, &node)?.iter().any(|bitmap| is_usable(bitmap, &name)) {
        return Ok(false);
    }
    let kept = KEPT.to_owned();
    monitor.call(&BlockDirtyBitmapAdd { node: node.clone(), name: kept.clone(), disabled: true })?;
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

fn is_usable(bitmap: &DirtyBitmap, name: &str) -> bool {
    bitmap.name.as_deref() == Some(name) && bitmap.recording && !bitmap.inconsistent && !bitmap.busy
}

/// The extents of a layer's node that were written to since `since`, in bytes, in order; `None` when that was not noted.
/// `dir` is the process's directory.
///
/// # Errors
/// [`Error::Qmp`] when QEMU refuses, [`Error::Changes`] when it cannot be read.
pub fn since(monitor: &mut Client, dir: &Path, node: &str, since: &str) -> Result<Option<Vec<Range<u64>>>, Error> {
    let (node, name) = (NodeName::new(node)?, full_name(since));
    if !ours(monitor, &node)?.iter().any(|bitmap| is_usable(bitmap, &name)) {
        return Ok(None);
    }
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
