//! Disks: nodes, overlays, statistics.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Empty, command};
use crate::ids::{JobId, NodeName};

/// What a new node reads where it has nothing itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeBacking {
    /// What the file's header says.
    FromHeader,
    /// Nothing yet: the node is going to be put on top of another by [`Snapshot`].
    Detached,
    /// Another node.
    Node(NodeName),
}

/// Adds a node to the block graph. Source: `qapi/block-core.json`, `blockdev-add`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockdevAdd(Map<String, Value>);
command!(BlockdevAdd, "blockdev-add" -> Empty);

impl BlockdevAdd {
    /// Any node, by its options (`BlockdevOptions`).
    #[must_use]
    pub fn new(options: Map<String, Value>) -> Self {
        Self(options)
    }

    /// A qcow2 file.
    #[must_use]
    pub fn qcow2(node: &NodeName, filename: &str, backing: &NodeBacking) -> Self {
        let mut options = Map::new();
        options.insert("driver".into(), "qcow2".into());
        options.insert("node-name".into(), node.as_str().into());
        options.insert("file".into(), json!({"driver": "file", "filename": filename}));
        match backing {
            NodeBacking::FromHeader => {}
            NodeBacking::Detached => drop(options.insert("backing".into(), Value::Null)),
            NodeBacking::Node(name) => drop(options.insert("backing".into(), name.as_str().into())),
        }
        Self(options)
    }

    /// With one more option, such as `discard` or `cache`.
    #[must_use]
    pub fn with(mut self, option: &str, value: impl Into<Value>) -> Self {
        self.0.insert(option.to_owned(), value.into());
        self
    }
}

/// Removes a node that nothing uses. Source: `qapi/block-core.json`, `blockdev-del`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockdevDel {
    /// Which.
    pub node_name: NodeName,
}
command!(BlockdevDel, "blockdev-del" -> Empty);

/// Puts a node on top of another: from now on writes go to the overlay.
/// Source: `qapi/block-core.json`, `BlockdevSnapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// What is active now, and will be frozen.
    pub node: NodeName,
    /// What will be active, added with [`NodeBacking::Detached`].
    pub overlay: NodeName,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
enum Action {
    BlockdevSnapshot(Snapshot),
}

/// Does all or nothing, at one instant for all disks. Source: `qapi/transaction.json`, `transaction`.
#[derive(Debug, Clone, Serialize)]
pub struct Transaction {
    actions: Vec<Action>,
}
command!(Transaction, "transaction" -> Empty);

impl Transaction {
    /// Puts each overlay on its node.
    #[must_use]
    pub fn snapshots(all: impl IntoIterator<Item = Snapshot>) -> Self {
        Self { actions: all.into_iter().map(Action::BlockdevSnapshot).collect() }
    }
}

/// Which block devices to tell about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsOf {
    /// Those that guests see: device names, and statistics of requests (idle time, counts).
    Devices,
    /// All nodes: names, without statistics of requests.
    Nodes,
}

/// Source: `qapi/block-core.json`, `query-blockstats`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueryBlockstats {
    query_nodes: bool,
}
command!(QueryBlockstats, "query-blockstats" -> Vec<BlockStats>);

impl QueryBlockstats {
    /// About these.
    #[must_use]
    pub fn of(which: StatsOf) -> Self {
        Self { query_nodes: which == StatsOf::Nodes }
    }
}

/// Source: `qapi/block-core.json`, `BlockStats`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStats {
    /// Backend's name; empty where it has none.
    #[serde(default)]
    pub device: String,
    /// The device's id or path.
    pub qdev: Option<String>,
    /// The node directly under the device.
    pub node_name: Option<NodeName>,
    /// The figures.
    pub stats: BlockDeviceStats,
}

