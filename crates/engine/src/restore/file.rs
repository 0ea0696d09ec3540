//! One disk of a point as a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use keyframe_repo::index::Hooks;
use keyframe_repo::{Existing, Point, Repository, RestoreReport, UnfinishedFile, restore_qcow2, restore_raw};
use keyframe_types::DiskId;

use super::image;
use crate::backup::MachinePoint;
use crate::context::Context;
use crate::error::{Error, IoContext as _};

/// What form the file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk, sparse.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

impl DiskFormat {
    /// As `qemu-img` calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }

    /// The one that a file's ending names; raw for any other.
    #[must_use]
    pub fn of_ending(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        let all = [Self::Qcow2, Self::Vmdk, Self::Vhdx, Self::Vdi];
        all.into_iter().find(|format| ending.as_deref() == Some(format.as_str())).unwrap_or(Self::Raw)
    }
}

/// Writes a disk of a point to a file that is not there yet: the only disk when none is named.
///
/// # Errors
/// [`Error::BadRequest`] for a file that is there, a disk that is not, or several to choose from;
/// [`Error::Repository`], [`Error::Io`]. No file is left then.
pub fn restore(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    disk: Option<&DiskId>,
    path: &Path,
    format: DiskFormat,
) -> Result<(DiskId, RestoreReport), Error> {
    let machine = MachinePoint::of(point)?;
    let disk = choose(&machine, disk)?;
    if path.exists() {
        return Err(Error::BadRequest { what: format!("{} is there already", path.display()) });
    }
    let target = UnfinishedFile::create(path, Existing::Keep)?;
    ctx.progress.step("writing");
    let own = if format == DiskFormat::Qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    let report = if format == own {
        fill(ctx, repository, point, disk.as_str(), (target.file(), target.partial()), own)?
    } else {
        let mut raw = path.as_os_str().to_owned();
        raw.push(".raw");
        // It never gets that name.
        let raw = UnfinishedFile::create(Path::new(&raw), Existing::Replace)?;
        let report = fill(ctx, repository, point, disk.as_str(), (raw.file(), raw.partial()), own)?;
        convert(ctx, raw.partial(), target.partial(), format)?;
        report
    };
    target.done()?;
    Ok((disk, report))
}

fn choose(machine: &MachinePoint, wanted: Option<&DiskId>) -> Result<DiskId, Error> {
    let all: Vec<&DiskId> = machine.disks.iter().map(|disk| &disk.disk).collect();
    let names = || all.iter().map(|disk| disk.as_str()).collect::<Vec<_>>().join(", ");
    match (wanted, machine.snapshot.disks.as_slice()) {
        (Some(wanted), _) if all.contains(&wanted) => Ok(wanted.clone()),
        (Some(wanted), _) => {
            Err(Error::BadRequest { what: format!("the point has no disk {wanted}, but {}", names()) })
        }
        (None, [only]) => Ok(only.disk.clone()),
        (None, _) => {
            Err(Error::BadRequest { what: format!("the point has several disks: say --disk, of {}", names()) })
        }
    }
}

/// Writes an image of a point to a new file, raw or qcow2, durably. What was there under this name was an earlier attempt.
pub(super) fn write_image(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    label: &str,
    path: &Path,
    format: DiskFormat,
) -> Result<RestoreReport, Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
    let file: File = options.or_io("create", path)?;
    let report = fill(ctx, repository, point, label, (&file, path), format)?;
    file.sync_all().or_io("sync", path)?;
    Ok(report)
}

/// Writes an image of a point into an empty file.
fn fill(
    ctx: &Context<'_>,
    repository: &Repository,
    point: &Point,
    label: &str,
    (file, path): (&File, &Path),
    format: DiskFormat,
) -> Result<RestoreReport, Error> {
    let image = image(point, label)?;
    let index = repository.index(Hooks::Skip)?;
    let run = keyframe_repo::Run { progress: ctx.progress, cancel: ctx.cancel };
    let write = if format == DiskFormat::Qcow2 { restore_qcow2 } else { restore_raw };
    Ok(write(repository, &index, image, file, path, run)?)
}

fn convert(ctx: &Context<'_>, raw: &Path, into: &Path, format: DiskFormat) -> Result<(), Error> {
    ctx.progress.step("converting");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", format.as_str()]).arg(raw).arg(into).stdin(Stdio::null());
    let output = command.output().or_io("run qemu-img for", into)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Io { action: "convert to", path: into.to_owned(), source: std::io::Error::other(reason) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_ending_names_its_form() {
        for (name, format) in [("a.raw", DiskFormat::Raw), ("a.QCOW2", DiskFormat::Qcow2), ("a", DiskFormat::Raw)] {
            assert_eq!(DiskFormat::of_ending(Path::new(name)), format, "{name}");
        }
    }
}
