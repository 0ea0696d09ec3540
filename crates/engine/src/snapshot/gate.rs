//! Where the machines of a group wait for each other.
//!
//! ```text
//!   web  ──▶│ ready │──▶│ frozen │──▶│ still │──▶│ cut │──▶ memory ──▶│ saved │──▶ committed
//!   db   ──▶│       │──▶│        │──▶│       │──▶│     │──▶ memory ──▶│       │──▶ committed
//! ```
//! A stage opens when every machine has reached it, and never once a machine was given up: so either all pass a stage or none
//! does, and what fails before the last one is taken back everywhere.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keyframe_hypervisor::Error as Hypervisor;
use keyframe_hypervisor::cut::Company;

use crate::error::Error;
use crate::guest;

/// How far a machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// All is prepared; nothing has happened to the guest.
    Ready,
    /// Its file systems are frozen, if that was asked for.
    Frozen,
    /// It stands still.
    Still,
    /// Its disks are cut.
    Cut,
    /// All of it is on disk but what commits it.
    Saved,
}

impl Stage {
    /// All of them, in their order.
    const ALL: [Self; 5] = [Self::Ready, Self::Frozen, Self::Still, Self::Cut, Self::Saved];

    /// How long a guest may wait here for others; `None` where it runs meanwhile.
    fn patience(self) -> Option<Duration> {
        match self {
            Self::Ready | Self::Saved => None,
            // Its guard would let it go on then, or a little later.
            Self::Frozen => Some(guest::FREEZE_WINDOW),
            Self::Still | Self::Cut => Some(guest::FREEZE_WINDOW * 4 / 5),
        }
    }
}

/// How often a wait looks whether it was asked to end.
const TICK: Duration = Duration::from_millis(50);

/// Why waiting for others came to an end.
#[derive(Debug, Clone, Copy)]
enum Reason {
    Interrupted,
    TooSlow(Stage),
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Interrupted => Self::Interrupted,
            Reason::TooSlow(stage) => Self::GroupTooSlow { stage },
        }
    }
}

/// The machines of a group on their way.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    moved: Condvar,
    /// The longest from before the first guest is stopped until all are cut.
    within: Duration,
}

#[derive(Debug)]
struct State {
    /// For each machine, how far it has come.
    reached: Vec<Option<Stage>>,
    /// The last stage that opened.
    open: Option<Stage>,
    /// One was given up: no further stage opens.
    given_up: bool,
    /// Why, if nothing but waiting was the reason.
    reason: Option<Reason>,
    /// When the first was about to be stopped, and when the last ran on.
    window: (Option<Instant>, Option<Instant>),
}

impl Gate {
    /// For so many machines, all of which are to be cut `within` so long from before the first is stopped.
    #[must_use]
    pub fn new(machines: usize, within: Duration) -> Self {
        let state =
            State { reached: vec![None; machines], open: None, given_up: false, reason: None, window: (None, None) };
        Self { state: Mutex::new(state), moved: Condvar::new(), within }
    }

    /// The way of machine `number`.
    #[must_use]
    pub fn turn<'g>(&'g self, number: usize, cancel: &'g AtomicBool) -> Turn<'g> {
        Turn { gate: self, number, cancel }
    }

    /// From before the first guest was stopped until behind the last one's resume; `None` where none was.
    #[must_use]
    pub fn window(&self) -> Option<Duration> {
        let (first, last) = self.state().window;
        Some(last?.saturating_duration_since(first?))
    }

    /// Why the group was given up, where no machine failed by itself.
    #[must_use]
    pub fn reason(&self) -> Option<Error> {
        self.state().reason.map(Error::from)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine's way. Whoever drops it before the last stage gives the group up.
#[derive(Debug)]
pub struct Turn<'g> {
    gate: &'g Gate,
    number: usize,
    cancel: &'g AtomicBool,
}

impl Turn<'_> {
    /// Says that this machine has come to `stage`, and waits until all have.
    ///
    /// # Errors
    /// [`Error::GroupGivenUp`] when another was given up, or kept a guest waiting for too long; [`Error::Interrupted`]. No
    /// machine passes the stage then.
    pub fn reach(&self, stage: Stage) -> Result<(), Error> {
        let mut state = self.gate.state();
        let waits_until = stage.patience().map(|patience| Instant::now() + patience);
        let begun = state.window.0.filter(|_| matches!(stage, Stage::Still | Stage::Cut));
        let deadline = waits_until.into_iter().chain(begun.map(|begun| begun + self.gate.within)).min();
        if let Some(reached) = state.reached.get_mut(self.number) {
            *reached = Some(stage);
        }
        // Whoever comes too late himself does not open it.
        let in_time = begun.is_none_or(|begun| begun.elapsed() <= self.gate.within);
        if in_time && !state.given_up && state.reached.iter().all(|reached| *reached >= Some(stage)) {
            state.open = state.open.max(Some(stage));
            if stage == Stage::Frozen {
                state.window.0 = Some(Instant::now());
            }
            self.gate.moved.notify_all();
        }
        loop {
            if state.open >= Some(stage) {
                return Ok(());
            }
            if state.given_up {
                return Err(Error::GroupGivenUp);
            }
            let interrupted = self.cancel.load(Ordering::Relaxed);
            if interrupted || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                state.given_up = true;
                let reason = if interrupted { Reason::Interrupted } else { Reason::TooSlow(stage) };
                state.reason = Some(reason);
                self.gate.moved.notify_all();
                return Err(reason.into());
            }
            state = self.gate.moved.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Goes through every stage as a machine that is off: it is still all the time.
    ///
    /// # Errors
    /// As [`Turn::reach`].
    pub fn reach_all(&self) -> Result<(), Error> {
        Stage::ALL.into_iter().try_for_each(|stage| self.reach(stage))
    }

    /// The guest runs on.
    pub fn resumed(&self) {
        self.gate.state().window.1 = Some(Instant::now());
    }

    fn in_company(&self, stage: Stage) -> Result<(), Hypervisor> {
        self.reach(stage).map_err(|_| Hypervisor::Company)
    }
}

impl Company for Turn<'_> {
    fn all_still(&self) -> Result<(), Hypervisor> {
        self.in_company(Stage::Still)
    }

