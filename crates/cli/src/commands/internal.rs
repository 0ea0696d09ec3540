//! Processes that Keyframe starts for itself.

use std::sync::Arc;

use keyframe_engine::boot::server;
use keyframe_engine::{Error, Home, files, guard, pages, release};

use super::{boot, papers, repository};
use crate::args::Internal;

/// Runs one.
pub fn run(internal: Internal) -> Result<u8, Error> {
    match internal {
        Internal::Guard { guard_home, vm } => guard::stand(&Home::open(&guard_home)?, &vm)?,
        Internal::Pages { dir } => pages::supervise(&dir)?,
        // Its directory is only for whoever looks at the list of processes.
        Internal::PageWorker { dir } => pages::work(&dir, std::io::stdin())?,
        Internal::Files => files::read()?,
        Internal::Papers { dir } => papers::write(&dir)?,
        Internal::Hand { place, number, command } => {
            keyframe_daemon::hands::hand(&place, number, &command).map_err(super::serve::failed)?;
        }
        Internal::Release => release::hold()?,
        Internal::BootServer { server_home, vm } => server::supervise(&Home::open(&server_home)?, &vm)?,
        Internal::BootWorker { server_home, vm, restarts } => {
            repository::keep_memory();
            server::work(&Home::open(&server_home)?, &vm, Arc::new(boot::Stores), restarts)?;
        }
    }
    Ok(0)
}
