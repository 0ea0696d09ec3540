//! One merge of neighbouring layers of one disk, from its journal to its end, and from wherever it was interrupted.
//!
//! 1. Journal.
//! 2. Copy: in the machine's QEMU if it has the layers open, in a storage daemon otherwise. Nothing that anybody reads
//!    changes; interrupted here, the layers are as they were.
//! 3. Flush; change the chain: the header of whoever stands on the merged ones. Before and after it reads the same.
//! 4. **Write `tree.json`, or the head for an active layer: the commit.**
//! 5. Close and remove what nobody stands on any more; the journal goes.
//!
//! An active layer is pushed down only while its guest is stopped, from before 3 until after 4: else the guest might
//! write to the lower layer while the head still names the upper one, and after a power cut nobody could tell which
//! of the two is right.
//!
//! Whoever comes after a crash looks at the chain itself: once a header has changed, all that is left is done; before,
//! the layers are as they were, and only the target's time of last write has to be noted anew.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::{LayerAccess, layer_node, node_name};
use keyframe_hypervisor::merge::{self, Copied, Direction, MergeOrder, MergeProgress, Verdict};
use keyframe_hypervisor::storage::StorageDaemon;
use keyframe_hypervisor::{LayerFile, cut, host::takes_direct_io};
use keyframe_qcow2::header::Header;
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::{BlockdevAdd, QueryBlock};
use keyframe_qmp::commands::machine::Stop;
use keyframe_types::ByteLen;
use rustix::fs::FlockOperation;
use std::sync::Arc;

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, State, state_of};
use crate::merge::graph::Graph;
use crate::merge::plan::Held;
use crate::space;
use crate::state::head::{Fingerprint, Layer};
use crate::state::journal::{Journal, MergeJournal, Way};
use crate::state::tree::{LayerRef, TreeDocument, TreeLayer, Trees};
use crate::state::{durable, sealed};

/// All jobs' names begin so.
const JOB_PREFIX: &str = "merge-";
/// A guest that is faster than the merge for so long is not going to be slower.
const NOT_CONVERGING_AFTER: Duration = Duration::from_secs(20);
/// Room that a merge leaves: a guest that finds none stops.
const ROOM_LEFT: ByteLen = ByteLen::from_mib(64);
/// How often room is looked at.
const ROOM_EVERY: Duration = Duration::from_millis(250);
/// How long whoever was killed may take to let go of a layer.
const LET_GO_PATIENCE: Duration = Duration::from_secs(20);

/// One merge.
#[derive(Debug)]
pub struct Step<'a> {
    ctx: &'a Context<'a>,
    journal: MergeJournal,
}

impl<'a> Step<'a> {
    /// A merge as a journal tells it.
    #[must_use]
    pub fn new(ctx: &'a Context<'a>, journal: MergeJournal) -> Self {
        Self { ctx, journal }
    }

    /// Makes the merge. One that fails is taken back, or finished where it was so far.
    ///
    /// # Errors
    /// What it failed with; the chains read as before, and nothing is lost.
    pub fn make(&self, machine: &mut Machine, speed: Option<u64>) -> Result<(), Error> {
        for layer in &self.journal.layers {
            layer.check_untouched(self.ctx.home)?;
        }
        sealed::write(&machine.dir.journal(), &Journal::Merge(Box::new(self.journal.clone())))?;
        let made = pass(Failpoint::MergeJournaled).and_then(|()| {
            let live = self.is_open(machine);
            if live { self.make_live(machine, speed) } else { self.make_offline(machine, speed) }
        });
        made.map_err(|error| match self.recover(machine) {
            Ok(()) => error,
            Err(undo) => Error::UndoFailed { source: Box::new(error), undo: Box::new(undo) },
        })
    }

    /// Whether the machine's process has the layers open.
    fn is_open(&self, machine: &Machine) -> bool {
        let named = |layer: &Arc<Layer>| self.top().is_some_and(|top| top.id == layer.id);
        machine.process().is_some() && machine.head.chains().any(|chain| chain.layers.iter().any(named))
    }

