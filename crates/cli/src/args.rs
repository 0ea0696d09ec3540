//! The command line, as `--help` tells it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};
use keyframe_engine::bringup::Strategy;
use keyframe_engine::snapshot::Freeze;
use keyframe_hypervisor::{AccelChoice, Firmware, Network, ProbeDefinition};
use keyframe_policy::Tag;
use keyframe_types::{ByteLen, NameError, RefError, SnapshotName, SnapshotRef, TimeToLive, VmName};

use crate::backup_args::{BackupArgs, BootArgs, DrillArgs, DrillsArgs, HoldArgs, LockArgs, PointsArgs, RestoreArgs};
use crate::files_args::{DiffArgs, FilesArgs, MountArgs};
use crate::policy_args::PolicyCommand;
use crate::repo_args::{ImageCommand, RepoCommand};
use crate::report_args::ReportArgs;
use crate::serve_args::{ApprovalsCommand, AuditCommand, ServeArgs, StatusArgs, TokenCommand};

/// Snapshots of running virtual machines on stock QEMU: memory, devices and disks of one instant, with
/// milliseconds of pause.
#[derive(Debug, Parser)]
#[command(name = "keyframe", version = crate::VERSION, max_term_width = 100, infer_long_args = false)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Where machines live [default: /var/lib/keyframe for root, ~/.local/share/keyframe for others]
    #[arg(long, global = true, env = "KEYFRAME_HOME", value_name = "DIR", hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// Write one JSON document to standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Say more; twice for even more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// What works on machines, and so on a home.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Say whether this host, or a machine on it, is fit for snapshots, and what they will cost
    Doctor {
        /// The machine to look at
        vm: Option<VmName>,
    },
    /// Create, start, stop, list, show and remove machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Take a snapshot of a running, paused or stopped machine, or of several at one instant
    Snapshot(SnapshotArgs),
    /// List a machine's snapshots as a tree
    Snapshots {
        /// The machine
        vm: VmName,
    },
    /// Show one snapshot in full
    Show {
        /// The snapshot
        #[arg(value_name = "VM@SNAP")]
        snapshot: SnapshotRef,
    },
    /// Go back to a snapshot, with its programs still running
    Revert(RevertArgs),
    /// Make machines that continue from a snapshot, beside the original
    Fork(ForkArgs),
    /// Delete snapshots, whatever hangs on them, and merge the layers they leave
    Delete(DeleteArgs),
    /// Merge layers that no snapshot needs, while the guest works
    Consolidate(ConsolidateArgs),
    /// Delete the snapshots whose time is up
    Expire(ExpireArgs),
    /// Say something else about a snapshot: its name, note, owner, expiry or pin
    SnapshotSet(SnapshotSetArgs),
    /// Bring a snapshot up in isolation, see whether it works, and throw it away again
    Test(TestArgs),
    /// Say what snapshots cost and will cost, and what to do about it
    Cost {
        /// The machine [default: all]
        vm: Option<VmName>,
        /// End with status 1 where there is something to see to
        #[arg(long)]
        check: bool,
    },
    /// Get at snapshots' memory images
    #[command(subcommand)]
    Memory(MemoryCommand),
    /// Compare documents, layers and files with each other; changes nothing without --repair
    #[command(after_help = "Status 0: nothing was found. 3: something was, and is still there, or a machine was busy.")]
    Fsck(FsckArgs),
    /// Check every snapshot of a machine: that all of it is there, and with --data every byte
    #[command(after_help = "Status 0: all snapshots are whole. 3: some are not, and are named.")]
    Check {
        /// The machine
        vm: VmName,
        /// Read every byte of memory and layers, and compare it with its checksum
        #[arg(long)]
        data: bool,
    },
    /// Store a machine's state in a repository, complete in itself
    #[command(
        after_help = "Status 3: the point is there, and something is missing in it, or behind it did not work. 13: --live was given up for \
                            the guest's sake, and there is no point."
    )]
    Backup(BackupArgs),
    /// List machines' restore points
    Points(PointsArgs),
    /// Keep a point, whatever rules say, until that is taken back
    Hold(HoldArgs),
    /// Keep a point until a day, whatever rules say; a lock is only ever made longer
    Lock(LockArgs),
    /// Bring a machine, or one of its disks, back from a point
    Restore(RestoreArgs),
    /// Find out whether a point really comes back: restore it into isolation, bring it up, ask it, keep the evidence
    Drill(DrillArgs),
    /// List drills from the log of evidence, or check that log
    Drills(DrillsArgs),
    /// Run a machine straight from a point, now; its data follow
    #[command(after_help = "Status 3 of --wait: the machine is not wholly local, and why.")]
    Boot(BootArgs),
}

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Machine(MachineCommand),
    /// Make and keep repositories, where images and backups live
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Store any disk or memory image in a repository, and get it back
    #[command(subcommand)]
    Image(ImageCommand),
    /// List, show and copy files out of a point, without mounting anything and without root
    Files(FilesArgs),
    /// List the files that differ between two points
    Diff(DiffArgs),
    /// Show a point's file systems in a directory, read-only, until it is ended
    Mount(MountArgs),
    /// Say what machines are owed: snapshots, backups and drills, when, and how long they stay
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Give every machine what policies owe it, prove it, and show it: schedules, API, metrics, dashboard
    #[command(after_help = SERVING)]
    Serve(ServeArgs),
    /// Say how everything is: what is protected and what is not, what comes next, what is to be seen to
    #[command(
        after_help = "With --check, status 0: all is well. 1: a warning. 2: critical. 3: nobody knows, for no daemon answers."
    )]
    Status(StatusArgs),
    /// Make, list and revoke tokens, for those who come over the network
    #[command(subcommand)]
    Token(TokenCommand),
    /// See and decide what waits for a second person's approval, as the user of the daemon's socket that you are
    #[command(subcommand)]
    Approvals(ApprovalsCommand),
    /// Say who did what, from a log in which no line can be changed unseen
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Tell what was promised, made, proved and missed in a span of days: a page to print, and a signed document
    Report(ReportArgs),
    #[command(flatten)]
    Internal(Internal),
}

