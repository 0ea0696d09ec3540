//! CRC-32C, which XFS and btrfs use.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

/// Goes on from a checksum that was not inverted yet.
pub(crate) fn crc32c_raw(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        crc = crc >> 8 ^ TABLE.get(((crc ^ u32::from(*byte)) & 0xff) as usize).copied().unwrap_or_default();
    }
    crc
}

/// The checksum of these bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !crc32c_raw(!0, bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_known_value() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
