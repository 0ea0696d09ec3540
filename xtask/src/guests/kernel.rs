//! Debian's cloud kernel, out of its package and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::Privilege;
use crate::{apt, paths, run, say};

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PACKAGE_PREFIX: &str = "linux-image-";

/// An unpacked kernel.
pub struct Kernel {
    dir: PathBuf,
    /// The file name of the package it came from: name, version and architecture.
    pub package: String,
}

impl Kernel {
    /// The bootable image.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The only directory of `lib/modules`: its name is the kernel's release.
    ///
    /// # Errors
    /// When there is none.
    pub fn modules(&self) -> Result<PathBuf> {
        let dir = self.dir.join("root/lib/modules");
        let mut list = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        Ok(list.next().with_context(|| format!("{} is empty", dir.display()))??.path())
    }
}

/// The kernel, downloaded if it is not there. Once there it stays, whatever the mirror has since: tests should not
/// change under one's hands. `fresh` asks for the newest.
///
/// # Errors
/// When apt cannot give it.
pub fn ensure(fresh: bool) -> Result<Kernel> {
    let dir = paths::guests().join("kernel");
    if fresh || !dir.join("package").exists() {
        say::step("Downloading Debian's cloud kernel");
        super::put_in_place(&dir, unpack)?;
    }
    let package = fs::read_to_string(dir.join("package")).context("cannot read the kernel's package name")?;
    Ok(Kernel { dir, package })
}

fn unpack(into: &Path) -> Result<()> {
    let download = || {
        let package = apt::dependency_of(META_PACKAGE, PACKAGE_PREFIX)?;
        apt::download(&package, into)
    };
    let file = download().or_else(|trouble| {
        say::note(format_args!("apt's lists may be old, updating them ({})", trouble.root_cause()));
        let privilege = Privilege::obtain(&["apt-get update".to_owned()])?;
        run::quiet(&mut privilege.command("apt-get", ["update"]))?;
        download()
    })?;
    let name = file.file_name().context("a package has a file name")?.to_string_lossy().into_owned();
    say::note(&name);
    let root = into.join("root");
    run::quiet(run::command("dpkg-deb", ["-x"]).arg(&file).arg(&root))?;
    let boot = root.join("boot");
    let images = fs::read_dir(&boot).with_context(|| format!("cannot list {}", boot.display()))?;
    let mut images = images.filter_map(|entry| Some(entry.ok()?.path()));
    let image = images.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
    fs::copy(image.context("the package has no vmlinuz")?, into.join("vmlinuz"))?;
    fs::remove_file(&file)?;
    Ok(fs::write(into.join("package"), name)?)
}
