//! `keyframe serve` as a process of its own, without machines: what a signal does to it, and a service manager.

mod bench;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bench::Bench;
use rustix::process::{Pid, Signal, kill_process};

const POLICY: &str = "[policy.all]\nmachines = { names = [\"*\"] }\n[policy.all.snapshot]\nschedule = \"hourly UTC\"\nkeep = { last = 5 }\n";

/// As `/proc/PID/fdinfo` tells it, whatever the C library calls it.
const O_CLOEXEC: u32 = 0o2_000_000;

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

impl Served {
    /// Started as a service manager does: with these sockets at the descriptors 3 and 4.
    fn with_sockets(bench: &Bench, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Self {
        let own = bench.command(&["serve"]);
        let mut command = Command::new("sh");
        command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .args(["-c", "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$0\" serve"]);
        command.arg(own.get_program()).current_dir(bench.dir.path());
        Self(command.stdin(Stdio::from(first.into())).stdout(Stdio::from(second.into())).spawn().unwrap())
    }

    /// Asked to end, as by a service manager.
    fn ended(self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ends()
    }

    /// The status with which it ends.
    fn ends(mut self) -> Option<i32> {
        let mut ended = None;
        until("it ends", || {
            ended = self.0.try_wait().unwrap();
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }
}

/// A home whose daemon has not been started, and where its socket will be.
fn home() -> (Bench, std::path::PathBuf) {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_HOME", &bench.path("machines").display().to_string());
    fs::create_dir_all(bench.path("machines/serve")).unwrap();
    let socket = bench.path("machines/serve/api.sock");
    (bench, socket)
}

/// Somebody who asks on a socket, whether or not anybody is there to answer.
fn ask(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET /api/v1/overview HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn who_asks_on_a_socket_that_was_there_first_waits_for_the_daemon_and_for_the_next_one() {
    let (bench, socket) = home();
    let listener = UnixListener::bind(&socket).unwrap();
    let other = UnixListener::bind(bench.path("other.sock")).unwrap();
    for _ in 0..2 {
        // Before the daemon is there.
        let (own, others) = (ask(&socket), ask(&bench.path("other.sock")));
        let served = Served::with_sockets(&bench, listener.try_clone().unwrap(), other.try_clone().unwrap());
        for answer in [answer(own), answer(others)] {
            assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("\"machines\""), "{answer}");
        }
        bench.run(&["status"]).with(0);
        for descriptor in [3, 4] {
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", served.0.id())).unwrap();
            let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
            assert!(flags.unwrap() & O_CLOEXEC != 0, "machines that it starts have it, too: {info}");
        }
        assert_eq!(served.ended(), Some(0));
        assert!(socket.exists(), "it is not the daemon's to take away");
    }
}

#[test]
fn a_socket_elsewhere_and_one_that_leads_nowhere_keep_the_homes_own_from_nothing() {
    let (bench, socket) = home();
    let orphan = UnixListener::bind(&socket).unwrap();
    // Another took the name, and was killed.
    fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let network = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = network.local_addr().unwrap();
    let served = Served::with_sockets(&bench, orphan, network);
    until("it serves the home's own", || bench.run(&["status"]).status == 0);
    let token = bench.run(&["token", "add", "reader", "--role", "read"]).with(0).out;
    let get = |token: &str| {
        let mut curl = Command::new("curl");
        let url = format!("https://{address}/api/v1/overview");
        curl.args([
            "--silent",
            "--insecure",
            "--max-time",
            "30",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        let output =
            curl.args(["--header", &format!("Authorization: Bearer {}", token.trim()), &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(get(&token), "200");
    assert_eq!(get("none"), "401", "over the network nobody is believed without a token");
    let mut plain = std::net::TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /api/v1/overview HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut said = Vec::new();
    plain.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP/"), "it speaks without TLS");
    assert_eq!(served.ended(), Some(0));
    assert!(!socket.exists(), "what it made is taken away");
}

#[test]
fn what_is_no_stream_is_not_served() {
    let (bench, socket) = home();
    let datagrams = UnixDatagram::bind(bench.path("datagrams")).unwrap();
    let served = Served::with_sockets(&bench, UnixListener::bind(&socket).unwrap(), datagrams);
    assert_eq!(served.ends(), Some(1));
}

/// Takes one request, answers it, and gives its body.
fn heard(listener: &TcpListener) -> serde_json::Value {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut said, mut some) = (Vec::new(), [0; 4096]);
    let body = loop {
        let count = stream.read(&mut some).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&some[..count]);
        let Some(head) = said.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&said[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if said.len() >= head + 4 + length.unwrap() {
            break serde_json::from_slice(&said[head + 4..]).unwrap();
        }
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
    body
}

#[test]
fn a_mistake_in_a_policy_finds_the_person_and_so_does_its_end() {
    let (bench, socket) = home();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!(
        "[[notify.webhook]]\nurl = \"http://{}/\"\nevents = [\"alert-raised\", \"alert-cleared\"]\n",
        listener.local_addr().unwrap()
    );
    fs::create_dir_all(bench.path("machines/policies")).unwrap();
    let policies = bench.path("machines/policies/a.toml");
    fs::write(&policies, format!("{hook}{POLICY}")).unwrap();
    let served = Served::with_sockets(
        &bench,
        UnixListener::bind(&socket).unwrap(),
        UnixListener::bind(bench.path("x")).unwrap(),
    );
    until("it serves", || bench.run(&["status"]).status == 0);
    fs::write(&policies, format!("{hook}{}", POLICY.replace("hourly", "whenever"))).unwrap();
    served.signal(Signal::HUP);
    let raised = heard(&listener);
    assert_eq!(
        (&raised["what"], &raised["id"], &raised["severity"]),
        (&"alert-raised".into(), &"policies".into(), &"critical".into())
    );
    assert!(
        raised["text"].as_str().unwrap().contains("a.toml")
            && raised["advice"].as_str().unwrap().contains("policy check"),
        "{raised}"
    );
    fs::write(&policies, format!("{hook}{POLICY}")).unwrap();
    served.signal(Signal::HUP);
    let cleared = heard(&listener);
    assert_eq!((&cleared["what"], &cleared["id"]), (&"alert-cleared".into(), &"policies".into()));
    assert_eq!(served.ended(), Some(0));
}

#[test]
fn what_is_typed_is_on_record_where_a_daemon_keeps_one() {
    let (mut bench, _) = home();
    bench.set("KEYFRAME_REPO", &bench.path("repo").display().to_string());
    bench.set("KEYFRAME_KEY_FILE", &bench.path("key").display().to_string());
    bench.run(&["repo", "init"]).with(0);
    let entries = |bench: &Bench| bench.run(&["--json", "audit", "list"]).with(0).json()["entries"].clone();
    assert_eq!(entries(&bench).as_array().map(Vec::len), Some(0), "nobody keeps a record here");
    bench.run(&["token", "add", "anna", "--role", "read"]).with(0);
    bench.run(&["repo", "prune", "--grace", "0"]).with(0);
    bench.run(&["repo", "prune", "--dry-run"]).with(0);
    bench.run(&["repo", "check"]).with(0);
    bench.run(&["delete", "nowhere@x"]).with(10);
    let found = entries(&bench);
    let told: Vec<(&str, &str)> = found.as_array().unwrap()[1..]
        .iter()
        .map(|entry| (entry["what"].as_str().unwrap(), entry["result"].as_str().unwrap()))
        .collect();
    assert_eq!(told[0], ("repo prune", "done"));
    assert!(told.len() == 2 && told[1].0 == "delete" && told[1].1.starts_with("failed with status 10"), "{told:?}");
    assert_eq!(found[1]["arguments"], serde_json::json!(["repo", "prune", "--grace", "0"]));
    assert!(found[1]["who"].as_str().unwrap().starts_with("uid "));
    // What the daemon runs it notes itself.
    bench.set("KEYFRAME_PROGRESS_FILE", &bench.path("progress").display().to_string());
    bench.run(&["repo", "prune", "--grace", "0"]).with(0);
    bench.unset("KEYFRAME_PROGRESS_FILE");
    assert_eq!(entries(&bench), found);
    bench.run(&["audit", "verify"]).with(0);
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
    assert_eq!(served.ended(), Some(0));
}
