//! What was promised and what was measured in a span of time, for an auditor: as JSON that is signed, and as a page to print.
//!
//! Everything in it was measured: jobs and their times are the catalog's, drills and their times the evidence log's. A failure is told with
//! what became of it, or as open. Objectives are those of the policies when the report is made. It claims nothing beyond that.

pub mod files;
pub mod html;
mod machine;
mod mapping;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keyframe_policy::Owed;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::error::Error;
use crate::service::ROUTINE_FOR;

pub use machine::{
    Destination, Drill, Exception, ExceptionKind, Gap, Jobs, MachineReport, Made, Points, Promise, Settled,
};
pub use mapping::Clause;
pub use sources::{LogState, Proof, audit_log, evidence_log};

/// The report's form.
pub const SCHEMA: &str = "keyframe.report/1";

/// The span of time that is told of.
#[derive(Debug, Clone, Serialize)]
pub struct Period {
    /// Its first instant.
    pub from: Timestamp,
    /// The instant behind its last.
    pub to: Timestamp,
    /// The zone of its days, and of times on the page.
    #[serde(serialize_with = "zone_name")]
    pub time_zone: TimeZone,
}

fn zone_name<S: serde::Serializer>(zone: &TimeZone, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&keyframe_policy::zone_name(zone))
}

/// What a report is made from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The host.
    pub host: &'a str,
    /// The machines there are, and what each is owed.
    pub machines: BTreeMap<String, Option<Owed>>,
    /// What the daemon did; nothing where it never ran.
    pub catalog: Option<&'a Catalog>,
    /// Drills on record, of any time.
    pub proofs: &'a [Proof],
    /// The evidence log.
    pub evidence: LogState,
    /// The log of who did what.
    pub audit: LogState,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// A report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its form.
    pub schema: &'static str,
    /// When it was made.
    pub made: Timestamp,
    /// By which Keyframe.
    pub keyframe: &'static str,
    /// On which host.
    pub host: String,
    /// What it tells of.
    pub period: Period,
    /// The end of what is told: the period's, or when it was made.
    pub until: Timestamp,
    /// When the oldest job ended that is remembered.
    pub jobs_known_from: Option<Timestamp>,
    /// All machines together.
    pub totals: Totals,
    /// Each machine, by name.
    pub machines: Vec<MachineReport>,
    /// The logs that it rests on.
    pub evidence: LogState,
    /// Who did what.
    pub audit: LogState,
    /// What this says to what standards ask.
    pub mapping: Vec<Clause>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// How many machines keep an objective.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Measured, and kept all the time.
    pub kept: usize,
    /// Measured, and not.
    pub missed: usize,
    /// Promised, and not measured.
    pub not_measured: usize,
    /// Nothing is promised.
    pub not_promised: usize,
}

impl Kept {
    fn add(&mut self, promised: bool, kept: Option<bool>) {
        *match (promised, kept) {
            (false, _) => &mut self.not_promised,
            (true, None) => &mut self.not_measured,
            (true, Some(true)) => &mut self.kept,
            (true, Some(false)) => &mut self.missed,
        } += 1;
    }
}

/// All machines together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// How many.
    pub machines: usize,
    /// Of which a policy chooses.
    pub with_policy: usize,
    /// Of which nobody does anything for.
    pub without_policy: usize,
    /// Of which are gone.
    pub gone: usize,
    /// Snapshots that were made.
    pub snapshots: usize,
    /// Points that were made, with nothing missing in them.
    pub points: usize,
    /// Besides them, those in which something is missing.
    pub points_incomplete: usize,
    /// Of which a drill passed.
    pub points_drilled: usize,
    /// Drills that passed.
    pub drills_passed: usize,
    /// Drills that did not.
    pub drills_failed: usize,
    /// Jobs that were done at the first attempt or a later one.
    pub jobs: Jobs,
    /// Machines and what may be lost of them.
    pub rpo: Kept,
    /// Machines and how soon they are back.
    pub rto: Kept,
    /// Exceptions.
    pub exceptions: usize,
    /// Of which nothing has settled yet.
    pub exceptions_open: usize,
    /// By kind.
    pub by_kind: BTreeMap<ExceptionKind, usize>,
}

