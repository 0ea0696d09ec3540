//! `cargo xtask lint`: formatting and clippy, warnings denied.

use anyhow::Result;

use crate::{paths, run, say};

/// Checks the whole workspace.
///
/// # Errors
/// When something is not formatted or clippy complains.
pub fn lint() -> Result<()> {
    say::step("Checking formatting");
    run::watched(run::command(env!("CARGO"), ["fmt", "--all", "--check"]).current_dir(paths::root()))?;
    say::step("Running clippy");
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    run::watched(run::command(env!("CARGO"), clippy).current_dir(paths::root()))
}
