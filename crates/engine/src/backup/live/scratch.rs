//! Where what the guest overwrites meanwhile is kept: one file for each disk, without a name once QEMU has opened it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use keyframe_hypervisor::fleecing::Scratch;
use keyframe_qcow2::units::VirtualSize;
use keyframe_qcow2::{CreateOptions, Durability};
use keyframe_types::ByteLen;

use crate::error::{Error, IoContext as _};
use crate::space;

/// What files' lengths are multiples of: a cluster, and a sector.
const CLUSTER: u64 = 64 << 10;
/// The least that a disk gets: tables alone need some clusters.
const LEAST: u64 = 16 * CLUSTER;

/// A scratch file that is going to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its place, and how much it may hold.
    pub scratch: Scratch,
    /// The size of the disk that it is for.
    pub disk_bytes: ByteLen,
}

/// Shares `budget` among disks of these sizes: to each no more than it can ever need.
pub fn plan(disks: &[(PathBuf, ByteLen)], budget: ByteLen) -> Vec<Planned> {
    let needed: Vec<u64> = disks.iter().map(|(_, bytes)| needed(bytes.bytes())).collect();
    let all: u128 = needed.iter().map(|bytes| u128::from(*bytes)).sum();
    let share = |needed: u64| {
        let part = u128::from(budget.bytes()) * u128::from(needed) / all.max(1);
        u64::try_from(part).unwrap_or(u64::MAX).min(needed).max(LEAST) / CLUSTER * CLUSTER
    };
    let planned = |((path, disk_bytes), needed): (&(PathBuf, ByteLen), &u64)| Planned {
        scratch: Scratch { path: path.clone(), most: ByteLen::from_bytes(share(*needed)) },
        disk_bytes: *disk_bytes,
    };
    disks.iter().zip(&needed).map(planned).collect()
}

/// All of a disk, and the tables of an image that holds it.
fn needed(disk_bytes: u64) -> u64 {
    let tables = disk_bytes / 1024 + 16 * CLUSTER;
    disk_bytes.saturating_add(tables).div_ceil(CLUSTER).saturating_mul(CLUSTER)
}

/// What scratch files may hold together in `dir`: half of what is free, so that the guest never runs out of room for them.
///
/// # Errors
/// [`Error::NoSpace`] where there is hardly any, [`Error::Io`].
pub fn budget(dir: &Path) -> Result<ByteLen, Error> {
    space::check(dir, ByteLen::ZERO)?;
    Ok(ByteLen::from_bytes(space::free(dir)?.bytes() / 2))
}

/// Makes the file. What is given can tell later how much came into it.
///
/// # Errors
/// [`Error::Layer`], [`Error::Io`].
pub fn make(planned: &Planned) -> Result<File, Error> {
    let path = &planned.scratch.path;
    let trouble = |source| Error::Layer { path: path.clone(), source };
    let size = VirtualSize::new(planned.disk_bytes).map_err(trouble)?;
    let options = CreateOptions { durability: Durability::CallerSyncs, ..CreateOptions::default() };
    keyframe_qcow2::create(path, size, &options).map_err(trouble)?;
    let file = OpenOptions::new().read(true).write(true).open(path).or_io("open", path)?;
    // The bound is told as the size of a part of the file, which therefore has to be there.
    file.set_len(planned.scratch.most.bytes()).or_io("set the length of", path)?;
    Ok(file)
}

/// Space that the guest's writes have taken.
pub fn kept(files: &[File]) -> ByteLen {
    let blocks = files.iter().filter_map(|file| file.metadata().ok()).map(|found| found.blocks()).sum::<u64>();
    ByteLen::from_bytes(blocks.saturating_mul(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_by_size_and_nobody_gets_more_than_he_can_use() {
        let disks = |sizes: &[u64]| -> Vec<(PathBuf, ByteLen)> {
            sizes.iter().map(|mib| (PathBuf::from("s"), ByteLen::from_mib(*mib))).collect()
        };
        let most = |sizes: &[u64], budget: u64| -> Vec<u64> {
            plan(&disks(sizes), ByteLen::from_mib(budget)).iter().map(|it| it.scratch.most.bytes()).collect()
        };
        let plenty = most(&[64, 1024], 1 << 20);
        assert!(plenty[0] >= 64 << 20 && plenty[0] < 70 << 20, "{plenty:?}");
        let scarce = most(&[1000, 3000], 400);
        assert!(scarce.iter().sum::<u64>() <= 400 << 20 && scarce[1] > 2 * scarce[0], "{scarce:?}");
        assert_eq!(most(&[1000], 0), [LEAST]);
        assert!(scarce.iter().all(|bytes| bytes % CLUSTER == 0));
    }
}
