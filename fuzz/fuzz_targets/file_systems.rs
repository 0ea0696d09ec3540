//! A disk from outside: partition table, logical volumes, file systems, and every file on them. Never a panic, never more bytes
//! than a file has, bounded work.
#![no_main]

use std::sync::Arc;

use keyframe_files::exercise::{Sparse, everything};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    everything(Arc::new(Sparse::read(input)));
});
