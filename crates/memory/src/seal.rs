//! Companions for a mapped-ram file that QEMU wrote itself: page bitmaps repaired where a
//! background snapshot left them empty, and sums of everything.
//!
//! QEMU 10.0 with `background-snapshot` and `mapped-ram` never writes the bitmaps: the file looks
//! fine and restores as all zeroes. Whether that happened is told by the file, not by QEMU's
//! version: the largest block's bitmap is empty although the file has data where its pages lie. The
//! repair takes the file's own allocation map for the bitmap, so it must be done on the file as QEMU wrote it,
//! never on a copy that has lost its holes.
//!
//! Source: QEMU 10.0 `migration/ram.c:3258` (the only place bitmaps are written),
//! `migration/migration.c:3774` (the path that skips it).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use keyframe_vmstate::mapped::{DataExtent, MappedBlock, MappedFile, PageBitmap, parse};
use keyframe_vmstate::sums::{SUM_BYTES, Sum, SumsHeader, zero_extent_sum};
use keyframe_vmstate::{EXTENT_SIZE, ExtentIndex, PAGE_SIZE};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::Error;
use crate::image::{non_page_sum, read_bitmaps};
use crate::source::Source;

/// What [`repair_bitmaps`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The bitmaps were there; nothing was written.
    NotNeeded,
    /// Bitmaps were empty and have been written; so many pages are set.
    Done {
        /// Pages of the repaired blocks that the file holds.
        pages: u64,
    },
}

/// Writes the page bitmaps of a file that a background snapshot left without. Synced to disk when it
/// returns. The largest block, by which the need is told, comes last: after a crash in between a
/// second call finishes the work.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`].
pub fn repair_bitmaps(path: &Path) -> Result<Repair, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let image = Source::new(file.map_err(Error::io("open", path))?, path)?;
    let mapped = parse(&image).map_err(|fault| image.named(fault))?;
    let written = read_bitmaps(&image, &mapped)?;
    let mut order: Vec<_> = mapped.layout().blocks().iter().zip(&written).collect();
    order.sort_by_key(|(block, _)| block.block().pages());
    if order.last().is_none_or(|(_, largest)| largest.count() > 0) {
        return Ok(Repair::NotNeeded);
    }
    order.retain(|(_, bitmap)| bitmap.count() == 0);
    let mut pages = 0;
    for (block, _) in order {
        let bitmap = PageBitmap::from_data_extents(block, &data_extents(&image, block)?);
        let written = image.file()?.write_all_at(&bitmap.to_bytes(), block.bitmap_offset());
        written.map_err(Error::io("write", path))?;
        image.file()?.sync_data().map_err(Error::io("sync", path))?;
        pages += bitmap.count();
    }
    Ok(if pages == 0 { Repair::NotNeeded } else { Repair::Done { pages } })
}

/// Where the file has data within a block's pages.
fn data_extents(image: &Source, block: &MappedBlock) -> Result<Vec<DataExtent>, Error> {
    let file = image.file()?;
    let find = |from| match seek(file, from) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(Error::io("find holes of", &image.path)(errno.into())),
    };
    let (mut found, mut at) = (Vec::new(), block.pages_offset());
    while let Some(start) = find(SeekFrom::Data(at))?.filter(|start| *start < block.pages_end()) {
        let end = find(SeekFrom::Hole(start))?.unwrap_or(image.bytes).min(block.pages_end());
        found.push(DataExtent { start, end });
        at = end;
        if at >= block.pages_end() {
            break;
        }
    }
    Ok(found)
}

/// Reads a whole image and writes its `memory.b3`. `sums_path` must not exist; it is valid, and
/// synced, only when this returns.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`].
pub fn write_sums(path: &Path, sums_path: &Path) -> Result<SumsHeader, Error> {
    let image = Source::open(path)?;
    let mapped = parse(&image).map_err(|fault| image.named(fault))?;
    let bitmaps = read_bitmaps(&image, &mapped)?;
    let file = crate::create_private(sums_path).map_err(Error::io("create", sums_path))?;
    let ram = mapped.layout().ram();
    let (mut table, mut at) = (blake3::Hasher::new(), SumsHeader::header_bytes(ram));
    for (block, bitmap) in mapped.layout().blocks().iter().zip(&bitmaps) {
        let sums = block_sums(&image, block, bitmap)?;
        table.update(&sums);
        file.write_all_at(&sums, at).map_err(Error::io("write", sums_path))?;
        at += sums.len() as u64;
    }
    let header = sums_header(&image, &mapped, table.finalize())?;
    finish_sums(&file, sums_path, &header)?;
    Ok(header)
}

fn sums_header(image: &Source, mapped: &MappedFile, table: Sum) -> Result<SumsHeader, Error> {
    Ok(SumsHeader {
        ram: mapped.layout().ram().clone(),
        image_bytes: mapped.file_bytes(),
        non_page: non_page_sum(image, mapped.layout())?,
        table,
    })
}

/// Writes the header and syncs: table first, then header, so that a header vouches for a table
/// that is on disk.
pub(crate) fn finish_sums(file: &File, path: &Path, header: &SumsHeader) -> Result<(), Error> {
    file.sync_data().map_err(Error::io("sync", path))?;
    file.write_all_at(&header.to_bytes(), 0).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

fn block_sums(image: &Source, block: &MappedBlock, bitmap: &PageBitmap) -> Result<Vec<u8>, Error> {
    let extents = block.block().pages().extents();
    let mut sums = Vec::with_capacity(extents as usize * SUM_BYTES);
    let mut buf = vec![0; EXTENT_SIZE];
    for extent in (0..extents).filter_map(ExtentIndex::new) {
        let Some((offset, bytes)) = block.extent(extent) else {
            break;
        };
        let sum = if bitmap.extent(extent) == 0 {
            zero_extent_sum(bytes / PAGE_SIZE)
        } else {
            let buf = buf.get_mut(..bytes).unwrap_or_default();
            image.read_at(buf, offset)?;
            blake3::hash(buf)
        };
        sums.extend(sum.as_bytes());
    }
    Ok(sums)
}
