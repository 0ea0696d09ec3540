//! The arguments of `keyframe serve`, `status`, `token`, `approvals` and `audit`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use keyframe_daemon::access::Role;
use keyframe_daemon::approvals::ApprovalId;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where policies are [default: HOME/policies, or /etc/keyframe]
    #[arg(long, value_name = "DIR")]
    pub policies: Vec<PathBuf>,
    /// Listen here too, with TLS and for those who have a token, such as 0.0.0.0:8443
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Say it in one line, as monitoring wants it; end with 0 (all is well), 1 (a warning), 2 (critical) or 3 (nobody knows)
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make one, and write it once: only its hash is kept
    Add {
        /// Whose it is
        name: String,
        /// What it is good for: read, operate, restore or admin; each includes those before
        #[arg(long)]
        role: Role,
    },
    /// List whose there are
    List,
    /// Take one back: it is worth nothing from the next request on
    Revoke {
        /// Whose
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum ApprovalsCommand {
    /// List what waits, what it would do, and what was decided in the last days
    List,
    /// Say yes to what somebody else asked for: it is done
    Approve {
        /// Which, as `list` tells it
        id: ApprovalId,
    },
    /// Say no to what somebody else asked for
    Refuse {
        /// Which, as `list` tells it
        id: ApprovalId,
    },
    /// Take back what you asked for on the daemon's socket yourself
    Withdraw {
        /// Which, as `list` tells it
        id: ApprovalId,
    },
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List what was done, by whom, and what came of it
    List {
        /// The latest N
        #[arg(long, value_name = "N", default_value_t = 50)]
        last: usize,
    },
    /// Check that no entry was changed, added or taken away; status 1 where one was
    Verify {
        /// A head that was kept elsewhere, as `audit list --json` tells it, or the note of a point: it must be there
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
    },
    /// Write all of it, an entry a line
    Export,
}
