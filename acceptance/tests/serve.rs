//! The daemon with a real guest: what is owed comes by itself, killed or not; who may not is refused. Needs QEMU.

mod pile;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keyframe_acceptance::daemon::free_port;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::small_fs::SmallFs;
use keyframe_acceptance::{Daemon, Home, Machine, Repository, Result};
use serde_json::{Value, json};

use pile::{SECOND, assert_works, worker_with};

const OVERVIEW: &str = "/api/v1/overview";

fn policies(home: &Home, repository: &Repository) -> Result<()> {
    let place = repository.in_policy();
    let text = format!(
        r#"
        [policy.often]
        machines = {{ names = ["*"] }}
        objectives = {{ rpo = "10m", rto = "5m" }}
        [policy.often.snapshot]
        schedule = "*:*:0/10"
        keep = {{ last = 2 }}
        [[policy.often.backup]]
        name = "local"
        {place}
        schedule = "*:*:0/15"
        keep = {{ last = 2 }}
        lock_days = 1
        [policy.often.drill]
        schedule = "hourly"
        what = "point"
        probes = ["serial=token"]
        "#
    );
    home.write_policies("often.toml", &text)
}

fn worker(home: &Home) -> Result<Machine<'_>> {
    worker_with(home, "worker", &["a"])
}

