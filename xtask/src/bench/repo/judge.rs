//! The figures side by side, and judged by the targets that the project set itself.

use serde_json::{Value, json};

use super::super::table::Row;
use super::baseline::Baseline;
use super::measure::{Cost, Tool};

const FULL_FACTOR: f64 = 2.0;
const FULL_RESTIC: f64 = 4.0;
const FULL_BARE: f64 = 1.4;
const NEXT_FACTOR: f64 = 2.5;
const NEXT_RESTIC: f64 = 5.0;
const LIST_FACTOR: f64 = 1.5;
const STORED_PART: f64 = 0.9;
const RESTORE_FACTOR: f64 = 3.0;
const VERIFY_FACTOR: f64 = 3.0;
const RANDOM_US: f64 = 1000.0;
const CPU_FACTOR: f64 = 1.2;
const PEAK_MIB: f64 = 256.0;

/// A line for each tool.
pub fn side_by_side(tools: &[Tool]) -> String {
    let mut text = String::from(
        "| tool | full, s | next days, s | memory, s | stored, MB: full / all | restore, s | verify, s | CPU s | peak MiB |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for tool in tools {
        let (days, memory) = tool.stores.split_at(tool.stores.len().min(crate::images::DAYS as usize));
        let each = |part: &[super::measure::Stored]| {
            part.iter().map(|stored| format!("{:.1}", stored.cost.seconds)).collect::<Vec<_>>().join(", ")
        };
        let time = |cost: Option<Cost>| cost.map_or_else(|| "-".to_owned(), |cost| format!("{:.1}", cost.seconds));
        text.push_str(&format!(
            "| {} | {:.1} | {} | {} | {} / {} | {} | {} | {:.0} | {:.0} |\n",
            tool.name,
            tool.full(),
            each(days.get(1..).unwrap_or_default()),
            each(memory),
            days.first().map_or(0, |stored| stored.store_bytes / 1_000_000),
            tool.stored_bytes() / 1_000_000,
            time(tool.restore),
            time(tool.verify),
            tool.cpu_seconds(),
            tool.peak_mib(),
        ));
    }
    text
}

/// Keyframe against the best of the others, row by row.
pub fn rows(tools: &[Tool], baseline: &Baseline) -> Vec<Row> {
    let Some(own) = tools.iter().find(|tool| tool.name == "keyframe") else { return Vec::new() };
    let judge =
        Judge { own, peers: tools.iter().filter(|tool| tool.name != "keyframe" && tool.deduplicates).collect() };
    let mut rows = vec![
        judge.faster("full backup", FULL_FACTOR, Tool::full),
        judge.faster_than("full backup against restic", "restic", FULL_RESTIC, Tool::full),
        judge.within("full backup against the bare loop", FULL_BARE, baseline.images.first().copied(), own.full()),
        judge.faster("next day, mean of four", NEXT_FACTOR, Tool::next_day),
        judge.faster_than("next day against restic", "restic", NEXT_RESTIC, Tool::next_day),
    ];
    if let Some((cost, bytes)) = own.by_list {
        let (bare, read, compressed) = baseline.changes;
        rows.push(judge.within("next day by a list of changes", LIST_FACTOR, Some(bare), cost.seconds));
        rows.push(Row::judged(
            "next day by a list: bytes stored",
            format!("<= 1.5 x compressed alone = {:.0} MB", compressed as f64 * LIST_FACTOR / 1e6),
            format!("{:.0} MB of {:.0} MB read", bytes as f64 / 1e6, read as f64 / 1e6),
            Some(bytes as f64 <= compressed as f64 * LIST_FACTOR),
        ));
    }
    let smallest = judge.best(|tool| tool.stored_bytes() as f64);
    rows.push(Row::judged(
        "stored after all images",
        judge.against(&smallest, |least| {
            format!("<= 0.9 x {:.0} MB = {:.0} MB", least / 1e6, least * STORED_PART / 1e6)
        }),
        format!("{:.0} MB", own.stored_bytes() as f64 / 1e6),
        smallest.map(|(_, least)| own.stored_bytes() as f64 <= least * STORED_PART),
    ));
    let seconds = |cost: Option<Cost>| cost.map_or(f64::NAN, |cost| cost.seconds);
    rows.push(judge.faster("restore of the last day, sparse", RESTORE_FACTOR, |tool| seconds(tool.restore)));
    rows.push(judge.faster("verify everything", VERIFY_FACTOR, |tool| seconds(tool.verify)));
    if let Some((median, p99)) = own.random_us {
        rows.push(Row::judged(
            "random 4 KiB read, median",
            format!("<= {RANDOM_US} us"),
            format!("{median:.0} us, 99 % within {p99:.0} us"),
            Some(median <= RANDOM_US),
        ));
    }
    // Who cannot verify did less.
    let lean = judge.best(|tool| if tool.verify.is_some() { tool.cpu_seconds() } else { f64::NAN });
    rows.push(Row::judged(
        "CPU seconds of all of these",
        judge.against(&lean, |least| format!("<= 1.2 x {least:.0} s = {:.0} s", least * CPU_FACTOR)),
        format!("{:.0} s", own.cpu_seconds()),
        lean.map(|(_, least)| own.cpu_seconds() <= least * CPU_FACTOR),
    ));
    rows.push(Row::judged(
        "peak memory",
        format!("<= {PEAK_MIB} MiB"),
        format!("{:.0} MiB", own.peak_mib()),
        Some(own.peak_mib() <= PEAK_MIB),
    ));
    rows
}

