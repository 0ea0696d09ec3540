//! Checking the structure: every point, every node, every frame that is referred to, every pack that should be there.

use std::collections::HashMap;

use serde::Serialize;

use crate::crypto::Rights;
use crate::error::Result;
use crate::frame::{FrameName, Slots};
use crate::ids::{ObjectId, ObjectKind};
use crate::index::{Hooks, Index};
use crate::live::Live;
use crate::object::STORED_MOST;
use crate::progress::Run;
use crate::prune::present_pages;
use crate::repository::Repository;

/// Something that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// The object that it is about.
    pub object: String,
    /// What is wrong.
    pub what: String,
    /// Whether a point is affected by it.
    pub serious: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// Points that were read.
    pub points: usize,
    /// Packs in the index.
    pub packs: usize,
    /// Frames that points refer to; one that several refer to counts for each.
    pub frames: usize,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    fn add(&mut self, object: impl std::fmt::Display, what: impl std::fmt::Display, serious: bool) {
        self.problems.push(Problem { object: object.to_string(), what: what.to_string(), serious });
    }
}

/// Checks everything but the data.
///
/// # Errors
/// [`Error::NotAllowed`] without the right to write; [`Error::Store`] when the store does not answer. Damage is no error but
/// in the report.
pub fn check(repository: &Repository, run: Run<'_>) -> Result<CheckReport> {
    const ATTEMPTS: u32 = 3;
    repository.keys().require(Rights::Write, "check the structure")?;
    let mut report = CheckReport::default();
    for _ in 0..ATTEMPTS {
        let before = repository.index_ids()?;
        report = check_once(repository, run)?;
        // What a backup or a prune has just written or moved is not damaged: it is looked for in the index as it is now.
        if report.problems.is_empty() || repository.index_ids()? == before {
            break;
        }
    }
    Ok(report)
}

fn check_once(repository: &Repository, run: Run<'_>) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    run.progress.step("reading the index");
    let mut index = Index::default();
    for id in repository.index_ids()? {
        let object = repository.read_object(ObjectKind::Index, id, STORED_MOST);
        match object.and_then(|object| index.add(object, repository.keys(), Hooks::Skip)) {
            Err(error) if error.is_damage() => report.add(format_args!("index {id}"), error, true),
            done => done?,
        }
    }
    let stored: HashMap<ObjectId, u64> =
        repository.list(ObjectKind::Pack)?.into_iter().map(|(id, entry)| (id, entry.len)).collect();
    report.packs = index.packs().len();
    for pack in index.packs() {
        match stored.get(&pack.id) {
            None => report.add(format_args!("pack {}", pack.id), "it is in the index, but not there", false),
            Some(len) if *len != pack.layout.object_len => {
                report.add(format_args!("pack {}", pack.id), "it has not the length that the index tells", true);
            }
            Some(_) => {}
        }
    }
    let unknown = stored.keys().filter(|id| index.number_of(**id).is_none()).count();
    if unknown > 0 {
        run.progress.note(&format!("{unknown} packs are in no index: a backup is running, or one was broken off"));
    }
    let mut places = Places { repository, index: &index, stored: &stored, given_up: HashMap::new() };
    let (points, damaged) = repository.points()?;
    damaged.iter().for_each(|(id, error)| report.add(format_args!("point {id}"), error, true));
    for point in &points {
        run.check()?;
        run.progress.step(&format!("checking {}", point.name));
        report.points += 1;
        let live = match Live::of(repository, &index, std::slice::from_ref(point), run) {
            Err(error) if error.is_damage() => {
                report.add(format_args!("point {}@{}", point.name, point.id.short()), error, true);
                continue;
            }
            live => live?,
        };
        let mut missing = 0_u64;
        for (name, pages) in live.frames() {
            report.frames += 1;
            missing += u64::from(!places.have(name, pages)?);
        }
        if missing > 0 {
            let what = format!("{missing} frames that it refers to are nowhere, or lack pages that it needs");
            report.add(format_args!("point {}@{}", point.name, point.id.short()), what, true);
        }
    }
    Ok(report)
}

/// Where frames are, and which of their pages.
struct Places<'a> {
    repository: &'a Repository,
    index: &'a Index,
    stored: &'a HashMap<ObjectId, u64>,
    /// Of packs that gave pages up: what they have.
    given_up: HashMap<u32, HashMap<FrameName, Slots>>,
}

impl Places<'_> {
    /// Whether some pack has these pages of a frame.
    fn have(&mut self, name: FrameName, pages: Slots) -> Result<bool> {
        let numbers: Vec<u32> = self.index.locate(name).map(|at| at.pack).collect();
        for number in numbers {
            let Some(pack) = self.index.pack(number).filter(|pack| self.stored.contains_key(&pack.id)) else {
                continue;
            };
            if pages == 0 || pack.has_all_pages() || self.present(number, name)? & pages == pages {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn present(&mut self, number: u32, name: FrameName) -> Result<Slots> {
        if !self.given_up.contains_key(&number) {
            let present = match self.repository.directory(self.index, number) {
                Ok(directory) => present_pages(&directory),
                // Nothing can be found in it.
                Err(error) if error.is_damage() => HashMap::new(),
                Err(error) => return Err(error),
            };
            self.given_up.insert(number, present);
        }
        Ok(self.given_up.get(&number).and_then(|frames| frames.get(&name)).copied().unwrap_or(0))
    }
}
