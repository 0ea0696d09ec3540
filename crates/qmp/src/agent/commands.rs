//! The agent's commands, typed. Source for all: `qga/qapi-schema.json`.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::commands::Empty;

/// A command of the agent.
pub trait AgentCommand: Serialize {
    /// Its name.
    const NAME: &'static str;
    /// What it returns.
    type Reply: DeserializeOwned;
}

macro_rules! agent_command {
    ($type:ty, $name:literal -> $reply:ty) => {
        impl AgentCommand for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    };
}

/// Asks whether the agent is there.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ping {}
agent_command!(Ping, "guest-ping" -> Empty);

/// Asks for the agent's version and commands.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Info {}
agent_command!(Info, "guest-info" -> AgentInfo);

/// Source: `GuestAgentInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentInfo {
    /// Version.
    pub version: String,
    /// What it can do.
    pub supported_commands: Vec<CommandInfo>,
}

impl AgentInfo {
    /// Whether this command is there and allowed.
    #[must_use]
    pub fn can(&self, command: &str) -> bool {
        self.supported_commands.iter().any(|info| info.enabled && info.name == command)
    }
}

/// Source: `GuestAgentCommandInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CommandInfo {
    /// Its name.
    pub name: String,
    /// Whether the guest's administrator allows it.
    pub enabled: bool,
}

/// Syncs and freezes the guest's file systems. Returns how many are frozen.
///
/// A freeze whose reply did not come in time may happen all the same, later: thaw until
/// [`FsfreezeStatus`] says thawed. Between freeze and thaw the agent answers only
/// `guest-ping`, `guest-info`, `guest-sync*`, and the fsfreeze commands themselves.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FsfreezeFreeze {}
agent_command!(FsfreezeFreeze, "guest-fsfreeze-freeze" -> u32);

/// Thaws what is frozen. Returns how many file systems were thawed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FsfreezeThaw {}
agent_command!(FsfreezeThaw, "guest-fsfreeze-thaw" -> u32);

/// Asks whether file systems are frozen.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FsfreezeStatus {}
agent_command!(FsfreezeStatus, "guest-fsfreeze-status" -> Frozen);

open_enum! {
    /// Source: `GuestFsfreezeStatus`.
    pub enum Frozen {
        /// Nothing is frozen.
        Thawed = "thawed",
        /// Frozen by the agent.
        Frozen = "frozen",
    }
}

/// A time of the guest's clock: nanoseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockNs(i64);

impl ClockNs {
    /// This time; `None` before 1970 and after 2262.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Option<Self> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_nanos()).ok().map(Self)
    }

    /// As the system's time; `None` before 1970.
    #[must_use]
    pub fn to_system(self) -> Option<SystemTime> {
        let since = Duration::from_nanos(u64::try_from(self.0).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since)
    }

    /// How far this clock is from another: positive where it is ahead. Saturates.
    #[must_use]
    pub fn ahead_of_ns(self, other: Self) -> i64 {
        self.0.saturating_sub(other.0)
    }
}

/// Reads the guest's clock.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct GetTime {}
agent_command!(GetTime, "guest-get-time" -> ClockNs);

/// Sets the guest's clock.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SetTime {
    /// To this; to the machine's RTC if `None`, which not every guest can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<ClockNs>,
}
agent_command!(SetTime, "guest-set-time" -> Empty);

/// Runs a program in the guest and captures what it writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    path: String,
    #[serde(rename = "arg", skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    capture_output: bool,
}
agent_command!(Exec, "guest-exec" -> Started);

impl Exec {
    /// This program with these arguments, its own name not among them.
    pub fn new(path: impl Into<String>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { path: path.into(), args: args.into_iter().map(Into::into).collect(), capture_output: true }
    }
}

/// A process in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its id there.
    pid: i64,
}

/// Asks what became of a process; once it has exited, this can be asked only once.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ExecStatus {
    pid: i64,
}
agent_command!(ExecStatus, "guest-exec-status" -> Exited);

impl ExecStatus {
    /// Of this process.
    #[must_use]
    pub fn of(process: Started) -> Self {
        Self { pid: process.pid }
    }
}

/// Source: `GuestExecStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exited {
    /// Whether it has.
    pub exited: bool,
    /// Its exit status.
    #[serde(rename = "exitcode")]
    pub exit_code: Option<i64>,
    /// The signal that ended it.
    pub signal: Option<i64>,
    /// What it wrote to standard output.
    #[serde(default)]
    pub out_data: Captured,
    /// What it wrote to standard error.
    #[serde(default)]
    pub err_data: Captured,
    /// Whether standard output was longer than the agent keeps.
    #[serde(default)]
    pub out_truncated: bool,
    /// Whether standard error was.
    #[serde(default)]
    pub err_truncated: bool,
}

/// Bytes that a process wrote. Base64 on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured(Vec<u8>);

impl Captured {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Captured {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        decode_base64(&text).map(Self).ok_or_else(|| serde::de::Error::custom("not base64"))
    }
}

/// Padded standard base64, as `g_base64_encode` writes it.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut value, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        value = (value << 6) | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.extend(u8::try_from((value >> bits) & 0xff));
        }
    }
    Some(bytes)
}

/// Lists the guest's network interfaces.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NetworkGetInterfaces {}
agent_command!(NetworkGetInterfaces, "guest-network-get-interfaces" -> Vec<Interface>);

/// Source: `GuestNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address.
    pub hardware_address: Option<String>,
    /// Its addresses.
    #[serde(default)]
    pub ip_addresses: Vec<Address>,
}

/// Source: `GuestIpAddress`. What the guest says, not checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Address {
    /// The address.
    pub ip_address: String,
    /// Length of the network's prefix, in bits.
    #[serde(rename = "prefix")]
    pub prefix_bits: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_decoded() {
        let text =
            r#"{"exited": true, "exitcode": 3, "out-data": "aGVsbG8K", "err-data": "AP8=", "err-truncated": true}"#;
        let status: Exited = serde_json::from_str(text).unwrap();
        assert_eq!((status.exit_code, status.out_data.bytes()), (Some(3), &b"hello\n"[..]));
        assert_eq!((status.err_data.bytes(), status.out_truncated, status.err_truncated), (&[0, 255][..], false, true));
    }

    #[test]
    fn base64_of_every_length_and_nothing_else() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("+/+/", &[0xfb, 0xff, 0xbf])]
        {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg", "Zg=", "Z===", "Zm9v\n", "Zm=v", "Zm9-"] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }

    #[test]
    fn clocks_convert_both_ways_or_not_at_all() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let clock = ClockNs::from_system(now).unwrap();
        assert_eq!(clock.to_system(), Some(now));
        assert_eq!(serde_json::to_string(&SetTime { time: Some(clock) }).unwrap(), "{\"time\":1700000000123456789}");
        assert_eq!(serde_json::to_string(&SetTime { time: None }).unwrap(), "{}");
        assert_eq!(ClockNs(-1).to_system(), None);
        assert_eq!(ClockNs(i64::MAX).ahead_of_ns(ClockNs(-5)), i64::MAX);
        assert_eq!(ClockNs::from_system(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
