//! Jobs for the machines of a group together: which they are, and what becomes of those that leave.

use jiff::Timestamp;
use keyframe_policy::Owed;

use super::{Scheduler, duties};
use crate::fleet::Fleet;
use crate::hands::Hands;
use crate::job::{Duty, Job, State};

impl<F: Fleet, H: Hands> Scheduler<F, H> {
    /// The machines of a machine's group that the same policy chooses, by name; itself alone, where it belongs to none.
    pub(super) fn band(&self, machine: &str) -> Vec<String> {
        let of = |machine: &str| self.owed.get(machine).and_then(|owed| Some((owed.group.as_ref()?, &owed.policy)));
        match of(machine) {
            Some(group) => self.owed.keys().filter(|one| of(one) == Some(group)).cloned().collect(),
            None => vec![machine.to_owned()],
        }
    }

    /// Queues a job for machines, unless one of the same duty waits that has made nothing yet: it stands for both then, and does not wait
    /// any longer. What one holds that is past that is older than what is due now.
    pub(super) fn queue(&mut self, band: &[String], duty: &Duty, since: Timestamp, missed: u32, now: Timestamp) {
        let owed = band.first().and_then(|first| self.owed.get(first)).filter(|owed| duties(owed).contains(duty));
        let Some(owed) = owed else { return };
        let stands_for = |job: &Job| {
            let (covers, some) = (band.iter().all(|one| job.is_for(one)), band.iter().any(|one| job.is_for(one)));
            let same = job.duty() == Some(duty) && job.is_owed_by(&owed.policy);
            same && job.waits_to_begin() && (covers || some && job.began.is_none())
        };
        let open = self.jobs.values().find(|job| stands_for(job)).cloned();
        let mut fresh = Job::owed(&owed.machine, &owed.policy, duty.clone(), since, missed, now);
        if let Some(group) = owed.group.as_ref().filter(|_| band.len() > 1) {
            fresh = fresh.for_group(group.as_str(), band.iter().cloned());
        }
        let Some(mut job) = open else { return self.keep(fresh) };
        if job.began.is_none() {
            // Machines came to the group meanwhile, or went.
            (job.machine, job.together) = (fresh.machine, fresh.together);
        }
        job.missed = job.missed.saturating_add(1).saturating_add(missed);
        // A promise of its own: it begins with the first pause again.
        (job.retry_at, job.attempt) = (None, 1);
        self.keep(job);
    }

    /// Leaves out of jobs that wait the machines that are gone, or do not belong to their groups any more; these get what is owed to
    /// them by jobs of their own.
    pub(super) fn regroup(&mut self, now: Timestamp) {
        let waiting = self.jobs.values().filter(|job| job.waits_to_begin());
        let groups: Vec<Job> = waiting.filter(|job| job.together.is_some()).cloned().collect();
        for mut job in groups {
            let (Some(duty), Some(together)) = (job.duty().cloned(), job.together.clone()) else { continue };
            let stays = |machine: &str| {
                let owed = self.owed.get(machine).filter(|owed| job.is_owed_by(&owed.policy));
                owed.and_then(|owed| owed.group.as_ref()).is_some_and(|group| group.as_str() == together.group)
            };
            let (staying, leaving): (Vec<&String>, Vec<&String>) = together.machines.keys().partition(|one| stays(one));
            if leaving.is_empty() {
                continue;
            }
            job.retain(|machine| staying.iter().any(|one| *one == machine));
            let (due, whole_group_left) = (job.due, staying.is_empty());
            if whole_group_left {
                job.what = Some(format!("the group {} is no more", together.group));
                self.finish(job, State::Cancelled, now);
            } else {
                self.keep(job);
            }
            for machine in leaving {
                // With others of another group by now, for all of which there is one job.
                let is_open = |scheduler: &Self| {
                    let same = |job: &Job| job.duty() == Some(&duty) && job.is_for(machine);
                    scheduler.jobs.values().any(|job| same(job) && job.waits_to_begin())
                };
                if !is_open(self) {
                    self.queue(&self.band(machine), &duty, due, 0, now);
                }
                // It is owed nothing now: when it is again, that is due.
                if !is_open(self) {
                    self.unstamp(machine, &duty, now);
                }
            }
        }
    }

    /// What the first of a job's machines is owed that its policy still chooses; of one that somebody asked for, its machine.
    pub(super) fn owed_by_its_policy(&self, job: &Job) -> Option<&Owed> {
        let owed = || job.machines().filter_map(|machine| self.owed.get(machine));
        owed().find(|owed| job.is_owed_by(&owed.policy)).or_else(|| owed().next())
    }

    /// What a policy owed and does not owe any more, another one may owe.
    pub(super) fn leave_to_other_policies(&mut self, job: &Job, now: Timestamp) {
        let Some(duty) = job.duty() else { return };
        for machine in job.machines() {
            let nothing_made = job.seen_from(machine).made.is_none();
            if nothing_made && self.owed.get(machine).is_none_or(|owed| !job.is_owed_by(&owed.policy)) {
                self.unstamp(machine, duty, now);
            }
        }
    }
}
