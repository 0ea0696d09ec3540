//! The client against a scripted peer: order, deadlines, late and foreign replies, full buffers.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keyframe_qmp::client::Options;
use keyframe_qmp::inbox::{Bound, Bounds};
use keyframe_qmp::{Client, Error, EventKind, Incoming};
use serde_json::{Value, json};

const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#;
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// The other end, a line at a time.
struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn say(&mut self, line: &str) {
        self.stream.write_all(line.as_bytes()).and_then(|()| self.stream.write_all(b"\r\n")).unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("heard {line:?}"))
    }

    fn answer(&mut self, request: &Value) {
        self.say(&json!({"return": {}, "id": request["id"]}).to_string());
    }

    fn greet(&mut self) {
        self.say(GREETING);
        let request = self.hear();
        assert_eq!(
            (&request["execute"], &request["arguments"]),
            (&json!("qmp_capabilities"), &json!({"enable": ["oob"]}))
        );
        self.answer(&request);
    }
}

/// A greeted client, and what the other end does after that in a thread of its own.
fn talk(script: impl FnOnce(&mut Peer) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut peer = Peer { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        peer.greet();
        script(&mut peer);
    });
    (Client::from_stream(ours, LONG).unwrap(), thread)
}

fn soon() -> Instant {
    Instant::now() + LONG
}