const SERVING: &str = "It runs the same commands as a person would, each in a process of its own that outlives it. Ended or killed, it \
    goes on where it was when it is started again; without it, the command line works as ever. Policies: docs/POLICIES.md; what is asked and \
    answered over HTTP: docs/API.md.";

#[derive(Debug, Subcommand)]
pub enum MemoryCommand {
    /// Write a snapshot's memory as one file that stock QEMU loads
    Export {
        /// The snapshot
        #[arg(value_name = "VM@SNAP")]
        snapshot: SnapshotRef,
        /// The file, which must not exist
        file: PathBuf,
    },
}

/// Processes that Keyframe starts for itself.
#[derive(Debug, Subcommand)]
pub enum Internal {
    #[command(name = keyframe_engine::guard::SUBCOMMAND, hide = true)]
    Guard {
        #[arg(long = "guard-home")]
        guard_home: PathBuf,
        vm: VmName,
    },
    #[command(name = keyframe_engine::pages::SUPERVISOR, hide = true)]
    Pages { dir: PathBuf },
    #[command(name = keyframe_engine::pages::WORKER, hide = true)]
    PageWorker { dir: PathBuf },
    #[command(name = keyframe_engine::release::SUBCOMMAND, hide = true)]
    Release,
    #[command(name = keyframe_engine::boot::server::SUPERVISOR, hide = true)]
    BootServer {
        #[arg(long = "server-home")]
        server_home: PathBuf,
        vm: VmName,
    },
    #[command(name = keyframe_engine::boot::server::WORKER, hide = true)]
    BootWorker {
        #[arg(long = "server-home")]
        server_home: PathBuf,
        vm: VmName,
        #[arg(long, default_value_t = 0)]
        restarts: u32,
    },
    #[command(name = keyframe_engine::files::SUBCOMMAND, hide = true)]
    Files,
    /// Writes manual pages and completions for packages
    #[command(name = "internal-papers", hide = true)]
    Papers { dir: PathBuf },
    #[command(name = keyframe_daemon::hands::SUBCOMMAND, hide = true)]
    Hand {
        place: PathBuf,
        number: u32,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a machine over existing disks, which are used in place
    Create(Box<CreateArgs>),
    /// Start a machine, or let a paused one run on
    Start {
        /// The machine
        name: VmName,
    },
    /// Shut a machine down by its power button
    Stop {
        /// The machine
        name: VmName,
        /// Switch it off as a power cut would
        #[arg(long)]
        force: bool,
        /// How long the guest may take to shut down
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_span)]
        timeout: Duration,
    },
    /// List all machines
    List,
    /// Say everything about a machine
    Show {
        /// The machine
        name: VmName,
    },
    /// Talk to a machine's serial console; Ctrl-] ends it
    Console {
        /// The machine
        name: VmName,
    },
    /// Remove a stopped machine with its snapshots; disks that were given to `create` stay
    Remove {
        /// The machine
        name: VmName,
        /// Also when snapshots of it are pinned
        #[arg(long)]
        force: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name: letters, digits, '.', '_' and '-'
    pub name: VmName,
    /// Its RAM, such as 512M or 4G
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: ByteLen,
    /// Its CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// A qcow2 or raw image, used in place; can be given several times
    #[arg(long = "disk", value_name = "PATH")]
    pub disks: Vec<PathBuf>,
    /// A kernel to boot directly
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "", hide_default_value = true)]
    pub append: String,
    /// Its firmware
    #[arg(long, value_enum, default_value_t = FirmwareArg::Bios)]
    pub firmware: FirmwareArg,
    /// What its network card is plugged into: user, none, tap:INTERFACE, bridge:BRIDGE, or private:NAME, a network that only
    /// machines of this host share
    #[arg(long, value_name = "NET", default_value = "user", value_parser = parse_network)]
    pub net: NetworkArg,
    /// What runs its instructions
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// A word that policies choose it by; can be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<Tag>,
    /// Further arguments for QEMU; what would escape a snapshot is refused
    #[arg(last = true, value_name = "QEMU-ARGS")]
    pub extra_args: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FirmwareArg {
    Bios,
    Uefi,
}

