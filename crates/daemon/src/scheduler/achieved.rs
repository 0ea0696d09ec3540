//! What counts as done, from when on, and for whom: for the machine and the repository that it was made of, and no other.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Key, Scheduler};
use crate::fleet::Fleet;
use crate::hands::Hands;
use crate::job::{Duty, Job, Made, State, Whose};
use crate::outcome;

/// Why something that was made is none of a machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strange {
    Machine,
    Place,
}

impl<F: Fleet, H: Hands> Scheduler<F, H> {
    /// Machines of which something is known, and that are not there.
    pub fn gone(&self) -> impl Iterator<Item = &str> {
        let known: BTreeSet<&str> = self.achieved.keys().map(|(machine, _)| machine.as_str()).collect();
        known.into_iter().filter(|machine| !self.machines.contains_key(*machine))
    }

    /// Forgets what was achieved for a machine that is not there. What was made of it stays where it is.
    pub fn forget_machine(&mut self, machine: &str, now: Timestamp) {
        let all: BTreeSet<Key> = self.known_of(machine).cloned().collect();
        all.into_iter().for_each(|key| self.forget(key, now));
    }

    /// The duties of which something is known of a machine.
    fn known_of(&self, machine: &str) -> impl Iterator<Item = &Key> {
        self.achieved.keys().chain(self.begun.keys()).filter(move |key| key.0 == machine)
    }

    /// What was made counts from now on, whatever becomes of what is done behind it.
    pub(super) fn count(&mut self, job: &mut Job) {
        if !matches!(job.kind(), "snapshot" | "backup") {
            return;
        }
        let counting: Vec<(Key, Job)> = outcome::achievements(job).collect();
        job.counted = !counting.is_empty();
        for (key, seen) in counting {
            // What was not done behind the one before is not done yet.
            let untidy = self.achieved.get(&key).and_then(|before| before.untidy.clone());
            self.troubles.remove(&key);
            self.achieve(key, Job { counted: true, untidy, ..seen });
        }
    }

    fn achieve(&mut self, key: Key, job: Job) {
        // It was begun for another machine, or for another place, than there is now.
        if self.strangeness(&key, &job).is_some() {
            return;
        }
        self.made.push((key.clone(), job.clone()));
        self.achieved.insert(key, job);
    }

    /// How a job that is over counts. Where what it made was counted before, a later one may have taken its place since, or it was
    /// forgotten: that is not undone.
    pub(super) fn count_ended(&mut self, job: &Job) {
        if !job.counted {
            note_trouble(&mut self.troubles, job);
        }
        for (key, seen) in outcome::achievements(job).collect::<Vec<_>>() {
            match self.achieved.get(&key) {
                _ if !job.counted => self.achieve(key, seen),
                Some(latest) if latest.id == job.id => self.achieve(key, seen),
                Some(latest) if seen.untidy.is_some() => {
                    let latest = Job { untidy: seen.untidy, ..latest.clone() };
                    self.achieve(key, latest);
                }
                _ => {}
            }
        }
    }

    /// Of which machines something is about to be made, and where.
    pub(super) fn whose(&self, job: &Job) -> BTreeMap<String, Whose> {
        let repository = self.repository(job);
        let whose = |machine: &str| {
            let uuid = self.machines.get(machine)?.uuid.clone();
            // One that could not be read since the daemon was started.
            (!uuid.is_empty()).then(|| (machine.to_owned(), Whose { uuid, repository: repository.clone() }))
        };
        job.machines().filter_map(whose).collect()
    }

    /// Forgets what was achieved for another machine by the same name, or in another repository: it is due as what was never made is.
    pub(super) fn forget_strangers(&mut self, now: Timestamp) {
        let mut strange = BTreeSet::new();
        for (key, job) in &self.achieved {
            match self.strangeness(key, job) {
                Some(Strange::Machine) => strange.extend(self.known_of(&key.0).cloned()),
                // Nor is proved what is in the other one.
                Some(Strange::Place) => strange.extend([key.clone(), (key.0.clone(), Duty::Drill.key())]),
                None => {}
            }
        }
        strange.into_iter().for_each(|key| self.forget(key, now));
    }

    /// Whether something was made of another machine by that name, or is in another repository than what is owed now.
    fn strangeness(&self, (machine, duty): &Key, job: &Job) -> Option<Strange> {
        let of = job.made.as_ref()?.of.as_ref()?;
        let seen = self.machines.get(machine)?;
        if !seen.uuid.is_empty() && seen.uuid != of.uuid {
            return Some(Strange::Machine);
        }
        let backups = self.owed.get(machine).into_iter().flat_map(|owed| &owed.backups);
        let mut same_name = backups.filter(|backup| Duty::Backup(backup.name.to_string()).key() == *duty);
        let elsewhere = |place: &String| same_name.any(|backup| *place != backup.repository);
        of.repository.as_ref().is_some_and(elsewhere).then_some(Strange::Place)
    }

    /// Forgets that a duty was done, or begun: it is due as soon as it is owed.
    fn forget(&mut self, key: Key, now: Timestamp) {
        self.troubles.remove(&key);
        if let Some(duty) = Duty::of_key(&key.1) {
            self.unstamp(&key.0, &duty, now);
        }
        if self.achieved.remove(&key).is_some() {
            self.made.retain(|(made, _)| *made != key);
            self.strange.push(key);
        }
    }
}

/// Takes down of which machine, and in which repository, something was made.
pub(super) fn sign(job: &mut Job) {
    let whose = std::mem::take(&mut job.whose);
    let sign = |machine: &str, made: &mut Option<Made>| {
        if let Some(made) = made.as_mut().filter(|made| made.of.is_none()) {
            made.of = whose.get(machine).cloned();
        }
    };
    sign(&job.machine, &mut job.made);
    for (machine, share) in job.together.iter_mut().flat_map(|together| &mut together.machines) {
        sign(machine, &mut share.made);
    }
    job.whose = whose;
}

/// Takes down what a job that is over means for what was given up of its duty, for each of its machines.
pub(super) fn note_trouble(troubles: &mut BTreeMap<Key, Job>, job: &Job) {
    let Some(duty) = job.duty() else { return };
    for machine in job.machines() {
        let (key, seen) = ((machine.to_owned(), duty.key()), job.seen_from(machine));
        match seen.state {
            State::Failed => drop(troubles.insert(key, seen)),
            State::Done | State::Incomplete => drop(troubles.remove(&key)),
            _ => {}
        }
    }
}
