//! `cargo xtask setup`: QEMU and the tools that make guests.
//!
//! First a [`Plan`] of what is missing; an empty plan is the usual case and takes a fraction of a second. On
//! Debian the rest is apt's work. On other systems a QEMU that is new enough is accepted, and what is missing is
//! said.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::apt::sources::AptSource;
use crate::apt::version::QemuVersion;
use crate::apt::{self, BACKPORTS, SOURCES_DIR};
use crate::host::{self, OsRelease, Privilege};
use crate::{run, say};

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
/// UEFI firmware; a Debian system out of packages; its file system, EFI partition and partition table; a reader of
/// manifests and one of maps, for restoring without Keyframe; a server that the SFTP store is tested with; file systems
/// whose files share extents; tools that make NTFS and FAT, for reading files out of them; a place for tools
/// from Python's index, a client that speaks TLS and a browser that is driven, for the daemon's API and its page.
const TOOL_PACKAGES: [&str; 16] = [
    "ovmf",
    "mmdebstrap",
    "e2fsprogs",
    "mtools",
    "fdisk",
    "jq",
    "python3-minimal",
    "openssh-sftp-server",
    "xfsprogs",
    "btrfs-progs",
    "ntfs-3g",
    "dosfstools",
    "python3-venv",
    "curl",
    "chromium",
    "chromium-driver",
];

/// What set-up has to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// A source of packages to add, under this file name.
    add_source: Option<(String, AptSource)>,
    /// Packages to install from backports.
    from_backports: Vec<&'static str>,
    /// Packages to install from the system's own release.
    from_release: Vec<&'static str>,
}

/// Installs what is missing.
///
/// # Errors
/// When something is missing that cannot be installed: the message says what to do.
pub fn setup() -> Result<()> {
    let os = OsRelease::of_this_machine()?;
    if !os.is_debian() {
        return elsewhere(&os);
    }
    let plan = plan(&os)?;
    if plan == Plan::default() {
        return Ok(());
    }
    plan.carry_out()?;
    match qemu_version() {
        Some(version) if version >= QemuVersion::OLDEST => Ok(()),
        found => bail!("{QEMU} is {} after installing it: is another one first on PATH?", described(found)),
    }
}

/// Installs what is missing of packages that only some chore needs, on Debian 12.
///
/// # Errors
/// On other systems, naming the packages; when apt fails.
pub fn install(from_release: &[&'static str], from_backports: &[&'static str]) -> Result<()> {
    let os = OsRelease::of_this_machine()?;
    if !os.is_bookworm() {
        let wanted = [from_release, from_backports].concat().join(", ");
        bail!("{} is not Debian 12: please install by its own means {wanted}", os.pretty_name);
    }
    let mut plan = Plan {
        from_backports: apt::missing(from_backports)?,
        from_release: apt::missing(from_release)?,
        add_source: None,
    };
    if !plan.from_backports.is_empty() {
        plan.add_source = backports_to_add(&apt::machine_sources()?)?;
    }
    if plan == Plan::default() { Ok(()) } else { plan.carry_out() }
}

fn plan(os: &OsRelease) -> Result<Plan> {
    let mut plan = Plan { from_release: apt::missing(&TOOL_PACKAGES)?, ..Plan::default() };
    if !host::is_root() {
        plan.from_release.extend(apt::missing(&["uidmap"])?);
    }
    let new_enough = qemu_version().is_some_and(|version| version >= QemuVersion::OLDEST);
    if new_enough && run::command("qemu-img", ["--version"]).output().is_ok() {
        return Ok(plan);
    }
    if os.is_bookworm() {
        plan.from_backports.extend(QEMU_PACKAGES);
        plan.add_source = backports_to_add(&apt::machine_sources()?)?;
    } else {
        plan.from_release.extend(QEMU_PACKAGES);
    }
    Ok(plan)
}

/// The source to add so that backports are known: none when they already are.
fn backports_to_add(sources: &[AptSource]) -> Result<Option<(String, AptSource)>> {
    if sources.iter().any(|source| source.serves(BACKPORTS)) {
        return Ok(None);
    }
    let base = sources.iter().find(|source| source.serves("bookworm")).with_context(|| {
        format!("apt's sources name no mirror for bookworm main; add {BACKPORTS} to them by hand and try again")
    })?;
    Ok(Some(("keyframe-backports.sources".to_owned(), base.for_suite(BACKPORTS))))
}

impl Plan {
    /// The same in words that a person could type, for asking and for doing by hand.
    fn commands(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some((file, source)) = &self.add_source {
            let stanza = source.to_deb822(COMMENT);
            lines.push(format!("cat > {SOURCES_DIR}/{file} <<'END'\n{stanza}END"));
        }
        lines.push("apt-get update".to_owned());
        lines.extend(self.installs().iter().map(|words| format!("apt-get {}", words.join(" "))));
        lines
    }

