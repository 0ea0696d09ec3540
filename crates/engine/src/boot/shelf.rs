//! Images of a repository that may go away and come back: whoever reads waits for it.
//!
//! | what happens | what a reader gets |
//! |---|---|
//! | the repository is away, or cannot be opened | it waits, and [`Reach`] says so |
//! | an object is not where the index says | the index is read again: a prune may have moved it |
//! | bytes do not authenticate, or an object is gone from a repository that is there | an error, which is on record |

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyframe_nbd::{Allocation, Export, Extent};
use keyframe_repo::ids::ObjectId;
use keyframe_repo::index::Hooks;
use keyframe_repo::{Error, ImageReader, Repository, StoredImage};
use keyframe_types::Timestamp;
use serde::{Deserialize, Serialize};

use super::ahead::Ahead;
use super::document::{Place, Standing};
use crate::error::with_causes;

/// Bytes of each image that are kept in memory.
const CACHE_BYTES: usize = 32 << 20;
/// How often a repository that is away is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often a read is tried while the repository answers and the read fails.
const ATTEMPTS: u32 = 4;
/// Places that cannot be read and are named; more are only counted.
const NAMED_MOST: usize = 32;

/// What opens repositories: the command line knows stores and keys.
pub trait Opener: Send + Sync {
    /// Opens the repository.
    ///
    /// # Errors
    /// Why it cannot be opened, now.
    fn open(&self, place: &Place) -> Result<Repository, Error>;

    /// Asks the store itself, and no cache, which repository is there.
    ///
    /// # Errors
    /// Why it does not answer.
    fn answers(&self, place: &Place) -> Result<ObjectId, Error>;
}

/// Whether a repository can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Reach {
    /// Nobody has asked yet.
    #[default]
    Unknown,
    /// It can.
    There,
    /// It cannot: what is not here yet is waited for.
    Away {
        /// Since when.
        since: Timestamp,
        /// Why.
        reason: String,
    },
}

/// Bytes of an image that cannot be read, although the repository is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The image, such as `disk0`.
    pub image: String,
    /// The first byte of what was asked for.
    pub at: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Why.
    pub reason: String,
}

/// What readers met.
#[derive(Debug, Clone, Default)]
pub(super) struct Met {
    pub(super) reach: Reach,
    pub(super) lost: Vec<Lost>,
    /// Reads that failed, those that are named among them.
    pub(super) failures: u64,
}

/// The images that a machine stands on.
pub(super) struct Shelf {
    opener: Arc<dyn Opener>,
    place: Place,
    repository: ObjectId,
    images: BTreeMap<String, StoredImage>,
    /// Held while the repository is opened: one does, and others wait for it.
    open: Mutex<Option<Arc<Opened>>>,
    met: Mutex<Met>,
}

type Opened = BTreeMap<String, ImageReader>;

impl Shelf {
    pub(super) fn new(opener: Arc<dyn Opener>, standing: &Standing) -> Self {
        let images = standing.images().map(|(name, image)| (name.to_owned(), image.clone())).collect();
        let (place, repository) = (standing.place.clone(), standing.repository);
        Self { opener, place, repository, images, open: Mutex::default(), met: Mutex::default() }
    }

    pub(super) fn met(&self) -> Met {
        lock(&self.met).clone()
    }

    /// Forgets what could not be read: it is going to be tried again.
    pub(super) fn forget_lost(&self) {
        let mut met = lock(&self.met);
        (met.lost, met.failures) = (Vec::new(), 0);
    }

