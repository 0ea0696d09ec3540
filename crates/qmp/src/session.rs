//! One side of a QMP conversation, without I/O: which requests are open, what has arrived, whether it
//! is over.
//!
//! Bytes go in with their time ([`Session::push`]), messages come out in order ([`Session::inbox`]).
//! A failure is kept until told once; what arrived before it can still be taken first.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::codec::{Body, ClientSalt, CommandError, Decoder, Greeting, Message, RequestId};
use crate::error::{Error, Result};
use crate::inbox::{Bounds, Inbox, Incoming, Reply, TimedEvent};

/// Requests that may wait for their replies at once. QEMU itself stops reading at 8.
/// Source: `monitor/monitor-internal.h`, `QMP_REQ_QUEUE_LEN_MAX`.
pub const PENDING_MAX: usize = 64;

#[derive(Debug)]
struct Pending {
    command: String,
    /// Nobody waits for the reply any more.
    abandoned: bool,
}

/// State of a conversation.
#[derive(Debug)]
pub struct Session {
    peer: String,
    decoder: Decoder,
    inbox: Inbox,
    pending: BTreeMap<RequestId, Pending>,
    salt: ClientSalt,
    count: u32,
    greeting: Option<Greeting>,
    over: bool,
    failure: Option<Error>,
    foreign_replies: u64,
}

impl Session {
    /// The beginning of a conversation with `peer`, a name for messages.
    #[must_use]
    pub fn new(peer: &str, salt: ClientSalt, line_limit_bytes: usize, bounds: Bounds) -> Self {
        Self {
            peer: peer.to_owned(),
            decoder: Decoder::new(line_limit_bytes),
            inbox: Inbox::new(bounds),
            pending: BTreeMap::new(),
            salt,
            count: 0,
            greeting: None,
            over: false,
            failure: None,
            foreign_replies: 0,
        }
    }

    /// Takes bytes that were read at `at`. Does nothing once the conversation is over.
    pub fn push(&mut self, bytes: &[u8], at: Instant) {
        if self.over {
            return;
        }
        self.decoder.push(bytes);
        while !self.over {
            match self.decoder.next_message() {
                Ok(Some((message, bytes))) => self.accept(message, bytes, at),
                Ok(None) => return,
                Err(error) => self.end(Some(error)),
            }
        }
    }

    /// Ends the conversation; with `None` because the peer closed it.
    pub fn end(&mut self, why: Option<Error>) {
        self.over = true;
        if let Some(why) = why {
            self.failure.get_or_insert(why);
        }
    }

    /// Whether no more will arrive.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The failure to be told once what has arrived was taken: the end of the conversation, or an error
    /// that concerns no request.
    pub fn failure(&mut self) -> Option<Error> {
        let peer = &self.peer;
        let over = self.over.then(|| Error::Disconnected { peer: peer.clone() });
        self.failure.take().or(over)
    }

