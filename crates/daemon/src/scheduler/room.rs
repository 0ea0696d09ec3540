//! What may be at work at once: limits of the host, of its disks, and of policies.

use std::collections::{BTreeSet, HashMap};

use super::Scheduler;
use crate::job::{Job, Request, State};

/// What may be at work at once, and what is.
pub(crate) struct Room {
    all: usize,
    machines: BTreeSet<String>,
    by_policy: HashMap<String, usize>,
    by_device: HashMap<u64, usize>,
    by_device_and_policy: HashMap<(u64, String), usize>,
}

impl Room {
    /// What is at work.
    pub fn of<F, H>(scheduler: &Scheduler<F, H>) -> Self {
        let mut room = Self {
            all: 0,
            machines: BTreeSet::new(),
            by_policy: HashMap::new(),
            by_device: HashMap::new(),
            by_device_and_policy: HashMap::new(),
        };
        for job in scheduler.jobs.values().filter(|job| job.state == State::Running) {
            room.take(job, scheduler);
        }
        room
    }

    /// One more is at work.
    pub fn take<F, H>(&mut self, job: &Job, scheduler: &Scheduler<F, H>) {
        self.all += 1;
        let policy = policy_of(job);
        *self.by_policy.entry(policy.to_owned()).or_default() += 1;
        if job.is_at_machines() {
            self.machines.extend(job.machines().map(str::to_owned));
        }
        for device in devices(job, scheduler) {
            *self.by_device.entry(device).or_default() += 1;
            *self.by_device_and_policy.entry((device, policy.to_owned())).or_default() += 1;
        }
    }

    /// Keeps the disks of one that has no room yet, for as long as this is asked.
    pub fn reserve<F, H>(&mut self, job: &Job, scheduler: &Scheduler<F, H>) {
        if job.together.is_some() && job.machines().all(|machine| !self.machines.contains(machine)) {
            devices(job, scheduler).into_iter().for_each(|device| *self.by_device.entry(device).or_default() += 1);
        }
    }

    /// Whether one more may be: one at a time on a machine; what is owed also within the limits of the host and of the policy. What somebody waits for is
    /// not limited.
    pub fn has<F, H>(&self, job: &Job, scheduler: &Scheduler<F, H>) -> bool {
        if job.is_at_machines() && job.machines().any(|machine| self.machines.contains(machine)) {
            return false;
        }
        if job.duty().is_none() {
            return true;
        }
        let host = &scheduler.policies.host;
        let limits = scheduler.owed.get(&job.machine).map(|owed| owed.limits).unwrap_or_default();
        let policy = policy_of(job);
        let below = |taken: Option<&usize>, limit: u32| taken.copied().unwrap_or(0) < limit as usize;
        self.all < host.jobs as usize
            && limits.jobs.is_none_or(|limit| below(self.by_policy.get(policy), limit))
            && devices(job, scheduler).iter().all(|device| {
                below(self.by_device.get(device), host.jobs_per_disk)
                    && limits
                        .jobs_per_disk
                        .is_none_or(|limit| below(self.by_device_and_policy.get(&(*device, policy.to_owned())), limit))
            })
    }
}

fn policy_of(job: &Job) -> &str {
    match &job.request {
        Request::Owed { policy, .. } => policy,
        Request::Asked(_) => "",
    }
}

/// The disks of the host that a job's machines are on, each once; none for what is done in a repository alone.
fn devices<F, H>(job: &Job, scheduler: &Scheduler<F, H>) -> BTreeSet<u64> {
    let machines = job.machines().filter(|_| job.is_at_machines());
    machines.filter_map(|machine| scheduler.machines.get(machine)).flat_map(|seen| seen.devices.clone()).collect()
}
