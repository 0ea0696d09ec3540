//! What is measured, before anybody judges it.

use serde_json::{Value, json};

use super::guest::Ram;
use super::peak::Peaks;
use super::samples::Samples;

/// QEMU without Keyframe.
#[derive(Debug, Default)]
pub struct QemuFigures {
    /// The longest silence while nothing happens to the guest.
    pub quiet: Samples,
    /// The pause of a capture of RAM and devices into tmpfs, disks not cut: QEMU's floor.
    pub floor_pause: Samples,
    /// The longest silence around that capture.
    pub floor_silence: Samples,
    /// The pause of live migration to a file.
    pub precopy_pause: Samples,
    /// The longest silence around it.
    pub precopy_silence: Samples,
    /// The pause of `snapshot-save`.
    pub save_pause: Samples,
    /// From `snapshot-load` until vCPUs run.
    pub load_running: Samples,
    /// From `snapshot-load` until the guest's first word.
    pub load_visible: Samples,
}

/// Keyframe.
#[derive(Debug, Default)]
pub struct KeyframeFigures {
    /// The pauses of snapshots in a row.
    pub pause: Samples,
    /// The longest silence from each command's start until a second after its end.
    pub silence: Samples,
    /// The whole `snapshot` command.
    pub snapshot_total: Samples,
    /// From `revert` until vCPUs run.
    pub running: Samples,
    /// From `revert` until the guest's first word.
    pub visible: Samples,
    /// From `revert` until all memory is there.
    pub hydrated: Samples,
    /// Keyframe's own memory, process by process.
    pub snapshot_peaks: Peaks,
    /// The same for `revert`.
    pub revert_peaks: Peaks,
    /// Memory of the machine's QEMU that was resident, in MiB.
    pub resident_mib: u64,
}

/// Both for one size of machine.
pub struct SizeFigures {
    /// The machine's RAM.
    pub ram: Ram,
    /// QEMU without Keyframe.
    pub qemu: QemuFigures,
    /// Keyframe.
    pub keyframe: KeyframeFigures,
}

/// Forks of an idle machine.
#[derive(Debug)]
pub struct ForkFigures {
    /// The machine's RAM.
    pub ram: Ram,
    /// How many.
    pub count: u32,
    /// From the `fork` command's start until the last of them ran.
    pub running: Samples,
    /// The whole command: it also waits until each guest has let go of its network card.
    pub command: Samples,
    /// As many bare QEMU processes, one after another, until each monitor answers.
    pub bare_starts: Samples,
    /// Proportional share of memory of each fork, in KiB.
    pub pss_kib: Vec<u64>,
    /// Memory of its own of each fork, in KiB.
    pub private_kib: Vec<u64>,
}

impl SizeFigures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        let (qemu, keyframe) = (&self.qemu, &self.keyframe);
        json!({
            "ram": self.ram.to_string(),
            "resident_mib": keyframe.resident_mib,
            "qemu": {
                "undisturbed_silence": qemu.quiet.to_json(),
                "floor_pause": qemu.floor_pause.to_json(),
                "tmpfs_silence": qemu.floor_silence.to_json(),
                "precopy_pause": qemu.precopy_pause.to_json(),
                "precopy_silence": qemu.precopy_silence.to_json(),
                "snapshot_save_pause": qemu.save_pause.to_json(),
                "snapshot_load_running": qemu.load_running.to_json(),
                "snapshot_load_visible": qemu.load_visible.to_json(),
            },
            "keyframe": {
                "pause": keyframe.pause.to_json(),
                "silence": keyframe.silence.to_json(),
                "snapshot_total": keyframe.snapshot_total.to_json(),
                "revert_running": keyframe.running.to_json(),
                "revert_visible": keyframe.visible.to_json(),
                "revert_hydrated": keyframe.hydrated.to_json(),
                "snapshot_peak_kib": keyframe.snapshot_peaks.to_json(),
                "revert_peak_kib": keyframe.revert_peaks.to_json(),
            },
        })
    }
}

impl ForkFigures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({
            "ram": self.ram.to_string(),
            "count": self.count,
            "all_running": self.running.to_json(),
            "command": self.command.to_json(),
            "bare_starts": self.bare_starts.to_json(),
            "pss_kib": self.pss_kib,
            "private_kib": self.private_kib,
        })
    }
}
