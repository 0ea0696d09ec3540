//! Input and output of a machine's memory image: `memory.mapped` (QEMU's own mapped-ram file) and
//! its companions `memory.b3` (sums) and `memory.hot` (what the guest wanted first).
//!
//! | module | what |
//! |---|---|
//! | [`capture`] | a running machine's migration stream becomes an image |
//! | [`collapse`] | a guest's memory put back into huge pages, so that the next pause is short |
//! | [`image`] | an existing image, read with every extent checked |
//! | [`store`] | all images of a machine, whole or with pages in common |
//! | [`sharing`] | an image gives up the pages that an older one has, and gets them back |
//! | [`verify`] | a whole image checked, both cores at work |
//! | [`pageserver`] | an image given to a running QEMU page by page, as it asks |
//! | [`seal`] | companions for a file that QEMU wrote itself |
//!
//! The formats are [`keyframe_vmstate`]'s; this crate adds files, sockets and threads.

pub mod capture;
pub mod collapse;
mod content;
mod elsewhere;
pub mod error;
mod export;
pub mod image;
pub mod pageserver;
pub mod seal;
pub mod sharing;
mod source;
pub mod store;
pub mod verify;

pub use error::Error;
pub use image::{ExtentBuf, MemoryImage};
pub use store::{ImageStore, Keeping};

/// Creates a file that only its owner can read: it holds what a guest had in its memory.
fn create_private(path: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}