impl Report {
    /// Puts one together, at `now`.
    ///
    /// # Errors
    /// [`Error::Catalog`], [`Error::Record`] when the catalog cannot be read; [`Error::Refused`] for a period that is none, or to come.
    pub fn of(sources: Sources<'_>, period: Period, now: Timestamp) -> Result<Self, Error> {
        if period.from >= period.to {
            return Err(Error::Refused("the period ends before it begins".to_owned()));
        }
        if period.from >= now {
            return Err(Error::Refused("the period has not begun yet".to_owned()));
        }
        let until = period.to.min(now);
        let mut names: BTreeSet<String> = sources.machines.keys().cloned().collect();
        let mut jobs_known_from = None;
        if let Some(catalog) = sources.catalog {
            names.extend(catalog.machines_between(period.from, until)?);
            jobs_known_from = catalog.first_ended()?;
        }
        let proved = sources.proofs.iter().filter(|proof| (period.from..until).contains(&proof.at));
        names.extend(proved.map(|proof| proof.machine.clone()));
        let mut notes = sources.notes;
        // As everywhere on the page.
        let told = |at: Timestamp| at.to_zoned(period.time_zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
        match jobs_known_from {
            None => notes.push("No job is remembered here: nothing was made or missed as far as is known.".to_owned()),
            Some(first) if first > period.from => {
                notes.push(format!(
                    "The oldest job that is remembered ended {}: of what was before nothing is told.",
                    told(first)
                ));
            }
            Some(_) => {}
        }
        // Of snapshots as of nothing else there are so many that they are forgotten soon.
        let snapshots_from = now.checked_sub(ROUTINE_FOR).unwrap_or(Timestamp::MIN);
        if period.from < snapshots_from {
            notes.push(format!(
                "Snapshots that were taken as they should are remembered for {} days: of those before {} nothing is told, and gaps of machines \
                 without backups are measured from then on.",
                ROUTINE_FOR.as_secs() / 86_400,
                told(snapshots_from)
            ));
        }
        if until < period.to {
            notes.push(format!("The period is not over: this tells what was so until {}.", told(until)));
        }
        let mut machines = Vec::new();
        for name in names {
            let owed = sources.machines.get(&name);
            let proofs = sources.proofs.iter().filter(|proof| proof.machine == name).collect();
            // One machine's jobs at a time: of hundreds of machines there are millions.
            let jobs = match sources.catalog {
                Some(catalog) => catalog.ended_since(Some(&name), machine::back_to(owed, period.from), now)?,
                None => Vec::new(),
            };
            let of = machine::Of {
                name: &name,
                present: owed.is_some(),
                owed: owed.and_then(Option::as_ref),
                jobs: &jobs,
                proofs,
            };
            machines.push(MachineReport::of(of, period.from, until, snapshots_from));
        }
        let totals = Totals::of(&machines);
        let mapping = mapping::clauses(&totals, &machines, &sources.evidence, &sources.audit);
        Ok(Self {
            schema: SCHEMA,
            made: now,
            keyframe: env!("CARGO_PKG_VERSION"),
            host: sources.host.to_owned(),
            period,
            until,
            jobs_known_from,
            totals,
            machines,
            evidence: sources.evidence,
            audit: sources.audit,
            mapping,
            notes,
        })
    }
}

impl Totals {
    fn of(machines: &[MachineReport]) -> Self {
        let mut totals = Self { machines: machines.len(), ..Self::default() };
        for machine in machines {
            match (machine.present, &machine.policy) {
                (false, _) => totals.gone += 1,
                (true, Some(_)) => totals.with_policy += 1,
                (true, None) => totals.without_policy += 1,
            }
            totals.snapshots += machine.snapshots.count;
            totals.points += machine.points.made.count;
            totals.points_incomplete += machine.points.incomplete;
            totals.points_drilled += machine.points.drilled;
            let passed = machine.drills.iter().filter(|drill| drill.passed).count();
            totals.drills_passed += passed;
            totals.drills_failed += machine.drills.len() - passed;
            totals.jobs.add(&machine.jobs);
            let promised = machine.promises.iter().any(|promise| promise.rpo_s.is_some());
            totals.rpo.add(promised, machine.rpo_kept());
            totals.rto.add(machine.rto_s.is_some(), machine.rto_kept());
            for exception in &machine.exceptions {
                totals.exceptions += 1;
                totals.exceptions_open += usize::from(exception.settled.is_none());
                *totals.by_kind.entry(exception.kind).or_default() += 1;
            }
        }
        totals
    }
}