/// Source: `qapi/block-core.json`, `BlockDeviceStats`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockDeviceStats {
    /// Nanoseconds since the last request completed; `None` where there never was one.
    pub idle_time_ns: Option<u64>,
    /// Reads completed.
    pub rd_operations: u64,
    /// Writes completed.
    pub wr_operations: u64,
    /// Flushes completed.
    pub flush_operations: u64,
    /// Discards completed.
    #[serde(default)]
    pub unmap_operations: u64,
    /// Bytes read.
    pub rd_bytes: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Reads failed.
    #[serde(default)]
    pub failed_rd_operations: u64,
    /// Writes failed.
    #[serde(default)]
    pub failed_wr_operations: u64,
    /// What completed reads took together, in nanoseconds.
    #[serde(default)]
    pub rd_total_time_ns: u64,
    /// The same of writes.
    #[serde(default)]
    pub wr_total_time_ns: u64,
    /// The same of flushes.
    #[serde(default)]
    pub flush_total_time_ns: u64,
}

/// Source: `qapi/block-core.json`, `query-block`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryBlock {}
command!(QueryBlock, "query-block" -> Vec<BlockBackend>);

/// Source: `qapi/block-core.json`, `BlockInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockBackend {
    /// Backend's name; empty where it has none.
    pub device: String,
    /// The device's id or path.
    pub qdev: Option<String>,
    /// What is in it.
    pub inserted: Option<BlockNode>,
}

/// All nodes, without the images behind them. Source: `qapi/block-core.json`, `query-named-block-nodes`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct QueryNamedBlockNodes {
    flat: bool,
}
command!(QueryNamedBlockNodes, "query-named-block-nodes" -> Vec<BlockNode>);

impl QueryNamedBlockNodes {
    /// The reply stays small however long the chains are.
    #[must_use]
    pub fn flat() -> Self {
        Self { flat: true }
    }
}

/// Source: `qapi/block-core.json`, `BlockDeviceInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BlockNode {
    /// Its name.
    #[serde(rename = "node-name")]
    pub node_name: Option<NodeName>,
    /// File, as QEMU writes it: a path, or `json:` and options.
    pub file: String,
    /// Driver.
    #[serde(rename = "drv")]
    pub driver: String,
    /// Whether it is only read.
    #[serde(rename = "ro")]
    pub read_only: bool,
    /// File of what is behind it.
    pub backing_file: Option<String>,
    /// Nodes behind it.
    pub backing_file_depth: u32,
    /// What is noted of writes to it.
    #[serde(default, rename = "dirty-bitmaps")]
    pub dirty_bitmaps: Vec<DirtyBitmap>,
}

/// Source: `qapi/block-core.json`, `BlockDirtyInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DirtyBitmap {
    /// Its name; QEMU's own have none.
    pub name: Option<String>,
    /// Whether writes are noted.
    pub recording: bool,
    /// Whether a job or an export uses it.
    pub busy: bool,
    /// Whether a crash left it behind: it says nothing then.
    #[serde(default)]
    pub inconsistent: bool,
    /// Whether it is kept in the image's file when that is closed.
    #[serde(default)]
    pub persistent: bool,
    /// Bytes that it notes.
    pub count: u64,
    /// Bytes that one bit stands for.
    pub granularity: u32,
}

/// Notes what is written to a node from now on.
/// Source: `qapi/block-core.json`, `block-dirty-bitmap-add`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockDirtyBitmapAdd {
    /// The node.
    pub node: NodeName,
    /// The bitmap's name, at most 1023 bytes.
    pub name: String,
    /// Whether it notes nothing by itself: it takes what others have noted.
    pub disabled: bool,
    /// Whether it is kept in the image's file when that is closed, or opened read-only; else it is lost with the process. Only
    /// qcow2 images of version 3 can.
    pub persistent: bool,
}
command!(BlockDirtyBitmapAdd, "block-dirty-bitmap-add" -> Empty);

/// Adds to a bitmap what another one of the same node has noted. Source: `qapi/block-core.json`,
/// `block-dirty-bitmap-merge`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockDirtyBitmapMerge {
    /// The node.
    pub node: NodeName,
    /// The one that takes it.
    pub target: String,
    /// Those that have it.
    pub bitmaps: Vec<String>,
}
command!(BlockDirtyBitmapMerge, "block-dirty-bitmap-merge" -> Empty);

