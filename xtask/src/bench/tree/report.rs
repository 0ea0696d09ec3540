//! Judges the figures by the targets that the project set itself.

use serde_json::{Value, json};

use super::Figures;
use super::delete::{DeleteFigures, Merge, median};
use super::depth::AtDepth;
use super::expire::ExpireFigures;
use super::list::ListFigures;
use super::revert::RevertFigures;
use super::subject::Felt;
use crate::bench::samples::rounded;
use crate::bench::table::Row;

/// Bytes moved: at most so many times those that have to.
const MOVED_FACTOR: f64 = 1.1;
const WALL_FACTOR: f64 = 1.2;
/// What is left to the guest of its throughput.
const THROUGHPUT_PART: f64 = 0.6;
const STALL_MS: f64 = 250.0;
/// A flat chain is as fast as one of depth 1, but for this part.
const FLAT_PART: f64 = 0.97;
const REVERT_FACTOR: f64 = 1.5;
const LIST_MS: f64 = 200.0;

/// All rows of what was measured.
pub fn rows(figures: &Figures) -> Vec<Row> {
    let mut rows: Vec<_> = figures.delete.iter().flat_map(delete_rows).collect();
    rows.extend(depth_rows(&figures.depth));
    rows.extend(figures.expire.iter().flat_map(expire_rows));
    rows.extend(figures.revert.iter().flat_map(revert_rows));
    rows.extend(figures.list.iter().flat_map(list_rows));
    rows
}

/// Everything as one JSON document.
pub fn document(figures: &Figures, load: [f64; 2]) -> Value {
    let row = |row: Row| json!({ "figure": row.figure, "target": row.target, "measured": row.measured, "reached": row.reached });
    let delete = |delete: &DeleteFigures| {
        json!({
            "smaller_bytes": delete.smaller_bytes,
            "told_bytes": delete.told_bytes,
            "keyframe": delete.keyframe.iter().map(Merge::to_json).collect::<Vec<_>>(),
            "bare": delete.bare.iter().map(Merge::to_json).collect::<Vec<_>>(),
        })
    };
    let depth = |at: &AtDepth| {
        let felt: Vec<Value> = at.felt.iter().map(Felt::to_json).collect();
        json!({ "depth": at.depth, "felt": felt })
    };
    let revert = |revert: &RevertFigures| {
        json!({
            "ram": revert.ram.to_string(),
            "shared_bytes": revert.shared_bytes,
            "unshared": revert.unshared.to_json(),
            "shared": revert.shared.to_json(),
        })
    };
    json!({
        "schema": "keyframe-bench-tree/1",
        "load_average": { "before": load[0], "after": load[1] },
        "rows": rows(figures).into_iter().map(row).collect::<Vec<_>>(),
        "delete": figures.delete.as_ref().map(delete),
        "depth": figures.depth.iter().map(depth).collect::<Vec<_>>(),
        "expire": figures.expire.as_ref().map(ExpireFigures::to_json),
        "revert": figures.revert.as_ref().map(revert),
        "list": figures.list.as_ref().map(ListFigures::to_json),
    })
}

fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

fn or_not_measured(text: Option<String>) -> String {
    text.unwrap_or_else(|| "not measured".to_owned())
}

/// Of what the guest had before.
fn part(merge: &Merge) -> Option<f64> {
    Some(merge.meanwhile.mib_per_s()? / merge.before.mib_per_s()?)
}

/// The middle of the rounds, and how far they lie apart.
fn spread(merges: &[Merge], of: impl Fn(&Merge) -> f64, told: impl Fn(f64) -> String) -> String {
    let values = merges.iter().map(&of);
    let (least, most) = (values.clone().fold(f64::MAX, f64::min), values.fold(0.0, f64::max));
    match median(merges, |merge| Some(of(merge))) {
        Some(middle) if merges.len() > 1 => format!("{} ({} to {})", told(middle), told(least), told(most)),
        middle => or_not_measured(middle.map(told)),
    }
}

fn wall(merges: &[Merge]) -> String {
    spread(merges, |merge| merge.wall_ms, |ms| format!("{} ms", rounded(ms)))
}

fn moved(merges: &[Merge]) -> String {
    spread(merges, |merge| merge.moved_bytes as f64, mib)
}

