//! From frames to stored packs: sealers and writers.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use keyframe_store::Put;

use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::frame::{Compressor, FrameName};
use crate::ids::{Fingerprint, ObjectKind};
use crate::index::IndexWriter;
use crate::pack::{Content, Directory, PackKey, TableEntry};
use crate::repository::Repository;

/// Frames of a pack: 20 MiB before compression. Larger packs would be fewer objects, and more memory: several are on their way
/// at once.
pub const PACK_FRAMES: u32 = 40;

/// A frame on its way to a pack.
#[derive(Debug)]
pub struct Frame {
    pack: Arc<OpenPack>,
    number: u32,
    raw: Vec<u8>,
    fingerprints: Vec<Fingerprint>,
}

/// A pack that frames are on their way to.
#[derive(Debug)]
pub struct OpenPack {
    key: PackKey,
    arrived: Mutex<Arrived>,
}

/// Sealed frames with their pages' fingerprints, each at the place of its number.
type SealedFrames = Vec<Option<(Vec<u8>, Vec<Fingerprint>)>>;

#[derive(Debug, Default)]
struct Arrived {
    frames: SealedFrames,
    count: u32,
    /// How many there will be, once that is known.
    expected: Option<u32>,
}

impl Arrived {
    fn take_if_complete(&mut self) -> Option<SealedFrames> {
        (self.expected == Some(self.count) && self.count > 0).then(|| std::mem::take(&mut self.frames))
    }
}

/// A complete pack on its way to the store.
type Complete = (Arc<OpenPack>, SealedFrames);

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// The packs.
    pub index: IndexWriter,
    /// Bytes of packs.
    pub bytes: u64,
}

/// Where finished frames go: the sealers' and writers' queues.
#[derive(Debug)]
pub struct Queues {
    pub frames: SyncSender<Frame>,
    pub complete: SyncSender<Complete>,
}

/// Gives out packs and frame numbers; one for pages and one for nodes.
#[derive(Debug)]
pub struct FrameOutlet<'a> {
    repository: &'a Repository,
    content: Content,
    queues: &'a Queues,
    open: Option<(Arc<OpenPack>, u32)>,
}

impl<'a> FrameOutlet<'a> {
    pub fn new(repository: &'a Repository, content: Content, queues: &'a Queues) -> Self {
        Self { repository, content, queues, open: None }
    }

    /// The name that the next frame will have.
    pub fn next_name(&mut self) -> Result<FrameName> {
        if self.open.as_ref().is_some_and(|(_, used)| *used >= PACK_FRAMES) {
            self.close()?;
        }
        let (pack, used) = match &mut self.open {
            Some(open) => open,
            none => {
                let key = PackKey::new(self.repository.keys(), self.content)?;
                none.insert((Arc::new(OpenPack { key, arrived: Mutex::default() }), 0))
            }
        };
        Ok(FrameName { pack: pack.key.id, number: *used })
    }

    /// Sends a frame off under the name that was told last.
    pub fn send(&mut self, raw: Vec<u8>, fingerprints: Vec<Fingerprint>) -> Result<()> {
        self.next_name()?;
        let (pack, used) = self.open.as_mut().ok_or(Error::Pipeline)?;
        let frame = Frame { pack: Arc::clone(pack), number: *used, raw, fingerprints };
        *used += 1;
        self.queues.frames.send(frame).map_err(|_| Error::Pipeline)
    }

    /// No more frames go to the open pack.
    pub fn close(&mut self) -> Result<()> {
        let Some((pack, used)) = self.open.take() else { return Ok(()) };
        let complete = {
            let mut arrived = pack.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            arrived.expected = Some(used);
            arrived.take_if_complete()
        };
        match complete {
            Some(frames) => self.queues.complete.send((pack, frames)).map_err(|_| Error::Pipeline),
            None => Ok(()),
        }
    }
}

/// A sealer: compresses and seals frames until there are no more.
pub fn seal_frames(frames: &Mutex<Receiver<Frame>>, complete: &SyncSender<Complete>, level: i32, failure: &Failure) {
    let mut compressor = Compressor::new(level).map_err(|error| failure.report(error)).ok();
    loop {
        let next = frames.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(frame) = next else { return };
        let Some(compressor) = compressor.as_mut().filter(|_| !failure.happened()) else {
            // Whoever waits for room in the queue must not wait for ever.
            continue;
        };
        let Frame { pack, number, raw, fingerprints } = frame;
        let sealed = match compressor.seal(&raw, 0, &pack.key.key, pack.key.nonce(number)) {
            Ok(sealed) => sealed,
            Err(error) => {
                failure.report(error);
                continue;
            }
        };
        drop(raw);
        let done = {
            let mut arrived = pack.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            let place = number as usize;
            if arrived.frames.len() <= place {
                arrived.frames.resize_with(place + 1, || None);
            }
            if let Some(slot) = arrived.frames.get_mut(place) {
                *slot = Some((sealed, fingerprints));
            }
            arrived.count += 1;
            arrived.take_if_complete()
        };
        if let Some(frames) = done {
            // The writers end last; if they are gone they have said why.
            let _ = complete.send((pack, frames));
        }
    }
}

/// A writer: stores complete packs until there are no more.
pub fn write_packs(
    repository: &Repository,
    complete: &Mutex<Receiver<Complete>>,
    written: &Mutex<Written>,
    failure: &Failure,
) {
    let mut memory = Vec::new();
    loop {
        let next = complete.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((pack, frames)) = next else { return };
        if failure.happened() {
            continue;
        }
        if let Err(error) = write_pack(repository, &pack.key, frames, written, &mut memory) {
            failure.report(error);
        }
    }
}

fn write_pack(
    repository: &Repository,
    key: &PackKey,
    frames: SealedFrames,
    written: &Mutex<Written>,
    memory: &mut Vec<u8>,
) -> Result<()> {
    let mut directory = Directory { content: key.content, frames: Vec::new(), fingerprints: Vec::new() };
    let mut sealed = Vec::with_capacity(frames.len());
    for (number, frame) in frames.into_iter().enumerate() {
        let (bytes, fingerprints) = frame.ok_or(Error::Pipeline)?;
        directory.frames.push(TableEntry {
            name: FrameName { pack: key.id, number: number as u32 },
            stored: u32::try_from(bytes.len()).map_err(|_| Error::Pipeline)?,
            pages: fingerprints.len() as u16,
        });
        directory.fingerprints.extend(fingerprints);
        sealed.push(bytes);
    }
    let memory_used = std::mem::take(memory);
    let mut built = key.build(repository.keys(), sealed, directory, repository.parity_percent(), memory_used)?;
    repository.store().put(&ObjectKind::Pack.name(built.id)?, &built.bytes, Put::Create)?;
    let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
    written.bytes += built.bytes.len() as u64;
    *memory = std::mem::take(&mut built.bytes);
    written.index.add(&built)
}

/// The queues for so many sealers.
pub fn queues(sealers: usize) -> (Queues, Mutex<Receiver<Frame>>, Mutex<Receiver<Complete>>) {
    let (frames, to_seal) = sync_channel(2 * sealers + 4);
    let (complete, to_write) = sync_channel(1);
    (Queues { frames, complete }, Mutex::new(to_seal), Mutex::new(to_write))
}
