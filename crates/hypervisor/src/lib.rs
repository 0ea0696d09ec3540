//! Starting, reaching, cutting and resuming machines on stock QEMU.
//!
//! | module | what |
//! |---|---|
//! | [`definition`] | what a machine is made of |
//! | [`probe`] | what a machine that works can do |
//! | [`isolation`] | hardware without any way out |
//! | [`extra_args`] | which further QEMU arguments are refused, and why |
//! | [`launch`] | from a definition to a command line; pure |
//! | [`host`] | what this host offers, by doing it |
//! | [`process`] | processes that outlive us |
//! | [`instance`] | one QEMU process: start it, find it again, reach it |
//! | [`network`] | tap interfaces |
//! | [`cut`] | memory and disks of one instant |
//! | [`load`] | a saved state into a fresh process |
//! | [`merge`] | layers into one another, by QEMU's block jobs |
//! | [`tracking`] | what is written to a layer from some instant on |
//! | [`fleecing`] | disks as they were at one instant, while the guest writes on |
//! | [`latency`] | how long a guest waits for its disks |
//! | [`storage`] | QEMU's block layer without a machine |
//! | [`stall`] | how long vCPUs wait |
//!
//! Nothing here knows of homes, manifests or snapshots' names: that is the engine's.

pub mod cut;
pub mod definition;
mod error;
pub mod extra_args;
pub mod fleecing;
pub mod host;
pub mod instance;
pub mod isolation;
pub mod latency;
pub mod launch;
pub mod load;
pub mod merge;
pub mod network;
pub mod probe;
pub mod process;
pub mod socket;
pub mod stall;
pub mod storage;
pub mod tracking;

pub use definition::{
    AccelChoice, Accelerator, DirectKernel, DiskDefinition, Firmware, MacAddress, MachineDefinition, Network, Nic,
};
pub use error::Error;
pub use host::{HostError, KvmState, Qemu, QemuVersion};
pub use instance::{InstanceRecord, Monitor};
pub use launch::{DiskChain, LayerFile, LayerFormat, RemoteBase};
pub use probe::ProbeDefinition;
