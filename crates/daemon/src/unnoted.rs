//! Entries of the log of who did what that could not be written: they wait until they can be, and somebody is told.

use std::collections::VecDeque;

use jiff::Timestamp;

use crate::alerts::Trouble;
use crate::error::Error;
use crate::verdict::Severity;

/// How many wait: those that come behind them are only counted.
const MOST: usize = 1000;

/// What is to be noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub at: Timestamp,
    pub who: String,
    pub what: String,
    pub result: String,
}

/// What could not be.
#[derive(Debug, Default)]
pub(crate) struct Unnoted {
    waiting: VecDeque<Note>,
    uncounted: u64,
    why: String,
}

impl Unnoted {
    /// Notes something by `write`, behind what waits; it waits, too, when it cannot be.
    pub fn note(&mut self, note: Note, write: impl FnMut(&Note) -> Result<(), Error>) {
        let told = format!("{} by {}: {}", note.what, note.who, note.result);
        if self.waiting.len() < MOST {
            self.waiting.push_back(note);
        } else {
            self.uncounted += 1;
        }
        self.write(write);
        if self.waits() {
            tracing::error!("this is not noted in the audit log yet ({}): {told}", self.why);
        }
    }

    /// Notes what waits, by age, as far as it can be.
    pub fn write(&mut self, mut write: impl FnMut(&Note) -> Result<(), Error>) {
        while let Some(first) = self.waiting.front() {
            if let Err(error) = write(first) {
                self.why = error.told();
                return;
            }
            let at = first.at;
            self.waiting.pop_front();
            if self.uncounted > 0 && self.waiting.is_empty() {
                let result = format!("{} could not be written, and were too many to be remembered", self.uncounted);
                let (who, what) = ("keyframe serve".to_owned(), "entries are missing".to_owned());
                self.waiting.push_back(Note { at, who, what, result });
                self.uncounted = 0;
            }
        }
    }

    /// Whether anything waits.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What is to be seen to while something waits.
    pub fn trouble(&self) -> Option<Trouble> {
        let first = self.waiting.front()?;
        Some(Trouble {
            id: "audit".to_owned(),
            severity: Severity::Critical,
            machine: None,
            what: format!(
                "the audit log cannot be written: what was done since {} waits, and is lost when the daemon ends: {}",
                first.at, self.why
            ),
            advice: "make room, or see what is wrong with HOME/serve: it is written as soon as it can be".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(number: usize) -> Note {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        Note { at, who: "uid 0".to_owned(), what: format!("pause {number}"), result: "done".to_owned() }
    }

    #[test]
    fn what_waits_is_written_in_its_order_and_what_was_too_much_is_counted() {
        let full = |_: &Note| Err(Error::Refused("full".to_owned()));
        let mut unnoted = Unnoted::default();
        unnoted.note(note(0), |_| Ok(()));
        assert!(!unnoted.waits() && unnoted.trouble().is_none());
        (0..MOST + 3).for_each(|number| unnoted.note(note(number), full));
        let told = unnoted.trouble().unwrap().what;
        assert!(told.ends_with(": full") && told.contains("since 2027-01-15T08:00:00Z"), "{told}");
        // There is room for some of it, and then for all.
        let mut written = Vec::new();
        let mut room = 10;
        unnoted.write(|note| {
            room -= 1;
            if room < 0 {
                return full(note);
            }
            written.push(note.clone());
            Ok(())
        });
        assert!(unnoted.waits());
        unnoted.note(note(MOST + 3), |note| {
            written.push(note.clone());
            Ok(())
        });
        assert!(!unnoted.waits());
        let mut expected: Vec<String> = (0..MOST).map(|number| format!("pause {number}")).collect();
        expected.extend([format!("pause {}", MOST + 3), "entries are missing".to_owned()]);
        assert_eq!(written.iter().map(|note| note.what.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(written.last().unwrap().result, "3 could not be written, and were too many to be remembered");
    }
}