fn throughput(merges: &[Merge]) -> String {
    let middle = |of: fn(&Merge) -> Option<f64>| median(merges, of);
    let (before, meanwhile) = (middle(|merge| merge.before.mib_per_s()), middle(|merge| merge.meanwhile.mib_per_s()));
    or_not_measured(middle(part).zip(before).zip(meanwhile).map(|((part, before), meanwhile)| {
        format!("{:.0} % ({} of {} MiB/s)", part * 100.0, rounded(meanwhile), rounded(before))
    }))
}

/// The longest of all rounds.
fn worst(merges: &[Merge], of: fn(&Merge) -> f64) -> f64 {
    merges.iter().map(of).fold(0.0, f64::max)
}

fn stall(merges: &[Merge]) -> String {
    let [meanwhile, before] = [|merge: &Merge| merge.meanwhile.worst_ms, |merge: &Merge| merge.before.worst_ms];
    format!("{} ms (undisturbed {} ms)", rounded(worst(merges, meanwhile)), rounded(worst(merges, before)))
}

fn delete_rows(delete: &DeleteFigures) -> Vec<Row> {
    let (keyframe, bare) = (&delete.keyframe, &delete.bare);
    let moved_most = delete.smaller_bytes as f64 * MOVED_FACTOR;
    let middle = |merges: &[Merge]| median(merges, |merge| Some(merge.wall_ms));
    let wall_most = middle(bare).map(|ms| ms * WALL_FACTOR);
    let felt = !keyframe.is_empty() && keyframe.iter().all(|merge| merge.meanwhile.mib_per_s().is_some());
    vec![
        Row::told("bare block-commit, wall time", wall(bare)),
        Row::told("bare block-commit, bytes moved", moved(bare)),
        Row::told("bare block-commit, guest's disk throughput", throughput(bare)),
        Row::told("bare block-commit, longest stall", stall(bare)),
        Row::judged(
            "delete of a middle snapshot, bytes moved",
            format!("<= 1.1 x smaller = {}", mib(moved_most)),
            format!("{}, told {}", moved(keyframe), mib(delete.told_bytes as f64)),
            median(keyframe, |merge| Some(merge.moved_bytes as f64)).map(|bytes| bytes <= moved_most),
        ),
        Row::judged(
            "delete of a middle snapshot, wall time",
            format!("<= 1.2 x bare = {} ms", wall_most.map_or_else(|| "?".to_owned(), rounded)),
            wall(keyframe),
            middle(keyframe).zip(wall_most).map(|(ms, most)| ms <= most),
        ),
        Row::judged(
            "guest's disk throughput meanwhile",
            ">= 60 % of undisturbed",
            throughput(keyframe),
            median(keyframe, part).map(|part| part >= THROUGHPUT_PART),
        ),
        Row::judged(
            "guest's longest stall meanwhile, of all rounds",
            "<= 250 ms",
            stall(keyframe),
            felt.then_some(worst(keyframe, |merge| merge.meanwhile.worst_ms) <= STALL_MS),
        ),
    ]
}

fn depth_rows(all: &[AtDepth]) -> Vec<Row> {
    let base = all.iter().find(|at| at.depth == Some(1)).and_then(AtDepth::requests_per_s);
    let row = |at: &AtDepth| {
        let part = at.requests_per_s().zip(base).map(|(now, base)| now / base);
        let told = at.requests_per_s().zip(part);
        let told = or_not_measured(told.map(|(rate, part)| format!("{rate:.0}/s, {:.1} % of depth 1", part * 100.0)));
        match at.depth {
            Some(depth) => Row::told(format!("random 4 KiB reads at depth {depth}"), told),
            None => Row::judged(
                "random 4 KiB reads after consolidate --flatten",
                ">= 97 % of depth 1",
                told,
                part.map(|part| part >= FLAT_PART),
            ),
        }
    };
    all.iter().map(row).collect()
}

