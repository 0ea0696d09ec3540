//! Files of memory images: those of deleted snapshots that others still need, and pages that maps refer to.

use keyframe_memory::sharing as files;
use keyframe_types::SnapshotId;

use crate::fsck::files::unknown;
use crate::fsck::finding::{Finding, Repair, What};
use crate::sharing;
use crate::space;
use crate::state::home::VmDir;

/// Looks at the memory images of one machine. Maps that cannot be read are told with their snapshots.
pub(super) fn look(dir: &VmDir) -> Vec<Finding> {
    let vm = dir.name();
    let faults = match files::survey(&sharing::store(dir)) {
        Ok(faults) => faults,
        Err(error) => {
            let text = format!("the files of memory images could not be looked at: {error}");
            return vec![Finding::harmless(vm, What::NotChecked, dir.root(), text, "see to that and run it again")];
        }
    };
    let mut found = Vec::new();
    for path in &faults.orphans {
        let text = format!("no memory image refers to it any more ({})", space::used(path));
        found.push(Finding::repairable(vm, What::OrphanFile, path, text, Repair::ReclaimMemory));
    }
    found.extend(faults.strangers.iter().map(|path| unknown(vm, path)));
    for torn in &faults.torn {
        let reader: Option<SnapshotId> = torn.reader.to_string().parse().ok();
        let text = format!("{} page(s) of the memory of {} should lie in it, and do not", torn.pages, torn.reader);
        let advice = format!(
            "restore that file from a backup of the home; `keyframe revert {vm}@{} --disk-only` boots from its disks, which \
             do not depend on it",
            torn.reader
        );
        let finding = Finding::serious(vm, What::MemoryImage, &torn.file, text, advice);
        found.push(match &reader {
            Some(reader) => finding.of(reader),
            None => finding,
        });
    }
    found
}
