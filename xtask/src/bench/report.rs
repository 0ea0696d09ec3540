//! Judges the figures by the targets that the project set itself.

use serde_json::{Value, json};

use super::figures::{ForkFigures, SizeFigures};
use super::peak::Peaks;
use super::samples::{Samples, rounded};
use super::table::Row;

/// Pause: at most so many times QEMU's floor.
const FLOOR_FACTOR: f64 = 3.0;
/// Pause: at least so many times shorter than `snapshot-save`'s.
const SAVE_FACTOR: f64 = 50.0;
const PAUSE_MS: f64 = 20.0;
/// Silence: at most so many times that of a capture into tmpfs.
const SILENCE_FACTOR: f64 = 1.5;
const RUNNING_MS: f64 = 250.0;
/// Revert: at least so many times faster than `snapshot-load`.
const LOAD_FACTOR: f64 = 10.0;
const VISIBLE_MS: f64 = 500.0;
/// Forks: at most so much slower than bare starts.
const FORKS_EXTRA_MS: f64 = 2000.0;
/// An idle fork: less than this part of its RAM.
const FORK_PART: f64 = 0.15;
const OWN_KIB: u64 = 64 << 10;

/// All rows: those of each size, then those of forks.
pub fn rows(sizes: &[SizeFigures], forks: Option<&ForkFigures>) -> Vec<Row> {
    let mut rows: Vec<_> = sizes.iter().flat_map(size_rows).collect();
    rows.extend(forks.into_iter().flat_map(fork_rows));
    rows
}

/// Everything as one JSON document.
pub fn document(sizes: &[SizeFigures], forks: Option<&ForkFigures>, load: [f64; 2]) -> Value {
    let rows: Vec<_> = rows(sizes, forks)
        .into_iter()
        .map(|row| json!({ "figure": row.figure, "target": row.target, "measured": row.measured, "reached": row.reached }))
        .collect();
    json!({
        "schema": "keyframe-bench-snapshot/1",
        "load_average": { "before": load[0], "after": load[1] },
        "rows": rows,
        "sizes": sizes.iter().map(SizeFigures::to_json).collect::<Vec<_>>(),
        "forks": forks.map(ForkFigures::to_json),
    })
}

/// Whether a measurement is at most a limit; nothing when either is not known.
fn at_most(measured: Option<f64>, limit: Option<f64>) -> Option<bool> {
    Some(measured? <= limit?)
}

fn limit(factor: f64, samples: &Samples) -> (Option<f64>, String) {
    let limit = samples.median().map(|median| median * factor);
    (limit, limit.map_or_else(|| "?".to_owned(), rounded))
}

fn size_rows(size: &SizeFigures) -> Vec<Row> {
    let mut rows = pause_rows(size);
    rows.extend(revert_rows(size));
    let (ram, keyframe) = (size.ram, &size.keyframe);
    rows.push(peak_row(format!("{ram}: Keyframe's own memory, snapshot"), &keyframe.snapshot_peaks));
    rows.push(peak_row(format!("{ram}: Keyframe's own memory, revert"), &keyframe.revert_peaks));
    rows
}

fn pause_rows(size: &SizeFigures) -> Vec<Row> {
    let (ram, qemu, keyframe) = (size.ram, &size.qemu, &size.keyframe);
    let pause = keyframe.pause.median();
    let (floor, floor_text) = limit(FLOOR_FACTOR, &qemu.floor_pause);
    let (save, save_text) = limit(1.0 / SAVE_FACTOR, &qemu.save_pause);
    // The longest is what a person notices: the worst is compared with the worst.
    let silence = qemu.floor_silence.worst().map(|ms| ms * SILENCE_FACTOR);
    let silence_text = silence.map_or_else(|| "?".to_owned(), rounded);
    vec![
        Row::told(format!("{ram}: memory resident"), format!("{} MiB", keyframe.resident_mib)),
        Row::told(format!("{ram}: pause of QEMU's floor, no disks"), qemu.floor_pause.to_string()),
        Row::told(format!("{ram}: pause of snapshot-save"), qemu.save_pause.to_string()),
        Row::told(format!("{ram}: pause of live migration to a file"), qemu.precopy_pause.to_string()),
        Row::judged(
            format!("{ram}: pause, disks included"),
            format!("<= 3 x floor = {floor_text} ms"),
            keyframe.pause.to_string(),
            at_most(pause, floor),
        ),
        Row::judged(
            format!("{ram}: pause against snapshot-save"),
            format!("<= 1/50 = {save_text} ms"),
            keyframe.pause.to_string(),
            at_most(pause, save),
        ),
        Row::judged(
            format!("{ram}: each pause, first to fifth"),
            format!("<= {PAUSE_MS} ms"),
            keyframe.pause.in_order(),
            at_most(keyframe.pause.worst(), Some(PAUSE_MS)),
        ),
        Row::told(format!("{ram}: silence of an undisturbed guest"), qemu.quiet.to_string()),
        Row::told(format!("{ram}: silence, capture into tmpfs"), qemu.floor_silence.to_string()),
        Row::told(format!("{ram}: silence, live migration to a file"), qemu.precopy_silence.to_string()),
        Row::judged(
            format!("{ram}: longest silence"),
            format!("<= 1.5 x tmpfs, worst = {silence_text} ms"),
            keyframe.silence.to_string(),
            at_most(keyframe.silence.worst(), silence),
        ),
        Row::told(format!("{ram}: the whole snapshot command"), keyframe.snapshot_total.to_string()),
    ]
}