fn expire_rows(expire: &ExpireFigures) -> Vec<Row> {
    let most = expire.own_bytes as f64 * MOVED_FACTOR;
    vec![
        Row::judged(
            format!("expire {} of 30, layers merged more than once", expire.gone),
            "0",
            format!("{} in {} merges, {} ms", expire.twice, expire.merges, rounded(expire.wall_ms)),
            Some(expire.twice == 0),
        ),
        Row::judged(
            format!("expire {} of 30, bytes moved", expire.gone),
            format!("<= 1.1 x what goes = {}", mib(most)),
            mib(expire.moved_bytes as f64),
            Some(expire.moved_bytes as f64 <= most),
        ),
    ]
}

fn revert_rows(revert: &RevertFigures) -> Vec<Row> {
    let (own, shared) = (&revert.unshared, &revert.shared);
    let judged = |figure: &str, own: &crate::bench::samples::Samples, shared: &crate::bench::samples::Samples| {
        let most = own.median().map(|ms| ms * REVERT_FACTOR);
        Row::judged(
            format!("revert from a shared image of {}, {figure}", revert.ram),
            format!("<= 1.5 x unshared = {} ms", most.map_or_else(|| "?".to_owned(), rounded)),
            shared.to_string(),
            shared.median().zip(most).map(|(ms, most)| ms <= most),
        )
    };
    vec![
        Row::told("shared image: in common with the other", mib(revert.shared_bytes as f64)),
        Row::told("revert from an unshared image, vCPUs running", own.running.to_string()),
        Row::told("revert from an unshared image, all memory there", own.hydrated.to_string()),
        judged("vCPUs running", &own.running, &shared.running),
        judged("all memory there", &own.hydrated, &shared.hydrated),
    ]
}

fn list_rows(list: &ListFigures) -> Vec<Row> {
    let row = |figure: String, samples: &crate::bench::samples::Samples| {
        let reached = samples.median().map(|ms| ms < LIST_MS);
        Row::judged(figure, "< 200 ms", samples.to_string(), reached)
    };
    vec![
        row(format!("keyframe snapshots, {} of them", list.snapshots), &list.table),
        row(format!("keyframe snapshots --json, {} of them", list.snapshots), &list.json),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(wall_ms: f64, moved_bytes: u64, kib: [u64; 2], worst_ms: f64) -> Merge {
        let felt = |kib: u64| Felt::parse(&format!("DROVE ms 1000.0 ops 10 kib {kib} worst_ms {worst_ms}\n"));
        Merge { wall_ms, moved_bytes, before: felt(kib[0]), meanwhile: felt(kib[1]) }
    }

    fn reached(rows: &[Row], figure: &str) -> Option<bool> {
        rows.iter().find(|row| row.figure.ends_with(figure)).unwrap_or_else(|| panic!("{figure}")).reached
    }

    #[test]
    fn a_deletion_is_judged_by_what_was_measured_beside() {
        // One round that something else disturbed is no verdict, but for the guest's stall.
        let odd = merge(5000.0, 500, [1000, 10], 9.0);
        let bare = merge(1000.0, 100, [1000, 500], 9.0);
        let bare = vec![bare.clone(), odd.clone(), bare];
        let figures = |keyframe: Merge| {
            let keyframe = vec![keyframe.clone(), odd.clone(), keyframe];
            DeleteFigures { smaller_bytes: 100, told_bytes: 100, keyframe, bare: bare.clone() }
        };
        let good = delete_rows(&figures(merge(1199.0, 110, [1000, 600], 250.0)));
        let bad = delete_rows(&figures(merge(1201.0, 111, [1000, 599], 251.0)));
        for figure in ["snapshot, bytes moved", "snapshot, wall time", "throughput meanwhile", "of all rounds"] {
            assert_eq!((reached(&good, figure), reached(&bad, figure)), (Some(true), Some(false)), "{figure}");
        }
    }

    #[test]
    fn a_flat_chain_is_judged_by_depth_one() {
        let at = |depth, ops: u64| AtDepth {
            depth,
            felt: [1, ops, 999_999]
                .map(|ops| Felt::parse(&format!("DROVE ms 1000.0 ops {ops} kib 1 worst_ms 1\n")))
                .to_vec(),
        };
        for (flat, expected) in [(970, Some(true)), (969, Some(false))] {
            let rows = depth_rows(&[at(Some(1), 1000), at(Some(32), 500), at(None, flat)]);
            assert_eq!(reached(&rows, "flatten"), expected);
            assert_eq!(reached(&rows, "depth 32"), None);
        }
    }
}
