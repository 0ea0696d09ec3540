//! Batches between the thread that reads and the threads that write.
//!
//! A fixed number of batches exists; each is free, ready (filled, waiting for a writer) or with a
//! writer. One mutex guards the lists, conditions tell of a ready batch, of one that is
//! urgent, and of a free one. The
//! first failure of a writer is kept, empties the queue and is handed to whoever waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::batch::{BATCH_BYTES, Batch};
use super::pace::Room;
use super::target::Target;
use crate::Error;

/// Fewest and most batches.
const BATCHES: std::ops::RangeInclusive<usize> = 4..=1024;
/// How often a wait looks whether it should stop.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// Less than one in so many batches free: writers that wait for an idle processor do not keep up.
const PRESSED_SHARE: usize = 4;

/// When a writer works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Whenever there is something to write and nobody else wants the processor (SCHED_IDLE). A guest whose write
    /// fault waits for QEMU's thread waits a whole slice longer whenever a writer has the processor that the thread
    /// wants; several faults in a row are what a person notices.
    WhenIdle,
    /// Like anybody else, but only when the buffer is nearly full, or someone waits for the end: on a host without an
    /// idle processor the others never get one.
    WhenPressed,
}

struct Job<'p> {
    batch: Batch,
    target: Arc<Target<'p>>,
}

struct State<'p> {
    free: Vec<Batch>,
    ready: VecDeque<Job<'p>>,
    with_writers: usize,
    /// Someone waits until all is written.
    draining: bool,
    closed: bool,
    error: Option<Error>,
}

/// The queue; see the module's text.
pub(super) struct Queue<'p> {
    batches: usize,
    state: Mutex<State<'p>>,
    filled: Condvar,
    pressed: Condvar,
    freed: Condvar,
}

impl<'p> Queue<'p> {
    /// A queue of so many bytes, all free.
    pub fn new(buffer_bytes: usize) -> Self {
        let count = (buffer_bytes / BATCH_BYTES).clamp(*BATCHES.start(), *BATCHES.end());
        let state = State {
            free: (0..count).map(|_| Batch::new()).collect(),
            ready: VecDeque::with_capacity(count),
            with_writers: 0,
            draining: false,
            closed: false,
            error: None,
        };
        Self {
            batches: count,
            state: Mutex::new(state),
            filled: Condvar::new(),
            pressed: Condvar::new(),
            freed: Condvar::new(),
        }
    }

    /// A free batch, empty; waits for one.
    ///
    /// # Errors
    /// A writer's failure, or [`Error::Cancelled`].
    pub fn take_free(&self, cancel: &AtomicBool) -> Result<Batch, Error> {
        let mut state = self.wait(cancel, |state| !state.free.is_empty())?;
        state.free.pop().ok_or(Error::Cancelled)
    }

    /// Waits until everything handed over is written.
    ///
    /// # Errors
    /// A writer's failure, or [`Error::Cancelled`].
    pub fn drain(&self, cancel: &AtomicBool) -> Result<(), Error> {
        self.lock().draining = true;
        self.pressed.notify_all();
        let drained = self.wait(cancel, |state| state.ready.is_empty() && state.with_writers == 0);
        drained.map(|mut state| state.draining = false)
    }

    /// How much room there is.
    pub fn room(&self) -> Room {
        let free = self.lock().free.len() * BATCH_BYTES;
        Room { free, total: self.batches * BATCH_BYTES }
    }

    /// Hands a batch to the writers.
    pub fn submit(&self, batch: Batch, target: Arc<Target<'p>>) {
        let mut state = self.lock();
        state.ready.push_back(Job { batch, target });
        let pressed = self.is_due(Turn::WhenPressed, &state);
        drop(state);
        self.filled.notify_one();
        if pressed {
            self.pressed.notify_one();
        }
    }

    /// No batch will follow: writers end when those there are are written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.pressed.notify_all();
    }

    /// What a writer has failed with, once.
    ///
    /// # Errors
    /// That failure.
    pub fn take_error(&self) -> Result<(), Error> {
        self.lock().error.take().map_or(Ok(()), Err)
    }

    /// The life of a writer: takes batches and writes them until the queue is closed and empty.
    pub fn work(&self, turn: Turn) {
        if turn == Turn::WhenIdle {
            yield_to_all();
        }
        while let Some(job) = self.next(turn) {
            let written = job.target.write(&job.batch);
            let mut batch = job.batch;
            batch.clear();
            let mut state = self.lock();
            state.free.push(batch);
            state.with_writers -= 1;
            if let Err(error) = written {
                state.error.get_or_insert(error);
                while let Some(job) = state.ready.pop_front() {
                    state.free.push(job.batch);
                }
            }
            drop(state);
            self.freed.notify_one();
        }
    }

    fn next(&self, turn: Turn) -> Option<Job<'p>> {
        let idle = |state: &mut State<'p>| !state.closed && (state.ready.is_empty() || !self.is_due(turn, state));
        let bell = if turn == Turn::WhenIdle { &self.filled } else { &self.pressed };
        let mut state = bell.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let job = state.ready.pop_front()?;
        state.with_writers += 1;
        Some(job)
    }

    fn is_due(&self, turn: Turn, state: &State<'p>) -> bool {
        turn == Turn::WhenIdle || state.draining || state.free.len() * PRESSED_SHARE < self.batches
    }

    fn wait(&self, cancel: &AtomicBool, done: impl Fn(&State<'p>) -> bool) -> Result<MutexGuard<'_, State<'p>>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if done(&state) {
                return Ok(state);
            }
            let waited = self.freed.wait_timeout(state, CANCEL_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<'p>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the calling thread run only when nobody else wants its processor. Source: sched(7).
fn yield_to_all() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` lives through the call, which changes nothing but how this thread is scheduled. A kernel that
    // refuses leaves the thread as it is, which is right, only less gentle.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}
