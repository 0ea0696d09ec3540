//! Guests to boot. `cargo xtask guests` builds them when they are not there or not up to date.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// A kernel and the checker as its only program.
#[derive(Debug, Clone)]
pub struct SmallGuest {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initrd: PathBuf,
}

/// A Debian system with PostgreSQL and the guest agent. The disks are masters: boot overlays of them.
#[derive(Debug, Clone)]
pub struct DebianGuest {
    /// Kernel image, for booting it without firmware.
    pub kernel: PathBuf,
    /// Initramfs that goes on to the system's disk.
    pub initrd: PathBuf,
    /// The system, with an EFI partition to boot from.
    pub system_disk: PathBuf,
    /// PostgreSQL's data.
    pub data_disk: PathBuf,
}

/// The small guest.
///
/// # Errors
/// When it cannot be built.
pub fn small() -> Result<SmallGuest> {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = built("small", &DIR)?;
    Ok(SmallGuest { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") })
}

/// The Debian guest.
///
/// # Errors
/// When it cannot be built.
pub fn debian() -> Result<DebianGuest> {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = built("debian", &DIR)?;
    Ok(DebianGuest {
        kernel: dir.join("vmlinuz"),
        initrd: dir.join("initrd"),
        system_disk: dir.join("disk.qcow2"),
        data_disk: dir.join("data.qcow2"),
    })
}

fn built(name: &'static str, once: &'static OnceLock<PathBuf>) -> Result<&'static Path> {
    if let Some(dir) = once.get() {
        return Ok(dir);
    }
    cargo(&["xtask", "guests", name])?;
    Ok(once.get_or_init(|| target().join("guests").join(name)))
}

/// Runs cargo in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(workspace()).stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Run { program: "cargo".to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        command: format!("cargo {}", arguments.join(" ")),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}
