//! `keyframe expire`: snapshots whose time is up go, all of a machine's in one pass, so that neighbours merge once.
//!
//! What a clock says decides what is deleted, so the clock is not trusted blindly: one that is behind what it was before,
//! that has run ahead of the time the host has been up, or that shows a month nobody has seen since the host was last
//! up, may have been set, and nothing goes until a person says that it is right (`--accept-clock`). The same holds for one
//! by which a machine's newest snapshot is still to come. And a snapshot that was taken by a wrong clock has a time to live that
//! means nothing, as one that a host took before it had asked for the time: it stays until somebody says how long.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use keyframe_types::{SnapshotId, Timestamp, VmName};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::delete::{DeleteOptions, Deletion, delete_locked, refuse_held};
use crate::error::Error;
use crate::layers;
use crate::machine::Machine;
use crate::merge::graph::Graph;
use crate::snapshots;
use crate::state::home::Home;
use crate::state::label::Label;
use crate::state::lock::{CREATION_PATIENCE, Lock};
use crate::state::manifest::Manifest;
use crate::state::sealed::{self, Document};

/// How far it may go back: a step as time servers make it.
const STEP_BACK: Duration = Duration::from_secs(60);
/// How long a host may have been off without anybody asking whether its clock is right.
const OFF: Duration = Duration::from_secs(30 * 86_400);
/// How far the wall clock may run from the time since boot before it is taken for one that was set.
const DRIFT: Duration = Duration::from_secs(15 * 60);

/// What to let go.
#[derive(Debug, Clone)]
pub struct ExpireRequest {
    /// The machines; all if there is none.
    pub vms: Vec<VmName>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Bytes per second that merges move at most.
    pub speed: Option<u64>,
    /// The clock is right, whatever it looks like.
    pub accept_clock: bool,
}

