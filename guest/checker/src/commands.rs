//! What a person, or a test, can type on the serial line.

use std::str::FromStr;

use crate::drive::{Drive, Mix};
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
    /// Drive the first disk as hard as it goes, or stop that.
    Drive(Option<Drive>),
    /// Verify all of memory now, at full speed.
    Verify,
    /// Say how things are.
    Status,
    /// Switch the machine off.
    PowerOff,
}

/// What [`Command`] understands, for a person who asks.
pub const HELP: &str = "commands: status, verify, rate MIB_PER_S, diskrate PER_S, drive read|mixed FROM_MIB SPAN_MIB, \
                        drive off, wreck, panic, poweroff";

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
            ["drive", "off"] => Ok(Self::Drive(None)),
            ["drive", mix, from_mib, span_mib] => {
                drive(mix, from_mib, span_mib).map(|it| Self::Drive(Some(it))).ok_or(())
            }
            _ => Err(()),
        }
    }
}

fn drive(mix: &str, from_mib: &str, span_mib: &str) -> Option<Drive> {
    let mix = match mix {
        "read" => Mix::Reads,
        "mixed" => Mix::Mixed,
        _ => return None,
    };
    Drive::new(mix, from_mib.parse().ok()?, span_mib.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_and_the_rest_is_not() {
        assert_eq!(" wreck \r".parse(), Ok(Command::Wreck));
        assert_eq!("rate 12".parse(), Ok(Command::Rate(MemoryRate::from_mib_per_second(12).unwrap())));
        assert_eq!("diskrate 5".parse(), Ok(Command::DiskRate(WriteRate::from_per_second(5).unwrap())));
        assert_eq!("drive off".parse(), Ok(Command::Drive(None)));
        assert_eq!("drive mixed 128 64".parse(), Ok(Command::Drive(Drive::new(Mix::Mixed, 128, 64))));
        for line in [
            "drive",
            "drive read 16",
            "drive write 16 1",
            "drive read 0 1",
            "",
            "rate",
            "rate -1",
            "rate 1 2",
            "diskrate 99999999",
            "WRECK",
            "wreck now",
        ] {
            assert_eq!(line.parse::<Command>(), Err(()), "{line:?}");
        }
    }
}
