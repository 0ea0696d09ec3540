//! QMP messages: lines to messages, requests to lines, without I/O.
//!
//! Unknown events and unknown members are taken as they are, because QEMU's schema grows. A reply's
//! value stays raw JSON until a caller says what it expects ([`Body::to`]), for two reasons: replies
//! that nobody looks at cost nothing, and a value nested deeper than `serde_json`'s recursion limit
//! (128 levels; `query-block` nests one level for each layer of a backing chain) still reads into a
//! type that skips the nested part, because skipping does not recurse.
//!
//! Source: `docs/interop/qmp-spec.rst`.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::frame::{Line, LineDecoder};

/// Identifies a request of this client. Ids of different clients differ (with overwhelming
/// probability), so that a reply meant for a client before us is recognised and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(u64);

impl RequestId {
    /// The `count`-th id of the client with this random `salt`.
    #[must_use]
    pub fn new(salt: ClientSalt, count: u32) -> Self {
        Self((u64::from(salt.0) << 32) | u64::from(count))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What tells one client's requests from another's. 31 bits, so that an id is a JSON integer that
/// every QEMU reads as signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSalt(u32);

impl ClientSalt {
    /// A salt of random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes) >> 1)
    }
}

/// QEMU's version. Source: `qapi/control.json`, `VersionTriple`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct VersionTriple {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2.
    pub micro: u32,
}

impl std::fmt::Display for VersionTriple {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// QEMU's version and package. Source: `qapi/control.json`, `VersionInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// The three numbers.
    pub qemu: VersionTriple,
    /// The distributor's version; may be empty.
    #[serde(default)]
    pub package: String,
}

/// The first thing a monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Greeting {
    /// QEMU's version.
    pub version: Version,
    /// Capabilities that can be enabled, by name.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

impl Greeting {
    /// Whether commands can be run out of band.
    #[must_use]
    pub fn offers_oob(&self) -> bool {
        self.capabilities.iter().any(|c| c == "oob")
    }
}