impl From<FirmwareArg> for Firmware {
    fn from(arg: FirmwareArg) -> Self {
        match arg {
            FirmwareArg::Bios => Self::Bios,
            FirmwareArg::Uefi => Self::Uefi,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AccelArg {
    Auto,
    Kvm,
    Tcg,
}

impl From<AccelArg> for AccelChoice {
    fn from(arg: AccelArg) -> Self {
        match arg {
            AccelArg::Auto => Self::Auto,
            AccelArg::Kvm => Self::Kvm,
            AccelArg::Tcg => Self::Tcg,
        }
    }
}

/// A network, or none.
#[derive(Debug, Clone)]
pub struct NetworkArg(pub Option<Network>);

fn parse_network(text: &str) -> Result<NetworkArg, String> {
    if text == "none" {
        return Ok(NetworkArg(None));
    }
    text.parse()
        .map(|network| NetworkArg(Some(network)))
        .map_err(|error: keyframe_hypervisor::definition::DefinitionError| error.to_string())
}

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// The machine. Several are a group: they are cut at one instant, while all of them stand still, or none is
    #[arg(required = true, value_name = "VM")]
    pub machines: Vec<VmName>,
    /// Its name; one made from the time if none is given
    #[arg(long, value_name = "NAME")]
    pub name: Option<SnapshotName>,
    /// Why it is taken
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Whose it is [default: whoever asks]
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
    /// Without memory
    #[arg(long)]
    pub disk_only: bool,
    /// How long it is wanted, such as 12h or 7d
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<TimeToLive>,
    /// Keep it whatever else is said
    #[arg(long)]
    pub pin: bool,
    /// Refuse a pause that is expected to be longer, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub max_pause: Option<Duration>,
    /// Rather a snapshot without memory than a longer pause
    #[arg(long, requires = "max_pause")]
    pub or_disk_only: bool,
    /// Of several machines: none is cut where not all are within this time from before the first is stopped [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub within: Option<Duration>,
    /// Have the guest's agent freeze file systems around the instant
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, default_missing_value = "must", default_value = "no", require_equals = true)]
    pub freeze: FreezeArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FreezeArg {
    /// Do not
    No,
    /// Go on without if it does not work, and say so
    Try,
    /// No snapshot without
    Must,
}

impl From<FreezeArg> for Freeze {
    fn from(arg: FreezeArg) -> Self {
        match arg {
            FreezeArg::No => Self::No,
            FreezeArg::Try => Self::Try,
            FreezeArg::Must => Self::Must,
        }
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true)
    .args(["name", "note", "ttl", "no_ttl", "pin", "unpin", "owner"]))]
