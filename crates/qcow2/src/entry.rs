//! Entries of L1 and L2 tables, decoded and checked.
//!
//! Stricter than QEMU in one respect: reserved bits must be zero. QEMU never sets them, so an entry
//! that has one is damage, and damage is better told than read through.
//!
//! Source: `docs/interop/qcow2.txt`, "Cluster mapping", "Extended L2 Entries".

use crate::header::{DataFile, Header, L2Shape, Version};
use crate::units::{ClusterSize, HostOffset, SECTOR_BYTES};

/// Bits 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Host offsets have 56 bits.
const HOST_END: u64 = 1 << 56;

/// What is wrong with an entry.
pub(crate) type Rule = &'static str;

/// One guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// This layer has nothing.
    Unallocated,
    /// Reads as zeros.
    Zero,
    /// At this place.
    Data(HostOffset),
    /// Compressed: so many bytes at this place, at most.
    Compressed { at: HostOffset, len: u64 },
    /// Divided into 32 subclusters, each with a bit in both masks, lowest first; never both bits.
    Mixed { at: HostOffset, allocated: u32, zero: u32 },
}

/// Decodes entries of one image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoder {
    cluster: ClusterSize,
    shape: L2Shape,
    version: Version,
    external: bool,
    file_bytes: u64,
}

impl Decoder {
    pub(crate) fn new(header: &Header, file_bytes: u64) -> Self {
        Self {
            cluster: header.cluster(),
            shape: header.l2_shape(),
            version: header.version(),
            external: header.data_file() != DataFile::Internal,
            file_bytes,
        }
    }

    /// Where an L2 table is; `None` where there is none. The table lies within the file.
    pub(crate) fn l1(&self, entry: u64) -> Result<Option<HostOffset>, Rule> {
        if entry & L1_RESERVED != 0 {
            return Err("reserved bits are set");
        }
        let at = entry & OFFSET_MASK;
        if at == 0 {
            return Ok(None);
        }
        if !self.cluster.is_aligned(at) {
            return Err("L2 table does not start at a cluster");
        }
        if at + self.cluster.bytes() > self.file_bytes {
            return Err("L2 table reaches beyond the end of the file");
        }
        Ok(Some(HostOffset::new(at)))
    }

    /// An L2 entry; `bitmap` is its second half in extended entries, otherwise 0.
    pub(crate) fn l2(&self, entry: u64, bitmap: u64) -> Result<Cluster, Rule> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry);
        }
        if entry & L2_RESERVED != 0 {
            return Err("reserved bits are set");
        }
        let at = entry & OFFSET_MASK;
        if !self.cluster.is_aligned(at) {
            return Err("data does not start at a cluster");
        }
        if at >= self.file_bytes && at != 0 && !self.external {
            return Err("data starts behind the end of the file");
        }
        // Only an external data file has guest data at offset 0; bit 63 tells it from nothing.
        let here = (at != 0 || (self.external && entry & COPIED != 0)).then_some(HostOffset::new(at));
        match (self.shape, entry & ZERO != 0, self.version) {
            (L2Shape::Extended, true, _) => Err("the zero bit is set in an extended entry"),
            (L2Shape::Standard, true, Version::V2) => Err("the zero bit is set in a version 2 image"),
            (L2Shape::Standard, true, Version::V3) => Ok(Cluster::Zero),
            (L2Shape::Standard, false, _) => Ok(here.map_or(Cluster::Unallocated, Cluster::Data)),
            (L2Shape::Extended, false, _) => subclusters(here, bitmap),
        }
    }

    fn compressed(&self, entry: u64) -> Result<Cluster, Rule> {
        if self.external {
            return Err("compressed cluster in an image with an external data file");
        }
        if entry & COPIED != 0 {
            return Err("compressed cluster with the bit of a reference count of one");
        }
        let count_bits = self.cluster.bits() - 8;
        let count_at = 62 - count_bits;
        let at = entry & ((1 << count_at) - 1);
        let sectors = 1 + ((entry >> count_at) & ((1 << count_bits) - 1));
        if at >= HOST_END || at >= self.file_bytes {
            return Err("compressed data starts behind the end of the file");
        }
        let len = sectors * SECTOR_BYTES - at % SECTOR_BYTES;
        Ok(Cluster::Compressed { at: HostOffset::new(at), len })
    }
}

