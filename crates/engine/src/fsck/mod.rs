//! Are documents, layers and files what they say of each other?
//!
//! ```text
//!   lock ─▶ survey of all documents ─▶ findings ─▶ repairs, each said first ─▶ survey again ─▶ what is left
//! ```
//! Looking changes nothing. A repair is made only where nothing can be lost by it, and is one of those that the next
//! command would make as well, or a header that is written as `tree.json` says; anything else is explained. Each
//! machine is looked at under its lock, so nobody is at work on what is found.
//!
//! Documents are read one by one ([`survey`]), so that one that is damaged hides no other.

mod documents;
mod files;
mod finding;
mod images;
mod layers;
mod memory;
mod mending;
mod survey;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use keyframe_types::VmName;
use serde::Serialize;

use crate::context::Context;
use crate::error::{Error, Kind};
use crate::recover::{self, Patience};
use crate::sharing;
use crate::snapshot;
use crate::state::durable;
use crate::state::home::Home;
use crate::state::lock::Lock;

use finding::Repair;
pub use finding::{Finding, Severity, What};
use survey::Survey;

/// How to look.
#[derive(Debug, Clone, Copy, Default)]
pub struct FsckOptions {
    /// Put right what can be put right without a loss.
    pub repair: bool,
}

/// A machine that somebody is at work on.
#[derive(Debug, Clone, Serialize)]
pub struct BusyMachine {
    /// The machine.
    pub vm: VmName,
    /// Who holds it.
    pub holder: String,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct FsckReport {
    /// Machines that were looked at.
    pub machines: Vec<VmName>,
    /// What is not as it should be, and still is not behind all repairs.
    pub findings: Vec<Finding>,
    /// What was put right.
    pub repaired: Vec<Finding>,
    /// Machines that were not looked at.
    pub busy: Vec<BusyMachine>,
}

impl FsckReport {
    /// Whether nothing was found, or nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.busy.is_empty()
    }
}

/// Looks at one machine, or at all.
///
/// # Errors
/// [`Error::NoMachine`]; [`Error::Busy`] for one machine; [`Error::Interrupted`]; [`Error::Io`] when a directory cannot be listed.
pub fn fsck(ctx: &Context<'_>, vm: Option<&VmName>, options: FsckOptions) -> Result<FsckReport, Error> {
    let mut report = FsckReport::default();
    let names = match vm {
        Some(name) if !ctx.home.vm(name).exists()? => return Err(Error::NoMachine(name.clone())),
        Some(name) => vec![name.clone()],
        None => ctx.home.machine_names()?,
    };
    let mut survey = Survey::of(ctx.home)?;
    for name in names {
        ctx.check()?;
        ctx.progress.step(&format!("looking at {name}"));
        match machine(ctx, &mut survey, &name, options, &mut report) {
            Err(Error::Busy { holder }) if vm.is_none() => report.busy.push(BusyMachine { vm: name, holder }),
            other => other?,
        }
    }
    if vm.is_none() {
        report.findings.extend(no_machines(ctx.home)?);
    }
    report.findings.sort_by(|a, b| (&a.vm, b.severity, &a.path).cmp(&(&b.vm, a.severity, &b.path)));
    Ok(report)
}

fn machine(
    ctx: &Context<'_>,
    survey: &mut Survey,
    name: &VmName,
    options: FsckOptions,
    report: &mut FsckReport,
) -> Result<(), Error> {
    let dir = ctx.home.vm(name);
    let _lock = Lock::take(&dir.lock(), &format!("fsck {name}"))?;
    survey.look_again(ctx.home, name)?;
    let mut found = look(ctx, survey, name)?;
    if options.repair {
        let repaired = repair(ctx, name, &found)?;
        if repaired > 0 {
            survey.look_again(ctx.home, name)?;
            let left = look(ctx, survey, name)?;
            let same = |one: &Finding, other: &Finding| one.what == other.what && one.path == other.path;
            let gone = found.into_iter().filter(|one| !left.iter().any(|other| same(one, other)));
            report.repaired.extend(gone);
            found = left;
        }
    }
    // Last, as it takes longest: the tables within the files that are left.
    let needed = survey.needed();
    match images::look(ctx, survey, &needed, name) {
        Ok(more) => found.extend(more),
        Err(error) if error.kind() == Kind::Interrupted => return Err(error),
        Err(error) => found.push(images::failed(name, &dir.root().join("layers"), &error)),
    }
    report.findings.extend(found);
    report.machines.push(name.clone());
    Ok(())
}

