//! What people type is on record, too, where a daemon keeps one: who, what, and how it ended.

use std::path::PathBuf;

use jiff::Timestamp;
use keyframe_daemon::audit::Audit;
use keyframe_daemon::hands;
use keyframe_engine::{Error, Home};

use crate::args::{Arguments, Command, MachineCommand, VmCommand};
use crate::exit_status;
use crate::output::Output;
use crate::repo_args::{ImageCommand, KeyCommand, RepoCommand};

/// A command that changes something, typed by a person or a script: what the daemon runs it notes itself.
pub struct Typed {
    serve: PathBuf,
    what: &'static str,
    arguments: Vec<String>,
}

impl Typed {
    /// Those that are to be on record, where there is one.
    pub fn of(arguments: &Arguments) -> Option<Self> {
        let what = changes(&arguments.command)?;
        if std::env::var_os(hands::PROGRESS).is_some() {
            return None;
        }
        let home = arguments.global.home.clone().unwrap_or_else(Home::default_root);
        let serve = home.join("serve");
        if !Audit::file(&serve).is_file() {
            return None;
        }
        let arguments = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        Some(Self { serve, what, arguments })
    }

    /// Notes how it ended. Where that cannot be noted it was done all the same.
    pub fn note(&self, ended: &Result<u8, Error>, output: &Output) {
        let result = match ended {
            Ok(0) => "done".to_owned(),
            Ok(status) => format!("ended with status {status}"),
            Err(error) => format!("failed with status {}: {error}", exit_status(error.kind())),
        };
        if let Err(error) = self.noted(&result) {
            output.note(&format!("this is not in the audit log: {error}"));
        }
    }

    fn noted(&self, result: &str) -> Result<(), keyframe_daemon::Error> {
        Audit::open_end(&self.serve)?.add_command(Timestamp::now(), &who_types(), self.what, &self.arguments, result)
    }
}

/// Who types, as the audit log calls them.
pub fn who_types() -> String {
    format!("uid {}", rustix::process::getuid().as_raw())
}

/// What a command that changes something does, in a word or two.
fn changes(command: &Command) -> Option<&'static str> {
    match command {
        Command::Machine(command) => of_machine(command),
        Command::Repo(command) => match command {
            RepoCommand::Init { .. } => Some("repo init"),
            RepoCommand::Forget { dry_run: false, .. } => Some("repo forget"),
            RepoCommand::Prune { dry_run: false, .. } => Some("repo prune"),
            RepoCommand::Repair { .. } => Some("repo repair"),
            RepoCommand::Key(KeyCommand::Add { .. }) => Some("repo key add"),
            RepoCommand::Key(KeyCommand::Remove { .. }) => Some("repo key remove"),
            RepoCommand::Forget { .. }
            | RepoCommand::Prune { .. }
            | RepoCommand::Info { .. }
            | RepoCommand::Check { .. }
            | RepoCommand::Verify { .. }
            | RepoCommand::Key(KeyCommand::List { .. }) => None,
        },
        Command::Image(ImageCommand::Put { .. }) => Some("image put"),
        // Tokens and approvals are noted where they are made and decided on; the others look.
        Command::Image(_)
        | Command::Files(_)
        | Command::Diff(_)
        | Command::Mount(_)
        | Command::Policy(_)
        | Command::Serve(_)
        | Command::Status(_)
        | Command::Token(_)
        | Command::Approvals(_)
        | Command::Audit(_)
        | Command::Report(_)
        | Command::Internal(_) => None,
    }
}

fn of_machine(command: &MachineCommand) -> Option<&'static str> {
    match command {
        MachineCommand::Vm(VmCommand::Create(_)) => Some("vm create"),
        MachineCommand::Vm(VmCommand::Start { .. }) => Some("vm start"),
        MachineCommand::Vm(VmCommand::Stop { .. }) => Some("vm stop"),
        MachineCommand::Vm(VmCommand::Remove { dry_run: false, .. }) => Some("vm remove"),
        MachineCommand::Snapshot(_) => Some("snapshot"),
        MachineCommand::Revert(_) => Some("revert"),
        MachineCommand::Fork(_) => Some("fork"),
        MachineCommand::Delete(args) if !args.dry_run => Some("delete"),
        MachineCommand::Consolidate(args) if !args.dry_run => Some("consolidate"),
        MachineCommand::Expire(args) if !args.dry_run => Some("expire"),
        MachineCommand::SnapshotSet(_) => Some("snapshot-set"),
        MachineCommand::Test(_) => Some("test"),
        MachineCommand::Fsck(args) if args.repair => Some("fsck"),
        MachineCommand::Backup(_) => Some("backup"),
        MachineCommand::Hold(_) => Some("hold"),
        MachineCommand::Lock(_) => Some("lock"),
        MachineCommand::Restore(_) => Some("restore"),
        MachineCommand::Drill(_) => Some("drill"),
        MachineCommand::Boot(_) => Some("boot"),
        MachineCommand::Vm(_)
        | MachineCommand::Delete(_)
        | MachineCommand::Consolidate(_)
        | MachineCommand::Expire(_)
        | MachineCommand::Fsck(_)
        | MachineCommand::Doctor { .. }
        | MachineCommand::Snapshots { .. }
        | MachineCommand::Show { .. }
        | MachineCommand::Cost { .. }
        | MachineCommand::Memory(_)
        | MachineCommand::Check { .. }
        | MachineCommand::Points(_)
        | MachineCommand::Drills(_) => None,
    }
}
