//! Network Block Device: a server that shows bytes to QEMU and others, a client that reads what they show.
//!
//! | module | what | I/O |
//! |---|---|---|
//! | [`wire`] | numbers and fixed-size headers | none |
//! | [`handshake`] | the server's side of negotiation, option by option | none |
//! | [`reply`] | replies and chunks: made and taken apart | none |
//! | [`export`] | what a server shows: a small trait | |
//! | [`server`] | one connection, or a socket with many | yes |
//! | [`client`] | one connection | yes |
//!
//! Fixed newstyle negotiation, structured replies and meta contexts; neither TLS nor extended headers. A server here shows
//! bytes and takes none: every command that would change them is refused with `EPERM`. Sockets are as private as the
//! file system makes them.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, named by section below.

pub mod client;
mod error;
pub mod export;
pub mod handshake;
pub mod reply;
pub mod server;
pub mod wire;

pub use client::Client;
pub use error::{Error, Result};
pub use export::{Allocation, Export, Extent};
pub use server::{serve_connection, serve_socket};
