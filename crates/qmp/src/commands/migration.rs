//! Migration: how QEMU writes and reads a machine's state.

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::{Empty, command};
use crate::error::{Error, Result};
use crate::ids::FdName;

open_enum! {
    /// Source: `qapi/migration.json`, `MigrationStatus`.
    pub enum MigrationStatus {
        /// There was none.
        None = "none",
        /// Is being set up.
        Setup = "setup",
        /// Is being cancelled.
        Cancelling = "cancelling",
        /// Was cancelled.
        Cancelled = "cancelled",
        /// Is going on.
        Active = "active",
        /// The destination runs and fetches pages.
        PostcopyActive = "postcopy-active",
        /// Postcopy lost its connection and waits for a recovery.
        PostcopyPaused = "postcopy-paused",
        /// A recovery is being set up.
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// A recovery is going on.
        PostcopyRecover = "postcopy-recover",
        /// Is done.
        Completed = "completed",
        /// Has failed.
        Failed = "failed",
        /// Coarse-grained lock-stepping.
        Colo = "colo",
        /// Paused before devices are written.
        PreSwitchover = "pre-switchover",
        /// Devices are being written.
        Device = "device",
        /// Waits for the guest to release a device.
        WaitUnplug = "wait-unplug",
    }
}

impl MigrationStatus {
    /// Whether it ended, one way or the other.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

open_enum! {
    /// Source: `qapi/migration.json`, `MigrationCapability`.
    pub enum Capability {
        /// MIGRATION events.
        Events = "events",
        /// RAM of one instant while the guest runs.
        BackgroundSnapshot = "background-snapshot",
        /// Every page at a fixed offset of a file.
        MappedRam = "mapped-ram",
        /// Pages may follow after the destination runs.
        PostcopyRam = "postcopy-ram",
        /// Requested pages overtake others, on a channel of their own.
        PostcopyPreempt = "postcopy-preempt",
        /// Statistics of how long vCPUs waited for pages.
        PostcopyBlocktime = "postcopy-blocktime",
        /// Several channels.
        Multifd = "multifd",
        /// The destination answers.
        ReturnPath = "return-path",
        /// The machines' UUIDs must be the same.
        ValidateUuid = "validate-uuid",
        /// Disks are activated at `cont`, not before.
        LateBlockActivate = "late-block-activate",
        /// Shared memory is not written.
        IgnoreShared = "x-ignore-shared",
        /// Wait for `migrate-continue` before devices are written.
        PauseBeforeSwitchover = "pause-before-switchover",
        /// Bitmaps of disks are written.
        DirtyBitmaps = "dirty-bitmaps",
    }
}

/// One capability, on or off. Source: `qapi/migration.json`, `MigrationCapabilityStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityState {
    /// Which.
    pub capability: Capability,
    /// On or off.
    pub state: bool,
}

/// Capabilities that are not named keep their state. Refused as a whole where a pair does not go
/// together. Source: `qapi/migration.json`, `migrate-set-capabilities`.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateSetCapabilities {
    capabilities: Vec<CapabilityState>,
}
command!(MigrateSetCapabilities, "migrate-set-capabilities" -> Empty);

impl MigrateSetCapabilities {
    /// These, each with its state.
    #[must_use]
    pub fn new(states: impl IntoIterator<Item = CapabilityState>) -> Self {
        Self { capabilities: states.into_iter().collect() }
    }

    /// Turns these on.
    #[must_use]
    pub fn on(which: impl IntoIterator<Item = Capability>) -> Self {
        Self::new(which.into_iter().map(|capability| CapabilityState { capability, state: true }))
    }

    /// Turns these off.
    #[must_use]
    pub fn off(which: impl IntoIterator<Item = Capability>) -> Self {
        Self::new(which.into_iter().map(|capability| CapabilityState { capability, state: false }))
    }
}

