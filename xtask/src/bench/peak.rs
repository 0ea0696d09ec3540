//! Keyframe's own memory: the high-water mark of each of its processes, looked at while they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keyframe_acceptance::process::ProcessId;
use serde_json::{Value, json};

use super::guest::kib_of;

/// A mark only rises: what is missed is what a process does in its last moments.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The largest high-water mark seen of each of Keyframe's commands, in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peaks(BTreeMap<String, u64>);

impl Peaks {
    /// Adds what was seen in another run: the larger of both counts.
    pub fn merge(&mut self, other: Self) {
        for (command, kib) in other.0 {
            self.see(command, kib);
        }
    }

    fn see(&mut self, command: String, kib: u64) {
        let known = self.0.entry(command).or_default();
        *known = kib.max(*known);
    }

    /// All of them as if each was at its highest at the same time, in KiB. Nothing when nothing was seen.
    pub fn together_kib(&self) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.values().sum())
    }

    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!(self.0)
    }
}

impl fmt::Display for Peaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<_> = self.0.iter().map(|(command, kib)| format!("{command} {}", kib.div_ceil(1024))).collect();
        write!(f, "{}", each.join(", "))
    }
}

/// Looks until it is asked for the result.
pub struct PeakWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Peaks>,
}

impl PeakWatch {
    /// Looks at every process of this executable in `home` that begins from now on.
    pub fn start(home: &Path, executable: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (home, executable) = (home.to_owned(), executable.to_owned());
        let before: BTreeSet<_> = processes().collect();
        let watch = move || {
            let mut seen = Seen { home, executable, before, peaks: Peaks::default() };
            while !told.load(Ordering::Relaxed) {
                seen.look();
                thread::sleep(LOOK_EVERY);
            }
            seen.peaks
        };
        Self { stop, thread: thread::spawn(watch) }
    }

    /// What was seen.
    pub fn finish(self) -> Peaks {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

struct Seen {
    home: PathBuf,
    executable: PathBuf,
    before: BTreeSet<u32>,
    peaks: Peaks,
}

impl Seen {
    fn look(&mut self) {
        for number in processes().filter(|number| !self.before.contains(number)) {
            // First the figure, then whose it is: a process that is about to become QEMU is still called by our name.
            let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
            if let (Some(kib), Some(role)) = (kib_of(&status, "VmHWM:"), self.role(number)) {
                self.peaks.see(role, kib);
            }
        }
    }

    /// Which of Keyframe's commands a process is; nothing when it is none in this home.
    fn role(&self, number: u32) -> Option<String> {
        let line = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let executable = fs::read_link(format!("/proc/{number}/exe")).ok()?;
        if executable != self.executable || !ProcessId(number).belongs_to(&self.home) {
            return None;
        }
        let mut words = line.split(|byte| *byte == 0).skip(1).map(String::from_utf8_lossy);
        words.find(|word| !word.starts_with('-') && !word.is_empty()).map(std::borrow::Cow::into_owned)
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let list = fs::read_dir("/proc").into_iter().flatten();
    list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn processes_of_the_executable_in_the_home_are_seen_under_their_first_word() {
        let home = tempfile::tempdir().unwrap();
        let sleep = fs::canonicalize("/bin/sleep").unwrap();
        let watch = PeakWatch::start(home.path(), &sleep);
        let run = |word: &str, dir: &Path| Command::new(&sleep).arg(word).env("KEYFRAME_HOME", dir).status().unwrap();
        run("0.3", home.path());
        run("0.2", Path::new("/elsewhere"));
        let peaks = watch.finish();
        assert_eq!(peaks.0.keys().collect::<Vec<_>>(), ["0.3"]);
        assert!(peaks.together_kib().unwrap() > 100, "{peaks}");
    }

    #[test]
    fn the_larger_mark_counts_and_commands_add_up() {
        let peaks = |list: &[(&str, u64)]| Peaks(list.iter().map(|(name, kib)| ((*name).to_owned(), *kib)).collect());
        let mut all = peaks(&[("snapshot", 100)]);
        all.merge(peaks(&[("snapshot", 50), ("internal-guard", 7)]));
        assert_eq!(all.together_kib(), Some(107));
        assert_eq!(Peaks::default().together_kib(), None);
    }
}