/// Notes no more. Source: `qapi/block-core.json`, `block-dirty-bitmap-remove`.
#[derive(Debug, Clone, Serialize)]
pub struct BlockDirtyBitmapRemove {
    /// The node.
    pub node: NodeName,
    /// The bitmap's name.
    pub name: String,
}
command!(BlockDirtyBitmapRemove, "block-dirty-bitmap-remove" -> Empty);

/// Starts QEMU's NBD server, of which a process has one. Source: `qapi/block-export.json`, `nbd-server-start`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct NbdServerStart(Value);
command!(NbdServerStart, "nbd-server-start" -> Empty);

impl NbdServerStart {
    /// On a unix socket, which is made: a path, or a name in QEMU's working directory.
    #[must_use]
    pub fn unix(path: &str) -> Self {
        Self(json!({"addr": {"type": "unix", "data": {"path": path}}}))
    }
}

/// Stops it, and all that it exports. Source: `qapi/block-export.json`, `nbd-server-stop`.
#[derive(Debug, Clone, Serialize)]
pub struct NbdServerStop {}
command!(NbdServerStop, "nbd-server-stop" -> Empty);

/// Exports a node over NBD, read-only. Source: `qapi/block-export.json`, `block-export-add`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct BlockExportAdd(Value);
command!(BlockExportAdd, "block-export-add" -> Empty);

impl BlockExportAdd {
    /// With one of its bitmaps as a meta context, `qemu:dirty-bitmap:` and its name. The export is named as the node.
    #[must_use]
    pub fn nbd(id: &str, node: &NodeName, bitmap: &str) -> Self {
        let node = node.as_str();
        Self(json!({"type": "nbd", "id": id, "node-name": node, "name": node, "bitmaps": [bitmap]}))
    }

    /// With bitmaps of other nodes, by node and name, as meta contexts. The export is named as the node.
    #[must_use]
    pub fn nbd_with(node: &NodeName, bitmaps: &[(&NodeName, &str)]) -> Self {
        let bitmaps: Vec<Value> =
            bitmaps.iter().map(|(node, name)| json!({"node": node.as_str(), "name": name})).collect();
        let node = node.as_str();
        Self(json!({"type": "nbd", "id": node, "node-name": node, "name": node, "bitmaps": bitmaps}))
    }
}

/// Merges layers downwards. Source: `qapi/block-core.json`, `block-commit`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockCommit {
    /// Name for the job.
    pub job_id: JobId,
    /// Device or node at the root of the chain.
    pub device: String,
    /// Lowest layer that is merged away; the active one if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_node: Option<NodeName>,
    /// Layer that takes the data; the lowest of the chain if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_node: Option<NodeName>,
    /// Backing name to write into the header of the layer above `top_node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Bytes per second; no limit if `None`.
    #[serde(rename = "speed", skip_serializing_if = "Option::is_none")]
    pub speed_bytes_per_s: Option<u64>,
    /// Whether the job stays after its end until dismissed, so that its error can be read.
    #[serde(rename = "auto-dismiss")]
    pub auto_dismiss: bool,
    /// Whether the job changes the chain as soon as its data are copied, or waits to be finalized.
    #[serde(rename = "auto-finalize")]
    pub auto_finalize: bool,
}
command!(BlockCommit, "block-commit" -> Empty);

/// Merges layers upwards: copies into a layer what it reads from those below it, down to a base.
/// Source: `qapi/block-core.json`, `block-stream`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockStream {
    /// Name for the job.
    pub job_id: JobId,
    /// The layer that takes the data.
    pub device: String,
    /// What it stands on afterwards; nothing if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_node: Option<NodeName>,
    /// Backing name to write into its header; only with a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Bytes per second; no limit if `None`.
    #[serde(rename = "speed", skip_serializing_if = "Option::is_none")]
    pub speed_bytes_per_s: Option<u64>,
    /// Whether the job stays after its end until dismissed, so that its error can be read.
    pub auto_dismiss: bool,
    /// Whether the job changes the chain as soon as its data are copied, or waits to be finalized.
    pub auto_finalize: bool,
}
command!(BlockStream, "block-stream" -> Empty);
