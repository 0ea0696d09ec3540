//! The arguments of `keyframe backup`, `points`, `restore` and `boot`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use keyframe_engine::drill::point::Ways;
use keyframe_engine::restore::file::DiskFormat;
use keyframe_hypervisor::ProbeDefinition;
use keyframe_types::{ByteLen, DiskId, RefError, SnapshotRef, SnapshotSelector, TimeToLive, Timestamp, VmName};

use crate::args::{FreezeArg, parse_span};
use crate::repo_args::{PerhapsWhere, Where};

/// `VM`, or `VM@SNAP`.
#[derive(Debug, Clone)]
pub struct BackupTarget {
    pub vm: VmName,
    pub snapshot: Option<SnapshotSelector>,
}

impl FromStr for BackupTarget {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        if text.contains('@') {
            let SnapshotRef { vm, snapshot } = text.parse()?;
            return Ok(Self { vm, snapshot: Some(snapshot) });
        }
        Ok(Self { vm: VmName::new(text)?, snapshot: None })
    }
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|number| (1..=100).contains(number)).ok_or_else(|| "give a percentage from 1% to 100%".to_owned())
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pub place: Where,
    /// The machine: a snapshot is taken for it and let go afterwards. Or a snapshot that exists. Several machines with --group
    #[arg(required = true, value_name = "VM[@SNAP]")]
    pub targets: Vec<BackupTarget>,
    /// The machines are a group of this name: they are cut at one instant, and stored as one point
    #[arg(long, value_name = "NAME", conflicts_with = "live")]
    pub group: Option<VmName>,
    /// Of a group: none is cut where not all are within this time from before the first is stopped [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_span, requires = "group")]
    pub within: Option<Duration>,
    /// With its running state: memory, processors and devices
    #[arg(long)]
    pub memory: bool,
    /// Without a snapshot and without a layer for it: QEMU keeps the disks as they are at one instant, and shows them,
    /// while the guest writes on
    #[arg(long)]
    pub live: bool,
    /// Where what the guest overwrites during --live is kept [default: the machine's own directory]
    #[arg(long, value_name = "DIR", requires = "live")]
    pub scratch: Option<PathBuf>,
    /// How much of it is kept at most, such as 20G; with more there is no point [default: half of what is free there]
    #[arg(long, value_name = "BYTES", requires = "live")]
    pub scratch_size: Option<ByteLen>,
    /// How long the guest's requests to its disks may take during --live: beyond it reading is slowed, then given up
    #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "250ms", requires = "live")]
    pub max_latency: Duration,
    /// Have the guest's agent freeze file systems around the snapshot that is taken, or the instant of --live
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, default_missing_value = "must", default_value = "no", require_equals = true)]
    pub freeze: FreezeArg,
    /// Read again so much of what change tracking calls unchanged, such as 5%, and compare it with the point before
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub audit: Option<u8>,
    /// A word to find it by; can be given several times
    #[arg(long = "tag", value_name = "T")]
    pub tags: Vec<String>,
    /// Why it is made
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct PointsArgs {
    #[command(flatten)]
    pub place: Where,
    /// Only this machine's
    pub vm: Option<VmName>,
}

#[derive(Debug, Args)]
pub struct HoldArgs {
    #[command(flatten)]
    pub place: Where,
    /// VM for its latest point, VM@T for one with a tag, or by the beginning of an id
    #[arg(value_name = "POINT")]
    pub point: String,
    /// Why
    #[arg(long, value_name = "TEXT", conflicts_with = "release")]
    pub reason: Option<String>,
    /// Take it back: rules count again
    #[arg(long)]
    pub release: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how_long").required(true).args(["until", "span"]))]
pub struct LockArgs {
    #[command(flatten)]
    pub place: Where,
    /// VM for its latest point, VM@T for one with a tag, or by the beginning of an id
    #[arg(value_name = "POINT")]
    pub point: String,
    /// Until this day begins (UTC), such as 2031-12-31, or this time, such as 2031-12-31T12:00:00Z
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub until: Option<Timestamp>,
    /// For so long from now, such as 90d
    #[arg(long = "for", value_name = "TIME", id = "span")]
    pub span: Option<TimeToLive>,
}

fn day(text: &str) -> Result<Timestamp, String> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    serde_json::from_value(whole.into())
        .map_err(|_| "write a day as 2031-12-31, or a time as 2031-12-31T12:00:00Z".to_owned())
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("to_what").required(true).args(["new", "to", "in_place"]))]
pub struct RestoreArgs {
    #[command(flatten)]
    pub place: Where,
    /// VM for its latest point, VM@T for one with a tag, or by the beginning of an id. GROUP or GROUP@T is all machines of a group's
    #[arg(value_name = "POINT")]
    pub point: String,
    /// A machine of this name, which must not exist; of a group's point machines NEW-VM, on a network of their own
    #[arg(long = "as", value_name = "NEW")]
    pub new: Option<VmName>,
    /// Let it go on: with its running state where the point has one, else from its firmware
    #[arg(long, requires = "new")]
    pub run: bool,
    /// One disk, to a file that must not exist
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// The machine itself, which must be off: only blocks that differ are written, and its present is kept as a snapshot first
    #[arg(long)]
    pub in_place: bool,
    /// Which disk; with --to needed where there are several, with --in-place all of them otherwise
    #[arg(long, value_name = "DISK", conflicts_with = "new")]
    pub disk: Option<DiskId>,
    /// The file's form; by its ending if not given
    #[arg(long, value_enum, requires = "to")]
    pub format: Option<DiskFormatArg>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("boot_what").required(true).args(["point", "status", "wait", "resume"]))]
