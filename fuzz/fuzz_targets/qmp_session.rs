//! A QMP conversation: any bytes, in any cuts, give the same messages as in one piece, stay within the
//! bounds and never panic.
//!
//! Input: the first byte is the length of the pieces, the rest is what the peer sends.
#![no_main]

use std::time::Instant;

use keyframe_qmp::codec::ClientSalt;
use keyframe_qmp::inbox::{Bound, Bounds};
use keyframe_qmp::session::Session;
use libfuzzer_sys::fuzz_target;

const LINE_LIMIT_BYTES: usize = 4096;

fn converse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let bound = Bound { messages: 16, bytes: 2048 };
    let bounds = Bounds { droppable: bound, kept: bound };
    // The same ids each time, so that inputs can answer them.
    let mut session = Session::new("fuzz", ClientSalt::from_random([0; 4]), LINE_LIMIT_BYTES, bounds);
    for command in ["qmp_capabilities", "migrate", "transaction"] {
        session.begin(command).expect("there is room for three");
    }
    let at = Instant::now();
    pieces.for_each(|piece| session.push(piece, at));
    let mut told = format!("{} {}\n", session.dropped_events(), session.foreign_replies());
    let mut count = 0;
    while let Some(incoming) = session.inbox().pop() {
        assert_eq!(incoming.at(), at);
        told += &format!("{:?}\n", Timeless(&incoming));
        count += 1;
    }
    assert!(count <= 2 * bound.messages + 1, "the inbox holds {count}");
    told + &format!("{:?}", session.failure())
}

/// Without the time, which differs from one conversation to the next.
struct Timeless<'a>(&'a keyframe_qmp::Incoming);

impl std::fmt::Debug for Timeless<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            keyframe_qmp::Incoming::Reply(reply) => {
                write!(f, "{} {} {:?}", reply.id, reply.command, reply.result)
            }
            keyframe_qmp::Incoming::Event(timed) => {
                write!(f, "{:?} {:?}", timed.event, timed.event.text("status"))
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let pieces = bytes.chunks(usize::from(*size).max(1));
    assert_eq!(converse(std::iter::once(bytes)), converse(pieces));
});
