//! The other tools, as Debian and the crate registry ship them.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, run, say, setup};

/// What cargo builds: the program, and what to tell cargo.
const FROM_CRATES: [(&str, &[&str]); 2] =
    [("rustic", &["--locked", "rustic-rs", "--no-default-features"]), ("bupstash", &["bupstash"])];

/// Where cargo puts what it installs for the benchmark.
pub fn program(name: &str) -> PathBuf {
    paths::target().join("peers/bin").join(name)
}

/// Whether a program can be run.
pub fn is_there(program: &str) -> bool {
    run::quiet(&mut run::command("sh", ["-c", &format!("command -v {program}")])).is_ok()
}

/// Installs what is missing.
///
/// # Errors
/// When apt or cargo fails.
pub fn all() -> Result<()> {
    say::step("Installing the other tools");
    // Debian 12's own borg is 1.2; the one to beat is 1.4.
    setup::install(&["restic", "casync", "time", "libsodium-dev", "pkg-config"], &["borgbackup"])?;
    let root = paths::target().join("peers");
    for (name, words) in FROM_CRATES {
        if !program(name).exists() {
            let mut install = run::command(env!("CARGO"), ["install", "--quiet", "--root"]);
            install.arg(&root).args(words).env("CARGO_TARGET_DIR", root.join("build"));
            run::watched(&mut install)?;
        }
    }
    Ok(())
}
