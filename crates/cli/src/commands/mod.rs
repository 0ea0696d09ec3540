//! One module for each group of commands: calls the engine, says what came of it.

mod backup;
mod check;
mod console;
mod cost;
mod doctor;
mod fsck;
pub mod image;
pub mod internal;
mod keys;
mod listing;
mod machines;
pub mod repo;
mod repository;
mod snapshots;
mod test;
mod tidying;
mod upkeep;

use keyframe_engine::{Context, Error};

use crate::args::{Command, MemoryCommand};
use crate::output::Output;

/// Runs a command; returns its exit status.
pub fn run(ctx: &Context<'_>, command: Command, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Doctor { vm } => doctor::run(ctx, vm.as_ref(), output),
        Command::Vm(command) => machines::run(ctx, command, output),
        Command::Snapshot(args) => snapshots::take(ctx, args, output),
        Command::Snapshots { vm } => listing::run(ctx, &vm, output),
        Command::Show { snapshot } => snapshots::show(ctx, &snapshot, output),
        Command::Revert(args) => snapshots::revert(ctx, args, output),
        Command::Fork(args) => snapshots::fork(ctx, args, output),
        Command::Delete(args) => tidying::delete(ctx, &args, output),
        Command::Consolidate(args) => tidying::consolidate(ctx, args, output),
        Command::Expire(args) => tidying::expire(ctx, args, output),
        Command::SnapshotSet(args) => snapshots::set(ctx, args, output),
        Command::Test(args) => test::run(ctx, args, output),
        Command::Cost { vm, check } => cost::run(ctx, vm, check, output),
        Command::Memory(MemoryCommand::Export { snapshot, file }) => {
            snapshots::export_memory(ctx, &snapshot, &file, output)
        }
        Command::Check { vm, data } => check::run(ctx, &vm, data, output),
        Command::Fsck(args) => fsck::run(ctx, &args, output),
        Command::Backup(args) => backup::backup(ctx, args, output),
        Command::Points(args) => backup::points(&args, output),
        Command::Restore(args) => backup::restore(ctx, &args, output),
        Command::Repo(_) | Command::Image(_) => unreachable!("commands on repositories were carried out before"),
        Command::Internal(internal) => internal::run(internal),
    }
}
