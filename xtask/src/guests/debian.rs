//! The Debian guest: a real Debian 12 with PostgreSQL, the guest agent and systemd, on two disks.
//!
//! mmdebstrap puts the system together from the mirror that this machine uses; mke2fs fills the file systems without
//! mounting anything; mtools fills the EFI partition. So neither loop devices nor mounts are needed.
//!
//! ```text
//! disk.qcow2   GPT:  1 MiB   EFI partition, 64 MiB: systemd-boot, kernel, initramfs, one entry
//!                   65 MiB   ext4 "keyframe-root": the system
//! data.qcow2   ext4 "keyframe-data", no partitions: PostgreSQL's data
//! ```
//!
//! It boots by itself from UEFI firmware, and without firmware's help from `vmlinuz` and `initrd`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::{Stamp, small};
use crate::apt::sources::AptSource;
use crate::host::OsRelease;
use crate::{apt, paths, run, say};

/// Debian 12.
pub const SUITE: &str = "bookworm";
/// What the initramfs needs to find the root file system; ext4 is built into Debian's cloud kernel.
const BOOT_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
const PACKAGES: [&str; 11] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "procps",
    "qemu-guest-agent",
    "postgresql-15",
    "e2fsprogs",
    "systemd-boot-efi",
    "ca-certificates",
];
/// Left out of packages: nobody reads it there.
const EXCLUDED: [&str; 4] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];

const MIB: u64 = 1 << 20;
const ESP_OFFSET: u64 = MIB;
const ESP_SIZE: u64 = 64 * MIB;
const ROOT_OFFSET: u64 = ESP_OFFSET + ESP_SIZE;
const ROOT_SIZE: u64 = 2048 * MIB;
/// The last MiB holds the second copy of the partition table.
const DISK_SIZE: u64 = ROOT_OFFSET + ROOT_SIZE + MIB;
const DATA_SIZE: u64 = 1024 * MIB;

const _: () = assert!(ESP_OFFSET >= MIB, "the first partition table needs its room");
const _: () = assert!(ROOT_OFFSET >= ESP_OFFSET + ESP_SIZE, "partitions must not overlap");

/// The kernel's command line when the system boots from its own disk.
const ROOT_WORDS: &str = "root=PARTLABEL=keyframe-root console=ttyS0 quiet panic=-1";

/// What it is made from.
pub struct Recipe<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The checker's executable, which goes on to the system's disk here.
    pub checker: &'a Path,
}