/// Source: `qapi/migration.json`, `query-migrate-capabilities`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryMigrateCapabilities {}
command!(QueryMigrateCapabilities, "query-migrate-capabilities" -> Vec<CapabilityState>);

/// What is `None` keeps its value. Source: `qapi/migration.json`, `migrate-set-parameters`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateSetParameters {
    /// Bytes per second; 0 for no limit. Ignored by background snapshots.
    #[serde(rename = "max-bandwidth", skip_serializing_if = "Option::is_none")]
    pub max_bandwidth_bytes_per_s: Option<u64>,
    /// Bytes per second of pages pushed in postcopy; 0 for no limit.
    #[serde(rename = "max-postcopy-bandwidth", skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth_bytes_per_s: Option<u64>,
    /// Longest pause that precopy aims at.
    #[serde(rename = "downtime-limit", skip_serializing_if = "Option::is_none")]
    pub downtime_limit_ms: Option<u64>,
    /// Channels of multifd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    /// Pages of a mapped-ram file are written and read with O_DIRECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_io: Option<bool>,
    /// Announcements of the network after a migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
}
command!(MigrateSetParameters, "migrate-set-parameters" -> Empty);

/// Where a migration goes or comes from. Source: `qapi/migration.json`, `MigrationAddress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationAddress {
    /// A unix socket. QEMU connects to it, or listens on it when the migration comes in.
    Unix {
        /// Its path, at most 107 bytes.
        path: String,
    },
    /// A descriptor given with [`GetFd`](super::machine::GetFd).
    Fd {
        /// Its name.
        name: FdName,
    },
    /// A file, or a set of descriptors by its path.
    File {
        /// Its path.
        filename: String,
        /// Where in it the stream starts, in bytes.
        offset: u64,
    },
}

impl Serialize for MigrationAddress {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(3))?;
        match self {
            Self::Unix { path } => {
                map.serialize_entry("transport", "socket")?;
                map.serialize_entry("type", "unix")?;
                map.serialize_entry("path", path)?;
            }
            Self::Fd { name } => {
                map.serialize_entry("transport", "socket")?;
                map.serialize_entry("type", "fd")?;
                map.serialize_entry("str", name)?;
            }
            Self::File { filename, offset } => {
                map.serialize_entry("transport", "file")?;
                map.serialize_entry("filename", filename)?;
                map.serialize_entry("offset", offset)?;
            }
        }
        map.end()
    }
}

/// One channel. Source: `qapi/migration.json`, `MigrationChannel`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MigrationChannel {
    channel_type: &'static str,
    addr: MigrationAddress,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
enum Endpoint {
    Uri(MigrationUri),
    Channels([MigrationChannel; 1]),
}

impl Endpoint {
    fn main(addr: MigrationAddress) -> Self {
        Self::Channels([MigrationChannel { channel_type: "main", addr }])
    }
}

/// The older way to say where: one string. Source: `qapi/migration.json`, `migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MigrationUri(String);

impl MigrationUri {
    /// A URI in QEMU's spelling, such as `unix:/path`.
    ///
    /// # Errors
    /// [`Error::BadName`] where it has no scheme.
    pub fn new(uri: impl Into<String>) -> Result<Self> {
        let uri = uri.into();
        let known = ["tcp:", "unix:", "vsock:", "fd:", "exec:", "rdma:", "file:", "defer"];
        if known.iter().any(|scheme| uri.starts_with(scheme)) {
            return Ok(Self(uri));
        }
        Err(Error::BadName { kind: "migration URI", name: uri, rule: "starts with a scheme such as unix: or file:" })
    }
}

/// Writes the machine's state. The reply says that it began; status by [`QueryMigrate`] and, with
/// capability `events`, by MIGRATION events. Source: `qapi/migration.json`, `migrate`.
#[derive(Debug, Clone, Serialize)]
pub struct Migrate {
    #[serde(flatten)]
    to: Endpoint,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    resume: bool,
}
command!(Migrate, "migrate" -> Empty);

