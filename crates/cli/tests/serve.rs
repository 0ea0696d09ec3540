//! `keyframe serve` as a process of its own, without machines: what a signal does to it.

mod bench;

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bench::Bench;
use rustix::process::{Pid, Signal, kill_process};

const POLICY: &str = "[policy.all]\nmachines = { names = [\"*\"] }\n[policy.all.snapshot]\nschedule = \"hourly UTC\"\nkeep = { last = 5 }\n";

/// Killed when the test is over.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Served {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How often policies were read because of the signal, and what came of it.
fn read_again(bench: &Bench) -> Vec<String> {
    let log = bench.run(&["--json", "audit", "list"]).with(0).json();
    let entries = log["entries"].as_array().unwrap().iter();
    let ours = entries.filter(|entry| entry["who"] == "SIGHUP" && entry["what"] == "read policies");
    ours.map(|entry| entry["result"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_hangup_reads_policies_again_and_ends_nothing() {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_HOME", &bench.path("machines").display().to_string());
    fs::create_dir_all(bench.path("machines/policies")).unwrap();
    let mut command = bench.command(&["serve"]);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut served = Served(spawned.unwrap());
    let shown = || bench.run(&["--json", "status"]);
    until("it serves", || shown().status == 0);
    served.signal(Signal::HUP);
    until("policies are read again", || read_again(&bench) == ["they count"]);
    // What is in the files then is what counts.
    fs::write(bench.path("machines/policies/a.toml"), POLICY).unwrap();
    served.signal(Signal::HUP);
    let file = bench.path("machines/policies/a.toml").display().to_string();
    until("its file counts", || shown().with(0).json()["policies"]["files"][0] == *file);
    fs::write(bench.path("machines/policies/a.toml"), POLICY.replace("hourly", "whenever")).unwrap();
    served.signal(Signal::HUP);
    let mistake = "a mistake: what was in force before stays";
    until("the mistake is told", || read_again(&bench).last().is_some_and(|last| last == mistake));
    assert_eq!(shown().with(0).json()["policies"]["usable"], false);
    assert!(served.0.try_wait().unwrap().is_none(), "a hangup ended it");
    served.signal(Signal::TERM);
    let mut ended = None;
    until("it ends", || {
        ended = served.0.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
}
