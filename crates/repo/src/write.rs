//! Storing an image.
//!
//! ```text
//!  readers (n)         sequencer (1)              sealers (n)            writers (2)
//!  read 1 MiB     -->  in the image's order:  --> compress, encrypt  --> put packs together,
//!  find zeros          known? same as before?     a frame                authenticate, parity, store
//!  fingerprint         new: into a frame
//! ```
//!
//! All queues are bounded, so memory is. The sequencer alone decides, in the image's order: what is stored does not depend
//! on the threads' luck. A frame's name (pack and number) is given before it is compressed.

mod packs;
mod scan;
mod session;
mod trees;

pub use session::{Session, WriteOptions};