pub struct BootArgs {
    #[command(flatten)]
    pub place: PerhapsWhere,
    /// VM for its latest point, VM@T for one with a tag, or by the beginning of an id
    #[arg(value_name = "POINT", requires = "new")]
    pub point: Option<String>,
    /// A machine of this name, which must not exist
    #[arg(long = "as", value_name = "NEW", requires = "point")]
    pub new: Option<VmName>,
    /// Start from the firmware, although the point has a running state
    #[arg(long, requires = "point")]
    pub cold: bool,
    /// Do not let it run yet; `keyframe vm start` does
    #[arg(long, requires = "point")]
    pub paused: bool,
    /// Say how far a machine is, and what it still stands on
    #[arg(long, value_name = "VM")]
    pub status: Option<VmName>,
    /// Wait until a machine is wholly local
    #[arg(long, value_name = "VM")]
    pub wait: Option<VmName>,
    /// With --wait: how long its repository may be away, or something in it not be readable
    #[arg(long, value_name = "TIME", requires = "wait", default_value = "30s", value_parser = parse_span)]
    pub patience: Duration,
    /// Go on with a machine; with --repo and --key-file, from where its repository is now
    #[arg(long, value_name = "VM")]
    pub resume: Option<VmName>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DiskFormatArg {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl From<DiskFormatArg> for DiskFormat {
    fn from(arg: DiskFormatArg) -> Self {
        match arg {
            DiskFormatArg::Raw => Self::Raw,
            DiskFormatArg::Qcow2 => Self::Qcow2,
            DiskFormatArg::Vmdk => Self::Vmdk,
            DiskFormatArg::Vhdx => Self::Vhdx,
            DiskFormatArg::Vdi => Self::Vdi,
        }
    }
}

/// Which ways of coming back are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaysArg {
    /// Its running state goes on, where the point has one, and it starts from its disks
    All,
    /// Only its running state
    Resume,
    /// Only from its disks
    Cold,
}

impl From<WaysArg> for Ways {
    fn from(arg: WaysArg) -> Self {
        match arg {
            WaysArg::All => Self::All,
            WaysArg::Resume => Self::Resume,
            WaysArg::Cold => Self::Cold,
        }
    }
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    #[command(flatten)]
    pub place: Where,
    /// VM for its latest point, VM@T for one with a tag, or by the beginning of an id
    #[arg(value_name = "POINT")]
    pub point: String,
    /// Which ways of coming back are tried
    #[arg(long, value_enum, value_name = "WAYS", default_value = "all")]
    pub ways: WaysArg,
    /// How long each way may take from the start of its process until all probes are satisfied
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_span)]
    pub within: Duration,
    /// Ask this too, besides what the machine's definition declares: agent, screen, serial=REGEX, tcp=PORT, tcp=ADDRESS:PORT or
    /// command='PROGRAM ARGUMENTS'; can be given several times
    #[arg(long = "probe", value_name = "PROBE")]
    pub probes: Vec<ProbeDefinition>,
}

#[derive(Debug, Args)]
pub struct DrillsArgs {
    /// Only this machine's
    pub vm: Option<VmName>,
    /// Check every entry's hash and signature, that none is missing between others, and every document
    #[arg(long)]
    pub verify: bool,
    /// A copy of the public key that was kept elsewhere, in hexadecimal; the home's own otherwise
    #[arg(long, value_name = "HEX", requires = "verify")]
    pub public_key: Option<String>,
    /// The hash of an entry, as --json tells it in `head`, that must be there: a copy kept elsewhere tells whether the log was cut short
    #[arg(long, value_name = "HASH", requires = "verify")]
    pub head: Option<String>,
}