    /// Opens the repository, for as long as it takes.
    pub(super) fn opened(&self) -> Arc<Opened> {
        let mut open = lock(&self.open);
        loop {
            if let Some(opened) = &*open {
                return Arc::clone(opened);
            }
            match self.open_once() {
                Ok(opened) => {
                    *open = Some(Arc::new(opened));
                    lock(&self.met).reach = Reach::There;
                }
                Err(error) => {
                    self.is_away(&with_causes(&error));
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }

    fn open_once(&self) -> Result<Opened, Error> {
        let repository = Arc::new(self.opener.open(&self.place)?);
        self.check_identity(repository.config().repository)?;
        let index = Arc::new(repository.index(Hooks::Skip)?);
        let reader = |(name, image): (&String, &StoredImage)| {
            let (repository, index) = (Arc::clone(&repository), Arc::clone(&index));
            Ok((name.clone(), ImageReader::new(repository, index, image.clone(), CACHE_BYTES)?))
        };
        self.images.iter().map(reader).collect()
    }

    fn check_identity(&self, found: ObjectId) -> Result<(), Error> {
        if found == self.repository {
            return Ok(());
        }
        let what = format!("{} is another repository than the machine came from", self.place.repository);
        Err(Error::Usage { what })
    }

    fn is_away(&self, reason: &str) {
        let mut met = lock(&self.met);
        if !matches!(met.reach, Reach::Away { .. }) {
            met.reach = Reach::Away { since: Timestamp::now(), reason: reason.to_owned() };
        }
    }

    /// Does something with an image's reader until it works, or the repository is there and it does not work.
    fn attempt<T>(
        &self,
        label: &str,
        range: &Range<u64>,
        what: impl Fn(&ImageReader) -> Result<T, Error>,
    ) -> io::Result<T> {
        let mut failed = 0;
        loop {
            let opened = self.opened();
            let reader = opened.get(label).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let error = match what(reader) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            // What was opened may be older than a prune, or a connection that is gone.
            self.close(&opened);
            match self.opener.answers(&self.place).and_then(|found| self.check_identity(found)) {
                Err(away) => {
                    self.is_away(&with_causes(&away));
                    std::thread::sleep(LOOK_AGAIN);
                }
                Ok(()) => {
                    failed += 1;
                    let final_word = matches!(error, Error::Unreadable { .. }) && failed > 1;
                    if final_word || failed >= ATTEMPTS {
                        return Err(self.is_lost(label, range, &error));
                    }
                    std::thread::sleep(LOOK_AGAIN * (failed - 1));
                }
            }
        }
    }

    /// Where an image has pages, as opposed to zeros.
    pub(super) fn data_of(&self, label: &str) -> io::Result<Vec<Range<u64>>> {
        let bytes = self.images.get(label).map_or(0, |image| image.bytes);
        let (mut ranges, mut at): (Vec<Range<u64>>, u64) = (Vec::new(), 0);
        while at < bytes {
            let range = at..bytes;
            for (len, there) in self.attempt(label, &range, |reader| reader.parts(range.clone()))? {
                if there {
                    ranges.push(at..at + len);
                }
                at += len;
            }
        }
        Ok(ranges)
    }

    /// Has what a range of an image needs at hand for whoever asks for it next. Whoever does is told what is wrong with it.
    pub(super) fn fetch(&self, label: &str, range: Range<u64>) {
        if let Some(reader) = self.opened().get(label) {
            let _ = reader.fetch(range);
        }
    }

    fn close(&self, opened: &Arc<Opened>) {
        let mut open = lock(&self.open);
        if open.as_ref().is_some_and(|now| Arc::ptr_eq(now, opened)) {
            *open = None;
        }
    }

    fn is_lost(&self, label: &str, range: &Range<u64>, error: &Error) -> io::Error {
        let lost = Lost { image: label.to_owned(), at: range.start, end: range.end, reason: with_causes(error) };
        let text = lost.reason.clone();
        let mut met = lock(&self.met);
        met.failures += 1;
        if met.lost.len() < NAMED_MOST && !met.lost.contains(&lost) {
            met.lost.push(lost);
        }
        io::Error::other(text)
    }
}

/// One image, shown to QEMU or to a page server.
pub(super) struct Shown {
    shelf: Arc<Shelf>,
    label: String,
    bytes: u64,
    ahead: Ahead,
}

impl Shown {
    pub(super) fn new(shelf: &Arc<Shelf>, label: &str, bytes: u64) -> Self {
        let ahead = Ahead::start(shelf, label);
        Self { shelf: Arc::clone(shelf), label: label.to_owned(), bytes, ahead }
    }
}

impl Export for Shown {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let range = offset..offset.saturating_add(into.len() as u64);
        self.ahead.hear(&range);
        let buffer = Mutex::new(into);
        self.shelf.attempt(&self.label, &range, |reader| reader.read_at(offset, &mut lock(&buffer)))
    }

    fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        let parts = self.shelf.attempt(&self.label, &range, |reader| reader.parts(range.clone()))?;
        let kind = |there| if there { Allocation::Data } else { Allocation::Absent };
        Ok(parts.into_iter().map(|(len, there)| Extent { len, allocation: kind(there) }).collect())
    }

    fn will_need(&self, _range: Range<u64>) {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
