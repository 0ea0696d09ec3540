//! What waits for one receiver: a bounded number of events, the oldest of which goes when there is no room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use keyframe_types::InstanceId;
use tokio::sync::Notify as Bell;
use tokio::time::{Instant, timeout_at};

use crate::event::{Event, What};

/// The longest text of an event that is sent, in characters.
const MOST_TEXT: usize = 4000;
/// The longest name in one.
const MOST_NAME: usize = 200;

/// An event as it is sent: a message of a command may have any length.
pub(super) fn shortened(event: &Event) -> Event {
    let short = |text: &String, most: usize| match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.clone(),
    };
    let name = |text: &Option<String>| text.as_ref().map(|text| short(text, MOST_NAME));
    Event {
        host: short(&event.host, MOST_NAME),
        machine: name(&event.machine),
        policy: name(&event.policy),
        id: short(&event.id, MOST_NAME),
        kind: name(&event.kind),
        text: short(&event.text, MOST_TEXT),
        advice: event.advice.as_ref().map(|advice| short(advice, MOST_TEXT)),
        ..event.clone()
    }
}

/// Events that are sent at once.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// At least one.
    pub events: Vec<Arc<Event>>,
    /// The same at each attempt, so that a receiver can tell a repetition.
    pub delivery: String,
    /// How many events before these were lost.
    pub lost: u64,
}

/// Why a receiver is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub since: Timestamp,
    pub why: String,
    pub lost: bool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<Event>>,
    at_work: usize,
    lost: u64,
    lost_untold: u64,
    hurry: bool,
    failures: u32,
    since: Option<Timestamp>,
    why: String,
}

#[derive(Debug)]
struct Inner {
    most: usize,
    state: Mutex<State>,
    bell: Bell,
}

#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<Inner>);

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, state: Mutex::default(), bell: Bell::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, event: Arc<Event>) {
        let mut state = self.state();
        if event.what == What::Alive {
            // A sign of life that is late is none.
            state.waiting.retain(|waiting| waiting.what != What::Alive);
        }
        if state.waiting.len() >= self.0.most {
            state.waiting.pop_front();
            state.lost += 1;
        }
        state.waiting.push_back(event);
        drop(state);
        self.0.bell.notify_one();
    }

    /// At most `most` events, the oldest first: those that there are `gather` after the first came.
    pub(super) async fn next(&self, most: usize, gather: Duration) -> Batch {
        while self.state().waiting.is_empty() {
            self.0.bell.notified().await;
        }
        let until = Instant::now() + gather;
        while !gather.is_zero() && !self.state().hurry && self.state().waiting.len() < most {
            if timeout_at(until, self.0.bell.notified()).await.is_err() {
                break;
            }
        }
        let mut state = self.state();
        let count = state.waiting.len().min(most);
        state.at_work = count;
        state.lost_untold = std::mem::take(&mut state.lost);
        let events = state.waiting.drain(..count).collect();
        Batch { events, delivery: InstanceId::random().to_string(), lost: state.lost_untold }
    }

    pub(super) fn taken(&self) {
        let mut state = self.state();
        state.at_work = 0;
        (state.failures, state.lost_untold) = (0, 0);
        (state.since, state.why) = (None, String::new());
    }

    pub(super) fn failed(&self, why: &str) {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        state.since.get_or_insert_with(Timestamp::now);
        why.clone_into(&mut state.why);
    }

    /// What was taken out is lost, and so is what its receiver was to hear of earlier losses: the next one does.
    pub(super) fn given_up(&self) {
        let mut state = self.state();
        state.lost += state.lost_untold + state.at_work as u64;
        (state.at_work, state.lost_untold) = (0, 0);
    }

    /// Why it fails, if it did at least so often one after the other, or something was lost by it.
    pub(super) fn trouble(&self, failures: u32) -> Option<Trouble> {
        let state = self.state();
        let lost = state.lost + state.lost_untold > 0;
        let since = state.since.filter(|_| state.failures >= failures || lost)?;
        Some(Trouble { since, why: state.why.clone(), lost })
    }

    /// Gathers no longer. Returns how many events were not taken yet.
    pub(super) fn hurry(&self) -> usize {
        let mut state = self.state();
        state.hurry = true;
        let left = state.waiting.len() + state.at_work;
        drop(state);
        self.0.bell.notify_one();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::tests::event;

    async fn texts(queue: &Queue, most: usize) -> (Vec<String>, u64) {
        let batch = queue.next(most, Duration::ZERO).await;
        queue.taken();
        (batch.events.iter().map(|event| event.text.clone()).collect(), batch.lost)
    }

    fn pushed(queue: &Queue, what: What, text: &str) {
        queue.push(Arc::new(Event { text: text.to_owned(), ..event(what) }));
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn the_oldest_goes_when_there_is_no_room_and_is_counted() {
        let queue = Queue::new(3);
        (0..8).for_each(|number| pushed(&queue, What::JobDone, &number.to_string()));
        run(async {
            assert_eq!(texts(&queue, 2).await, (vec!["5".to_owned(), "6".to_owned()], 5));
            assert_eq!(texts(&queue, 2).await, (vec!["7".to_owned()], 0));
        });
    }

    #[test]
    fn a_loss_is_told_until_it_was_heard() {
        let queue = Queue::new(1);
        (0..3).for_each(|number| pushed(&queue, What::JobDone, &number.to_string()));
        run(async {
            assert_eq!(queue.next(1, Duration::ZERO).await.lost, 2);
            queue.given_up();
            pushed(&queue, What::JobDone, "3");
            assert_eq!(queue.next(1, Duration::ZERO).await.lost, 3);
        });
    }

    #[test]
    fn of_signs_of_life_only_the_latest_waits() {
        let queue = Queue::new(10);
        for (what, text) in [(What::Alive, "1"), (What::JobDone, "2"), (What::Alive, "3")] {
            pushed(&queue, what, text);
        }
        assert_eq!(run(texts(&queue, 9)), (vec!["2".to_owned(), "3".to_owned()], 0));
    }

    #[test]
    fn texts_have_an_end() {
        let long = Event { text: "ü".repeat(1 << 20), host: "h".repeat(1000), ..event(What::JobDone) };
        let short = shortened(&long);
        assert_eq!((short.text.chars().count(), short.host.chars().count()), (MOST_TEXT + 1, MOST_NAME + 1));
    }
}
