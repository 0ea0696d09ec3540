//! Driving a disk as hard as it goes, to measure what it gives: `drive` on the serial line.
//!
//! One thread keeps one request in flight, so the time of each is what a program that waits for its disk feels. Nothing
//! is verified; the ring under test at the disk's beginning is left alone.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::disk;
use crate::error::Error;
use crate::units::{Dice, PAGE_BYTES};

/// What is driven lies behind this: below it is the ring under test.
const LEAST_FROM_MIB: u32 = 16;
/// Past the largest disk of any test: 1 TiB.
const MOST_MIB: u32 = 1 << 20;
/// Requests of a mixed load: as large as a qcow2 cluster.
const MIXED_BYTES: usize = 64 << 10;
/// Where a mixed load writes, and how much.
const WRITTEN_FROM_MIB: u32 = LEAST_FROM_MIB;
const WRITTEN_SPAN_MIB: u32 = 64;
/// How often a line tells of it.
const REPORT: Duration = Duration::from_millis(500);

/// What the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Reads of 4 KiB.
    Reads,
    /// 64 KiB read from the area and 64 KiB written, in turn; all writes go to 64 MiB from 16 MiB on.
    Mixed,
}

/// What to drive: places are chosen by chance in `span_mib` from `from_mib` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drive {
    mix: Mix,
    from_mib: u32,
    span_mib: u32,
}

impl Drive {
    /// A load on that area, or nothing when it covers the ring or is absurd.
    pub fn new(mix: Mix, from_mib: u32, span_mib: u32) -> Option<Self> {
        let sound = (LEAST_FROM_MIB..MOST_MIB).contains(&from_mib) && (1..MOST_MIB).contains(&span_mib);
        sound.then_some(Self { mix, from_mib, span_mib })
    }

    const fn request_bytes(self) -> usize {
        match self.mix {
            Mix::Reads => PAGE_BYTES,
            Mix::Mixed => MIXED_BYTES,
        }
    }
}

/// Whoever drives the first disk; one load at a time.
#[derive(Debug)]
pub struct Driver {
    disk: Option<String>,
    /// Counts orders: a thread whose order is not the last one ends.
    order: Arc<AtomicU64>,
}

/// A request's bytes, aligned as direct I/O wants it.
#[repr(align(4096))]
struct Buffer([u8; MIXED_BYTES]);

impl Driver {
    /// For that disk, if there is one.
    pub fn of(disk: Option<String>) -> Self {
        Self { disk, order: Arc::default() }
    }

    /// Ends the load there is and begins another, if one is given.
    pub fn obey(&self, board: &Arc<Board>, drive: Option<Drive>) {
        let mine = self.order.fetch_add(1, Ordering::Relaxed) + 1;
        let (Some(drive), Some(disk)) = (drive, self.disk.clone()) else {
            board.say("DROVE off");
            return;
        };
        let (board, order) = (Arc::clone(board), Arc::clone(&self.order));
        thread::spawn(move || {
            if let Err(error) = run(&board, &disk, drive, || order.load(Ordering::Relaxed) == mine) {
                board.complain(error);
            }
        });
    }
}

/// What was done since the last line.
struct Report {
    since: Instant,
    requests: u64,
    worst: Duration,
}

impl Report {
    fn new() -> Self {
        Self { since: Instant::now(), requests: 0, worst: Duration::ZERO }
    }

    fn line(&self, request_bytes: usize) -> String {
        let (ms, worst_ms) = (self.since.elapsed().as_secs_f64() * 1e3, self.worst.as_secs_f64() * 1e3);
        let kib = self.requests * (request_bytes as u64 >> 10);
        format!("DROVE ms {ms:.1} ops {} kib {kib} worst_ms {worst_ms:.1}", self.requests)
    }
}

fn run(board: &Board, name: &str, drive: Drive, wanted: impl Fn() -> bool) -> Result<(), Error> {
    let file = disk::open(name)?;
    let (bytes, mut dice) = (drive.request_bytes(), Dice::new(u64::from(drive.span_mib)));
    let mut buffer = Box::new(Buffer([0x5a; MIXED_BYTES]));
    let mut place = |from_mib: u32, span_mib: u32| {
        let slots = ((u64::from(span_mib) << 20) / bytes as u64) as usize;
        (u64::from(from_mib) << 20) + (dice.below(slots) * bytes) as u64
    };
    let (mut report, mut turn) = (Report::new(), false);
    while wanted() {
        turn = !turn;
        let request = &mut buffer.0[..bytes];
        let start = Instant::now();
        let done = if drive.mix == Mix::Mixed && turn {
            file.write_all_at(request, place(WRITTEN_FROM_MIB, WRITTEN_SPAN_MIB))
        } else {
            file.read_exact_at(request, place(drive.from_mib, drive.span_mib))
        };
        done.map_err(Error::file("drive", name))?;
        report.worst = report.worst.max(start.elapsed());
        report.requests += 1;
        if report.since.elapsed() >= REPORT {
            board.say(report.line(bytes));
            report = Report::new();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_stays_off_the_ring_and_within_reason() {
        assert!(Drive::new(Mix::Reads, 16, 1).is_some());
        for (from, span) in [(0, 64), (15, 1), (16, 0), (MOST_MIB, 1), (16, MOST_MIB)] {
            assert_eq!(Drive::new(Mix::Mixed, from, span), None, "{from} {span}");
        }
    }

    #[test]
    fn a_line_tells_requests_bytes_and_the_longest() {
        let report = Report { since: Instant::now(), requests: 3, worst: Duration::from_micros(2500) };
        let line = report.line(MIXED_BYTES);
        assert!(line.starts_with("DROVE ms ") && line.ends_with(" ops 3 kib 192 worst_ms 2.5"), "{line}");
    }

    #[test]
    fn without_a_disk_there_is_no_load() {
        let sink = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let board = Arc::new(Board::new(crate::units::Token::from_raw(1), sink, 0));
        Driver::of(None).obey(&board, Drive::new(Mix::Reads, 16, 1));
        assert_eq!(board.faults(), 0);
    }
}
