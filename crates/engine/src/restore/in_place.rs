//! A machine's disks back to what a point has, by writing only the blocks that differ.
//!
//! The machine is off. Its present is kept as a snapshot first; on what that froze come layers that hold what the point has
//! otherwise. QEMU's `rebase` makes them: a layer on the point, which our NBD server shows, is put onto the frozen layer, and
//! what differs between the two is copied into it. **The head with these layers: the commit**, of all disks at once. Before it
//! the machine is as it was, but for the snapshot.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyframe_hypervisor::socket;
use keyframe_nbd::{Allocation, Export, Extent, serve_socket};
use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Point, Repository};
use keyframe_types::{ByteLen, DiskId, SnapshotName};
use serde::Serialize;

use crate::backup::MachinePoint;
use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, State};
use crate::snapshot::{self, Occasion, SnapshotRequest};
use crate::space;
use crate::state::durable;
use crate::state::head::{Chain, Head};
use crate::state::manifest::Consistency;

use super::image;

/// What is read ahead of the point's image is kept so far.
const CACHE_BYTES: usize = 64 << 20;
/// Where the point is shown to qemu-img, in the machine's directory.
const SOCKET: &str = "in-place.sock";
/// How often it is looked whether a person wants to stop.
const TICK: Duration = Duration::from_millis(50);

/// What going back came to.
#[derive(Debug, Serialize)]
pub struct InPlaceReport {
    /// The point.
    pub point: String,
    /// The snapshot that keeps what was the present.
    pub kept: SnapshotName,
    /// The disks that are as in the point now, and what was written for them.
    pub disks: Vec<RestoredDisk>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A disk that is as in a point.
#[derive(Debug, Serialize)]
pub struct RestoredDisk {
    /// Which.
    pub disk: DiskId,
    /// Room that the blocks take which differed.
    pub written: ByteLen,
}

/// Puts all disks of a machine, or one, back to what a point of it has.
///
/// # Errors
/// [`Error::BadRequest`] for a point of another machine or a disk of another size, [`Error::WrongState`] unless it is off;
/// [`Error::Repository`], [`Error::Io`]: its disks are as they were then.
pub fn restore(
    ctx: &Context<'_>,
    repository: &Arc<Repository>,
    point: &Point,
    only: Option<&DiskId>,
) -> Result<InPlaceReport, Error> {
    let begun = Instant::now();
    let document = MachinePoint::of(point)?;
    let name = document.snapshot.definition.name.clone();
    let told = format!("{}@{}", point.name, point.id.short());
    let (_lock, mut machine) = Machine::lock(ctx, &name, &format!("restore {told} --in-place"))?;
    if machine.definition.uuid != document.snapshot.definition.uuid {
        let what = format!("{told} is of another machine that was called {name}: restore it with --as NEW");
        return Err(Error::BadRequest { what });
    }
    if machine.process().is_some() || !matches!(machine.state(), State::Stopped | State::Crashed) {
        return Err(Error::WrongState {
            vm: name,
            state: machine.state().as_str().to_owned(),
            advice: "stop it with `keyframe vm stop`: nobody may use its disks meanwhile",
        });
    }
    let chosen = choose(&machine, &document, only)?;
    let request = SnapshotRequest {
        note: Some(format!("the present before {told} was restored in place")),
        disk_only: true,
        ..SnapshotRequest::of(name)
    };
    ctx.progress.step("keeping the present");
    let kept = snapshot::take_locked(ctx, &mut machine, &request, Occasion::ByItself, begun)?;
    let mut notes = kept.notes;
    let missing = document.unreadable_bytes();
    if missing > ByteLen::ZERO {
        notes.push(format!("{missing} of its disks could not be read when the point was made, and are zeros"));
    }
    let index = Arc::new(repository.index(Hooks::Skip)?);
    let mut after = machine.head.clone();
    let mut disks = Vec::new();
    let mut made = Made::default();
    for disk in chosen {
        let planned = plan(ctx, &machine, &after, &disk)?;
        let stored = image(point, disk.as_str())?.clone();
        let shown = ImageReader::new(Arc::clone(repository), Arc::clone(&index), stored, CACHE_BYTES)?;
        ctx.progress.step(&format!("comparing {disk}"));
        let path = ctx.home.absolute(&planned.top()?.path);
        made.0.push(path.clone());
        layer_of_differences(ctx, machine.dir.root(), &planned, shown, &path)?;
        disks.push(RestoredDisk { disk: disk.clone(), written: space::used(&path) });
        replace(&mut after, planned);
    }
    pass(Failpoint::InPlaceLayersMade)?;
    ctx.check()?;
    machine.head = Head { clean_shutdown: document.snapshot.consistency == Consistency::Filesystem, ..after };
    machine.write_head()?;
    made.0.clear();
    // The empty layers that the snapshot had left on top.
    layers::drop_unused_if_possible(ctx, &machine.dir);
    Ok(InPlaceReport { point: told, kept: kept.name, disks, notes })
}

/// Layers that nothing names yet: removed when something fails.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // What stays is of no use to anybody, and found by fsck.
            let _ = durable::remove_file(path);
        }
    }
}

