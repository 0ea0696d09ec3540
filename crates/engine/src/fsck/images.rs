//! `qemu-img check` of layers that no process has open: whether a qcow2 image's own tables agree with each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_hypervisor::LayerFormat;
use keyframe_types::VmName;
use serde::Deserialize;
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::fsck::finding::{Finding, What};
use crate::fsck::survey::{Needed, Survey};

/// What `qemu-img check --output=json` says. Source: `ImageCheck` in qapi/block-core.json.
#[derive(Debug, Deserialize)]
struct ImageCheck {
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    leaks: u64,
    #[serde(rename = "check-errors", default)]
    check_errors: u64,
}

/// Checks the qcow2 layers of `vm` that nobody has open.
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::Io`] when there is no `qemu-img`.
pub(super) fn look(ctx: &Context<'_>, survey: &Survey, needed: &Needed, vm: &VmName) -> Result<Vec<Finding>, Error> {
    let open = survey.open_files(ctx.home, needed);
    let frozen = needed.layers.iter().filter(|(name, _)| name.vm == *vm).map(|(_, entry)| entry.layer.clone());
    let active = survey.active().filter(|(owner, _, _)| *owner == vm).map(|(_, layer, _)| layer);
    let mut files: Vec<PathBuf> = frozen
        .chain(active)
        .filter(|layer| layer.format == LayerFormat::Qcow2)
        .map(|layer| ctx.home.absolute(&layer.path))
        .filter(|path| !open.contains(path) && path.is_file())
        .collect();
    files.sort();
    files.dedup();
    let mut found = Vec::new();
    for (done, path) in files.iter().enumerate() {
        ctx.check()?;
        ctx.progress.step(&format!("checking the tables of {vm}'s layers ({} of {})", done + 1, files.len()));
        found.extend(check(vm, path)?);
    }
    Ok(found)
}

fn check(vm: &VmName, path: &Path) -> Result<Option<Finding>, Error> {
    let not_checked =
        |text: String| Ok(Some(Finding::serious(vm, What::NotChecked, path, text, "see to the cause and try again")));
    let Some(name) = path.to_str() else { return not_checked("qemu-img takes no such name".to_owned()) };
    // Only this file: what it stands on is looked at by itself.
    let node = json!({"driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": name}});
    let output = Command::new("qemu-img").args(["check", "--output=json"]).arg(format!("json:{node}")).output();
    let output = output.or_io("run qemu-img check on", path)?;
    let Ok(result) = serde_json::from_slice::<ImageCheck>(&output.stdout) else {
        return not_checked(format!("qemu-img check: {}", String::from_utf8_lossy(&output.stderr).trim()));
    };
    Ok(judged(vm, path, &result))
}

fn judged(vm: &VmName, path: &Path, result: &ImageCheck) -> Option<Finding> {
    let ImageCheck { corruptions, leaks, check_errors } = *result;
    if corruptions + check_errors > 0 {
        let text = format!("its tables are wrong in {corruptions} places ({check_errors} could not be read)");
        let advice =
            "copy what can be read (qemu-img convert) before anything else is tried; other layers are not affected";
        return Some(Finding::serious(vm, What::CorruptImage, path, text, advice));
    }
    let text = || format!("{leaks} clusters are in use by nobody: room that is lost until it is merged");
    let advice = "nothing has to be done: no data are affected";
    (leaks > 0).then(|| Finding::harmless(vm, What::LeakedClusters, path, text(), advice))
}

/// What could not be checked at all, as a finding.
pub(super) fn failed(vm: &VmName, path: &Path, error: &Error) -> Finding {
    Finding::serious(vm, What::NotChecked, path, error.told(), "install QEMU's tools (qemu-img) and try again")
}