fn subclusters(here: Option<HostOffset>, bitmap: u64) -> Result<Cluster, Rule> {
    let (allocated, zero) = (low(bitmap), low(bitmap >> 32));
    if allocated & zero != 0 {
        return Err("a subcluster is both allocated and zero");
    }
    match (here, allocated, zero) {
        (_, 0, 0) => Ok(Cluster::Unallocated),
        (_, 0, u32::MAX) => Ok(Cluster::Zero),
        (Some(at), u32::MAX, _) => Ok(Cluster::Data(at)),
        (Some(at), allocated, zero) => Ok(Cluster::Mixed { at, allocated, zero }),
        (None, 0, zero) => Ok(Cluster::Mixed { at: HostOffset::new(0), allocated: 0, zero }),
        (None, _, _) => Err("subclusters are allocated, but there is no cluster"),
    }
}

fn low(bits: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = bits.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(bits: u32, shape: L2Shape) -> Decoder {
        let cluster = ClusterSize::from_bits(bits).unwrap();
        Decoder { cluster, shape, version: Version::V3, external: false, file_bytes: 1 << 40 }
    }

    #[test]
    fn standard_entries() {
        let d = decoder(16, L2Shape::Standard);
        assert_eq!(d.l2(0, 0), Ok(Cluster::Unallocated));
        assert_eq!(d.l2(1, 0), Ok(Cluster::Zero));
        assert_eq!(d.l2(0x5_0001, 0), Ok(Cluster::Zero));
        assert_eq!(d.l2(COPIED | 0x5_0000, 0), Ok(Cluster::Data(HostOffset::new(0x5_0000))));
        for bad in [0x5_0200, 0x5_0002, 1 << 61, 1 << 40] {
            assert!(d.l2(bad, 0).is_err(), "{bad:#x}");
        }
        let v2 = Decoder { version: Version::V2, ..d };
        assert!(v2.l2(1, 0).is_err());
    }

    #[test]
    fn offset_zero_is_data_only_in_an_external_file() {
        let d = decoder(16, L2Shape::Standard);
        assert_eq!(d.l2(COPIED, 0), Ok(Cluster::Unallocated));
        let external = Decoder { external: true, ..d };
        assert_eq!(external.l2(COPIED, 0), Ok(Cluster::Data(HostOffset::new(0))));
        assert_eq!(external.l2(0, 0), Ok(Cluster::Unallocated));
        assert!(external.l2(COMPRESSED | 0x5_0000, 0).is_err());
    }

    #[test]
    fn compressed_entries_tell_place_and_longest_length() {
        let d = decoder(16, L2Shape::Standard);
        // 8 bits of sectors above 54 bits of offset.
        let entry = COMPRESSED | (3 << 54) | 0x5_0123;
        assert_eq!(d.l2(entry, 0), Ok(Cluster::Compressed { at: HostOffset::new(0x5_0123), len: 4 * 512 - 0x123 }));
        assert!(d.l2(entry | COPIED, 0).is_err());
        assert!(d.l2(COMPRESSED | (1 << 53), 0).is_err());
        // With the smallest clusters the field of the offset has 61 bits, of which 56 may be used.
        let d = Decoder { file_bytes: u64::MAX, ..decoder(9, L2Shape::Standard) };
        assert!(d.l2(COMPRESSED | (1 << 56), 0).is_err());
    }

    #[test]
    fn extended_entries() {
        let d = decoder(16, L2Shape::Extended);
        let at = HostOffset::new(0x5_0000);
        assert_eq!(d.l2(0x5_0000, 0), Ok(Cluster::Unallocated));
        assert_eq!(d.l2(0x5_0000, 0xffff_ffff), Ok(Cluster::Data(at)));
        assert_eq!(d.l2(0, 0xffff_ffff << 32), Ok(Cluster::Zero));
        assert_eq!(d.l2(0x5_0000, (2 << 32) | 1), Ok(Cluster::Mixed { at, allocated: 1, zero: 2 }));
        assert!(d.l2(0x5_0000, (1 << 32) | 1).is_err());
        assert!(d.l2(0, 1).is_err());
        assert!(d.l2(1, 0).is_err());
    }

    #[test]
    fn l1_entries() {
        let d = decoder(16, L2Shape::Standard);
        assert_eq!(d.l1(0), Ok(None));
        assert_eq!(d.l1(COPIED | 0x3_0000), Ok(Some(HostOffset::new(0x3_0000))));
        for bad in [0x3_0001, 0x3_0200, 1 << 56, 1 << 40] {
            assert!(d.l1(bad).is_err(), "{bad:#x}");
        }
    }
}
