//! An existing memory image, opened for reading: every byte handed out has been checked.
//!
//! A [`MemoryImage`] never changes its files and may be used by many threads at once: all methods
//! take `&self` and read at given offsets. It holds the structure and one bit for each page in
//! memory; sums are read as they are needed.
//!
//! What is read is judged by its sum alone, not by the page bitmap: an extent with a lost or an
//! invented page has the wrong bytes and is refused like one with a flipped bit. Where the bytes come from does not
//! matter either: pages of a shared image lie in other images' files ([`crate::store`]), and are judged alike.

use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;

use keyframe_vmstate::mapped::{DevicesOnly, MappedFile, MappedLayout, PageBitmap, Piece, parse};
use keyframe_vmstate::ram::RamLayout;
use keyframe_vmstate::sums::{SUM_BYTES, Sum, SumsHeader, zero_extent_sum};
use keyframe_vmstate::{BlockIndex, EXTENT_SIZE, ExtentIndex, PAGE_SIZE, PageIndex};
use rustix::fs::{Advice, fadvise};

use crate::Error;
use crate::elsewhere::Elsewhere;
use crate::source::Source;

/// Most bytes of sums that are taken into memory at once: those of 8 TiB of RAM.
const SUMS_MOST: u64 = 5 << 30;

/// Extents of an export that are best had together, 1 MiB: who serves a repository opens a frame of 512 KiB for the smallest part of it.
const EXPORT_GRAIN: u64 = 16;

/// Room for one extent, aligned to pages.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct ExtentBuf([u8; EXTENT_SIZE]);

impl ExtentBuf {
    /// Zeroed room on the heap.
    pub fn new() -> Box<Self> {
        Box::new(Self([0; EXTENT_SIZE]))
    }

    /// Room for that many pages, at most 16.
    pub(crate) fn get_mut(&mut self, pages: usize) -> &mut [u8] {
        let (room, _) = self.0.split_at_mut(EXTENT_SIZE.min(pages * PAGE_SIZE));
        room
    }

    /// All of its bytes, whatever was last put there.
    pub fn bytes(&self) -> &[u8; EXTENT_SIZE] {
        &self.0
    }

    /// The same, to put something there.
    pub fn bytes_mut(&mut self) -> &mut [u8; EXTENT_SIZE] {
        &mut self.0
    }
}

/// An opened image; see the module's text.
#[derive(Debug)]
pub struct MemoryImage {
    image: Source,
    /// Of a shared image, the files that hold pages of it besides its own.
    elsewhere: Option<Elsewhere>,
    sums: Source,
    mapped: MappedFile,
    header: SumsHeader,
    bitmaps: Vec<PageBitmap>,
}

impl MemoryImage {
    /// Opens an image and its sums, and checks that both are whole and of one snapshot. Guest
    /// memory is not read; takes a few milliseconds and one byte of memory for each eight pages.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] for either file, [`Error::NotACouple`],
    /// [`Error::DamagedRest`] when structure, bitmaps or device state were changed.
    pub fn open(path: &Path, sums_path: &Path) -> Result<Self, Error> {
        Self::assemble(Source::open(path)?, Source::open(sums_path)?, None)
    }

    /// The same of an image that a server shows at these two sockets, under these names: what is damaged there, and what cannot
    /// be had, is an error here.
    ///
    /// # Errors
    /// As [`MemoryImage::open`].
    pub fn open_exports(image: (&Path, &str), sums: (&Path, &str)) -> Result<Self, Error> {
        let sums = Source::whole_export(sums.0, sums.1, SUMS_MOST)?;
        Self::assemble(Source::export(image.0, image.1)?, sums, None)
    }

