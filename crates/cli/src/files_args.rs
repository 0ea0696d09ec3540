//! The arguments of `keyframe files`, `diff` and `mount`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::repo_args::Where;

const FILE: &str = "A file is named /PATH where the point has one file system, else DISK:PART:/PATH, DISK:/PATH for a disk \
    without partitions, or GROUP/VOLUME:/PATH for a logical volume. Symbolic links are followed within their file system.";

#[derive(Debug, Args)]
#[command(after_help = FILE)]
pub struct FilesArgs {
    #[command(flatten)]
    pub place: Where,
    /// A machine's point or an image: NAME for its latest, NAME@T for one with a tag, or by the beginning of an id
    #[arg(value_name = "POINT")]
    pub point: String,
    #[command(subcommand)]
    pub what: FilesCommand,
}

#[derive(Debug, Subcommand)]
pub enum FilesCommand {
    /// List a directory; without a path, disks, partitions, logical volumes and file systems
    #[command(after_help = FILE)]
    Ls {
        /// The directory, or a file
        #[arg(value_name = "[DISK[:PART]:]PATH")]
        file: Option<OsString>,
        /// With permissions, owners, sizes and times
        #[arg(long, short)]
        long: bool,
    },
    /// Write files to standard output
    #[command(after_help = FILE)]
    Cat {
        /// The files
        #[arg(value_name = "[DISK[:PART]:]PATH", required = true)]
        files: Vec<OsString>,
    },
    /// Copy files out, with owners (as root), permissions, times, links and extended attributes as far as they are known
    #[command(after_help = FILE, long_about = "Copy files out, with owners (as root), permissions, times, links and extended \
        attributes as far as they are known; what is not kept is said at the end. Nothing is written outside of DEST, whatever \
        names and links the guest made. Status 3: some files did not come, and are named.")]
    Cp {
        /// What to copy; all of a file system is DISK:PART:/
        #[arg(value_name = "[DISK[:PART]:]PATH", required = true)]
        sources: Vec<OsString>,
        /// A directory to copy into, or a new name for one file
        dest: PathBuf,
        /// Directories with all that is in them
        #[arg(long, short)]
        recursive: bool,
        /// Replace files that are there
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Compared are kind, size, times, mode, owner, device and link target; disks that are the same in both points \
    are not looked at. Status 3: something could not be compared."
)]
pub struct DiffArgs {
    #[command(flatten)]
    pub place: Where,
    /// The earlier point
    #[arg(value_name = "POINT")]
    pub before: String,
    /// The later point
    #[arg(value_name = "POINT")]
    pub after: String,
    /// Only this volume: DISK, DISK:PART or GROUP/VOLUME
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Needs /dev/fuse, and fusermount3 (package fuse3) for who is not root. Ctrl-C or `umount DIR` (`fusermount3 -u \
    DIR`) ends it. Owners and permissions are shown as the guest has them, and not enforced: whoever mounted it, and nobody \
    else, reads everything."
)]
pub struct MountArgs {
    #[command(flatten)]
    pub place: Where,
    /// A machine's point or an image
    #[arg(value_name = "POINT")]
    pub point: String,
    /// An empty directory: each file system appears in it under its volume's name
    pub dir: PathBuf,
}