    fn top(&self) -> Option<&Arc<Layer>> {
        self.journal.layers.last()
    }

    fn lowest(&self) -> Option<&Arc<Layer>> {
        self.journal.layers.first()
    }

    /// The layer whose file takes the data.
    fn target(&self) -> Option<&Arc<Layer>> {
        match self.journal.way {
            Way::Pull => self.top(),
            Way::Push => self.lowest(),
        }
    }

    fn job_name(&self) -> String {
        format!("{JOB_PREFIX}{}", self.top().map_or("nothing", |top| top.id.as_str()))
    }

    /// What QEMU is told; `root` is the chain's active node, `header` the file whose header QEMU is going to change.
    fn order(&self, root: &str, header: Option<&Path>, speed: Option<u64>) -> Result<MergeOrder, Error> {
        let node = |layer: Option<&Arc<Layer>>| layer.map(|layer| node_name(&layer.file)).unwrap_or_default();
        let (direction, below) = match self.journal.way {
            Way::Pull => {
                let base = self.base()?;
                let name = base.as_ref().map(|base| node_name(&base.file));
                (Direction::Pull { into: node(self.top()), base: name }, base)
            }
            Way::Push => {
                let (top, into) = (node(self.top()), node(self.lowest()));
                (Direction::Push { root: root.to_owned(), top, into }, self.lowest().cloned())
            }
        };
        let backing = |(path, below): (&Path, &Arc<Layer>)| layers::backing(self.ctx.home, path, below);
        let backing = header.zip(below.as_ref()).map(backing).transpose()?;
        let backing_file = backing.map(|backing| backing.name().to_string());
        Ok(MergeOrder { direction, backing_file, speed_bytes_per_s: speed })
    }

    /// What the lowest of the layers stands on.
    fn base(&self) -> Result<Option<Arc<Layer>>, Error> {
        let Some(base) = &self.journal.base else { return Ok(None) };
        let tree = TreeDocument::read(&self.ctx.home.vm(&base.vm))?;
        Ok(tree.find(&base.layer).map(|entry| entry.layer.clone()))
    }

    fn make_live(&self, machine: &mut Machine, speed: Option<u64>) -> Result<(), Error> {
        let mut monitor = machine.monitor()?;
        let (root, header) = self.around(machine)?;
        let order = self.order(&root, header.as_deref(), speed)?;
        self.copy(&mut monitor, &order)?;
        pass(Failpoint::MergeCopied)?;
        if self.journal.stops_guest() {
            // This job flushes by itself, and tells when it cannot.
            monitor.call(&Stop {})?;
        } else {
            merge::flush(&mut monitor, &order)?;
            self.check_copied()?;
        }
        merge::settle(&mut monitor, &self.job_name(), &order)?;
        if !self.is_merged(Some(&mut monitor))? {
            let reason = "QEMU says that it has changed the chain, and it has not".to_owned();
            return Err(keyframe_hypervisor::Error::Merge { reason }.into());
        }
        pass(Failpoint::MergeChainChanged)?;
        self.finish(machine, Some(&mut monitor))
    }

    /// The active node of the chain, and the file whose header changes with the merge: the pulled layer's own, or that
    /// of the layer above the pushed ones.
    fn around(&self, machine: &Machine) -> Result<(String, Option<std::path::PathBuf>), Error> {
        let at = |chain: &&crate::state::head::Chain| chain.disk == self.journal.disk;
        let disk = || Error::EmptyChain { disk: self.journal.disk.clone() };
        let chain = machine.head.chains().find(at).ok_or_else(disk)?;
        let position = chain.layers.iter().position(|layer| self.top().is_some_and(|top| top.id == layer.id));
        let position = position.ok_or_else(disk)?;
        let header = match self.journal.way {
            Way::Pull => chain.layers.get(position),
            Way::Push => position.checked_sub(1).and_then(|above| chain.layers.get(above)),
        };
        Ok((node_name(&chain.top()?.file), header.map(|layer| self.ctx.home.absolute(&layer.path))))
    }

