//! Progress on the terminal: a bar with rate and time left while bytes move, a word for what goes on otherwise.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::Duration;

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
    step: Mutex<String>,
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
        Self { notes: telling != Telling::Nothing, bar, step: Mutex::new(String::new()) }
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
        if let Ok(mut step) = self.step.lock() {
            what.clone_into(&mut step);
        }
        if let Some(bar) = &self.bar {
            bar.set_style(spinner());
            bar.set_message(what.to_owned());
        }
    }

    fn bytes(&self, done: u64, total: u64) {
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
