//! A place to work in, and the command line as a person has it.
#![allow(dead_code)] // each test uses some of it

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A directory with a home, and the variables of a session.
pub struct Bench {
    pub dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// Ended so.
    #[track_caller]
    pub fn with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

impl Bench {
    /// With a repository in a directory, opened by a key file.
    pub fn new() -> Self {
        let mut bench = Self::bare();
        bench.set("KEYFRAME_REPO", &bench.path("repo").display().to_string());
        bench.set("KEYFRAME_KEY_FILE", &bench.path("key").display().to_string());
        bench.run(&["repo", "init"]).with(0);
        bench
    }

    /// Without any repository.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir, variables: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(known, _)| known != name);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyframe"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).envs(self.variables.iter().cloned());
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).output().unwrap())
    }

    /// A file of these pages: 0 is a hole.
    pub fn image(&self, name: &str, pages: &[u8]) -> Vec<u8> {
        let bytes: Vec<u8> = pages.iter().flat_map(|byte| page(*byte)).collect();
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    /// Everything below a directory, by name.
    pub fn contents(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        files(&self.path(name)).into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }
}

pub fn ended(output: Output) -> Ended {
    Ended {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A page that compresses badly and is the same each time.
pub fn page(seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    if seed == 0 { vec![0; 4096] } else { (0..512).flat_map(|_| next().to_le_bytes()).collect() }
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
