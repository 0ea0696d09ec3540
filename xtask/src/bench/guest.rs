//! The machine that is measured: the small guest, at work.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use keyframe_acceptance::process::ProcessId;

/// Rewritten all the time.
const HOT_MIB: u64 = 600;
/// Left to the guest's kernel and program, besides a twelfth of RAM for its tables and watermarks.
const RESERVE_MIB: u64 = 200;
const LEAST_MIB: u64 = 1024;
const MOST_MIB: u64 = 1 << 20;

/// Size of a machine's RAM, in MiB: 1 GiB to 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ram(u64);

impl Ram {
    /// The smallest that holds the load.
    pub const LEAST: Self = Self(LEAST_MIB);

    /// In MiB.
    pub const fn mib(self) -> u64 {
        self.0
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 << 20
    }

    /// As `--memory` takes it.
    pub fn option(self) -> String {
        format!("{}M", self.0)
    }

    /// Words for the checker: 600 MiB are rewritten at 40 MiB a second, a disk is written 50 times a second, and nearly
    /// all other memory is written once, so that it is resident and not zero.
    pub fn busy(self) -> String {
        let cold = self.0 - HOT_MIB - RESERVE_MIB - self.0 / 12;
        format!("checker.mb={HOT_MIB} checker.cold_mb={cold} checker.rate=40 checker.verify=20 checker.diskrate=50")
    }

    /// Words for a checker that fills memory as much and then does nothing but beat once a second.
    pub fn idle(self) -> String {
        let cold = self.0 - RESERVE_MIB - self.0 / 12;
        format!(
            "checker.mb=1 checker.cold_mb={cold} checker.rate=0 checker.verify=0 checker.diskrate=0 checker.tick_ms=1000"
        )
    }
}

impl FromStr for Ram {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size of RAM: write 1G to {}G, or whole MiB such as 1536M", MOST_MIB >> 10);
        let (number, unit_mib) = match (text.strip_suffix('G'), text.strip_suffix('M')) {
            (Some(number), _) => (number, 1024),
            (None, Some(number)) => (number, 1),
            (None, None) => return Err(bad()),
        };
        let mib = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_mib)).ok_or_else(bad)?;
        if (LEAST_MIB..=MOST_MIB).contains(&mib) { Ok(Self(mib)) } else { Err(bad()) }
    }
}

impl fmt::Display for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1024) { write!(f, "{} GiB", self.0 / 1024) } else { write!(f, "{} MiB", self.0) }
    }
}

/// What a process holds in memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Everything mapped and resident.
    pub rss_kib: u64,
    /// The same, what is shared divided by the number of those who share it.
    pub pss_kib: u64,
    /// What nobody else has.
    pub private_kib: u64,
}

impl Held {
    /// By a running process. Source: proc(5), `smaps_rollup`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn by(process: ProcessId) -> Result<Self> {
        let path = format!("/proc/{}/smaps_rollup", process.0);
        Ok(Self::parse(&fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?))
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| kib_of(text, name).unwrap_or(0);
        Self {
            rss_kib: field("Rss:"),
            pss_kib: field("Pss:"),
            private_kib: field("Private_Clean:") + field("Private_Dirty:"),
        }
    }
}

/// The number behind a name at a line's beginning, as the kernel writes it into files under /proc.
pub fn kib_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Memory of this machine that can be had, in MiB.
///
/// # Errors
/// When the kernel does not tell.
pub fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    Ok(kib_of(&text, "MemAvailable:").context("/proc/meminfo tells no MemAvailable")? / 1024)
}

/// Room on the file system of `path`, in MiB.
///
/// # Errors
/// When the system does not tell.
pub fn free_mib(path: &Path) -> Result<u64> {
    let status = rustix::fs::statvfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_bounded() {
        assert_eq!("1G".parse(), Ok(Ram::LEAST));
        assert_eq!("1536M".parse::<Ram>().unwrap().to_string(), "1536 MiB");
        assert_eq!("8G".parse::<Ram>().unwrap().to_string(), "8 GiB");
        for text in ["", "G", "512M", "-1G", "1T", "99999999999999999999G", "18446744073709551615G", "2000000G"] {
            assert!(text.parse::<Ram>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_load_fits_the_smallest_machine_and_fills_a_large_one() {
        assert!(Ram::LEAST.busy().contains("checker.mb=600 checker.cold_mb=139 "), "{}", Ram::LEAST.busy());
        assert!(Ram(8192).busy().contains("cold_mb=6710 "), "{}", Ram(8192).busy());
    }

    #[test]
    fn what_a_process_holds_is_read() {
        let text = "Rss:   900 kB\nPss:   300 kB\nPss_Dirty: 7 kB\nPrivate_Clean: 10 kB\nPrivate_Dirty: 20 kB\n";
        assert_eq!(Held::parse(text), Held { rss_kib: 900, pss_kib: 300, private_kib: 30 });
        assert!(Held::by(ProcessId(std::process::id())).unwrap().rss_kib > 0);
    }
}
