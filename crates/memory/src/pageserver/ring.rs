//! Verified extents on their way from the reading thread to the serving thread, in a fixed set of buffers.
//!
//! The reader fills, the server empties; neither ever holds the lock while it reads, hashes or writes. The
//! buffers are the bound: when all are full the reader waits, so background work never takes more memory than
//! they do. The server is woken through an event descriptor, because it waits in `poll` for its socket too.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::ExtentAt;
use crate::{Error, ExtentBuf};

/// Buffers in all: 4 MiB.
const BUFFERS: usize = 64;
/// Buffers that the plan leaves for wishes.
const KEPT_FOR_WISHES: usize = 8;
/// Wishes that are remembered; older ones are forgotten, the plan comes to them anyway.
const MAX_WISHES: usize = 32;

/// Room for one extent.
pub(super) type Buffer = Box<ExtentBuf>;

/// A verified extent.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) at: ExtentAt,
    /// Its bytes come first in it.
    pub(super) buffer: Buffer,
}

/// What the reader shall do next.
pub(super) enum Job {
    /// Read this extent: the server thinks it will be wanted soon.
    Wish(ExtentAt, Buffer),
    /// Read the next extent of the plan.
    Plan(Buffer),
    /// Go home.
    Stop,
}

/// How the plan stands.
pub(super) enum Plan {
    /// More extents will come.
    Running,
    /// Every extent of the plan has been handed over.
    Done,
    /// The reader met an extent it must not hand over.
    Failed(Error),
}

struct State {
    wishes: VecDeque<ExtentAt>,
    wished: VecDeque<Filled>,
    planned: VecDeque<Filled>,
    free: Vec<Buffer>,
    plan_over: bool,
    failure: Option<Error>,
    stop: bool,
    /// Something changed since the server was last about to wait.
    news: bool,
    server_waits: bool,
}

/// The ring. One reader, one server.
pub(super) struct Ring {
    state: Mutex<State>,
    reader_wakes: Condvar,
    server_wakes: OwnedFd,
}

impl Ring {
    pub(super) fn new() -> io::Result<Self> {
        let free = (0..BUFFERS).map(|_| ExtentBuf::new()).collect();
        let state = State {
            wishes: VecDeque::new(),
            wished: VecDeque::new(),
            planned: VecDeque::new(),
            free,
            plan_over: false,
            failure: None,
            stop: false,
            news: false,
            server_waits: false,
        };
        let server_wakes = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), reader_wakes: Condvar::new(), server_wakes })
    }

    // ---- the reader's side

    /// Waits for something to do and room to do it in.
    pub(super) fn next_job(&self) -> Job {
        let mut state = self.lock();
        loop {
            if state.stop || state.failure.is_some() {
                return Job::Stop;
            }
            if let Some(at) = state.wishes.front().copied()
                && let Some(buffer) = state.free.pop()
            {
                state.wishes.pop_front();
                return Job::Wish(at, buffer);
            }
            if !state.plan_over
                && state.free.len() > KEPT_FOR_WISHES
                && let Some(buffer) = state.free.pop()
            {
                return Job::Plan(buffer);
            }
            state = self.reader_wakes.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn put_wished(&self, filled: Filled) {
        self.change(|state| state.wished.push_back(filled));
    }

    pub(super) fn put_planned(&self, filled: Filled) {
        self.change(|state| state.planned.push_back(filled));
    }

    /// The plan has no more extents.
    pub(super) fn plan_is_over(&self, buffer: Buffer) {
        self.change(|state| {
            state.plan_over = true;
            state.free.push(buffer);
        });
    }

    /// An extent cannot be had: nothing more will come.
    pub(super) fn fail(&self, failure: Error) {
        self.change(|state| state.failure = Some(failure));
    }

    /// Changes the state for the server, and wakes it if it waits.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.news = true;
        if std::mem::take(&mut state.server_waits) {
            drop(state);
            // It can only fail when the counter is full, and then the server is awake.
            let _counted = rustix::io::write(&self.server_wakes, &1_u64.to_ne_bytes());
        }
    }

    // ---- the server's side

    /// Becomes readable when something was put in after [`Ring::will_wait`].
    pub(super) fn wakes(&self) -> BorrowedFd<'_> {
        self.server_wakes.as_fd()
    }

    /// Announces that the server is about to wait; false when something has changed since it last asked, so
    /// that it has to look once more.
    pub(super) fn will_wait(&self) -> bool {
        let mut counter = [0; 8];
        let _nothing_to_clear = rustix::io::read(&self.server_wakes, &mut counter);
        let mut state = self.lock();
        state.server_waits = !std::mem::take(&mut state.news);
        state.server_waits
    }

    /// The next extent to send when nobody waits for one: wishes first.
    pub(super) fn take(&self) -> Option<Filled> {
        let mut state = self.lock();
        state.wished.pop_front().or_else(|| state.planned.pop_front())
    }

    /// This extent, if it happens to be here.
    pub(super) fn take_exactly(&self, at: ExtentAt) -> Option<Filled> {
        let mut state = self.lock();
        let found = |queue: &VecDeque<Filled>| queue.iter().position(|filled| filled.at == at);
        if let Some(position) = found(&state.wished) {
            return state.wished.remove(position);
        }
        let position = found(&state.planned)?;
        state.planned.remove(position)
    }

    /// Returns a buffer.
    pub(super) fn give_back(&self, buffer: Buffer) {
        self.lock().free.push(buffer);
        self.reader_wakes.notify_one();
    }

    /// Asks for an extent out of turn.
    pub(super) fn wish(&self, at: ExtentAt) {
        let mut state = self.lock();
        if !state.wishes.contains(&at) {
            if state.wishes.len() >= MAX_WISHES {
                state.wishes.pop_front();
            }
            state.wishes.push_back(at);
            drop(state);
            self.reader_wakes.notify_one();
        }
    }

    /// How the plan stands; [`Plan::Done`] only when everything was taken.
    pub(super) fn plan(&self) -> Plan {
        let mut state = self.lock();
        if let Some(failure) = state.failure.take() {
            state.stop = true;
            return Plan::Failed(failure);
        }
        if state.plan_over && state.planned.is_empty() { Plan::Done } else { Plan::Running }
    }

    /// Sends the reader home.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.reader_wakes.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
