//! Reading an image at random places, from many threads: what machines boot from, and what is mounted.
//!
//! Frames and leaves that were used last are kept, within a bound. A frame that several threads want is read once. Nothing is held
//! while something is read from the store, so one slow read delays nobody who does not wait for it.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::frame::{Decompressor, FRAME_MOST, FrameName, Slots, slots};
use crate::ids::PAGE_BYTES;
use crate::index::Index;
use crate::point::StoredImage;
use crate::repository::Repository;
use crate::tree::{self, FANOUT, LEAF_PAGES, NodeRef, Run};

/// Bytes of leaves that are kept: a leaf is 16 MiB of the image in some KiB, and 128 KiB at most.
const LEAF_BYTES_KEPT: usize = 16 << 20;
/// Bytes of frames with nodes that are kept.
const NODE_BYTES_KEPT: usize = 8 << 20;
/// Most parts of a range that are told at once.
const PARTS_MOST: usize = 4096;
/// Decompressors that wait for work.
const DECOMPRESSORS: usize = 16;

/// Reads an image; shared by threads.
#[derive(Debug)]
pub struct ImageReader {
    repository: Arc<Repository>,
    index: Arc<Index>,
    image: StoredImage,
    level: u8,
    nodes: Kept<FrameName, Vec<u8>>,
    leaves: Kept<u64, Vec<Run>>,
    frames: Kept<FrameName, Frame>,
    idle: Mutex<Vec<Decompressor>>,
}

/// Bytes of an image that lie side by side.
struct Located {
    len: usize,
    /// The frame that has them, and from where on; `None` for zeros.
    found: Option<(Arc<Frame>, usize)>,
}

/// Pages of a frame, and which of them are there.
#[derive(Debug)]
struct Frame {
    there: Slots,
    raw: Vec<u8>,
}

impl ImageReader {
    /// Reads this image, and keeps about so many bytes of what it read; room for one frame of 512 KiB at least.
    ///
    /// # Errors
    /// [`Error::ImageTooLarge`]; [`Error::NotAllowed`] without the right to read pages.
    pub fn new(repository: Arc<Repository>, index: Arc<Index>, image: StoredImage, cache_bytes: usize) -> Result<Self> {
        repository.keys().require(crate::crypto::Rights::Full, "read data")?;
        Ok(Self {
            level: tree::levels(image.bytes)?,
            repository,
            index,
            image,
            nodes: Kept::new(NODE_BYTES_KEPT, Vec::capacity),
            leaves: Kept::new(LEAF_BYTES_KEPT, |runs| runs.capacity() * size_of::<Run>()),
            frames: Kept::new(cache_bytes.max(FRAME_MOST), |frame| frame.raw.capacity()),
            idle: Mutex::default(),
        })
    }

