//! The end of a merge, from wherever it stands: headers, the document that says what is below what, files; and taking back.

//!
//! What is synced when, each before what relies on it, and nothing twice:
//!
//! | what | before |
//! |---|---|
//! | the target's data and tables | a header that makes somebody read them there |
//! | headers, and the times of files whose header changed | the document that says what those files look like |
//! | the document, and with it the names of layers that are forgotten | their files go |
//!
//! The journal's removal is not synced: it is in the same directory as the documents, so whatever is written there next
//! takes it along, and until then a journal that comes back is of a merge that is known to be done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::node_name;
use keyframe_hypervisor::{cut, merge};
use keyframe_qcow2::header::Header;
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::QueryBlock;
use rustix::fs::FlockOperation;

use super::{JOB_PREFIX, LET_GO_PATIENCE, Step};
use crate::error::{Error, IoContext as _};
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::{Machine, State, state_of};
use crate::merge::graph::Graph;
use crate::merge::plan;
use crate::state::durable;
use crate::state::head::{Fingerprint, Layer};
use crate::state::journal::Way;
use crate::state::tree::{LayerRef, TreeDocument, TreeLayer, Trees};

/// A name that changes with a chain.
struct Owed {
    /// The layer whose header has it.
    above: Arc<Layer>,
    /// What it names afterwards.
    below: Arc<Layer>,
}

impl Step<'_> {
    /// Makes the target durable: its data and tables, before a header or a document makes anybody read them.
    pub(super) fn sync_target(&self) -> Result<(), Error> {
        self.target().map_or(Ok(()), |target| durable::sync_file(&self.ctx.home.absolute(&target.path)))
    }

    /// What is left once all data are in the target and safe ([`Step::sync_target`]). May be done again from anywhere.
    pub(super) fn finish(&self, machine: &mut Machine, monitor: Option<&mut Client>) -> Result<(), Error> {
        let (Some(top), Some(_)) = (self.top().cloned(), self.target()) else { return Ok(()) };
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
            // QEMU does not sync a header that it writes. A frozen one is synced when it is looked at again.
            return if top.frozen.is_none() { durable::sync_file(&path) } else { Ok(()) };
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
                // A frozen one is synced when it is looked at again.
                if child.frozen.is_none() {
                    durable::sync_file(&path)?;
                }
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
        Ok(self.children_in(&Graph::without(self.ctx.home, &top.vm, &BTreeSet::new())?))
    }

    fn children_in(&self, graph: &Graph) -> Vec<Arc<Layer>> {
        let node = self.top().and_then(|top| graph.get(&LayerRef::to(top)));
        let children = node.map(|node| node.children.clone()).unwrap_or_default();
        children.iter().filter_map(|child| graph.get(child)).map(|node| node.layer.clone()).collect()
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
        let graph = Graph::without(self.ctx.home, &top.vm, &BTreeSet::new())?;
        let mut tree = TreeDocument::read(&machine.dir)?;
        let frozen = match self.journal.way {
            Way::Push => {
                // Whoever stood on the topmost has another header now; the target has not changed since it was synced.
                for child in self.children_in(&graph) {
                    self.look_again(&mut tree, &child)?;
                }
                Fingerprint::of(&self.ctx.home.absolute(&target.path))?
            }
            Way::Pull => self.settled(target)?,
        };
        // Layers that were merged away are forgotten in the same write, unless somebody else needs them.
        let stays = |entry: &TreeLayer| {
            let merged = self.journal.layers.iter().any(|layer| layer.id == entry.layer.id && layer.id != top.id);
            let node = graph.get(&LayerRef::to(&entry.layer));
            !merged || node.is_some_and(|node| !plan::can_go(machine.name(), node))
        };
        tree.layers.retain(stays);
        tree.put(TreeLayer {
            disk: self.journal.disk.clone(),
            layer: Arc::new(Layer { frozen: Some(frozen), ..fresh }),
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
        durable::remove_file_unsynced(&machine.dir.journal())
    }

    /// Whether QEMU reads through the shorter chain already and only a header does not say so: it could not be written when the
    /// chain was changed. Nobody reads anything else for it, but no job can be made of layers that are in the chain no more.
    pub(super) fn is_ahead(&self, machine: &Machine, monitor: &mut Client) -> Result<bool, Error> {
        let Some(Owed { above, below }) = self.changes(machine)? else { return Ok(false) };
        let found = merge::stands_on(monitor, &node_name(&above.file))?;
        let expected = self.ctx.home.absolute(&below.path);
        Ok(found == Some(expected) && !self.points_to(&above, &below)?)
    }

    /// Has QEMU write the header that it owes.
    pub(super) fn catch_up(&self, machine: &Machine, monitor: &mut Client) -> Result<(), Error> {
        let Some(Owed { above, below }) = self.changes(machine)? else { return Ok(()) };
        self.sync_target()?;
        let path = self.ctx.home.absolute(&above.path);
        let name = layers::backing(self.ctx.home, &path, &below)?.name().to_string();
        merge::write_header(monitor, &self.job_name(), &node_name(&above.file), &node_name(&below.file), name)?;
        if !self.points_to(&above, &below)? {
            let reason = format!("QEMU has not written the header of {}", path.display());
            return Err(keyframe_hypervisor::Error::Merge { reason }.into());
        }
        durable::sync_file(&path)
    }

    /// The name that changes with the chain; `None` where no name changes, as of an active
    /// layer that is merged away, or of one that stands on nothing afterwards.
    fn changes(&self, machine: &Machine) -> Result<Option<Owed>, Error> {
        let pair = match self.journal.way {
            Way::Pull => self.top().cloned().zip(self.base()?),
            Way::Push if self.journal.active => None,
            Way::Push => {
                let chain = machine.head.chains().find(|chain| chain.disk == self.journal.disk);
                let layers = chain.map(|chain| chain.layers.as_slice()).unwrap_or_default();
                let at = layers.iter().position(|layer| self.top().is_some_and(|top| top.id == layer.id));
                let above = at.and_then(|at| layers.get(at.checked_sub(1)?)).cloned();
                above.zip(self.target().cloned())
            }
        };
        Ok(pair.map(|(above, below)| Owed { above, below }))
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
            self.sync_target()?;
            return self.finish(machine, monitor);
        }
        if let Some(monitor) = monitor.as_deref_mut()
            && self.is_ahead(machine, monitor)?
        {
            self.catch_up(machine, monitor)?;
            return self.finish(machine, Some(monitor));
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
    pub(super) fn is_merged(&self, monitor: Option<&mut Client>) -> Result<bool, Error> {
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
