//! What a brought-back machine is asked, to see whether it lives: declared in `machine.toml` as `[[probe]]`, or given
//! with an option. Only the words; who asks is the engine.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most probes of one machine.
pub const MOST_PROBES: usize = 32;
/// The longest text in a probe, in bytes.
const LONGEST_TEXT: usize = 4096;

/// Something that a machine which works can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ProbeDefinition {
    /// The guest's agent answers.
    // Braces, as a variant without fields would take any.
    Agent {},
    /// The guest writes something to its serial console.
    Serial {
        /// What, as a regular expression; `^` and `$` are the ends of a line.
        regex: String,
        /// What to type before, with its line's end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        send: Option<String>,
    },
    /// The guest accepts a connection.
    Tcp {
        /// On which port.
        port: NonZeroU16,
        /// At which of its addresses, where it is not the one that QEMU's user network hands out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<Ipv4Addr>,
    },
    /// A command ends well, run by the guest's agent.
    Command {
        /// The program and its arguments; no shell takes them apart.
        run: Vec<String>,
        /// The exit status that is well.
        #[serde(default)]
        status: i64,
        /// What its standard output has to hold, as a regular expression.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
    /// The screen shows something.
    Screen {},
}

/// Why a text or a table is no probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It names no kind of probe.
    #[error(
        "{0:?} is not a probe: write agent, screen, serial=REGEX, tcp=PORT, tcp=ADDRESS:PORT or command=PROGRAM ARGUMENTS"
    )]
    Unknown(String),
    /// A command without a program.
    #[error("a probe's command names no program")]
    NoProgram,
    /// Something that is too long.
    #[error("a probe's text has at most {LONGEST_TEXT} bytes")]
    TooLong,
}

impl ProbeDefinition {
    /// Checks what its form alone does not tell.
    ///
    /// # Errors
    /// [`ProbeError::NoProgram`], [`ProbeError::TooLong`].
    pub fn check(&self) -> Result<(), ProbeError> {
        let texts: Vec<&String> = match self {
            Self::Agent {} | Self::Screen {} | Self::Tcp { .. } => Vec::new(),
            Self::Serial { regex, send } => std::iter::once(regex).chain(send).collect(),
            Self::Command { run, .. } if run.first().is_none_or(String::is_empty) => return Err(ProbeError::NoProgram),
            Self::Command { run, output, .. } => run.iter().chain(output).collect(),
        };
        let length: usize = texts.iter().map(|text| text.len()).sum();
        if length > LONGEST_TEXT { Err(ProbeError::TooLong) } else { Ok(()) }
    }
}

impl fmt::Display for ProbeDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent {} => f.write_str("agent"),
            Self::Screen {} => f.write_str("screen"),
            Self::Serial { regex, .. } => write!(f, "serial={regex}"),
            Self::Tcp { port, address: None } => write!(f, "tcp={port}"),
            Self::Tcp { port, address: Some(address) } => write!(f, "tcp={address}:{port}"),
            Self::Command { run, .. } => write!(f, "command={}", run.join(" ")),
        }
    }
}

impl FromStr for ProbeDefinition {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let unknown = || ProbeError::Unknown(text.to_owned());
        let probe = match text.split_once('=') {
            None if text == "agent" => Self::Agent {},
            None if text == "screen" => Self::Screen {},
            Some(("serial", regex)) if !regex.is_empty() => Self::Serial { regex: regex.to_owned(), send: None },
            Some(("tcp", place)) => {
                let (address, port) = match place.rsplit_once(':') {
                    Some((address, port)) => (Some(address.parse().map_err(|_| unknown())?), port),
                    None => (None, place),
                };
                Self::Tcp { port: port.parse().map_err(|_| unknown())?, address }
            }
            Some(("command", words)) => {
                let run = words.split_whitespace().map(str::to_owned).collect();
                Self::Command { run, status: 0, output: None }
            }
            _ => return Err(unknown()),
        };
        probe.check().map(|()| probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_read_back_as_written() {
        for text in ["agent", "screen", "serial=login: $", "tcp=5432", "tcp=192.168.1.5:22", "command=/bin/true -x a=b"]
        {
            assert_eq!(text.parse::<ProbeDefinition>().unwrap().to_string(), text);
        }
        for text in
            ["", "serial", "serial=", "tcp=", "tcp=0", "tcp=70000", "tcp=host:22", "command=", "command= ", "ping"]
        {
            assert!(text.parse::<ProbeDefinition>().is_err(), "{text:?}");
        }
        assert_eq!(format!("serial={}", "x".repeat(5000)).parse::<ProbeDefinition>(), Err(ProbeError::TooLong));
    }
}
