//! Where the page server's pages come from.

use std::fmt;
use std::sync::Arc;

use keyframe_vmstate::config::Configuration;
use keyframe_vmstate::ram::RamLayout;
use keyframe_vmstate::{BlockIndex, ExtentIndex};

use crate::{Error, ExtentBuf, MemoryImage};

/// One extent of guest memory: 64 KiB of a block, less at the block's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentAt {
    /// The RAM block.
    pub block: BlockIndex,
    /// The extent within it.
    pub extent: ExtentIndex,
}

impl fmt::Display for ExtentAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} extent {}", self.block, self.extent)
    }
}

/// Which of an extent's pages a source holds: bit 0 for its first page. Pages it does not hold are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held(u16);

impl Held {
    /// No page: the extent is a hole.
    pub const NONE: Self = Self(0);

    /// The pages with these bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Is there any page at all?
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// How many pages.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Is the page at this position of the extent, 0 to 15, among them?
    #[must_use]
    pub const fn contains(self, position: usize) -> bool {
        position < 16 && self.0 & (1 << position) != 0
    }
}

/// A snapshot's memory, as the page server wants it: by extents, each verified before it is handed out.
///
/// Several threads read at once. What a source says does not change while it is served.
pub trait PageSource: Sync {
    /// Which machine this is.
    fn configuration(&self) -> &Configuration;

    /// Its RAM blocks in stream order.
    fn ram(&self) -> &Arc<RamLayout>;

    /// The device sections of the stream: everything between the memory and the end-of-file byte.
    ///
    /// # Errors
    /// [`Error`] when they cannot be read or are not those that were captured.
    fn devices(&self) -> Result<Vec<u8>, Error>;

    /// Which pages of the extent are held; none for an extent that does not exist.
    fn held(&self, at: ExtentAt) -> Held;

    /// Reads the whole extent to the start of `into`, holes as zeros, and verifies it. Before it is called
    /// damaged, an extent is read once more from the device.
    ///
    /// # Errors
    /// [`Error`]; `into` then holds nothing that may be used.
    fn read(&self, at: ExtentAt, into: &mut ExtentBuf) -> Result<(), Error>;

    /// Says that so many extents from this one on will be read soon. A hint: it neither waits nor fails.
    fn will_read(&self, at: ExtentAt, extents: u64);

    /// So many extents side by side, from a multiple of that on, are had together for hardly more than what one of them costs.
    fn grain(&self) -> u64;
}

/// The memory image of a snapshot as a source.
#[derive(Debug)]
pub struct ImagePages {
    image: MemoryImage,
    ram: Arc<RamLayout>,
}

impl ImagePages {
    /// An opened image, whole or shared.
    pub fn new(image: MemoryImage) -> Self {
        let ram = Arc::new(image.ram().clone());
        Self { image, ram }
    }
}

impl PageSource for ImagePages {
    fn configuration(&self) -> &Configuration {
        self.image.layout().configuration()
    }

    fn ram(&self) -> &Arc<RamLayout> {
        &self.ram
    }

    fn devices(&self) -> Result<Vec<u8>, Error> {
        self.image.device_sections()
    }

    fn held(&self, at: ExtentAt) -> Held {
        Held(self.image.bitmap(at.block).map_or(0, |bitmap| bitmap.extent(at.extent)))
    }

    fn read(&self, at: ExtentAt, into: &mut ExtentBuf) -> Result<(), Error> {
        match self.image.read_extent(at.block, at.extent, into) {
            Err(Error::Damaged { .. }) => self.image.read_extent_from_disk(at.block, at.extent, into).map(drop),
            read => read.map(drop),
        }
    }

    fn will_read(&self, at: ExtentAt, extents: u64) {
        self.image.prefetch(at.block, at.extent, extents);
    }

    fn grain(&self) -> u64 {
        self.image.grain()
    }
}
