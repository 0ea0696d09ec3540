//! The qcow2 format: what a file is, what hangs behind it, which clusters it holds; and new files.
//!
//! | module | what |
//! |---|---|
//! | [`units`] | offsets, cluster size, virtual size: bytes of different kinds are different types |
//! | [`source`] | where bytes are read from: a file or memory |
//! | [`header`] | the header and its extensions, parsed and bounded |
//! | [`backing`] | names of backing files |
//! | [`mod@probe`] | what format a file has |
//! | [`create`] | new overlays and standalone images |
//! | [`image`] | an image opened for reading |
//! | [`allocation`] | which parts of the guest's disk an image holds |
//! | [`mod@chain`] | the files that an image hangs on |
//! | [`read`] | the guest's bytes, of one layer or through a chain |
//! | [`rebase`] | another backing file for an image, in place |
//!
//! No policy: the crate does not know what a snapshot is and decides nothing.
//! Reading an image that a running QEMU writes to gives nonsense or an error, never a panic; frozen
//! layers are what it is for. Everything read is treated as hostile: tables are checked against the
//! format's limits and the file's length before memory is taken for them.
//!
//! Source for all of it: `docs/interop/qcow2.txt` of QEMU 10.0.

mod entry;
mod error;
mod extension;
mod fields;
mod inflate;
mod tables;

pub mod allocation;
pub mod backing;
pub mod chain;
pub mod create;
pub mod header;
pub mod image;
pub mod probe;
pub mod read;
pub mod rebase;
pub mod source;
pub mod units;

pub use allocation::{Allocated, Extent, ExtentKind};
pub use backing::{Backing, BackingName, Format};
pub use chain::{Layer, chain};
pub use create::{CreateOptions, Durability, Subclusters, create, create_overlay};
pub use error::{Error, Result};
pub use header::Header;
pub use image::Image;
pub use probe::probe;
pub use read::{ChainReader, LayerReader};
pub use rebase::set_backing;
pub use source::ReadAt;
pub use units::{ClusterSize, GuestOffset, HostOffset, VirtualSize};
