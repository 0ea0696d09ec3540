//! A machine of 1 GiB with its running state comes back straight from a repository, here and in a bucket, and becomes wholly local;
//! beside it, `restore` of the same point.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome};
use serde_json::{Value, json};

use super::incremental::fill;
use crate::bench::guest::Ram;
use crate::bench::samples::Samples;
use crate::{paths, run, say};

const WITHIN: Duration = Duration::from_secs(300);
/// A disk whose bytes half compress.
const DISK_MIB: u64 = 2048;

/// Booting from one repository.
#[derive(Default)]
pub struct Booted {
    /// From typing the command until vCPUs run, as it tells.
    pub running: Samples,
    /// From typing the command until the guest says something.
    pub visible: Samples,
    /// From typing the command until the repository is needed no more.
    pub local: Samples,
}

impl Booted {
    fn to_json(&self) -> Value {
        json!({"running": self.running.to_json(), "visible": self.visible.to_json(), "local": self.local.to_json()})
    }
}

/// What it came to.
#[derive(Default)]
pub struct Figures {
    /// From a directory.
    pub here: Booted,
    /// From a bucket on this host, nothing cached.
    pub bucket: Booted,
    /// `restore --as` from the directory, the whole command.
    pub restore: Samples,
}

impl Figures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({"here": self.here.to_json(), "bucket": self.bucket.to_json(), "restore": self.restore.to_json()})
    }
}

/// An S3 server on this host; it ends when dropped.
struct Bucket {
    server: Child,
    environment: Vec<(String, String)>,
}

impl Bucket {
    fn start() -> Result<Self> {
        let build = ["build", "--release", "--package", "keyframe-test-s3"];
        run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
        let program = paths::target().join("release/keyframe-test-s3");
        let mut command = run::command(&program.display().to_string(), [""; 0]);
        let mut server =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run the server")?;
        let lines = BufReader::new(server.stdout.take().context("its output is piped")?).lines();
        let mut environment = Vec::new();
        for line in lines {
            let line = line.context("the server does not say where it is")?;
            let Some((name, value)) = line.split_once('=') else { break };
            environment.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self { server, environment })
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        // It ends with its input.
        let _ended = self.server.wait();
    }
}

/// A repository and how it is reached.
struct Place {
    environment: Vec<(String, String)>,
}

impl Place {
    fn new(home: &Home, repository: &str, more: &[(String, String)]) -> Result<Self> {
        let key = home.file(&format!("key-{}", more.len()));
        let own = [("KEYFRAME_REPO", repository.to_owned()), ("KEYFRAME_KEY_FILE", key.display().to_string())];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let place = Self { environment: own.into_iter().chain(more.iter().cloned()).collect() };
        place.run(home, &["repo", "init"])?;
        Ok(place)
    }

    fn run(&self, home: &Home, words: &[&str]) -> Result<Outcome> {
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Ok(home.run_with(&environment, words)?.succeeded()?)
    }

    fn boot(&self, home: &Home, figures: &mut Booted) -> Result<()> {
        let machine = Machine::existing(home, "again");
        let begun = Instant::now();
        let made = self.run(home, &["boot", "worker", "--as", "again", "--no-cache", "--json"])?;
        machine.serial()?.next_heartbeat(Mark::START, WITHIN)?;
        figures.visible.push(begun.elapsed());
        figures.running.push_ms(made.number("running_ms")?);
        home.run(["boot", "--wait", "again"])?.succeeded()?;
        figures.local.push(begun.elapsed());
        gone(home, "again")
    }
}

fn gone(home: &Home, name: &str) -> Result<()> {
    home.run(["vm", "stop", name, "--force"])?.succeeded()?;
    home.run(["vm", "remove", name])?.succeeded()?;
    Ok(())
}

/// Measures, in turns.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &SmallGuest, rounds: u64) -> Result<Figures> {
    let image = home.file("boot.raw");
    fill(&image, DISK_MIB)?;
    let ram = Ram::LEAST;
    let words = format!("{} checker.disks=vda", ram.busy());
    let spec = MachineSpec::small(guest, &ram.option(), &words).disk(&home.empty_disk("boot.qcow2", "1G")?);
    let machine = Machine::start(home, "worker", &spec.disk(&image).option("--accel", "tcg"))?;
    machine.serial()?.wait_for(Mark::START, "READY", WITHIN)?;
    machine.serial()?.next_heartbeat(Mark::START, WITHIN)?;
    let bucket = Bucket::start()?;
    let here = Place::new(home, &home.file("boot-repo").display().to_string(), &[])?;
    let there = Place::new(home, "s3://bucket/boot", &bucket.environment)?;
    for place in [&here, &there] {
        place.run(home, &["backup", "worker", "--memory", "--no-cache"])?;
    }
    gone(home, "worker")?;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say::note(format_args!("round {round}"));
        here.boot(home, &mut figures.here)?;
        there.boot(home, &mut figures.bucket)?;
        let begun = Instant::now();
        here.run(home, &["restore", "worker", "--as", "again"])?;
        figures.restore.push(begun.elapsed());
        home.run(["vm", "remove", "again"])?.succeeded()?;
    }
    std::fs::remove_dir_all(home.file("boot-repo"))?;
    std::fs::remove_file(&image)?;
    Ok(figures)
}