pub struct SnapshotSetArgs {
    /// The snapshot
    #[arg(value_name = "VM@SNAP")]
    pub snapshot: SnapshotRef,
    /// Its new name
    #[arg(long, value_name = "NAME")]
    pub name: Option<SnapshotName>,
    /// Its new note; an empty one for none
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// How long it is wanted from now on, such as 12h or 7d
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<TimeToLive>,
    /// It does not expire any more
    #[arg(long, conflicts_with = "ttl")]
    pub no_ttl: bool,
    /// Keep it whatever else is said
    #[arg(long)]
    pub pin: bool,
    /// It may go again
    #[arg(long, conflicts_with = "pin")]
    pub unpin: bool,
    /// Whose it is
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
}

#[derive(Debug, Args)]
pub struct TestArgs {
    /// The snapshots, one after the other; with --all, the machines
    #[arg(value_name = "VM@SNAP", required = true)]
    pub targets: Vec<TestTarget>,
    /// All snapshots of the machines
    #[arg(long)]
    pub all: bool,
    /// How long it may take from the start of the throw-away machine's process until all probes are satisfied
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_span)]
    pub within: Duration,
    /// Ask this too, besides what machine.toml declares: agent, screen, serial=REGEX, tcp=PORT, tcp=ADDRESS:PORT or
    /// command='PROGRAM ARGUMENTS'; can be given several times
    #[arg(long = "probe", value_name = "PROBE")]
    pub probes: Vec<ProbeDefinition>,
}

/// What to test.
#[derive(Debug, Clone)]
pub enum TestTarget {
    /// One snapshot.
    Snapshot(SnapshotRef),
    /// A machine's.
    Machine(VmName),
}

impl FromStr for TestTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            text.parse().map(Self::Snapshot).map_err(|error: RefError| error.to_string())
        } else {
            text.parse().map(Self::Machine).map_err(|error: NameError| error.to_string())
        }
    }
}

#[derive(Debug, Args)]
pub struct RevertArgs {
    /// The snapshot
    #[arg(value_name = "VM@SNAP")]
    pub snapshot: SnapshotRef,
    /// Do not keep the present as a snapshot first
    #[arg(long)]
    pub discard: bool,
    /// How memory comes back; chosen by size if not given
    #[arg(long, value_enum)]
    pub strategy: Option<RevertStrategy>,
    /// Start from the snapshot's disks and leave its memory out
    #[arg(long, conflicts_with = "strategy")]
    pub disk_only: bool,
    /// Go on although layers were written to from outside
    #[arg(long)]
    pub accept_touched_layers: bool,
    /// With --discard: return as soon as the machine runs, while memory is still on its way
    #[arg(long, requires = "discard")]
    pub no_wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RevertStrategy {
    /// All memory first
    Eager,
    /// Memory on demand, the rest in the background
    Lazy,
}

impl From<RevertStrategy> for Strategy {
    fn from(arg: RevertStrategy) -> Self {
        match arg {
            RevertStrategy::Eager => Self::Eager,
            RevertStrategy::Lazy => Self::Lazy,
        }
    }
}

#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The snapshot
    #[arg(value_name = "VM@SNAP")]
    pub snapshot: SnapshotRef,
    /// The new machine's name; with --count, the beginning of their names
    pub name: VmName,
    /// How many machines
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// How memory comes: mapped machines share it but cannot be snapshotted with memory, lazy and eager ones can
    #[arg(long, value_enum, default_value_t = ForkStrategy::Mapped)]
    pub strategy: ForkStrategy,
    /// Plug its network card into this instead of nothing: user, tap:INTERFACE, bridge:BRIDGE, or private:NAME, a network that
    /// only machines of this host share
    #[arg(long, value_name = "NET", value_parser = parse_network)]
    pub net: Option<NetworkArg>,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The snapshots
    #[arg(value_name = "VM@SNAP", required = true)]
    pub snapshots: Vec<SnapshotRef>,
    /// Only say what would be done, what it moves and frees, and how long it takes
    #[arg(long)]
    pub dry_run: bool,
    /// Give forks that stand on their disks a copy of their own first
    #[arg(long)]
    pub detach: bool,
    /// Merge no faster than this a second, such as 100M
    #[arg(long, value_name = "BYTES")]
    pub speed: Option<ByteLen>,
}

