//! Names of backing files: what may be stored, and which file is meant.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Longest name, in bytes. Source: `docs/interop/qcow2.txt`, `backing_file_size`.
pub const NAME_MAX: usize = 1023;

/// The formats that this crate deals with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// qcow2, version 2 or 3.
    Qcow2,
    /// The disk's bytes and nothing else.
    Raw,
}

impl Format {
    /// QEMU's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }

    /// By QEMU's name; `None` for any other format.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Qcow2, Self::Raw].into_iter().find(|f| f.as_str() == name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A backing file's name as it stands in a header: 1 to 1023 bytes, not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BackingName(Vec<u8>);

impl BackingName {
    /// A name to store: the path of a file, absolute or relative to the overlay's directory.
    ///
    /// # Errors
    /// [`Error::BackingName`] where it is empty, too long, contains a zero byte, or where QEMU would
    /// take it for a protocol (a colon before the first slash).
    pub fn new(path: impl AsRef<Path>) -> Result<Self> {
        let name = Self(path.as_ref().as_os_str().as_bytes().to_vec());
        name.check_file().map(|()| name)
    }

    /// What a server shows at a unix socket, as QEMU writes it: `nbd+unix:///EXPORT?socket=PATH`. It names no file, and whoever
    /// wants to follow it as one is told so.
    ///
    /// # Errors
    /// [`Error::BackingName`] where it becomes too long.
    pub fn export(socket: &Path, export: &str) -> Result<Self> {
        let mut name = b"nbd+unix:///".to_vec();
        percent_encode(export.as_bytes(), &mut name);
        name.extend_from_slice(b"?socket=");
        percent_encode(socket.as_os_str().as_bytes(), &mut name);
        if name.len() > NAME_MAX {
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(Error::BackingName { name, rule: "must not be longer than 1023 bytes" });
        }
        Ok(Self(name))
    }

    /// Whether it names what a server shows ([`BackingName::export`]).
    #[must_use]
    pub fn is_export(&self) -> bool {
        self.0.starts_with(b"nbd+unix://")
    }

    /// A name found in a header; its rules are checked when it is followed.
    pub(crate) fn from_header(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes as a path, not resolved.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The file that is meant when it stands in the header of `overlay`: relative names count from the
    /// directory in the overlay's path as given, symbolic links not resolved, as QEMU does.
    ///
    /// # Errors
    /// [`Error::BackingName`] where it names no file: `json:`, `nbd:` and other protocols.
    pub fn resolve(&self, overlay: &Path) -> Result<PathBuf> {
        self.check_file()?;
        Ok(overlay.parent().unwrap_or(Path::new("")).join(self.as_path()))
    }

    fn check_file(&self) -> Result<()> {
        let rule = if self.0.is_empty() {
            "must not be empty"
        } else if self.0.len() > NAME_MAX {
            "must not be longer than 1023 bytes"
        } else if self.0.contains(&0) {
            "must not contain a zero byte"
        } else if self.0.iter().find(|b| matches!(b, b':' | b'/')) == Some(&b':') {
            "names a protocol or options, not a file (a colon before the first slash); a file of that name is written ./NAME"
        } else {
            return Ok(());
        };
        Err(Error::BackingName { name: self.to_string(), rule })
    }
}

/// Everything but letters, digits and `-._~/` as `%XX`. Source: RFC 3986, unreserved characters.
fn percent_encode(bytes: &[u8], into: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            into.push(byte);
        } else {
            into.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
}

impl fmt::Display for BackingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Debug for BackingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackingName({:?})", self.to_string())
    }
}

/// What a new overlay hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    name: BackingName,
    format: Format,
}

impl Backing {
    /// This file, of this format. The format is always stored: guessing it later would let a guest
    /// turn its raw disk into a qcow2 that names a file of the host.
    ///
    /// # Errors
    /// As [`BackingName::new`].
    pub fn new(path: impl AsRef<Path>, format: Format) -> Result<Self> {
        Ok(Self { name: BackingName::new(path)?, format })
    }

    /// What a server shows at a unix socket: the bytes of the disk.
    ///
    /// # Errors
    /// As [`BackingName::export`].
    pub fn export(socket: &Path, export: &str) -> Result<Self> {
        Ok(Self { name: BackingName::export(socket, export)?, format: Format::Raw })
    }

    /// The name as it is stored.
    #[must_use]
    pub fn name(&self) -> &BackingName {
        &self.name
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_files_can_be_stored() {
        for good in ["base.qcow2", "/a/b:c", "./nbd:x", "a b", "é", &"x".repeat(1023)] {
            assert!(BackingName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "json:{}", "nbd://h/e", "file:/x", "a:b", "a\0b", &"x".repeat(1024)] {
            assert!(BackingName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_export_is_named_and_not_followed() {
        let name = BackingName::export(Path::new("/h o/boot/disk0.sock"), "disk0").unwrap();
        assert_eq!(name.to_string(), "nbd+unix:///disk0?socket=/h%20o/boot/disk0.sock");
        assert!(name.is_export() && name.resolve(Path::new("/vm/o")).is_err());
        assert!(!BackingName::new("/nbd+unix://x").unwrap().is_export());
        assert!(BackingName::export(Path::new(&"x".repeat(1024)), "e").is_err());
    }

    #[test]
    fn relative_names_count_from_the_overlays_directory() {
        let name = BackingName::new("../base/b.raw").unwrap();
        assert_eq!(name.resolve(Path::new("/vm/layers/o.qcow2")).unwrap(), Path::new("/vm/layers/../base/b.raw"));
        assert_eq!(name.resolve(Path::new("o.qcow2")).unwrap(), Path::new("../base/b.raw"));
        let name = BackingName::new("/b").unwrap();
        assert_eq!(name.resolve(Path::new("/vm/o")).unwrap(), Path::new("/b"));
    }
}
