//! From a definition to a QEMU command line: a pure function, so that it can be read and tested.
//!
//! PCI addresses are spelled out for every device: a device's address is its name in the migration
//! stream, so two processes started from one definition must agree on it whatever QEMU's defaults are.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use keyframe_types::{DiskId, LayerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::definition::{Accelerator, Firmware, MachineDefinition, Network};

/// QEMU's id of the RAM block that holds the guest's RAM.
pub const RAM_BLOCK: &str = "ram0";

/// Id of the network card's device, and of its other end.
pub const NIC_DEVICE: &str = "nic0";
/// Id of the network card's other end.
pub const NIC_NETDEV: &str = "net0";
/// The port that the network card is plugged into; it can be unplugged there.
pub const NIC_PORT: &str = "nicport";

/// Id of the guest agent's channel on QEMU's side.
pub const AGENT_CHANNEL: &str = "agent0";

/// Name of the file, in the process's directory, that QEMU writes to when it is asked to shut down, and by whom.
pub const SHUTDOWN_LOG: &str = "shutdown.log";
/// What it is asked to write there. Source: system/trace-events of QEMU.
pub const SHUTDOWN_TRACE: &str = "qemu_system_shutdown_request";

/// Name of the file, in the process's directory, that QEMU removes when it has ended by itself and has closed its disks before.
pub(crate) const PID_FILE: &str = "qemu.pid";

/// The most disks a machine can have: PCI slots 0x08 to 0x17.
pub const MAX_DISKS: usize = 16;
const FIRST_DISK_SLOT: usize = 0x08;

/// Name of the flash disk that holds the firmware's variables.
pub const NVRAM_DISK: &str = "nvram";

/// Format of a layer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

impl LayerFormat {
    /// As QEMU's block drivers are named.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// One file of a disk's backing chain, as QEMU opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// Its id; QEMU's node name follows from it.
    pub id: LayerId,
    /// Absolute path of the file.
    pub path: PathBuf,
    /// Its format.
    pub format: LayerFormat,
    /// Whether the file system takes `O_DIRECT`.
    pub direct: bool,
}

/// QEMU's name of a layer's format node.
#[must_use]
pub fn node_name(layer: &LayerId) -> String {
    format!("l-{layer}")
}

/// Id of the device that shows `disk` to the guest.
#[must_use]
pub fn disk_device(disk: &DiskId) -> String {
    format!("d-{disk}")
}

/// A disk and its layers, the active one first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChain {
    /// Which disk.
    pub disk: DiskId,
    /// Its layers, the active one first.
    pub layers: Vec<LayerFile>,
    /// What the lowest of them stands on, where that is no file of this host's.
    pub base: Option<RemoteBase>,
}

/// Bytes that a server shows over NBD, below the lowest layer of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBase {
    /// QEMU's name for it.
    pub node: String,
    /// The server's unix socket; relative to QEMU's own directory it is short wherever the home lies.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

/// How long requests wait for a server that is gone until they fail: ten years. A guest waits, and is not told that its disk
/// is broken.
const RECONNECT_S: u32 = 10 * 365 * 24 * 3600;
/// How long a start waits for a server.
const OPEN_S: u32 = 30;

impl RemoteBase {
    /// It as `-blockdev` takes it. Source: `BlockdevOptionsNbd` in qapi/block-core.json.
    #[must_use]
    pub fn node(&self) -> Value {
        json!({
            "driver": "nbd",
            "node-name": self.node,
            "read-only": true,
            "server": {"type": "unix", "path": self.socket.to_string_lossy()},
            "export": self.export,
            "reconnect-delay": RECONNECT_S,
            "open-timeout": OPEN_S,
        })
    }
}

impl DiskChain {
    /// QEMU's name of the active layer's node, or none for a chain without layers.
    #[must_use]
    pub fn active_node(&self) -> Option<String> {
        self.layers.first().map(|layer| node_name(&layer.id))
    }
}

/// Where guest RAM comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RamBacking {
    /// Ordinary anonymous memory: what a machine needs to be snapshotted while it runs.
    Anonymous,
    /// A private mapping of a memory image, shared through the page cache until written to.
    Mapped {
        /// The memory image.
        image: PathBuf,
        /// Where the RAM block's pages begin in it, in bytes.
        pages_offset: u64,
    },
}