    fn make_offline(&self, machine: &mut Machine, speed: Option<u64>) -> Result<(), Error> {
        let mut daemon = StorageDaemon::start()?;
        self.open_in(&mut daemon)?;
        let root = self.top().map(|top| node_name(&top.file)).unwrap_or_default();
        let order = self.order(&root, None, speed)?;
        self.copy(daemon.monitor(), &order)?;
        // The daemon changes no header: that would not wait for the data.
        merge::give_up(daemon.monitor(), &self.job_name())?;
        daemon.end()?;
        pass(Failpoint::MergeCopied)?;
        self.check_copied()?;
        self.finish(machine, None)
    }

    /// Looks into the target's own tables, on the disk, for all that it has taken over. Neither QEMU's flush nor the end of a
    /// storage daemon tells when tables could not be written.
    fn check_copied(&self) -> Result<(), Error> {
        let Some(target) = self.target() else { return Ok(()) };
        let path = self.ctx.home.absolute(&target.path);
        durable::sync_file(&path)?;
        let incomplete = || keyframe_hypervisor::Error::Merge {
            reason: format!("{} does not hold all that was copied to it", path.display()),
        };
        let held = Held::by(target, &path).ok_or_else(incomplete)?;
        for layer in self.journal.layers.iter().filter(|layer| layer.file != target.file) {
            let source = self.ctx.home.absolute(&layer.path);
            let all = Held::by(layer, &source).is_some_and(|layer| held.decides_all_data_of(&layer));
            if !all {
                return Err(incomplete().into());
            }
        }
        Ok(())
    }

    /// Opens the layers and all that they stand on, the lowest first.
    fn open_in(&self, daemon: &mut StorageDaemon) -> Result<(), Error> {
        let mut chain = self.journal.layers.clone();
        let trees = Trees::of(self.ctx.home);
        let below = trees.below(&self.journal.disk, self.journal.base.clone())?;
        chain.splice(0..0, below.layers.into_iter().rev());
        let mut backing: Option<String> = None;
        for (depth, layer) in chain.iter().enumerate() {
            let path = self.ctx.home.absolute(&layer.path);
            let file = LayerFile { id: layer.file.clone(), direct: takes_direct_io(&path), path, format: layer.format };
            let access = if depth + 1 == chain.len() { LayerAccess::Active } else { LayerAccess::Frozen };
            let options = layer_node(&file, access, backing.as_deref());
            #[cfg(test)]
            let options = match self.target().filter(|target| target.file == layer.file) {
                Some(_) => crate::merge::model::tape::observed(&file.path, options),
                None => options,
            };
            let options = options.as_object().cloned().unwrap_or_default();
            daemon.monitor().call(&BlockdevAdd::new(options))?;
            backing = Some(node_name(&layer.file));
        }
        Ok(())
    }

