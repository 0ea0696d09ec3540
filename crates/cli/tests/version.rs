//! What the program says that it is.

use std::process::Command;

#[test]
fn the_version_has_the_commit_that_it_was_built_from() {
    let said = Command::new(env!("CARGO_BIN_EXE_keyframe")).arg("--version").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let head = Command::new("git").args(["-C", root, "rev-parse", "--short=10", "HEAD"]).output();
    let commit = head.ok().filter(|head| head.status.success()).map(|head| String::from_utf8(head.stdout).unwrap());
    let expected = match commit {
        Some(commit) => format!("keyframe {} ({})\n", env!("CARGO_PKG_VERSION"), commit.trim()),
        // A source without its history.
        None => format!("keyframe {}\n", env!("CARGO_PKG_VERSION")),
    };
    assert_eq!(said, expected);
}
