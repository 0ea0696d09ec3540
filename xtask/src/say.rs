//! What scrolls by: one line for each step, plain where nobody is watching.

use std::fmt::Display;
use std::io::{IsTerminal, stderr};

fn paint(code: &str, text: impl Display) -> String {
    if stderr().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// A step begins.
pub fn step(text: impl Display) {
    eprintln!("{} {}", paint("1;36", "==>"), paint("1", text));
}

/// A remark within a step.
pub fn note(text: impl Display) {
    eprintln!("    {text}");
}

/// A task came to nothing, and why.
pub fn failure(text: impl Display) {
    eprintln!("{} {text}", paint("1;31", "error:"));
}