/// A snapshot that is past its time and stays.
#[derive(Debug, Clone, Serialize)]
pub struct Stays {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What became of one machine's snapshots.
#[derive(Debug)]
pub struct Expiry {
    /// The machine.
    pub vm: VmName,
    /// What went, or would go; `None` when nothing was past its time.
    pub deletion: Option<Deletion>,
    /// What is past its time and stays.
    pub stays: Vec<Stays>,
    /// What kept the machine from being looked at.
    pub failure: Option<Error>,
}

/// Lets go of what is past its time.
///
/// # Errors
/// [`Error::ClockWasSet`]; [`Error::NoMachine`]. What fails for one machine is told of that machine.
pub fn expire(ctx: &Context<'_>, request: &ExpireRequest) -> Result<Vec<Expiry>, Error> {
    let now = Timestamp::now();
    check_clock(ctx.home, now, request)?;
    let all = ctx.home.machine_names()?;
    if let Some(unknown) = request.vms.iter().find(|vm| !all.contains(vm)) {
        return Err(Error::NoMachine(unknown.clone()));
    }
    let chosen = all.into_iter().filter(|vm| request.vms.is_empty() || request.vms.contains(vm));
    let mut expiries = Vec::new();
    for vm in chosen {
        ctx.check()?;
        expiries.push(of_machine(ctx, request, vm, now));
    }
    Ok(expiries)
}

fn of_machine(ctx: &Context<'_>, request: &ExpireRequest, vm: VmName, now: Timestamp) -> Expiry {
    let mut expiry = Expiry { vm, deletion: None, stays: Vec::new(), failure: None };
    let vm = expiry.vm.clone();
    let mut through = || -> Result<(), Error> {
        let (_lock, mut machine) = Machine::lock(ctx, &vm, &format!("expire {vm}"))?;
        let all: Vec<Manifest> = snapshots::scan(&machine.dir)?.0;
        if let Some(reason) = still_to_come(&all, now).filter(|_| !request.accept_clock) {
            return Err(Error::ClockWasSet { reason });
        }
        let mut due: Vec<Manifest> = Vec::new();
        for manifest in all.iter().filter(|manifest| manifest.expires.is_some_and(|at| at <= now)) {
            match taken_by_a_wrong_clock(manifest, &all) {
                // What somebody has said since counts.
                Some(reason) if Label::read(&machine.dir.snapshot(&manifest.id))?.expires.is_none() => {
                    expiry.stays.push(Stays { id: manifest.id.clone(), name: manifest.name.to_string(), reason });
                }
                _ => due.push(manifest.clone()),
            }
        }
        let options = DeleteOptions { dry_run: request.dry_run, detach: false, speed: request.speed };
        let going = if due.is_empty() { due } else { not_held(ctx, &vm, due, &mut expiry.stays)? };
        if !going.is_empty() {
            expiry.deletion = Some(delete_locked(ctx, &mut machine, &going, options)?);
        } else if !request.dry_run {
            layers::drop_unused_if_possible(ctx, &machine.dir);
        }
        Ok(())
    };
    let failure = through().err();
    expiry.failure = failure;
    expiry
}

/// Those of `due` that nothing holds; the others are told in `stays`, and keep none of these from going.
fn not_held(
    ctx: &Context<'_>,
    vm: &VmName,
    due: Vec<Manifest>,
    stays: &mut Vec<Stays>,
) -> Result<Vec<Manifest>, Error> {
    let graph = Graph::without(ctx.home, vm, &BTreeSet::new())?;
    let mut going = Vec::new();
    for manifest in due {
        match refuse_held(ctx, &manifest, &graph, false) {
            Ok(()) => going.push(manifest),
            Err(Error::Held { reason, .. }) => {
                stays.push(Stays { id: manifest.id, name: manifest.name.to_string(), reason });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(going)
}

/// Before Keyframe could take any: the first of 2025, in seconds since 1970.
const TOO_EARLY_S: u64 = 1_735_689_600;

/// A snapshot that, by this clock, was not taken yet.
fn still_to_come(all: &[Manifest], now: Timestamp) -> Option<String> {
    let newest = all.iter().max_by_key(|manifest| manifest.created)?;
    let ahead = now.until(newest.created);
    (ahead > STEP_BACK).then(|| format!("by it, {} is to be taken in {} s only", newest.name, ahead.as_secs()))
}

/// Why a snapshot's time to live means nothing: what it says of when it was taken cannot be.
fn taken_by_a_wrong_clock(manifest: &Manifest, all: &[Manifest]) -> Option<String> {
    let said = "say when it may go with `keyframe snapshot-set --ttl`, or delete it";
    if manifest.created < Timestamp::from_system_time(SystemTime::UNIX_EPOCH + Duration::from_secs(TOO_EARLY_S)) {
        return Some(format!("the clock was wrong when it was taken: it says {}; {said}", manifest.created));
    }
    let parent = all.iter().find(|other| Some(&other.id) == manifest.parent.as_ref())?;
    let before = manifest.created.until(parent.created);
    (before > STEP_BACK).then(|| {
        format!(
            "the clock was wrong when it or {} was taken, which it follows and is said to be {} s older than; {said}",
            parent.name,
            before.as_secs()
        )
    })
}

/// What the clocks said when snapshots were last let go.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ClockDocument {
    wall: Timestamp,
    since_boot_ms: u64,
    boot_id: String,
}

impl Document for ClockDocument {
    const SCHEMA: &'static str = "keyframe.clock/1";
}

impl ClockDocument {
    fn read_now(wall: Timestamp) -> Self {
        let since_boot = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(since_boot.tv_sec).unwrap_or(0);
        let ms = u64::try_from(since_boot.tv_nsec / 1_000_000).unwrap_or(0);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            wall,
            since_boot_ms: seconds.saturating_mul(1000).saturating_add(ms),
            boot_id: boot_id.trim().to_owned(),
        }
    }

    /// How the clock has moved against the time that has really passed; `None` if it has not been set.
    fn was_set(&self, now: &Self) -> Option<String> {
        let passed = self.wall.until(now.wall);
        let behind = now.wall.until(self.wall);
        if behind > STEP_BACK {
            return Some(format!("it is {} s behind what it was before", behind.as_secs()));
        }
        if self.boot_id != now.boot_id {
            let days = passed.as_secs() / 86_400;
            return (passed > OFF).then(|| format!("{days} days have passed by it since the host was last seen up"));
        }
        let really = Duration::from_millis(now.since_boot_ms.saturating_sub(self.since_boot_ms));
        let ahead = passed.saturating_sub(really);
        // A clock without a reference may lose or gain a little every day.
        let allowed = DRIFT + really / 1000;
        (ahead > allowed).then(|| format!("it ran {} s ahead of the time that has passed since", ahead.as_secs()))
    }
}

fn clock_path(home: &Home) -> PathBuf {
    home.root().join("clock.json")
}

fn check_clock(home: &Home, now: Timestamp, request: &ExpireRequest) -> Result<(), Error> {
    let now = ClockDocument::read_now(now);
    let path = clock_path(home);
    let _alone = Lock::wait(&home.root().join("lock"), "expire", CREATION_PATIENCE)?;
    // Without a record that can be read nobody knows whether the clock is right.
    let before: Option<ClockDocument> = match sealed::read(&path) {
        Err(error @ (Error::Damaged { .. } | Error::Schema { .. })) if !request.accept_clock => {
            return Err(Error::ClockWasSet { reason: error.to_string() });
        }
        Err(Error::Damaged { .. } | Error::Schema { .. }) => None,
        other => other?,
    };
    let set = before.as_ref().and_then(|before| before.was_set(&now)).filter(|_| !request.accept_clock);
    if let Some(reason) = set {
        return Err(Error::ClockWasSet { reason });
    }
    // One record for each time the host is up: small steps do not add up.
    let same_boot = before.is_some_and(|before| before.boot_id == now.boot_id);
    if request.dry_run || (same_boot && !request.accept_clock) {
        return Ok(());
    }
    sealed::write(&path, &now)
}

#[cfg(test)]
mod tests {
    use keyframe_types::DiskId;

    use super::*;
    use crate::fsck::tests::snapshot_of;
    use crate::state::head::Chain;

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        let at = |wall: &str, since_boot_ms| ClockDocument {
            wall: serde_json::from_value(serde_json::json!(wall)).unwrap(),
            since_boot_ms,
            boot_id: "this".to_owned(),
        };
        let before = at("2026-01-01T00:00:00Z", 0);
        assert!(before.was_set(&at("2026-01-01T01:00:00Z", 3_600_000)).is_none());
        assert!(before.was_set(&at("2026-01-01T01:10:00Z", 3_600_000)).is_none(), "a little drift is usual");
        assert!(before.was_set(&at("2026-02-01T00:00:00Z", 3_600_000)).unwrap().contains("ahead"));
        assert!(before.was_set(&at("2025-12-31T00:00:00Z", 3_600_000)).unwrap().contains("behind"));
        let after_boot = |wall| ClockDocument { boot_id: "next".into(), ..at(wall, 1000) };
        assert!(before.was_set(&after_boot("2026-01-20T00:00:00Z")).is_none(), "hosts are off for weeks");
        assert!(before.was_set(&after_boot("2026-03-01T00:00:00Z")).unwrap().contains("59 days"));
    }

    fn taken(at: &str, parent: Option<&Manifest>) -> Manifest {
        let (name, disk) = ("db".parse().unwrap(), DiskId::new("disk0").unwrap());
        let chain = Chain { disk, layers: Vec::new() };
        let parent = parent.map(|parent| parent.id.clone());
        Manifest { created: instant(at), ..snapshot_of(&name, "s", chain, parent) }
    }

    fn instant(at: &str) -> Timestamp {
        serde_json::from_value(serde_json::json!(at)).unwrap()
    }

    #[test]
    fn a_snapshot_that_is_still_to_come_makes_the_clock_a_wrong_one() {
        let all = [taken("2026-01-01T00:00:00Z", None), taken("2026-03-01T00:00:00Z", None)];
        assert!(still_to_come(&all, instant("2026-03-01T00:00:00Z")).is_none());
        assert!(still_to_come(&all, instant("2026-02-28T23:59:30Z")).is_none(), "a step as time servers make it");
        assert!(still_to_come(&all, instant("2026-02-28T23:00:00Z")).unwrap().contains("3600 s"));
        assert!(still_to_come(&[], instant("1970-01-01T00:00:00Z")).is_none());
    }

    #[test]
    fn a_snapshot_that_was_taken_by_a_wrong_clock_is_known_by_what_it_follows() {
        let root = taken("2026-01-01T00:00:00Z", None);
        let (good, early) = (taken("2026-01-02T00:00:00Z", Some(&root)), taken("2025-12-31T00:00:00Z", Some(&root)));
        let at_boot = taken("1970-01-01T00:00:09Z", None);
        let all = [root.clone(), good.clone(), early.clone(), at_boot.clone()];
        assert!(taken_by_a_wrong_clock(&root, &all).is_none() && taken_by_a_wrong_clock(&good, &all).is_none());
        assert!(taken_by_a_wrong_clock(&early, &all).unwrap().contains("86400 s older"));
        assert!(taken_by_a_wrong_clock(&at_boot, &all).unwrap().contains("1970"));
    }
}
