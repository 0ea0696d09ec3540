//! What was known when the daemon was started: from its catalog, or from jobs' own records.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{Key, note_trouble};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::job::{Duty, Job};
use crate::outcome;

/// What was known when the daemon was started.
#[derive(Debug, Default)]
pub struct Remembered {
    /// When each duty was begun last.
    pub begun: HashMap<Key, Timestamp>,
    /// The latest job of each duty that ended well; drills that ended at all.
    pub achieved: HashMap<Key, Job>,
    /// Jobs that are not over.
    pub open: Vec<Job>,
    /// Duties whose last job was given up.
    pub troubles: BTreeMap<Key, Job>,
}

impl Remembered {
    /// What the catalog knows.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn of(catalog: &Catalog) -> Result<Self, Error> {
        Ok(Self {
            begun: catalog.begun()?,
            achieved: catalog.achieved()?,
            open: catalog.open_jobs()?,
            troubles: catalog.troubles()?,
        })
    }

    /// What jobs' own records tell, for a catalog that was lost.
    #[must_use]
    pub fn from_records(records: Vec<Job>) -> Self {
        let mut remembered = Self::default();
        for job in records {
            for (machine, duty) in duties(&job) {
                let at = job.began.unwrap_or(job.due).max(job.due);
                let begun = remembered.begun.entry((machine.to_owned(), duty.key())).or_insert(at);
                *begun = at.max(*begun);
            }
            remembered.achieved.extend(outcome::achievements(&job));
            note_trouble(&mut remembered.troubles, &job);
            if !job.state.is_over() {
                remembered.open.push(job);
            }
        }
        remembered
    }

    /// Puts it into a catalog that was made anew.
    ///
    /// # Errors
    /// [`Error::Catalog`].
    pub fn put(&self, jobs: &[Job], catalog: &Catalog) -> Result<(), Error> {
        jobs.iter().try_for_each(|job| catalog.put(job))?;
        self.achieved.iter().try_for_each(|((machine, duty), job)| catalog.achieve(machine, duty, job))?;
        let begun = |(machine, duty): (&str, &Duty)| {
            let at = self.begun.get(&(machine.to_owned(), duty.key()));
            at.map_or(Ok(()), |at| catalog.begin(machine, duty, *at))
        };
        jobs.iter().flat_map(duties).try_for_each(begun)
    }
}

/// What a job does that is owed, by machine.
fn duties(job: &Job) -> impl Iterator<Item = (&str, &Duty)> {
    job.duty().into_iter().flat_map(|duty| job.machines().map(move |machine| (machine, duty)))
}
