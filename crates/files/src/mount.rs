//! File systems of a point in a directory, by FUSE: read only, each under its volume's name.
//!
//! Nothing changes while it is mounted, so the kernel may keep all that it is told.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, MountOption, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyXattr, Request,
};

use crate::error::Error;
use crate::fs::{FileSystem, Kind, Metadata, Node, Time};

/// How long the kernel may believe what it was told.
const TTL: Duration = Duration::from_secs(3600);
/// Directories whose names are kept.
const LISTS_KEPT: usize = 64;
/// How often it is looked whether to end.
const LOOK: Duration = Duration::from_millis(100);

/// A file system and the name of its directory.
pub struct Mounted {
    /// The name: no slash is in it.
    pub name: String,
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
}

/// Mounts, and serves until it is unmounted or `cancel` is set; then it is unmounted.
///
/// # Errors
/// When it cannot be mounted or unmounted.
pub fn serve(volumes: Vec<Mounted>, dir: &Path, cancel: &AtomicBool, mounted: impl FnOnce()) -> io::Result<()> {
    let mut config = Config::default();
    let (source, subtype) = (MountOption::FSName("keyframe".into()), MountOption::Subtype("keyframe".into()));
    config.mount_options = vec![MountOption::RO, MountOption::NoSuid, MountOption::NoDev, source, subtype];
    let session = fuser::spawn_mount(Served::new(volumes), dir, &config)?;
    mounted();
    while !cancel.load(Ordering::Relaxed) && !session.guard.is_finished() {
        std::thread::sleep(LOOK);
    }
    session.umount_and_join()
}

/// What an inode stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    volume: usize,
    node: Node,
}

/// Numbers that were given to files; the first is the top, which has none of its own.
#[derive(Default)]
struct Numbers {
    places: Vec<Place>,
    known: HashMap<Place, u64>,
}

/// The number of the first file: the top has 1.
const FIRST: u64 = 2;

impl Numbers {
    fn of(&mut self, place: Place) -> u64 {
        *self.known.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.places.len() as u64 - 1 + FIRST
        })
    }

    fn place(&self, number: u64) -> Option<Place> {
        self.places.get(usize::try_from(number.checked_sub(FIRST)?).ok()?).copied()
    }
}

type Names = Vec<(u64, FileType, Vec<u8>)>;

