//! The kit of the acceptance tests: real guests, the real `keyframe`, and means to look at both from outside.
//!
//! | module | what |
//! |---|---|
//! | [`guests`] | kernels and disks that `cargo xtask guests` builds |
//! | [`home`] | a `KEYFRAME_HOME` of one's own, and the runner of the command line |
//! | [`running`] | a program at work, and how it went |
//! | [`daemon`] | a `keyframe serve`, and HTTP spoken with it |
//! | [`browser`] | a browser, and what can be done and seen in it |
//! | [`page`] | the daemon's dashboard in one: logging in, confirming, pictures |
//! | [`machine`] | one machine: create, look, type at its console, destroy |
//! | [`serial`] | its serial log: reading, waiting, and how long it was silent |
//! | [`checker`] | the lines of the program in the small guest |
//! | [`console`] | a shell at its console: commands and answers |
//! | [`repository`] | a repository with its key |
//! | [`monitor`] | raw QMP, for what `keyframe` has no command for |
//! | [`bare`] | a QEMU without Keyframe, to compare with |
//! | [`small_fs`] | a file system that is soon full |
//! | [`process`] | killing what is ours and nothing else |
//!
//! The kit uses nothing of the crates it tests: it knows the command line and its JSON, and the files that
//! DESIGN names.

pub mod bare;
pub mod browser;
pub mod checker;
pub mod console;
pub mod daemon;
pub mod error;
pub mod guests;
pub mod home;
pub mod machine;
pub mod monitor;
pub mod page;
pub mod process;
pub mod repository;
pub mod running;
pub mod serial;
pub mod small_fs;

pub use browser::Browser;
pub use daemon::Daemon;
pub use error::{Error, Result};
pub use home::Home;
pub use machine::{Machine, MachineSpec};
pub use page::Page;
pub use repository::Repository;
pub use running::{Outcome, Running};