    fn all_cut(&self) -> Result<(), Hypervisor> {
        self.in_company(Stage::Cut)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if state.open < Some(Stage::Saved) {
            state.given_up = true;
            self.gate.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    const ALL: [Stage; 5] = Stage::ALL;
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_group_that_is_not_cut_in_time_is_not_cut() {
        for (slow, cut) in [(Duration::ZERO, true), (Duration::from_millis(400), false)] {
            let (gate, never) = (Gate::new(2, Duration::from_millis(200)), AtomicBool::new(false));
            let passed = thread::scope(|threads| {
                let ways: Vec<_> = (0..2)
                    .map(|number| {
                        let turn = gate.turn(number, &never);
                        threads.spawn(move || {
                            turn.reach(Stage::Ready)?;
                            // Before anybody is stopped there is time.
                            thread::sleep(Duration::from_millis(400 * number as u64));
                            turn.reach(Stage::Frozen)?;
                            thread::sleep(slow * u32::try_from(number).unwrap());
                            turn.reach(Stage::Still)?;
                            turn.reach(Stage::Cut)
                        })
                    })
                    .collect();
                ways.into_iter().map(|way| way.join().unwrap().is_ok()).collect::<Vec<_>>()
            });
            assert_eq!(passed, [cut; 2]);
            let reason = gate.reason();
            let told = matches!(reason, Some(Error::GroupTooSlow { stage: Stage::Still }));
            assert!(if cut { reason.is_none() } else { told }, "{reason:?}");
        }
    }

    #[test]
    fn nobody_is_ahead_of_the_slowest() {
        let (gate, never) = (Gate::new(3, LONG), AtomicBool::new(false));
        let arrived: Vec<AtomicUsize> = ALL.iter().map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|threads| {
            for number in 0..3 {
                let (turn, arrived) = (gate.turn(number, &never), &arrived);
                threads.spawn(move || {
                    for (stage, arrived) in ALL.iter().zip(arrived) {
                        thread::sleep(Duration::from_millis(7 * number as u64));
                        arrived.fetch_add(1, Ordering::SeqCst);
                        turn.reach(*stage).unwrap();
                        assert_eq!(arrived.load(Ordering::SeqCst), 3, "{stage:?} opened early");
                    }
                    turn.resumed();
                });
            }
        });
        assert!(gate.window().unwrap() >= Duration::from_millis(3 * 14), "{:?}", gate.window());
    }

    #[test]
    fn one_that_fails_stops_all_wherever_it_does() {
        for fails_before in ALL {
            let (gate, never) = (Gate::new(3, LONG), AtomicBool::new(false));
            let passed = thread::scope(|threads| {
                let ways: Vec<_> = (0..3)
                    .map(|number| {
                        let turn = gate.turn(number, &never);
                        threads.spawn(move || {
                            let fails = |stage: Stage| number == 1 && stage == fails_before;
                            ALL.iter().take_while(|stage| !fails(**stage) && turn.reach(**stage).is_ok()).count()
                        })
                    })
                    .collect();
                ways.into_iter().map(|way| way.join().unwrap()).collect::<Vec<_>>()
            });
            let before = ALL.iter().filter(|stage| **stage < fails_before).count();
            assert_eq!(passed, [before; 3], "given up before {fails_before:?}");
        }
    }

    #[test]
    fn a_guest_does_not_wait_for_ever_and_none_passes_later() {
        let (gate, never) = (Gate::new(2, LONG), AtomicBool::new(false));
        let (slow, fast) = (gate.turn(0, &never), gate.turn(1, &never));
        thread::scope(|threads| {
            let waits = threads.spawn(|| [Stage::Ready, Stage::Frozen, Stage::Still].map(|stage| fast.reach(stage)));
            slow.reach(Stage::Ready).unwrap();
            slow.reach(Stage::Frozen).unwrap();
            let [ready, frozen, still] = waits.join().unwrap();
            assert!(ready.is_ok() && frozen.is_ok());
            assert!(matches!(still, Err(Error::GroupTooSlow { stage: Stage::Still })), "{still:?}");
        });
        assert!(matches!(slow.reach(Stage::Still), Err(Error::GroupGivenUp)));
    }

    #[test]
    fn an_interrupted_one_ends_all() {
        let (gate, cancel) = (Gate::new(2, LONG), AtomicBool::new(true));
        let (first, second) = (gate.turn(0, &cancel), gate.turn(1, &cancel));
        assert!(matches!(first.reach(Stage::Saved), Err(Error::Interrupted)));
        assert!(matches!(second.reach(Stage::Saved), Err(Error::GroupGivenUp)));
    }
}
