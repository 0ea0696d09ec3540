//! The daemon as a whole, without machines: what it does about addresses, signals and its end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keyframe_daemon::Doors;
use keyframe_daemon::access::{Role, Tokens};
use keyframe_daemon::approvals::Decision;
use keyframe_daemon::audit;
use keyframe_daemon::catalog::Catalog;
use keyframe_daemon::deeds::Deed;
use keyframe_daemon::server;
use keyframe_daemon::service::{Config, Granted, Service, Wish, catalog_file, directory};
use keyframe_engine::Home;
use keyframe_types::VmName;
use serde_json::json;

fn config(home: &Path, reload: &Arc<AtomicBool>) -> Config {
    Config {
        home: Home::open(home).unwrap(),
        policies: Vec::new(),
        program: "false".into(),
        version: "test".to_owned(),
        reload: Arc::clone(reload),
    }
}

fn within(seconds: u64, is: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn an_address_that_is_taken_keeps_nothing_else_from_being_served_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let reload = Arc::new(AtomicBool::new(false));
    let (config, over) = (config(&home, &reload), Arc::new(AtomicBool::new(false)));
    let serve = directory(&config.home);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    let ending = Arc::clone(&over);
    let daemon = std::thread::spawn(move || {
        let doors = Doors { listen: Some(address), ..Doors::default() };
        keyframe_daemon::serve(config, doors, &ending, |unheard| tell.send(unheard.map(str::to_owned)).unwrap())
    });
    let unheard = told.recv_timeout(Duration::from_secs(20)).expect("it serves").expect("and says what it cannot");
    assert!(unheard.contains(&address.to_string()) && unheard.contains("in use"), "{unheard}");
    assert!(serve.join("api.sock").exists());
    let alerts = || Catalog::reader(&catalog_file(&serve)).and_then(|catalog| catalog.alerts()).unwrap_or_default();
    assert!(within(10, || alerts().iter().any(|alert| alert.id == "listen")), "{:?}", alerts());
    let (head, mut happenings) = asked(&serve, "/api/v1/events");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    drop(taken);
    assert!(within(20, || TcpStream::connect(address).is_ok()), "nobody listens");
    assert!(within(20, || alerts().iter().all(|alert| alert.id != "listen")), "{:?}", alerts());
    // Who listens hears of it as webhooks do.
    let mut heard = String::new();
    while !heard.contains("alert-cleared") {
        heard.clear();
        assert!(happenings.read_line(&mut heard).unwrap() > 0, "the stream ended");
    }
    let document: serde_json::Value = serde_json::from_str(heard.trim().strip_prefix("data:").unwrap()).unwrap();
    assert_eq!((&document["schema"], &document["id"]), (&json!("keyframe.event/1"), &json!("listen")), "{document}");
    drop(happenings);
    // What a signal asks for is done, and on record.
    let read = || audit::read(&serve).unwrap().0.iter().filter(|entry| entry.who == "SIGHUP").count();
    assert_eq!(read(), 0);
    reload.store(true, Ordering::Relaxed);
    assert!(within(10, || read() == 1), "policies were not read again");
    over.store(true, Ordering::Relaxed);
    daemon.join().unwrap().unwrap();
}

#[test]
fn who_asks_while_it_ends_is_told_that() {
    let dir = tempfile::tempdir().unwrap();
    let reload = Arc::new(AtomicBool::new(false));
    let over = Arc::new(AtomicBool::new(true));
    let (service, shared) = Service::start(config(&dir.path().join("home"), &reload), &over).unwrap();
    assert!(!shared.view().overview.draining);
    service.run(&over, || {});
    assert!(shared.view().overview.draining);
}

/// Asks on a daemon's socket; the head of the answer, and what reads the rest.
fn asked(serve: &Path, path: &str) -> (String, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(server::socket(serve)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(answer.read_line(&mut head).unwrap() > 0, "{head}");
    }
    (head, answer)
}

