//! `cargo xtask demo --serve`: a real machine on a one-minute policy, and the dashboard to watch it on. Points and drills appear by
//! themselves.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use super::stage::{HOME, Stage};
use super::{FILES, LETTER, LETTER_TEXT, VM};
use crate::guests::{self, Guest};
use crate::{paths, run, say, setup};

/// How the demo of the daemon is played.
#[derive(Debug, Clone, Copy, Args)]
pub struct Options {
    /// Show the daemon and its dashboard, with a machine on a one-minute policy, until Ctrl-C
    #[arg(long)]
    pub serve: bool,
    /// With --serve: end after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "serve")]
    pub time: Option<u64>,
    /// With --serve: the port that the dashboard is at
    #[arg(long, value_name = "PORT", requires = "serve", default_value_t = 8443)]
    pub port: u16,
}

const APPEND: &str = "console=ttyS0 quiet panic=-1 checker.mb=64 checker.rate=20 checker.verify=60 checker.disks=vda";
const POLICY: &str = r#"[policy.minute]
machines = { names = ["demo"] }
objectives = { rpo = "5m", rto = "2m" }

[policy.minute.snapshot]
schedule = "minutely"
keep = { last = 5 }

[[policy.minute.backup]]
name = "local"
repository = "REPOSITORY"
key_file = "KEY"
schedule = "minutely"
memory = true
keep = { last = 10 }

[policy.minute.drill]
schedule = "*:0/3"
what = "point"
probes = ["serial=token"]
"#;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// What is to have been seen before it may end by itself.
const EXPECTED: [&str; 3] = ["snapshot", "backup", "drill"];

/// Sets up, builds, and plays it.
///
/// # Errors
/// When something cannot be built, a command fails, or what is owed does not appear in time.
pub fn demo(options: Options) -> Result<()> {
    setup::setup()?;
    let guest = guests::ensure(Guest::Small, false)?;
    say::step("Building Keyframe");
    let build = ["build", "--release", "--package", "keyframe-cli"];
    run::watched(run::command(env!("CARGO"), build).current_dir(paths::root()))?;
    let stage = Stage::open(&paths::target().join("release/keyframe"), &guest)?;
    prepare(&stage)?;
    let seen = watch(&stage, options)?;
    stage.close()?;
    say::note("Everything is cleaned up.");
    let missing: Vec<&str> = EXPECTED.into_iter().filter(|kind| !seen.contains(*kind)).collect();
    ensure!(missing.is_empty(), "this did not appear in time: {}", missing.join(", "));
    Ok(())
}

fn prepare(stage: &Stage) -> Result<()> {
    say::step("A Linux machine with a disk that it works on, and one with files");
    stage.type_quietly("qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "256M"])?;
    stage.write(&Path::new(FILES).join(LETTER), LETTER_TEXT)?;
    stage.type_quietly("mke2fs", &["-q", "-t", "ext4", "-d", FILES, "b.raw", "32M"])?;
    let machine = ["--memory", "256M", "--disk", "a.qcow2", "--disk", "b.raw"];
    let kernel = ["--kernel", "vmlinuz", "--initrd", "initrd", "--append", APPEND];
    stage.keyframe(&[&["vm", "create", VM], &machine[..], &kernel[..]].concat())?;
    stage.keyframe(&["vm", "start", VM])?;
    stage.watched(VM).wait_until_at_work()?;
    say::step("What it is owed");
    stage.keyframe(&["repo", "init"])?;
    let place = |name: &str| stage.path(Path::new(name)).display().to_string();
    let policy = POLICY.replace("REPOSITORY", &place("repo")).replace("KEY", &place("key"));
    stage.write(&Path::new(HOME).join("policies/minute.toml"), &policy)?;
    stage.keyframe(&["policy", "check"])
}

/// Serves, and says what comes by itself; returns the kinds of jobs that were done.
fn watch(stage: &Stage, options: Options) -> Result<BTreeSet<String>> {
    say::step("The daemon");
    let address = format!("127.0.0.1:{}", options.port);
    let mut daemon = stage.leave(&["serve", "--listen", &address])?;
    let begun = Instant::now();
    while stage.look(&["status"]).is_err() {
        if let Some(status) = daemon.try_wait().context("cannot look at keyframe serve")? {
            let mut said = String::new();
            let _ = daemon.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
            bail!("keyframe serve ended: {status}: {}", said.trim());
        }
        ensure!(begun.elapsed() < ANSWERS_WITHIN, "keyframe serve does not answer");
        thread::sleep(LOOK_EVERY);
    }
    let unheard = |alert: &Value| alert["id"] == "listen";
    let taken = stage.look(&["status"])?["alerts"].as_array().is_some_and(|alerts| alerts.iter().any(unheard));
    ensure!(!taken, "somebody listens on {address} already: name another port with --port");
    let made = stage.look(&["token", "add", "you", "--role", "admin"])?;
    let token = made["token"].as_str().context("no token was told")?;
    say::note("");
    say::good(format_args!(
        "the dashboard is at https://{address}/ (its certificate is its own: your browser will ask)"
    ));
    say::good(format_args!("log in with        {token}"));
    say::note("");
    say::note(match options.time {
        Some(seconds) => format!("It goes on for {seconds} seconds."),
        None => "Ctrl-C ends it and cleans up. What comes by itself:".to_owned(),
    });
    let (mut told, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    let over = |begun: Instant| options.time.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds);
    while !over(begun) {
        let status = stage.look(&["status"])?;
        for job in status["jobs"].as_array().into_iter().flatten().rev() {
            let word = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
            let is_over = job["ended"].is_string();
            if is_over && told.insert(word("id")) {
                tell(job, &status);
                if word("state") == "done" {
                    kinds.insert(word("kind"));
                }
            }
        }
        thread::sleep(LOOK_EVERY);
    }
    stage.keyframe(&["status"])?;
    stage.keyframe(&["snapshots", VM])?;
    stage.keyframe(&["drills", "--verify"])?;
    stage.keyframe(&["audit", "verify"])?;
    Ok(kinds)
}

fn tell(job: &Value, status: &Value) {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = word(&job["ended"]).get(11..19).unwrap_or_default().to_owned();
    let verdict = word(&status["machines"][0]["verdict"]);
    let line =
        format!("{time}  {:<9} {:<10} {}   [{verdict}]", word(&job["kind"]), word(&job["state"]), word(&job["what"]));
    if job["state"] == "done" { say::good(line) } else { say::bad(line) }
}