    /// The same of an image whose pages lie partly in other files.
    ///
    /// # Errors
    /// As [`MemoryImage::open`]; [`Error::NotACouple`] also when map and sums are not of one snapshot.
    pub(crate) fn assemble(image: Source, sums: Source, elsewhere: Option<Elsewhere>) -> Result<Self, Error> {
        let header = read_header(&sums)?;
        let mapped = parse(&image).map_err(|fault| image.named(fault))?;
        if *mapped.layout().ram() != header.ram || mapped.file_bytes() != header.image_bytes {
            return Err(Error::NotACouple { path: image.path, sums: sums.path });
        }
        if let Some(stranger) = elsewhere.as_ref().filter(|elsewhere| !elsewhere.is_of(&header)) {
            return Err(Error::NotACouple { path: stranger.path().to_owned(), sums: sums.path });
        }
        if non_page_sum(&image, mapped.layout())? != header.non_page {
            return Err(Error::DamagedRest { path: image.path });
        }
        let bitmaps = read_bitmaps(&image, &mapped)?;
        Ok(Self { image, elsewhere, sums, mapped, header, bitmaps })
    }

    /// Whether pages of it lie in other images' files, so that no QEMU can load or map its own.
    pub fn is_shared(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// The image's path.
    pub fn path(&self) -> &Path {
        &self.image.path
    }

    /// Where everything lies.
    pub fn mapped(&self) -> &MappedFile {
        &self.mapped
    }

    /// Where blocks and pages lie; machine type and section number.
    pub fn layout(&self) -> &MappedLayout {
        self.mapped.layout()
    }

    /// The RAM blocks.
    pub fn ram(&self) -> &RamLayout {
        self.mapped.layout().ram()
    }

    /// A block's page bitmap.
    pub fn bitmap(&self, block: BlockIndex) -> Option<&PageBitmap> {
        self.bitmaps.get(block.get())
    }

    /// Whether the file holds that page; if not, it is all zeroes.
    pub fn has_page(&self, block: BlockIndex, page: PageIndex) -> bool {
        self.bitmap(block).is_some_and(|bitmap| bitmap.get(page))
    }

    /// Whether the file holds any page of that extent; if not, it is all zeroes.
    pub fn has_extent(&self, block: BlockIndex, extent: ExtentIndex) -> bool {
        self.bitmap(block).is_some_and(|bitmap| bitmap.extent(extent) != 0)
    }

    /// Reads an extent and checks it. Returns its bytes: 64 KiB, fewer for a block's last extent.
    /// An extent the file has no page of is not read.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not match their sum, [`Error::NoSuchExtent`],
    /// [`Error::Io`].
    pub fn read_extent<'b>(
        &self,
        block: BlockIndex,
        extent: ExtentIndex,
        buf: &'b mut ExtentBuf,
    ) -> Result<&'b [u8], Error> {
        let (ordinal, file_offset, bytes) = self.place(block, extent)?;
        let buf = buf.get_mut(bytes / PAGE_SIZE);
        let expected = self.sum(ordinal)?;
        let actual = if self.has_extent(block, extent) {
            self.read_pages(buf, file_offset)?;
            blake3::hash(buf)
        } else {
            buf.fill(0);
            zero_extent_sum(bytes / PAGE_SIZE)
        };
        if actual == expected { Ok(buf) } else { Err(self.damaged(block, extent)) }
    }

    /// The same after dropping what the page cache holds of the extent: tells a bad disk from bad
    /// memory in between.
    ///
    /// # Errors
    /// As [`MemoryImage::read_extent`].
    pub fn read_extent_from_disk<'b>(
        &self,
        block: BlockIndex,
        extent: ExtentIndex,
        buf: &'b mut ExtentBuf,
    ) -> Result<&'b [u8], Error> {
        let (_, file_offset, bytes) = self.place(block, extent)?;
        self.for_files(file_offset, bytes as u64, |file, offset, bytes| {
            let (length, drop) = (NonZeroU64::new(bytes), Advice::DontNeed);
            // What comes out of an export is not in a cache of this host's.
            let Ok(cached) = file.file() else { return Ok(()) };
            fadvise(cached, offset, length, drop)
                .map_err(|errno| Error::io("drop cached pages of", &file.path)(errno.into()))
        })?;
        self.read_extent(block, extent, buf)
    }

    /// So many extents side by side, from a multiple of that on, are had together for hardly more than what one of them costs.
    #[must_use]
    pub fn grain(&self) -> u64 {
        if self.image.is_export() { EXPORT_GRAIN } else { 1 }
    }

    /// Says that so many extents from this one on will be read soon, so that the disk may begin. A hint: it
    /// does not wait, and nothing is said of a failure.
    pub fn prefetch(&self, block: BlockIndex, first: ExtentIndex, extents: u64) {
        if let Ok((_, file_offset, _)) = self.place(block, first) {
            let bytes = extents.saturating_mul(EXTENT_SIZE as u64);
            let _only_a_hint = self.for_files(file_offset, bytes, |file, offset, bytes| {
                if let Ok(cached) = file.file() {
                    let _only_a_hint = fadvise(cached, offset, NonZeroU64::new(bytes), Advice::WillNeed);
                }
                Ok(())
            });
        }
    }

    /// The device sections' bytes, as they go into a stream: without end mark and description.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn device_sections(&self) -> Result<Vec<u8>, Error> {
        self.device_bytes(0, self.mapped.devices().sections_bytes())
    }

    /// The JSON description of the device sections.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn device_description(&self) -> Result<Vec<u8>, Error> {
        let devices = self.mapped.devices();
        self.device_bytes(devices.vmdesc_offset(), devices.vmdesc_bytes().into())
    }

    /// Writes the file with which a QEMU that maps `mapped` from this image starts (see
    /// [`DevicesOnly`]). `dest` must not exist. Returns the bytes it takes on disk.
    ///
    /// # Errors
    /// [`Error::Io`] for either file; a partial `dest` is left for the caller to remove.
    pub fn write_devices_only(&self, mapped: BlockIndex, dest: &Path) -> Result<u64, Error> {
        let plan = DevicesOnly::plan(&self.mapped, mapped, |block| self.bitmap(block));
        let file = crate::create_private(dest).map_err(Error::io("create", dest))?;
        file.set_len(self.mapped.file_bytes()).map_err(Error::io("size", dest))?;
        let mut buf = vec![0; 256 << 10];
        for piece in plan.pieces() {
            let Piece::Copy { offset, bytes } = *piece else {
                continue;
            };
            for_chunks(offset, bytes, &mut buf, |chunk, at| {
                self.read_pages(chunk, at)?;
                file.write_all_at(chunk, at).map_err(Error::io("write", dest))
            })?;
        }
        Ok(plan.copied_bytes())
    }

    /// Bytes of the sums that belong to a run of extents, counted through all blocks.
    pub(crate) fn read_sums(&self, first_ordinal: u64, buf: &mut [u8]) -> Result<(), Error> {
        let offset = SumsHeader::sum_offset(&self.header.ram, first_ordinal);
        self.sums.read_at(buf, offset)
    }

    /// Reads bytes of the image, each from the file it lies in. They are not checked.
    pub(crate) fn read_pages(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut rest = buf;
        self.for_files(offset, rest.len() as u64, |file, offset, bytes| {
            let (piece, behind) = std::mem::take(&mut rest).split_at_mut_checked(bytes as usize).unwrap_or_default();
            rest = behind;
            file.read_at(piece, offset)
        })
    }

    /// Calls `each` for the parts of a range of the image: the file that a part lies in, its offset, its length.
    fn for_files(
        &self,
        offset: u64,
        bytes: u64,
        mut each: impl FnMut(&Source, u64, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(elsewhere) = &self.elsewhere else { return each(&self.image, offset, bytes) };
        let mut pieces = elsewhere.map().pieces(offset, bytes);
        pieces.try_for_each(|piece| {
            let file = piece.segment.and_then(|segment| elsewhere.file(segment)).unwrap_or(&self.image);
            each(file, piece.offset, piece.bytes)
        })
    }

    /// Its own file: headers, bitmaps, device state, and of a shared image those pages that no other file holds.
    pub(crate) fn image(&self) -> &Source {
        &self.image
    }

    /// Of a shared image, what lies elsewhere.
    pub(crate) fn elsewhere(&self) -> Option<&Elsewhere> {
        self.elsewhere.as_ref()
    }

    pub(crate) fn sums(&self) -> &Source {
        &self.sums
    }

    pub(crate) fn header(&self) -> &SumsHeader {
        &self.header
    }

    /// The error for an extent whose bytes are wrong.
    pub(crate) fn damaged(&self, block: BlockIndex, extent: ExtentIndex) -> Error {
        let placed = self.layout().get(block);
        let (file_offset, extent_bytes) = placed.and_then(|b| b.extent(extent)).unwrap_or_default();
        Error::Damaged {
            path: self.path().to_owned(),
            block: placed.map(|b| b.block().id().to_string()).unwrap_or_default(),
            block_offset: extent.byte_offset(),
            file_offset,
            extent_bytes,
        }
    }

    fn device_bytes(&self, from: u64, bytes: u64) -> Result<Vec<u8>, Error> {
        let mut found = vec![0; bytes as usize];
        self.image.read_at(&mut found, self.layout().devices_offset() + from)?;
        Ok(found)
    }

    fn sum(&self, ordinal: u64) -> Result<Sum, Error> {
        let mut sum = [0; SUM_BYTES];
        self.read_sums(ordinal, &mut sum)?;
        Ok(Sum::from_bytes(sum))
    }

    fn place(&self, block: BlockIndex, extent: ExtentIndex) -> Result<(u64, u64, usize), Error> {
        let found = || {
            let ordinal = self.ram().extent_ordinal(block, extent)?;
            let (file_offset, bytes) = self.layout().get(block)?.extent(extent)?;
            Some((ordinal, file_offset, bytes))
        };
        found().ok_or_else(|| Error::NoSuchExtent {
            path: self.path().to_owned(),
            block: block.get(),
            extent: extent.get(),
        })
    }
}

