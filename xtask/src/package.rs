//! `cargo xtask package`: a Debian package with manual pages, completions, the unit and examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::apt::BACKPORTS;
use crate::guests::debian;
use crate::{paths, run, say};

/// What makes it, and its version.
const CARGO_DEB: [&str; 2] = ["cargo-deb", "3.8.0"];

/// What `packaging/check.sh` needs in the system that the package is installed in.
const CHECKED_WITH: &str = "systemd,man-db,bash-completion,zsh,fish,lintian";

/// Whether the package is tried, too.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Install it in a fresh Debian 12 in a directory, look whether what is in it works, and take it away again
    #[arg(long)]
    check: bool,
    /// The package that is checked, instead of one that is made
    #[arg(long, value_name = "DEB", requires = "check")]
    deb: Option<PathBuf>,
}

/// Makes `target/debian/keyframe_*.deb`.
///
/// # Errors
/// When something cannot be built, or the check finds something.
pub fn package(options: &Options) -> Result<()> {
    let deb = match &options.deb {
        Some(deb) => deb.clone(),
        None => make()?,
    };
    if options.check { check(&deb) } else { Ok(()) }
}

fn make() -> Result<PathBuf> {
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
    let words = ["deb", "--package", "keyframe-cli", "--no-build", "--strip"];
    // Its last line is the path.
    let told = run::text(std::process::Command::new(deb).args(words).current_dir(paths::root()))?;
    let path = told.lines().last().context("cargo-deb does not say where the package is")?;
    say::note(path);
    Ok(PathBuf::from(path))
}

/// Tries the package in a Debian that mmdebstrap puts together and throws away: as root or as anybody.
fn check(deb: &Path) -> Result<()> {
    say::step("Trying the package in a fresh Debian 12 (some minutes)");
    let script = debian::quoted(&paths::root().join("packaging/check.sh"))?;
    let deb = debian::quoted(&deb.canonicalize().with_context(|| format!("there is no {}", deb.display()))?)?;
    let hook = format!("--customize-hook=sh {script} \"$1\" {deb} {BACKPORTS} >&2");
    let include = format!("--include={CHECKED_WITH}");
    let mut command = run::command("mmdebstrap", ["--quiet", "--variant=minbase", "--format=null", &include, &hook]);
    command.args([debian::SUITE, "/dev/null", "-"]);
    debian::feed(&mut command, &debian::mirrors_and(&[BACKPORTS])?)?;
    say::note("all is there and works, and nothing but what was made with it is left when it goes");
    Ok(())
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
