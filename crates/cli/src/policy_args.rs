//! The arguments of `keyframe policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keyframe_policy::Tag;
use keyframe_types::VmName;

const PLACES: &str = "Policies are *.toml in HOME/policies, or in /etc/keyframe where the home has no such directory, and those in its \
    conf.d. docs/POLICIES.md has all of their keys.";

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say what is wrong with policies: in themselves, with each other, and with the machines there are
    #[command(after_help = format!("{PLACES}\n\nStatus 0: they can be used. 1: they cannot, and every mistake is told. 3: they can, but a \
        machine here could not be looked at."))]
    Check {
        /// Where they are
        #[arg(value_name = "DIR")]
        directories: Vec<PathBuf>,
    },
    /// Say what would be made, and what would exist, on each of the days to come
    #[command(after_help = PLACES)]
    Plan {
        #[command(flatten)]
        of: PolicyOf,
        /// How many days
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3660))]
        days: u32,
        /// Every single event
        #[arg(long)]
        events: bool,
    },
    /// Say what a machine is owed, by which policy, and when
    #[command(after_help = PLACES)]
    Show {
        #[command(flatten)]
        of: PolicyOf,
    },
    /// Write an example, to be changed and put where policies are
    Example,
}

#[derive(Debug, Args)]
pub struct PolicyOf {
    /// The machine
    pub vm: VmName,
    /// As if it had this tag, besides its own; the machine need not exist then
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<Tag>,
    /// Where policies are
    #[arg(long = "policies", value_name = "DIR")]
    pub directories: Vec<PathBuf>,
}
