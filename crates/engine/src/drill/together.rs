//! Throw-away machines that are up at the same time: each waits for the others before it runs, and until all have been asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyframe_hypervisor::Network;

use crate::error::Error;

/// How often a wait looks whether it was asked to end.
const TICK: Duration = Duration::from_millis(50);

/// A place where machines wait for each other. One that does not come any more keeps nobody waiting.
#[derive(Debug)]
struct Meeting {
    /// How many are still to come.
    expected: Mutex<usize>,
    came: Condvar,
}

impl Meeting {
    fn expected(&self) -> MutexGuard<'_, usize> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One machine's seat at a meeting. Dropped, the others do not wait for it.
#[derive(Debug)]
struct Seat {
    meeting: Arc<Meeting>,
    came: bool,
}

impl Seat {
    /// Seats for so many.
    fn of(machines: usize) -> Vec<Self> {
        let meeting = Arc::new(Meeting { expected: Mutex::new(machines), came: Condvar::new() });
        (0..machines).map(|_| Self { meeting: Arc::clone(&meeting), came: false }).collect()
    }

    fn come(&mut self) {
        if !std::mem::replace(&mut self.came, true) {
            let mut expected = self.meeting.expected();
            *expected = expected.saturating_sub(1);
            self.meeting.came.notify_all();
        }
    }

    fn wait(mut self, cancel: &AtomicBool) -> Result<(), Error> {
        self.come();
        let mut expected = self.meeting.expected();
        while *expected > 0 {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            expected = self.meeting.came.wait_timeout(expected, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.come();
    }
}

/// What a throw-away machine is up together with.
#[derive(Debug)]
pub(crate) struct Together {
    /// What all of them are plugged into, and nobody else.
    pub(crate) network: Network,
    ready: Seat,
    asked: Option<Seat>,
}

impl Together {
    /// For so many machines.
    pub(crate) fn of(machines: usize, network: &Network) -> Vec<Self> {
        let seats = Seat::of(machines).into_iter().zip(Seat::of(machines));
        seats.map(|(ready, asked)| Self { network: network.clone(), ready, asked: Some(asked) }).collect()
    }

    /// This one is about to run: waits for the others. Gives what keeps it up until all have been asked.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(crate) fn ready(self, cancel: &AtomicBool) -> Result<Up, Error> {
        self.ready.wait(cancel)?;
        Ok(Up(self.asked))
    }
}

/// A machine that runs together with others.
#[derive(Debug, Default)]
pub(crate) struct Up(Option<Seat>);

impl Up {
    /// This one has been asked: waits until all are.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(crate) fn until_all_are_asked(self, cancel: &AtomicBool) -> Result<(), Error> {
        self.0.map_or(Ok(()), |seat| seat.wait(cancel))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn all_are_up_while_any_is_asked_and_one_that_fails_keeps_nobody() {
        let (never, up) = (AtomicBool::new(false), AtomicUsize::new(0));
        let seen: Vec<usize> = thread::scope(|threads| {
            let ways: Vec<_> = Together::of(4, &Network::Isolated)
                .into_iter()
                .enumerate()
                .map(|(number, together)| {
                    let (never, up) = (&never, &up);
                    threads.spawn(move || {
                        thread::sleep(Duration::from_millis(20 * number as u64));
                        // One does not start.
                        if number == 2 {
                            return 0;
                        }
                        up.fetch_add(1, Ordering::SeqCst);
                        let together = together.ready(never).unwrap();
                        let seen = up.load(Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(20 * number as u64));
                        together.until_all_are_asked(never).unwrap();
                        up.fetch_sub(1, Ordering::SeqCst);
                        seen
                    })
                })
                .collect();
            ways.into_iter().map(|way| way.join().unwrap()).collect()
        });
        assert_eq!(seen, [3, 3, 0, 3]);
    }

    #[test]
    fn whoever_is_interrupted_does_not_wait() {
        let mut all = Together::of(2, &Network::Isolated);
        let interrupted = all.remove(0).ready(&AtomicBool::new(true));
        assert!(matches!(interrupted, Err(Error::Interrupted)));
        // The other goes on without it, and without what comes later.
        all.remove(0).ready(&AtomicBool::new(false)).unwrap().until_all_are_asked(&AtomicBool::new(false)).unwrap();
    }
}
