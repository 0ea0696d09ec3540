//! `cargo xtask fuzz`: every target under `fuzz/`, each for a while.
//!
//! cargo-fuzz needs a nightly compiler. Where none is installed, the stable one is told to behave like one, without the
//! sanitizer that only a nightly can build; overflow checks and debug assertions still catch what they catch.

use anyhow::{Context, Result, bail};

use crate::{paths, run, say};

/// How to fuzz.
#[derive(clap::Args)]
pub struct Options {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Only these targets.
    targets: Vec<String>,
}

/// Fuzzes.
///
/// # Errors
/// When cargo-fuzz cannot be had, or a target finds something: its input is under `fuzz/artifacts`.
pub fn fuzz(options: &Options) -> Result<()> {
    let dir = paths::root().join("fuzz");
    if !dir.join("Cargo.toml").exists() {
        bail!("{} has no fuzz targets", dir.display());
    }
    if run::command("cargo-fuzz", ["--version"]).output().is_err() {
        say::step("Installing cargo-fuzz");
        run::watched(&mut run::command("cargo", ["install", "--locked", "cargo-fuzz"]))?;
    }
    let nightly = run::command("rustup", ["run", "nightly", "rustc", "--version"]).output();
    let nightly = nightly.is_ok_and(|output| output.status.success());
    let known = run::text(cargo_fuzz(nightly).arg("list")).context("cannot list fuzz targets")?;
    let known: Vec<_> = known.lines().map(str::to_owned).collect();
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target {unknown}; there are: {}", known.join(", "));
    }
    let wanted = if options.targets.is_empty() { &known } else { &options.targets };
    for target in wanted {
        say::step(format_args!("Fuzzing {target} for {} s", options.seconds));
        let mut fuzzer = cargo_fuzz(nightly);
        fuzzer.args(["run", target]);
        // The first directory takes what is found, the second is only read.
        let (corpus, seeds) = (dir.join("corpus").join(target), dir.join("seeds").join(target));
        std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
        fuzzer.arg(corpus).args(seeds.is_dir().then_some(seeds));
        if !nightly {
            fuzzer.args(["--sanitizer", "none"]);
        }
        // What a thread that is just ending still holds is taken for a leak.
        fuzzer.args(["--", &format!("-max_total_time={}", options.seconds), "-print_final_stats=1", "-detect_leaks=0"]);
        run::watched(&mut fuzzer)?;
    }
    say::step(format_args!("{} targets, nothing found", wanted.len()));
    Ok(())
}

fn cargo_fuzz(nightly: bool) -> std::process::Command {
    let toolchain = if nightly { "+nightly" } else { "+stable" };
    let mut command = run::command("cargo", [toolchain, "fuzz"]);
    if !nightly {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command.current_dir(paths::root());
    command
}
