//! `cargo xtask package`: a Debian package with manual pages, completions, the unit and examples.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, run, say};

/// What makes it, and its version.
const CARGO_DEB: [&str; 2] = ["cargo-deb", "3.8.0"];

/// Makes `target/debian/keyframe_*.deb`.
///
/// # Errors
/// When something cannot be built.
pub fn package() -> Result<()> {
    say::step("Building Keyframe");
    let build = ["build", "--release", "--package", "keyframe-cli"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    let keyframe = paths::target().join("release/keyframe");
    let papers = paths::target().join("papers");
    if papers.exists() {
        std::fs::remove_dir_all(&papers)?;
    }
    run::quiet(std::process::Command::new(&keyframe).arg("internal-papers").arg(&papers))?;
    let deb = cargo_deb()?;
    say::step("Packing");
    let words = ["deb", "--package", "keyframe-cli", "--no-build"];
    run::watched(std::process::Command::new(deb).args(words).current_dir(paths::root()))
}

/// The tool, installed below the target directory when it is not there.
fn cargo_deb() -> Result<PathBuf> {
    let root = paths::target().join("tools");
    let program = root.join("bin/cargo-deb");
    if !program.exists() {
        let [name, version] = CARGO_DEB;
        say::step(format_args!("Installing {name} {version} into {}", root.display()));
        let words = ["install", name, "--version", version, "--locked", "--root"];
        run::watched(run::command(env!("CARGO"), words).arg(&root).current_dir(paths::root()))?;
    }
    Ok(program)
}