    /// Copies until all is there.
    fn copy(&self, monitor: &mut Client, order: &MergeOrder) -> Result<(), Error> {
        let dir = self.target().map(|target| self.ctx.home.absolute(&target.path)).unwrap_or_default();
        let dir = dir.parent().unwrap_or(Path::new("/")).to_owned();
        let mut failure = None;
        let (mut closest, mut closer_at) = (u64::MAX, Instant::now());
        let mut room_at = Instant::now();
        let copied = merge::copy(monitor, &self.job_name(), order, |progress: MergeProgress| {
            self.ctx.progress.bytes(progress.done, progress.total);
            // Only what the guest writes to can run away from the copy, and only once all was copied.
            let left = progress.total.saturating_sub(progress.done);
            if !progress.ready || left < closest {
                (closest, closer_at) = (if progress.ready { left } else { u64::MAX }, Instant::now());
            }
            let verdict = self.ctx.check().and_then(|()| {
                if closer_at.elapsed() > NOT_CONVERGING_AFTER {
                    return Err(Error::NotConverging { disk: self.journal.disk.clone() });
                }
                if room_at.elapsed() > ROOM_EVERY {
                    room_at = Instant::now();
                    // The layers' file system, and that of the documents which say what became of them.
                    for place in [dir.as_path(), self.ctx.home.root()] {
                        let free = space::free(place)?;
                        if free < ROOM_LEFT {
                            return Err(Error::NoSpace { path: place.to_owned(), needed: ROOM_LEFT, free });
                        }
                    }
                }
                Ok(())
            });
            match verdict {
                Ok(()) => Verdict::GoOn,
                Err(error) => {
                    failure = Some(error);
                    Verdict::GiveUp
                }
            }
        })?;
        match copied {
            Copied::All => Ok(()),
            Copied::GivenUp => Err(failure.unwrap_or(Error::Interrupted)),
        }
    }

    /// What is left once all data are in the target and safe. May be done again from anywhere.
    fn finish(&self, machine: &mut Machine, monitor: Option<&mut Client>) -> Result<(), Error> {
        let (Some(top), Some(target)) = (self.top().cloned(), self.target().cloned()) else { return Ok(()) };
        let path = self.ctx.home.absolute(&target.path);
        durable::sync_file(&path)?;
        match self.journal.way {
            Way::Pull => self.point_to_base(&top, monitor.is_some())?,
            Way::Push => self.point_to_target(machine, monitor.is_some())?,
        }
        pass(Failpoint::MergeHeadersWritten)?;
        self.commit(machine)?;
        pass(Failpoint::MergeCommitted)?;
        self.clean_up(machine, monitor)
    }

    /// The pulled layer stands on what the merged ones stood on; QEMU has done that where it has it open.
    fn point_to_base(&self, top: &Layer, live: bool) -> Result<(), Error> {
        let path = self.ctx.home.absolute(&top.path);
        if live || self.points_to_base(top)? {
            return Ok(());
        }
        let base = self.base()?.map(|base| layers::backing(self.ctx.home, &path, &base)).transpose()?;
        let layer_error = |source| Error::Layer { path: path.clone(), source };
        keyframe_qcow2::set_backing(&path, base.as_ref()).map_err(layer_error)
    }

    fn points_to_base(&self, top: &Layer) -> Result<bool, Error> {
        match self.base()? {
            Some(base) => self.points_to(top, &base),
            None => Ok(self.header(top)?.backing().is_none()),
        }
    }

    /// Everyone who stood on the topmost stands on the target. QEMU has seen to those it has open.
    fn point_to_target(&self, machine: &Machine, live: bool) -> Result<(), Error> {
        // Nobody stands on an active layer.
        let Some(target) = self.target().filter(|_| !self.journal.active) else { return Ok(()) };
        for child in self.children()? {
            let open = live && machine.head.chains().any(|chain| chain.layers.iter().any(|it| it.id == child.id));
            let path = self.ctx.home.absolute(&child.path);
            if open || self.points_to(&child, target)? {
                durable::sync_file(&path)?;
                continue;
            }
            let backing = layers::backing(self.ctx.home, &path, target)?;
            keyframe_qcow2::set_backing(&path, Some(&backing)).map_err(|source| Error::Layer { path, source })?;
        }
        Ok(())
    }

    fn header(&self, layer: &Layer) -> Result<Header, Error> {
        let path = self.ctx.home.absolute(&layer.path);
        let file = std::fs::File::open(&path).or_io("open", &path)?;
        Header::read(&file).map_err(|source| Error::Layer { path, source })
    }

    /// Whether a layer's header names another's file.
    fn points_to(&self, layer: &Layer, below: &Layer) -> Result<bool, Error> {
        let path = self.ctx.home.absolute(&layer.path);
        let expected = layers::backing(self.ctx.home, &path, below)?;
        Ok(self.header(layer)?.backing().is_some_and(|name| name.as_bytes() == expected.name().as_bytes()))
    }