/// Everything but what takes long.
fn look(ctx: &Context<'_>, survey: &Survey, name: &VmName) -> Result<Vec<Finding>, Error> {
    let Some(machine) = survey.machines.get(name) else { return Ok(Vec::new()) };
    let needed = survey.needed();
    let mut found = documents::look(survey, machine);
    found.extend(layers::look(ctx.home, survey, &needed, name));
    found.extend(files::look(ctx.home, survey, &needed, machine)?);
    Ok(found)
}

/// Makes every repair that can be made, each said first. Says how many were tried; one that fails is told and keeps no
/// other from being made. What an unfinished operation left is looked at again behind it.
fn repair(ctx: &Context<'_>, name: &VmName, found: &[Finding]) -> Result<usize, Error> {
    let mut done: Vec<&Repair> = Vec::new();
    // An operation is finished first: the rest may be its doing.
    let first = |finding: &&Finding| u8::from(finding.repair != Some(Repair::Recover));
    let mut wanted: Vec<&Finding> = found.iter().filter(|finding| finding.repair.is_some()).collect();
    wanted.sort_by_key(first);
    for finding in wanted {
        ctx.check()?;
        let Some(repair) = finding.repair.as_ref().filter(|repair| !done.contains(repair)) else { continue };
        ctx.progress.note(&format!("repairing {}: {}", finding.path.display(), finding.text));
        if let Err(error) = carry_out(ctx, name, repair) {
            if error.kind() == Kind::Interrupted {
                return Err(error);
            }
            ctx.progress.note(&format!("that could not be repaired now: {}", error.told()));
        }
        done.push(repair);
    }
    Ok(done.len())
}

fn carry_out(ctx: &Context<'_>, name: &VmName, repair: &Repair) -> Result<(), Error> {
    let dir = ctx.home.vm(name);
    match repair {
        Repair::Recover => recover::recover(ctx, name, Patience::Thorough),
        Repair::RemoveFile(path) => durable::remove_file(path),
        Repair::DropUnused => crate::layers::drop_unused(ctx.home, &dir),
        Repair::ReclaimMemory => {
            sharing::reclaim_if_possible(ctx, &dir);
            Ok(())
        }
        Repair::DropUncommitted => snapshot::undo::drop_uncommitted(&dir),
        Repair::SetBacking(layer) => mending::mend(ctx.home, &dir, layer),
    }
}

/// Directories among the machines that are none.
fn no_machines(home: &Home) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    for path in survey::entries(&home.root().join("vms"))? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| VmName::new(name).ok());
        let Some(name) = name else {
            continue;
        };
        // Whoever makes or removes machines holds this, and what lies there may be on its way.
        let busy = Lock::holder(&home.root().join("lock")).is_some() || Lock::holder(&home.vm(&name).lock()).is_some();
        if !busy && !home.vm(&name).exists()? {
            found.push(no_machine(&name, path));
        }
    }
    Ok(found)
}

fn no_machine(name: &VmName, path: PathBuf) -> Finding {
    let holds = ["head.json", "tree.json", "snapshots", "layers"].into_iter().any(|entry| path.join(entry).exists());
    if holds {
        let text = "it has no machine.toml, and files of a machine".to_owned();
        let advice =
            "put its machine.toml back if it was one (each manifest holds the definition); otherwise remove it";
        return Finding::serious(name, What::NoMachine, &path, text, advice);
    }
    let text = "it has no machine.toml, so it is no machine".to_owned();
    Finding::harmless(name, What::NoMachine, &path, text, "remove it if you do not need it")
}
