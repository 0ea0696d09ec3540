//! Snapshots, reverts and forks of machines: plans first, then carries them out.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | what is on disk: paths, durable documents, the lock |
//! | [`machine`] | a machine as it is found |
//! | [`create`], [`lifecycle`], [`remove`] | making, starting, stopping, showing, removing machines |
//! | [`snapshot`] | taking a snapshot |
//! | [`bringup`] | a fresh process that continues from a snapshot |
//! | [`revert`], [`fork`] | going back; going on beside |
//! | [`tree`], [`delete`], [`expire`] | looking at snapshots; letting them go |
//! | [`merge`], [`consolidate`] | making chains of layers shorter |
//! | [`backup`], [`restore`] | a machine's state in a repository, and back from it |
//! | [`boot`] | a machine that runs straight from a repository |
//! | [`files`] | files out of a point |
//! | [`cost`] | what snapshots cost, and what to do about it |
//! | [`drill`] | whether a snapshot really comes back |
//! | [`evidence`] | what was proved, in a log that cannot be changed unseen |
//! | [`check`] | every snapshot against its sums |
//! | [`fsck`] | documents, layers and files against each other |
//! | [`label`] | what is said about a snapshot after it was taken |
//! | [`pages`] | the page server's process |
//! | [`release`] | large files that go without anybody waiting |
//! | [`guard`] | who watches over a command |
//! | [`recover`] | tidying up behind a killed command |
//!
//! Every operation that changes something writes a journal first, has one commit point, and is finished or undone by
//! whoever comes next. `failpoint` lists the steps at which tests kill it.

pub mod backup;
mod bitmaps;
pub mod boot;
pub mod bringup;
pub mod check;
pub mod consolidate;
pub mod context;
pub mod cost;
pub mod courtesy;
pub mod create;
pub mod delete;
pub mod doctor;
pub mod drill;
mod error;
pub mod evidence;
pub mod expire;
pub mod failpoint;
pub mod files;
pub mod fork;
pub mod fsck;
pub mod guard;
mod guest;
pub mod label;
mod layers;
pub mod lifecycle;
pub mod machine;
mod memory;
pub mod merge;
pub mod outcome;
pub mod pages;
pub mod pause;
mod recover;
pub mod release;
pub mod remove;
pub mod restore;
pub mod revert;
mod serial;
mod settle;
pub mod sharing;
pub mod snapshot;
mod snapshots;
mod space;
pub mod state;
mod tally;
pub mod tree;

pub use context::{Context, Progress, Silent};
pub use error::{Error, Kind};
pub use state::home::Home;
