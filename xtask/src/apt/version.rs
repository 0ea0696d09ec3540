//! The version that QEMU says it has.

use std::fmt;

/// Major and minor version of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    major: u32,
    minor: u32,
}

impl QemuVersion {
    /// The oldest that Keyframe drives: mapped-ram came with 9.0.
    pub const OLDEST: Self = Self { major: 9, minor: 0 };

    /// Reads what `qemu-system-x86_64 --version` prints.
    pub fn parse(output: &str) -> Option<Self> {
        let number = output.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
        let mut parts = number.split('.');
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        let read = |text| QemuVersion::parse(text).unwrap();
        let debian = read("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c)");
        assert_eq!(debian, QemuVersion { major: 10, minor: 0 });
        assert!(debian > QemuVersion::OLDEST, "10 is more than 9");
        assert!(read("QEMU emulator version 7.2.15 (Debian 1:7.2+dfsg-7+deb12u12)") < QemuVersion::OLDEST);
        assert!(read("QEMU emulator version 9.0.0") >= QemuVersion::OLDEST);
        assert!(read("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)") > QemuVersion::OLDEST);
    }

    #[test]
    fn what_is_no_version_is_not_read() {
        for text in ["", "qemu 10.0", "QEMU emulator version x.y"] {
            assert_eq!(QemuVersion::parse(text), None, "{text:?}");
        }
    }
}
