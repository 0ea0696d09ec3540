//! What a machine is made of: the part of its definition that decides the QEMU command line, and what its owner wants to
//! know of it.
//!
//! Two QEMU processes started from equal definitions accept each other's device state; so a snapshot
//! carries a copy of the definition it was taken with, and whatever could shift between hosts or
//! QEMU versions (machine type, CPU model) is pinned here when the machine is created.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use keyframe_types::{ByteLen, DiskId, VmName};
use serde::{Deserialize, Serialize};

use crate::probe::ProbeDefinition;

/// A machine's hardware. Stored as `machine.toml`; a person may edit it while the machine is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDefinition {
    /// Version of this file's form; always [`MachineDefinition::SCHEMA`].
    pub schema: String,
    /// The machine's name, equal to its directory's.
    pub name: VmName,
    /// SMBIOS UUID, drawn at creation.
    pub uuid: String,
    /// Size of RAM in MiB.
    pub memory_mib: u64,
    /// Words that policies choose machines by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// QEMU machine type with its version, such as `pc-q35-10.0`: device state is only exchangeable within one.
    pub machine_type: String,
    /// What runs the guest's instructions.
    #[serde(default)]
    pub accel: AccelChoice,
    /// Firmware that boots the machine.
    #[serde(default)]
    pub firmware: Firmware,
    /// The network card, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<Nic>,
    /// Kernel to boot directly, instead of from a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<DirectKernel>,
    /// Disks in the order in which the guest sees them.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskDefinition>,
    /// What tells, when a snapshot is tested, that the machine works.
    #[serde(default, rename = "probe", skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeDefinition>,
    /// From when on `keyframe cost` warns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostLimits>,
    /// Further QEMU arguments, checked by [`crate::extra_args`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_args: Vec<String>,
}

impl MachineDefinition {
    /// The form that this version writes and reads.
    pub const SCHEMA: &str = "keyframe.machine/1";

    /// Checks what becomes part of QEMU's command line as it stands: a definition may have been edited, or come
    /// with a snapshot from elsewhere.
    ///
    /// # Errors
    /// [`DefinitionError::NotPlain`], [`DefinitionError::Refused`].
    pub fn check(&self) -> Result<(), DefinitionError> {
        for (field, text) in [("machine_type", &self.machine_type), ("uuid", &self.uuid)] {
            let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            if !plain || text.is_empty() {
                return Err(DefinitionError::NotPlain { field, text: text.clone() });
            }
        }
        Ok(crate::extra_args::check(&self.extra_args)?)
    }

    /// Size of RAM.
    #[must_use]
    pub fn memory(&self) -> ByteLen {
        ByteLen::from_mib(self.memory_mib)
    }
}

/// What a machine's snapshots may cost before there are warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CostLimits {
    /// The most layers of a disk.
    pub max_depth: u32,
    /// The greatest age of a snapshot that is not pinned and never expires, in days.
    pub max_age_days: u32,
    /// The least time until the file system is full, in days.
    pub min_days_left: u32,
    /// What 99 of 100 reads take at most, in milliseconds.
    pub max_read_ms: u32,
}

impl Default for CostLimits {
    fn default() -> Self {
        Self { max_depth: 32, max_age_days: 30, min_days_left: 14, max_read_ms: 100 }
    }
}

/// Which accelerator a person asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it really works, TCG otherwise.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Which accelerator runs the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's own software emulation.
    Tcg,
}

impl Accelerator {
    /// The CPU model that belongs to it: everything the accelerator can offer.
    #[must_use]
    pub fn cpu_model(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }

    /// As QEMU's `-accel` names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Firmware of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// `SeaBIOS`.
    #[default]
    Bios,
    /// OVMF; its variables (NVRAM) are layered like a disk and part of every snapshot.
    Uefi,
}

/// A kernel that QEMU loads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectKernel {
    /// The kernel image.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default)]
    pub append: String,
}

/// A disk as it was given at creation. The layers in use are the head's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDefinition {
    /// Name of the disk; part of device and node ids.
    pub id: DiskId,
    /// The image that was given at creation.
    pub source: PathBuf,
}

