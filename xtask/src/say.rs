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

/// A command that is typed for the person to see.
pub fn typed(command: impl Display) {
    eprintln!("    {} {}", paint("32", "$"), paint("1", command));
}

/// A line that is typed at a guest's console.
pub fn typed_at_console(line: impl Display) {
    eprintln!("    {} {}", paint("33", ">"), paint("1", line));
}

/// Something that was checked, and is so.
pub fn good(text: impl Display) {
    eprintln!("    {} {text}", paint("1;32", "ok"));
}

/// Something that is broken, as it was meant to be.
pub fn bad(text: impl Display) {
    eprintln!("    {}", paint("31", text));
}

/// A task came to nothing, and why.
pub fn failure(text: impl Display) {
    eprintln!("{} {text}", paint("1;31", "error:"));
}
