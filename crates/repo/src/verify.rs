//! Verifying the data: every object is read and authenticated; with the key to read, every page is compared with its fingerprint.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::check::Problem;
use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::frame::Decompressor;
use crate::ids::{Fingerprint, ObjectId, ObjectKind, PAGE_BYTES};
use crate::index::{Hooks, Index, PackRecord};
use crate::object::{HEADER_BYTES, Object, STORED_MOST};
use crate::pack::{Content, FIRST_FRAME_AT, read_directory, read_tail};
use crate::progress::Run;
use crate::repository::Repository;

/// What is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Open, decompress and compare pages too: needs the right to read.
    pub data: bool,
    /// So many percent of the packs, 1 to 100; which ones depends on the seed.
    pub percent: u8,
    /// Another seed chooses other packs.
    pub seed: u64,
    /// Go on behind this pack: packs are verified in the order of their ids.
    pub after: Option<ObjectId>,
}

/// What verifying found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pages that were compared.
    pub pages: u64,
    /// Packs that were left out because only a part was wanted.
    pub left_out: u64,
    /// All packs up to this one are done: where to go on.
    pub up_to: Option<ObjectId>,
    /// Whether it was broken off by a person.
    pub interrupted: bool,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Verifies.
///
/// # Errors
/// [`Error::NotAllowed`]; [`Error::Store`] when the store does not answer. Damage is in the report.
pub fn verify(repository: &Repository, options: VerifyOptions, run: Run<'_>) -> Result<VerifyReport> {
    let rights = if options.data { Rights::Full } else { Rights::Verify };
    repository.keys().require(rights, "read data")?;
    let mut work = Vec::new();
    let mut left_out = 0;
    for kind in ObjectKind::AUTHENTICATED {
        for (id, entry) in repository.list(kind)? {
            if kind == ObjectKind::Pack && options.after.is_some_and(|after| id <= after) {
                continue;
            }
            if kind == ObjectKind::Pack && !chosen(id, options) {
                left_out += 1;
                continue;
            }
            work.push((kind, id, entry.len));
        }
    }
    // Packs last, in order: so where it stopped is one id.
    work.sort_by_key(|(kind, id, _)| (*kind == ObjectKind::Pack, *kind, *id));
    // What cannot be read of it is found as an object.
    let index = match repository.index(Hooks::Skip) {
        _ if !options.data => None,
        Err(error) if error.is_damage() => None,
        index => Some(index?),
    };
    let total: u64 = work.iter().map(|(_, _, len)| len).sum();
    let job = Job {
        repository,
        data: options.data,
        run,
        total,
        done: AtomicU64::new(0),
        pages: AtomicU64::new(0),
        next: AtomicUsize::new(0),
        finished: Mutex::new(vec![false; work.len()]),
        problems: Mutex::default(),
        vanished: Mutex::default(),
        index,
        failure: Failure::default(),
        work,
    };
    run.progress.step("verifying");
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = job.work() {
                    job.failure.report(error);
                }
            });
        }
    });
    let interrupted = match job.failure.take() {
        None => false,
        Some(Error::Interrupted) => true,
        Some(error) => return Err(error),
    };
    let finished = job.finished.into_inner().unwrap_or_default();
    let whole = finished.iter().take_while(|done| **done).count();
    let last = job.work.get(..whole).and_then(|done| done.last()).filter(|(kind, _, _)| *kind == ObjectKind::Pack);
    let mut problems = job.problems.into_inner().unwrap_or_default();
    let vanished = job.vanished.into_inner().unwrap_or_default();
    problems.extend(still_listed(repository, &vanished)?);
    problems.sort_by(|a, b| a.object.cmp(&b.object));
    Ok(VerifyReport {
        objects: (finished.iter().filter(|done| **done).count() - vanished.len()) as u64,
        bytes: job.done.into_inner(),
        pages: job.pages.into_inner(),
        left_out,
        up_to: last.map(|(_, id, _)| *id),
        interrupted,
        problems,
    })
}

/// Removed objects are not listed any more; those that are listed, and not there when they are asked for, are lost.
fn still_listed(repository: &Repository, vanished: &[(ObjectKind, ObjectId)]) -> Result<Vec<Problem>> {
    let mut lost = Vec::new();
    for kind in ObjectKind::AUTHENTICATED {
        let of_kind: Vec<_> = vanished.iter().filter(|(of, _)| *of == kind).map(|(_, id)| *id).collect();
        if of_kind.is_empty() {
            continue;
        }
        let listed: HashSet<ObjectId> = repository.list(kind)?.into_iter().map(|(id, _)| id).collect();
        lost.extend(of_kind.into_iter().filter(|id| listed.contains(id)).map(|id| Problem {
            object: format!("{} {id}", kind.area()),
            what: "the store lists it, and does not give it".to_owned(),
            serious: true,
        }));
    }
    Ok(lost)
}

