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

mod convergence;
mod settling;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::{LayerAccess, layer_node, node_name};
use keyframe_hypervisor::merge::{self, Copied, Direction, MergeOrder, MergeProgress, Verdict};
use keyframe_hypervisor::storage::StorageDaemon;
use keyframe_hypervisor::tracking::{self, Lasts};
use keyframe_hypervisor::{LayerFile, host::takes_direct_io};
use keyframe_qmp::Client;
use keyframe_qmp::commands::block::BlockdevAdd;
use keyframe_qmp::commands::machine::Stop;
use keyframe_types::ByteLen;

use crate::context::Context;
use crate::error::Error;
use crate::failpoint::{Failpoint, pass};
use crate::layers;
use crate::machine::Machine;
use crate::merge::plan::Held;
use crate::space;
use crate::state::head::Layer;
use crate::state::journal::{Journal, MergeJournal, Way};
use crate::state::sealed;
use crate::state::tree::{TreeDocument, Trees};

use convergence::Convergence;

/// All jobs' names begin so.
const JOB_PREFIX: &str = "merge-";
/// Whether a merge gains on its guest is looked at so often.
const GAINS_EVERY: Duration = Duration::from_secs(20);
/// What a job may have under way at once, and tells of only when it is done.
const AT_ONCE_BYTES: u64 = 4 << 20;
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
        if self.is_ahead(machine, &mut monitor)? {
            self.catch_up(machine, &mut monitor)?;
            return self.finish(machine, Some(&mut monitor));
        }
        self.track(&mut monitor);
        self.copy(&mut monitor, &order, speed)?;
        pass(Failpoint::MergeCopied)?;
        if self.journal.stops_guest() {
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
        if self.journal.stops_guest() {
            // This job flushes by itself, and tells when it cannot; others were synced before their chain changed.
            self.sync_target()?;
        }
        self.finish(machine, Some(&mut monitor))
    }

    /// Has QEMU note what is written to a layer that others are pushed into, and to it as the active one afterwards: a backup
    /// that knew it before need not read all of it again.
    fn track(&self, monitor: &mut Client) {
        if let (Way::Push, Some(target)) = (self.journal.way, self.lowest())
            && let Some(before) = &target.frozen
        {
            // Without it a backup compares.
            let _ = tracking::begin(monitor, &node_name(&target.file), &before.as_name(), Lasts::Process);
        }
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
        self.copy(daemon.monitor(), &order, speed)?;
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
        self.sync_target()?;
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
    fn copy(&self, monitor: &mut Client, order: &MergeOrder, speed: Option<u64>) -> Result<(), Error> {
        let dir = self.target().map(|target| self.ctx.home.absolute(&target.path)).unwrap_or_default();
        let dir = dir.parent().unwrap_or(Path::new("/")).to_owned();
        let mut failure = None;
        // Only what the guest writes to can run away from the copy, from its first byte on.
        let runs_away = self.journal.stops_guest();
        let slow = speed.map_or(0, |speed| AT_ONCE_BYTES / speed.max(1));
        let mut race = Convergence::of(GAINS_EVERY + Duration::from_secs(slow));
        let mut room_at = Instant::now();
        let copied = merge::copy(monitor, &self.job_name(), order, |progress: MergeProgress| {
            self.ctx.progress.bytes(progress.done, progress.total);
            let known = (progress.total > 0).then(|| convergence::Copied {
                done: progress.done,
                left: progress.total.saturating_sub(progress.done),
            });
            let hopeless = runs_away && race.is_lost(Instant::now(), known);
            let verdict = self.ctx.check().and_then(|()| {
                if hopeless {
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
}
