//! A reader in a process of its own, as its command sees it.
//!
//! The command gives it blocks of disks and believes it nothing: answers are bounded, names are looked at by whoever uses them, a
//! process that is gone, or thinks too long, is an error of that question and all that follow.

mod sandbox;
mod serve;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fs::{About, DirEntry, FileSystem, Metadata, Node, Xattr};
use crate::volume::VolumeInfo;

pub use serve::serve;
use wire::{Answer, Ask, BYTES_MOST, Begin, Give, Say, receive, send};

/// How long a reader may think about one question, besides waiting for blocks.
const THINKS_MOST: Duration = Duration::from_secs(60);
/// Names in one directory.
const NAMES_MOST: usize = 8 << 20;

/// A reader of some disks.
pub struct Reader {
    disks: Vec<(String, Arc<dyn Disk>)>,
    line: Mutex<Line>,
}

struct Line {
    socket: UnixStream,
    child: Child,
    /// What it did that nothing is asked any more.
    gone: Option<String>,
}

impl Reader {
    /// Starts one: `command` runs [`serve`] on its standard input, which becomes a socket. It gets neither this process'
    /// environment nor anything that it has open.
    ///
    /// # Errors
    /// [`Error::Reader`].
    pub fn start(mut command: Command, disks: Vec<(String, Arc<dyn Disk>)>) -> Result<Arc<Self>> {
        let failed = |error: io::Error| Error::Reader { reason: format!("did not start: {error}") };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null()).env_clear().current_dir("/");
        let child = command.spawn().map_err(failed)?;
        // The other end is theirs alone: when they are gone, reading says so.
        drop(command);
        let mut line = Line { socket, child, gone: None };
        let begin = Begin { disks: disks.iter().map(|(name, disk)| (name.clone(), disk.len())).collect() };
        send(&mut line.socket, &begin, &[]).map_err(|error| line.lost(&error))?;
        Ok(Arc::new(Self { disks, line: Mutex::new(line) }))
    }

    /// What is on the disks; [`Self::open`] takes their numbers in this list.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Reader`].
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        match self.ask(&Ask::Volumes)? {
            (Answer::Volumes(volumes), _) => Ok(volumes),
            _ => Err(self.nonsense()),
        }
    }

    /// Opens the file system on a volume.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Damaged`], and as for [`Self::volumes`].
    pub fn open(self: &Arc<Self>, number: usize) -> Result<OpenVolume> {
        let volume = u32::try_from(number).map_err(|_| Error::NotFound)?;
        match self.ask(&Ask::Open { volume })? {
            (Answer::Opened(about, root), _) => Ok(OpenVolume { reader: Arc::clone(self), volume, about, root }),
            _ => Err(self.nonsense()),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, ask: &Ask) -> Result<(Answer, Vec<u8>)> {
        self.ask_each(ask, &mut Vec::new())
    }

    /// Asks, and gives what blocks are needed to answer.
    fn ask_each(&self, ask: &Ask, entries: &mut Vec<DirEntry>) -> Result<(Answer, Vec<u8>)> {
        let mut line = self.line();
        if let Some(reason) = &line.gone {
            return Err(Error::Reader { reason: reason.clone() });
        }
        send(&mut line.socket, ask, &[]).map_err(|error| line.lost(&error))?;
        let mut left = THINKS_MOST;
        loop {
            let asked = Instant::now();
            // Zero would be no bound at all.
            let bound = left.max(Duration::from_millis(1));
            line.socket.set_read_timeout(Some(bound)).map_err(|error| line.lost(&error))?;
            let (say, bytes) = receive::<Say>(&mut line.socket).map_err(|error| line.lost(&error))?;
            left = left.saturating_sub(asked.elapsed());
            match say {
                Say::Done(answer) => return Ok((answer, bytes)),
                Say::Failed(error) => return Err(error),
                Say::Entries(more) => {
                    if entries.len() + more.len() > NAMES_MOST {
                        return Err(line.end("names more files in a directory than there can be"));
                    }
                    entries.extend(more);
                }
                Say::Need { disk, at, len } => {
                    let (give, bytes) = match self.block(disk, at, len) {
                        Ok(bytes) => (Give::Bytes, bytes),
                        Err(error) => (Give::Trouble(error), Vec::new()),
                    };
                    send(&mut line.socket, &give, &bytes).map_err(|error| line.lost(&error))?;
                }
            }
        }
    }

    fn block(&self, disk: u32, at: u64, len: u32) -> Result<Vec<u8>> {
        let (_, disk) = self.disks.get(disk as usize).ok_or(Error::NotFound)?;
        let mut bytes = vec![0; BYTES_MOST.min(len as usize)];
        disk.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// An answer to something else: whoever gives it is not to be asked again.
    fn nonsense(&self) -> Error {
        self.line().end("answered what it was not asked")
    }
}

impl Line {
    /// Says why nothing more comes, and makes sure of it.
    fn lost(&mut self, error: &io::Error) -> Error {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let seconds = THINKS_MOST.as_secs();
            return self.end(&format!("found no answer within {seconds} s, and was ended"));
        }
        // Its own end says more than the socket's; it is at hand where there is one.
        for _ in 0..20 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return self.end(&ended(status));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.end(&format!("cannot be understood: {error}"))
    }

    fn end(&mut self, reason: &str) -> Error {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        Error::Reader { reason: self.gone.get_or_insert_with(|| reason.to_owned()).clone() }
    }
}