impl Recipe<'_> {
    /// Changes when the guest has to be built anew. What the mirror has meanwhile does not count: see `--fresh`.
    pub fn stamp(&self) -> Result<String> {
        let stamp = Stamp::default().add("recipe", include_bytes!("debian.rs"));
        let stamp = stamp.add("kernel", self.kernel.package.as_bytes()).add_file(self.checker)?;
        Ok(stamp.add_file(&script("customize.sh"))?.add_file(&script("images.sh"))?.finish())
    }

    /// Writes `vmlinuz`, `initrd`, `disk.qcow2` and `data.qcow2`.
    pub fn build(&self, into: &Path) -> Result<()> {
        let initramfs = small::initramfs(self.kernel, self.checker, &BOOT_MODULES)?;
        fs::write(into.join("initrd"), initramfs).context("cannot write the initramfs")?;
        fs::copy(self.kernel.image(), into.join("vmlinuz")).context("cannot copy the kernel")?;
        let images = tempfile::Builder::new().prefix(".images-").tempdir_in(into)?;
        self.make_images(images.path())?;
        fill_esp(images.path(), into)?;
        for name in ["disk", "data"] {
            let (raw, image) = (images.path().join(format!("{name}.raw")), into.join(format!("{name}.qcow2")));
            run::quiet(run::command("qemu-img", ["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(image))?;
        }
        Ok(())
    }

    fn make_images(&self, images: &Path) -> Result<()> {
        // Without root, mmdebstrap works as another user in a namespace of its own, who must be able to write here.
        fs::set_permissions(images, PermissionsExt::from_mode(0o777))?;
        for (name, size) in [("disk.raw", DISK_SIZE), ("data.raw", DATA_SIZE)] {
            let file = File::create(images.join(name)).with_context(|| format!("cannot create {name}"))?;
            file.set_len(size)?;
            file.set_permissions(PermissionsExt::from_mode(0o666))?;
        }
        partition(&images.join("disk.raw"))?;
        say::note("mmdebstrap: a Debian system with PostgreSQL, from this machine's mirror (a few minutes)");
        feed(&mut self.mmdebstrap(images)?, &mirrors()?)
    }

    fn mmdebstrap(&self, images: &Path) -> Result<Command> {
        let include = format!("--include={}", PACKAGES.join(","));
        let mut command = run::command("mmdebstrap", ["--quiet", "--variant=minbase", "--format=null", &include]);
        command.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
        let modules = self.kernel.modules()?;
        let copy = format!("mkdir -p \"$1/lib/modules\" && cp -r {} \"$1/lib/modules/\"", quoted(&modules)?);
        command.arg(format!("--customize-hook={copy}"));
        command.arg(format!("--customize-hook=sh {} \"$1\"", quoted(&script("customize.sh"))?));
        let (script, images) = (quoted(&script("images.sh"))?, quoted(images)?);
        let size_kib = ROOT_SIZE / 1024;
        command.arg(format!("--customize-hook=sh {script} {images} {ROOT_OFFSET} {size_kib} \"$1\""));
        command.args([SUITE, "/dev/null", "-"]);
        Ok(command)
    }
}

fn script(name: &str) -> std::path::PathBuf {
    paths::root().join("guest/debian").join(name)
}

/// A path as one word of a shell command.
///
/// # Errors
/// When it is no UTF-8.
pub fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// The machine's own mirrors, for the guest's release: main, and security updates where the machine has them.
///
/// # Errors
/// When the machine has none.
pub fn mirrors() -> Result<String> {
    mirrors_and(&[])
}

/// The same, and other suites of the first.
///
/// # Errors
/// As [`mirrors`].
pub fn mirrors_and(suites: &[&str]) -> Result<String> {
    let host = OsRelease::of_this_machine()?.codename;
    let sources = apt::machine_sources()?;
    let serving = |suite: String| sources.iter().find(move |source| source.serves(&suite));
    let Some(main) = serving(host.clone()) else {
        bail!("apt's sources name no mirror for {host} main: the Debian guest is made of its packages");
    };
    let security = serving(format!("{host}-security")).map(|source| source.for_suite(&format!("{SUITE}-security")));
    let others = suites.iter().map(|suite| main.for_suite(suite));
    let stanzas: Vec<_> = std::iter::once(main.for_suite(SUITE)).chain(security).chain(others).collect();
    Ok(stanzas.iter().map(AptSource::to_stanza).collect::<Vec<_>>().join("\n"))
}

fn partition(disk: &Path) -> Result<()> {
    let sectors = |bytes: u64| bytes / 512;
    let table = format!(
        "label: gpt\nstart={}, size={}, type=uefi, name=keyframe-esp\nstart={}, size={}, type=linux, name=keyframe-root\n",
        sectors(ESP_OFFSET),
        sectors(ESP_SIZE),
        sectors(ROOT_OFFSET),
        sectors(ROOT_SIZE)
    );
    feed(run::command("/usr/sbin/sfdisk", ["--quiet"]).arg(disk), &table)
}

/// Puts boot loader, kernel, initramfs and one entry on the EFI partition.
fn fill_esp(images: &Path, guest: &Path) -> Result<()> {
    let image = format!("{}@@{ESP_OFFSET}", images.join("disk.raw").display());
    let sectors = (ESP_SIZE / 512).to_string();
    run::quiet(&mut run::command("mformat", ["-i", &image, "-F", "-T", &sectors, "-v", "KEYFRAME", "::"]))?;
    let directories = ["::EFI", "::EFI/BOOT", "::loader", "::loader/entries"];
    run::quiet(run::command("mmd", ["-i", &image]).args(directories))?;
    let settings = "timeout 0\ndefault debian.conf\n";
    let entry = format!("title Debian\nlinux /vmlinuz\ninitrd /initrd\noptions {ROOT_WORDS}\n");
    fs::write(images.join("loader.conf"), settings)?;
    fs::write(images.join("debian.conf"), entry)?;
    for (file, place) in [
        (images.join("bootx64.efi"), "::EFI/BOOT/BOOTX64.EFI"),
        (images.join("loader.conf"), "::loader/loader.conf"),
        (images.join("debian.conf"), "::loader/entries/debian.conf"),
        (guest.join("vmlinuz"), "::vmlinuz"),
        (guest.join("initrd"), "::initrd"),
    ] {
        run::quiet(run::command("mcopy", ["-i", &image]).arg(&file).arg(place))?;
    }
    Ok(())
}

/// Runs a command that reads `input`; what it says is shown only when it fails.
///
/// # Errors
/// When it cannot be run or fails.
pub fn feed(command: &mut Command, input: &str) -> Result<()> {
    let shown = run::shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let mut pipe = child.stdin.take().context("its input is piped")?;
    pipe.write_all(input.as_bytes()).with_context(|| format!("{shown} does not listen"))?;
    drop(pipe);
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_one_word_of_the_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")).unwrap(), r"'/a b/it'\''s'");
    }
}
