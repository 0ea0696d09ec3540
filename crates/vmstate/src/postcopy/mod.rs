//! The source's side of QEMU's postcopy migration, without I/O.
//!
//! A lazy revert plays the source to a fresh QEMU: devices first, memory when it is asked for. This module knows
//! the bytes of that conversation and its order; which pages, from where, and on which socket is the page
//! server's. docs/POSTCOPY.md tells the conversation as a whole.
//!
//! ```text
//!  Opening ── eager pages ──> package ──> Source ── requests, background ──> end ──> SHUT
//!                                            │  ^
//!                        connection lost     v  │ bitmaps, resume, consent
//!                                           Resume
//! ```
//!
//! The states are types, so that pages cannot be sent before the package, nor the package before the eager
//! pages. What the destination says is hostile until parsed: see [`ReturnPath`].

mod error;
mod frames;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod pages;
mod return_path;
mod run;
mod source;

pub use error::PostcopyError;
pub use pages::{Pages, Zeros};
pub use return_path::{Located, Message, ReturnPath};
pub use run::{extent_run, pages_of, run_within};
pub use source::{Opening, Resume, Resumed, Source};

#[cfg(test)]
mod tests;
