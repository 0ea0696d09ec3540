//! What this host offers: QEMU, KVM that works or only exists, userfaultfd, memory.
//!
//! Every probe does the thing it asks about; the existence of a device file proves nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_types::ByteLen;
use serde::{Deserialize, Serialize};

use crate::definition::{AccelChoice, Accelerator};
use crate::launch::FirmwareCode;

/// Why the host cannot run machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no QEMU.
    #[error("no {PROGRAM} on PATH: install QEMU 9.0 or newer (on Debian 12: qemu-system-x86 from bookworm-backports)")]
    NoQemu,
    /// QEMU is older than what is needed.
    #[error("{path} is QEMU {found}; Keyframe needs {MIN_MAJOR}.0 or newer (on Debian 12: from bookworm-backports)")]
    OldQemu {
        /// The program found.
        path: PathBuf,
        /// Its version.
        found: QemuVersion,
    },
    /// QEMU does not run or says something unexpected.
    #[error("{path} does not tell its {what}")]
    Unreadable {
        /// The program found.
        path: PathBuf,
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: Option<io::Error>,
    },
    /// KVM was asked for and does not work.
    #[error("KVM was asked for and does not work here: {0}; use --accel auto or tcg")]
    NoKvm(KvmState),
    /// UEFI was asked for and there is no OVMF.
    #[error("no UEFI firmware found (on Debian: install ovmf); looked for {0}")]
    NoOvmf(String),
}

const PROGRAM: &str = "qemu-system-x86_64";
const MIN_MAJOR: u32 = 9;

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QemuVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl std::fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl From<QemuVersion> for String {
    fn from(version: QemuVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for QemuVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not a version of QEMU"))
    }
}

impl QemuVersion {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse::<u32>);
        let mut next = || numbers.next().and_then(Result::ok);
        Some(Self { major: next()?, minor: next()?, micro: next().unwrap_or(0) })
    }
}

/// The QEMU of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    path: PathBuf,
}

impl Qemu {
    /// Finds QEMU: `KEYFRAME_QEMU` or the first one on `PATH`. Does not run it.
    ///
    /// # Errors
    /// [`HostError::NoQemu`].
    pub fn find() -> Result<Self, HostError> {
        if let Some(path) = std::env::var_os("KEYFRAME_QEMU") {
            return Ok(Self { path: path.into() });
        }
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths)
            .map(|dir| dir.join(PROGRAM))
            .find(|path| path.is_file())
            .map(|path| Self { path })
            .ok_or(HostError::NoQemu)
    }

    /// The program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ask(&self, args: &[&str], what: &'static str) -> Result<String, HostError> {
        let unreadable = |source| HostError::Unreadable { path: self.path.clone(), what, source };
        let output = Command::new(&self.path).args(args).output().map_err(|error| unreadable(Some(error)))?;
        if !output.status.success() {
            return Err(unreadable(None));
        }
        String::from_utf8(output.stdout).map_err(|_| unreadable(None))
    }

    /// Runs QEMU to learn its version.
    ///
    /// # Errors
    /// [`HostError::Unreadable`], or [`HostError::OldQemu`] when it is too old.
    pub fn version(&self) -> Result<QemuVersion, HostError> {
        let what = "version";
        let text = self.ask(&["--version"], what)?;
        let found = text
            .split_whitespace()
            .find_map(|word| word.contains('.').then(|| QemuVersion::parse(word)).flatten())
            .ok_or_else(|| HostError::Unreadable { path: self.path.clone(), what, source: None })?;
        if found.major < MIN_MAJOR {
            return Err(HostError::OldQemu { path: self.path.clone(), found });
        }
        Ok(found)
    }

    /// The newest versioned q35 machine type, such as `pc-q35-10.0`.
    ///
    /// # Errors
    /// [`HostError::Unreadable`].
    pub fn newest_q35(&self) -> Result<String, HostError> {
        let what = "machine types";
        self.ask(&["-machine", "help"], what)?
            .split("(alias of ")
            .filter_map(|rest| rest.split(')').next())
            .find(|name| name.starts_with("pc-q35-"))
            .map(str::to_owned)
            .ok_or_else(|| HostError::Unreadable { path: self.path.clone(), what, source: None })
    }
}

