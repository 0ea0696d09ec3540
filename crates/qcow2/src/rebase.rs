//! Another backing file for an existing image: the header's pointer changes, no data does.
//!
//! Right only where the new backing file shows the same bytes wherever the image holds nothing; that
//! is the caller's to know.
//!
//! Write order, so that a crash at any point leaves the old pointer or the new one and never a mixture:
//!
//! 1. the new name goes to a part of the first cluster that nothing refers to: behind the extensions or
//!    behind the old name, whichever does not touch the old name;
//! 2. sync;
//! 3. offset and length of the name and the format's extension change, all within the first 512 bytes,
//!    with one write of that sector, which disks do wholly or not at all;
//! 4. sync.
//!
//! The old name stays behind as bytes that nothing refers to, and its room serves the next change.
//!
//! A header that has no extension for the format, as images of long ago, cannot be changed this way
//! and is refused. The file is locked while it is changed: QEMU's own locks make an image in use show.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::backing::Backing;
use crate::error::{Error, Result, io};
use crate::extension::{BACKING_FORMAT, HEAD_BYTES, data_of, end_of_list};
use crate::header::{Header, Version, autoclear};
use crate::source::{ReadAt, read_up_to};
use crate::units::HostOffset;

/// What disks write wholly or not at all.
const SECTOR: usize = 512;

/// Gives an image that nobody has open another backing file, or none.
///
/// The name is stored as given: relative names count from the image's directory. Bits of features that
/// are cleared by writers who do not know them are cleared.
///
/// # Errors
/// [`Error::InUse`]; [`Error::NotInPlace`]; [`Error::HeaderFull`] where the first cluster has no room for
/// the name besides the old one; as [`Header::read`]; [`Error::Io`]; all within [`Error::Image`]. But for
/// [`Error::Io`] the image is as it was; after it, it has the old backing file or the new one.
pub fn set_backing(path: &Path, backing: Option<&Backing>) -> Result<()> {
    change(path, backing).map_err(|error| error.of_image(path))
}

fn change(path: &Path, backing: Option<&Backing>) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(io("open it"))?;
    // The lock goes with the file.
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => return Err(Error::InUse),
        Err(errno) => return Err(io("lock it")(errno.into())),
    }
    let plan = Plan::new(&file, backing)?;
    plan.write_name(&file)?;
    plan.write_sector(&file)
}

/// The two writes.
#[derive(Debug)]
struct Plan {
    name_at: u64,
    name: Vec<u8>,
    sector: [u8; SECTOR],
}

