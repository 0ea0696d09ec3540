//! Prune: freeing what no point refers to, while others write.
//!
//! Nothing is removed at once. First what is still needed of wasteful packs is copied into new ones, and the old ones are
//! *condemned*: from then on no backup refers to them anew. After the grace period, by the store's own clock, whoever prunes next
//! marks again, and removes those condemned packs of which every page in use is also somewhere else; the others are spared.
//! A backup that ran across all of this finds out before its point is one (see `check_fence`): until then the point is *pending*,
//! which only prunes see.

mod condemned;
mod copier;
mod presence;
mod state;

use std::time::Duration;

use serde::Serialize;

pub(crate) use self::condemned::condemned_packs;
pub(crate) use self::presence::present_pages;
use self::state::State;
use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::ids::ObjectId;
use crate::progress::Run;
use crate::repository::Repository;

/// How to prune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneOptions {
    /// A pack is rewritten when more than this part of its pages, in percent, is not in use.
    pub waste_percent: u8,
    /// How long condemned packs stay: longer than the longest backup.
    pub grace: Duration,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { waste_percent: 10, grace: Duration::from_secs(24 * 3600), dry_run: false }
    }
}

/// What a prune is going to do, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PrunePlan {
    /// Packs that nothing refers to.
    pub unused: Vec<ObjectId>,
    /// Packs to be rewritten.
    pub rewrite: Vec<ObjectId>,
    /// Announced points of backups that were broken off, or are done.
    pub abandoned: Vec<ObjectId>,
    /// Packs that are in no index and older than the grace period: a broken-off backup's.
    pub stray: Vec<ObjectId>,
    /// Condemned packs whose time has come, and that are not needed.
    pub remove: Vec<ObjectId>,
    /// Condemned packs that are needed after all.
    pub spare: Vec<ObjectId>,
    /// Packs that points need and that are not there: damage, which a prune leaves as it is.
    pub missing: Vec<ObjectId>,
    /// Bytes of packs that are kept as they are.
    pub kept_bytes: u64,
    /// Bytes of packs to be condemned.
    pub condemned_bytes: u64,
    /// Bytes of packs to be removed.
    pub removed_bytes: u64,
}

/// What a prune did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PruneReport {
    /// What was decided.
    pub plan: PrunePlan,
    /// Bytes of new packs.
    pub moved_bytes: u64,
    /// Bytes that were freed.
    pub freed_bytes: u64,
    /// Bytes that a prune after the grace period will free.
    pub pending_bytes: u64,
}

/// Prunes. Two at once do no harm: what both copy, a later one removes. What the other one moved or removed is looked for anew.
///
/// # Errors
/// [`Error::NotAllowed`] without all rights; [`Error::Damaged`] when the structure cannot be read in full: nothing is removed
/// then; [`Error::Overtaken`] when others prune without end; [`Error::Store`].
pub fn prune(repository: &Repository, options: PruneOptions, run: Run<'_>) -> Result<PruneReport> {
    const ATTEMPTS: u32 = 5;
    repository.keys().require(Rights::Full, "prune")?;
    let mut report = PruneReport::default();
    for _ in 0..ATTEMPTS {
        let before = repository.index_ids()?;
        match attempt(repository, options, run, &mut report) {
            // Of an index that has changed meanwhile; if it has not, it is missing.
            Err(error) if error.may_have_moved() && repository.index_ids()? != before => {}
            done => return done.map(|()| report),
        }
    }
    Err(Error::Overtaken)
}

fn attempt(repository: &Repository, options: PruneOptions, run: Run<'_>, report: &mut PruneReport) -> Result<()> {
    let state = State::look(repository, options, run)?;
    report.plan = state.plan(options)?;
    if options.dry_run {
        return Ok(());
    }
    report.freed_bytes += state.sweep(&report.plan, run)?;
    report.moved_bytes += state.condemn(&report.plan, run)?;
    report.pending_bytes = report.plan.condemned_bytes;
    if options.grace.is_zero() {
        // Nobody else is at work, says the caller: what was condemned just now can go.
        let state = State::look(repository, options, run)?;
        let plan = state.plan(options)?;
        report.freed_bytes += state.sweep(&plan, run)?;
        report.pending_bytes = 0;
        report.plan.remove.extend(plan.remove);
    }
    Ok(())
}
