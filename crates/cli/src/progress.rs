//! Progress on the terminal: a bar with rate and time left while bytes move, a word for what goes on otherwise.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use keyframe_engine::Progress;

/// How much is told on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// Progress and notes.
    All,
    /// What a person should know: standard output is for a script.
    Notes,
    /// Nothing.
    Nothing,
}

/// Progress for a person who watches; notes for one who does not.
pub struct Terminal {
    notes: bool,
    bar: Option<ProgressBar>,
    file: Option<Mutex<ToFile>>,
}

/// Progress for the daemon that runs this command: a small document, written anew a few times a second.
struct ToFile {
    path: PathBuf,
    step: String,
    begun: Instant,
    written: Option<Instant>,
}

/// How often it is.
const WRITTEN_EVERY: Duration = Duration::from_millis(250);

impl ToFile {
    /// The one that the environment names.
    fn of_environment() -> Option<Mutex<Self>> {
        let path = std::env::var_os(keyframe_daemon::hands::PROGRESS)?.into();
        Some(Mutex::new(Self { path, step: String::new(), begun: Instant::now(), written: None }))
    }

    fn step(&mut self, what: &str) {
        if self.step != what {
            what.clone_into(&mut self.step);
            (self.begun, self.written) = (Instant::now(), None);
        }
        self.write(None);
    }

    fn write(&mut self, bytes: Option<(u64, u64)>) {
        if self.written.is_some_and(|at| at.elapsed() < WRITTEN_EVERY) {
            return;
        }
        self.written = Some(Instant::now());
        let took_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = bytes.map(|(done, _)| done.saturating_mul(1000) / took_ms);
        let left = bytes
            .zip(rate)
            .filter(|(_, rate)| *rate > 0)
            .map(|((done, total), rate)| total.saturating_sub(done) / rate);
        let document = serde_json::json!({
            "text": self.step, "done_bytes": bytes.map(|(done, _)| done), "total_bytes": bytes.map(|(_, total)| total),
            "rate_bytes_s": rate, "left_s": left,
        });
        let aside = self.path.with_extension("progress-next");
        // Who cannot be told how far it is sees how it ends.
        let _ = std::fs::write(&aside, document.to_string()).and_then(|()| std::fs::rename(&aside, &self.path));
    }
}

impl Terminal {
    /// Tells as much as is wanted; a bar only on a terminal.
    pub fn new(telling: Telling) -> Self {
        let bar = (telling == Telling::All && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::no_length();
            bar.set_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { notes: telling != Telling::Nothing, bar, file: ToFile::of_environment() }
    }

    /// Leaves nothing behind on the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn with_bytes() -> ProgressStyle {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Terminal {
    fn step(&self, what: &str) {
        if let Some(mut file) = self.file.as_ref().and_then(|file| file.lock().ok()) {
            file.step(what);
        }
        if let Some(bar) = &self.bar {
            bar.set_style(spinner());
            bar.set_message(what.to_owned());
        }
    }

    fn bytes(&self, done: u64, total: u64) {
        if let Some(mut file) = self.file.as_ref().and_then(|file| file.lock().ok()) {
            file.write((total > 0).then_some((done.min(total), total)));
        }
        if let Some(bar) = self.bar.as_ref().filter(|_| total > 0) {
            if bar.length() != Some(total) {
                bar.set_style(with_bytes());
                bar.set_length(total);
            }
            bar.set_position(done.min(total));
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("note: {text}")),
            None if self.notes => eprintln!("note: {text}"),
            None => {}
        }
    }
}
