//! Files out of disk images: partition tables, logical volumes and file systems, read only, without the kernel and without root.
//!
//! ```text
//!   command                                  reader (a process that may do nothing but read and write one socket)
//!   ───────                                  ──────
//!   repository ─▶ [`Disk`] ─▶ serves blocks ◀──── asks for blocks ◀─ [`FileSystem`] ◀─ [`scan`] ◀─ [`Disk`]
//!   [`Reader`] is a [`FileSystem`], too ──── asks ────▶ answers
//! ```
//!
//! What is on a guest's disk is whatever somebody who owns the guest wants to be there. So it is parsed with every access
//! checked, within bounds of memory and work, and by a process of its own that has given up every right. Should it crash or not
//! come to an end, whoever asked gets an error.

mod btrfs;
mod bytes;
mod checksum;
pub mod copy;
pub mod diff;
mod disk;
mod error;
#[doc(hidden)]
pub mod exercise;
mod ext4;
mod fat;
mod fs;
mod lvm;
pub mod mount;
mod ntfs;
mod partition;
pub mod reader;
mod volume;
mod xfs;

pub use disk::{Disk, Piece, Pieced, Window};
pub use error::{Error, Result};
pub use fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, Owner, Time, Xattr, resolve};
pub use partition::{Partition, Scheme, Table, read as read_table};
pub use reader::Reader;
pub use volume::{Content, Volume, VolumeInfo, scan};
