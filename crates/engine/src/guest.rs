//! What we ask of the guest's agent. All of it may fail, none of it may hang.

use std::time::{Duration, Instant, SystemTime};

use keyframe_hypervisor::instance::Started;
use keyframe_hypervisor::launch::AGENT_CHANNEL;
use keyframe_hypervisor::{InstanceRecord, socket};
use keyframe_qmp::agent::{
    Agent, ClockNs, Frozen as Status, FsfreezeFreeze, FsfreezeStatus, FsfreezeThaw, GetTime, SetTime,
};
use keyframe_qmp::{Client, Error};
use serde::Deserialize;

/// The longest that file systems stay frozen: a guest that cannot write for longer suffers.
pub const FREEZE_WINDOW: Duration = Duration::from_secs(5);
/// How long the agent may take to freeze.
const FREEZE_PATIENCE: Duration = Duration::from_secs(4);
/// How long the agent may take to thaw.
const THAW_PATIENCE: Duration = Duration::from_secs(10);
/// How long an agent that just woke up may take.
const GREETING_PATIENCE: Duration = Duration::from_secs(3);

/// Frozen file systems: they have to be thawed.
#[derive(Debug)]
#[must_use]
pub struct Frozen {
    instance: InstanceRecord,
    since: Instant,
}

/// Whether a program in the guest has opened the agent's channel: nobody else is worth waiting for.
#[must_use]
pub fn has_agent(monitor: &mut Client) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Channel {
        label: String,
        frontend_open: bool,
    }
    // Source: ChardevInfo in qapi/char.json. For a virtio-serial port, the frontend is open while the guest has it open.
    let channels: Result<Vec<Channel>, Error> = monitor.execute_as("query-chardev", &());
    channels.is_ok_and(|all| all.iter().any(|channel| channel.label == AGENT_CHANNEL && channel.frontend_open))
}

/// What a guest wants to know that just woke up in another time: it is thawed, where `frozen` says so, and told the time. Gives
/// how far its clock was behind, in milliseconds; `None` where no agent tells. What did not work is noted.
pub(crate) fn greet(started: &mut Started, frozen: bool, notes: &mut Vec<String>) -> Option<f64> {
    if frozen && let Err(error) = thaw(&started.record) {
        notes.push(format!("the guest's file systems may be frozen, as they were in the snapshot: {error}"));
    }
    if !has_agent(&mut started.monitor) {
        return None;
    }
    match set_clock(&started.record) {
        Ok(behind_ms) => Some(behind_ms),
        Err(error) => {
            notes.push(format!("the guest's clock was not set: {error}"));
            None
        }
    }
}

fn connect(instance: &InstanceRecord) -> Result<Agent, Error> {
    let path = instance.agent_socket();
    let stream = socket::connect(&path).map_err(|source| Error::Connect { path, source })?;
    Agent::from_stream(stream)
}

/// Freezes the guest's file systems. The connection is closed again, so that a guard can thaw.
///
/// # Errors
/// When there is no agent, or it does not freeze in time; a freeze that may come later is thawed.
pub fn freeze(instance: &InstanceRecord) -> Result<Frozen, Error> {
    let since = Instant::now();
    let frozen = connect(instance)?.call(&FsfreezeFreeze {}, FREEZE_PATIENCE);
    match frozen {
        Ok(_) => Ok(Frozen { instance: instance.clone(), since }),
        Err(error) => {
            if matches!(error, Error::Timeout { .. }) {
                // It may freeze all the same, later.
                let _ = thaw(instance);
            }
            Err(error)
        }
    }
}

impl Frozen {
    /// Thaws; says how long the file systems were frozen.
    ///
    /// # Errors
    /// When the agent does not answer, or says that they were not frozen any more: the freeze did not hold.
    pub fn thaw(self) -> Result<Duration, Error> {
        let mut agent = connect(&self.instance)?;
        let status = agent.call(&FsfreezeStatus {}, THAW_PATIENCE)?;
        agent.call(&FsfreezeThaw {}, THAW_PATIENCE)?;
        if status == Status::Thawed || self.since.elapsed() > FREEZE_WINDOW {
            return Err(Error::Timeout { command: "guest-fsfreeze-thaw".to_owned(), waited: self.since.elapsed() });
        }
        Ok(self.since.elapsed())
    }
}

/// Thaws whatever is frozen.
///
/// # Errors
/// When the agent does not answer.
pub fn thaw(instance: &InstanceRecord) -> Result<(), Error> {
    connect(instance)?.call(&FsfreezeThaw {}, THAW_PATIENCE)?;
    Ok(())
}

/// Sets the guest's clock to the host's; says how far it was behind, in milliseconds, negative when it was ahead.
///
/// # Errors
/// When the agent does not answer, or refuses.
pub fn set_clock(instance: &InstanceRecord) -> Result<f64, Error> {
    let mut agent = connect(instance)?;
    let guest = agent.call(&GetTime {}, GREETING_PATIENCE)?;
    let now = ClockNs::from_system(SystemTime::now());
    let behind_ns = now.map_or(0, |now| now.ahead_of_ns(guest));
    agent.call(&SetTime { time: ClockNs::from_system(SystemTime::now()) }, THAW_PATIENCE)?;
    Ok((behind_ns as f64 / 1e3).round() / 1e3)
}
