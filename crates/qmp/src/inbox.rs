//! Messages that arrived and were not taken yet, in order of arrival; bounded.
//!
//! Somebody who waits for one thing must not lose another: replies and essential events
//! ([`EventKind::is_essential`](crate::EventKind::is_essential)) stay until taken, and when they
//! exceed their bound that is an error, not a silent loss. Other events, which a guest may cause as
//! often as it likes, make room by dropping the oldest of their kind; the count of dropped ones is
//! kept.

use std::collections::VecDeque;
use std::time::Instant;

use crate::codec::{Body, CommandError, Event, RequestId};

/// A reply with its request and time.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Request it belongs to.
    pub id: RequestId,
    /// That request's command.
    pub command: String,
    /// When it was read from the socket.
    pub at: Instant,
    /// What came of it.
    pub result: Result<Body, CommandError>,
}

impl Reply {
    /// The value, a refusal becoming an error.
    ///
    /// # Errors
    /// [`Error::Command`](crate::Error::Command).
    pub fn body(self) -> crate::Result<Body> {
        self.result.map_err(|error| crate::Error::Command { command: self.command, error })
    }

    /// The value as a `T`.
    ///
    /// # Errors
    /// [`Error::Command`](crate::Error::Command), [`Error::Reply`](crate::Error::Reply).
    pub fn value<T: serde::de::DeserializeOwned>(self) -> crate::Result<T> {
        let command = self.command.clone();
        self.body()?.to(&command)
    }
}

/// An event with its time.
#[derive(Debug, Clone)]
pub struct TimedEvent {
    /// What happened.
    pub event: Event,
    /// When it was read from the socket.
    pub at: Instant,
}

/// A reply or an event.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// Answer to one of our requests.
    Reply(Reply),
    /// Something happened.
    Event(TimedEvent),
}

impl Incoming {
    /// When it was read from the socket.
    #[must_use]
    pub fn at(&self) -> Instant {
        match self {
            Self::Reply(reply) => reply.at,
            Self::Event(event) => event.at,
        }
    }

    fn is_droppable(&self) -> bool {
        matches!(self, Self::Event(timed) if !timed.event.kind.is_essential())
    }
}

/// How much may wait, for droppable messages and for the others each.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Messages.
    pub messages: usize,
    /// Bytes on the wire.
    pub bytes: usize,
}

/// Bounds of an [`Inbox`].
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For events that may be dropped.
    pub droppable: Bound,
    /// For replies and essential events.
    pub kept: Bound,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            droppable: Bound { messages: 1024, bytes: 4 << 20 },
            kept: Bound { messages: 16 << 10, bytes: 256 << 20 },
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    messages: usize,
    bytes: usize,
}

impl Used {
    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn sub(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }

    fn exceeds(self, bound: Bound) -> bool {
        self.messages > bound.messages || self.bytes > bound.bytes
    }
}

/// More arrived than may be kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The queue.
#[derive(Debug)]
pub struct Inbox {
    queue: VecDeque<(Incoming, usize)>,
    bounds: Bounds,
    droppable: Used,
    kept: Used,
    dropped: u64,
}

impl Inbox {
    /// An empty inbox.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { queue: VecDeque::new(), bounds, droppable: Used::default(), kept: Used::default(), dropped: 0 }
    }

    /// Adds a message whose line had `bytes` bytes.
    ///
    /// # Errors
    /// [`Full`] where it must be kept and there is no room.
    pub fn push(&mut self, incoming: Incoming, bytes: usize) -> Result<(), Full> {
        let droppable = incoming.is_droppable();
        self.used(droppable).add(bytes);
        self.queue.push_back((incoming, bytes));
        if droppable {
            while self.droppable.exceeds(self.bounds.droppable) && self.drop_oldest() {}
            return Ok(());
        }
        if self.kept.exceeds(self.bounds.kept) { Err(Full) } else { Ok(()) }
    }

    /// Takes the oldest message.
    pub fn pop(&mut self) -> Option<Incoming> {
        self.remove(0)
    }

    /// Takes the oldest message that `wanted` accepts; the others stay, in order.
    pub fn take(&mut self, mut wanted: impl FnMut(&Incoming) -> bool) -> Option<Incoming> {
        let at = self.queue.iter().position(|(incoming, _)| wanted(incoming))?;
        self.remove(at)
    }

    /// Events dropped so far to make room. None of them was essential.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The bounds.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn used(&mut self, droppable: bool) -> &mut Used {
        if droppable { &mut self.droppable } else { &mut self.kept }
    }

    fn drop_oldest(&mut self) -> bool {
        let gone = self.take(Incoming::is_droppable).is_some();
        self.dropped += u64::from(gone);
        gone
    }

    fn remove(&mut self, at: usize) -> Option<Incoming> {
        let (incoming, bytes) = self.queue.remove(at)?;
        self.used(incoming.is_droppable()).sub(bytes);
        Some(incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Message, parse};
    use crate::frame::Line;

    fn event(name: &str) -> Incoming {
        let text = format!("{{\"event\": \"{name}\"}}");
        let Message::Event(event) = parse(&Line { bytes: text.as_bytes(), offset: 0 }).unwrap() else {
            panic!("not an event")
        };
        Incoming::Event(TimedEvent { event, at: Instant::now() })
    }

    fn name(incoming: Option<Incoming>) -> String {
        match incoming {
            Some(Incoming::Event(timed)) => timed.event.kind.as_str().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn small() -> Inbox {
        let bound = Bound { messages: 3, bytes: 100 };
        Inbox::new(Bounds { droppable: bound, kept: bound })
    }

    #[test]
    fn noise_makes_room_and_never_takes_a_stop_with_it() {
        let mut inbox = small();
        inbox.push(event("STOP"), 10).unwrap();
        for n in 0..50 {
            inbox.push(event(&format!("NOISE{n}")), 10).unwrap();
        }
        inbox.push(event("RESUME"), 10).unwrap();
        assert_eq!(inbox.dropped(), 47);
        for expected in ["STOP", "NOISE47", "NOISE48", "NOISE49", "RESUME"] {
            assert_eq!(name(inbox.pop()), expected);
        }
        assert!(inbox.pop().is_none());
    }

    #[test]
    fn bytes_bound_noise_too() {
        let mut inbox = small();
        inbox.push(event("A"), 60).unwrap();
        inbox.push(event("B"), 60).unwrap();
        assert_eq!((name(inbox.pop()).as_str(), inbox.dropped()), ("B", 1));
        inbox.push(event("C"), 101).unwrap();
        assert!(inbox.pop().is_none());
    }

    #[test]
    fn too_many_essential_events_are_an_error_and_not_a_loss() {
        let mut inbox = small();
        for _ in 0..3 {
            inbox.push(event("STOP"), 1).unwrap();
        }
        assert_eq!(inbox.push(event("STOP"), 1), Err(Full));
        inbox.pop();
        inbox.pop();
        assert_eq!(inbox.push(event("STOP"), 1), Ok(()));
        assert_eq!(inbox.push(event("STOP"), 100), Err(Full));
    }

    #[test]
    fn taking_from_the_middle_keeps_the_order() {
        let mut inbox = small();
        for n in ["A", "STOP", "B"] {
            inbox.push(event(n), 1).unwrap();
        }
        let stop = inbox.take(|i| !i.is_droppable());
        assert_eq!(name(stop), "STOP");
        assert_eq!((name(inbox.pop()), name(inbox.pop())), ("A".to_owned(), "B".to_owned()));
    }
}
