//! `cargo xtask bench`: Keyframe measured beside what QEMU does on its own, in one run on one machine.
//!
//! Everything happens in one directory under the target directory, which is removed at the end with every process
//! that belongs to it. What a run that was killed left behind is cleared away by the next one.

mod backup;
mod figures;
mod fork;
mod guest;
mod keyframe;
mod peak;
mod qemu;
mod repo;
mod report;
mod samples;
mod serve;
mod snapshot;
mod table;
mod tree;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub enum Bench {
    /// Snapshot, revert and fork, against QEMU's own snapshots, live migration to a file, and QEMU's floor.
    Snapshot(snapshot::Options),
    /// Storing, restoring and verifying images, against borg, restic, rustic, bupstash and qemu-img.
    Repo(repo::Options),
    /// Backups of running machines and getting them back, against restic and borg.
    Backup(backup::Options),
    /// Deleting, expiring, deep chains and shared memory, against what QEMU does on its own.
    Tree(tree::Options),
    /// The daemon: a simulated year of hundreds of machines, its answers, and eight guests at once.
    Serve(serve::Options),
}

/// Measures.
///
/// # Errors
/// When something cannot be measured; a target that is missed is a result and not an error.
pub fn bench(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Snapshot(options) => snapshot::run(options),
        Bench::Repo(options) => repo::run(options),
        Bench::Backup(options) => backup::run(options),
        Bench::Tree(options) => tree::run(options),
        Bench::Serve(options) => serve::run(options),
    }
}
