//! What was measured, against what is to be reached.

use super::{boot, cold, database, incremental, state};
use crate::bench::samples::Samples;
use crate::bench::table::Row;

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// One hundredth of a large disk.
pub fn incremental(figures: &incremental::Figures) -> Vec<Row> {
    let gib = figures.size_mib as f64 / 1024.0;
    let name = |what: &str| format!("disk of {gib} GiB, running: {what}");
    let mut rows = vec![Row::told(name("first backup"), format!("{:.1} s", figures.full_ms / 1e3))];
    for peer in &figures.peers {
        rows.push(Row::told(name(&format!("first backup by {}", peer.name)), format!("{:.1} s", peer.full_ms / 1e3)));
    }
    let median = figures.again.median();
    let by = |what: &[String]| what.join(" ");
    rows.push(Row::judged(
        name("1 % changed"),
        "<= 2 s",
        format!("{} by {}", figures.again, by(&figures.changed_by)),
        median.map(|ms| ms <= 2000.0),
    ));
    let read = figures.read_bytes.iter().max().copied().unwrap_or(0);
    rows.push(Row::told(name("1 % changed, read of the disks"), mib(read)));
    for peer in &figures.peers {
        let target = peer.again.median().map(|theirs| theirs / 10.0);
        rows.push(Row::judged(
            name(&format!("1 % changed, against {}", peer.name)),
            target.map_or_else(String::new, |ms| format!("<= 1/10 = {ms:.0} ms")),
            format!("{} of {}", figures.again, peer.again),
            median.zip(target).map(|(ours, target)| ours <= target),
        ));
    }
    rows
}

/// What a second point with memory adds.
pub fn state(figures: &state::Figures) -> Vec<Row> {
    let share = figures.second_bytes as f64 / figures.first_bytes.max(1) as f64;
    let name = |what: &str| format!("running state of 1 GiB: {what}");
    vec![
        Row::told(name("first point"), mib(figures.first_bytes)),
        Row::judged(
            name("what a second point adds"),
            format!("<= 30 % = {}", mib(figures.first_bytes * 3 / 10)),
            format!("{} ({:.0} %)", mib(figures.second_bytes), share * 100.0),
            Some(share <= 0.3),
        ),
    ]
}

fn within(figure: String, samples: &Samples, limit_ms: f64) -> Row {
    let target = format!("<= {:.0} s", limit_ms / 1e3);
    Row::judged(figure, target, samples.to_string(), samples.median().map(|ms| ms <= limit_ms))
}

/// A running state, straight from a repository.
pub fn boot(figures: &boot::Figures) -> Vec<Row> {
    let name = |place: &str, what: &str| format!("boot of a running 1 GiB from {place}: {what}");
    let mut rows = Vec::new();
    for (place, booted, running, visible) in
        [("a directory", &figures.here, 1e3, 2e3), ("S3 on loopback", &figures.bucket, 2e3, 4e3)]
    {
        rows.push(within(name(place, "vCPUs run"), &booted.running, running));
        rows.push(within(name(place, "the guest speaks"), &booted.visible, visible));
    }
    let target = figures.restore.median().map(|ms| ms * 1.2);
    rows.push(Row::told("restore of the same, whole", figures.restore.to_string()));
    rows.push(Row::judged(
        name("a directory", "wholly local"),
        target.map_or_else(String::new, |ms| format!("<= 1.2 x restore = {ms:.0} ms")),
        figures.here.local.to_string(),
        figures.here.local.median().zip(target).map(|(ours, target)| ours <= target),
    ));
    rows.push(Row::told(name("S3 on loopback", "wholly local"), figures.bucket.local.to_string()));
    rows
}

/// A start from the firmware.
pub fn cold(figures: &cold::Figures) -> Vec<Row> {
    let target = figures.files.median().map(|ms| ms * 1.3);
    vec![
        Row::told("Debian from its files, to the login", figures.files.to_string()),
        Row::judged(
            "Debian from a repository, to the login",
            target.map_or_else(String::new, |ms| format!("<= 1.3 x files = {ms:.0} ms")),
            figures.repository.to_string(),
            figures.repository.median().zip(target).map(|(ours, target)| ours <= target),
        ),
    ]
}

/// A database at work.
pub fn database(figures: &database::Figures) -> Vec<Row> {
    let undisturbed = figures.undisturbed.median_tps();
    let told = |tps: Option<f64>| tps.map_or_else(|| "not measured".to_owned(), |tps| format!("{tps:.0} a second"));
    let mut rows = vec![
        Row::told("pgbench, undisturbed", told(undisturbed)),
        Row::told("pgbench, undisturbed, longest transaction", figures.undisturbed.longest.to_string()),
    ];
    for (what, work) in [("while backed up", &figures.backups), ("while backed up at 1 MiB/s", &figures.slow)] {
        let share = work.median_tps().zip(undisturbed).map(|(now, then)| now / then);
        rows.push(Row::judged(
            format!("pgbench {what}"),
            ">= 80 % of undisturbed",
            share.map_or_else(String::new, |share| {
                format!("{:.0} %, {} ({} backups)", share * 100.0, told(work.median_tps()), work.backups)
            }),
            share.map(|share| share >= 0.8),
        ));
        let worst = work.longest.worst();
        rows.push(Row::judged(
            format!("pgbench {what}, longest transaction of all rounds"),
            "<= 250 ms",
            worst.map_or_else(String::new, |ms| format!("{ms:.0} ms")),
            worst.map(|ms| ms <= 250.0),
        ));
    }
    rows
}

/// A directory in a huge image.
pub fn files(listing: &Samples) -> Vec<Row> {
    let figure = "files ls of 1000 files in an image of 1 TB";
    vec![Row::judged(figure, "<= 300 ms", listing.to_string(), listing.median().map(|ms| ms <= 300.0))]
}