/// What KVM is worth on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmState {
    /// An ordinary guest can run.
    Works,
    /// There is no `/dev/kvm`.
    Absent,
    /// `/dev/kvm` exists and may not be opened.
    Forbidden,
    /// It opens, but the processor shows neither vmx nor svm: firmware runs and Linux does not get through its decompressor.
    NoHardware,
}

impl std::fmt::Display for KvmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Works => "KVM works",
            Self::Absent => "there is no /dev/kvm",
            Self::Forbidden => "/dev/kvm exists but may not be opened by this user",
            Self::NoHardware => {
                "/dev/kvm exists, but the processor offers neither vmx nor svm, so an ordinary guest cannot run on it"
            }
        })
    }
}

/// `KVM_GET_API_VERSION`, and the version that every kernel since 2.6.22 answers.
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
const KVM_API_VERSION: libc::c_int = 12;

impl KvmState {
    /// Looks.
    #[must_use]
    pub fn probe() -> Self {
        let device = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(device) => device,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Self::Forbidden,
            Err(_) => return Self::Absent,
        };
        if kvm_api_version(&device) != KVM_API_VERSION {
            return Self::Absent;
        }
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has_hardware = flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        if has_hardware { Self::Works } else { Self::NoHardware }
    }
}

fn kvm_api_version(device: &File) -> libc::c_int {
    use std::os::fd::AsRawFd as _;
    // SAFETY: KVM_GET_API_VERSION takes no argument and touches no memory of ours.
    unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) }
}

/// Which accelerator a machine gets here.
///
/// # Errors
/// [`HostError::NoKvm`] when KVM was asked for and does not work.
pub fn choose_accelerator(choice: AccelChoice) -> Result<Accelerator, HostError> {
    match (choice, KvmState::probe()) {
        (AccelChoice::Tcg, _) => Ok(Accelerator::Tcg),
        (_, KvmState::Works) => Ok(Accelerator::Kvm),
        (AccelChoice::Auto, _) => Ok(Accelerator::Tcg),
        (AccelChoice::Kvm, state) => Err(HostError::NoKvm(state)),
    }
}

/// Whether QEMU, started by this user, can write-protect guest memory (userfaultfd with kernel faults).
#[must_use]
pub fn userfaultfd_works() -> bool {
    if OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        return true;
    }
    // SAFETY: userfaultfd(2) takes flags only; the descriptor it returns is closed at once.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        if fd < 0 {
            return false;
        }
        libc::close(i32::try_from(fd).unwrap_or(-1));
    }
    true
}

/// Whether the file system of `path` takes `O_DIRECT`: opens the file that way.
#[must_use]
pub fn takes_direct_io(path: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok()
}

/// Memory that could be used without swapping, from `/proc/meminfo`.
#[must_use]
pub fn available_memory() -> ByteLen {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    ByteLen::from_bytes(kib.unwrap_or(0).saturating_mul(1024))
}

/// Whether anonymous memory that asks for it gets transparent huge pages.
#[must_use]
pub fn transparent_huge_pages() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|text| text.contains("[madvise]") || text.contains("[always]"))
}

/// Places where distributions put OVMF: code and the template of its variables.
const OVMF: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];

/// UEFI firmware: its code, and the template of its variables.
///
/// # Errors
/// [`HostError::NoOvmf`].
pub fn find_ovmf() -> Result<(FirmwareCode, PathBuf), HostError> {
    OVMF.iter()
        .find(|(code, vars)| Path::new(code).is_file() && Path::new(vars).is_file())
        .map(|(code, vars)| (FirmwareCode(code.into()), PathBuf::from(vars)))
        .ok_or_else(|| HostError::NoOvmf(OVMF.iter().map(|&(code, _)| code).collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| QemuVersion::try_from(text.to_owned()).unwrap();
        assert!(version("10.0.2") > version("9.2.0"));
        assert_eq!(version("9.0").to_string(), "9.0.0");
        assert!(QemuVersion::try_from("ten".to_owned()).is_err());
    }

    #[test]
    fn the_qemu_of_this_host_is_new_enough() {
        let qemu = Qemu::find().unwrap();
        assert!(qemu.version().unwrap().major >= MIN_MAJOR);
        assert!(qemu.newest_q35().unwrap().starts_with("pc-q35-"));
    }
}
