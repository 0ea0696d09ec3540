//! What a report's measured facts say to what standards ask. No certification: whether a clause is fulfilled is an auditor's to say.

use serde::Serialize;

use super::machine::MachineReport;
use super::sources::LogState;
use super::{Kept, Totals};

/// A clause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// The standard or law.
    pub standard: &'static str,
    /// The clause.
    pub clause: &'static str,
    /// What it asks, in short; its own text counts.
    pub asks: &'static str,
    /// Measured facts of this report that speak to it.
    pub facts: Vec<String>,
    /// What it asks that nothing here measures.
    pub not_measured: &'static str,
}

/// Each fact in a sentence.
struct Facts {
    coverage: String,
    points: String,
    rpo: String,
    rto: String,
    drills: String,
    copies: String,
    locks: String,
    exceptions: String,
    logs: String,
}

impl Facts {
    fn of(totals: &Totals, machines: &[MachineReport], evidence: &LogState, audit: &LogState) -> Self {
        let there: Vec<&MachineReport> = machines.iter().filter(|machine| machine.present).collect();
        let repositories = |machine: &MachineReport| {
            let mut all: Vec<&str> = machine.destinations.iter().map(|to| to.repository.as_str()).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        let with = |least: usize| there.iter().filter(|machine| repositories(machine) >= least).count();
        let locked = there.iter().filter(|machine| machine.destinations.iter().any(|to| to.lock_days > 0)).count();
        let objective = |what: &str, kept: &Kept| {
            format!(
                "{what}: kept by {} machines, missed by {}, promised but not measured for {}, not promised for {}",
                kept.kept, kept.missed, kept.not_measured, kept.not_promised
            )
        };
        let sound = |log: &LogState| match (log.entries, log.is_sound()) {
            (0, _) => "has no entry".to_owned(),
            (entries, true) => format!("has {entries} entries, each as it was written"),
            (entries, false) => format!("has {entries} entries, and was changed or is damaged"),
        };
        Self {
            coverage: format!("{} of {} machines have a policy", totals.with_policy, there.len()),
            points: format!(
                "{} complete points and {} snapshots were made; {} jobs failed, {} left something out, {} needed more than one attempt",
                totals.points, totals.snapshots, totals.jobs.failed, totals.jobs.incomplete, totals.jobs.retried
            ),
            rpo: objective("recovery point objective", &totals.rpo),
            rto: objective("recovery time objective, by drills", &totals.rto),
            drills: format!(
                "{} drills passed and {} failed; {} of the points made were brought back by a drill that passed",
                totals.drills_passed, totals.drills_failed, totals.points_drilled
            ),
            copies: format!(
                "policies send points of {} machines to a repository, of {} to two or more",
                with(1),
                with(2)
            ),
            locks: format!("points of {locked} machines are to be locked against being deleted early"),
            exceptions: format!(
                "{} exceptions, of which {} are open; each is listed with what settled it",
                totals.exceptions, totals.exceptions_open
            ),
            logs: format!("the evidence log {}; the log of who did what {}", sound(evidence), sound(audit)),
        }
    }
}

pub(super) fn clauses(
    totals: &Totals,
    machines: &[MachineReport],
    evidence: &LogState,
    audit: &LogState,
) -> Vec<Clause> {
    let facts = Facts::of(totals, machines, evidence, audit);
    let clause = |standard, clause, asks, facts: &[&String], not_measured| Clause {
        standard,
        clause,
        asks,
        facts: facts.iter().map(|fact| (*fact).clone()).collect(),
        not_measured,
    };
    let Facts { coverage, points, rpo, rto, drills, copies, locks, exceptions, logs } = &facts;
    vec![
        clause(
            "SOC 2 (Trust Services Criteria)",
            "A1.2",
            "Data backup processes and recovery infrastructure are operated, maintained and monitored.",
            &[coverage, points, rpo, exceptions],
            "Environmental protections; capacity; anything that is not one of these machines.",
        ),
        clause(
            "SOC 2 (Trust Services Criteria)",
            "A1.3",
            "Procedures of the recovery plan are tested.",
            &[drills, rto, exceptions],
            "The plan itself; people, sites and networks; a drill brings back one machine, in isolation.",
        ),
        clause(
            "SOC 2 (Trust Services Criteria)",
            "CC7.5",
            "Activities to recover from security incidents are carried out and tested.",
            &[drills, exceptions, logs],
            "Which incidents there were, their causes, and who was told.",
        ),
        clause(
            "ISO/IEC 27001:2022",
            "A.8.13",
            "Backup copies are made and regularly tested, as a policy on backup says.",
            &[coverage, points, rpo, drills, locks],
            "Whether the policies are those that the organization agreed on.",
        ),
        clause(
            "ISO/IEC 27001:2022",
            "A.8.14",
            "Facilities are redundant enough for the availability that is required.",
            &[copies],
            "Redundancy of hosts, networks, power and sites; whether two repositories are in different places.",
        ),
        clause(
            "ISO/IEC 27001:2022",
            "A.5.29",
            "Information security is kept up during a disruption.",
            &[locks, logs],
            "The organization's plans; who has access to copies and keys.",
        ),
        clause(
            "ISO/IEC 27001:2022",
            "A.5.30",
            "Readiness for continuity is tested against objectives.",
            &[rpo, rto, drills],
            "Whether the objectives follow from an analysis of business impact; order and dependencies of services.",
        ),
        clause(
            "Directive (EU) 2022/2555 (NIS2)",
            "Art. 21(2)(c)",
            "Business continuity, such as backup management and disaster recovery, and crisis management.",
            &[coverage, points, rpo, drills, rto, copies],
            "Crisis management; disaster recovery beyond the restore of single machines.",
        ),
        clause(
            "Regulation (EU) 2022/2554 (DORA)",
            "Art. 11",
            "Plans for response and recovery are in place, tested at least yearly, and failings are dealt with.",
            &[drills, rto, exceptions],
            "The plans; scenarios such as a switch to another site; communication.",
        ),
        clause(
            "Regulation (EU) 2022/2554 (DORA)",
            "Art. 12",
            "Backup and restore by policy, tested periodically; recovery time and point objectives; integrity of what is restored.",
            &[coverage, points, rpo, rto, drills, copies, locks],
            "Whether the systems for restoring are segregated from the source systems; reconciliation with third parties.",
        ),
    ]
}
