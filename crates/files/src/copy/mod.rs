//! Files out of a file system into a directory here.
//!
//! Names come from a guest, so none is believed: every step goes through a directory that is held open, never through a symbolic
//! link, never by a name with a slash or a dot of its own. What is there already stays, unless it is told to go; what is copied has its
//! name only under a fresh file, and none when it does not come whole.

mod place;

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::AsFd as _;
use serde::Serialize;

use crate::error::Error as FsError;
use crate::fs::{FileSystem, Kind, Metadata, Node};

use place::{Dir, Kept};

/// Directories within directories. Each is held open.
const DEPTH_MOST: usize = 256;
/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;
/// Troubles that are told one by one.
const TROUBLES_MOST: usize = 1000;

/// Why nothing was copied at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be right.
    #[error("{what}")]
    BadRequest {
        /// What, and why.
        what: String,
    },
    /// The place to copy to cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What to copy.
pub struct Source {
    /// Out of which file system.
    pub fs: Arc<dyn FileSystem>,
    /// Which file, link or directory.
    pub node: Node,
    /// Its name there: empty for the topmost directory.
    pub name: Vec<u8>,
}

/// How.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Directories with all that is in them.
    pub recursive: bool,
    /// Files that are there are replaced.
    pub force: bool,
    /// Owners are kept: needs to be root.
    pub owners: bool,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Further names of files that were copied already.
    pub hard_links: u64,
    /// Bytes of files, holes included.
    pub bytes: u64,
    /// What did not come: where, and why; at most a thousand.
    pub troubles: Vec<String>,
    /// How many in all.
    pub troubles_total: u64,
    /// What is not as it was, in words.
    pub lost: Vec<String>,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

/// Copies into `dest`: into it where it is a directory, else under that name.
///
/// # Errors
/// Only when it cannot begin; what fails later is told in the report, and the rest goes on.
pub fn copy(sources: &[Source], dest: &Path, options: Options, cancel: &AtomicBool) -> Result<Copied, Error> {
    let into = dest.is_dir();
    if !into && sources.len() > 1 {
        return Err(Error::BadRequest {
            what: format!("{} is no directory to copy several files into", dest.display()),
        });
    }
    let (dir, name) = if into { (dest, None) } else { parted(dest)? };
    let place = Dir::open(dir).map_err(|source| Error::Io { action: "open", path: dir.to_owned(), source })?;
    let mut job = Job {
        options,
        cancel,
        report: Copied::default(),
        kept: Kept::new(options.owners),
        names: HashMap::new(),
        seen: HashSet::new(),
        root: place,
        way: Vec::new(),
    };
    for source in sources {
        let lacks = source.fs.about().lacks;
        lacks.into_iter().for_each(|lack| job.kept.lose(lack));
        let name = name.unwrap_or(&source.name).to_vec();
        job.one(source, &name);
    }
    job.report.lost = job.kept.into_lost();
    Ok(job.report)
}

/// The directory that a new name is made in, and the name.
fn parted(dest: &Path) -> Result<(&Path, Option<&[u8]>), Error> {
    let name =
        dest.file_name().ok_or_else(|| Error::BadRequest { what: format!("{} names nothing", dest.display()) })?;
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    Ok((dir, Some(name.as_bytes())))
}

struct Job<'a> {
    options: Options,
    cancel: &'a AtomicBool,
    report: Copied,
    kept: Kept,
    /// Where files with several names are.
    names: HashMap<(usize, Node), Vec<Vec<u8>>>,
    /// Directories that were copied: a damaged file system names one twice, or within itself.
    seen: HashSet<(usize, Node)>,
    root: Dir,
    /// Names from the root to where it is at work.
    way: Vec<Vec<u8>>,
}

/// What keeps one file from being copied.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    #[error("{0}")]
    Refused(&'static str),
}

