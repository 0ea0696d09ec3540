//! An initramfs: a cpio archive in the "newc" format, written without cpio and without root.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A character device's numbers.
#[derive(Debug, Clone, Copy)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// Writes entries one after the other; everything belongs to root.
pub struct Archive<W> {
    out: W,
    entries: u32,
}

struct Header {
    mode: u32,
    device: DeviceNumber,
}

const NO_DEVICE: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

impl<W: Write> Archive<W> {
    /// An archive with nothing in it.
    pub const fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a directory, after its parent.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, &Header { mode: DIRECTORY | 0o755, device: NO_DEVICE }, &[])
    }

    /// Adds a file that may be executed.
    pub fn executable(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, &Header { mode: REGULAR | 0o755, device: NO_DEVICE }, content)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, &Header { mode: REGULAR | 0o644, device: NO_DEVICE }, content)
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, device: DeviceNumber) -> io::Result<()> {
        self.entry(path, &Header { mode: CHARACTER_DEVICE | 0o600, device }, &[])
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", &Header { mode: 0, device: NO_DEVICE }, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, header: &Header, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{path} is too large")))?;
        let name_size = path.len() as u32 + 1;
        let DeviceNumber { major, minor } = header.device;
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name size, checksum
        let fields = [self.entries, header.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        let text: String = fields.iter().map(|field| format!("{field:08X}")).collect();
        write!(self.out, "070701{text}{path}\0")?;
        self.pad(6 + text.len() + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_as_the_kernel_reads_them() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d").unwrap();
        archive.executable("d/x", b"hello").unwrap();
        archive.device("d/c", DeviceNumber { major: 5, minor: 1 }).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        // 110 bytes of header and "d\0" are 112: nothing to pad. The next header is 110 + "d/x\0" + 2 of padding.
        assert_eq!(&text[112..118], "070701");
        assert_eq!(&text[112 + 116..][..8], "hello\0\0\0");
        let device = &text[112 + 116 + 8..];
        assert_eq!(&device[14..22], "00002180");
        assert_eq!(&device[6 + 9 * 8..][..16], "0000000500000001");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
