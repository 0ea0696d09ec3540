//! What kind of machine this is, and how to become root on it.

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdin};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// The parts of os-release that decide what to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsRelease {
    /// `debian`, `ubuntu`, `fedora`, ...
    pub id: String,
    /// `bookworm`, ...
    pub codename: String,
    /// What people call it.
    pub pretty_name: String,
}

impl OsRelease {
    /// Of this machine.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_this_machine() -> Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?))
    }

    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        Self { id: value("ID"), codename: value("VERSION_CODENAME"), pretty_name: value("PRETTY_NAME") }
    }

    /// Debian 12, whose own QEMU is too old.
    pub fn is_bookworm(&self) -> bool {
        self.id == "debian" && self.codename == "bookworm"
    }

    /// Any Debian: guests are made of its packages.
    pub fn is_debian(&self) -> bool {
        self.id == "debian"
    }
}

/// How commands that need root are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// We are root.
    Root,
    /// Through sudo, to which the person said yes or which needs no password.
    Sudo,
}

/// Whether this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Privilege {
    /// Finds a way to run `commands` as root: asks at a terminal, and never assumes.
    ///
    /// # Errors
    /// When there is none: the message says what to run by hand.
    pub fn obtain(commands: &[String]) -> Result<Self> {
        if is_root() {
            return Ok(Self::Root);
        }
        let by_hand = || format!("As root, run\n    {}\nthen try again.", commands.join("\n    "));
        let sudo_without_password =
            || run::command("sudo", ["-n", "true"]).output().is_ok_and(|output| output.status.success());
        if stdin().is_terminal() {
            if asked(&format!("These need root:\n    {}\nRun them with sudo? [y/N] ", commands.join("\n    ")))? {
                return Ok(Self::Sudo);
            }
        } else if sudo_without_password() {
            return Ok(Self::Sudo);
        }
        bail!("{}", by_hand())
    }

    /// A command run that way.
    pub fn command<const N: usize>(self, program: &str, arguments: [&str; N]) -> Command {
        match self {
            Self::Root => run::command(program, arguments),
            Self::Sudo => {
                let mut command = run::command("sudo", [program]);
                command.args(arguments);
                command
            }
        }
    }
}

fn asked(question: &str) -> Result<bool> {
    eprint!("{question}");
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_quoted_or_not() {
        let debian =
            OsRelease::parse("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n");
        assert!(debian.is_bookworm() && debian.is_debian());
        assert_eq!(debian.pretty_name, "Debian GNU/Linux 12 (bookworm)");
        let trixie = OsRelease::parse("ID=debian\nVERSION_CODENAME=trixie\n");
        assert!(trixie.is_debian() && !trixie.is_bookworm());
        let fedora = OsRelease::parse("ID='fedora'\nID_LIKE=debian\n");
        assert!(!fedora.is_debian() && fedora.codename.is_empty());
    }
}