#[test]
fn waiting_for_one_thing_loses_no_other() {
    let (mut qmp, thread) = talk(|peer| {
        let (first, second) = (peer.hear(), peer.hear());
        peer.say(r#"{"event": "STOP"}"#);
        peer.answer(&second);
        peer.say(r#"{"event": "RESUME"}"#);
        peer.answer(&first);
        peer.hear();
    });
    let first = qmp.send("migrate", &()).unwrap();
    let second = qmp.send("transaction", &()).unwrap();
    assert_eq!(qmp.wait_reply(first, soon()).unwrap().unwrap().command, "migrate");
    assert_eq!(qmp.wait_event(|e| e.kind == EventKind::Resume, soon()).unwrap().unwrap().event.kind, EventKind::Resume);
    let Some(Incoming::Event(stop)) = qmp.next_incoming(soon()).unwrap() else { panic!("no STOP") };
    assert_eq!(stop.event.kind, EventKind::Stop);
    assert_eq!(qmp.wait_reply(second, soon()).unwrap().unwrap().id, second);
    assert!(qmp.next_incoming(Instant::now() + SHORT).unwrap().is_none());
    assert!(matches!(qmp.wait_reply(first, soon()), Err(Error::UnknownRequest { id }) if id == first));
    qmp.send("end", &()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_late_reply_is_not_taken_for_the_next_one() {
    let (mut qmp, thread) = talk(|peer| {
        let slow = peer.hear();
        let quick = peer.hear();
        peer.say(&json!({"return": "late", "id": slow["id"]}).to_string());
        peer.say(&json!({"return": "right", "id": quick["id"]}).to_string());
    });
    qmp.set_timeout(SHORT);
    let before = Instant::now();
    let error = qmp.execute("slow", &()).unwrap_err();
    assert!(matches!(&error, Error::Timeout { command, waited } if command == "slow" && *waited >= SHORT), "{error}");
    assert!(before.elapsed() < LONG && !error.is_fatal());
    qmp.set_timeout(LONG);
    assert_eq!(qmp.execute("quick", &()).unwrap(), json!("right"));
    thread.join().unwrap();
}

#[test]
fn a_reply_not_waited_for_long_enough_can_be_waited_for_again() {
    let (mut qmp, thread) = talk(|peer| {
        let request = peer.hear();
        std::thread::sleep(2 * SHORT);
        peer.answer(&request);
    });
    let id = qmp.send("slow", &()).unwrap();
    assert!(qmp.wait_reply(id, Instant::now()).unwrap().is_none());
    assert!(qmp.wait_reply(id, soon()).unwrap().is_some());
    thread.join().unwrap();
}

#[test]
fn replies_to_a_client_before_us_are_dropped() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut peer = Peer { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        peer.say(r#"{"return": {"stale": true}, "id": 1}"#);
        peer.say(GREETING);
        let request = peer.hear();
        peer.say(r#"{"return": {"stale": true}, "id": "libvirt-7"}"#);
        peer.answer(&request);
    });
    let qmp = Client::from_stream(ours, LONG).unwrap();
    assert_eq!(qmp.foreign_replies(), 2);
    thread.join().unwrap();
}

#[test]
fn times_of_arrival_are_those_of_reading() {
    let (mut qmp, thread) = talk(|peer| {
        peer.hear();
        peer.say(r#"{"event": "STOP"}"#);
        std::thread::sleep(SHORT);
        peer.say(r#"{"event": "RESUME"}"#);
        peer.hear();
    });
    qmp.send("go", &()).unwrap();
    let stop = qmp.next_event(soon()).unwrap().unwrap();
    assert!(stop.at.elapsed() < SHORT);
    let resume = qmp.next_event(soon()).unwrap().unwrap();
    assert!(resume.at - stop.at >= SHORT / 2);
    qmp.send("end", &()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_deadline_holds_while_events_keep_coming() {
    let (mut qmp, thread) = talk(|peer| {
        peer.hear();
        let noise = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n".repeat(100);
        while peer.stream.write_all(noise.as_bytes()).is_ok() {}
    });
    qmp.set_timeout(4 * SHORT);
    let before = Instant::now();
    assert!(matches!(qmp.execute("never", &()), Err(Error::Timeout { .. })));
    assert!(before.elapsed() < LONG / 2);
    assert!(qmp.dropped_events() > 0);
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_flood_of_essential_events_is_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut peer = Peer { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        peer.greet();
        while peer.stream.write_all(b"{\"event\": \"STOP\"}\n").is_ok() {}
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let relay = std::thread::spawn(move || {
        let (to, _) = listener.accept().unwrap();
        let (mut from_us, mut to_peer) = (to.try_clone().unwrap(), ours.try_clone().unwrap());
        let upstream = std::thread::spawn(move || std::io::copy(&mut from_us, &mut to_peer).is_ok());
        let _ends_with_the_client = std::io::copy(&mut (&ours), &mut (&to));
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        upstream.join().unwrap();
    });
    let bound = Bound { messages: 100, bytes: 1 << 20 };
    let mut options = Options::with_timeout(LONG);
    options.inbox = Bounds { droppable: bound, kept: bound };
    // The flood may begin before the negotiation has ended.
    let outcome = Client::connect_with(&path, options).and_then(|mut qmp| qmp.execute("never", &()));
    assert!(matches!(outcome, Err(Error::Overflow { limit_messages: 100, .. })), "{outcome:?}");
    relay.join().unwrap();
    thread.join().unwrap();
}

#[test]
fn a_peer_that_reads_nothing_is_given_up() {
    let (mut qmp, thread) = talk(|peer| {
        std::thread::sleep(6 * SHORT);
        peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    });
    qmp.set_timeout(2 * SHORT);
    let large = "x".repeat(8 << 20);
    let error = qmp.execute("large", &large).unwrap_err();
    assert!(matches!(&error, Error::WriteTimeout { command, .. } if command == "large") && error.is_fatal(), "{error}");
    assert!(matches!(qmp.execute("more", &()), Err(Error::Disconnected { .. })));
    thread.join().unwrap();
}

#[test]
fn two_peers_that_both_write_do_not_wait_for_each_other() {
    let (mut qmp, thread) = talk(|peer| {
        let noise = "{\"event\": \"NOISE\"}\n".repeat(200_000);
        peer.stream.write_all(noise.as_bytes()).unwrap();
        let request = peer.hear();
        peer.answer(&request);
    });
    let large = "x".repeat(4 << 20);
    qmp.execute("large", &large).unwrap();
    thread.join().unwrap();
}

#[test]
fn the_last_words_of_a_peer_are_heard() {
    let (mut qmp, thread) = talk(|peer| peer.say(r#"{"event": "SHUTDOWN", "data": {"guest": false}}"#));
    thread.join().unwrap();
    // Writing fails, the peer being gone; what it said before is still there.
    while qmp.send("query-status", &()).is_ok() {}
    assert_eq!(qmp.next_event(soon()).unwrap().unwrap().event.kind, EventKind::Shutdown);
    assert!(matches!(qmp.next_event(soon()), Err(Error::Disconnected { .. })));
}

#[test]
fn garbage_ends_the_conversation_where_it_stands() {
    let (mut qmp, thread) = talk(|peer| {
        peer.hear();
        peer.say(r#"{"event": "STOP"}"#);
        peer.say("# not JSON");
        peer.say(r#"{"event": "RESUME"}"#);
    });
    qmp.send("x", &()).unwrap();
    assert_eq!(qmp.next_event(soon()).unwrap().unwrap().event.kind, EventKind::Stop);
    let error = qmp.next_event(soon()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }) && error.is_fatal());
    thread.join().unwrap();
}

#[test]
fn a_listener_that_says_nothing_is_told_from_one_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let missing = Client::connect(&path, SHORT).unwrap_err();
    assert!(matches!(&missing, Error::Connect { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(Client::connect(&path, SHORT), Err(Error::NoGreeting { waited, .. }) if waited >= SHORT));
    drop(listener);
    let dead = Client::connect(&path, SHORT).unwrap_err();
    assert!(matches!(&dead, Error::Connect { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused));
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(Client::connect(&long, SHORT), Err(Error::PathTooLong { max: 107, .. })));
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let waiting = UnixStream::connect(&path).unwrap();
    let before = Instant::now();
    let error = Client::connect(&path, SHORT).unwrap_err();
    assert!(before.elapsed() >= SHORT, "{error}");
    assert!(matches!(&error, Error::Connect { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock));
    drop(waiting);
}

#[test]
fn without_oob_such_commands_are_refused_and_not_imitated() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut peer = Peer { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        peer.say(r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, "package": ""}, "capabilities": []}}"#);
        let request = peer.hear();
        assert_eq!(request["arguments"], json!({"enable": []}));
        peer.answer(&request);
    });
    let mut qmp = Client::from_stream(ours, LONG).unwrap();
    assert!(!qmp.has_oob());
    assert!(matches!(qmp.exec_oob("migrate-pause", &()), Err(Error::OobUnavailable { .. })));
    thread.join().unwrap();
}

#[test]
fn a_descriptor_goes_with_its_command_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut peer = Peer { lines: BufReader::new(theirs.try_clone().unwrap()), stream: theirs };
        peer.greet();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let into = &mut [std::io::IoSliceMut::new(&mut bytes)];
        let got = rustix::net::recvmsg(&peer.stream, into, &mut control, rustix::net::RecvFlags::empty()).unwrap();
        let request: Value = serde_json::from_slice(&bytes[..got.bytes]).unwrap();
        let fds: Vec<_> = control
            .drain()
            .flat_map(|message| match message {
                rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        peer.say(&json!({"return": fds.len(), "id": request["id"]}).to_string());
    });
    let mut qmp = Client::from_stream(ours, LONG).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(qmp.execute_with_fd("getfd", &json!({"fdname": "x"}), file.as_fd()).unwrap(), json!(1));
    thread.join().unwrap();
}
