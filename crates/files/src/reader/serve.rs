//! The reader's process: answers questions, asks for blocks.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sandbox;
use super::wire::{Answer, Ask, BYTES_MOST, Begin, Give, Say, receive, send};
use crate::disk::{Disk, behind_end};
use crate::error::{Error, Result, damaged};
use crate::fs::FileSystem;
use crate::volume::{self, Volume};

/// Small reads are served from pieces of so many bytes.
const CHUNK: u64 = 64 << 10;
/// So many of which are kept.
const CHUNKS_KEPT: usize = 512;
/// Names in one message.
const PORTION: usize = 512;

/// Serves the command at the other end of the socket until that goes away. Gives up all rights first.
///
/// # Errors
/// When it cannot be locked in: then nothing is read.
pub fn serve(socket: UnixStream) -> io::Result<()> {
    sandbox::enter()?;
    let line = Arc::new(Line { socket: Mutex::new(socket), kept: Mutex::default() });
    let (begin, _) = receive::<Begin>(&mut *lock(&line.socket))?;
    let disks = begin.disks.into_iter().zip(0..).map(|((name, len), number)| {
        let disk: Arc<dyn Disk> = Arc::new(AskedDisk { line: Arc::clone(&line), number, name: name.clone(), len });
        (name, disk)
    });
    let mut state =
        State { line: Arc::clone(&line), disks: disks.collect(), volumes: Vec::new(), open: HashMap::new() };
    loop {
        let ask = receive::<Ask>(&mut *lock(&line.socket));
        let ask = match ask {
            Ok((ask, _)) => ask,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let (say, bytes) = match state.answer(ask) {
            Ok((answer, bytes)) => (Say::Done(answer), bytes),
            Err(error) => (Say::Failed(error), Vec::new()),
        };
        send(&mut *lock(&line.socket), &say, &bytes)?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // There is one thread.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State {
    line: Arc<Line>,
    disks: Vec<(String, Arc<dyn Disk>)>,
    volumes: Vec<Volume>,
    open: HashMap<u32, Box<dyn FileSystem>>,
}

impl State {
    fn answer(&mut self, ask: Ask) -> Result<(Answer, Vec<u8>)> {
        let answer = match ask {
            Ask::Volumes => {
                self.volumes = volume::scan(&self.disks)?;
                Answer::Volumes(self.volumes.iter().map(|volume| volume.info.clone()).collect())
            }
            Ask::Open { volume } => {
                let found = self.volumes.get(volume as usize).ok_or(Error::NotFound)?;
                let fs = found.open()?;
                let answer = Answer::Opened(fs.about(), fs.root());
                self.open.insert(volume, fs);
                answer
            }
            Ask::Lookup { volume, dir, name } => Answer::Node(self.fs(volume)?.lookup(dir, &name)?),
            Ask::ReadDir { volume, dir } => {
                self.list(volume, dir)?;
                Answer::Listed
            }
            Ask::Metadata { volume, node } => Answer::Metadata(self.fs(volume)?.metadata(node)?),
            Ask::Read { volume, node, at, len } => {
                let mut bytes = vec![0; BYTES_MOST.min(len as usize)];
                let read = self.fs(volume)?.read_at(node, at, &mut bytes)?;
                bytes.truncate(read);
                return Ok((Answer::Bytes, bytes));
            }
            Ask::DataFrom { volume, node, at } => Answer::DataFrom(self.fs(volume)?.data_from(node, at)?),
            Ask::ReadLink { volume, node } => Answer::Link(self.fs(volume)?.read_link(node)?),
            Ask::Xattrs { volume, node } => Answer::Xattrs(self.fs(volume)?.xattrs(node)?),
        };
        Ok((answer, Vec::new()))
    }

    fn fs(&self, volume: u32) -> Result<&dyn FileSystem> {
        self.open.get(&volume).map(|fs| &**fs).ok_or(Error::NotFound)
    }

    fn list(&self, volume: u32, dir: crate::fs::Node) -> Result<()> {
        let say = |entries| {
            let sent = send(&mut *lock(&self.line.socket), &Say::Entries(entries), &[]);
            sent.map_err(|error| Error::Reader { reason: error.to_string() })
        };
        let mut portion = Vec::new();
        self.fs(volume)?.read_dir(dir, &mut |entry| {
            portion.push(entry);
            if portion.len() == PORTION { say(std::mem::take(&mut portion)) } else { Ok(()) }
        })?;
        say(portion)
    }
}

/// The socket, and pieces of disks that came through it.
struct Line {
    socket: Mutex<UnixStream>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    chunks: HashMap<(u32, u64), Arc<Vec<u8>>>,
    order: VecDeque<(u32, u64)>,
}

struct AskedDisk {
    line: Arc<Line>,
    number: u32,
    name: String,
    len: u64,
}

impl AskedDisk {
    fn ask(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut socket = lock(&self.line.socket);
        let lost = |error: io::Error| Error::Disk {
            disk: self.name.clone(),
            at,
            end: at + len as u64,
            reason: error.to_string(),
        };
        send(&mut *socket, &Say::Need { disk: self.number, at, len: len as u32 }, &[]).map_err(lost)?;
        match receive::<Give>(&mut *socket).map_err(lost)? {
            (Give::Bytes, bytes) if bytes.len() == len => Ok(bytes),
            (Give::Bytes, _) => Err(damaged("fewer bytes than were asked for")),
            (Give::Trouble(error), _) => Err(error),
        }
    }

    fn chunk(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        let key = (self.number, number);
        if let Some(chunk) = lock(&self.line.kept).chunks.get(&key) {
            return Ok(Arc::clone(chunk));
        }
        let at = number * CHUNK;
        let chunk = Arc::new(self.ask(at, CHUNK.min(self.len - at) as usize)?);
        let mut kept = lock(&self.line.kept);
        kept.chunks.insert(key, Arc::clone(&chunk));
        kept.order.push_back(key);
        if kept.order.len() > CHUNKS_KEPT
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.chunks.remove(&oldest);
        }
        Ok(chunk)
    }
}

impl Disk for AskedDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.len) {
            return Err(behind_end());
        }
        if into.len() as u64 >= CHUNK {
            for (part, start) in into.chunks_mut(BYTES_MOST).zip((at..).step_by(BYTES_MOST)) {
                part.copy_from_slice(&self.ask(start, part.len())?);
            }
            return Ok(());
        }
        let mut done = 0;
        while done < into.len() {
            let here = at + done as u64;
            let chunk = self.chunk(here / CHUNK)?;
            let within = (here % CHUNK) as usize;
            let len = (chunk.len() - within).min(into.len() - done);
            let source = chunk.get(within..within + len).ok_or_else(behind_end)?;
            into.get_mut(done..done + len).ok_or_else(behind_end)?.copy_from_slice(source);
            done += len;
        }
        Ok(())
    }
}
