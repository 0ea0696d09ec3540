//! Everything that is done to this repository, as one command: `cargo xtask`.
//!
//! Each task says what it is about to do, does nothing when nothing is to be done, and calls the tasks it
//! stands on: so `cargo xtask test` and `cargo xtask demo` are all that a fresh machine needs.

mod apt;
mod bench;
mod demo;
mod fuzz;
mod guests;
mod host;
mod images;
mod lint;
mod package;
mod paths;
mod run;
mod say;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::guests::Guest;

/// Keyframe's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build and the tests need: QEMU 10 and the tools that make guests.
    Setup,
    /// Build the Linux guests of the tests and the demo, from Debian packages.
    Guests {
        /// Which of them; all when none is named.
        which: Vec<Guest>,
        /// Fetch kernel and packages again, and build anew.
        #[arg(long)]
        fresh: bool,
    },
    /// Set up, build everything, check its style and run every test, real guests included.
    Test(test::Options),
    /// Take a working Linux machine at one instant, wreck it, bring it back, and show the figures; or show the daemon at work.
    Demo(demo::serve::Options),
    /// Check formatting and run clippy, warnings denied.
    Lint,
    /// Measure Keyframe beside what QEMU does on its own.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Make the images that `bench repo` stores: a disk over five days, and memory.
    BenchImages(images::Options),
    /// Make a Debian package, with manual pages, completions, the daemon's unit and examples.
    Package(package::Options),
    /// Run every fuzz target for a while.
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::failure(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn carry_out(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => setup::setup(),
        Task::Guests { which, fresh } => {
            setup::setup()?;
            let wanted = if which.is_empty() { Guest::ALL.to_vec() } else { which };
            wanted.into_iter().try_for_each(|guest| guests::ensure(guest, fresh).map(drop))
        }
        Task::Test(options) => test::test(options),
        Task::Demo(options) if options.serve => demo::serve::demo(options),
        Task::Demo(_) => demo::demo(),
        Task::Lint => lint::lint(),
        Task::Bench(bench) => bench::bench(&bench),
        Task::BenchImages(options) => images::make(&options),
        Task::Package(options) => package::package(&options),
        Task::Fuzz(options) => fuzz::fuzz(&options),
    }
}
