//! A shell, or what runs in it, at the serial console of a guest that does not echo.

use std::time::Duration;

use crate::{Machine, Result};

/// An emulated processor does most things in a fraction of this.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// The machine's serial console: a root shell, or what runs in it.
#[derive(Clone, Copy)]
pub struct Console<'m, 'h> {
    machine: &'m Machine<'h>,
}

impl<'m, 'h> Console<'m, 'h> {
    /// The console of a machine whose guest has logged somebody in.
    #[must_use]
    pub fn of(machine: &'m Machine<'h>) -> Self {
        Self { machine }
    }

    /// Types a line and waits for a text in what comes after it. The console does not echo, so an answer is an answer.
    ///
    /// # Errors
    /// When the answer does not come in time.
    pub fn ask(&self, line: &str, answer: &str) -> Result<()> {
        let serial = self.machine.serial()?;
        let mark = serial.end();
        self.machine.type_line(line)?;
        serial.wait(mark, answer, ANSWER_WITHIN, |log| log.contains(answer).then_some(()))
    }

    /// Runs a shell command to its successful end.
    ///
    /// # Errors
    /// When it does not succeed in time.
    pub fn run(&self, command: &str) -> Result<()> {
        self.ask(&format!("{command} && echo DONE-$((40 + 2))"), "DONE-42")
    }

    /// Asks psql, which runs here, for one value.
    ///
    /// # Errors
    /// When another value, or none, comes.
    pub fn query(&self, sql: &str, value: &str) -> Result<()> {
        self.ask(&format!("SELECT 'answer: ' || ({sql});"), &format!("answer: {value}"))
    }
}