open_enum! {
    /// Class of a refusal. Source: `qapi/error.json`, `QapiErrorClass`.
    pub enum ErrorClass {
        /// No class of its own.
        Generic = "GenericError",
        /// No such command, or not in this state.
        CommandNotFound = "CommandNotFound",
        /// The device is not active.
        DeviceNotActive = "DeviceNotActive",
        /// No such device.
        DeviceNotFound = "DeviceNotFound",
        /// KVM lacks what is needed.
        KvmMissingCap = "KVMMissingCap",
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct CommandError {
    /// Class; all that a program may look at.
    pub class: ErrorClass,
    /// For people.
    pub desc: String,
}

/// A reply's value, not looked into yet.
#[derive(Debug, Clone)]
pub struct Body(Box<RawValue>);

impl Body {
    pub(crate) fn from_raw(value: Box<RawValue>) -> Self {
        Self(value)
    }

    /// The value as a `T`; `command` is for the error.
    ///
    /// # Errors
    /// [`Error::Reply`] where the value is no `T` or nested deeper than 128 levels in a part that `T` wants.
    pub fn to<T: DeserializeOwned>(&self, command: &str) -> Result<T> {
        serde_json::from_str(self.0.get()).map_err(|source| Error::Reply { command: command.to_owned(), source })
    }

    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

open_enum! {
    /// An event's name. Sources: the `event` entries of `qapi/*.json`.
    pub enum EventKind {
        /// vCPUs stopped. `qapi/run-state.json`.
        Stop = "STOP",
        /// vCPUs run. `qapi/run-state.json`.
        Resume = "RESUME",
        /// The machine shuts down. `qapi/run-state.json`.
        Shutdown = "SHUTDOWN",
        /// The ACPI power button was pressed. `qapi/run-state.json`.
        Powerdown = "POWERDOWN",
        /// The machine was reset. `qapi/run-state.json`.
        Reset = "RESET",
        /// The guest reported a panic. `qapi/run-state.json`.
        GuestPanicked = "GUEST_PANICKED",
        /// Migration status changed; needs capability `events`. `qapi/migration.json`.
        Migration = "MIGRATION",
        /// A job changed state. `qapi/job.json`.
        JobStatusChange = "JOB_STATUS_CHANGE",
        /// A block job is ready to be completed. `qapi/block-core.json`.
        BlockJobReady = "BLOCK_JOB_READY",
        /// A block job is done, perhaps with an error. `qapi/block-core.json`.
        BlockJobCompleted = "BLOCK_JOB_COMPLETED",
        /// A block job was cancelled. `qapi/block-core.json`.
        BlockJobCancelled = "BLOCK_JOB_CANCELLED",
        /// A block job met an I/O error. `qapi/block-core.json`.
        BlockJobError = "BLOCK_JOB_ERROR",
        /// A block job waits to be finalized. `qapi/block-core.json`.
        BlockJobPending = "BLOCK_JOB_PENDING",
        /// A disk met an I/O error. `qapi/block-core.json`.
        BlockIoError = "BLOCK_IO_ERROR",
        /// A device is gone. `qapi/qdev.json`.
        DeviceDeleted = "DEVICE_DELETED",
        /// The guest set its clock. `qapi/misc-target.json`.
        RtcChange = "RTC_CHANGE",
        /// The guest opened or closed a virtio-serial port, for instance its agent's. `qapi/char.json`.
        VserportChange = "VSERPORT_CHANGE",
    }
}

impl EventKind {
    /// Whether somebody may wait for it, so that it must not be dropped to make room.
    ///
    /// A guest must not be able to fill the inbox by these: it causes none of them at will but by
    /// ways that end (a shutdown) or that need the host to go on (a stop).
    #[must_use]
    pub fn is_essential(&self) -> bool {
        matches!(
            self,
            Self::Stop
                | Self::Resume
                | Self::Shutdown
                | Self::Migration
                | Self::JobStatusChange
                | Self::BlockJobReady
                | Self::BlockJobCompleted
                | Self::BlockJobCancelled
                | Self::BlockJobPending
                | Self::DeviceDeleted
        )
    }
}

/// Something happened in QEMU.
#[derive(Debug, Clone)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The host's wall clock when QEMU noted it, in microseconds; `None` where QEMU did not know.
    pub timestamp: Option<SystemTime>,
    data: Option<Box<RawValue>>,
}

impl Event {
    /// The event's data as a `T`.
    ///
    /// # Errors
    /// [`Error::Reply`] where there is none or it is no `T`.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        let text = self.data.as_ref().map_or("{}", |d| d.get());
        serde_json::from_str(text).map_err(|source| Error::Reply { command: self.kind.as_str().to_owned(), source })
    }

    /// One member of the event's data, if it is a string.
    #[must_use]
    pub fn text(&self, member: &str) -> Option<String> {
        let data: serde_json::Value = self.data().ok()?;
        Some(data.get(member)?.as_str()?.to_owned())
    }
}

/// One line of a monitor.
#[derive(Debug, Clone)]
pub enum Message {
    /// Sent once, at the beginning.
    Greeting(Greeting),
    /// A command succeeded.
    Return {
        /// Which; `None` where the peer gave no id or one that is not ours.
        id: Option<RequestId>,
        /// Its value.
        body: Body,
    },
    /// A command was refused, or (without id) a line of ours was not understood.
    Refusal {
        /// Which; `None` where the peer gave no id or one that is not ours.
        id: Option<RequestId>,
        /// Whether there was any id: tells a foreign reply from an unreadable request.
        had_id: bool,
        /// Why.
        error: CommandError,
    },
    /// Something happened.
    Event(Event),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    error: Option<CommandError>,
    event: Option<EventKind>,
    data: Option<Box<RawValue>>,
    timestamp: Option<Timestamp>,
    id: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

/// 9999-12-31T23:59:59Z: later times are nonsense that date libraries refuse.
const LAST_SECOND: u64 = 253_402_300_799;

impl Timestamp {
    fn time(&self) -> Option<SystemTime> {
        let seconds = u64::try_from(self.seconds).ok().filter(|&s| s <= LAST_SECOND)?;
        let micros = u64::try_from(self.microseconds).ok().filter(|&us| us < 1_000_000)?;
        let since_epoch = Duration::from_secs(seconds).checked_add(Duration::from_micros(micros))?;
        SystemTime::UNIX_EPOCH.checked_add(since_epoch)
    }
}

/// `"return": null` is a return, unlike a missing one.
pub(crate) fn present<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(from).map(Some)
}

/// One line to a message.
///
/// # Errors
/// [`Error::Malformed`] where it is not JSON of the right types, [`Error::NotAMessage`] where it is
/// none of the four kinds of message.
pub fn parse(line: &Line<'_>) -> Result<Message> {
    let wire: Wire =
        serde_json::from_slice(line.bytes).map_err(|source| Error::Malformed { offset: line.offset, source })?;
    let id = wire.id.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok());
    let message = match wire {
        Wire { event: Some(kind), data, timestamp, .. } => {
            Message::Event(Event { kind, data, timestamp: timestamp.and_then(|t| t.time()) })
        }
        Wire { value: Some(value), .. } => Message::Return { id, body: Body(value) },
        Wire { error: Some(error), id: raw, .. } => Message::Refusal { id, had_id: raw.is_some(), error },
        Wire { greeting: Some(greeting), .. } => Message::Greeting(greeting),
        _ => return Err(Error::NotAMessage { offset: line.offset }),
    };
    Ok(message)
}

/// Decodes a monitor's bytes.
#[derive(Debug)]
pub struct Decoder {
    lines: LineDecoder,
}

impl Decoder {
    /// A decoder for lines of at most `line_limit_bytes`.
    #[must_use]
    pub fn new(line_limit_bytes: usize) -> Self {
        Self { lines: LineDecoder::new(line_limit_bytes) }
    }

    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// The next message and the length of its line in bytes, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`Error::LineTooLong`], [`Error::Malformed`], [`Error::NotAMessage`]. The line in question is
    /// skipped; a peer that sends such a line is better not trusted with another.
    pub fn next_message(&mut self) -> Result<Option<(Message, usize)>> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        let len = line.bytes.len();
        parse(&line).map(|message| Some((message, len)))
    }
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// In the main loop, in order.
    InBand,
    /// In the monitor's thread, overtaking what waits. Source: `docs/interop/qmp-spec.rst`, "Out-of-band execution".
    OutOfBand,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    execute: Option<&'a str>,
    #[serde(rename = "exec-oob", skip_serializing_if = "Option::is_none")]
    exec_oob: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
}

/// A request as one line. Arguments that encode to `null` (such as `&()`) are left out.
///
/// # Errors
/// [`Error::Encode`].
pub fn encode<A: Serialize + ?Sized>(
    lane: Lane,
    command: &str,
    arguments: &A,
    id: Option<RequestId>,
) -> Result<Vec<u8>> {
    let failed = |source| Error::Encode { command: command.to_owned(), source };
    let arguments = serde_json::value::to_raw_value(arguments).map_err(failed)?;
    let (execute, exec_oob) = match lane {
        Lane::InBand => (Some(command), None),
        Lane::OutOfBand => (None, Some(command)),
    };
    let arguments = Some(arguments.as_ref()).filter(|raw| raw.get() != "null");
    let request = Request { execute, exec_oob, arguments, id };
    let mut line = serde_json::to_vec(&request).map_err(failed)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
