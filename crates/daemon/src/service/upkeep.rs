//! What is done for machines whatever policies say, and noticing which there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keyframe_engine::state::durable;

use super::{Service, paused_file, removed_dir};
use crate::job::Action;

/// How often each machine is seen to, whether or not a policy chooses it.
const UPKEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked which of them want it.
const UPKEEP_LOOKS_EVERY: Duration = Duration::from_secs(600);
/// Who sees to machines whatever policies say.
const UPKEEP: &str = "keyframe serve";

/// Which machines are still to be looked at, and when each was seen to.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    looked: Option<Instant>,
    left: Vec<String>,
    seen_to: BTreeMap<String, Instant>,
}

impl Service {
    /// Sees to machines that were left in the middle of something, and to snapshots that are past their time although no policy's job
    /// looks after them: once a day each, one after the other, at the start at once.
    pub(super) fn keep_up(&mut self, now: Timestamp) {
        let at_work = self.scheduler.jobs().any(|job| job.by == UPKEEP);
        if at_work || self.scheduler.paused() || self.scheduler.draining() || self.scheduler.catalog().stands_in() {
            return;
        }
        if self.upkeep.looked.is_none_or(|at| at.elapsed() >= UPKEEP_LOOKS_EVERY) {
            self.upkeep.looked = Some(Instant::now());
            let seen_to = &self.upkeep.seen_to;
            let rested = |name: &&String| seen_to.get(*name).is_none_or(|at| at.elapsed() >= UPKEEP_EVERY);
            self.upkeep.left = self.scheduler.machines().keys().filter(rested).cloned().collect();
        }
        while let Some(name) = self.upkeep.left.pop() {
            let busy = self.scheduler.jobs().any(|job| job.is_for(&name));
            let Some(command) = self.scheduler.upkeep_of(&name, now).filter(|_| !busy) else { continue };
            let action =
                Action { kind: command.to_owned(), arguments: vec![command.to_owned(), name.clone()], backup: None };
            match self.scheduler.ask(&name, action, UPKEEP, now) {
                Ok(_) => drop(self.upkeep.seen_to.insert(name, Instant::now())),
                Err(error) => tracing::warn!("{name} cannot be seen to: {error}"),
            }
            return;
        }
    }

    /// Forgets machines that were removed by `keyframe vm remove`, which leaves word of that: they are not missed.
    pub(super) fn forget_removed(&mut self, now: Timestamp) {
        let removed = removed_dir(&self.shared.serve);
        for entry in std::fs::read_dir(&removed).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !self.scheduler.machines().contains_key(&name) {
                let by = std::fs::read_to_string(entry.path()).unwrap_or_default();
                self.note_if_possible(by.trim(), &format!("remove {name}"), "what was achieved for it is forgotten");
                self.scheduler.forget_machine(&name, now);
            }
            if let Err(error) = durable::remove_file(&entry.path()) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Sees to it that a pause outlives a restart, also when there was no room to note it at first.
    pub(super) fn keep_pause(&self) -> Result<(), keyframe_engine::Error> {
        let file = paused_file(&self.shared.serve);
        match &self.paused_by {
            Some(by) if !file.exists() => durable::replace(&file, by.as_bytes()),
            None if file.exists() => durable::remove_file(&file),
            _ => Ok(()),
        }
    }

    /// Notes which machines came, and which are there no more.
    pub(super) fn note_machines(&mut self) {
        if self.scheduler.machines().keys().eq(&self.known) {
            return;
        }
        let now: BTreeSet<String> = self.scheduler.machines().keys().cloned().collect();
        let known = std::mem::replace(&mut self.known, now.clone());
        for name in now.difference(&known) {
            self.note_if_possible("keyframe serve", &format!("see {name}"), "it is there now");
        }
        self.lost.retain(|name, _| !now.contains(name));
        for name in known.difference(&now) {
            self.lost.insert(name.clone(), Instant::now());
            self.note_if_possible("keyframe serve", &format!("see {name}"), "it is not there any more");
        }
    }
}