/// The disks to restore: they must be as large as in the point.
fn choose(machine: &Machine, document: &MachinePoint, only: Option<&DiskId>) -> Result<Vec<DiskId>, Error> {
    let mut chosen = Vec::new();
    for chain in machine.head.chains().filter(|chain| only.is_none_or(|only| chain.disk == *only)) {
        let (disk, bytes) = (&chain.disk, chain.top()?.virtual_bytes);
        match document.disk(disk) {
            Some(known) if known.bytes == bytes => chosen.push(disk.clone()),
            Some(known) => {
                let what =
                    format!("{disk} has {bytes} now, and {} in the point: restore it with --to FILE", known.bytes);
                return Err(Error::BadRequest { what });
            }
            None => {
                let what = format!("{disk} is not in the point: name those that are with --disk");
                return Err(Error::BadRequest { what });
            }
        }
    }
    if chosen.is_empty() {
        return Err(Error::BadRequest { what: "the machine has no such disk".to_owned() });
    }
    Ok(chosen)
}

/// The disk's chain with another layer in the place of the empty one on top.
fn plan(ctx: &Context<'_>, machine: &Machine, head: &Head, disk: &DiskId) -> Result<Chain, Error> {
    let empty = || Error::EmptyChain { disk: disk.clone() };
    let chain = head.chains().find(|chain| chain.disk == *disk).ok_or_else(empty)?;
    let frozen = Chain { disk: disk.clone(), layers: chain.layers.iter().skip(1).cloned().collect() };
    layers::planned_overlays(ctx.home, &machine.dir, std::iter::once(&frozen))?.pop().ok_or_else(empty)
}

fn replace(head: &mut Head, chain: Chain) {
    for old in head.chains_mut() {
        if old.disk == chain.disk {
            *old = chain;
            return;
        }
    }
}

/// Makes the topmost layer of `chain` at `path`: what an image has otherwise than the layers below.
fn layer_of_differences(
    ctx: &Context<'_>,
    dir: &Path,
    chain: &Chain,
    shown: ImageReader,
    path: &Path,
) -> Result<(), Error> {
    let empty = || Error::EmptyChain { disk: chain.disk.clone() };
    let below = chain.layers.get(1).ok_or_else(empty)?;
    let socket = dir.join(SOCKET);
    durable::remove_file_unsynced(&socket)?;
    let listener = socket::listen(&socket).or_io("listen on", &socket)?;
    let export: Arc<dyn Export> = Arc::new(Shown(shown));
    let end = AtomicBool::new(false);
    let served = serde_json::json!({
        "driver": "raw",
        "file": {"driver": "nbd", "export": "point", "server": {"type": "unix", "path": SOCKET}},
    });
    std::thread::scope(|threads| {
        threads.spawn(|| serve_socket(&listener, "point", &export, &end));
        let made = (|| {
            let point = format!("json:{served}");
            let below_path = ctx.home.absolute(&below.path);
            let format = layers::qcow2_format(below.format).as_str();
            let create = |command: &mut Command| {
                command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &point]).arg(path);
            };
            qemu_img(ctx, dir, path, create)?;
            let rebase = |command: &mut Command| {
                command.args(["rebase", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(&below_path).arg(path);
            };
            qemu_img(ctx, dir, path, rebase)
        })();
        end.store(true, Ordering::Relaxed);
        made
    })?;
    durable::remove_file_unsynced(&socket)?;
    let backing = layers::backing(ctx.home, path, below)?;
    keyframe_qcow2::set_backing(path, Some(&backing))
        .map_err(|source| Error::Layer { path: path.to_owned(), source })?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).or_io("protect", path)?;
    durable::sync_file(path)?;
    durable::sync_parent(path)
}

/// Runs qemu-img, until it ends or a person wants to stop.
fn qemu_img(ctx: &Context<'_>, dir: &Path, path: &Path, arguments: impl FnOnce(&mut Command)) -> Result<(), Error> {
    let mut command = Command::new("qemu-img");
    // The socket's name is short enough from there, wherever that is.
    command.current_dir(dir);
    arguments(&mut command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .or_io("run qemu-img for", path)?;
    let status = loop {
        if let Some(status) = child.try_wait().or_io("wait for qemu-img, for", path)? {
            break status;
        }
        if let Err(interrupted) = ctx.check() {
            // It is gone either way when it has been waited for.
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted);
        }
        std::thread::sleep(TICK);
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        // What it said only explains.
        let _ = io::Read::read_to_string(&mut stderr, &mut said);
    }
    Err(Error::Io {
        action: "compare with the point for",
        path: path.to_owned(),
        source: io::Error::other(said.trim().to_owned()),
    })
}

/// An image of a point, shown to QEMU.
struct Shown(ImageReader);

impl Export for Shown {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into).map_err(io::Error::other)
    }

    fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { len: range.end - range.start, allocation: Allocation::Data }])
    }

    fn will_need(&self, _: Range<u64>) {}
}
