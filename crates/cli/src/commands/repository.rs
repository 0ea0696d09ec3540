//! What commands on repositories share: opening one, telling how it ended.

use std::env;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use keyframe_repo::{Error, Kind, Repository, Run, Unlock};
use keyframe_store::{CacheStore, LimitStore, LocalStore, RetryStore, S3Store, SftpStore, Store};
use zeroize::Zeroizing;

use super::credentials;
use crate::output::Output;
use crate::progress::Terminal;
use crate::repo_args::Where;

/// A connection that broke is tried so often: for about a minute.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// The surroundings of a command.
pub struct Ctx<'a> {
    pub run: Run<'a>,
    pub output: &'a Output,
}

/// Carries a command out; tells how it ended, and with which exit status.
pub fn carry_out(
    progress: &Terminal,
    cancel: &AtomicBool,
    output: &Output,
    command: impl FnOnce(&Ctx<'_>) -> Result<u8, Error>,
) -> u8 {
    keep_memory();
    let outcome = command(&Ctx { run: Run { progress, cancel }, output });
    progress.clear();
    outcome.unwrap_or_else(|error| {
        output.failure(&error);
        match error.kind() {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 10,
            Kind::WrongKey => 12,
            Kind::Interrupted => 130,
        }
    })
}

/// Has the allocator keep memory that is used again and again: taking it from the kernel anew for each frame costs more than
/// compressing it.
pub fn keep_memory() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 64 << 20)] {
        // SAFETY: `mallopt` takes two integers and changes thresholds of the allocator only; it refuses what it does not
        // know, and then everything is as before.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Bytes of a distant repository that are kept here.
const CACHE_BYTES: u64 = 1 << 30;

/// Whether objects may come out of the local cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// What the store itself has: to say whether it is whole.
    Store,
    /// What is known of a distant store.
    Cache,
}

/// The store that is named.
pub fn store(place: &Where, create: bool, reading: Reading) -> Result<Arc<dyn Store>, Error> {
    let mut store = plain_store(&place.repo, create)?;
    if let Some(limit) = place.access.bandwidth {
        store = Arc::new(LimitStore::new(store, limit.bytes()));
    }
    let distant = place.repo.contains("://");
    match cache_dir().filter(|_| distant && reading == Reading::Cache && !place.access.no_cache) {
        Some(dir) => Ok(Arc::new(CacheStore::new(store, &CacheStore::<()>::dir(&dir, &place.repo), CACHE_BYTES))),
        None => Ok(store),
    }
}

/// Where users' caches lie; none for somebody without a home.
fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("keyframe"))
}

fn plain_store(text: &str, create: bool) -> Result<Arc<dyn Store>, Error> {
    if text.starts_with("s3://") {
        return Ok(Arc::new(RetryStore::new(S3Store::new(text, credentials::of_s3())?, ATTEMPTS, FIRST_PAUSE)));
    }
    if text.starts_with("sftp://") {
        let store = SftpStore::new(text)?;
        if create {
            store.create_root()?;
        } else if !store.has_root()? {
            return Err(Error::NoRepository { place: text.to_owned() });
        }
        return Ok(Arc::new(RetryStore::new(store, ATTEMPTS, FIRST_PAUSE)));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(usage(&format!(
            "repositories lie in directories, behind sftp:// and behind s3://; {scheme}:// is not known"
        )));
    }
    let path = Path::new(text);
    if create {
        return Ok(Arc::new(LocalStore::create(path)?));
    }
    if !path.is_dir() {
        return Err(Error::NoRepository { place: text.to_owned() });
    }
    Ok(Arc::new(LocalStore::open(path)?))
}

/// Removes what crashed writers and broken connections left half-written long ago; gives how many files that were.
pub fn tidy(place: &Where) -> Result<u64, Error> {
    const AGE: Duration = Duration::from_secs(24 * 3600);
    let text = place.repo.as_str();
    Ok(match text {
        // A bucket has whole objects only.
        _ if text.starts_with("s3://") => 0,
        _ if text.starts_with("sftp://") => SftpStore::new(text)?.tidy(AGE)?,
        _ => LocalStore::open(Path::new(text))?.tidy(AGE)?,
    })
}

/// Opens the repository that is named with the key that is given.
pub fn open(place: &Where) -> Result<Repository, Error> {
    open_reading(place, Reading::Cache)
}

/// The same, saying where objects come from.
pub fn open_reading(place: &Where, reading: Reading) -> Result<Repository, Error> {
    opened(place, reading).map(|(repository, _)| repository)
}

/// The same, with the passphrase that opened it, for processes that open it again.
pub fn opened(place: &Where, reading: Reading) -> Result<(Repository, Option<Zeroizing<String>>), Error> {
    let store = store(place, false, reading)?;
    let config = Repository::config_of(&*store)?;
    let mut typed = None;
    let unlock = match &place.access.key_file {
        Some(path) => Unlock::from_file(path)?,
        None if !config.encrypted => Unlock::Nothing,
        None => {
            let text = passphrase("Passphrase: ")?;
            typed = Some(text.clone());
            Unlock::Passphrase(text)
        }
    };
    Ok((Repository::open(store, &unlock)?, typed))
}

/// The passphrase from the environment, from the credential of that name, or from a person at a terminal.
pub fn passphrase(prompt: &str) -> Result<Zeroizing<String>, Error> {
    match credentials::value("KEYFRAME_PASSPHRASE")? {
        Some(text) => Ok(text),
        None => asked_passphrase(prompt),
    }
}

/// The passphrase from a person at a terminal.
pub fn asked_passphrase(prompt: &str) -> Result<Zeroizing<String>, Error> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("a key is needed: --key-file, KEYFRAME_KEY_FILE or KEYFRAME_PASSPHRASE"));
    }
    let text = hidden_line(prompt).map_err(|source| Error::Io {
        action: "read a passphrase from",
        path: "the terminal".into(),
        source,
    })?;
    if text.is_empty() { Err(usage("the passphrase is empty")) } else { Ok(text) }
}

/// Reads a line that the terminal does not show.
fn hidden_line(prompt: &str) -> std::io::Result<Zeroizing<String>> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    eprint!("{prompt}");
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let mut line = Zeroizing::new(String::new());
    let read = stdin.read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &shown)?;
    eprintln!();
    read?;
    Ok(Zeroizing::new(line.trim_end_matches(['\n', '\r']).to_owned()))
}

pub fn usage(what: &str) -> Error {
    Error::Usage { what: what.to_owned() }
}
