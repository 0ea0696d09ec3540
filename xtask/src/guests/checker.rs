//! The checker, built to run alone in a guest: static, optimized, in a target directory of its own.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, run};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds it (in no time when nothing changed) and says where it is.
///
/// # Errors
/// When cargo fails.
pub fn build() -> Result<PathBuf> {
    let target = paths::target().join("guest-build");
    let mut cargo = run::command(env!("CARGO"), ["build", "--quiet", "--release", "--package", "keyframe-checker"]);
    cargo.args(["--target", TRIPLE, "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols").current_dir(paths::root());
    run::watched(&mut cargo)?;
    Ok(target.join(TRIPLE).join("release/keyframe-checker"))
}