    /// Layers that stand on the topmost.
    fn children(&self) -> Result<Vec<Arc<Layer>>, Error> {
        let Some(top) = self.top() else { return Ok(Vec::new()) };
        let graph = Graph::without(self.ctx.home, &top.vm, &BTreeSet::new())?;
        let children = graph.get(&LayerRef::to(top)).map(|node| node.children.clone()).unwrap_or_default();
        Ok(children.iter().filter_map(|child| graph.get(child)).map(|node| node.layer.clone()).collect())
    }

    /// The one document that says what is below what.
    fn commit(&self, machine: &mut Machine) -> Result<(), Error> {
        let (Some(top), Some(target)) = (self.top(), self.target()) else { return Ok(()) };
        let fresh =
            Layer { id: top.id.clone(), virtual_bytes: top.virtual_bytes, frozen: None, ..Layer::clone(target) };
        if self.journal.active {
            let below = Trees::of(self.ctx.home).below(&self.journal.disk, self.journal.base.clone())?;
            for chain in machine.head.chains_mut().filter(|chain| chain.disk == self.journal.disk) {
                chain.layers = std::iter::once(Arc::new(fresh.clone())).chain(below.layers.iter().cloned()).collect();
            }
            return machine.write_head();
        }
        let mut tree = TreeDocument::read(&machine.dir)?;
        if self.journal.way == Way::Push {
            // Whoever stood on the topmost has another header now.
            for child in self.children()? {
                self.look_again(&mut tree, &child)?;
            }
        }
        let frozen = Some(self.settled(target)?);
        tree.put(TreeLayer {
            disk: self.journal.disk.clone(),
            layer: Arc::new(Layer { frozen, ..fresh }),
            below: self.journal.base.clone(),
        });
        tree.write(&machine.dir)?;
        self.reload(machine)
    }

    /// Notes what a frozen layer's file looks like now.
    fn look_again(&self, tree: &mut TreeDocument, layer: &Layer) -> Result<(), Error> {
        if let Some(entry) = tree.find(&layer.id).filter(|entry| entry.layer.frozen.is_some()) {
            let frozen = Some(self.settled(layer)?);
            tree.put(TreeLayer { layer: Arc::new(Layer { frozen, ..Layer::clone(&entry.layer) }), ..entry.clone() });
        }
        Ok(())
    }

    /// What a file looks like, once that is durable: times of last writes, too.
    fn settled(&self, layer: &Layer) -> Result<Fingerprint, Error> {
        let path = self.ctx.home.absolute(&layer.path);
        durable::sync_file(&path)?;
        Fingerprint::of(&path)
    }

    fn reload(&self, machine: &mut Machine) -> Result<(), Error> {
        if let Some(head) = Trees::of(self.ctx.home).head(&machine.dir)? {
            machine.head = head;
        }
        Ok(())
    }

    fn clean_up(&self, machine: &Machine, monitor: Option<&mut Client>) -> Result<(), Error> {
        if let Some(monitor) = monitor {
            if self.journal.was_running && self.journal.stops_guest() {
                cut::resume_if_paused(monitor);
            }
            let Some(target) = self.target() else { return Ok(()) };
            let gone = self.journal.layers.iter().rev().filter(|layer| layer.file != target.file);
            merge::close(monitor, &gone.map(|layer| node_name(&layer.file)).collect::<Vec<_>>());
        }
        layers::drop_unused(self.ctx.home, &machine.dir)?;
        pass(Failpoint::MergeFilesGone)?;
        durable::remove_file(&machine.dir.journal())
    }