impl Plan {
    fn new(source: &(impl ReadAt + ?Sized), backing: Option<&Backing>) -> Result<Self> {
        let header = Header::read(source)?;
        if header.is_corrupt() {
            return Err(Error::NotInPlace { why: "the image is marked corrupt" });
        }
        let mut cluster = vec![0; usize::try_from(header.cluster().bytes()).unwrap_or(0)];
        let got = read_up_to(source, &mut cluster, HostOffset::new(0))?;
        cluster.truncate(got);
        let Some(sector) = cluster.first_chunk().copied() else {
            return Err(Error::NotInPlace { why: "the file is shorter than a sector" });
        };
        let mut plan = Self { name_at: 0, name: Vec::new(), sector };
        if let Some(backing) = backing {
            plan.name = backing.name().as_bytes().to_vec();
            plan.name_at = place(&header, &cluster, plan.name.len() as u64)?;
            plan.put_format(&header, &cluster, backing.format().as_str())?;
        }
        plan.put(8, &plan.name_at.to_be_bytes());
        plan.put(16, &u32::try_from(plan.name.len()).unwrap_or(u32::MAX).to_be_bytes());
        if header.version() == Version::V3 {
            let known = header.autoclear_features() & (autoclear::BITMAPS | autoclear::RAW_DATA_FILE);
            plan.put(88, &known.to_be_bytes());
        }
        Ok(plan)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.sector.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    fn put_format(&mut self, header: &Header, cluster: &[u8], format: &str) -> Result<()> {
        let area = header.extension_area();
        let old = data_of(cluster, BACKING_FORMAT, area.start, area.end)?
            .ok_or(Error::NotInPlace { why: "it does not tell the backing format" })?;
        let room = (old.end - old.start).next_multiple_of(8);
        let len = format.len() as u64;
        if len.next_multiple_of(8) != room {
            return Err(Error::NotInPlace { why: "the new format's name takes more or less room" });
        }
        let start = usize::try_from(old.start - HEAD_BYTES).unwrap_or(usize::MAX);
        if old.start + room > SECTOR as u64 {
            return Err(Error::NotInPlace { why: "the backing format is not in the first sector" });
        }
        let mut data = format.as_bytes().to_vec();
        data.resize(usize::try_from(room).unwrap_or(0), 0);
        self.put(start + 4, &u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        self.put(start + 8, &data);
        Ok(())
    }

    fn write_name(&self, file: &File) -> Result<()> {
        file.write_all_at(&self.name, self.name_at).map_err(io("write the name"))?;
        file.sync_data().map_err(io("sync the name"))
    }

    fn write_sector(&self, file: &File) -> Result<()> {
        file.write_all_at(&self.sector, 0).map_err(io("write the header"))?;
        file.sync_data().map_err(io("sync the header"))
    }
}

/// Room for a name in the first cluster, apart from what is in use there.
fn place(header: &Header, cluster: &[u8], len: u64) -> Result<u64> {
    let area = header.extension_area();
    let extensions_end = end_of_list(cluster, area.start, area.end)?
        .ok_or(Error::NotInPlace { why: "its extensions have no end mark" })?;
    let old = old_name(header);
    // The sector is written as a whole, after the name: the name must be in it, or outside of it.
    let free_from = extensions_end.max(SECTOR as u64).next_multiple_of(8);
    let behind_old = old.end.max(free_from).next_multiple_of(8);
    let fits = |at: u64| at + len <= header.cluster().bytes();
    let apart = |at: u64| at + len <= old.start || old.end <= at;
    let found = [free_from, behind_old].into_iter().find(|&at| fits(at) && apart(at));
    found.ok_or(Error::HeaderFull { need_bytes: behind_old + len, cluster_bytes: header.cluster().bytes() })
}

fn old_name(header: &Header) -> Range<u64> {
    match header.backing() {
        Some(name) => {
            let start = header.extension_area().end;
            start..start + name.as_bytes().len() as u64
        }
        None => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::Format;
    use crate::create::{CreateOptions, create_overlay};
    use crate::units::VirtualSize;
    use keyframe_types::ByteLen;

    fn image() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o.qcow2");
        let size = VirtualSize::new(ByteLen::from_mib(64)).unwrap();
        let old = Backing::new("old.qcow2", Format::Qcow2).unwrap();
        create_overlay(&path, &old, size, &CreateOptions::default()).unwrap();
        (dir, path)
    }

    fn told(path: &Path) -> (String, Option<String>) {
        let header = Header::read(&File::open(path).unwrap()).unwrap();
        (header.backing().unwrap().to_string(), header.backing_format().map(str::to_owned))
    }

    #[test]
    fn a_crash_between_the_writes_leaves_the_old_name() {
        let (_dir, path) = image();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for n in 0..20 {
            let before = told(&path);
            let name = "n".repeat(1 + n * 50);
            let plan = Plan::new(&file, Some(&Backing::new(&name, Format::Raw).unwrap())).unwrap();
            plan.write_name(&file).unwrap();
            assert_eq!(told(&path), before);
            plan.write_sector(&file).unwrap();
            assert_eq!(told(&path), (name, Some("raw".to_owned())));
        }
    }

    #[test]
    fn the_new_name_never_touches_the_old_one_or_the_sector() {
        let (_dir, path) = image();
        for n in 0..50 {
            let header = Header::read(&File::open(&path).unwrap()).unwrap();
            let backing = Backing::new("n".repeat(1 + n * 37 % 1023), Format::Qcow2).unwrap();
            let plan = Plan::new(&File::open(&path).unwrap(), Some(&backing)).unwrap();
            let (old, end) = (old_name(&header), plan.name_at + plan.name.len() as u64);
            assert!(end <= old.start || old.end <= plan.name_at);
            assert!(plan.name_at >= SECTOR as u64 && end <= header.cluster().bytes());
            set_backing(&path, Some(&backing)).unwrap();
        }
    }
}