impl Job<'_> {
    fn one(&mut self, source: &Source, name: &[u8]) {
        let root = match self.root.again() {
            Ok(root) => root,
            Err(error) => return self.trouble(&Trouble::Io("cannot open its directory", error)),
        };
        if name.is_empty() {
            // The topmost directory has no name: what is in it goes where it is copied to.
            if !self.options.recursive {
                return self.trouble(&Trouble::Refused("is a directory: -r copies it"));
            }
            return self.entries(source, source.node, &root);
        }
        self.entry(source, source.node, name, &root);
    }

    fn trouble(&mut self, trouble: &Trouble) {
        self.report.troubles_total += 1;
        if self.report.troubles.len() < TROUBLES_MOST {
            let shown: Vec<String> = self.way.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            let shown = shown.join("/");
            self.report
                .troubles
                .push(format!("{}: {trouble}", if shown.is_empty() { "/" } else { &shown }.escape_debug()));
        }
    }

    fn entry(&mut self, source: &Source, node: Node, name: &[u8], dir: &Dir) {
        if self.cancel.load(Ordering::Relaxed) {
            self.report.interrupted = true;
            return;
        }
        self.way.push(name.to_vec());
        if let Err(trouble) = self.try_entry(source, node, name, dir) {
            self.trouble(&trouble);
        }
        self.way.pop();
    }

    fn try_entry(&mut self, source: &Source, node: Node, name: &[u8], dir: &Dir) -> Result<(), Trouble> {
        if !place::is_name(name) {
            return Err(Trouble::Refused("is no name that a file can have here"));
        }
        let metadata = source.fs.metadata(node)?;
        let key = (std::ptr::from_ref(source) as usize, node);
        if metadata.kind != Kind::Directory
            && metadata.links > 1
            && let Some(first) = self.names.get(&key)
        {
            let first = first.clone();
            self.root
                .link(&first, dir, name, self.options.force)
                .map_err(|error| Trouble::Io("cannot be linked", error))?;
            self.report.hard_links += 1;
            return Ok(());
        }
        match metadata.kind {
            Kind::File => self.file(source, node, &metadata, name, dir)?,
            Kind::Link => {
                let target = source.fs.read_link(node)?;
                let made = dir.symlink(&target, name, self.options.force);
                made.map_err(|error| Trouble::Io("cannot be made", error))?;
                self.kept.of_link(dir, name, &metadata);
                self.report.links += 1;
            }
            Kind::Directory => return self.directory(source, node, &metadata, name, dir),
            Kind::BlockDevice | Kind::CharDevice | Kind::Pipe | Kind::Socket => {
                self.kept.lose("devices, pipes and sockets are not copied".to_owned());
                return Ok(());
            }
        }
        if metadata.links > 1 {
            self.names.insert(key, self.way.clone());
        }
        Ok(())
    }

    fn file(
        &mut self,
        source: &Source,
        node: Node,
        metadata: &Metadata,
        name: &[u8],
        dir: &Dir,
    ) -> Result<(), Trouble> {
        let failed = |error| Trouble::Io("cannot be written", error);
        let mut target = dir.create(name, self.options.force).map_err(failed)?;
        let mut buf = vec![0; PIECE];
        let mut at = 0;
        while at < metadata.size {
            if self.cancel.load(Ordering::Relaxed) {
                self.report.interrupted = true;
                return Ok(());
            }
            at = source.fs.data_from(node, at)?;
            if at >= metadata.size {
                break;
            }
            let read = source.fs.read_at(node, at, &mut buf)?;
            if read == 0 {
                return Err(Trouble::Refused("is shorter than its own size: the disk's content is damaged"));
            }
            target.write_sparse(at, buf.get(..read).unwrap_or_default()).map_err(failed)?;
            at += read as u64;
        }
        target.set_len(metadata.size).map_err(failed)?;
        self.kept.of(target.as_fd(), metadata, &source.fs.xattrs(node)?);
        target.done().map_err(failed)?;
        self.report.files += 1;
        self.report.bytes += metadata.size;
        Ok(())
    }

    fn directory(
        &mut self,
        source: &Source,
        node: Node,
        metadata: &Metadata,
        name: &[u8],
        dir: &Dir,
    ) -> Result<(), Trouble> {
        if !self.options.recursive {
            return Err(Trouble::Refused("is a directory: -r copies it"));
        }
        if self.way.len() > DEPTH_MOST {
            return Err(Trouble::Refused("lies too deep: 256 directories are the most"));
        }
        if !self.seen.insert((std::ptr::from_ref(source) as usize, node)) {
            return Err(Trouble::Refused("is a directory that was met before: the disk's content is damaged"));
        }
        let (target, fresh) = dir.directory(name).map_err(|error| Trouble::Io("cannot be made", error))?;
        self.report.directories += 1;
        self.entries(source, node, &target);
        // Last: what is made in it changes its time, and it may be one that nobody may write to.
        if fresh {
            self.kept.of(target.as_fd(), metadata, &source.fs.xattrs(node)?);
        }
        Ok(())
    }

    fn entries(&mut self, source: &Source, node: Node, dir: &Dir) {
        let mut entries = Vec::new();
        let listed = source.fs.read_dir(node, &mut |entry| {
            entries.push(entry);
            Ok(())
        });
        if let Err(error) = listed {
            // What was listed until then is worth having.
            self.trouble(&Trouble::Fs(error));
        }
        for entry in entries {
            self.entry(source, entry.node, &entry.name, dir);
        }
    }
}