fn names(home: &Home) -> Result<Vec<String>> {
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    Ok(listed.list("snapshots")?.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Jobs that ended well, of one kind.
fn done(daemon: &Daemon<'_>, kind: &str) -> Result<usize> {
    let jobs = daemon.get("/api/v1/jobs?state=done&limit=1000")?.json();
    Ok(jobs["jobs"].as_array().map_or(0, |jobs| jobs.iter().filter(|job| job["kind"] == kind).count()))
}

fn wait_until_done(daemon: &Daemon<'_>, kind: &str, count: usize) -> Result<()> {
    let begun = Instant::now();
    while done(daemon, kind)? < count {
        assert!(begun.elapsed() < 120 * SECOND, "{}", daemon.get("/api/v1/jobs")?.json());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn what_is_owed_comes_by_itself_and_once_whatever_is_killed() -> Result<()> {
    let home = Home::new("serve")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    policies(&home, &repository)?;
    let daemon = Daemon::start(&home, &[])?;
    wait_until_done(&daemon, "drill", 1)?;
    let shown = daemon.wait_for(OVERVIEW, 30 * SECOND, |shown| shown["machines"][0]["verdict"] == "protected")?;
    let row = &shown["machines"][0];
    assert_eq!(row["verdict"], "protected", "{shown}");
    assert_eq!((&row["rpo"]["met"], &row["rto"]["met"]), (&json!(true), &json!(true)), "{row}");
    assert_eq!(home.run(["status", "--check"])?.status, Some(0));

    // Killed in the middle of a command, several times: the command goes on, and the next daemon takes it up.
    let mut daemon = daemon;
    for _ in 0..3 {
        let at_work = |shown: &Value| shown["counts"]["jobs_running"] == 1;
        let shown = daemon.wait_for(OVERVIEW, 30 * SECOND, at_work)?;
        assert!(at_work(&shown), "{shown}");
        daemon.kill()?;
        daemon = Daemon::start(&home, &[])?;
    }
    let before = done(&daemon, "snapshot")?;
    wait_until_done(&daemon, "snapshot", before + 2)?;
    let second = home.run(["serve"])?;
    assert_eq!(second.status, Some(11), "{}", second.stderr);

    // A job under way has made its point and not locked it yet, or stands on a snapshot of its own.
    assert_eq!(daemon.post("/api/v1/pause", &json!({}))?.status, 200);
    let under_way = |job: &Value| job["ended"].is_null() && job["began"].is_string();
    let quiet = |shown: &Value| !shown["jobs"].as_array().unwrap().iter().any(under_way);
    let shown = daemon.wait_for(OVERVIEW, 60 * SECOND, quiet)?;
    assert!(quiet(&shown), "{shown}");
    let jobs = daemon.get("/api/v1/jobs?limit=1000")?.json();
    let jobs = jobs["jobs"].as_array().unwrap();
    let failed: Vec<&Value> = jobs.iter().filter(|job| job["state"] == "failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    let dues: Vec<String> =
        jobs.iter().filter(|job| job["kind"] == "snapshot").map(|job| job["due"].to_string()).collect();
    assert_eq!(dues.iter().collect::<BTreeSet<_>>().len(), dues.len(), "one of each time: {dues:?}");
    let points = repository.run(&home, &["points", "worker", "--json"])?.succeeded()?;
    let tags: Vec<String> = points.list("points")?.iter().map(|point| point["tags"].to_string()).collect();
    assert_eq!(tags.iter().collect::<BTreeSet<_>>().len(), tags.len(), "one of each job: {tags:?}");
    assert!(points.list("points")?.iter().all(|point| point["locked_until"].is_string()), "{}", points.stdout);
    let note = points.list("points")?.last().unwrap()["note"].as_str().unwrap_or_default().to_owned();
    let anchored = note.rsplit(' ').next().unwrap_or_default().to_owned();
    home.run(["audit", "verify", "--head", &anchored])?.succeeded()?;
    let taken = names(&home)?;
    assert!(taken.len() <= 3 && taken.iter().all(|name| name.starts_with("auto-")), "{taken:?}");
    assert_works(&machine, "after all that")?;
    machine.assert_intact(Mark::START)?;
    assert_eq!(daemon.post("/api/v1/resume", &json!({}))?.status, 200);

    // Without it the command line works as ever, and what a person took stays.
    home.run(["snapshot", "worker", "--name", "mine"])?.succeeded()?;
    let before = done(&daemon, "snapshot")?;
    wait_until_done(&daemon, "snapshot", before + 3)?;
    assert!(names(&home)?.contains(&"mine".to_owned()));
    daemon.kill()?;
    home.run(["snapshot", "worker", "--disk-only", "--name", "alone"])?.succeeded()?;
    assert_eq!(home.run(["status", "--check"])?.status, Some(3));
    Ok(())
}

#[test]
fn a_policy_with_a_mistake_leaves_what_was_in_force_and_is_told() -> Result<()> {
    let home = Home::new("serve-mistake")?;
    worker(&home)?;
    let repository = Repository::init(&home)?;
    policies(&home, &repository)?;
    let daemon = Daemon::start(&home, &[])?;
    wait_until_done(&daemon, "backup", 1)?;
    let file = home.path().join("policies/often.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("*:*:0/10", "whenever")).unwrap();
    let shown = daemon.wait_for(OVERVIEW, 20 * SECOND, |shown| shown["policies"]["usable"] == false)?;
    assert_eq!(shown["policies"]["usable"], false, "{shown}");
    let alert = shown["alerts"].as_array().unwrap().iter().find(|alert| alert["id"] == "policies").unwrap();
    assert_eq!(alert["severity"], "critical");
    assert!(alert["what"].as_str().unwrap().contains("often.toml:"), "{alert}");
    assert_eq!(home.run(["status", "--check"])?.status, Some(2));
    let before = done(&daemon, "snapshot")?;
    wait_until_done(&daemon, "snapshot", before + 1)?;
    wait_until_done(&daemon, "drill", 1)?;
    // The repository goes away, and somebody hears of it; the guest does not.
    let away = repository.path().with_file_name("away");
    std::fs::rename(repository.path(), &away).unwrap();
    let waits = |shown: &Value| {
        let jobs = shown["jobs"].as_array().unwrap();
        jobs.iter().any(|job| job["kind"] == "backup" && job["state"] == "waiting" && job["what"].is_string())
    };
    let shown = daemon.wait_for(OVERVIEW, 60 * SECOND, waits)?;
    assert!(waits(&shown), "{shown}");
    assert!(!repository.path().exists(), "what was on its way there has made directories anew");
    std::fs::rename(&away, repository.path()).unwrap();
    // A catalog that is damaged is made anew: nothing is done again at once.
    let before = done(&daemon, "drill")?;
    daemon.kill()?;
    let catalog = home.path().join("serve/catalog.db");
    std::fs::write(&catalog, vec![0x5a; 1 << 16]).unwrap();
    // With its log of changes SQLite would mend it.
    std::fs::remove_file(catalog.with_extension("db-wal")).unwrap();
    let daemon = Daemon::start(&home, &[])?;
    assert_eq!(done(&daemon, "drill")?, before, "records tell of it");
    let shown = daemon.get(OVERVIEW)?.json();
    let told = shown["alerts"].as_array().unwrap().iter().any(|alert| alert["what"].to_string().contains("made anew"));
    assert!(told, "{shown}");
    Ok(())
}

/// Leaves room for nothing on a file system.
fn fill(place: &std::path::Path) {
    use std::io::Write as _;
    for bytes in [1 << 16, 1 << 12, 1] {
        let filler = std::fs::File::options().append(true).create(true).open(place.join("filler"));
        let (mut filler, chunk) = (filler.unwrap(), vec![0x5a; bytes]);
        while filler.write_all(&chunk).is_ok() {}
    }
}

#[test]
fn a_daemon_whose_disk_is_full_begins_nothing_says_so_and_goes_on_when_there_is_room() -> Result<()> {
    let home = Home::new("serve-full")?;
    let serve = home.path().join("serve");
    let _small = SmallFs::mount(&serve, "64m");
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    policies(&home, &repository)?;
    let daemon = Daemon::start(&home, &[])?;
    wait_until_done(&daemon, "snapshot", 2)?;
    let has = |shown: &Value, id: &str| shown["alerts"].as_array().unwrap().iter().any(|alert| alert["id"] == id);
    assert!(!has(&daemon.get(OVERVIEW)?.json(), "ballast") && serve.join("ballast").exists());
    // What was kept for its own records lets it go on.
    fill(&serve);
    let shown = daemon.wait_for(OVERVIEW, 20 * SECOND, |shown| has(shown, "ballast"))?;
    assert!(has(&shown, "ballast"), "{shown}");
    let before = done(&daemon, "snapshot")?;
    wait_until_done(&daemon, "snapshot", before + 1)?;
    // Not any more.
    let shown = daemon.wait_for(OVERVIEW, 60 * SECOND, |shown| {
        fill(&serve);
        has(shown, "unkept")
    })?;
    assert!(has(&shown, "unkept"), "{shown}");
    daemon.kill()?;
    fill(&serve);
    let daemon = Daemon::start(&home, &[])?;
    let shown = daemon.wait_for(OVERVIEW, 30 * SECOND, |shown| has(shown, "unkept"))?;
    assert!(has(&shown, "unkept") && has(&shown, "ballast"), "{shown}");
    let quiet = |shown: &Value| shown["counts"]["jobs_running"] == 0;
    let shown = daemon.wait_for(OVERVIEW, 60 * SECOND, quiet)?;
    assert!(quiet(&shown), "{shown}");
    let (taken, begun) = (names(&home)?, std::time::Instant::now());
    while begun.elapsed() < 25 * SECOND {
        assert!(quiet(&daemon.get(OVERVIEW)?.json()), "something is at work");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(names(&home)?, taken, "two were due");
    assert_eq!(home.run(["status", "--check"])?.status, Some(2));

    std::fs::remove_file(serve.join("filler")).unwrap();
    let fine = |shown: &Value| !["unkept", "audit", "ballast"].iter().any(|id| has(shown, id));
    let shown = daemon.wait_for(OVERVIEW, 30 * SECOND, fine)?;
    assert!(fine(&shown), "{shown}");
    for kind in ["snapshot", "backup"] {
        let before = done(&daemon, kind)?;
        wait_until_done(&daemon, kind, before + 2)?;
    }
    let jobs = daemon.get("/api/v1/jobs?limit=1000")?.json();
    let jobs = jobs["jobs"].as_array().unwrap();
    assert!(jobs.iter().all(|job| job["state"] != "failed"), "{jobs:?}");
    let snapshots = jobs.iter().filter(|job| job["kind"] == "snapshot").map(|job| job["due"].to_string());
    let dues: Vec<String> = snapshots.collect();
    assert_eq!(dues.iter().collect::<BTreeSet<_>>().len(), dues.len(), "one of each time: {dues:?}");
    let points = repository.run(&home, &["points", "worker", "--json"])?.succeeded()?;
    let tags: Vec<String> = points.list("points")?.iter().map(|point| point["tags"].to_string()).collect();
    assert_eq!(tags.iter().collect::<BTreeSet<_>>().len(), tags.len(), "one of each job: {tags:?}");
    home.run(["audit", "verify"])?.succeeded()?;
    assert_works(&machine, "after all that")?;
    machine.assert_intact(Mark::START)
}

fn curl(arguments: &[&str]) -> (u16, String) {
    let mut curl = Command::new("curl");
    let output = curl.args(["-sk", "--max-time", "60", "-w", "\n%{http_code}"]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (status.parse().unwrap_or(0), body.to_owned())
}

/// A log-in whose body comes a byte at a time, and never to its end: what was answered, and after how long.
fn endless_log_in(url: String) -> JoinHandle<(String, Duration)> {
    thread::spawn(move || {
        let mut curl = Command::new("curl");
        curl.args(["-sk", "--max-time", "100", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-T", "."]);
        curl.args(["-H", "X-Keyframe: 1", "-H", "Content-Type: application/json", "-H", "Expect:", &url]);
        let begun = Instant::now();
        let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut body = curl.stdin.take().unwrap();
        let mut next = &b"{\"token\": \""[..];
        while curl.try_wait().unwrap().is_none() && body.write_all(next).is_ok() {
            next = b"x";
            thread::sleep(Duration::from_millis(200));
        }
        drop(body);
        let output = curl.wait_with_output().unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), begun.elapsed())
    })
}

/// Who has all connections that one address gets, and says nothing on them, keeps nobody else from being served.
fn greedy(port: u16, url: &str) {
    let held: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let ask = |from: &str| curl(&["--max-time", "5", "--interface", from, url]).0;
    assert_eq!((ask("127.0.0.2"), ask("127.0.0.1")), (200, 0));
    drop(held);
    let begun = Instant::now();
    while ask("127.0.0.1") != 200 {
        assert!(begun.elapsed() < 30 * SECOND, "it is never served again");
    }
}

#[test]
fn the_network_gets_what_its_token_is_good_for_and_hostile_clients_nothing() -> Result<()> {
    let home = Home::new("serve-network")?;
    let machine = worker(&home)?;
    let port = free_port()?;
    let daemon = Daemon::start(&home, &["--listen", &format!("127.0.0.1:{port}")])?;
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let endless = endless_log_in(url("/api/v1/session"));
    let token = |name: &str, role: &str| -> Result<String> {
        let made = home.run(["token", "add", name, "--role", role, "--json"])?.succeeded()?;
        Ok(format!("Authorization: Bearer {}", made.text("token")?))
    };
    let (reader, operator, admin) = (token("eve", "read")?, token("otto", "operate")?, token("anna", "admin")?);
    let actions = url("/api/v1/machines/worker/actions");
    let act = |who: &str, body: &str| {
        let headers = ["-H", who, "-H", "X-Keyframe: 1", "-H", "Content-Type: application/json"];
        curl(&[&headers[..], &["-d", body, &actions]].concat()).0
    };
    assert_eq!(curl(&[&url(OVERVIEW)]).0, 401);
    assert_eq!(curl(&["-H", "Authorization: Bearer kf_00", &url(OVERVIEW)]).0, 401);
    assert_eq!(curl(&["-H", &reader, &url(OVERVIEW)]).0, 200);
    assert_eq!(curl(&["-H", &reader, &url("/metrics")]).0, 200);
    assert_eq!(curl(&[&url("/")]).0, 200, "how to log in is no secret");
    let snapshot = r#"{"action": "snapshot", "note": "--pin"}"#;
    assert_eq!(act(&reader, snapshot), 403);
    assert_eq!(act(&operator, r#"{"action": "stop"}"#), 403);
    assert_eq!(act(&operator, r#"{"action": "delete", "snapshots": ["x"]}"#), 403);
    // What another site's page can make a browser send has no such header.
    let plain = ["-H", &operator, "-H", "Content-Type: application/json", "-d", snapshot, &actions];
    assert_eq!(curl(&plain).0, 403);
    assert_eq!(act(&operator, snapshot), 202);
    let shown =
        daemon.wait_for("/api/v1/jobs?state=done", 60 * SECOND, |jobs| jobs["jobs"][0]["kind"] == "snapshot")?;
    assert_eq!(shown["jobs"][0]["by"], "token otto", "{shown}");
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    let taken = &listed.list("snapshots")?[0];
    assert_eq!(
        (taken["note"].as_str(), taken["pinned"].as_bool()),
        (Some("--pin"), Some(false)),
        "a note is no option"
    );
    // A plan says what would be done, and does nothing.
    let id = taken["id"].as_str().unwrap_or_default();
    let deletion = json!({"action": "delete", "snapshots": [id], "plan": true});
    let plan = daemon.post("/api/v1/machines/worker/actions", &deletion)?;
    assert_eq!(plan.status, 200);
    assert!(plan.json()["plan"].to_string().contains(taken["name"].as_str().unwrap()), "{:?}", plan.json());
    assert_eq!(names(&home)?.len(), 1);
    for snapshots in [json!(["--help"]), json!(["a b"]), json!(["../x"]), json!([])] {
        let hostile = json!({"action": "delete", "snapshots": snapshots, "plan": true});
        let answer = daemon.post("/api/v1/machines/worker/actions", &hostile)?;
        assert!((400..500).contains(&answer.status), "{snapshots}: {answer:?}");
    }
    // Tokens that are revoked are worth nothing from then on.
    assert_eq!(act(&admin, r#"{"action": "start", "plan": true}"#), 200);
    home.run(["token", "revoke", "anna"])?.succeeded()?;
    assert_eq!(act(&admin, r#"{"action": "start", "plan": true}"#), 401);
    hostile(&daemon)?;
    greedy(port, &url("/"));
    let (status, after) = endless.join().unwrap();
    assert!(status == "408" && after < 60 * SECOND, "{status} after {after:?}");
    let listed = home.run(["audit", "list", "--json"])?.succeeded()?;
    let told: Vec<&str> = listed.list("entries")?.iter().filter_map(|entry| entry["who"].as_str()).collect();
    assert!(told.contains(&"token otto") && told.iter().any(|who| who.starts_with("uid ")), "{told:?}");
    home.run(["audit", "verify"])?.succeeded()?;
    let log = home.path().join("serve/audit.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replacen("token otto", "token eve", 1)).unwrap();
    assert_eq!(home.run(["audit", "verify"])?.status, Some(1));
    assert!(!text.contains(reader.rsplit(' ').next().unwrap()), "no token is in a log");
    machine.assert_intact(Mark::START)
}

/// Huge bodies, slow heads, tricks with paths, what is no request at all: refused, and the next one is served.
fn hostile(daemon: &Daemon<'_>) -> Result<()> {
    let huge = json!({"action": "snapshot", "note": "x".repeat(1 << 20)});
    assert_eq!(daemon.post("/api/v1/machines/worker/actions", &huge)?.status, 413);
    for path in [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/drills/..%2f..%2fetc/page.html",
        "/api/v1/machines/..%2f..",
        "/api/v1/jobs/..%2fx",
    ] {
        let answer = daemon.get(path)?;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("root:"), "{path}");
    }
    for request in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 200_000]] {
        let answer = daemon.raw(request);
        assert!(answer.map_or(true, |answer| answer.status != 200));
    }
    // A head that never ends is not waited for.
    let begun = Instant::now();
    daemon.raw(b"GET / HTTP/1.1\r\nHost: x\r\n")?;
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    let answer = daemon.get("/")?;
    assert_eq!(answer.status, 200);
    let head = answer.head.to_lowercase();
    assert!(head.contains("content-security-policy: default-src 'self'") && head.contains("nosniff"), "{head}");
    Ok(())
}