/// Listening sockets that QEMU inherits, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketNumbers {
    /// QMP for people and other programs.
    pub qmp: RawFd,
    /// QMP for the command at work.
    pub engine: RawFd,
    /// QMP for the process that watches over a command.
    pub guard: RawFd,
    /// QMP for whoever only looks.
    pub look: RawFd,
    /// The guest agent's channel.
    pub agent: RawFd,
    /// The serial console.
    pub console: RawFd,
    /// A tap interface, where the network wants one.
    pub tap: Option<RawFd>,
}

/// Whether the machine starts from its firmware or waits for a saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From the firmware.
    Cold,
    /// Waits for `migrate-incoming`.
    Incoming,
}

/// Paths of the firmware's read-only code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareCode(pub PathBuf);

/// Everything that decides the command line.
#[derive(Debug, Clone)]
pub struct LaunchPlan<'a> {
    /// The machine.
    pub definition: &'a MachineDefinition,
    /// What runs it.
    pub accelerator: Accelerator,
    /// Its disks in order.
    pub disks: &'a [DiskChain],
    /// The firmware's code and the chain of its variables, for UEFI.
    pub uefi: Option<(&'a FirmwareCode, &'a DiskChain)>,
    /// Where RAM comes from.
    pub ram: RamBacking,
    /// How it begins.
    pub start: Start,
    /// The generation id that tells the guest that it was cloned or reverted.
    pub generation_id: &'a str,
    /// Log of the serial console; appended to.
    pub serial_log: &'a Path,
}

/// A value inside QEMU's `key=value,…` syntax: a comma is doubled.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let bytes = path.as_os_str().as_bytes();
    let doubled = bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    OsString::from_vec(doubled.collect())
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(format!("-{name}").into());
        self.0.push(value.into());
    }

    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}").into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }
}

/// The arguments of the QEMU process for `plan`.
#[must_use]
pub fn arguments(plan: &LaunchPlan<'_>, sockets: &SocketNumbers) -> Vec<OsString> {
    let mut args = Arguments(Vec::new());
    machine(&mut args, plan);
    monitors(&mut args, plan, sockets);
    devices(&mut args, plan, sockets);
    for (slot, chain) in plan.disks.iter().enumerate() {
        disk(&mut args, slot, chain);
    }
    args.0.extend(plan.definition.extra_args.iter().map(OsString::from));
    args.0
}

fn machine(args: &mut Arguments, plan: &LaunchPlan<'_>) {
    let definition = plan.definition;
    args.option("name", format!("guest={},debug-threads=on", definition.name));
    args.option("uuid", definition.uuid.clone());
    args.flag("no-user-config");
    args.flag("nodefaults");
    args.option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.option("display", "none");
    // A guest that switches itself off ends QEMU without a word; this is the word.
    args.option("D", SHUTDOWN_LOG);
    args.option("trace", SHUTDOWN_TRACE);
    args.option("pidfile", PID_FILE);
    args.flag("S");
    if plan.start == Start::Incoming {
        args.option("incoming", "defer");
    }
    let mut machine = format!("{},memory-backend={RAM_BLOCK},hpet=off,vmport=off", definition.machine_type);
    if let Some((code, nvram)) = plan.uefi {
        blockdev_raw_firmware(args, code);
        blockdev_chain(args, nvram);
        if let Some(node) = nvram.active_node() {
            machine.push_str(&format!(",pflash0=fw-code,pflash1={node}"));
        }
    }
    args.option("machine", machine);
    args.option(
        "accel",
        match plan.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        },
    );
    args.option("cpu", plan.accelerator.cpu_model());
    args.option("smp", definition.cpus.to_string());
    args.option("m", format!("{}M", definition.memory_mib));
    let mut ram = OsString::new();
    match &plan.ram {
        RamBacking::Anonymous => {
            ram.push(format!("memory-backend-ram,id={RAM_BLOCK},size={}M", definition.memory_mib));
        }
        RamBacking::Mapped { image, pages_offset } => {
            ram.push(format!("memory-backend-file,id={RAM_BLOCK},size={}M", definition.memory_mib));
            ram.push(format!(",offset={pages_offset},share=off,readonly=on,rom=off,mem-path="));
            ram.push(escaped(image));
        }
    }
    args.option("object", ram);
    args.option("rtc", "base=utc,clock=host");
    if let Some(kernel) = &definition.kernel {
        args.option("kernel", kernel.kernel.as_os_str());
        if let Some(initrd) = &kernel.initrd {
            args.option("initrd", initrd.as_os_str());
        }
        args.option("append", kernel.append.clone());
    }
}

