//! The arguments of `keyframe repo` and `keyframe image`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keyframe_qcow2::Format;
use keyframe_repo::{Retention, Rights};
use keyframe_types::secret::SecretError;
use keyframe_types::{ByteLen, SecretFile, TimeToLive};

/// Which repository, and what opens it.
#[derive(Debug, Clone, Args)]
pub struct Where {
    /// The repository: a directory, sftp://[USER@]HOST[:PORT]/PATH, or s3://BUCKET[/PATH] with the usual AWS_… variables
    #[arg(long, env = "KEYFRAME_REPO", value_name = "REPO", hide_env_values = true)]
    pub repo: String,
    #[command(flatten)]
    pub access: Access,
}

/// The same for commands some of which need none.
#[derive(Debug, Clone, Args)]
pub struct PerhapsWhere {
    /// The repository: a directory, sftp://[USER@]HOST[:PORT]/PATH, or s3://BUCKET[/PATH] with the usual AWS_… variables
    #[arg(long, env = "KEYFRAME_REPO", value_name = "REPO", hide_env_values = true)]
    pub repo: Option<String>,
    #[command(flatten)]
    pub access: Access,
}

/// How a repository is opened, and used.
#[derive(Debug, Clone, Args)]
pub struct Access {
    /// The key file, a file with age identities, or credential:NAME in a service of systemd; instead, a passphrase is taken from
    /// KEYFRAME_PASSPHRASE or asked for
    #[arg(long, env = "KEYFRAME_KEY_FILE", value_name = "FILE", hide_env_values = true, value_parser = secret_file)]
    pub key_file: Option<PathBuf>,
    /// Keep nothing of a distant repository in a local cache
    #[arg(long)]
    pub no_cache: bool,
    /// Send to it and fetch from it no more than this a second, such as 20M
    #[arg(long, env = "KEYFRAME_BANDWIDTH", value_name = "BYTES")]
    pub bandwidth: Option<ByteLen>,
}

/// A file with a secret, where it is now.
fn secret_file(text: &str) -> Result<PathBuf, SecretError> {
    text.parse::<SecretFile>()?.locate()
}

impl PerhapsWhere {
    /// The place, where one is named.
    pub fn known(self) -> Option<Where> {
        Some(Where { repo: self.repo?, access: self.access })
    }
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
        /// Nobody else makes a repository here at this moment: needed where a store cannot create an object exclusively
        #[arg(long)]
        alone: bool,
    },
    /// Say what is in a repository
    Info {
        #[command(flatten)]
        place: Where,
    },
    /// Drop points by rule; `prune` frees their space
    Forget {
        #[command(flatten)]
        place: Where,
        #[command(flatten)]
        keep: Keep,
        /// Only this history
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Only points with this tag: others are neither forgotten nor counted
        #[arg(long, value_name = "T")]
        tag: Option<String>,
        /// Only say what would be kept, and why
        #[arg(long)]
        dry_run: bool,
    },
    /// Free what no point refers to, in two steps beside running backups
    Prune {
        #[command(flatten)]
        place: Where,
        /// Rewrite packs of which more than this is not in use, in percent
        #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
        waste: u8,
        /// How long packs stay before they are removed: longer than the longest backup. 0 removes them at once, and is for when
        /// no backup runs
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_grace)]
        grace: Duration,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Check the structure: points, trees, index, packs
    Check {
        #[command(flatten)]
        place: Where,
    },
    /// Read everything again and authenticate it
    Verify {
        #[command(flatten)]
        place: Where,
        #[command(flatten)]
        scope: Scope,
    },
    /// Mend what parity covers, and make a lost index anew
    Repair {
        #[command(flatten)]
        place: Where,
    },
    /// Add, list and remove keys
    #[command(subcommand)]
    Key(KeyCommand),
}

/// What is verified.
#[derive(Debug, Args)]
pub struct Scope {
    /// Only authenticate objects, which any key can; do not open and compare pages
    #[arg(long)]
    pub no_data: bool,
    /// Only so many percent of the packs, others each time
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub percent: u8,
    /// The same packs as a verification that told this number
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Go on behind this pack, where a verification was broken off
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Add a key: a key file, which is made where there is none, or a passphrase
    Add {
        #[command(flatten)]
        place: Where,
        /// The new key's file; without it a new passphrase is asked for or taken from KEYFRAME_NEW_PASSPHRASE
        #[arg(long, value_name = "FILE")]
        new_key_file: Option<PathBuf>,
        /// For whom, instead: an age recipient (age1…); its identity opens the repository as a key file does
        #[arg(long, value_name = "RECIPIENT", conflicts_with = "new_key_file")]
        age_recipient: Option<String>,
        /// What it may do
        #[arg(long, value_enum, default_value_t = RightsArg::Full)]
        rights: RightsArg,
        /// What it is called
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
    },
    /// List keys
    List {
        #[command(flatten)]
        place: Where,
    },
    /// Remove a key
    Remove {
        #[command(flatten)]
        place: Where,
        /// The beginning of its id
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RightsArg {
    /// Tell whether objects are what was written
    Verify,
    /// Add points, read no page
    Write,
    /// Everything
    Full,
}

impl From<RightsArg> for Rights {
    fn from(arg: RightsArg) -> Self {
        match arg {
            RightsArg::Verify => Self::Verify,
            RightsArg::Write => Self::Write,
            RightsArg::Full => Self::Full,
        }
    }
}

/// Which points to keep, of each name. Days begin at midnight UTC.
#[derive(Debug, Args)]
pub struct Keep {
    /// The latest N
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_last: usize,
    /// The latest of each of N hours
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_hourly: usize,
    /// Of each of N days
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_daily: usize,
    /// Of each of N weeks
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_weekly: usize,
    /// Of each of N months
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_monthly: usize,
    /// Of each of N years
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_yearly: usize,
    /// All with this tag; can be given several times
    #[arg(long = "keep-tag", value_name = "T")]
    pub keep_tags: Vec<String>,
}

impl From<Keep> for Retention {
    fn from(keep: Keep) -> Self {
        Self {
            last: keep.keep_last,
            hourly: keep.keep_hourly,
            daily: keep.keep_daily,
            weekly: keep.keep_weekly,
            monthly: keep.keep_monthly,
            yearly: keep.keep_yearly,
            tags: keep.keep_tags,
        }
    }
}

/// A time to live, or 0.
fn parse_grace(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span: TimeToLive = text.parse().map_err(|error: keyframe_types::TimeError| error.to_string())?;
    Ok(span.duration())
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
    /// Write a stored image to a file, sparse
    Get {
        #[command(flatten)]
        place: Where,
        /// NAME for its latest point, NAME@T for one with a tag, or by the beginning of an id
        #[arg(value_name = "NAME[@T]")]
        point: String,
        /// The file, which must not be there yet
        file: PathBuf,
        /// Its format; qcow2 for a name that ends so, otherwise raw
        #[arg(long, value_enum)]
        format: Option<FormatArg>,
        /// Replace a file that is there, once the image is complete
        #[arg(long)]
        force: bool,
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
