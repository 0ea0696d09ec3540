//! Repositories for machine images: deduplicated, encrypted, hard to lose.
//!
//! docs/formats/repository.md tells the format and why it is so.

mod check;
mod crypto;
mod error;
mod failure;
pub mod frame;
pub mod ids;
pub mod index;
mod known;
mod live;
pub mod mark;
pub mod object;
pub mod pack;
pub mod parity;
mod point;
mod progress;
mod prune;
mod qcow2_file;
mod read;
mod reader;
mod repair;
mod repository;
mod retain;
pub mod source;
pub mod tree;
mod unfinished;
mod verify;
mod write;

pub use check::{CheckReport, Problem, check};
pub use crypto::*;
pub use error::{Error, Kind, Result};
pub use keyframe_types::Retention;
pub use point::{Point, StoredImage, Totals};
pub use progress::{Progress, Run, Silent};
pub use prune::{PruneOptions, PrunePlan, PruneReport, prune};
pub use read::{RestoreReport, Sink, restore_qcow2, restore_raw};
pub use reader::ImageReader;
pub use repair::{RepairReport, repair};
pub use repository::{Config, NodeReader, PARITY_MOST, Parameters, Repository, select_point};
pub use retain::{Decision, decide, decide_for_whole, forget, keep_marked};
pub use unfinished::{Existing, UnfinishedFile};
pub use verify::{VerifyOptions, VerifyReport, verify};
pub use write::{Session, WriteOptions};
