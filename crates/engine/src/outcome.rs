//! Done, or done but not all of it: what an exit status is made of.

use crate::bringup::Strategy;
use crate::fork::ForkReport;
use crate::revert::RevertReport;
use crate::snapshot::{Freeze, SnapshotReport, SnapshotRequest};
use crate::state::manifest::StateAtCut;

/// Whether all of what was asked for was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All of it.
    Complete,
    /// Not all: the report's notes say what is missing.
    Incomplete,
}

impl Outcome {
    fn complete_if(complete: bool) -> Self {
        if complete { Self::Complete } else { Self::Incomplete }
    }

    /// A snapshot that has no memory although that was not asked for, or whose file systems were not frozen although
    /// that was to be tried, is incomplete, and so is one with trouble behind its commit. A machine that is off has no memory and nothing to freeze.
    #[must_use]
    pub fn of_snapshot(request: &SnapshotRequest, report: &SnapshotReport) -> Self {
        let off = report.state == StateAtCut::Stopped;
        let memory = request.disk_only || off || report.ram_bytes.bytes() > 0;
        let frozen = request.freeze == Freeze::No || off || report.frozen_ms.is_some();
        Self::complete_if(memory && frozen && report.late_failure.is_none())
    }

    /// A revert whose guest was not thawed, or whose clock was not set although it has an agent, is incomplete, and one
    /// that could not keep the present as it was.
    #[must_use]
    pub fn of_revert(report: &RevertReport) -> Self {
        Self::complete_if(report.strategy == Strategy::Cold || report.notes.is_empty())
    }

    /// Forks are complete when all were made, and each guest knows who it is.
    #[must_use]
    pub fn of_fork(report: &ForkReport) -> Self {
        Self::complete_if(report.not_made.is_none() && report.machines.iter().all(|fork| fork.notes.is_empty()))
    }
}
