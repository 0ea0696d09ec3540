//! The guest's agent answers.

use std::time::Instant;

use keyframe_qmp::agent::Ping;

use super::{Look, Probe};
use crate::drill::throwaway::Throwaway;

/// What is said of a guest without an agent.
pub(super) const NOBODY: &str = "no program in the guest listens on the agent's channel";

/// Asks the agent for a sign of life.
#[derive(Debug)]
pub(super) struct AgentAnswers;

impl Probe for AgentAnswers {
    fn name(&self) -> String {
        "agent".to_owned()
    }

    fn look(&mut self, machine: &mut Throwaway, by: Instant) -> Look {
        if !machine.has_agent() {
            return Look::NotYet(NOBODY.to_owned());
        }
        match machine.ask(&Ping {}, by.saturating_duration_since(Instant::now())) {
            Ok(_) => Look::Passed("it answers".to_owned()),
            Err(error) => Look::NotYet(error.to_string()),
        }
    }
}