fn revert_rows(size: &SizeFigures) -> Vec<Row> {
    let (ram, qemu, keyframe) = (size.ram, &size.qemu, &size.keyframe);
    let (load, load_text) = limit(1.0 / LOAD_FACTOR, &qemu.load_running);
    let loaded = format!("{}, visible after {}", qemu.load_running, qemu.load_visible);
    vec![
        Row::told(format!("{ram}: snapshot-load, vCPUs running"), loaded),
        Row::judged(
            format!("{ram}: revert, vCPUs running"),
            format!("<= {RUNNING_MS} ms"),
            keyframe.running.to_string(),
            at_most(keyframe.running.median(), Some(RUNNING_MS)),
        ),
        Row::judged(
            format!("{ram}: revert against snapshot-load"),
            format!("<= 1/10 = {load_text} ms"),
            keyframe.running.to_string(),
            at_most(keyframe.running.median(), load),
        ),
        Row::judged(
            format!("{ram}: revert, guest visibly gone on"),
            format!("<= {VISIBLE_MS} ms"),
            keyframe.visible.to_string(),
            at_most(keyframe.visible.median(), Some(VISIBLE_MS)),
        ),
        Row::told(format!("{ram}: revert, all memory there"), keyframe.hydrated.to_string()),
    ]
}

fn peak_row(figure: String, peaks: &Peaks) -> Row {
    let together = peaks.together_kib();
    let measured = together
        .map_or_else(|| "not measured".to_owned(), |kib| format!("{} MiB together ({peaks})", kib.div_ceil(1024)));
    Row::judged(figure, format!("<= {} MiB", OWN_KIB >> 10), measured, together.map(|kib| kib <= OWN_KIB))
}

fn fork_rows(forks: &ForkFigures) -> Vec<Row> {
    let (ram, count) = (forks.ram, forks.count);
    let bare = forks.bare_starts.median().map(|ms| ms + FORKS_EXTRA_MS);
    let part_kib = FORK_PART * forks.ram.bytes() as f64 / 1024.0;
    let worst = |all: &[u64]| all.iter().max().map(|kib| *kib as f64);
    let mib = |kib: Option<f64>| {
        kib.map_or_else(|| "not measured".to_owned(), |kib| format!("{} MiB", rounded(kib / 1024.0)))
    };
    let (pss, private) = (worst(&forks.pss_kib), worst(&forks.private_kib));
    let fork_target = bare.map_or_else(|| "?".to_owned(), rounded);
    let part_text = format!("< 15 % of RAM = {} MiB", rounded(part_kib / 1024.0));
    vec![
        Row::told(format!("{count} bare QEMU starts"), forks.bare_starts.to_string()),
        Row::judged(
            format!("{count} forks of {ram}, all running"),
            format!("<= starts + 2 s = {fork_target} ms"),
            forks.running.to_string(),
            at_most(forks.running.median(), bare),
        ),
        Row::told(format!("{count} forks of {ram}, the whole command"), forks.command.to_string()),
        Row::judged(
            "each idle fork, its share (PSS), the largest",
            part_text.clone(),
            mib(pss),
            pss.map(|kib| kib < part_kib),
        ),
        Row::judged(
            "each idle fork, memory of its own, the largest",
            part_text,
            mib(private),
            private.map(|kib| kib < part_kib),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{KeyframeFigures, QemuFigures};
    use crate::bench::guest::Ram;

    fn samples(all: &[f64]) -> Samples {
        let mut samples = Samples::default();
        all.iter().for_each(|ms| samples.push_ms(*ms));
        samples
    }

    fn verdict(size: &SizeFigures, figure: &str) -> Option<bool> {
        let rows = rows(std::slice::from_ref(size), None);
        rows.iter().find(|row| row.figure.ends_with(figure)).unwrap_or_else(|| panic!("{figure}")).reached
    }

    #[test]
    fn targets_follow_from_what_was_measured_beside() {
        let qemu = QemuFigures {
            floor_pause: samples(&[2.0, 3.0, 9.0]),
            save_pause: samples(&[1000.0]),
            floor_silence: samples(&[40.0]),
            load_running: samples(&[1500.0]),
            ..QemuFigures::default()
        };
        let keyframe = KeyframeFigures {
            pause: samples(&[4.0, 8.9, 21.0]),
            silence: samples(&[61.0]),
            running: samples(&[160.0]),
            ..KeyframeFigures::default()
        };
        let size = SizeFigures { ram: Ram::LEAST, qemu, keyframe };
        assert_eq!(verdict(&size, "pause, disks included"), Some(true), "8.9 <= 3 x 3");
        assert_eq!(verdict(&size, "pause against snapshot-save"), Some(true), "8.9 <= 1000 / 50");
        assert_eq!(verdict(&size, "first to fifth"), Some(false), "the worst counts");
        assert_eq!(verdict(&size, "longest silence"), Some(false), "61 > 1.5 x 40");
        assert_eq!(verdict(&size, "revert, vCPUs running"), Some(true));
        assert_eq!(verdict(&size, "revert against snapshot-load"), Some(false), "160 > 1500 / 10");
        assert_eq!(verdict(&size, "revert, guest visibly gone on"), None, "not measured is neither");
    }
}