fn monitors(args: &mut Arguments, plan: &LaunchPlan<'_>, sockets: &SocketNumbers) {
    for (id, fd) in [("qmp", sockets.qmp), ("engine", sockets.engine), ("guard", sockets.guard), ("look", sockets.look)]
    {
        args.option("chardev", format!("socket,id=mon-{id},fd={fd},server=on,wait=off"));
        args.option("mon", format!("chardev=mon-{id},mode=control"));
    }
    args.option("chardev", format!("socket,id={AGENT_CHANNEL},fd={},server=on,wait=off", sockets.agent));
    let mut console = OsString::from(format!("socket,id=serial0,fd={},server=on,wait=off", sockets.console));
    console.push(",logappend=on,logfile=");
    console.push(escaped(plan.serial_log));
    args.option("chardev", console);
    args.option("serial", "chardev:serial0");
}

fn devices(args: &mut Arguments, plan: &LaunchPlan<'_>, sockets: &SocketNumbers) {
    args.option("device", "VGA,bus=pcie.0,addr=0x1,vgamem_mb=16");
    args.option("device", "virtio-rng-pci,bus=pcie.0,addr=0x2,id=rng0");
    args.option("device", "virtio-serial-pci,bus=pcie.0,addr=0x3,id=vserial0");
    args.option(
        "device",
        format!("virtserialport,bus=vserial0.0,nr=1,chardev={AGENT_CHANNEL},name=org.qemu.guest_agent.0"),
    );
    args.option("device", format!("pcie-root-port,id={NIC_PORT},bus=pcie.0,addr=0x4,chassis=1"));
    args.option("device", format!("vmgenid,guid={}", plan.generation_id));
    if let Some(nic) = &plan.definition.nic {
        args.option("netdev", netdev(&nic.network, sockets.tap));
        if matches!(nic.network, Network::Private(_)) {
            // A running state that was on a user-mode network has something for one, and QEMU takes it nowhere else. Nothing is
            // plugged into this one.
            args.option("netdev", format!("user,id={NIC_NETDEV}-unplugged,restrict=on"));
        }
        args.json("device", &nic_device(&nic.mac.to_string()));
    }
}

/// The network card as QEMU's `device_add` and `-device` take it.
#[must_use]
pub fn nic_device(mac: &str) -> Value {
    json!({"driver": "virtio-net-pci", "id": NIC_DEVICE, "bus": NIC_PORT, "netdev": NIC_NETDEV, "mac": mac, "romfile": ""})
}

fn netdev(network: &Network, tap: Option<RawFd>) -> String {
    match (network, tap) {
        (Network::Tap(_) | Network::Bridge(_), Some(fd)) => format!("tap,id={NIC_NETDEV},fd={fd}"),
        (Network::User, _) => format!("user,id={NIC_NETDEV}"),
        (Network::IsolatedFor(address), _) => format!("{}{}", isolated_netdev(), around(*address)),
        (Network::Private(segment), _) => {
            let (group, port) = segment.place();
            format!("socket,id={NIC_NETDEV},mcast={group}:{port},localaddr=127.0.0.1")
        }
        (Network::Isolated | Network::Tap(_) | Network::Bridge(_), _) => isolated_netdev(),
    }
}

fn isolated_netdev() -> String {
    format!("user,id={NIC_NETDEV},restrict=on")
}

/// A user-mode network in which `guest` is the guest's address: its other inhabitants are elsewhere.
fn around(guest: Ipv4Addr) -> String {
    let [a, b, c, own] = guest.octets();
    let mut free = (1..=254_u8).filter(|&last| last != own).map(|last| Ipv4Addr::new(a, b, c, last));
    let (host, dns) = (free.next().unwrap_or(guest), free.next().unwrap_or(guest));
    format!(",net={a}.{b}.{c}.0/24,host={host},dns={dns},dhcpstart={guest}")
}

