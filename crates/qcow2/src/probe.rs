//! What format a file has, by its magic.
//!
//! For the first look at a file that a person names, and never again: a guest that owns a raw disk can
//! write any magic to it. Whoever adds a disk stores the format and uses what is stored.

use std::path::Path;

use crate::backing::Format;
use crate::error::{Error, Result, io};
use crate::source::{ReadAt, open_file, read_up_to};
use crate::units::HostOffset;

/// Bytes read from the start.
const HEAD_BYTES: usize = 512;
/// Bytes read from the end, for formats that have a footer.
const FOOT_BYTES: u64 = 512;

/// The first bytes of formats that a person may well have, and that are neither qcow2 nor raw.
const FOREIGN: [(&[u8], usize, &str); 17] = [
    (b"KDMV", 0, "a VMDK image"),
    (b"COWD", 0, "a VMDK image (ESX)"),
    (b"# Disk DescriptorFile", 0, "a VMDK descriptor"),
    (b"\x7f\x10\xda\xbe", 64, "a VDI image"),
    (b"vhdxfile", 0, "a VHDX image"),
    (b"conectix", 0, "a VHD image"),
    (b"LUKS\xba\xbe", 0, "a LUKS container"),
    (b"QED\0", 0, "a QED image"),
    (b"WithoutFreeSpace", 0, "a Parallels image"),
    (b"WithouFreSpacExt", 0, "a Parallels image"),
    (b"QFI\xfb\0\0\0\x01", 0, "a qcow image of version 1"),
    (b"\x1f\x8b\x08", 0, "a gzip file"),
    (b"\xfd7zXZ\0", 0, "an xz file"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd file"),
    (b"BZh", 0, "a bzip2 file"),
    (b"PK\x03\x04", 0, "a zip file"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z file"),
];

/// The same at the end of the file.
const FOREIGN_FEET: [(&[u8], &str); 2] = [(b"conectix", "a VHD image"), (b"koly", "a DMG image")];

/// Opens a file and says what it is: qcow2 by its magic, raw where nothing else is recognised.
///
/// # Errors
/// [`Error::ForeignFormat`] for a format to be converted first; [`Error::Io`]; both within
/// [`Error::Image`].
pub fn probe(path: &Path) -> Result<Format> {
    open_file(path).and_then(|file| probe_source(&file)).map_err(|error| error.of_image(path))
}

/// [`probe`] of bytes.
///
/// # Errors
/// As [`probe`], without the path.
pub fn probe_source(source: &(impl ReadAt + ?Sized)) -> Result<Format> {
    let mut head = [0; HEAD_BYTES];
    let got = read_up_to(source, &mut head, HostOffset::new(0))?;
    let head = head.get(..got).unwrap_or_default();
    for (magic, at, format) in FOREIGN {
        if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(Error::ForeignFormat { format });
        }
    }
    if head.starts_with(&crate::header::MAGIC) {
        return Ok(Format::Qcow2);
    }
    let len = source.byte_len().map_err(io("read the length of the file"))?;
    let mut foot = [0; FOOT_BYTES as usize];
    if let Some(at) = len.checked_sub(FOOT_BYTES) {
        read_up_to(source, &mut foot, HostOffset::new(at))?;
    }
    match FOREIGN_FEET.iter().find(|(magic, _)| foot.starts_with(magic)) {
        Some((_, format)) => Err(Error::ForeignFormat { format }),
        None => Ok(Format::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(magic: &[u8], at: usize) -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn foreign_formats_are_named() {
        for (magic, offset, name) in FOREIGN {
            let error = probe_source(&at(magic, offset)).unwrap_err();
            assert!(matches!(error, Error::ForeignFormat { format } if format == name), "{name}");
        }
        for (magic, name) in FOREIGN_FEET {
            let error = probe_source(&at(magic, 2048 - 512)).unwrap_err();
            assert!(matches!(error, Error::ForeignFormat { format } if format == name), "{name}");
        }
    }

    #[test]
    fn qcow2_has_its_magic_and_the_rest_is_raw() {
        assert_eq!(probe_source(&at(b"QFI\xfb\0\0\0\x03", 0)).unwrap(), Format::Qcow2);
        assert_eq!(probe_source(&at(b"QFI\xfb\0\0\0\x03", 1)).unwrap(), Format::Raw);
        for raw in [vec![], vec![0], vec![0x55; 511], at(b"\x55\xaa", 510)] {
            assert_eq!(probe_source(&raw).unwrap(), Format::Raw);
        }
    }
}
