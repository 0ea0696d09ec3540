//! A machine's serial log: a file that QEMU appends to and that may begin anew when QEMU does.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::checker::Heartbeat;
use crate::error::{Error, Result};

const LOOK_EVERY: Duration = Duration::from_millis(2);
const TAIL_BYTES: usize = 1500;

/// A place in the log, in bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Mark {
    /// The log's beginning.
    pub const START: Self = Self(0);
}

/// The log of one machine.
#[derive(Debug, Clone)]
pub struct SerialLog {
    path: PathBuf,
}

impl SerialLog {
    /// The log at `path`, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present end.
    pub fn end(&self) -> Mark {
        Mark(fs::metadata(&self.path).map_or(0, |meta| meta.len()))
    }

    /// What was logged since a mark; all of it when the log has been begun anew since and is still shorter. Bytes
    /// that are no UTF-8 are replaced.
    pub fn since(&self, mark: Mark) -> String {
        self.read(mark).map(|(text, _)| text).unwrap_or_default()
    }

    fn read(&self, mark: Mark) -> io::Result<(String, Mark)> {
        let mut file = File::open(&self.path)?;
        let start = if file.metadata()?.len() < mark.0 { 0 } else { mark.0 };
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), Mark(start + bytes.len() as u64)))
    }

    /// Waits until `accept` finds what it looks for in what was logged since `mark`.
    ///
    /// # Errors
    /// [`Error::Silent`] after `within`.
    pub fn wait<T>(&self, mark: Mark, what: &str, within: Duration, accept: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let text = self.since(mark);
            if let Some(found) = accept(&text) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(self.silent(mark, what, within));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a text and gives the whole line it is in, which must be complete.
    ///
    /// # Errors
    /// [`Error::Silent`] after `within`.
    pub fn wait_for(&self, mark: Mark, text: &str, within: Duration) -> Result<String> {
        self.wait(mark, text, within, |log| {
            let complete = &log[..log.rfind('\n')?];
            complete.lines().find(|line| line.contains(text)).map(str::to_owned)
        })
    }

    /// The newest complete heartbeat since a mark.
    pub fn last_heartbeat(&self, mark: Mark) -> Option<Heartbeat> {
        let log = self.since(mark);
        let complete = &log[..log.rfind('\n')?];
        complete.lines().rev().find_map(Heartbeat::parse)
    }

    /// Waits for the first heartbeat after a mark.
    ///
    /// # Errors
    /// [`Error::Silent`] after `within`.
    pub fn next_heartbeat(&self, mark: Mark, within: Duration) -> Result<Heartbeat> {
        self.wait(mark, "a heartbeat", within, |log| {
            let complete = &log[..log.rfind('\n')?];
            complete.lines().find_map(Heartbeat::parse)
        })
    }

    /// Waits for the first heartbeat after a mark that [is before](Heartbeat::is_before) `before`: the guest was taken
    /// back. Gives it, and the mark of its line. Heartbeats of before, written after the mark, are passed over.
    ///
    /// # Errors
    /// [`Error::Silent`] after `within`.
    pub fn turned_back(&self, mark: Mark, before: &Heartbeat, within: Duration) -> Result<(Mark, Heartbeat)> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = self.look_for_turn(mark, before) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(self.silent(mark, "heartbeat from before", within));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn look_for_turn(&self, mark: Mark, before: &Heartbeat) -> Option<(Mark, Heartbeat)> {
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(mark.0)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let mut at = mark.0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match Heartbeat::parse(&String::from_utf8_lossy(line)) {
                Some(beat) if beat.is_before(before) => return Some((Mark(at), beat)),
                _ => at += line.len() as u64,
            }
        }
        None
    }

    fn silent(&self, mark: Mark, what: &str, within: Duration) -> Error {
        let text = self.since(mark);
        let cut = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= TAIL_BYTES).unwrap_or(0);
        Error::Silent { what: what.to_owned(), within, tail: text[cut..].to_owned() }
    }

    /// Starts to note when heartbeats arrive.
    pub fn watch(&self) -> SilenceWatch {
        let stop = Arc::new(AtomicBool::new(false));
        let (log, told) = (self.clone(), Arc::clone(&stop));
        SilenceWatch { stop, thread: thread::spawn(move || log.note_arrivals(&told)) }
    }

    fn note_arrivals(&self, stop: &AtomicBool) -> Vec<Instant> {
        let mut arrivals = Vec::new();
        let mut mark = self.end();
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(LOOK_EVERY);
            if self.end() == mark {
                continue;
            }
            let now = Instant::now();
            let Ok((text, end)) = self.read(mark) else { continue };
            mark = end;
            // A line may arrive in two parts: its first letter, after a line's end, is what counts.
            if text.starts_with('T') || text.contains("\nT") {
                arrivals.push(now);
            }
        }
        arrivals
    }
}

