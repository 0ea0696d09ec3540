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

const SOC2: &str = "SOC 2 (2017 Trust Services Criteria)";
const ISO: &str = "ISO/IEC 27001:2022, Annex A";
const DORA: &str = "Regulation (EU) 2022/2554 (DORA)";

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
            SOC2,
            "A1.2",
            "Environmental protections, software, data backup processes and recovery infrastructure are authorized, designed, \
             acquired, operated, maintained and monitored to meet objectives.",
            &[coverage, points, rpo, copies, exceptions],
            "Anything but backup processes: environmental protections, software, recovery infrastructure; who authorized and designed \
             them; whether a repository is at a distance; anything that is not one of these machines.",
        ),
        clause(
            SOC2,
            "A1.3",
            "Procedures of the recovery plan are tested.",
            &[drills, rto, exceptions],
            "The plan itself; people, sites and networks; whether what a probe does not ask is complete: a drill brings machines back, \
             in isolation.",
        ),
        clause(
            SOC2,
            "CC7.5",
            "Activities to recover from identified security incidents are identified, developed and implemented.",
            &[drills, logs],
            "Which incidents there were, their causes, who was told, what was changed: exceptions here are backups and drills that \
             were not as promised.",
        ),
        clause(
            ISO,
            "A.8.13",
            "Backup copies of information, software and systems are maintained and regularly tested, as the agreed policy on backup says.",
            &[coverage, points, rpo, drills, copies, locks],
            "Whether the policies are those that the organization agreed on; whether a repository is at a distance.",
        ),
        clause(
            ISO,
            "A.8.15",
            "Logs that record activities, exceptions, faults and other relevant events are produced, stored, protected and analysed.",
            &[logs, exceptions],
            "Logs of anything but Keyframe; whether anybody analyses them; who can replace a log as a whole.",
        ),
        clause(
            ISO,
            "A.5.30",
            "ICT readiness is planned, implemented, maintained and tested, based on objectives of business continuity.",
            &[rpo, rto, drills],
            "Whether the objectives follow from an analysis of business impact; plans; order and dependencies of services.",
        ),
        clause(
            "Directive (EU) 2022/2555 (NIS2)",
            "Art. 21(2)(c)",
            "Measures include business continuity, such as backup management and disaster recovery, and crisis management.",
            &[coverage, points, rpo, drills, rto, copies],
            "Crisis management; disaster recovery beyond the restore of these machines; whether the measures are appropriate to the risks \
             (Art. 21(1)).",
        ),
        clause(
            DORA,
            "Art. 11(6)",
            "Plans for ICT business continuity, response and recovery are tested at least yearly, and after substantive changes.",
            &[drills, rto, exceptions],
            "The plans; scenarios such as cyber-attacks and a switch to another site; tests of plans for communication; reviews.",
        ),
        clause(
            DORA,
            "Art. 12",
            "Backup policies with scope and minimum frequency (1); backup and restoration are tested periodically (2); restoring is done on \
             segregated systems (3); ICT capacities are redundant (4); recovery time and point objectives are determined (6); integrity is \
             checked when recovering from an incident (7).",
            &[coverage, points, rpo, rto, drills],
            "Whether frequency and objectives follow from criticality; segregation (3); redundant capacities (4); checks and \
             reconciliation after an incident (7).",
        ),
    ]
}
