//! Key files, age identities and recipients as somebody gives them. Never a panic; what is accepted is what it says.
#![no_main]

use std::os::unix::fs::PermissionsExt as _;

use keyframe_repo::{AgeRecipient, Unlock};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(recipient) = text.parse::<AgeRecipient>()
    {
        assert_eq!(recipient.to_string(), text.trim().to_lowercase());
    }
    let path = std::env::temp_dir().join(format!("keyframe-fuzz-{}", std::process::id()));
    std::fs::write(&path, input).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    let _ = Unlock::from_file(&path);
    std::fs::remove_file(&path).expect("it is there");
});