#[test]
fn who_opens_stream_upon_stream_is_told_that_it_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let reload = Arc::new(AtomicBool::new(false));
    let (config, over) = (config(&dir.path().join("home"), &reload), Arc::new(AtomicBool::new(false)));
    let serve = directory(&config.home);
    let (tell, told) = mpsc::channel();
    let ending = Arc::clone(&over);
    let serving = move || keyframe_daemon::serve(config, Doors::default(), &ending, |_| tell.send(()).unwrap());
    let daemon = std::thread::spawn(serving);
    told.recv_timeout(Duration::from_secs(20)).expect("it serves");
    let mut streams = Vec::new();
    for _ in 0..16 {
        let (head, stream) = asked(&serve, "/api/v1/events");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/event-stream"), "{head}");
        streams.push(stream);
    }
    let (head, mut answer) = asked(&serve, "/api/v1/events");
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap()];
    answer.read_exact(&mut body).unwrap();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&body).unwrap(),
        serde_json::json!({
            "error": "too many streams of events are open for you",
            "advice": "close some: each window of the dashboard has one",
        })
    );
    // Everything else is answered as ever; and one that was closed makes room for another.
    assert!(asked(&serve, "/api/v1/overview").0.starts_with("HTTP/1.1 200 "));
    streams.pop();
    assert!(
        within(20, || asked(&serve, "/api/v1/events").0.starts_with("HTTP/1.1 200 ")),
        "there is room for one more"
    );
    drop(streams);
    over.store(true, Ordering::Relaxed);
    daemon.join().unwrap().unwrap();
}

fn deed(wanted: serde_json::Value) -> Deed {
    Deed::of(&VmName::new("db").unwrap(), serde_json::from_value(wanted).unwrap()).unwrap()
}

#[test]
fn no_way_into_the_queue_leads_around_a_second_person() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let policies = home.join("policies");
    std::fs::create_dir_all(&policies).unwrap();
    let rule = |asked_for: &str| {
        std::fs::write(policies.join("host.toml"), format!("[host.approval]\nasked_for = {asked_for}\n")).unwrap();
    };
    rule("[\"delete\", \"discard\", \"fork\", \"stop\"]");
    let reload = Arc::new(AtomicBool::new(false));
    let over = Arc::new(AtomicBool::new(false));
    let (service, shared) = Service::start(config(&home, &reload), &over).unwrap();
    let ending = Arc::clone(&over);
    let serving = std::thread::spawn(move || service.run(&ending, || {}));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let wish = |wish, by: &str| runtime.block_on(shared.wish(wish, by));
    let asking = "the policies ask for a second person's approval";
    let none = "there is no machine db";
    let deletion = json!({"action": "delete", "snapshots": ["0123456789abcdef"]});
    for (wanted, says) in [
        (deletion.clone(), asking),
        (json!({"action": "revert", "snapshot": "x", "discard": true}), asking),
        (json!({"action": "fork", "snapshot": "x", "name": "y"}), asking),
        (json!({"action": "stop"}), asking),
        (json!({"action": "stop", "force": true}), asking),
        // The scheduler itself was asked for these.
        (json!({"action": "revert", "snapshot": "x"}), none),
        (json!({"action": "start"}), none),
        (json!({"action": "snapshot"}), none),
    ] {
        let said = wish(Wish::Do(deed(wanted.clone())), "uid 0").unwrap_err().to_string();
        assert!(said.starts_with(says), "{wanted}: {said}");
    }
    // What waits, waits on when the policies ask for nothing any more; and whose machine is gone is not done.
    let Granted::Request(waiting) = wish(Wish::AskFor(deed(deletion.clone())), "token ops").unwrap() else {
        panic!("it does not wait");
    };
    rule("[]");
    wish(Wish::Reload, "uid 0").unwrap();
    let said = wish(Wish::Do(deed(deletion)), "token ops").unwrap_err().to_string();
    assert!(said.starts_with(none), "{said}");
    assert_eq!(shared.view().overview.counts.approvals, 1);
    let approve =
        |by| wish(Wish::Decide(waiting.id.clone(), Decision::Approve, Role::Admin), by).unwrap_err().to_string();
    assert!(approve("token ops").contains("another person"));
    assert!(approve("token boss").contains("token ops asked for"), "there is no such token");
    let tokens = Tokens::of(&directory(&Home::open(&home).unwrap()));
    tokens.add("ops", Role::Admin, Timestamp::now()).unwrap();
    assert!(approve("token boss").contains("may not any more"), "this one was made later");
    let Granted::Request(another) = wish(Wish::AskFor(deed(json!({"action": "stop"}))), "uid 7").unwrap() else {
        panic!("it does not wait");
    };
    let decide = |decision, by| wish(Wish::Decide(another.id.clone(), decision, Role::Admin), by);
    assert!(decide(Decision::Approve, "uid 0").unwrap_err().to_string().contains("no machine db any more"));
    assert!(matches!(decide(Decision::Withdraw, "uid 7"), Ok(Granted::Request(_))));
    over.store(true, Ordering::Relaxed);
    serving.join().unwrap();
    // The next daemon has it still.
    let (_service, shared) = Service::start(config(&home, &reload), &over).unwrap();
    assert_eq!(shared.view().approvals[0], *waiting);
    assert_eq!(shared.view().overview.counts.approvals, 1);
}