    /// Finishes the merge or takes it back, from wherever it stands.
    ///
    /// # Errors
    /// When that is not possible now; the next command tries again. Until then every chain reads as before.
    pub fn recover(&self, machine: &mut Machine) -> Result<(), Error> {
        let mut monitor = match machine.monitor() {
            Ok(monitor) => Some(monitor),
            Err(_) if machine.process().is_none() => None,
            Err(error) => return Err(error),
        };
        let was_open = self.journal.live;
        if let Some(monitor) = &mut monitor {
            for job in merge::jobs(monitor, JOB_PREFIX)? {
                merge::give_up(monitor, &job)?;
            }
        }
        self.wait_until_let_go(was_open && monitor.is_some())?;
        let monitor = monitor.as_mut().filter(|_| was_open);
        if self.is_committed(machine)? {
            return self.clean_up(machine, monitor);
        }
        let mut monitor = monitor;
        if self.is_merged(monitor.as_deref_mut())? {
            return self.finish(machine, monitor);
        }
        if let (true, Some(monitor)) = (self.journal.was_running && self.journal.stops_guest(), monitor)
            && state_of(monitor) == State::Paused
        {
            cut::resume_if_paused(monitor);
        }
        self.take_back(machine)
    }

    /// A storage daemon dies with its command, but not in no time. QEMU's own locks tell when it is gone.
    fn wait_until_let_go(&self, open_in_machine: bool) -> Result<(), Error> {
        let Some(target) = self.target().filter(|_| !open_in_machine) else { return Ok(()) };
        let path = self.ctx.home.absolute(&target.path);
        let file = match std::fs::OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.or_io("open", &path)?,
        };
        let deadline = Instant::now() + LET_GO_PATIENCE;
        loop {
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Err(errno) => return Err(std::io::Error::from(errno)).or_io("wait for whoever has open", &path),
            }
        }
    }

    /// Whether the documents tell of the merge.
    fn is_committed(&self, machine: &Machine) -> Result<bool, Error> {
        let (Some(top), Some(target)) = (self.top(), self.target()) else { return Ok(true) };
        let (file, below) = if self.journal.active {
            let chain = machine.head.chains().find(|chain| chain.disk == self.journal.disk);
            let layers = chain.map(|chain| chain.layers.as_slice()).unwrap_or_default();
            (layers.first().map(|layer| layer.file.clone()), layers.get(1).map(|layer| LayerRef::to(layer)))
        } else {
            let tree = TreeDocument::read(&machine.dir)?;
            let entry = tree.find(&top.id);
            (entry.map(|entry| entry.layer.file.clone()), entry.and_then(|entry| entry.below.clone()))
        };
        Ok(file.as_ref() == Some(&target.file) && below == self.journal.base)
    }

    /// Whether the chain itself has changed.
    fn is_merged(&self, monitor: Option<&mut Client>) -> Result<bool, Error> {
        let (Some(top), Some(target)) = (self.top(), self.target()) else { return Ok(false) };
        match (self.journal.way, self.journal.active, monitor) {
            (Way::Pull, _, _) => self.points_to_base(top),
            (Way::Push, true, Some(monitor)) => {
                let active = node_name(&target.file);
                let backends = monitor.call(&QueryBlock {})?;
                let mut nodes = backends.into_iter().filter_map(|backend| backend.inserted?.node_name);
                Ok(nodes.any(|node| node.as_str() == active))
            }
            // Nobody can have written to the lower one: the guest was stopped, and the head still names the upper.
            (Way::Push, true, None) => Ok(false),
            (Way::Push, false, _) => {
                for child in self.children()? {
                    if self.points_to(&child, target)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// The layers stay as they were; the target has data of its neighbours in it, which nobody sees.
    fn take_back(&self, machine: &mut Machine) -> Result<(), Error> {
        if let Some(target) = self.target() {
            let mut tree = TreeDocument::read(&machine.dir)?;
            self.look_again(&mut tree, target)?;
            tree.write(&machine.dir)?;
            self.reload(machine)?;
        }
        durable::remove_file(&machine.dir.journal())
    }
}
