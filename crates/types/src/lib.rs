//! The words of Keyframe as types: names, identifiers, sizes and times; and whom to tell how work goes on.
//!
//! Everything a person types or a file contains passes through one of these constructors once; behind
//! them the rest of the code can rely on what a `VmName` or a `SnapshotId` is. No type here does I/O
//! besides drawing random bytes for a fresh identifier and asking the
//! environment where credentials are.

mod id;
mod name;
mod progress;
mod retention;
pub mod secret;
mod size;
mod snapshot_ref;
pub mod text;
mod time;

pub use id::{GroupCutId, IdError, InstanceId, LayerId, SnapshotId};
pub use name::{DiskId, NameError, SnapshotName, VmName};
pub use progress::{Progress, Silent};
pub use retention::{Kept, Retention};
pub use secret::SecretFile;
pub use size::{ByteLen, SizeError};
pub use snapshot_ref::{RefError, SnapshotRef, SnapshotSelector};
pub use time::{SpanError, TimeError, TimeToLive, Timestamp, parse_span};
