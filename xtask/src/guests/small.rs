//! The small guest: a kernel, and an initramfs with the checker as its first and only program.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Stamp;
use super::cpio::{Archive, DeviceNumber};
use super::kernel::Kernel;
use super::modules::ModuleTree;

/// Disks, network, a serial bus, randomness, the power button and what reads it.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "button", "evdev"];

/// What it is made from.
pub struct Recipe<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The checker's executable.
    pub checker: &'a Path,
}

impl Recipe<'_> {
    /// Changes when the guest has to be built anew.
    pub fn stamp(&self) -> Result<String> {
        let recipe = include_bytes!("small.rs");
        let stamp = Stamp::default().add("recipe", recipe).add("kernel", self.kernel.package.as_bytes());
        Ok(stamp.add_file(self.checker)?.finish())
    }

    /// Writes `vmlinuz` and `initrd`.
    pub fn build(&self, into: &Path) -> Result<()> {
        fs::copy(self.kernel.image(), into.join("vmlinuz")).context("cannot copy the kernel")?;
        let archive = initramfs(self.kernel, self.checker, &MODULES)?;
        fs::write(into.join("initrd"), archive).context("cannot write the initramfs")
    }
}

/// An initramfs that starts the checker after loading `modules`. Not compressed: an emulated processor would
/// unpack it longer than it takes to read.
pub fn initramfs(kernel: &Kernel, checker: &Path, modules: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", DeviceNumber { major: 5, minor: 1 })?;
    let program = fs::read(checker).with_context(|| format!("cannot read {}", checker.display()))?;
    archive.executable("init", &program)?;
    let tree = ModuleTree::open(&kernel.modules()?)?;
    for (number, file) in tree.in_load_order(modules)?.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{number:02}-{name}"), &fs::read(file)?)?;
    }
    Ok(archive.finish()?)
}
