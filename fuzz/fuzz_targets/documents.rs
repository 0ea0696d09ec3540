//! Heads, manifests, trees, journals and labels: what is read is written the same again. Never panics.
//!
//! Input: the first byte says which, the rest is the document's body. It is read as it stands, which is nearly always refused,
//! and in an envelope with the checksum that fits; otherwise nothing would get past it.
#![no_main]

use std::fmt::Debug;
use std::path::Path;

use keyframe_engine::state::head::Head;
use keyframe_engine::state::journal::Journal;
use keyframe_engine::state::label::Label;
use keyframe_engine::state::manifest::{Cost, Manifest};
use keyframe_engine::state::sealed::{self, Document};
use keyframe_engine::state::tree::{ActiveTop, FrozenTop, TreeDocument};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((which, rest)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match which % 5 {
        0 => judge(text, |head: Head<ActiveTop>| head),
        // Numbers with a fraction may lose their last bit on the way.
        1 => judge(text, |manifest: Manifest<FrozenTop>| Manifest {
            cost: Cost { pause_ms: 0.0, guest_stall_ms_max: None, total_ms: 0.0 },
            ..manifest
        }),
        2 => judge(text, |journal: Journal| journal),
        3 => judge(text, |tree: TreeDocument| tree),
        _ => judge(text, |label: Label| label),
    }
});

fn judge<T: Document + Debug + PartialEq>(text: &str, comparable: impl Fn(T) -> T) {
    let path = Path::new("document.json");
    let _ = sealed::decode::<T>(text, path);
    let Ok(document) = sealed::decode::<T>(&sealed::sealed(T::SCHEMA, text), path) else { return };
    let body = serde_json::to_string(&document).unwrap();
    let again = sealed::decode::<T>(&sealed::sealed(T::SCHEMA, &body), path).unwrap();
    assert_eq!(comparable(again), comparable(document));
}
