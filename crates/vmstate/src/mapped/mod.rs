//! QEMU's mapped-ram file: every page at a fixed offset, holes for zero pages.
//!
//! ```text
//! 0          QEVM 3, configuration (with capability mapped-ram), head of the memory's section
//!            per block: name, length, header {version, page size, bitmap at, pages at},
//!                       bitmap (64-bit words, least significant bit first),
//!                       gap up to a multiple of 1 MiB, pages
//! ram end    end mark, footer; in QEMU's own files then empty PART and END sections
//! devices    device sections, end mark, JSON description; the file ends there
//! ```
//!
//! A clear bit in a bitmap means a page of zeroes: QEMU does not read it. Keyframe's files keep the
//! stronger rule that its place in the file is zero too, because a fork maps the file directly and
//! never looks at the bitmap.
//!
//! Source: QEMU 10.0 `migration/ram.c:2850-2942` (header, offsets), `:3019-3040` (bitmaps),
//! `:3923-3972` (loading).

mod bitmap;
mod devices_only;
mod layout;
mod parse;

pub use bitmap::{DataExtent, PageBitmap, PageRun};
pub use devices_only::{DevicesOnly, Piece};
pub use layout::{MappedBlock, MappedLayout};
pub use parse::{MappedFile, ReadAt, parse};
