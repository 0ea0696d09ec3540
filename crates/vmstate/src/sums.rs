//! `memory.b3`: the BLAKE3 of each 64 KiB extent of guest memory, and of everything else in the
//! file.
//!
//! A sum is the plain BLAKE3 of the extent's bytes (zeroes where the file has a hole), so `dd` and
//! `b3sum` can check any of them. They are computed while pages arrive, in any order, because
//! BLAKE3 is a tree: a page is a subtree of four 1 KiB chunks, its chaining value depends only on
//! its bytes and its place in the extent, and an extent's sum is the merge of its pages' values.
//! [`PartialExtent`] gathers them; an extent whose pages came in one piece is hashed in one piece,
//! which is faster.
//!
//! The file is valid only once its header is written, which happens last.
//!
//! Bytes: docs/formats/snapshot.md, "memory.b3".
//! Source: `blake3::hazmat`; the BLAKE3 paper, section 2.1 (tree shape).

mod header;
mod tree;

pub use header::{MAGIC, SumsHeader, VERSION};
pub use tree::{PagePlace, PageValue, PartialExtent, zero_extent_sum};

/// Bytes of one sum.
pub const SUM_BYTES: usize = 32;

/// A BLAKE3 hash.
pub type Sum = blake3::Hash;
