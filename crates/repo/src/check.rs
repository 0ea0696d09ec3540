//! Checking the structure: every point, every node, every frame that is referred to, every pack that should be there.

use std::collections::HashMap;

use serde::Serialize;

use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::index::{Hooks, Index};
use crate::live::Live;
use crate::progress::Run;
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
    /// Frames that points refer to.
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
    repository.keys().require(Rights::Write, "check the structure")?;
    let mut report = CheckReport::default();
    run.progress.step("reading the index");
    let mut index = Index::default();
    for (id, entry) in repository.list(ObjectKind::Index)? {
        let object = repository.read_object(ObjectKind::Index, id, entry.len);
        match object.and_then(|object| index.add(object, repository.keys(), Hooks::Skip)) {
            Err(error @ (Error::Damaged { .. } | Error::Version { .. })) => {
                report.add(format_args!("index {id}"), error, true)
            }
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
    let (points, damaged) = repository.points()?;
    damaged.iter().for_each(|(id, error)| report.add(format_args!("point {id}"), error, true));
    for point in &points {
        run.check()?;
        run.progress.step(&format!("checking {}", point.name));
        report.points += 1;
        let live = match Live::of(repository, &index, std::slice::from_ref(point), run) {
            Err(error @ (Error::Damaged { .. } | Error::MissingFrame { .. } | Error::Store(_))) => {
                report.add(format_args!("point {}@{}", point.name, point.id.short()), error, true);
                continue;
            }
            live => live?,
        };
        let mut missing = 0_u64;
        for (name, _) in live.frames() {
            report.frames += 1;
            let there =
                index.locate(name).any(|at| index.pack(at.pack).is_some_and(|pack| stored.contains_key(&pack.id)));
            missing += u64::from(!there);
        }
        if missing > 0 {
            let what = format!("{missing} frames that it refers to are nowhere");
            report.add(format_args!("point {}@{}", point.name, point.id.short()), what, true);
        }
    }
    Ok(report)
}
