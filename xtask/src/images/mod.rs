//! `cargo xtask bench-images`: five days of a Debian system's disk and three dumps of its memory.
//!
//! ```text
//! DIR/day0.raw … day4.raw   GPT with one ext4, 8 GiB, 2 to 3 GiB used; sparse
//! DIR/mem0.raw … mem2.raw   1 GiB of guest memory: the guest booted from day 0, 2 and 4, and worked for a while
//! ```
//!
//! The system comes from this machine's mirror. What happens to it each day is drawn from `--seed`: packages are installed
//! and upgraded, a database of 300 MB is updated at random places, logs grow, media that cannot be compressed arrive, files
//! move. File systems are written by the kernel, through a loop device: so this chore needs root.

mod days;
mod memory;
mod noise;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::guests::{self, Guest};
use crate::{host, paths, run, say};

/// How to make a set.
#[derive(clap::Args)]
pub struct Options {
    /// Where the images go: 20 GB at most.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// What the days are drawn from: another number makes another set.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

pub(crate) const DAYS: u32 = 5;
const IMAGE_BYTES: u64 = 8 << 30;
const ROOT_OFFSET: u64 = 65 << 20;
const ROOT_BYTES: u64 = IMAGE_BYTES - ROOT_OFFSET - (1 << 20);
/// The system of day 0, beside what the test guest has.
const PACKAGES: [&str; 17] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "procps",
    "qemu-guest-agent",
    "postgresql-15",
    "e2fsprogs",
    "ca-certificates",
    "build-essential",
    "git",
    "python3-scipy",
    "openjdk-17-jdk-headless",
    "golang-go",
    "nodejs",
    "libreoffice-calc-nogui",
];

/// Makes a set.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make(options: &Options) -> Result<()> {
    if !host::is_root() {
        bail!("bench-images mounts file systems: run it as root");
    }
    crate::setup::setup()?;
    let guest = guests::ensure(Guest::Debian, false)?;
    fs::create_dir_all(&options.dir).with_context(|| format!("cannot create {}", options.dir.display()))?;
    let dir = fs::canonicalize(&options.dir)?;
    let day = |n: u32| dir.join(format!("day{n}.raw"));
    if !day(0).exists() {
        say::step("Day 0: a Debian system, from this machine's mirror");
        first_day(&dir, &day(0), options.seed)?;
    }
    for n in 1..DAYS {
        if day(n).exists() {
            continue;
        }
        say::step(format_args!("Day {n}"));
        next_day(&dir, &day(n - 1), &day(n), options.seed, n)?;
    }
    for (n, from) in [0, 2, 4].into_iter().enumerate() {
        let file = dir.join(format!("mem{n}.raw"));
        if file.exists() {
            continue;
        }
        say::step(format_args!("Memory of a guest that runs from day {from}"));
        let partial = dir.join("memory.tmp");
        memory::dump(&guest, &day(from), &partial)?;
        fs::rename(&partial, &file)?;
    }
    Ok(())
}

fn first_day(dir: &Path, image: &Path, seed: u64) -> Result<()> {
    let tree = tempfile::Builder::new().prefix(".tree-").tempdir_in(dir)?;
    let root = tree.path().join("root");
    let include = format!("--include={}", PACKAGES.join(","));
    let customize = paths::root().join("guest/debian/customize.sh");
    let mut command = run::command("mmdebstrap", ["--quiet", "--variant=minbase", "--format=directory", &include]);
    let modules = paths::guests().join("kernel/root/lib/modules");
    command.arg(format!(
        "--customize-hook=mkdir -p \"$1/lib/modules\" && cp -r '{}'/* \"$1/lib/modules/\"",
        modules.display()
    ));
    command.arg(format!("--customize-hook=sh '{}' \"$1\"", customize.display()));
    command.arg("--customize-hook=echo 'PARTLABEL=keyframe-root / ext4 defaults 0 0' > \"$1/etc/fstab\"");
    command.args(["--skip=cleanup/apt", "bookworm"]).arg(&root).arg("-");
    guests::debian::feed(&mut command, &guests::debian::mirrors()?)?;

    let partial = dir.join("day.tmp");
    let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    file.set_len(IMAGE_BYTES)?;
    let table =
        format!("label: gpt\nstart={}, size={}, type=linux, name=keyframe-root\n", ROOT_OFFSET / 512, ROOT_BYTES / 512);
    guests::debian::feed(run::command("/usr/sbin/sfdisk", ["--quiet"]).arg(&partial), &table)?;
    let options = format!("offset={ROOT_OFFSET},lazy_itable_init=0,lazy_journal_init=0");
    let mut mke2fs = run::command("mke2fs", ["-q", "-t", "ext4", "-L", "keyframe-root", "-E", &options, "-d"]);
    run::quiet(mke2fs.arg(&root).arg(&partial).arg(format!("{}k", ROOT_BYTES / 1024)))?;
    let mount = Mount::new(dir, &partial)?;
    days::first(mount.path(), seed)?;
    mount.done()?;
    Ok(fs::rename(&partial, image)?)
}

fn next_day(dir: &Path, before: &Path, image: &Path, seed: u64, n: u32) -> Result<()> {
    let partial = dir.join("day.tmp");
    run::quiet(run::command("cp", ["--sparse=always"]).arg(before).arg(&partial))?;
    let mount = Mount::new(dir, &partial)?;
    days::next(mount.path(), seed, n)?;
    mount.done()?;
    Ok(fs::rename(&partial, image)?)
}

/// The image's file system, mounted while this lives.
struct Mount {
    point: tempfile::TempDir,
    mounted: bool,
}

impl Mount {
    fn new(dir: &Path, image: &Path) -> Result<Self> {
        let point = tempfile::Builder::new().prefix(".mount-").tempdir_in(dir)?;
        let options = format!("loop,noatime,offset={ROOT_OFFSET}");
        run::quiet(run::command("mount", ["-t", "ext4", "-o", &options]).arg(image).arg(point.path()))?;
        Ok(Self { point, mounted: true })
    }

    fn path(&self) -> &Path {
        self.point.path()
    }

    fn done(mut self) -> Result<()> {
        run::quiet(run::command("umount", []).arg(self.point.path()))?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // On the way out of a failure, which says more than this could.
            let _ = run::quiet(run::command("umount", []).arg(self.point.path()));
        }
    }
}