struct Judge<'a> {
    own: &'a Tool,
    peers: Vec<&'a Tool>,
}

impl Judge<'_> {
    /// The peer with the least of something; those that have none are passed over.
    fn best(&self, figure: impl Fn(&Tool) -> f64) -> Option<(&'static str, f64)> {
        let figures = self.peers.iter().map(|peer| (peer.name, figure(peer)));
        figures.filter(|(_, figure)| !figure.is_nan()).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn against(&self, best: &Option<(&'static str, f64)>, text: impl Fn(f64) -> String) -> String {
        best.map_or_else(|| "no peer was measured".to_owned(), |(name, least)| format!("{}, {name}", text(least)))
    }

    fn faster(&self, what: &str, factor: f64, figure: impl Fn(&Tool) -> f64) -> Row {
        self.row(what, factor, self.best(&figure), figure(self.own))
    }

    fn faster_than(&self, what: &str, name: &str, factor: f64, figure: impl Fn(&Tool) -> f64) -> Row {
        let peer = self.peers.iter().find(|peer| peer.name == name).map(|peer| (peer.name, figure(peer)));
        self.row(what, factor, peer, figure(self.own))
    }

    fn row(&self, what: &str, factor: f64, peer: Option<(&'static str, f64)>, own: f64) -> Row {
        Row::judged(
            what,
            self.against(&peer, |seconds| format!("<= {seconds:.1} s / {factor} = {:.1} s", seconds / factor)),
            peer.map_or_else(|| format!("{own:.1} s"), |(_, theirs)| format!("{own:.1} s, {:.1} x", theirs / own)),
            peer.map(|(_, theirs)| own * factor <= theirs),
        )
    }

    fn within(&self, what: &str, factor: f64, bare: Option<f64>, own: f64) -> Row {
        let text =
            bare.map_or_else(|| "?".to_owned(), |bare| format!("<= {factor} x {bare:.1} s = {:.1} s", bare * factor));
        let measured = bare.map_or_else(|| format!("{own:.1} s"), |bare| format!("{own:.1} s, {:.2} x", own / bare));
        Row::judged(what, text, measured, bare.map(|bare| own <= bare * factor))
    }
}

/// Everything as one JSON document.
pub fn document(tools: &[Tool], baseline: &Baseline) -> Value {
    let cost =
        |cost: &Cost| json!({"seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds, "peak_mib": cost.peak_mib});
    let each = |tool: &Tool| {
        let stores: Vec<_> = tool
            .stores
            .iter()
            .map(|stored| json!({"image": stored.image, "cost": cost(&stored.cost), "store_bytes": stored.store_bytes}))
            .collect();
        json!({
            "tool": tool.name,
            "stores": stores,
            "restore": tool.restore.as_ref().map(cost),
            "verify": tool.verify.as_ref().map(cost),
            "by_list": tool.by_list.as_ref().map(|(took, bytes)| json!({"cost": cost(took), "bytes": bytes})),
            "random_us": tool.random_us,
        })
    };
    let rows: Vec<_> = rows(tools, baseline)
        .into_iter()
        .map(
            |row| json!({"figure": row.figure, "target": row.target, "measured": row.measured, "reached": row.reached}),
        )
        .collect();
    json!({
        "schema": "keyframe.bench-repo/2",
        "tools": tools.iter().map(each).collect::<Vec<_>>(),
        "bare_loop": baseline.document(),
        "rows": rows,
    })
}
