//! What is on disk: where it lies, how it is written so that a power cut leaves the old or the new, and
//! what each document says. Files are the only truth; nothing here keeps state in memory.

pub mod durable;
pub mod head;
pub mod home;
pub mod journal;
pub mod label;
pub mod lock;
pub mod manifest;
pub mod scratch;
pub mod sealed;
pub mod tree;