#[derive(Debug, Args)]
pub struct ConsolidateArgs {
    /// The machine
    pub vm: VmName,
    /// Only say what would be done, what it moves and frees, and how long it takes
    #[arg(long)]
    pub dry_run: bool,
    /// Give the present a copy of all that snapshots hold, so that it reads from one layer
    #[arg(long)]
    pub flatten: bool,
    /// Merge no faster than this a second, such as 100M
    #[arg(long, value_name = "BYTES")]
    pub speed: Option<ByteLen>,
}

#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// The machines; all if none is named
    #[arg(value_name = "VM")]
    pub vms: Vec<VmName>,
    /// Only say what would be done, what it moves and frees, and how long it takes
    #[arg(long)]
    pub dry_run: bool,
    /// Merge no faster than this a second, such as 100M
    #[arg(long, value_name = "BYTES")]
    pub speed: Option<ByteLen>,
    /// Go on although the clock seems to have been set
    #[arg(long)]
    pub accept_clock: bool,
}

#[derive(Debug, Args)]
pub struct FsckArgs {
    /// The machine [default: all]
    pub vm: Option<VmName>,
    /// Put right what can be put right without a loss, each thing said before it is done
    #[arg(long, conflicts_with = "dry_run")]
    pub repair: bool,
    /// Only look, as without --repair
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ForkStrategy {
    Mapped,
    Lazy,
    Eager,
}

/// A span such as `50ms`, `2s` or `5m`; a bare number is milliseconds.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    keyframe_types::parse_span(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_read_as_people_write_them() {
        for (text, ms) in [("50ms", 50), ("50", 50), ("2s", 2000), ("1m", 60_000)] {
            assert_eq!(parse_span(text).unwrap().as_millis(), ms);
        }
        for text in ["", "ms", "-1s", "1h", "1.5s", "99999999999999999999s"] {
            assert!(parse_span(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn something_has_to_be_said_about_a_snapshot() {
        let parse = |words: &str| Arguments::try_parse_from(words.split_whitespace());
        assert!(parse("keyframe snapshot-set db@x").is_err());
        assert!(parse("keyframe snapshot-set db@x --pin --unpin").is_err());
        assert!(parse("keyframe snapshot-set db@x --ttl 7d --no-ttl").is_err());
        assert!(parse("keyframe snapshot-set db@x --pin --no-ttl --owner anna --note x").is_ok());
    }

    #[test]
    fn arguments_for_qemu_come_behind_two_dashes() {
        let parsed =
            Arguments::try_parse_from(["keyframe", "vm", "create", "db", "--disk", "a", "--disk", "b", "--", "-usb"]);
        match parsed.unwrap().command {
            Command::Machine(MachineCommand::Vm(VmCommand::Create(create))) => {
                assert_eq!((create.disks.len(), create.extra_args), (2, vec!["-usb".to_owned()]));
            }
            other => panic!("{other:?}"),
        }
    }
}
