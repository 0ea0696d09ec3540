//! When each duty is to be asked about next, in order.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use crate::job::Duty;

/// When each duty is to be asked about next.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    by_time: BTreeSet<(Timestamp, String, Duty)>,
    at: HashMap<(String, Duty), Timestamp>,
}

impl Agenda {
    /// Puts a duty on it, or elsewhere on it.
    pub fn put(&mut self, machine: &str, duty: &Duty, at: Timestamp) {
        self.take(machine, duty);
        self.at.insert((machine.to_owned(), duty.clone()), at);
        self.by_time.insert((at, machine.to_owned(), duty.clone()));
    }

    fn take(&mut self, machine: &str, duty: &Duty) {
        if let Some(at) = self.at.remove(&(machine.to_owned(), duty.clone())) {
            self.by_time.remove(&(at, machine.to_owned(), duty.clone()));
        }
    }

    /// What is to be asked about by `now`; it is on the agenda no more.
    pub fn due(&mut self, now: Timestamp) -> Option<(String, Duty)> {
        if self.by_time.first()?.0 > now {
            return None;
        }
        let (_, machine, duty) = self.by_time.pop_first()?;
        self.at.remove(&(machine.clone(), duty.clone()));
        Some((machine, duty))
    }

    /// When a duty is to be asked about.
    pub fn at(&self, machine: &str, duty: &Duty) -> Option<Timestamp> {
        self.at.get(&(machine.to_owned(), duty.clone())).copied()
    }

    /// When the first of all is.
    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, ..)| *at)
    }
}