/// Notes heartbeats until it is asked for the result.
pub struct SilenceWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Instant>>,
}

/// How quiet a guest was, seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// The longest time between two heartbeats; resolution 2 ms. Of a guest that never spoke, the whole watch.
    pub longest: Duration,
    /// How many arrivals there were.
    pub heartbeats: usize,
}

impl SilenceWatch {
    /// Stops noting. A silence that still lasts counts up to now.
    pub fn finish(self, since: Instant) -> Silence {
        self.stop.store(true, Ordering::Relaxed);
        let arrivals = self.thread.join().unwrap_or_default();
        silence(since, &arrivals, Instant::now())
    }
}

fn silence(since: Instant, arrivals: &[Instant], until: Instant) -> Silence {
    let relevant = arrivals.iter().copied().filter(|at| *at >= since);
    let mut points = vec![since];
    points.extend(relevant);
    points.push(until);
    let gaps = points.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
    Silence { longest: gaps.max().unwrap_or_default(), heartbeats: points.len() - 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const BEAT: &str = "T 1 gen 2 seq - gap_ms 0.0 token 0000000000000001\n";

    fn log_with(text: &str) -> (tempfile::TempDir, SerialLog) {
        let dir = tempfile::tempdir().unwrap();
        let log = SerialLog::at(dir.path().join("serial.log"));
        fs::write(log.path(), text).unwrap();
        (dir, log)
    }

    #[test]
    fn waiting_finds_complete_lines_after_the_mark_only() {
        let (_dir, log) = log_with("READY one\nREADY tw");
        let soon = Duration::from_millis(20);
        assert_eq!(log.wait_for(Mark::START, "READY", soon).unwrap(), "READY one");
        let mark = log.end();
        let error = log.wait_for(mark, "READY", soon).unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error:?}");
        File::options().append(true).open(log.path()).unwrap().write_all(b"o\nREADY three\n").unwrap();
        assert_eq!(log.wait_for(mark, "READY", soon).unwrap(), "READY three");
    }

    #[test]
    fn a_log_begun_anew_is_read_from_its_beginning() {
        let (_dir, log) = log_with(&"a long first life of the machine\n".repeat(9));
        let mark = log.end();
        fs::write(log.path(), BEAT).unwrap();
        assert_eq!(log.since(mark), BEAT);
        assert_eq!(log.last_heartbeat(mark).unwrap().pages_rewritten, 2);
    }

    #[test]
    fn a_guest_that_was_taken_back_is_told_from_one_that_goes_on() {
        let beat = |uptime_ms| format!("T {uptime_ms} gen 2 seq - gap_ms 0.0 token 0000000000000001\n");
        let (_dir, log) = log_with(&beat(900));
        let (mark, soon) = (log.end(), Duration::from_millis(20));
        let before = log.last_heartbeat(Mark::START).unwrap();
        let mut file = File::options().append(true).open(log.path()).unwrap();
        file.write_all((beat(920) + "CORRUPT x\n" + &beat(940)).as_bytes()).unwrap();
        assert!(log.turned_back(mark, &before, soon).is_err(), "it only goes on");
        file.write_all((beat(300) + &beat(320)).as_bytes()).unwrap();
        let (turn, first) = log.turned_back(mark, &before, soon).unwrap();
        assert_eq!(first.uptime_ms, 300);
        assert_eq!(log.since(turn), beat(300) + &beat(320));
    }

    #[test]
    fn a_missing_log_is_an_empty_one() {
        let log = SerialLog::at("/nonexistent/serial.log");
        assert_eq!((log.end(), log.since(Mark::START)), (Mark::START, String::new()));
    }

    #[test]
    fn silences_are_measured_between_beats_and_at_both_ends() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let measured = silence(at(100), &[at(50), at(120), at(170), at(180)], at(200));
        assert_eq!((measured.longest, measured.heartbeats), (Duration::from_millis(50), 3));
        assert_eq!(silence(at(0), &[], at(70)).longest, Duration::from_millis(70), "never spoke");
        assert_eq!(silence(at(0), &[at(10)], at(90)).longest, Duration::from_millis(80), "still silent");
    }

    #[test]
    fn a_watch_sees_a_real_silence() {
        let (_dir, log) = log_with("");
        let (watch, start) = (log.watch(), Instant::now());
        let mut file = File::options().append(true).open(log.path()).unwrap();
        for pause_ms in [10, 10, 150, 10] {
            thread::sleep(Duration::from_millis(pause_ms));
            file.write_all(BEAT.as_bytes()).unwrap();
        }
        let seen = watch.finish(start);
        assert!(seen.longest >= Duration::from_millis(140), "{seen:?}");
        assert!((2..=4).contains(&seen.heartbeats), "{seen:?}");
    }
}
