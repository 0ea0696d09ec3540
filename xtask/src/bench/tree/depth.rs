//! Random reads through chains of several depths, and through a flat one after `consolidate --flatten`: one after the other,
//! and all of it again, so that what else the host does disturbs all of them alike.

use std::time::Duration;

use anyhow::Result;
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};

use super::subject::{Area, Felt, Subject};
use super::{BOOT_WITHIN, MEMORY, Rounds, WORDS};
use crate::bench::samples::Samples;
use crate::say;

/// Depths at which is measured: snapshots below the present.
const DEPTHS: [u64; 4] = [1, 2, 8, 32];
const DEEPEST: u64 = 32;
/// What is read; each layer but the first covers one part in 32 of it, spread over all of it.
const AREA: Area = Area { from_mib: 1024, span_mib: 1024 };
const MEASURED_FOR: Duration = Duration::from_secs(6);

/// Reads at some depth.
pub struct AtDepth {
    /// Snapshots below the present; nothing after consolidation.
    pub depth: Option<u64>,
    /// What the guest felt, once each round.
    pub felt: Vec<Felt>,
}

impl AtDepth {
    /// The middle of what the rounds came to; nothing if one was not measured.
    pub fn requests_per_s(&self) -> Option<f64> {
        let mut samples = Samples::default();
        self.felt.iter().try_for_each(|felt| felt.requests_per_s().map(|rate| samples.push_ms(rate)))?;
        samples.median()
    }
}

/// Makes a deep chain, and measures at each depth in turns.
///
/// # Errors
/// When a command or QEMU fails.
pub fn measure(home: &Home, guest: &SmallGuest, rounds: Rounds) -> Result<Vec<AtDepth>> {
    let disk = home.empty_disk("deep.qcow2", "4G")?;
    let spec = MachineSpec::small(guest, MEMORY, WORDS).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "deep", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let mut subject = Subject::of_keyframe(&machine)?;
    subject.fill(AREA)?;
    for depth in 1..=DEEPEST {
        home.run(["snapshot", "deep", "--name", &format!("d{depth}"), "--disk-only"])?.succeeded()?;
        if depth < DEEPEST {
            spread(&mut subject, depth)?;
        }
    }
    drop(subject);
    let depths = DEPTHS.into_iter().map(Some).chain([None]);
    let mut measured: Vec<AtDepth> = depths.map(|depth| AtDepth { depth, felt: Vec::new() }).collect();
    for round in 1..=rounds.get() {
        for at in &mut measured {
            match at.depth {
                Some(depth) => {
                    say::note(format_args!("round {round}: reads at depth {depth}"));
                    // It boots from the snapshot's disks, on one layer above them.
                    let booting = machine.serial()?.end();
                    machine.revert(&format!("d{depth}"), &[])?;
                    machine.serial()?.wait_for(booting, "READY", BOOT_WITHIN)?;
                }
                // The deepest was the last.
                None => {
                    say::note(format_args!("round {round}: reads after consolidate --flatten"));
                    home.run(["consolidate", "deep", "--flatten"])?.succeeded()?;
                }
            }
            at.felt.push(reads(&Subject::of_keyframe(&machine)?)?);
        }
    }
    home.run(["vm", "stop", "deep", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "deep"])?.succeeded()?;
    Ok(measured)
}

/// One MiB in each 32 MiB of the area.
fn spread(subject: &mut Subject<'_>, layer: u64) -> Result<()> {
    let pieces = (AREA.from_mib..AREA.from_mib + AREA.span_mib).step_by(DEEPEST as usize);
    pieces.map(|from| Area { from_mib: from + layer, span_mib: 1 }).try_for_each(|piece| subject.fill(piece))
}

fn reads(subject: &Subject<'_>) -> Result<Felt> {
    subject.drive("read", AREA)?;
    let felt = subject.felt_for(MEASURED_FOR);
    subject.rest()?;
    Ok(felt)
}
