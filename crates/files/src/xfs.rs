//! XFS, read by the crate lamxfs: of the readers there are, the one that reads the log along, without which a machine that ran has
//! wrong directories. It tells neither owners nor times nor attributes, and finds directories by path alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lamxfs::{BlockRead, EntryKind, Inode, Path};

use crate::bytes::Fields as _;
use crate::disk::{Disk, read_vec};
use crate::error::{Error, Result, damaged, unsupported};
use crate::fs::{About, DirEntry, FileSystem, Kind, Metadata, Node, Xattr};

/// Directories within directories.
const DEPTH_MOST: usize = 2048;

/// A file system.
pub struct Xfs {
    inner: Mutex<Inner>,
    trouble: Arc<Mutex<Option<Error>>>,
    label: String,
    uuid: String,
    root: u64,
}

struct Inner {
    fs: lamxfs::Xfs<Blocks>,
    /// Where directories and links were seen: in which directory, and under which name.
    seen: HashMap<u64, (u64, Vec<u8>)>,
}

/// The disk as the crate wants it, with what went wrong kept: the crate forgets that.
struct Blocks {
    disk: Arc<dyn Disk>,
    trouble: Arc<Mutex<Option<Error>>>,
}

impl BlockRead for Blocks {
    type Error = ();

    fn read_at(&mut self, at: u64, buf: &mut [u8]) -> std::result::Result<(), ()> {
        self.disk.read_at(at, buf).map_err(|error| {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        })
    }
}

fn told(error: &lamxfs::Error) -> Error {
    use lamxfs::{Error as Xfs, SuperblockReason as Reason};
    match error {
        Xfs::NotFound { .. } => Error::NotFound,
        Xfs::NotARegularFile => Error::IsADirectory,
        Xfs::NotASymlink => Error::NotALink,
        Xfs::UnsupportedFeature(what) => unsupported(format!("XFS with {what}")),
        Xfs::BadSuperblock(Reason::DirtyLog) => {
            unsupported("XFS with a log that cannot be read along: a machine has to mount it once")
        }
        Xfs::BadSuperblock(Reason::ExternalLog) => unsupported("XFS with its log on another device"),
        Xfs::BadSuperblock(Reason::RealtimeDevice) => unsupported("XFS with a realtime device"),
        other => damaged(format!("XFS ({other:?})")),
    }
}

impl Xfs {
    /// Opens it, with its log read along.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Unsupported`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self> {
        let root = read_vec(&*disk, 0, 512)?.be64(56)?;
        let trouble = Arc::new(Mutex::new(None));
        let blocks = Blocks { disk: Arc::clone(&disk), trouble: Arc::clone(&trouble) };
        let fs = match lamxfs::Xfs::open(blocks, disk.len()) {
            Ok(fs) => fs,
            Err(error) => {
                let disk_error = trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(disk_error.unwrap_or_else(|| told(&error)));
            }
        };
        let (label, uuid) = (fs.label().unwrap_or_default().to_owned(), crate::fs::uuid(&fs.uuid()));
        Ok(Self { inner: Mutex::new(Inner { fs, seen: HashMap::new() }), trouble, label, uuid, root })
    }

    /// What the disk said goes before what the crate makes of it.
    fn said(&self, error: &lamxfs::Error) -> Error {
        let disk_error = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        disk_error.unwrap_or_else(|| told(error))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The path of a directory or link that was seen before.
    fn path(&self, root: u64, number: u64) -> Result<Vec<u8>> {
        let (mut names, mut here) = (Vec::new(), number);
        while here != root {
            let (dir, name) = self.seen.get(&here).ok_or(Error::NotFound)?;
            names.push(name.as_slice());
            here = *dir;
            if names.len() > DEPTH_MOST {
                return Err(damaged("an XFS directory lies within itself"));
            }
        }
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend(name);
        }
        Ok(if path.is_empty() { b"/".to_vec() } else { path })
    }

    fn see(&mut self, dir: u64, name: &[u8], number: u64) {
        self.seen.insert(number, (dir, name.to_vec()));
    }
}

impl FileSystem for Xfs {
    fn about(&self) -> About {
        About {
            kind: "xfs".to_owned(),
            label: self.label.clone(),
            uuid: self.uuid.clone(),
            lacks: vec!["of XFS no owners, times, hard links and extended attributes are known".to_owned()],
            notes: Vec::new(),
        }
    }

    fn root(&self) -> Node {
        Node::new(self.root)
    }

    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        let mut inner = self.inner();
        if !inner.fs.metadata(&Inode { ino: dir.number }).map_err(|error| self.said(&error))?.is_dir() {
            return Err(Error::NotADirectory);
        }
        let path = inner.path(self.root, dir.number)?;
        let entries = inner.fs.read_dir(Path::new(&path)).map_err(|error| self.said(&error))?;
        for entry in entries {
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            if entry.kind != EntryKind::Regular {
                inner.see(dir.number, &entry.name, entry.inode_number);
            }
            each(DirEntry { name: entry.name, node: Node::new(entry.inode_number) })?;
        }
        Ok(())
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        let mut inner = self.inner();
        let mut path = inner.path(self.root, dir.number)?;
        path.push(b'/');
        path.extend(name);
        let found = inner.fs.resolve(Path::new(&path)).map_err(|error| self.said(&error))?;
        inner.see(dir.number, name, found.ino);
        Ok(Node::new(found.ino))
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        let metadata = self.inner().fs.metadata(&Inode { ino: node.number }).map_err(|error| self.said(&error))?;
        let mode = metadata.mode();
        let kind = Kind::of_mode(mode).ok_or_else(|| damaged(format!("XFS inode {} is of no type", node.number)))?;
        Ok(Metadata {
            kind,
            size: metadata.size(),
            mode: mode & 0o7777,
            owner: None,
            modified: None,
            changed: None,
            accessed: None,
            links: 1,
            device: None,
        })
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let rest = into.get_mut(done..).unwrap_or_default();
            let inode = Inode { ino: node.number };
            let read =
                self.inner().fs.read_file_at(&inode, at + done as u64, rest).map_err(|error| self.said(&error))?;
            if read == 0 {
                break;
            }
            done += read;
        }
        Ok(done)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let mut inner = self.inner();
        let path = inner.path(self.root, node.number)?;
        inner.fs.read_link(Path::new(&path)).map_err(|error| self.said(&error))
    }

    fn xattrs(&self, _node: Node) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }
}