    fn installs(&self) -> Vec<Vec<&str>> {
        let base = ["install", "-y", "--no-install-recommends"];
        let lists = [(&self.from_backports, Some(BACKPORTS)), (&self.from_release, None)];
        let wanted = lists.into_iter().filter(|(packages, _)| !packages.is_empty());
        let words = wanted.map(|(packages, suite)| {
            let suite = suite.map(|suite| ["-t", suite]);
            base.into_iter().chain(suite.into_iter().flatten()).chain(packages.iter().copied()).collect()
        });
        words.collect()
    }

    fn carry_out(&self) -> Result<()> {
        say::step("Installing what is missing");
        let privilege = Privilege::obtain(&self.commands())?;
        if let Some((file, source)) = &self.add_source {
            let path = Path::new(SOURCES_DIR).join(file);
            say::note(format_args!(
                "Debian 12's own QEMU is too old: adding its backports, from {}",
                source.uris.join(" ")
            ));
            say::note(format_args!("(the mirror that this machine's sources name), as {}", path.display()));
            write_as_root(privilege, &path, &source.to_deb822(COMMENT))?;
        }
        let mut update = privilege.command("apt-get", ["update"]);
        if let Err(trouble) = run::quiet(&mut update) {
            say::note(format_args!("going on with the lists as they are: {trouble:#}"));
        }
        for words in self.installs() {
            say::note(format_args!("apt-get {}", words.join(" ")));
            let mut install = privilege.command("env", ["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            run::quiet(install.args(words))?;
        }
        Ok(())
    }
}

const COMMENT: &str = "Added by Keyframe's `cargo xtask setup`: QEMU 10 for Debian 12.";

fn write_as_root(privilege: Privilege, path: &Path, text: &str) -> Result<()> {
    let trouble = || format!("cannot write {}", path.display());
    match privilege {
        Privilege::Root => {
            fs::create_dir_all(SOURCES_DIR).with_context(trouble)?;
            fs::write(path, text).with_context(trouble)
        }
        Privilege::Sudo => {
            let mut file = tempfile::NamedTempFile::new().with_context(trouble)?;
            file.write_all(text.as_bytes()).with_context(trouble)?;
            let mut install = privilege.command("install", ["-D", "-m", "0644"]);
            run::quiet(install.arg(file.path()).arg(path)).map(drop)
        }
    }
}

fn elsewhere(os: &OsRelease) -> Result<()> {
    match qemu_version() {
        Some(version) if version >= QemuVersion::OLDEST => {
            if run::command("qemu-img", ["--version"]).output().is_err() {
                bail!("qemu-img is not on PATH: install your system's package of QEMU tools");
            }
            Ok(())
        }
        found => bail!(
            "{QEMU} is {}; Keyframe needs {} or later.\n{} is not Debian, so please install QEMU (with qemu-img) \
             and UEFI firmware (edk2/OVMF) by your system's own means. Test guests are made of Debian packages: \
             building them needs apt and mmdebstrap.",
            described(found),
            QemuVersion::OLDEST,
            os.pretty_name
        ),
    }
}

fn described(version: Option<QemuVersion>) -> String {
    version.map_or_else(|| "not on PATH".to_owned(), |version| format!("version {version}"))
}

fn qemu_version() -> Option<QemuVersion> {
    QemuVersion::parse(&run::text(&mut run::command(QEMU, ["--version"])).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::sources::parse_deb822;

    const PLAIN: &str =
        "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main\nSigned-By: /k.gpg\n";

    #[test]
    fn backports_come_from_the_machines_own_mirror() {
        let (file, source) = backports_to_add(&parse_deb822(PLAIN)).unwrap().unwrap();
        assert!(file.ends_with(".sources"));
        assert_eq!(source.uris, ["http://mirror/debian"]);
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
        assert!(source.serves("bookworm-backports"));
    }

    #[test]
    fn backports_that_are_there_are_not_added_again() {
        let sources = parse_deb822(&PLAIN.replace("Suites: bookworm", "Suites: bookworm bookworm-backports"));
        assert_eq!(backports_to_add(&sources).unwrap(), None);
    }

    #[test]
    fn without_a_mirror_there_is_advice_and_no_guess() {
        let error = backports_to_add(&[]).unwrap_err().to_string();
        assert!(error.contains("by hand"), "{error}");
    }

    #[test]
    fn the_plan_can_be_typed() {
        let plan = Plan {
            add_source: backports_to_add(&parse_deb822(PLAIN)).unwrap(),
            from_backports: QEMU_PACKAGES.to_vec(),
            from_release: vec!["ovmf"],
        };
        let text = plan.commands().join("\n");
        assert!(
            text.starts_with("cat > /etc/apt/sources.list.d/keyframe-backports.sources <<'END'\n# Added"),
            "{text}"
        );
        assert!(text.contains("\nSigned-By: /k.gpg\nEND\napt-get update\n"), "{text}");
        assert!(
            text.contains("install -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils\n"),
            "{text}"
        );
        assert!(text.ends_with("apt-get install -y --no-install-recommends ovmf"), "{text}");
    }

    #[test]
    fn nothing_missing_means_no_installs() {
        assert!(Plan::default().installs().is_empty());
    }
}
