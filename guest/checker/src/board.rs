//! What the threads share: counters, the serial line, and the verdict.
//!
//! Locking: the serial line is the only lock, held for one `write` of one whole line. Everything else is
//! an atomic that one thread writes and others read.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::slot::Sequence;
use crate::units::Token;

/// Complaints spelled out per second; further ones are only counted.
const COMPLAINTS_PER_SECOND: u64 = 8;

/// The state that heartbeats and verdicts are made of.
pub struct Board {
    token: Token,
    started: Instant,
    tty: Mutex<File>,
    rewritten: AtomicU64,
    passes: AtomicU64,
    faults: AtomicU64,
    closing: AtomicBool,
    spelled_out: AtomicU64,
    acknowledged: Vec<AtomicU64>,
}

impl Board {
    /// A fresh board for as many disks.
    pub fn new(token: Token, tty: File, disks: usize) -> Self {
        Self {
            token,
            started: Instant::now(),
            tty: Mutex::new(tty),
            rewritten: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            spelled_out: AtomicU64::new(0),
            acknowledged: (0..disks).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Prints one line. A serial line that cannot be written to is no reason to stop checking.
    pub fn say(&self, line: impl Display) {
        let text = format!("{line}\n");
        let mut tty = self.tty.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _unheard = tty.write_all(text.as_bytes());
    }

    /// The machine is being switched off: what devices do from here on is no fault of theirs.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.say("CLOSING");
    }

    /// Counts a fault for good, and spells it out unless there are too many.
    pub fn complain(&self, about: impl Display) {
        if self.closing.load(Ordering::Relaxed) {
            return;
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        if self.spelled_out.fetch_add(1, Ordering::Relaxed) < COMPLAINTS_PER_SECOND {
            self.say(format_args!("CORRUPT {about}"));
        }
    }

    /// Notes that pages were rewritten.
    pub fn add_rewritten(&self, pages: u64) {
        self.rewritten.fetch_add(pages, Ordering::Relaxed);
    }

    /// Notes that all of memory was verified once more.
    pub fn add_pass(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the last write that the disk in this position acknowledged.
    pub fn set_acknowledged(&self, disk: usize, sequence: Sequence) {
        if let Some(place) = self.acknowledged.get(disk) {
            place.store(sequence.number(), Ordering::Release);
        }
    }

    /// The last write that the disk in this position acknowledged, when there is such a disk.
    pub fn acknowledged(&self, disk: usize) -> Option<Sequence> {
        self.acknowledged.get(disk).map(|place| Sequence::from_number(place.load(Ordering::Acquire)))
    }

    /// Faults found so far in this session.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// The heartbeat line: `T <ms> gen <pages rewritten> seq <last write of each disk> gap_ms <worst> token <session>`.
    pub fn heartbeat(&self, worst_gap_ms: f64) -> String {
        let uptime_ms = self.started.elapsed().as_millis();
        let pages = self.rewritten.load(Ordering::Relaxed);
        format!("T {uptime_ms} gen {pages} seq {} gap_ms {worst_gap_ms:.1} token {}", self.sequences(), self.token)
    }

    /// The verdict line, and room for new complaints. `OK` is said only when all of memory was verified
    /// at least once; a fault is never forgiven within the session.
    pub fn verdict(&self) -> Option<String> {
        self.spelled_out.store(0, Ordering::Relaxed);
        let (passes, faults) = (self.passes.load(Ordering::Relaxed), self.faults());
        let word = match (faults, passes) {
            (0, 0) => return None,
            (0, _) => "OK",
            _ => "CORRUPT",
        };
        Some(format!("{word} passes {passes} faults {faults} seq {} token {}", self.sequences(), self.token))
    }

    fn sequences(&self) -> String {
        if self.acknowledged.is_empty() {
            return "-".to_owned();
        }
        let numbers = self.acknowledged.iter().map(|place| place.load(Ordering::Acquire).to_string());
        numbers.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(disks: usize) -> Board {
        let sink = File::options().write(true).open("/dev/null").unwrap();
        Board::new(Token::from_raw(0xab), sink, disks)
    }

    #[test]
    fn a_heartbeat_has_the_documented_words() {
        let board = board(2);
        board.add_rewritten(5);
        board.set_acknowledged(1, Sequence::from_number(7));
        let line = board.heartbeat(3.25);
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[2..], ["gen", "5", "seq", "0,7", "gap_ms", "3.2", "token", "00000000000000ab"]);
        assert_eq!(words[0], "T");
        assert!(words[1].parse::<u64>().is_ok());
    }

    #[test]
    fn ok_needs_a_full_pass_and_no_fault_ever() {
        let board = board(0);
        assert_eq!(board.verdict(), None, "nothing verified yet");
        board.add_pass();
        assert_eq!(board.verdict().unwrap(), "OK passes 1 faults 0 seq - token 00000000000000ab");
        board.complain("test");
        board.add_pass();
        assert!(board.verdict().unwrap().starts_with("CORRUPT passes 2 faults 1"));
    }

    #[test]
    fn a_machine_that_is_switched_off_has_no_more_faults() {
        let board = board(0);
        board.close();
        board.complain("a disk that is gone");
        assert_eq!(board.faults(), 0);
    }

    #[test]
    fn a_disk_that_is_not_there_has_acknowledged_nothing() {
        assert_eq!(board(1).acknowledged(1), None);
        assert_eq!(board(1).acknowledged(0), Some(Sequence::BLANK));
    }
}
