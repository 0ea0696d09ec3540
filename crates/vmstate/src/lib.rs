//! The formats of a running machine's memory: QEMU's migration stream, QEMU's mapped-ram
//! file, and Keyframe's companions to it (`memory.b3`, `memory.hot`, `memory.map`).
//!
//! Nothing here reads or writes a file or a socket: bytes go in and values come out, so every
//! parser can be fed any cut of any input. Input is hostile throughout: every length is checked
//! against a limit of [`limits`] before anything is allocated, and no arithmetic on it can wrap.
//!
//! | module | what |
//! |---|---|
//! | [`units`], [`ram`], [`config`] | the words: pages, extents, blocks, machine configuration |
//! | [`decode`] | migration stream in, pages and device state out |
//! | [`encode`] | the same stream, written |
//! | [`mapped`] | layout, parser and page bitmaps of a mapped-ram file |
//! | [`sums`] | BLAKE3 of each 64 KiB extent, built from pages in any order |
//! | [`postcopy`] | the source's side of a postcopy migration |
//! | [`shared`] | in whose files the pages of a shared image lie |
//! | [`hot`] | which pages the guest wanted first |

pub mod config;
pub mod decode;
pub mod encode;
mod error;
pub mod hot;
pub mod mapped;
pub mod postcopy;
pub mod ram;
pub mod shared;
pub mod sums;
pub mod tail;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod units;
pub mod wire;

pub use error::Error;
pub use units::{BlockIndex, EXTENT_SIZE, ExtentIndex, PAGE_SIZE, PAGES_PER_EXTENT, Page, PageCount, PageIndex};

/// Upper bounds on what a stream or file may claim. Far above what QEMU produces, low enough that
/// what is allocated because an input says so stays in proportion to the guest it claims to be.
pub mod limits {
    /// RAM blocks of one machine. A large q35 machine has about twenty.
    pub const MAX_BLOCKS: usize = 512;
    /// Bytes of guest memory, all blocks together: 4 TiB. A bitmap of so much has 128 MiB.
    pub const MAX_RAM_BYTES: u64 = 1 << 42;
    /// Bytes of device state after the memory. virtio-gpu saves its pictures there.
    pub const MAX_DEVICE_STATE_BYTES: u64 = 256 << 20;
    /// Bytes of the JSON description that ends a stream.
    pub const MAX_VMDESC_BYTES: u32 = 16 << 20;
    /// Capabilities named in the configuration section; QEMU has two that are ever named.
    pub const MAX_CAPABILITIES: u32 = 16;
    /// Sections after the memory's first that a mapped-ram file may hold before its device state.
    pub const MAX_EMPTY_SECTIONS: u32 = 1 << 16;
}
