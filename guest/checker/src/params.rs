//! What the kernel command line asks of this program.
//!
//! | parameter | meaning | when absent |
//! |---|---|---|
//! | `checker.mb=600` | MiB of memory that are rewritten and verified | 200 |
//! | `checker.cold_mb=2000` | MiB that are written once and verified | 0 |
//! | `checker.rate=40` | MiB rewritten per second | 40 |
//! | `checker.verify=100` | MiB verified per second besides | 100 |
//! | `checker.disks=vda,vdb` | the disks to write to, first to last; `none` for none | every `vd?` there is |
//! | `checker.diskrate=50` | writes per second to each disk | 50 |
//! | `checker.tick_ms=20` | time between two heartbeats | 20 |
//! | `root=/dev/vda2`, `root=PARTLABEL=name` | do not check anything: go on to the system on that ext4 partition | |
//!
//! **The disks named are overwritten.** A value that does not parse is an error and not the default.

use std::time::Duration;

use crate::error::Error;
use crate::memory::Extent;
use crate::units::{MemoryRate, MemorySize, WriteRate};

/// Which disks to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskChoice {
    /// All virtio disks, by name.
    All,
    /// These device names, in this order; they must appear.
    Named(Vec<String>),
}

/// Where the system to go on to is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A device node's path.
    Device(String),
    /// A GPT partition's name.
    PartLabel(String),
}

/// What the checker is to do.
#[derive(Debug, Clone)]
pub struct CheckParams {
    /// Memory under test.
    pub extent: Extent,
    /// Rewriting speed.
    pub rewrite: MemoryRate,
    /// Verifying speed.
    pub verify: MemoryRate,
    /// Disks under test.
    pub disks: DiskChoice,
    /// Writes to each of them.
    pub disk_rate: WriteRate,
    /// Time between two heartbeats.
    pub tick: Duration,
}

/// What this boot is for.
#[derive(Debug, Clone)]
pub enum Task {
    /// Run the checker.
    Check(CheckParams),
    /// Mount a root file system and hand over to its init.
    SwitchTo(Root),
}

impl Task {
    /// Reads a kernel command line. Words that are not ours are ignored.
    ///
    /// # Errors
    /// [`Error::Parameter`] names the word that does not parse.
    pub fn from_command_line(line: &str) -> Result<Self, Error> {
        let mut params = CheckParams::default();
        let mut root = None;
        for word in line.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let bad = || Error::Parameter { word: word.to_owned() };
            match key {
                "root" => root = Some(Root::parse(value).ok_or_else(bad)?),
                _ if key.starts_with("checker.") => params.set(key, value).ok_or_else(bad)?,
                _ => {}
            }
        }
        Ok(root.map_or(Self::Check(params), Self::SwitchTo))
    }
}

impl Root {
    fn parse(value: &str) -> Option<Self> {
        match value.strip_prefix("PARTLABEL=") {
            Some(label) if !label.is_empty() => Some(Self::PartLabel(label.to_owned())),
            None if value.starts_with("/dev/") => Some(Self::Device(value.to_owned())),
            _ => None,
        }
    }
}

impl Default for CheckParams {
    fn default() -> Self {
        const HOT: MemorySize = MemorySize::from_mib(200).unwrap();
        const COLD: MemorySize = MemorySize::from_mib(0).unwrap();
        const REWRITE: MemoryRate = MemoryRate::from_mib_per_second(40).unwrap();
        const VERIFY: MemoryRate = MemoryRate::from_mib_per_second(100).unwrap();
        const DISK: WriteRate = WriteRate::from_per_second(50).unwrap();
        Self {
            extent: Extent { hot: HOT, cold: COLD },
            rewrite: REWRITE,
            verify: VERIFY,
            disks: DiskChoice::All,
            disk_rate: DISK,
            tick: Duration::from_millis(20),
        }
    }
}

impl CheckParams {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let mib = |text: &str| text.parse().ok().and_then(MemorySize::from_mib);
        let rate = |text: &str| text.parse().ok().and_then(MemoryRate::from_mib_per_second);
        match key {
            "checker.mb" => self.extent.hot = mib(value)?,
            "checker.cold_mb" => self.extent.cold = mib(value)?,
            "checker.rate" => self.rewrite = rate(value)?,
            "checker.verify" => self.verify = rate(value)?,
            "checker.diskrate" => self.disk_rate = value.parse().ok().and_then(WriteRate::from_per_second)?,
            "checker.disks" => self.disks = disks(value)?,
            "checker.tick_ms" => self.tick = tick(value)?,
            _ => return None,
        }
        Some(())
    }
}

fn disks(value: &str) -> Option<DiskChoice> {
    if value == "none" {
        return Some(DiskChoice::Named(Vec::new()));
    }
    let names: Vec<_> = value.split(',').map(str::to_owned).collect();
    let plain = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    names.iter().all(plain).then_some(DiskChoice::Named(names))
}

fn tick(value: &str) -> Option<Duration> {
    let millis = value.parse().ok().filter(|ms| (1..=60_000).contains(ms))?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> CheckParams {
        match Task::from_command_line(line).unwrap() {
            Task::Check(params) => params,
            Task::SwitchTo(root) => panic!("not a check: {root:?}"),
        }
    }

    #[test]
    fn a_full_line_is_understood() {
        let line = "console=ttyS0 quiet checker.mb=600 checker.cold_mb=10 checker.rate=7 checker.verify=9 \
                    checker.disks=vda,vdb checker.diskrate=3 checker.tick_ms=50 panic=1\n";
        let params = check(line);
        assert_eq!(params.extent.hot, MemorySize::from_mib(600).unwrap());
        assert_eq!(params.extent.cold, MemorySize::from_mib(10).unwrap());
        assert_eq!(params.rewrite, MemoryRate::from_mib_per_second(7).unwrap());
        assert_eq!(params.verify, MemoryRate::from_mib_per_second(9).unwrap());
        assert_eq!(params.disks, DiskChoice::Named(vec!["vda".into(), "vdb".into()]));
        assert_eq!(params.disk_rate, WriteRate::from_per_second(3).unwrap());
        assert_eq!(params.tick, Duration::from_millis(50));
    }

    #[test]
    fn an_empty_line_means_the_defaults() {
        let params = check("");
        assert_eq!(params.disks, DiskChoice::All);
        assert_eq!(params.tick, Duration::from_millis(20));
    }

    #[test]
    fn none_means_no_disks() {
        assert_eq!(check("checker.disks=none").disks, DiskChoice::Named(vec![]));
    }

    #[test]
    fn a_root_switches() {
        for (word, root) in [
            ("root=/dev/vda2", Root::Device("/dev/vda2".into())),
            ("root=PARTLABEL=sys", Root::PartLabel("sys".into())),
        ] {
            match Task::from_command_line(word).unwrap() {
                Task::SwitchTo(found) => assert_eq!(found, root),
                Task::Check(_) => panic!("{word} was ignored"),
            }
        }
    }

    #[test]
    fn what_does_not_parse_is_an_error() {
        for word in [
            "checker.mb=lots",
            "checker.mb=99999999999",
            "checker.disks=vda,,vdb",
            "checker.disks=../sda",
            "checker.tick_ms=0",
            "checker.unknown=1",
            "root=UUID=1",
            "root=PARTLABEL=",
        ] {
            let error = Task::from_command_line(word).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