    /// Length of the image in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image.bytes
    }

    /// Fills a buffer with the image's bytes: all of it, or nothing that may be used.
    ///
    /// # Errors
    /// [`Error::ImageShort`] behind the image's end; [`Error::Unreadable`], which names the bytes that are lost;
    /// [`Error::Store`].
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len() as u64).is_none_or(|end| end > self.image.bytes) {
            return Err(Error::ImageShort);
        }
        let mut done = 0;
        while done < into.len() {
            let here = at + done as u64;
            let rest = into.get_mut(done..).unwrap_or_default();
            let len = rest.len() as u64;
            done += self.read_run(here, rest).map_err(|error| self.unreadable(here, len, error))?;
        }
        Ok(())
    }

    /// What a range, within the image and not empty, is made of, from its beginning: lengths in bytes, and whether there are pages
    /// or zeros. What is told ends at the range's end, or where more would be too much at once.
    ///
    /// # Errors
    /// As [`ImageReader::read_at`].
    pub fn parts(&self, range: Range<u64>) -> Result<Vec<(u64, bool)>> {
        if range.is_empty() || range.end > self.image.bytes {
            return Err(Error::ImageShort);
        }
        let (mut parts, mut at): (Vec<(u64, bool)>, u64) = (Vec::new(), range.start);
        while at < range.end && parts.len() < PARTS_MOST {
            let (run, ahead) = self.run_at(at / PAGE_BYTES as u64).map_err(|error| self.unreadable(at, 1, error))?;
            let behind = (at / PAGE_BYTES as u64 + u64::from(run.count - ahead)) * PAGE_BYTES as u64;
            let len = behind.min(range.end) - at;
            match parts.last_mut().filter(|(_, there)| *there == run.at.is_some()) {
                Some((known, _)) => *known += len,
                None => parts.push((len, run.at.is_some())),
            }
            at += len;
        }
        Ok(parts)
    }

    /// Reads what a range needs, as far as it is within the image, so that it need not be waited for later: as much of it as is kept.
    ///
    /// # Errors
    /// As [`ImageReader::read_at`].
    pub fn fetch(&self, range: Range<u64>) -> Result<()> {
        let (mut at, end) = (range.start, range.end.min(self.image.bytes));
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX);
            at += self.locate(at, most).map_err(|error| self.unreadable(at, end - at, error))?.len as u64;
        }
        Ok(())
    }

    /// Fills as much of a buffer as lies in one run; gives how much.
    fn read_run(&self, here: u64, into: &mut [u8]) -> Result<usize> {
        let Located { len, found } = self.locate(here, into.len())?;
        let part = into.get_mut(..len).ok_or(Error::Pipeline)?;
        match found {
            Some((frame, start)) => part.copy_from_slice(frame.raw.get(start..start + len).ok_or(Error::Pipeline)?),
            None => part.fill(0),
        }
        Ok(len)
    }

    /// Where the bytes from a place on are that lie in one run, `most` of them at most.
    fn locate(&self, here: u64, most: usize) -> Result<Located> {
        let (page, within) = (here / PAGE_BYTES as u64, (here % PAGE_BYTES as u64) as usize);
        let (run, ahead) = self.run_at(page)?;
        let len = ((run.count - ahead) as usize * PAGE_BYTES - within).min(most);
        let Some(at) = run.at.map(|at| at.ahead(ahead)) else { return Ok(Located { len, found: None }) };
        let pages = (within + len).div_ceil(PAGE_BYTES) as u32;
        let needed = slots(at.slot, pages);
        let frame =
            self.frames.get(at.frame, |frame| needed & !frame.there == 0, || self.load_frame(at.frame, needed))?;
        Ok(Located { len, found: Some((frame, usize::from(at.slot) * PAGE_BYTES + within)) })
    }

    /// The run that a page is in, and how far ahead in it the page is.
    fn run_at(&self, page: u64) -> Result<(Run, u32)> {
        let leaf = page / LEAF_PAGES;
        let runs = self.leaves.get(leaf, |_| true, || self.load_leaf(leaf))?;
        let mut left = (page % LEAF_PAGES) as u32;
        for run in runs.iter() {
            if left < run.count {
                return Ok((*run, left));
            }
            left -= run.count;
        }
        Err(Error::Pipeline)
    }

    fn load_leaf(&self, leaf: u64) -> Result<Vec<Run>> {
        let mut child = self.image.root;
        for level in (1..=self.level).rev() {
            let Some(node) = child else { break };
            let children = self.node(node, |bytes| tree::decode_node(bytes, level))?;
            let number = leaf / (tree::pages_of(level - 1) / LEAF_PAGES) % FANOUT;
            child = children.get(number as usize).copied().flatten();
        }
        match child {
            Some(node) => self.node(node, tree::decode_leaf),
            None => Ok(vec![Run { count: LEAF_PAGES as u32, at: None }]),
        }
    }

    fn node<T>(&self, node: NodeRef, decode: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let name = node.frame();
        let frame = self.nodes.get(name, |_| true, || Ok(self.load_frame(name, 0)?.raw))?;
        decode(node.within(&frame)?)
    }

    fn load_frame(&self, name: FrameName, needed: Slots) -> Result<Frame> {
        let idle = lock(&self.idle).pop();
        let mut decompressor = idle.map_or_else(Decompressor::new, Ok)?;
        let mut raw = Vec::new();
        let there = self.repository.read_frame(&self.index, name, needed, &mut decompressor, &mut raw);
        let mut idle = lock(&self.idle);
        if idle.len() < DECOMPRESSORS {
            idle.push(decompressor);
        }
        let there = there?;
        raw.shrink_to_fit();
        Ok(Frame { there, raw })
    }

    fn unreadable(&self, at: u64, len: u64, error: Error) -> Error {
        match error {
            // An object that is cut short or gone is as bad.
            error if error.is_damage() => {
                Error::Unreadable { image: self.image.label.clone(), at, end: at + len, source: Box::new(error) }
            }
            other => other,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The values that were used last, up to a weight. A value that is missing is made once, by the first who wants it; others wait for it.
#[derive(Debug)]
struct Kept<K, V> {
    most: usize,
    weigh: fn(&V) -> usize,
    state: Mutex<State<K, V>>,
    made: Condvar,
}

#[derive(Debug)]
struct State<K, V> {
    values: HashMap<K, (u64, Arc<V>)>,
    weight: usize,
    in_the_making: HashSet<K>,
    clock: u64,
}

impl<K: Eq + Hash + Copy, V> Kept<K, V> {
    fn new(most: usize, weigh: fn(&V) -> usize) -> Self {
        let state = State { values: HashMap::new(), weight: 0, in_the_making: HashSet::new(), clock: 0 };
        Self { most, weigh, state: Mutex::new(state), made: Condvar::new() }
    }

    /// The value, if it is `good`; otherwise it is made, and if that fails nobody keeps anything.
    fn get(&self, key: K, good: impl Fn(&V) -> bool, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let mut state = lock(&self.state);
        loop {
            state.clock += 1;
            let clock = state.clock;
            if let Some((used, value)) = state.values.get_mut(&key).filter(|(_, value)| good(value)) {
                *used = clock;
                return Ok(Arc::clone(value));
            }
            if state.in_the_making.insert(key) {
                break;
            }
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let making = Making { kept: self, key };
        let value = make().map(Arc::new)?;
        let mut state = lock(&self.state);
        let clock = state.clock;
        state.weight += (self.weigh)(&value);
        if let Some((_, replaced)) = state.values.insert(key, (clock, Arc::clone(&value))) {
            state.weight -= (self.weigh)(&replaced);
        }
        while state.weight > self.most && state.values.len() > 1 {
            let others = state.values.iter().filter(|(other, _)| **other != key);
            let Some(oldest) = others.min_by_key(|(_, (used, _))| *used).map(|(other, _)| *other) else { break };
            if let Some((_, gone)) = state.values.remove(&oldest) {
                state.weight -= (self.weigh)(&gone);
            }
        }
        drop(state);
        drop(making);
        Ok(value)
    }
}

/// Lets others go on, however making ended.
struct Making<'a, K: Eq + Hash + Copy, V> {
    kept: &'a Kept<K, V>,
    key: K,
}

impl<K: Eq + Hash + Copy, V> Drop for Making<'_, K, V> {
    fn drop(&mut self) {
        lock(&self.kept.state).in_the_making.remove(&self.key);
        self.kept.made.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn readers_can_be_shared() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<ImageReader>();
    }

    #[test]
    fn a_value_is_made_once_for_all_who_wait() {
        let kept: Kept<u32, u32> = Kept::new(4, |_| 1);
        let made = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let value = kept.get(
                        1,
                        |_| true,
                        || {
                            std::thread::sleep(Duration::from_millis(50));
                            Ok(made.fetch_add(1, Ordering::Relaxed) + 10)
                        },
                    );
                    assert_eq!(*value.unwrap(), 10);
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn what_fails_is_tried_by_the_next() {
        let kept: Kept<u32, u32> = Kept::new(4, |_| 1);
        assert!(kept.get(1, |_| true, || Err(Error::Pipeline)).is_err());
        assert_eq!(*kept.get(1, |_| true, || Ok(5)).unwrap(), 5);
        assert_eq!(*kept.get(1, |value| *value > 5, || Ok(6)).unwrap(), 6, "one that is not good enough is made anew");
    }

    #[test]
    fn what_was_used_last_stays() {
        let kept: Kept<u32, u32> = Kept::new(2, |_| 1);
        for key in [1, 2, 1, 3] {
            kept.get(key, |_| true, || Ok(key)).unwrap();
        }
        assert!(kept.get(1, |_| true, || Err(Error::Pipeline)).is_ok());
        assert!(kept.get(2, |_| true, || Err(Error::Pipeline)).is_err());
        assert!(lock(&kept.state).weight == 2 && lock(&kept.state).values.len() == 2);
    }
}