/// A network card and what it is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddress,
    /// Its other end.
    pub network: Network,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Draws an address in QEMU's own range, 52:54:00.
    #[must_use]
    pub fn random() -> Self {
        let id = keyframe_types::InstanceId::random();
        let digit = |at: usize| u8::from_str_radix(&id.as_str()[at..at + 2], 16).unwrap_or_default();
        Self([0x52, 0x54, 0x00, digit(0), digit(2), digit(4)])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = DefinitionError;

    fn try_from(text: String) -> Result<Self, DefinitionError> {
        let bad = || DefinitionError::BadMac(text.clone());
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

/// What a network card is plugged into. Written `user`, `none`, `tap:IF` or `bridge:BR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Network {
    /// QEMU's user-mode network: out through the host, nothing comes in.
    User,
    /// A card whose cable leads nowhere that matters: user-mode network without any way out.
    Isolated,
    /// The same, in which this address is the guest's, in a network of 256.
    IsolatedFor(Ipv4Addr),
    /// A network of this name that machines of this host share, and nobody else: it leads nowhere.
    Private(SegmentName),
    /// An existing tap interface.
    Tap(InterfaceName),
    /// A fresh tap interface on an existing bridge.
    Bridge(InterfaceName),
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.pad("user"),
            Self::Isolated => f.pad("isolated"),
            Self::IsolatedFor(address) => write!(f, "isolated:{address}"),
            Self::Private(segment) => write!(f, "private:{segment}"),
            Self::Tap(interface) => write!(f, "tap:{interface}"),
            Self::Bridge(bridge) => write!(f, "bridge:{bridge}"),
        }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl FromStr for Network {
    type Err = DefinitionError;

    fn from_str(text: &str) -> Result<Self, DefinitionError> {
        match text.split_once(':') {
            None if text == "user" => Ok(Self::User),
            None if text == "isolated" => Ok(Self::Isolated),
            Some(("isolated", address)) => {
                address.parse().map(Self::IsolatedFor).map_err(|_| DefinitionError::BadNetwork(text.to_owned()))
            }
            Some(("private", name)) => SegmentName::new(name).map(Self::Private),
            Some(("tap", name)) => InterfaceName::new(name).map(Self::Tap),
            Some(("bridge", name)) => InterfaceName::new(name).map(Self::Bridge),
            _ => Err(DefinitionError::BadNetwork(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = DefinitionError;

    fn try_from(text: String) -> Result<Self, DefinitionError> {
        text.parse()
    }
}

/// The name of a private network: 1 to 32 letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentName(String);

impl SegmentName {
    /// Takes a text for one.
    ///
    /// # Errors
    /// [`DefinitionError::BadNetwork`].
    pub fn new(text: &str) -> Result<Self, DefinitionError> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let fits = (1..=32).contains(&text.len()) && plain;
        if fits { Ok(Self(text.to_owned())) } else { Err(DefinitionError::BadNetwork(format!("private:{text}"))) }
    }

    /// Where its machines find each other: a multicast group of the loopback interface, so that nothing of it leaves the host, and
    /// a port. Names that fall on one place, of 2^30, would share a network.
    #[must_use]
    pub fn place(&self) -> (Ipv4Addr, u16) {
        let hash = blake3::hash(self.0.as_bytes());
        let [a, b, c, d, ..] = *hash.as_bytes();
        // Administratively scoped: RFC 2365, section 6.2, and ports that nobody else is given.
        (Ipv4Addr::new(239, 192 | (a & 3), b, c), 49152 | u16::from(d) << 5 | u16::from(a >> 3))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of a host network interface: 1 to 15 characters without `/`, blanks or commas.
///
/// Source: `dev_valid_name` of Linux' net/core/dev.c, and QEMU's option syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    fn new(text: &str) -> Result<Self, DefinitionError> {
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b','));
        if fits && plain { Ok(Self(text.to_owned())) } else { Err(DefinitionError::BadInterface(text.to_owned())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a text in a definition is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// No Ethernet address, or a multicast one.
    #[error("{0:?} is not a network card's address: write six bytes such as 52:54:00:12:34:56")]
    BadMac(String),
    /// No network that Keyframe knows.
    #[error("{0:?} is not a network: write user, none, tap:INTERFACE or bridge:BRIDGE")]
    BadNetwork(String),
    /// Something that QEMU would read as more than it is.
    #[error("{field} is {text:?}: it consists of letters, digits, '.', '-' and '_'")]
    NotPlain {
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
    },
    /// A further QEMU argument that would let part of the machine escape its snapshots.
    #[error(transparent)]
    Refused(#[from] crate::extra_args::RefusedArgument),
    /// No name of an interface.
    #[error("{0:?} cannot be the name of a network interface: 1 to 15 characters without '/', ':', ',' or blanks")]
    BadInterface(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_read_back_as_written() {
        for text in ["user", "isolated", "isolated:192.168.7.5", "tap:tap0", "bridge:br-lan"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in
            ["", "none", "tap", "tap:", "bridge:a,b=c", "isolated:", "isolated:x", "tap:0123456789abcdef", "vde:x"]
        {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_read_back_and_multicast_is_refused() {
        let mac = MacAddress::random();
        assert_eq!(MacAddress::try_from(mac.to_string()).unwrap(), mac);
        for text in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "53:54:00:12:34:56", "5254:0:12:34:56:78"] {
            assert!(MacAddress::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
