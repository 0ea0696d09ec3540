//! One module for each group of commands: calls the engine, says what came of it.

pub mod approvals;
mod backup;
mod boot;
mod check;
mod console;
mod cost;
mod credentials;
mod doctor;
mod drill;
pub mod files;
mod fsck;
pub mod image;
pub mod internal;
mod keys;
mod listing;
mod machines;
mod papers;
pub mod policy;
pub mod repo;
pub mod report;
mod repository;
pub mod serve;
mod snapshots;
mod test;
mod tidying;
mod upkeep;

use keyframe_engine::{Context, Error};

use crate::args::{MachineCommand, MemoryCommand};
use crate::output::Output;

/// Runs a command on machines; returns its exit status.
pub fn run(ctx: &Context<'_>, command: MachineCommand, output: &Output) -> Result<u8, Error> {
    match command {
        MachineCommand::Doctor { vm } => doctor::run(ctx, vm.as_ref(), output),
        MachineCommand::Vm(command) => machines::run(ctx, command, output),
        MachineCommand::Snapshot(args) => snapshots::take(ctx, args, output),
        MachineCommand::Snapshots { vm } => listing::run(ctx, &vm, output),
        MachineCommand::Show { snapshot } => snapshots::show(ctx, &snapshot, output),
        MachineCommand::Revert(args) => snapshots::revert(ctx, args, output),
        MachineCommand::Fork(args) => snapshots::fork(ctx, args, output),
        MachineCommand::Delete(args) => tidying::delete(ctx, &args, output),
        MachineCommand::Consolidate(args) => tidying::consolidate(ctx, args, output),
        MachineCommand::Expire(args) => tidying::expire(ctx, args, output),
        MachineCommand::SnapshotSet(args) => snapshots::set(ctx, args, output),
        MachineCommand::Test(args) => test::run(ctx, args, output),
        MachineCommand::Cost { vm, check } => cost::run(ctx, vm, check, output),
        MachineCommand::Memory(MemoryCommand::Export { snapshot, file }) => {
            snapshots::export_memory(ctx, &snapshot, &file, output)
        }
        MachineCommand::Check { vm, data } => check::run(ctx, &vm, data, output),
        MachineCommand::Fsck(args) => fsck::run(ctx, &args, output),
        MachineCommand::Backup(args) => backup::backup(ctx, args, output),
        MachineCommand::Hold(args) => backup::hold(&args, output),
        MachineCommand::Lock(args) => backup::lock(&args, output),
        MachineCommand::Points(args) => backup::points(&args, output),
        MachineCommand::Restore(args) => backup::restore(ctx, &args, output),
        MachineCommand::Drill(args) => drill::drill(ctx, args, output),
        MachineCommand::Drills(args) => drill::list(ctx, &args, output),
        MachineCommand::Boot(args) => boot::run(ctx, args, output),
    }
}
