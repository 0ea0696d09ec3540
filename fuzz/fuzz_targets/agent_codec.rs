//! The guest agent's replies: never a panic, and after a sentinel the history does not matter.
//!
//! Input: the first byte is the length of the pieces, the rest is what the agent sends.
#![no_main]

use keyframe_qmp::agent::codec::{Decoder, SENTINEL};
use keyframe_qmp::agent::{AgentInfo, Exited, Interface};
use libfuzzer_sys::fuzz_target;

fn drain(decoder: &mut Decoder) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match decoder.next_answer() {
            Ok(None) => return all,
            Ok(Some(Ok(body))) => {
                let typed = (
                    body.to::<Exited>("exec").is_ok(),
                    body.to::<AgentInfo>("info").is_ok(),
                    body.to::<Vec<Interface>>("interfaces").is_ok(),
                );
                all.push(format!("{} {typed:?}", body.text()));
            }
            Ok(Some(Err(refusal))) => all.push(refusal.to_string()),
            // Nothing more comes before the next sentinel.
            Err(keyframe_qmp::Error::LineTooLong { .. }) => return all,
            Err(error) => all.push(error.to_string()),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let mut decoder = Decoder::new(4096);
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        decoder.push(piece);
        drain(&mut decoder);
    }
    decoder.push(&[SENTINEL]);
    decoder.push(b"{\"return\": 77}\n");
    let after = drain(&mut decoder);
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(after.first().is_some_and(|answer| answer.starts_with("77 ")));
});
