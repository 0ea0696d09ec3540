//! A command in the guest, run by its agent, ends well.

use std::time::{Duration, Instant};

use keyframe_qmp::Error as QmpError;
use keyframe_qmp::agent::{Exec, ExecStatus, Exited, Started};
use regex::Regex;

use super::agent::NOBODY;
use super::{Look, Probe, quoted};
use crate::drill::throwaway::Throwaway;

/// How long after a command has ended badly it is run again: a service may need a moment.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Runs a command until it ends as it should.
#[derive(Debug)]
pub(super) struct CommandEnds {
    run: Vec<String>,
    status: i64,
    output: Option<Regex>,
    stage: Stage,
    /// What was seen of it last: it may have ended badly, and be at work again.
    seen: String,
}

#[derive(Debug)]
enum Stage {
    /// To be run, not before.
    Ahead(Instant),
    /// At work in the guest.
    Running(Started),
}

impl CommandEnds {
    pub(super) fn new(run: &[String], status: i64, output: Option<Regex>) -> Self {
        Self {
            run: run.to_vec(),
            status,
            output,
            stage: Stage::Ahead(Instant::now()),
            seen: "it has not ended yet".to_owned(),
        }
    }

    fn start(&mut self, machine: &mut Throwaway, patience: Duration) -> Result<(), String> {
        let (program, arguments) = self.run.split_first().ok_or("there is no program to run")?;
        let started = machine.ask(&Exec::new(program, arguments), patience);
        self.stage = Stage::Running(started.map_err(|error| format!("it could not be run: {error}"))?);
        Ok(())
    }

    /// What to say of a command that has ended; wrong when it ended badly.
    fn judge(&self, ended: &Exited) -> Result<String, String> {
        let how = match (ended.exit_code, ended.signal) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("it was ended by signal {signal}"),
            (None, None) => "it ended, and the agent does not say how".to_owned(),
        };
        let (out, err) = (ended.out_data.bytes(), ended.err_data.bytes());
        let said = if out.is_empty() { err } else { out };
        let seen = if said.is_empty() { how } else { format!("{how}; it said: {}", quoted(said)) };
        let expected = self.output.as_ref().is_none_or(|pattern| pattern.is_match(&String::from_utf8_lossy(out)));
        if ended.exit_code == Some(self.status) && expected {
            return Ok(seen);
        }
        let wanted = self.output.as_ref().map_or_else(String::new, |pattern| format!(" and /{pattern}/"));
        Err(format!("{seen}; wanted exit status {}{wanted}", self.status))
    }
}

impl Probe for CommandEnds {
    fn name(&self) -> String {
        format!("command {}", self.run.join(" "))
    }

    fn look(&mut self, machine: &mut Throwaway, by: Instant) -> Look {
        if !machine.has_agent() {
            return Look::NotYet(NOBODY.to_owned());
        }
        let patience = by.saturating_duration_since(Instant::now());
        let trouble = match self.stage {
            Stage::Ahead(at) if Instant::now() < at => return Look::NotYet(self.seen.clone()),
            Stage::Ahead(_) => match self.start(machine, patience) {
                Ok(()) => return Look::NotYet(self.seen.clone()),
                Err(trouble) => trouble,
            },
            Stage::Running(started) => match machine.ask(&ExecStatus::of(started), patience) {
                Ok(ended) if ended.exited => match self.judge(&ended) {
                    Ok(seen) => return Look::Passed(seen),
                    Err(trouble) => trouble,
                },
                // How it ended is told once: where that answer was lost, the agent knows of no such process any more.
                Err(QmpError::Command { error, .. }) => format!("the agent does not say what became of it: {error}"),
                Ok(_) | Err(_) => return Look::NotYet(self.seen.clone()),
            },
        };
        self.stage = Stage::Ahead(Instant::now() + AGAIN_AFTER);
        self.seen.clone_from(&trouble);
        Look::NotYet(trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(json: &str) -> Exited {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn status_and_output_both_count() {
        let asked = CommandEnds::new(&["/bin/x".to_owned()], 3, Some(Regex::new("^ok").unwrap()));
        assert!(asked.judge(&ended(r#"{"exited": true, "exitcode": 3, "out-data": "b2sK"}"#)).is_ok());
        for json in [
            r#"{"exited": true, "exitcode": 0, "out-data": "b2sK"}"#,
            r#"{"exited": true, "exitcode": 3, "err-data": "b2sK"}"#,
            r#"{"exited": true, "signal": 9, "out-data": "b2sK"}"#,
            r#"{"exited": true}"#,
        ] {
            assert!(asked.judge(&ended(json)).is_err(), "{json}");
        }
        let seen = asked.judge(&ended(r#"{"exited": true, "exitcode": 1, "err-data": "bm8K"}"#)).unwrap_err();
        assert_eq!(seen, "exit status 1; it said: no; wanted exit status 3 and /^ok/");
    }
}
