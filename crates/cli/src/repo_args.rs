//! The arguments of `keyframe repo` and `keyframe image`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use keyframe_qcow2::Format;

/// Which repository, and what opens it.
#[derive(Debug, Args)]
pub struct Where {
    /// The repository: a directory
    #[arg(long, env = "KEYFRAME_REPO", value_name = "REPO", hide_env_values = true)]
    pub repo: String,
    /// The key file; instead, a passphrase is taken from KEYFRAME_PASSPHRASE or asked for
    #[arg(long, env = "KEYFRAME_KEY_FILE", value_name = "FILE", hide_env_values = true)]
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Make a repository; its key file too, where --key-file names one that does not exist
    Init {
        #[command(flatten)]
        place: Where,
        /// Store everything readable for whoever has the storage
        #[arg(long, conflicts_with = "key_file")]
        no_encryption: bool,
        /// Parity of each object, in percent; 0 for none
        #[arg(long, value_name = "PERCENT", default_value_t = 1)]
        parity: u8,
        /// zstd's level: higher is smaller and slower
        #[arg(long, value_name = "LEVEL", default_value_t = 1)]
        level: i32,
    },
    /// Say what is in a repository
    Info {
        #[command(flatten)]
        place: Where,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Store an image; successive ones of a name are its history
    Put {
        #[command(flatten)]
        place: Where,
        /// Its name: letters, digits, '.', '_' and '-'
        name: String,
        /// A raw or qcow2 image, with all that it hangs on
        file: PathBuf,
        /// A word to find it by; can be given several times
        #[arg(long = "tag", value_name = "T")]
        tags: Vec<String>,
        /// Its format; looked for in the file if not given
        #[arg(long, value_enum)]
        format: Option<FormatArg>,
        /// Read only the extents in this file: lines of OFFSET LENGTH in bytes. Everything else is as in the point before
        #[arg(long, value_name = "FILE")]
        changes: Option<PathBuf>,
    },
    /// Write a stored image to a new file, sparse
    Get {
        #[command(flatten)]
        place: Where,
        /// NAME for its latest point, NAME@T for one with a tag, or by the beginning of an id
        #[arg(value_name = "NAME[@T]")]
        point: String,
        /// The file, which must not be there yet
        file: PathBuf,
    },
    /// List what is stored
    List {
        #[command(flatten)]
        place: Where,
        /// Only the history of this name
        name: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FormatArg {
    Raw,
    Qcow2,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Raw => Self::Raw,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}
