//! Random reads through chains of growing depth, and once more after `consolidate --flatten`.

use std::time::Duration;

use anyhow::Result;
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec};

use super::subject::{Area, Felt, Subject};
use super::{BOOT_WITHIN, MEMORY, WORDS};
use crate::say;

/// Depths at which is measured: snapshots below the present.
const DEPTHS: [u64; 4] = [1, 2, 8, 32];
const DEEPEST: u64 = 32;
/// What is read; each layer but the first covers one part in 32 of it, spread over all of it.
const AREA: Area = Area { from_mib: 1024, span_mib: 1024 };
const MEASURED_FOR: Duration = Duration::from_secs(12);

/// Reads at some depth.
pub struct AtDepth {
    /// Snapshots below the present; nothing after consolidation.
    pub depth: Option<u64>,
    /// What the guest felt.
    pub felt: Felt,
}

/// Measures a chain that grows, and the one that is left of it.
///
/// # Errors
/// When a command or QEMU fails.
pub fn measure(home: &Home, guest: &SmallGuest) -> Result<Vec<AtDepth>> {
    let disk = home.empty_disk("deep.qcow2", "4G")?;
    let spec = MachineSpec::small(guest, MEMORY, WORDS).disk(&disk).option("--accel", "tcg");
    let machine = Machine::start(home, "deep", &spec)?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let mut subject = Subject::of_keyframe(&machine)?;
    subject.fill(AREA)?;
    let mut measured = Vec::new();
    for depth in 1..=DEEPEST {
        let name = format!("d{depth}");
        home.run(["snapshot", "deep", "--name", &name, "--disk-only"])?.succeeded()?;
        if DEPTHS.contains(&depth) {
            say::note(format_args!("reads at depth {depth}"));
            measured.push(AtDepth { depth: Some(depth), felt: reads(&subject)? });
        }
        if depth < DEEPEST {
            spread(&mut subject, depth)?;
        }
    }
    say::note("reads after consolidate --flatten");
    home.run(["consolidate", "deep", "--flatten"])?.succeeded()?;
    measured.push(AtDepth { depth: None, felt: reads(&subject)? });
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
