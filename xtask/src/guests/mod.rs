//! The Linux guests of tests and demo: built from Debian packages, kept under `target/guests`, never committed.
//!
//! A guest is a directory. It is built next to its place and renamed into it, with a stamp of everything it
//! was made from: so it is whole or absent, and made again only when something it is made from changed. A lock file
//! keeps two builds apart.
//!
//! ```text
//! target/guests/kernel/     package (its file's name), vmlinuz, root/lib/modules/...
//! target/guests/small/      vmlinuz, initrd
//! target/guests/debian/     vmlinuz, initrd, disk.qcow2, data.qcow2
//! ```

mod checker;
mod cpio;
pub mod debian;
mod kernel;
mod modules;
mod small;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{paths, say};

/// A guest that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// A kernel and the checker, nothing else: boots in seconds.
    Small,
    /// A Debian 12 with PostgreSQL and the guest agent, on two disks; boots from UEFI too.
    Debian,
}

impl Guest {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Small, Self::Debian];

    const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Debian => "debian",
        }
    }
}

/// Sees that a guest is there and up to date; gives its directory.
///
/// # Errors
/// When it cannot be built.
pub fn ensure(guest: Guest, fresh: bool) -> Result<PathBuf> {
    let _lock = lock()?;
    let kernel = kernel::ensure(fresh)?;
    let checker = checker::build()?;
    match guest {
        Guest::Small => {
            let recipe = small::Recipe { kernel: &kernel, checker: &checker };
            ensure_built(guest, fresh, &recipe.stamp()?, |into| recipe.build(into))
        }
        Guest::Debian => {
            let recipe = debian::Recipe { kernel: &kernel, checker: &checker };
            ensure_built(guest, fresh, &recipe.stamp()?, |into| recipe.build(into))
        }
    }
}

fn ensure_built(guest: Guest, fresh: bool, stamp: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let place = paths::guests().join(guest.name());
    if !fresh && fs::read_to_string(place.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(place);
    }
    say::step(format_args!("Building the {} guest", guest.name()));
    put_in_place(&place, |fresh| {
        build(fresh)?;
        Ok(fs::write(fresh.join("stamp"), stamp)?)
    })?;
    Ok(place)
}

/// Builds a directory aside and renames it into its place, whole or not at all.
fn put_in_place(place: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = place.parent().context("a guest's place has a parent")?;
    let aside = tempfile::Builder::new().prefix(".building-").tempdir_in(parent)?;
    let fresh = aside.path().join("fresh");
    fs::create_dir(&fresh)?;
    build(&fresh).with_context(|| format!("cannot build {}", place.display()))?;
    if place.exists() {
        fs::rename(place, aside.path().join("old")).with_context(|| format!("cannot move {} away", place.display()))?;
    }
    fs::rename(&fresh, place).with_context(|| format!("cannot put {} in place", place.display()))
}

/// Held while guests are looked at and built; another `xtask` waits.
fn lock() -> Result<File> {
    let dir = paths::guests();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Collects what a guest is made from into a short text that changes when any of it does.
#[derive(Default)]
struct Stamp(blake3::Hasher);

impl Stamp {
    /// Adds a named input.
    fn add(mut self, name: &str, bytes: &[u8]) -> Self {
        for part in [name.as_bytes(), bytes] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a file's content.
    fn add_file(self, path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.add(&path.display().to_string(), &bytes))
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_inputs_apart() {
        let stamp = |parts: &[(&str, &str)]| {
            parts.iter().fold(Stamp::default(), |stamp, (name, text)| stamp.add(name, text.as_bytes())).finish()
        };
        assert_eq!(stamp(&[("a", "bc")]), stamp(&[("a", "bc")]));
        assert_ne!(stamp(&[("a", "bc")]), stamp(&[("ab", "c")]));
        assert_ne!(stamp(&[("a", "b"), ("c", "d")]), stamp(&[("a", "b"), ("c", "e")]));
    }

    #[test]
    fn a_failed_build_leaves_the_old_guest_and_no_debris() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("guest");
        put_in_place(&place, |into| Ok(fs::write(into.join("disk"), "first")?)).unwrap();
        put_in_place(&place, |_| anyhow::bail!("no power")).unwrap_err();
        assert_eq!(fs::read_to_string(place.join("disk")).unwrap(), "first");
        put_in_place(&place, |into| Ok(fs::write(into.join("disk"), "second")?)).unwrap();
        assert_eq!(fs::read_to_string(place.join("disk")).unwrap(), "second");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing but the guest");
    }
}
