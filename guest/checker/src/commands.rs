//! What a person, or a test, can type on the serial line.

use std::str::FromStr;

use crate::units::{MemoryRate, WriteRate};

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Scribble over memory and disks.
    Wreck,
    /// Crash the kernel.
    Panic,
    /// Rewrite so many MiB per second from now on.
    Rate(MemoryRate),
    /// Write so often per second to each disk from now on.
    DiskRate(WriteRate),
    /// Verify all of memory now, at full speed.
    Verify,
    /// Say how things are.
    Status,
    /// Switch the machine off.
    PowerOff,
}

/// What [`Command`] understands, for a person who asks.
pub const HELP: &str = "commands: status, verify, rate MIB_PER_S, diskrate PER_S, wreck, panic, poweroff";

impl FromStr for Command {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["wreck"] => Ok(Self::Wreck),
            ["panic"] => Ok(Self::Panic),
            ["verify"] => Ok(Self::Verify),
            ["status"] => Ok(Self::Status),
            ["poweroff"] => Ok(Self::PowerOff),
            ["rate", mib] => mib.parse().ok().and_then(MemoryRate::from_mib_per_second).map(Self::Rate).ok_or(()),
            ["diskrate", n] => n.parse().ok().and_then(WriteRate::from_per_second).map(Self::DiskRate).ok_or(()),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_and_the_rest_is_not() {
        assert_eq!(" wreck \r".parse(), Ok(Command::Wreck));
        assert_eq!("rate 12".parse(), Ok(Command::Rate(MemoryRate::from_mib_per_second(12).unwrap())));
        assert_eq!("diskrate 5".parse(), Ok(Command::DiskRate(WriteRate::from_per_second(5).unwrap())));
        for line in ["", "rate", "rate -1", "rate 1 2", "diskrate 99999999", "WRECK", "wreck now"] {
            assert_eq!(line.parse::<Command>(), Err(()), "{line:?}");
        }
    }
}