struct Served {
    volumes: Vec<Mounted>,
    numbers: Mutex<Numbers>,
    lists: Mutex<HashMap<u64, Arc<Names>>>,
    begun: SystemTime,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::IsADirectory => Errno::EISDIR,
        Error::NotALink => Errno::EINVAL,
        Error::TooManyLinks => Errno::ELOOP,
        Error::Unsupported { .. } => Errno::ENOTSUP,
        Error::Damaged { .. } | Error::Disk { .. } | Error::Reader { .. } => Errno::EIO,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::CharDevice => FileType::CharDevice,
        Kind::Pipe => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn time(time: Option<Time>) -> SystemTime {
    let Some(time) = time else { return UNIX_EPOCH };
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

impl Served {
    fn new(volumes: Vec<Mounted>) -> Self {
        Self { volumes, numbers: Mutex::default(), lists: Mutex::default(), begun: SystemTime::now() }
    }

    fn top(&self) -> FileAttr {
        let at = self.begun;
        FileAttr {
            ino: INodeNo::ROOT,
            size: 0,
            blocks: 0,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn find(&self, number: INodeNo) -> Result<(&dyn FileSystem, Place), Error> {
        let place = lock(&self.numbers).place(number.0).ok_or(Error::NotFound)?;
        Ok((&*self.volumes.get(place.volume).ok_or(Error::NotFound)?.fs, place))
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr, Error> {
        if number == INodeNo::ROOT {
            return Ok(self.top());
        }
        let (fs, place) = self.find(number)?;
        let Metadata { kind, size, mode, owner, modified, changed, accessed, links, device } =
            fs.metadata(place.node)?;
        let top = self.top();
        Ok(FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: time(accessed.or(modified)),
            mtime: time(modified),
            ctime: time(changed.or(modified)),
            crtime: UNIX_EPOCH,
            kind: file_type(kind),
            perm: mode as u16,
            nlink: links,
            uid: owner.map_or(top.uid, |owner| owner.uid),
            gid: owner.map_or(top.gid, |owner| owner.gid),
            rdev: device.map_or(0, |(major, minor)| rustix::fs::makedev(major, minor) as u32),
            blksize: 4096,
            flags: 0,
        })
    }

    fn child(&self, parent: INodeNo, name: &[u8]) -> Result<FileAttr, Error> {
        let place = if parent == INodeNo::ROOT {
            let volume = self.volumes.iter().position(|volume| volume.name.as_bytes() == name);
            self.volume_root(volume.ok_or(Error::NotFound)?)?
        } else {
            let (fs, dir) = self.find(parent)?;
            Place { volume: dir.volume, node: fs.lookup(dir.node, name)? }
        };
        let number = lock(&self.numbers).of(place);
        self.attributes(INodeNo(number))
    }

    fn volume_root(&self, volume: usize) -> Result<Place, Error> {
        let node = self.volumes.get(volume).ok_or(Error::NotFound)?.fs.root();
        Ok(Place { volume, node })
    }

    fn names(&self, dir: INodeNo) -> Result<Arc<Names>, Error> {
        if let Some(known) = lock(&self.lists).get(&dir.0) {
            return Ok(Arc::clone(known));
        }
        let mut names: Names =
            vec![(dir.0, FileType::Directory, b".".to_vec()), (1, FileType::Directory, b"..".to_vec())];
        if dir == INodeNo::ROOT {
            for (n, volume) in self.volumes.iter().enumerate() {
                let number = lock(&self.numbers).of(self.volume_root(n)?);
                names.push((number, FileType::Directory, volume.name.clone().into_bytes()));
            }
        } else {
            let (fs, place) = self.find(dir)?;
            let mut entries = Vec::new();
            fs.read_dir(place.node, &mut |entry| {
                entries.push(entry);
                Ok(())
            })?;
            // The kernel would take a name with a slash for damage of ours.
            entries.retain(|entry| !entry.name.is_empty() && !entry.name.iter().any(|byte| matches!(byte, b'/' | 0)));
            for entry in entries {
                let number = lock(&self.numbers).of(Place { volume: place.volume, node: entry.node });
                // One that is damaged is seen, and cannot be opened.
                let kind = fs.metadata(entry.node).map_or(FileType::RegularFile, |metadata| file_type(metadata.kind));
                names.push((number, kind, entry.name));
            }
        }
        let names = Arc::new(names);
        let mut lists = lock(&self.lists);
        if lists.len() >= LISTS_KEPT {
            lists.clear();
        }
        lists.insert(dir.0, Arc::clone(&names));
        Ok(names)
    }

    fn xattrs(&self, number: INodeNo) -> Result<Vec<crate::fs::Xattr>, Error> {
        if number == INodeNo::ROOT {
            return Ok(Vec::new());
        }
        let (fs, place) = self.find(number)?;
        fs.xattrs(place.node)
    }
}

/// Answers by the protocol of attributes: their length first, then they themselves.
fn give(value: &[u8], size: u32, reply: ReplyXattr) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name.as_bytes()) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.find(ino).and_then(|(fs, place)| fs.read_link(place.node)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.find(ino).and_then(|(fs, place)| fs.read_at(place.node, offset, &mut bytes)) {
            Ok(read) => reply.data(bytes.get(..read).unwrap_or_default()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = match self.names(ino) {
            Ok(names) => names,
            Err(error) => return reply.error(errno(&error)),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (n, (number, kind, name)) in names.iter().enumerate().skip(from) {
            if reply.add(INodeNo(*number), n as u64 + 1, *kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.xattrs(ino) {
            Ok(all) => match all.iter().find(|(known, _)| known == name.as_bytes()) {
                Some((_, value)) => give(value, size, reply),
                None => reply.error(Errno::ENODATA),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.xattrs(ino) {
            Ok(all) => {
                let names: Vec<u8> = all.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect();
                give(&names, size, reply);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }
}
