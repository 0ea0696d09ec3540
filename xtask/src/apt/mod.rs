//! Debian's package tools, as far as set-up and guests need them.

pub mod sources;
pub mod version;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run;
use sources::AptSource;

/// Where apt keeps its sources.
pub const SOURCES_DIR: &str = "/etc/apt/sources.list.d";
/// Where a QEMU for Debian 12 is that is new enough.
pub const BACKPORTS: &str = "bookworm-backports";

/// Every source that apt on this machine knows, of both notations.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn machine_sources() -> Result<Vec<AptSource>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(list) = fs::read_dir(SOURCES_DIR) {
        files.extend(list.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.exists()) {
        let read = || fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("sources") => found.extend(sources::parse_deb822(&read()?)),
            Some("list") => found.extend(sources::parse_one_line(&read()?)),
            _ => {}
        }
    }
    Ok(found)
}

/// Those of `packages` that are not installed.
///
/// # Errors
/// When dpkg cannot be run.
pub fn missing<'p>(packages: &[&'p str]) -> Result<Vec<&'p str>> {
    let mut query = run::command("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Status}\n"]);
    let output = query.args(packages).output().context("cannot run dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let states: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    Ok(packages.iter().copied().filter(|package| states.get(package) != Some(&"installed")).collect())
}

/// The package that a meta package stands for: its first dependency whose name starts with `prefix`.
///
/// # Errors
/// When apt knows no such package.
pub fn dependency_of(package: &str, prefix: &str) -> Result<String> {
    let shown = run::text(&mut run::command("apt-cache", ["show", "--no-all-versions", package]))?;
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let names = depends.split([',', '|']).filter_map(|name| name.split_whitespace().next());
    let mut fitting = names.filter(|name| name.starts_with(prefix));
    let found = fitting.next().with_context(|| format!("{package} depends on no {prefix}*"))?;
    Ok(found.to_owned())
}

/// Downloads a package's file into `into`, without installing it.
///
/// # Errors
/// When apt cannot, for instance because its lists are older than the mirror: `apt-get update` helps.
pub fn download(package: &str, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    run::quiet(run::command("apt-get", ["download", package]).current_dir(into))?;
    let prefix = format!("{package}_");
    let list = fs::read_dir(into).with_context(|| format!("cannot list {}", into.display()))?;
    let mut files = list.filter_map(|entry| Some(entry.ok()?.path()));
    let is_it = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    files.find(is_it).with_context(|| format!("apt-get download left no {prefix}*.deb in {}", into.display()))
}
