//! Every command on a hostile repository ends, without a panic and in bounded memory. What the input is: `fuzz/hostile_store.rs`.
//! Where its seeds get to is tested by `crates/repo/tests/hostile.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../hostile_store.rs"]
mod hostile_store;

fuzz_target!(|input: &[u8]| {
    let _ = hostile_store::attack(input);
});
