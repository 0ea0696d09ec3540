//! One face for all file systems.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A file, directory or anything else with a name: meaningful only to the file system that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    /// Which of several trees: btrfs' subvolume, zero elsewhere.
    pub tree: u64,
    /// Which in the tree: the inode number, where there are such.
    pub number: u64,
}

impl Node {
    pub(crate) fn new(number: u64) -> Self {
        Self { tree: 0, number }
    }
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl Kind {
    /// By the file type of Unix' mode bits.
    pub(crate) fn of_mode(mode: u32) -> Option<Self> {
        Some(match mode >> 12 {
            0o01 => Self::Pipe,
            0o02 => Self::CharDevice,
            0o04 => Self::Directory,
            0o06 => Self::BlockDevice,
            0o10 => Self::File,
            0o12 => Self::Link,
            0o14 => Self::Socket,
            _ => return None,
        })
    }

    /// As `ls -l` shows it.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Directory => 'd',
            Self::Link => 'l',
            Self::BlockDevice => 'b',
            Self::CharDevice => 'c',
            Self::Pipe => 'p',
            Self::Socket => 's',
        }
    }

    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Link => "link",
            Self::BlockDevice => "block-device",
            Self::CharDevice => "char-device",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
        }
    }
}

/// An instant, in seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, before 1970 below zero.
    pub seconds: i64,
    /// And so many nanoseconds more; less than 10⁹.
    pub nanos: u32,
}

impl Time {
    pub(crate) fn new(seconds: i64, nanos: u32) -> Self {
        Self { seconds, nanos: nanos.min(999_999_999) }
    }
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// What is known of a file besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// How many bytes it has.
    pub size: u64,
    /// Permissions with set-id and sticky bits, 07777 at most; made up where the file system has none.
    pub mode: u32,
    /// Whose it is; `None` where the file system does not say in Unix' terms.
    pub owner: Option<Owner>,
    /// When its bytes changed last.
    pub modified: Option<Time>,
    /// When anything about it changed last.
    pub changed: Option<Time>,
    /// When it was read last.
    pub accessed: Option<Time>,
    /// How many names it has.
    pub links: u32,
    /// Device numbers of a device.
    pub device: Option<(u32, u32)>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// The name as it is stored: any bytes, neither trusted nor necessarily text.
    pub name: Vec<u8>,
    /// What it names.
    pub node: Node,
}

/// An extended attribute: name with its prefix, such as `user.origin`, and value, as Linux' system calls give them.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What a file system is, and what can be had of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its kind, such as `ext4`.
    pub kind: String,
    /// The name that it was given.
    pub label: String,
    /// Its identity, as tools print it.
    pub uuid: String,
    /// What does not come along: in words, for people.
    pub lacks: Vec<String>,
    /// What a reader should know: a journal that was read along, for instance.
    pub notes: Vec<String>,
}

/// A file system, read only. `.` and `..` are in no directory. All of it may be asked by several threads.
pub trait FileSystem: Send + Sync {
    /// What it is.
    fn about(&self) -> About;

    /// Its topmost directory.
    fn root(&self) -> Node;

    /// Gives each name in a directory, until `each` fails.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], damage, and what `each` says.
    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()>;

    /// What a name in a directory stands for.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`], damage.
    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        let mut found = None;
        self.read_dir(dir, &mut |entry| {
            if entry.name == name {
                found = Some(entry.node);
            }
            Ok(())
        })?;
        found.ok_or(Error::NotFound)
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// Damage.
    fn metadata(&self, node: Node) -> Result<Metadata>;

    /// Reads from a regular file; gives how many bytes, fewer than asked for only at the file's end.
    ///
    /// # Errors
    /// [`Error::IsADirectory`] for what is no regular file; damage.
    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize>;

    /// The first byte from here on that may be other than zero: `at` itself where nothing is known of holes, the file's size where
    /// nothing follows.
    ///
    /// # Errors
    /// Damage.
    fn data_from(&self, node: Node, at: u64) -> Result<u64> {
        let _any = node;
        Ok(at)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// [`Error::NotALink`], damage.
    fn read_link(&self, node: Node) -> Result<Vec<u8>>;

    /// Extended attributes.
    ///
    /// # Errors
    /// Damage.
    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>>;
}

/// Symbolic links that are followed on the way to one file, as in Linux.
const LINKS_MOST: u32 = 40;
/// The longest target of a symbolic link.
pub(crate) const TARGET_MOST: u64 = 4096;

/// Finds a file by its path from the root. Links on the way are followed within the file system; one at the end only with
/// `follow`.
///
/// # Errors
/// [`Error::NotFound`], [`Error::NotADirectory`], [`Error::TooManyLinks`], damage.
pub fn resolve(fs: &dyn FileSystem, path: &[u8], follow: bool) -> Result<Node> {
    let mut todo: Vec<Vec<u8>> = components(path);
    todo.reverse();
    let mut way = vec![fs.root()];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        match name.as_slice() {
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            b"." | b"" => continue,
            _ => {}
        }
        let dir = way.last().copied().unwrap_or_else(|| fs.root());
        let node = fs.lookup(dir, &name)?;
        let last = todo.is_empty();
        if (!last || follow) && fs.metadata(node)?.kind == Kind::Link {
            links += 1;
            if links > LINKS_MOST {
                return Err(Error::TooManyLinks);
            }
            let target = fs.read_link(node)?;
            if target.first() == Some(&b'/') {
                way.truncate(1);
            }
            todo.extend(components(&target).into_iter().rev());
            continue;
        }
        way.push(node);
    }
    Ok(way.last().copied().unwrap_or_else(|| fs.root()))
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// A UUID as tools print it.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().concat();
    [group(0, 4), group(4, 6), group(6, 8), group(8, 10), group(10, 16)].join("-")
}

/// What a name stands for in a file system whose names have no case: the exact one goes first.
pub(crate) fn lookup_without_case(fs: &dyn FileSystem, dir: Node, name: &[u8]) -> Result<Node> {
    let (mut exact, mut folded) = (None, None);
    let wanted = String::from_utf8_lossy(name).to_lowercase();
    fs.read_dir(dir, &mut |entry| {
        if entry.name == name {
            exact = Some(entry.node);
        } else if String::from_utf8_lossy(&entry.name).to_lowercase() == wanted {
            folded = Some(entry.node);
        }
        Ok(())
    })?;
    exact.or(folded).ok_or(Error::NotFound)
}
