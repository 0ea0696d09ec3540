//! Bytes of different kinds, each a type of its own.

use std::fmt;

use keyframe_types::ByteLen;

use crate::error::{Error, Result};

/// Bytes that a guest addresses at once.
pub const SECTOR_BYTES: u64 = 512;
/// Smallest and largest cluster: 512 bytes to 2 MiB. Source: `block/qcow2.h`, `MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS`.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest virtual size: what a signed 64-bit offset addresses, whole sectors.
const VIRTUAL_MAX: u64 = (i64::MAX as u64) & !(SECTOR_BYTES - 1);

macro_rules! offset {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// So many bytes from the start.
            #[must_use]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Bytes from the start.
            #[must_use]
            pub const fn bytes(self) -> u64 {
                self.0
            }

            /// Further on, or `None` where that is beyond 64 bits.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

offset!(
    /// A place in the image file.
    HostOffset
);
offset!(
    /// A place on the disk that the guest sees.
    GuestOffset
);

/// Size of a cluster: a power of two from 512 bytes to 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterSize(u32);

impl ClusterSize {
    /// QEMU's default, 64 KiB. Source: `block/qcow2.h`, `DEFAULT_CLUSTER_SIZE`.
    pub const DEFAULT: Self = Self(16);

    /// A cluster of so many bytes.
    ///
    /// # Errors
    /// [`Error::ClusterSize`] unless it is a power of two from 512 to 2 Mi.
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        let bits = bytes.checked_ilog2().filter(|_| bytes.is_power_of_two());
        bits.and_then(Self::from_bits)
            .ok_or(Error::ClusterSize { bytes, rule: "must be a power of two from 512 to 2097152" })
    }

    /// A cluster of `1 << bits` bytes; `None` unless that is 9 to 21.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        CLUSTER_BITS.contains(&bits).then_some(Self(bits))
    }

    /// The exponent, `cluster_bits` of the header.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// Clusters needed for so many bytes.
    #[must_use]
    pub const fn count_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// Whether something at this place starts a cluster.
    #[must_use]
    pub const fn is_aligned(self, bytes: u64) -> bool {
        bytes & (self.bytes() - 1) == 0
    }
}

impl Default for ClusterSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ByteLen::from_bytes(self.bytes()).fmt(f)
    }
}

/// Size of the disk that the guest sees: whole sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualSize(u64);

impl VirtualSize {
    /// A disk of exactly this size.
    ///
    /// # Errors
    /// [`Error::VirtualSize`] unless it is whole sectors and below 8 EiB.
    pub fn new(len: ByteLen) -> Result<Self> {
        let bytes = len.bytes();
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::VirtualSize { bytes, rule: "must be a multiple of 512" });
        }
        if bytes > VIRTUAL_MAX {
            return Err(Error::VirtualSize { bytes, rule: "must be below 8 EiB" });
        }
        Ok(Self(bytes))
    }

    /// The smallest disk that holds so many bytes, which is how QEMU shows a raw file whose length is
    /// no multiple of 512.
    ///
    /// # Errors
    /// [`Error::VirtualSize`] beyond 8 EiB.
    pub fn covering(len: ByteLen) -> Result<Self> {
        let bytes = len.bytes();
        let rounded = bytes.checked_next_multiple_of(SECTOR_BYTES);
        let rounded = rounded.ok_or(Error::VirtualSize { bytes, rule: "must be below 8 EiB" })?;
        Self::new(ByteLen::from_bytes(rounded))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size as a length.
    #[must_use]
    pub const fn len(self) -> ByteLen {
        ByteLen::from_bytes(self.0)
    }

    /// Whether the disk has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for VirtualSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.len().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_powers_of_two_within_qemus_limits() {
        for (bytes, bits) in [(512, 9), (65536, 16), (2 << 20, 21)] {
            assert_eq!(ClusterSize::from_bytes(bytes).unwrap().bits(), bits);
        }
        for bytes in [0, 1, 256, 513, 65535, 4 << 20, u64::MAX] {
            assert!(ClusterSize::from_bytes(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn disks_are_whole_sectors() {
        assert!(VirtualSize::new(ByteLen::from_bytes(513)).is_err());
        assert_eq!(VirtualSize::covering(ByteLen::from_bytes(513)).unwrap().bytes(), 1024);
        assert!(VirtualSize::covering(ByteLen::from_bytes(u64::MAX)).is_err());
        assert!(VirtualSize::new(ByteLen::from_bytes(1 << 63)).is_err());
    }
}
