//! The machine as a whole: run state, vCPUs, version, file descriptors.

use serde::{Deserialize, Serialize};

use super::{Empty, command};
use crate::codec::Version;
use crate::ids::FdName;

open_enum! {
    /// What the machine does. Source: `qapi/run-state.json`, `RunState`.
    pub enum RunState {
        /// Waits for a debugger.
        Debug = "debug",
        /// Waits for an incoming migration or loads it.
        InMigrate = "inmigrate",
        /// An internal error stopped it.
        InternalError = "internal-error",
        /// An I/O error of a disk stopped it.
        IoError = "io-error",
        /// Stopped by `stop`.
        Paused = "paused",
        /// Stopped after its migration went out.
        PostMigrate = "postmigrate",
        /// Started with `-S`, never run.
        Prelaunch = "prelaunch",
        /// Stopped to finish a migration.
        FinishMigrate = "finish-migrate",
        /// Stopped to load a snapshot of QEMU's own.
        RestoreVm = "restore-vm",
        /// Runs.
        Running = "running",
        /// Stopped to save a snapshot.
        SaveVm = "save-vm",
        /// The guest shut down, QEMU stays (`-no-shutdown`).
        Shutdown = "shutdown",
        /// The guest sleeps.
        Suspended = "suspended",
        /// The watchdog stopped it.
        Watchdog = "watchdog",
        /// The guest panicked.
        GuestPanicked = "guest-panicked",
        /// Coarse-grained lock-stepping.
        Colo = "colo",
    }
}

/// Source: `qapi/run-state.json`, `query-status`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryStatus {}
command!(QueryStatus, "query-status" -> Status);

/// Source: `qapi/run-state.json`, `StatusInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Whether vCPUs run.
    pub running: bool,
    /// Why they do or do not.
    pub status: RunState,
}

/// Stops the vCPUs. Source: `qapi/misc.json`, `stop`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stop {}
command!(Stop, "stop" -> Empty);

/// Lets the vCPUs run. Source: `qapi/misc.json`, `cont`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cont {}
command!(Cont, "cont" -> Empty);

/// Ends QEMU at once. Its reply may be lost with the connection. Source: `qapi/control.json`, `quit`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quit {}
command!(Quit, "quit" -> Empty);

/// Presses the ACPI power button. Source: `qapi/machine.json`, `system_powerdown`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SystemPowerdown {}
command!(SystemPowerdown, "system_powerdown" -> Empty);

/// Resets the machine. Source: `qapi/machine.json`, `system_reset`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SystemReset {}
command!(SystemReset, "system_reset" -> Empty);

/// Source: `qapi/control.json`, `query-version`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryVersion {}
command!(QueryVersion, "query-version" -> Version);

/// Refused where the machine has no vmgenid device. Source: `qapi/machine.json`, `query-vm-generation-id`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryVmGenerationId {}
command!(QueryVmGenerationId, "query-vm-generation-id" -> Guid);

/// Source: `qapi/machine.json`, `GuidInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Guid {
    /// The generation, as a UUID.
    pub guid: String,
}

/// Source: `qapi/machine.json`, `query-cpus-fast`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryCpusFast {}
command!(QueryCpusFast, "query-cpus-fast" -> Vec<Cpu>);

/// Source: `qapi/machine.json`, `CpuInfoFast`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// Number of the vCPU, from 0.
    pub cpu_index: u32,
    /// Its thread on the host. All vCPUs may share one (TCG without threads).
    pub thread_id: i32,
    /// Its object in QEMU.
    pub qom_path: String,
}

/// Source: `qapi/machine.json`, `query-memdev`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryMemdev {}
command!(QueryMemdev, "query-memdev" -> Vec<MemoryBackend>);

/// Source: `qapi/machine.json`, `Memdev`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemoryBackend {
    /// Its id, where it has one.
    pub id: Option<String>,
    /// Its size.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// Whether other processes may see changes.
    #[serde(default)]
    pub share: bool,
}

/// Gives QEMU a named file descriptor, sent along by
/// [`Client::call_with_fd`](crate::Client::call_with_fd). Source: `qapi/misc.json`, `getfd`.
#[derive(Debug, Clone, Serialize)]
pub struct GetFd {
    /// Name to keep it under; one that exists is replaced.
    pub fdname: FdName,
}
command!(GetFd, "getfd" -> Empty);

/// Source: `qapi/misc.json`, `closefd`.
#[derive(Debug, Clone, Serialize)]
pub struct CloseFd {
    /// Name given with [`GetFd`].
    pub fdname: FdName,
}
command!(CloseFd, "closefd" -> Empty);

/// A set of file descriptors in QEMU, opened there as `/dev/fdset/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdSetId(i64);

impl FdSetId {
    /// The path by which QEMU opens it.
    #[must_use]
    pub fn path(self) -> String {
        format!("/dev/fdset/{}", self.0)
    }
}

/// Adds a file descriptor, sent along by [`Client::call_with_fd`](crate::Client::call_with_fd), to a
/// set. QEMU opens the set's path only where one of its descriptors has the very access mode asked
/// for: a read-only node needs one opened read-only. Source: `qapi/misc.json`, `add-fd`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AddFd {
    /// Set to add to; a new one if `None`.
    #[serde(rename = "fdset-id", skip_serializing_if = "Option::is_none")]
    pub fdset: Option<FdSetId>,
    /// Free text to recognise it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
}
command!(AddFd, "add-fd" -> AddedFd);

/// Source: `qapi/misc.json`, `AddfdInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct AddedFd {
    /// The set.
    #[serde(rename = "fdset-id")]
    pub fdset: FdSetId,
    /// The descriptor's number in QEMU.
    pub fd: i32,
}

/// Removes a set. Descriptors that QEMU uses stay open until it closes them.
/// Source: `qapi/misc.json`, `remove-fd`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RemoveFd {
    /// The set.
    #[serde(rename = "fdset-id")]
    pub fdset: FdSetId,
}
command!(RemoveFd, "remove-fd" -> Empty);

/// A line of the human monitor; its output has no stable form.
/// Source: `qapi/misc.json`, `human-monitor-command`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The line.
    pub command_line: String,
}
command!(HumanMonitorCommand, "human-monitor-command" -> String);