/// Hash of all bytes of the file that are no guest pages.
pub(crate) fn non_page_sum(image: &Source, layout: &MappedLayout) -> Result<Sum, Error> {
    let ranges = layout.non_page_ranges(image.bytes).map_err(|error| image.wrong(error))?;
    let (mut hasher, mut buf) = (blake3::Hasher::new(), vec![0; 256 << 10]);
    for (start, end) in ranges {
        for_chunks(start, end - start, &mut buf, |chunk, at| {
            image.read_at(chunk, at)?;
            hasher.update(chunk);
            Ok(())
        })?;
    }
    Ok(hasher.finalize())
}

pub(crate) fn read_bitmaps(image: &Source, file: &MappedFile) -> Result<Vec<PageBitmap>, Error> {
    let blocks = file.layout().ram().iter();
    let read = |(block, _)| file.read_bitmap(image, block).map_err(|fault| image.named(fault));
    blocks.map(read).collect()
}

/// Calls `each` for consecutive pieces of a range, each as large as the buffer allows.
pub(crate) fn for_chunks(
    start: u64,
    bytes: u64,
    buf: &mut [u8],
    mut each: impl FnMut(&mut [u8], u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(buf.len() as u64);
        let Some(chunk) = buf.get_mut(..count as usize) else {
            break;
        };
        each(chunk, start + done)?;
        done += count;
    }
    Ok(())
}

fn read_header(sums: &Source) -> Result<SumsHeader, Error> {
    let mut bytes = vec![0; SumsHeader::max_bytes().min(sums.bytes as usize)];
    sums.read_at(&mut bytes, 0)?;
    let header = SumsHeader::parse(&bytes).map_err(|error| sums.wrong(error))?;
    if sums.bytes != SumsHeader::file_bytes(&header.ram) {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(Error::Io { action: "read all of", path: sums.path.clone(), source });
    }
    Ok(header)
}