fn disk(args: &mut Arguments, slot: usize, chain: &DiskChain) {
    blockdev_chain(args, chain);
    if let Some(node) = chain.active_node() {
        args.json(
            "device",
            &json!({
                "driver": "virtio-blk-pci",
                "id": disk_device(&chain.disk),
                "drive": node,
                "bus": "pcie.0",
                "addr": format!("{:#x}", FIRST_DISK_SLOT + slot),
                "serial": chain.disk.as_str(),
                "bootindex": slot + 1,
            }),
        );
    }
}

/// Adds the nodes of a chain, the base first, all but the active layer read-only.
fn blockdev_chain(args: &mut Arguments, chain: &DiskChain) {
    let mut below: Option<String> = None;
    if let Some(base) = &chain.base {
        args.json("blockdev", &base.node());
        below = Some(base.node.clone());
    }
    for (height, layer) in chain.layers.iter().enumerate().rev() {
        let access = if height == 0 { LayerAccess::Active } else { LayerAccess::Frozen };
        args.json("blockdev", &layer_node(layer, access, below.as_deref()));
        below = Some(node_name(&layer.id));
    }
}

/// How QEMU opens a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerAccess {
    /// The active layer: written to.
    Active,
    /// A frozen layer: read-only.
    Frozen,
}

/// A layer as `-blockdev` and `blockdev-add` take it, on top of the node `backing`.
///
/// Source: `BlockdevOptions` in qapi/block-core.json.
#[must_use]
pub fn layer_node(layer: &LayerFile, access: LayerAccess, backing: Option<&str>) -> Value {
    let read_only = access == LayerAccess::Frozen;
    let cache = json!({"direct": layer.direct, "no-flush": false});
    let mut node = json!({
        "driver": layer.format.as_str(),
        "node-name": node_name(&layer.id),
        "read-only": read_only,
        "discard": "unmap",
        "cache": cache,
        "file": {
            "driver": "file",
            "node-name": format!("f-{}", layer.id),
            "filename": layer.path.to_string_lossy(),
            "discard": "unmap",
            "cache": cache,
            "aio": "threads",
        },
    });
    if layer.format == LayerFormat::Qcow2 {
        node["backing"] = backing.map_or(Value::Null, Value::from);
    }
    node
}

fn blockdev_raw_firmware(args: &mut Arguments, code: &FirmwareCode) {
    args.json(
        "blockdev",
        &json!({
            "driver": "raw",
            "node-name": "fw-code",
            "read-only": true,
            "file": {"driver": "file", "filename": code.0.to_string_lossy(), "read-only": true},
        }),
    );
}

/// Whether a definition of `firmware` needs [`LaunchPlan::uefi`].
#[must_use]
pub fn needs_nvram(firmware: Firmware) -> bool {
    firmware == Firmware::Uefi
}

#[cfg(test)]
mod tests {
    use keyframe_types::VmName;

    use super::*;
    use crate::definition::{AccelChoice, MacAddress, Nic};

    fn definition() -> MachineDefinition {
        MachineDefinition {
            schema: MachineDefinition::SCHEMA.into(),
            name: VmName::new("db").unwrap(),
            uuid: "00000000-0000-0000-0000-000000000000".into(),
            memory_mib: 512,
            cpus: 2,
            machine_type: "pc-q35-10.0".into(),
            accel: AccelChoice::Tcg,
            firmware: Firmware::Bios,
            nic: Some(Nic { mac: MacAddress::random(), network: "bridge:br0".parse().unwrap() }),
            kernel: None,
            disks: vec![],
            probes: vec![],
            cost: None,
            tags: Vec::new(),
            extra_args: vec!["-usb".into()],
        }
    }

    fn chain() -> DiskChain {
        let layer = |path: &str, format| LayerFile { id: LayerId::random(), path: path.into(), format, direct: true };
        DiskChain {
            disk: DiskId::new("disk0").unwrap(),
            layers: vec![layer("/l/top.qcow2", LayerFormat::Qcow2), layer("/base,1.img", LayerFormat::Raw)],
            base: None,
        }
    }

