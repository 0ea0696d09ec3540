//! `cargo xtask test`: everything that decides whether a change is good.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::guests::{self, Guest};
use crate::{lint, paths, run, say, setup};

/// Tests that cargo counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Adds what a summary line says: `test result: ok. 3 passed; 0 failed; ...`. Other lines add nothing.
    fn add_line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |what: &str| {
            let part = rest.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(what));
            part.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
    }
}

/// How much to test.
#[derive(Debug, Clone, Copy, Args)]
pub struct Options {
    /// Play thousands of random histories of merges, crashes and power cuts instead of dozens: takes hours
    #[arg(long)]
    long: bool,
}

/// What the tests that play random histories look at: <crates/engine/src/merge/model>.
const LONG: &str = "KEYFRAME_LONG";

/// Sets up, builds guests, lints, builds and tests. The last line sums up.
///
/// # Errors
/// When anything fails; tests run to their end first.
pub fn test(options: Options) -> Result<()> {
    setup::setup()?;
    for guest in Guest::ALL {
        guests::ensure(guest, false)?;
    }
    lint::lint()?;
    say::step("Building");
    run::watched(run::command(env!("CARGO"), ["build", "--workspace"]).current_dir(paths::root()))?;
    say::step("Testing");
    let (count, succeeded) = run_tests(options)?;
    println!("\n{} passed, {} failed", count.passed, count.failed);
    if !succeeded || count.failed > 0 || count.passed == 0 {
        bail!("the tests did not all pass");
    }
    Ok(())
}

fn run_tests(options: Options) -> Result<(Count, bool)> {
    let mut cargo = run::command(env!("CARGO"), ["test", "--workspace", "--no-fail-fast"]);
    cargo.env_remove(LONG).envs(options.long.then_some((LONG, "1")));
    let mut child = cargo.current_dir(paths::root()).stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut count = Count::default();
    let output = child.stdout.take().context("cargo's output is piped")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's output")?;
        println!("{line}");
        count.add_line(&line);
    }
    Ok((count, child.wait().context("cannot wait for cargo test")?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_summaries_are_summed() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test result: ok. 36 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.05s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "5 passed by",
        ] {
            count.add_line(line);
        }
        assert_eq!(count, Count { passed: 37, failed: 2 });
    }
}
