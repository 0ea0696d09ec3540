//! What the demo sees of a guest: the lines on its serial port.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use keyframe_acceptance::checker::{self, Heartbeat};
use keyframe_acceptance::serial::{Mark, SerialLog};

use super::stage::Stage;

const SOON: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(60);
/// The checker reads every block of every disk at least once in this time.
const DISKS_READ_WITHIN: Duration = Duration::from_secs(3);
/// How far a guest may have come between the snapshot's instant and the first word heard of it, by its own clock.
const SLACK_MS: u64 = 1_000;

/// A guest that is watched.
#[derive(Debug, Clone)]
pub struct Watched(SerialLog);

/// Heartbeats just before and just after the snapshot's instant.
#[derive(Debug)]
pub struct Taken {
    /// Before the command.
    pub before: Heartbeat,
    /// After it.
    pub after: Heartbeat,
}

/// The first that was heard of a guest since a command was typed.
#[derive(Debug)]
pub struct FirstWord {
    /// Where it is in the log.
    pub mark: Mark,
    /// What it said.
    pub beat: Heartbeat,
    /// How long after the command was typed.
    pub after: Duration,
}

/// Someone who listens while a command runs.
pub struct Listener(JoinHandle<Result<FirstWord>>);

impl Listener {
    fn start(listen: impl FnOnce() -> Result<(Mark, Heartbeat)> + Send + 'static) -> Self {
        let begun = Instant::now();
        Self(thread::spawn(move || {
            let (mark, beat) = listen()?;
            Ok(FirstWord { mark, beat, after: begun.elapsed() })
        }))
    }

    /// What was heard.
    ///
    /// # Errors
    /// When nothing was.
    pub fn join(self) -> Result<FirstWord> {
        self.0.join().map_err(|_| anyhow!("listening to the guest failed"))?
    }
}

impl Taken {
    /// Sees that a heartbeat is of the same run of the program, from the snapshot's instant on.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_continued_by(&self, beat: &Heartbeat) -> Result<()> {
        ensure!(beat.token == self.before.token, "another session: the machine was booted, not brought back");
        let instant = self.before.uptime_ms..self.after.uptime_ms.saturating_add(SLACK_MS);
        ensure!(instant.contains(&beat.uptime_ms), "it goes on at {} ms, taken within {instant:?} ms", beat.uptime_ms);
        let mut disks = beat.sequences.iter().zip(&self.before.sequences);
        ensure!(disks.all(|(now, then)| now >= then), "its disks are older than the snapshot");
        Ok(())
    }
}

impl Watched {
    /// Watches the guest that writes this log.
    pub fn new(log: SerialLog) -> Self {
        Self(log)
    }

    /// Its log.
    pub fn serial(&self) -> &SerialLog {
        &self.0
    }

    /// The next heartbeat.
    ///
    /// # Errors
    /// When it is silent.
    pub fn beat(&self) -> Result<Heartbeat> {
        Ok(self.0.next_heartbeat(self.0.end(), SOON)?)
    }

    /// Waits until Linux is up and the program has read all its memory back once.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn wait_until_at_work(&self) -> Result<()> {
        self.0.wait_for(Mark::START, "READY", BOOT)?;
        self.0.wait_for(Mark::START, "OK passes", SOON).map(drop).context("the guest has no verdict")
    }

    /// Waits until memory and both disks are wrecked and the program has found out; gives some of its complaints.
    ///
    /// # Errors
    /// When nothing is wrecked.
    pub fn wait_until_wrecked(&self, since: Mark) -> Result<Vec<String>> {
        for what in ["WRECKED memory", "WRECKED vda", "WRECKED vdb"] {
            self.0.wait_for(since, what, SOON)?;
        }
        let verdict = self.0.wait_for(since, "CORRUPT passes", SOON)?;
        let log = self.0.since(since);
        let complaints = log.lines().filter(|line| line.starts_with("CORRUPT") && !line.contains("passes"));
        let shown = complaints.take(3).chain([verdict.as_str()]);
        Ok(shown.map(|line| line.trim_end().to_owned()).collect())
    }

    /// Listens, from now on, for the moment when the guest is back at an earlier time.
    pub fn wait_for_turn(&self, mark: Mark, before: &Heartbeat) -> Listener {
        let (log, before) = (self.0.clone(), before.clone());
        Listener::start(move || Ok(log.turned_back(mark, &before, BOOT)?))
    }

    /// Listens, from now on, for the first heartbeat of a guest that does not exist yet.
    pub fn wait_for_first_word(&self) -> Listener {
        let log = self.0.clone();
        Listener::start(move || Ok((Mark::START, log.next_heartbeat(Mark::START, BOOT)?)))
    }

    /// Has all memory read back at once and waits until both disks were read too; gives what was verified.
    ///
    /// # Errors
    /// When there is no answer, or faults were found.
    pub fn verify(&self, stage: &Stage, name: &str) -> Result<String> {
        let (mark, start) = (self.0.end(), Instant::now());
        stage.type_at_console(name, "verify")?;
        let answer = self.0.wait_for(mark, "VERIFIED", BOOT)?;
        let words: Vec<_> = answer.split_whitespace().collect();
        let ["VERIFIED", "pages", pages, "faults", "0", ..] = words[..] else {
            anyhow::bail!("the guest is not intact: {answer}");
        };
        thread::sleep(DISKS_READ_WITHIN.saturating_sub(start.elapsed()));
        Ok(format!("{pages} pages read back, 0 faults"))
    }

    /// Waits for a verdict, which must be good.
    ///
    /// # Errors
    /// When it is bad, or does not come.
    pub fn wait_for_good_verdict(&self, since: Mark) -> Result<()> {
        let verdict = self.0.wait_for(since, " passes ", SOON)?;
        ensure!(verdict.starts_with("OK"), "the guest is not intact: {verdict}");
        Ok(())
    }

    /// The first complaint since a mark.
    pub fn complaint_since(&self, mark: Mark) -> Option<String> {
        checker::first_complaint(&self.0.since(mark)).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(uptime_ms: u64, sequence: u64, token: &str) -> Heartbeat {
        Heartbeat { uptime_ms, pages_rewritten: 1, sequences: vec![sequence; 2], gap_ms: 0.0, token: token.to_owned() }
    }

    #[test]
    fn another_program_another_time_and_older_disks_are_told_apart() {
        let taken = Taken { before: beat(5_000, 100, "a"), after: beat(6_000, 150, "a") };
        taken.check_continued_by(&beat(5_100, 104, "a")).unwrap();
        for wrong in [beat(5_100, 104, "b"), beat(4_999, 104, "a"), beat(7_001, 104, "a"), beat(5_100, 99, "a")] {
            assert!(taken.check_continued_by(&wrong).is_err(), "{wrong:?}");
        }
    }
}
