//! What an SFTP server says. Never a panic, bounded memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|said: &[u8]| {
    assert!(keyframe_store::testing::sftp_session(said) <= said.len());
});