    fn built(plan: &LaunchPlan<'_>) -> Vec<String> {
        let sockets = SocketNumbers { qmp: 3, engine: 4, guard: 5, look: 9, agent: 6, console: 7, tap: Some(8) };
        arguments(plan, &sockets).into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn only_the_active_layer_is_written_to() {
        let (definition, disks) = (definition(), [chain()]);
        let plan = LaunchPlan {
            definition: &definition,
            accelerator: Accelerator::Tcg,
            disks: &disks,
            uefi: None,
            ram: RamBacking::Anonymous,
            start: Start::Cold,
            generation_id: "auto",
            serial_log: Path::new("/run/a,b/serial.log"),
        };
        let args = built(&plan);
        let nodes: Vec<Value> = args
            .windows(2)
            .filter(|pair| pair[0] == "-blockdev")
            .map(|pair| serde_json::from_str(&pair[1]).unwrap())
            .collect();
        assert_eq!(nodes.len(), 2);
        assert_eq!((&nodes[0]["driver"], &nodes[0]["read-only"]), (&json!("raw"), &json!(true)));
        assert_eq!((&nodes[1]["driver"], &nodes[1]["read-only"]), (&json!("qcow2"), &json!(false)));
        assert_eq!(nodes[1]["backing"], nodes[0]["node-name"]);
        assert!(args.iter().any(|arg| arg.ends_with("logfile=/run/a,,b/serial.log")), "{args:?}");
        assert!(args.contains(&"tap,id=net0,fd=8".to_owned()));
        assert_eq!(args.last().unwrap(), "-usb");
    }

    #[test]
    fn a_chain_may_stand_on_what_a_server_shows() {
        let mut chain = chain();
        chain.layers.truncate(1);
        let base = RemoteBase { node: "r-disk0".into(), socket: "../boot/disk0.sock".into(), export: "disk0".into() };
        chain.base = Some(base);
        let (mut args, top) = (Arguments(Vec::new()), node_name(&chain.layers[0].id));
        blockdev_chain(&mut args, &chain);
        let nodes: Vec<Value> =
            args.0.chunks(2).map(|pair| serde_json::from_str(pair[1].to_str().unwrap()).unwrap()).collect();
        let said = [&nodes[0]["node-name"], &nodes[0]["read-only"], &nodes[1]["node-name"], &nodes[1]["backing"]];
        assert_eq!(said, [&json!("r-disk0"), &json!(true), &json!(top), &json!("r-disk0")]);
        assert!(nodes[0]["reconnect-delay"].as_u64() > Some(1_000_000), "a guest waits and is told no error");
    }

    #[test]
    fn a_private_network_has_room_for_the_guests_own_address() {
        let around = |text: &str| around(text.parse().unwrap());
        assert_eq!(around("10.1.2.5"), ",net=10.1.2.0/24,host=10.1.2.1,dns=10.1.2.2,dhcpstart=10.1.2.5");
        assert_eq!(around("10.1.2.1"), ",net=10.1.2.0/24,host=10.1.2.2,dns=10.1.2.3,dhcpstart=10.1.2.1");
    }

    #[test]
    fn a_fork_without_a_way_out_never_touches_the_tap() {
        let nic = Some(Nic { mac: MacAddress::random(), network: Network::Isolated });
        let definition = MachineDefinition { nic, ..definition() };
        let plan = LaunchPlan {
            definition: &definition,
            accelerator: Accelerator::Tcg,
            disks: &[],
            uefi: None,
            ram: RamBacking::Mapped { image: "/m,m".into(), pages_offset: 4096 },
            start: Start::Incoming,
            generation_id: "auto",
            serial_log: Path::new("/s"),
        };
        let args = built(&plan);
        assert!(args.contains(&"user,id=net0,restrict=on".to_owned()), "{args:?}");
        assert!(args.iter().any(|arg| arg.ends_with("readonly=on,rom=off,mem-path=/m,,m")));
        assert!(args.windows(2).any(|pair| pair[0] == "-incoming" && pair[1] == "defer"));
    }
}