fn ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGSYS) => "tried what it has no right to, and was ended by the kernel".to_owned(),
        Some(libc::SIGABRT) => "ran out of memory, or of what it could make sense of, and ended".to_owned(),
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("ended with status {}", status.code().unwrap_or_default()),
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut line = self.line();
        // It has nothing that would have to be put in order.
        let _ = line.child.kill();
        let _ = line.child.wait();
    }
}

/// A file system that a reader has open.
#[derive(Clone)]
pub struct OpenVolume {
    reader: Arc<Reader>,
    volume: u32,
    about: About,
    root: Node,
}

impl FileSystem for OpenVolume {
    fn about(&self) -> About {
        self.about.clone()
    }

    fn root(&self) -> Node {
        self.root
    }

    /// All names come before the first is given: what is done with them may ask again.
    fn read_dir(&self, dir: Node, each: &mut dyn FnMut(DirEntry) -> Result<()>) -> Result<()> {
        let mut entries = Vec::new();
        match self.reader.ask_each(&Ask::ReadDir { volume: self.volume, dir }, &mut entries)? {
            (Answer::Listed, _) => entries.into_iter().try_for_each(each),
            _ => Err(self.reader.nonsense()),
        }
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        match self.reader.ask(&Ask::Lookup { volume: self.volume, dir, name: name.to_vec() })? {
            (Answer::Node(node), _) => Ok(node),
            _ => Err(self.reader.nonsense()),
        }
    }

    fn metadata(&self, node: Node) -> Result<Metadata> {
        match self.reader.ask(&Ask::Metadata { volume: self.volume, node })? {
            (Answer::Metadata(metadata), _) => Ok(metadata),
            _ => Err(self.reader.nonsense()),
        }
    }

    fn read_at(&self, node: Node, at: u64, into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        for part in into.chunks_mut(BYTES_MOST) {
            let ask = Ask::Read { volume: self.volume, node, at: at + done as u64, len: part.len() as u32 };
            let (Answer::Bytes, bytes) = self.reader.ask(&ask)? else { return Err(self.reader.nonsense()) };
            part.get_mut(..bytes.len()).ok_or_else(|| self.reader.nonsense())?.copy_from_slice(&bytes);
            done += bytes.len();
            if bytes.len() < part.len() {
                break;
            }
        }
        Ok(done)
    }

    fn data_from(&self, node: Node, at: u64) -> Result<u64> {
        match self.reader.ask(&Ask::DataFrom { volume: self.volume, node, at })? {
            (Answer::DataFrom(from), _) => Ok(from.max(at)),
            _ => Err(self.reader.nonsense()),
        }
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        match self.reader.ask(&Ask::ReadLink { volume: self.volume, node })? {
            (Answer::Link(target), _) => Ok(target),
            _ => Err(self.reader.nonsense()),
        }
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        match self.reader.ask(&Ask::Xattrs { volume: self.volume, node })? {
            (Answer::Xattrs(xattrs), _) => Ok(xattrs),
            _ => Err(self.reader.nonsense()),
        }
    }
}
