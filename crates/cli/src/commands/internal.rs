//! Processes that Keyframe starts for itself.

use keyframe_engine::{Error, Home, guard, pages, release};

use crate::args::Internal;

/// Runs one.
pub fn run(internal: Internal) -> Result<u8, Error> {
    match internal {
        Internal::Guard { guard_home, vm } => guard::stand(&Home::open(&guard_home)?, &vm)?,
        Internal::Pages { dir } => pages::supervise(&dir)?,
        // Its directory is only for whoever looks at the list of processes.
        Internal::PageWorker { dir } => pages::work(&dir, std::io::stdin())?,
        Internal::Release => release::hold()?,
    }
    Ok(0)
}