    /// The greeting, once it came.
    #[must_use]
    pub fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    /// What has arrived.
    #[must_use]
    pub fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    /// Events dropped to make room.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.inbox.dropped()
    }

    /// Replies dropped because they belonged to no request.
    #[must_use]
    pub fn foreign_replies(&self) -> u64 {
        self.foreign_replies
    }

    /// Opens a request.
    ///
    /// # Errors
    /// [`Error::TooManyPending`].
    pub fn begin(&mut self, command: &str) -> Result<RequestId> {
        if self.pending.len() >= PENDING_MAX {
            return Err(Error::TooManyPending { limit: PENDING_MAX });
        }
        let id = RequestId::new(self.salt, self.count);
        self.count = self.count.wrapping_add(1);
        self.pending.insert(id, Pending { command: command.to_owned(), abandoned: false });
        Ok(id)
    }

    /// Whether somebody may wait for this request's reply, and it has not come yet.
    #[must_use]
    pub fn is_pending(&self, id: RequestId) -> bool {
        self.pending.get(&id).is_some_and(|pending| !pending.abandoned)
    }

    /// Forgets a request that was not sent.
    pub fn retract(&mut self, id: RequestId) {
        self.pending.remove(&id);
    }

    /// Drops a request's reply, now or when it comes.
    pub fn abandon(&mut self, id: RequestId) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.abandoned = true;
        }
        self.inbox.take(|incoming| matches!(incoming, Incoming::Reply(reply) if reply.id == id));
    }

    fn accept(&mut self, message: Message, bytes: usize, at: Instant) {
        let incoming = match message {
            Message::Greeting(greeting) => {
                self.greeting.get_or_insert(greeting);
                None
            }
            Message::Event(event) => Some(Incoming::Event(TimedEvent { event, at })),
            Message::Return { id, body } => self.reply(id, Ok(body), at),
            Message::Refusal { had_id: false, error, .. } => {
                let (peer, desc) = (self.peer.clone(), error.desc);
                self.failure.get_or_insert(Error::Unattributed { peer, desc });
                None
            }
            Message::Refusal { id, error, .. } => self.reply(id, Err(error), at),
        };
        let Some(incoming) = incoming else { return };
        if self.inbox.push(incoming, bytes).is_err() {
            let (peer, bound) = (self.peer.clone(), self.inbox.bounds().kept);
            let (limit_bytes, limit_messages) = (bound.bytes, bound.messages);
            self.end(Some(Error::Overflow { peer, limit_bytes, limit_messages }));
        }
    }

    /// Source: `docs/interop/qmp-spec.rst`: "Clients should drop all the responses that have an
    /// unknown id field."
    fn reply(
        &mut self,
        id: Option<RequestId>,
        result: std::result::Result<Body, CommandError>,
        at: Instant,
    ) -> Option<Incoming> {
        let known = id.and_then(|id| self.pending.remove(&id).map(|pending| (id, pending)));
        let Some((id, pending)) = known else {
            self.foreign_replies += 1;
            return None;
        };
        let reply = Reply { id, command: pending.command, at, result };
        (!pending.abandoned).then_some(Incoming::Reply(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventKind;

    fn session() -> Session {
        Session::new("test", ClientSalt::from_random([1, 2, 3, 4]), 1000, Bounds::default())
    }

    fn raw_id(id: RequestId) -> String {
        serde_json::to_string(&id).unwrap()
    }

    #[test]
    fn messages_come_out_in_order_of_arrival_with_their_time() {
        let mut session = session();
        let id = session.begin("stop").unwrap();
        let (first, second) = (Instant::now(), Instant::now() + std::time::Duration::from_millis(1));
        let text = format!("{{\"event\": \"STOP\"}}\n{{\"return\": {{}}, \"id\": {}}}\n{{\"ev", raw_id(id));
        session.push(text.as_bytes(), first);
        session.push(b"ent\": \"RESUME\"}\n", second);
        let order: Vec<_> = std::iter::from_fn(|| session.inbox().pop()).collect();
        assert!(matches!(&order[0], Incoming::Event(e) if e.event.kind == EventKind::Stop && e.at == first));
        assert!(matches!(&order[1], Incoming::Reply(r) if r.id == id && r.command == "stop" && r.at == first));
        assert!(matches!(&order[2], Incoming::Event(e) if e.event.kind == EventKind::Resume && e.at == second));
        assert!(!session.is_pending(id));
    }

    #[test]
    fn replies_to_others_and_second_replies_are_dropped() {
        let mut session = session();
        let id = session.begin("x").unwrap();
        let reply = format!("{{\"return\": 1, \"id\": {}}}\n", raw_id(id));
        let text = format!("{{\"return\": 5, \"id\": 5}}\n{{\"return\": 6}}\n{reply}{reply}");
        session.push(text.as_bytes(), Instant::now());
        assert!(matches!(session.inbox().pop(), Some(Incoming::Reply(r)) if r.id == id));
        assert!(session.inbox().pop().is_none());
        assert_eq!(session.foreign_replies(), 3);
    }

    #[test]
    fn an_abandoned_reply_is_dropped_whenever_it_comes() {
        let mut session = session();
        let (early, late) = (session.begin("a").unwrap(), session.begin("b").unwrap());
        let reply = |id| format!("{{\"return\": 1, \"id\": {}}}\n", raw_id(id));
        session.push(reply(early).as_bytes(), Instant::now());
        session.abandon(early);
        session.abandon(late);
        session.push(reply(late).as_bytes(), Instant::now());
        assert!(session.inbox().pop().is_none());
        assert!(!session.is_pending(late));
    }

    #[test]
    fn a_failure_is_told_once_and_ends_it() {
        let mut session = session();
        session.push(b"{\"event\": \"STOP\"}\nnonsense\n{\"event\": \"RESUME\"}\n", Instant::now());
        assert!(session.is_over());
        assert!(session.inbox().pop().is_some(), "what came before is kept");
        assert!(session.inbox().pop().is_none(), "what came after is not believed");
        assert!(matches!(session.failure(), Some(Error::Malformed { offset: 18, .. })));
        assert!(matches!(session.failure(), Some(Error::Disconnected { .. })));
    }

    #[test]
    fn a_request_that_could_not_be_read_is_told_and_ends_nothing() {
        let mut session = session();
        session.push(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n", Instant::now());
        assert!(matches!(session.failure(), Some(Error::Unattributed { desc, .. }) if desc == "JSON parse error"));
        assert!(session.failure().is_none() && !session.is_over());
    }

    #[test]
    fn open_requests_are_bounded() {
        let mut session = session();
        for _ in 0..PENDING_MAX {
            session.begin("x").unwrap();
        }
        assert!(matches!(session.begin("x"), Err(Error::TooManyPending { .. })));
    }
}
