//! Power cuts: what a disk with a cache may hold at any moment of a deletion or a merge is put in place, and from there all
//! goes on.

use std::path::Path;

use super::medium::{Medium, Survives};
use super::tape::{self, By, Event, LeftOut};
use super::{ConsolidateRequest, Dice, World, cases, consolidate, die_quietly};

/// Everything that an operation did to the files.
pub(super) struct Recording {
    before: Medium,
    events: Vec<Event>,
}

/// A recording in progress.
pub(super) struct Recorder {
    before: Medium,
}

impl Recorder {
    pub(super) fn start(root: &Path) -> Self {
        let before = Medium::of(root);
        tape::start(root);
        Self { before }
    }

    pub(super) fn stop(self) -> Recording {
        let events = tape::stop();
        let mut after = self.before.clone();
        events.iter().for_each(|event| after.happens(event));
        after.assert_complete();
        Recording { before: self.before, events }
    }
}

impl World {
    /// One step, recorded, and then the same step with the power cut somewhere within it, `times` times.
    fn step_with_power_cuts(&mut self, dice: &mut Dice, times: usize) {
        let before = self.machines.clone();
        self.step();
        let Some(Recording { before: medium, events }) = self.recording.take().filter(|it| !it.events.is_empty())
        else {
            return;
        };
        let after = (self.machines.clone(), Medium::of(self.root.path()));
        for _ in 0..times {
            let (at, survives) = (dice.below(events.len() + 1), Survives::ALL[dice.below(4)]);
            let mut cut = medium.clone();
            events.iter().take(at).for_each(|event| cut.happens(event));
            cut.cut_power(survives, dice);
            self.machines.clone_from(&before);
            self.log.push(format!("power cut after {at} of {} events, {survives:?} survives", events.len()));
            self.goes_on();
            self.log.pop();
        }
        // And on as if nothing had happened.
        after.1.cut_power(Survives::Everything, dice);
        self.machines = after.0;
    }

    /// All reads as it should, and whatever was begun can be brought to its end.
    fn goes_on(&mut self) {
        self.check_and_tidy_up();
        let names: Vec<_> = self.machines.keys().cloned().collect();
        for vm in names {
            let request = ConsolidateRequest { vm, dry_run: false, flatten: false, speed: None };
            let done = self.with(|ctx| consolidate(ctx, &request));
            let failure = done.as_ref().map(|done| done.failure.as_ref());
            assert!(matches!(failure, Ok(None)), "{failure:?}\n{}", self.log.join("\n"));
        }
        self.check();
        self.check_tidy();
    }

    /// A world whose operations are recorded.
    fn recorded(seed: u64) -> Self {
        // Nothing here has to survive a real power cut, and in memory nobody waits for syncs.
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let mut world = Self::new(root.unwrap(), seed);
        world.records = true;
        world
    }

    fn plays(seed: u64, steps: usize, cuts: usize) {
        let mut dice = Dice(seed.wrapping_mul(0xd134_2543_de82_ef95) | 1);
        let mut world = Self::recorded(seed);
        (0..steps).for_each(|_| world.step_with_power_cuts(&mut dice, cuts));
    }
}

#[test]
fn a_power_cut_at_any_write_loses_nothing() {
    die_quietly();
    for seed in cases(24, 1000) {
        eprintln!("seed {seed}");
        World::plays(seed, 20, 3);
    }
}

/// Whether some history goes wrong without those syncs.
fn is_noticed(left_out: LeftOut) -> bool {
    die_quietly();
    tape::leave_out(Some(left_out));
    let noticed = (0..60).find(|seed| std::panic::catch_unwind(|| World::plays(*seed, 20, 6)).is_err());
    tape::leave_out(None);
    // It is for want of those syncs only.
    noticed.inspect(|seed| World::plays(*seed, 20, 6)).is_some()
}

fn is_layer(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "qcow2" || extension == "img")
}

#[test]
fn data_that_are_not_synced_before_headers_change_are_noticed() {
    assert!(is_noticed(|path, by| is_layer(path) && matches!(by, By::Sync | By::Daemon)));
}

#[test]
fn a_name_that_is_not_synced_before_a_header_points_to_it_is_noticed() {
    assert!(is_noticed(|path, by| is_layer(path) && by == By::DataSync));
}

#[test]
fn a_document_that_is_not_synced_before_it_gets_its_name_is_noticed() {
    assert!(is_noticed(|path, by| by == By::Sync && path.extension().is_some_and(|extension| extension == "tmp")));
}

#[test]
fn names_that_are_not_synced_before_files_go_are_noticed() {
    assert!(is_noticed(|_, by| by == By::DirSync));
}