impl Migrate {
    /// To this address.
    #[must_use]
    pub fn to(address: MigrationAddress) -> Self {
        Self { to: Endpoint::main(address), resume: false }
    }

    /// To this URI.
    #[must_use]
    pub fn to_uri(uri: MigrationUri) -> Self {
        Self { to: Endpoint::Uri(uri), resume: false }
    }

    /// Resumes a paused postcopy migration instead of beginning one.
    #[must_use]
    pub fn resuming(self) -> Self {
        Self { resume: true, ..self }
    }
}

/// Loads a machine's state into a QEMU started with `-incoming defer`.
/// Source: `qapi/migration.json`, `migrate-incoming`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateIncoming {
    #[serde(flatten)]
    from: Endpoint,
    exit_on_error: bool,
}
command!(MigrateIncoming, "migrate-incoming" -> Empty);

impl MigrateIncoming {
    /// From this address. A load that fails leaves QEMU there, to be asked why
    /// ([`Migration::error_desc`]).
    #[must_use]
    pub fn from(address: MigrationAddress) -> Self {
        Self { from: Endpoint::main(address), exit_on_error: false }
    }

    /// From this URI, otherwise the same.
    #[must_use]
    pub fn from_uri(uri: MigrationUri) -> Self {
        Self { from: Endpoint::Uri(uri), exit_on_error: false }
    }
}

/// Gives a paused postcopy destination a new address to listen on. Runs out of band, because the
/// main loop may wait for a page. Source: `qapi/migration.json`, `migrate-recover`.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateRecover {
    /// Where to listen.
    pub uri: MigrationUri,
}
command!(MigrateRecover, oob "migrate-recover" -> Empty);

/// Pauses a postcopy migration. Source: `qapi/migration.json`, `migrate-pause`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MigratePause {}
command!(MigratePause, oob "migrate-pause" -> Empty);

/// Cancels a migration that goes out; its end is still to be waited for.
/// Source: `qapi/migration.json`, `migrate_cancel`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MigrateCancel {}
command!(MigrateCancel, "migrate_cancel" -> Empty);

/// Source: `qapi/migration.json`, `query-migrate`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryMigrate {}
command!(QueryMigrate, "query-migrate" -> Migration);

/// Source: `qapi/migration.json`, `MigrationInfo`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migration {
    /// `None` before the first migration.
    pub status: Option<MigrationStatus>,
    /// `None` before RAM is looked at.
    pub ram: Option<RamStats>,
    /// From its beginning to its end or until now.
    #[serde(rename = "total-time")]
    pub total_ms: Option<u64>,
    /// Until RAM begins.
    #[serde(rename = "setup-time")]
    pub setup_ms: Option<u64>,
    /// Pause, as QEMU measured it.
    #[serde(rename = "downtime")]
    pub downtime_ms: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// What forbids migrating this machine.
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
    /// How long vCPUs waited for pages.
    #[serde(rename = "postcopy-blocktime")]
    pub postcopy_blocktime_ms: Option<u32>,
}

impl Migration {
    /// Whether RAM pages were written: with background snapshots this tells that RAM is protected.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.ram.as_ref().is_some_and(|ram| ram.normal > 0 || ram.duplicate > 0)
    }
}

/// Source: `qapi/migration.json`, `MigrationStats`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamStats {
    /// Bytes written.
    #[serde(rename = "transferred")]
    pub transferred_bytes: u64,
    /// Bytes of RAM not written yet.
    #[serde(rename = "remaining")]
    pub remaining_bytes: u64,
    /// Bytes of RAM.
    #[serde(rename = "total")]
    pub total_bytes: u64,
    /// Zero pages.
    pub duplicate: u64,
    /// Other pages.
    pub normal: u64,
    /// Requests of a postcopy destination.
    #[serde(default)]
    pub postcopy_requests: u64,
    /// Page size.
    #[serde(rename = "page-size")]
    pub page_bytes: u64,
}