fn chosen(id: ObjectId, options: VerifyOptions) -> bool {
    let digest = blake3::Hasher::new().update(&options.seed.to_le_bytes()).update(id.as_bytes()).finalize();
    let draw = u64::from_le_bytes(*digest.as_bytes().first_chunk().unwrap_or(&[0; 8]));
    draw % 100 < u64::from(options.percent)
}

struct Job<'a> {
    repository: &'a Repository,
    data: bool,
    run: Run<'a>,
    total: u64,
    done: AtomicU64,
    pages: AtomicU64,
    next: AtomicUsize,
    finished: Mutex<Vec<bool>>,
    problems: Mutex<Vec<Problem>>,
    /// Listed, and then not there.
    vanished: Mutex<Vec<(ObjectKind, ObjectId)>>,
    /// What restores go by: it must say the same as the packs.
    index: Option<Index>,
    failure: Failure,
    work: Vec<(ObjectKind, ObjectId, u64)>,
}

impl Job<'_> {
    fn work(&self) -> Result<()> {
        let mut decompressor = Decompressor::new()?;
        let mut raw = Vec::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((kind, id, len)) = self.work.get(number).copied() else { return Ok(()) };
            if self.failure.happened() {
                return Ok(());
            }
            self.run.check()?;
            match self.object(kind, id, &mut decompressor, &mut raw) {
                // Removed since it was listed: by a prune, or forgotten. Or it is lost.
                Err(Error::Store(error)) if error.is_not_found() => {
                    self.vanished.lock().unwrap_or_else(PoisonError::into_inner).push((kind, id));
                }
                Err(error) if error.is_damage() => self.problem(kind, id, &error),
                done => done?,
            }
            let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
            self.run.progress.bytes(done, self.total);
            let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = finished.get_mut(number) {
                *place = true;
            }
        }
    }

    fn problem(&self, kind: ObjectKind, id: ObjectId, error: &Error) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.push(Problem { object: format!("{} {id}", kind.area()), what: error.to_string(), serious: true });
    }

    fn object(&self, kind: ObjectKind, id: ObjectId, decompressor: &mut Decompressor, raw: &mut Vec<u8>) -> Result<()> {
        let mut object = self.repository.read_object(kind, id, STORED_MOST)?;
        if kind == ObjectKind::Pack && self.data {
            self.pack(id, &mut object, decompressor, raw)?;
        }
        Ok(())
    }

    fn pack(
        &self,
        id: ObjectId,
        object: &mut Object,
        decompressor: &mut Decompressor,
        raw: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |why| Error::damaged(format_args!("pack {id}"), why);
        let (layout, content) = read_tail(id, &object.header, object.body())?;
        let (at, len) = layout.directory()?;
        let body = object.body_mut();
        let start = usize::try_from(at).unwrap_or(usize::MAX).wrapping_sub(HEADER_BYTES);
        let bytes = start
            .checked_add(len)
            .and_then(|end| body.get(start..end))
            .ok_or_else(|| damaged("it has no directory"))?;
        let directory = read_directory(self.repository.keys(), id, content, layout.table_len, bytes.to_vec())?;
        let told = self.index.as_ref().and_then(|index| index.number_of(id).and_then(|number| index.pack(number)));
        if told.is_some_and(|told| PackRecord::new(id, layout, &directory).map_or(true, |record| record != *told)) {
            return Err(damaged("the index tells something else of it"));
        }
        let key = self.repository.pack_key(id, content)?;
        let mut fingerprints = directory.fingerprints.as_slice();
        let mut place = FIRST_FRAME_AT as usize - HEADER_BYTES;
        for (position, frame) in (0..).zip(&directory.frames) {
            let end = place + frame.stored as usize;
            let sealed = body.get_mut(place..end).ok_or_else(|| damaged("a frame lies behind its end"))?;
            let absent = decompressor.open(sealed, &key, content.nonce(position), raw)?;
            place = end;
            let parts = fingerprints.split_at_checked(frame.pages.into());
            let (of_frame, rest) = parts.ok_or_else(|| damaged("it has not as many fingerprints as pages"))?;
            fingerprints = rest;
            if content == Content::Nodes {
                continue;
            }
            if raw.len() != of_frame.len() * PAGE_BYTES {
                return Err(damaged("a frame has not as many pages as its table tells"));
            }
            for (slot, (page, fingerprint)) in raw.chunks_exact(PAGE_BYTES).zip(of_frame).enumerate() {
                let is_absent = absent >> slot & 1 == 1;
                let good = if is_absent {
                    fingerprint.is_absent()
                } else {
                    self.repository.keys().fingerprint(page) == *fingerprint
                };
                if !good {
                    return Err(damaged("a page does not have its fingerprint"));
                }
                self.pages.fetch_add(u64::from(*fingerprint != Fingerprint::ABSENT), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
