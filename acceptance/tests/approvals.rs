//! Deeds that a second person has to approve: over the network, on the socket, by command, and in a browser. Needs Chromium and its
//! driver, and no guest.

use std::process::Command;
use std::time::Duration;

use keyframe_acceptance::browser::key;
use keyframe_acceptance::daemon::free_port;
use keyframe_acceptance::{Daemon, Home, Page, Result};
use serde_json::{Value, json};

const OVERVIEW: &str = "/api/v1/overview";
const APPROVALS: &str = "/api/v1/approvals";
const ACTIONS: &str = "/api/v1/machines/db/actions";
const SECOND: Duration = Duration::from_secs(1);

fn rule(home: &Home, asked_for: &Value) -> Result<()> {
    home.write_policies("host.toml", &format!("[host.approval]\nasked_for = {asked_for}\nvalid = \"2h\"\n"))
}

/// A machine that does not run, with snapshots of these names.
fn machine(home: &Home, snapshots: &[&str]) -> Result<()> {
    let disk = home.empty_disk("disk.qcow2", "8M")?.display().to_string();
    home.run(["vm", "create", "db", "--memory", "64M", "--disk", &disk])?.succeeded()?;
    for name in snapshots {
        home.run(["snapshot", "db", "--name", name])?.succeeded()?;
    }
    Ok(())
}

fn token(home: &Home, name: &str, role: &str) -> Result<String> {
    let made = home.run(["token", "add", name, "--role", role, "--json"])?.succeeded()?;
    made.text("token").map(str::to_owned)
}

fn names(home: &Home) -> Result<Vec<String>> {
    let listed = home.run(["snapshots", "db", "--json"])?.succeeded()?;
    Ok(listed.list("snapshots")?.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Somebody who comes over the network.
struct Client {
    address: String,
    header: String,
}

impl Client {
    fn new(port: u16, token: &str) -> Self {
        Self { address: format!("https://127.0.0.1:{port}"), header: format!("Authorization: Bearer {token}") }
    }

    fn curl(&self, path: &str, more: &[&str]) -> (u16, Value) {
        let mut curl = Command::new("curl");
        curl.args(["-sk", "--max-time", "60", "-w", "\n%{http_code}", "-H", &self.header]);
        let output = curl.args(more).arg(format!("{}{path}", self.address)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (status.parse().unwrap_or(0), serde_json::from_str(body).unwrap_or_default())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.curl(path, &[])
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.curl(path, &["-H", "X-Keyframe: 1", "-H", "Content-Type: application/json", "-d", &body.to_string()])
    }

    /// The same one, by a cookie.
    fn in_a_session(&self) -> Self {
        let body = json!({"token": self.header.rsplit(' ').next()}).to_string();
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-D", "-", "-H", "X-Keyframe: 1", "-H", "Content-Type: application/json", "-d", &body]);
        let output = curl.arg(format!("{}/api/v1/session", self.address)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let cookie = text.split("keyframe=").nth(1).and_then(|rest| rest.split(';').next());
        Self { address: self.address.clone(), header: format!("Cookie: keyframe={}", cookie.expect("a cookie")) }
    }

    /// Asks for something that has to wait; returns the request.
    fn asks(&self, wanted: &Value) -> Value {
        let (status, answer) = self.post(ACTIONS, wanted);
        assert_eq!((status, &answer["job"]), (202, &Value::Null), "{wanted}: {answer}");
        answer["approval"].clone()
    }

    fn says(&self, decision: &str, request: &Value) -> (u16, Value) {
        self.post(&place(request), &json!({"decision": decision}))
    }
}

fn place(request: &Value) -> String {
    format!("{APPROVALS}/{}", request["id"].as_str().unwrap())
}

fn state(daemon: &Daemon<'_>, request: &Value) -> Result<String> {
    let answer = daemon.get(&place(request))?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(answer.json()["approval"]["state"].as_str().unwrap_or_default().to_owned())
}

fn deletion(name: &str) -> Value {
    json!({"action": "delete", "snapshots": [name]})
}

#[test]
fn a_deed_waits_for_another_person_and_is_then_done_as_it_was_shown() -> Result<()> {
    let home = Home::new("approvals")?;
    machine(&home, &["one", "two", "three"])?;
    rule(&home, &json!(["delete", "discard", "stop"]))?;
    let [ops, boss] = ["ops", "boss"].map(|name| token(&home, name, "admin"));
    let (night, eve) = (token(&home, "night", "restore")?, token(&home, "eve", "read")?);
    let port = free_port()?;
    let listen = format!("127.0.0.1:{port}");
    let listen = ["--listen", listen.as_str()];
    let daemon = Daemon::start(&home, &listen)?;
    let [ops, boss, night, eve] = [&ops?, &boss?, &night, &eve].map(|token| Client::new(port, token));

    // A plan says that it would wait; what needs no approval is told to need none.
    let plan = |wanted: Value| ops.post(ACTIONS, &json!(wanted)).1["approval"].clone();
    assert_eq!(plan(json!({"action": "delete", "snapshots": ["one"], "plan": true}))["valid_s"], 7200);
    assert_eq!(plan(json!({"action": "revert", "snapshot": "one", "discard": true, "plan": true}))["valid_s"], 7200);
    assert_eq!(plan(json!({"action": "revert", "snapshot": "one", "plan": true})), Value::Null);
    assert_eq!(daemon.get(APPROVALS)?.json()["approvals"], json!([]), "a plan asks nobody");

    // It waits, with the command that would be run and what it would do.
    let request = ops.asks(&deletion("one"));
    let arguments = request["arguments"].to_string();
    assert!(arguments.starts_with("[\"delete\",\"db@") && !arguments.contains("one"), "by its id: {arguments}");
    assert!(request["plan"].to_string().contains("would delete db@one"), "{request}");
    assert_eq!((&request["by"], &request["role"]), (&json!("token ops"), &json!("admin")));
    assert_eq!(daemon.get("/api/v1/jobs")?.json()["jobs"], json!([]), "nothing is done");
    let overview = daemon.get(OVERVIEW)?.json();
    let id = format!("approval/{}", request["id"].as_str().unwrap());
    assert!(overview["alerts"].as_array().unwrap().iter().any(|alert| alert["id"] == json!(id)), "{overview}");
    assert_eq!(overview["counts"]["approvals"], 1);
    assert_eq!(eve.get(APPROVALS).1["approvals"], json!([request]), "whoever may look sees it");

    // Not by who asked, not by who may not do it, not by another site's page.
    for decision in ["approve", "refuse"] {
        assert_eq!(ops.says(decision, &request).0, 403, "own");
        assert_eq!(night.says(decision, &request).0, 403, "restore");
        assert_eq!(eve.says(decision, &request).0, 403, "read");
    }
    assert_eq!(boss.says("withdraw", &request).0, 403);
    let body = json!({"decision": "approve"}).to_string();
    assert_eq!(boss.curl(&place(&request), &["-H", "Content-Type: application/json", "-d", &body]).0, 403);
    assert_eq!(boss.says("allow", &request).0, 422);
    assert_eq!(boss.post(&format!("{APPROVALS}/20260101000000-00000000"), &json!({"decision": "approve"})).0, 404);
    assert_eq!(boss.post(&format!("{APPROVALS}/..%2f..%2flock"), &json!({"decision": "approve"})).0, 404);

    // In a session that began with a token one is the same person.
    assert_eq!(ops.in_a_session().says("approve", &request).0, 403);
    assert_eq!(ops.in_a_session().get(APPROVALS).0, 200);

    // It waits over a daemon that is killed. Approved once, it is done once.
    daemon.kill()?;
    let daemon = Daemon::start(&home, &listen)?;
    assert_eq!(state(&daemon, &request)?, "waiting");
    let (status, answer) = boss.says("approve", &request);
    assert_eq!((status, &answer["approval"]["state"]), (200, &json!("approved")), "{answer}");
    assert_eq!(daemon.post(&place(&request), &json!({"decision": "approve"}))?.status, 409);
    assert_eq!(boss.says("refuse", &request).0, 409);
    let job = format!("/api/v1/jobs/{}", answer["approval"]["job"].as_str().unwrap());
    let shown = daemon.wait_for(&job, 60 * SECOND, |shown| shown["job"]["ended"].is_string())?;
    assert_eq!(shown["job"]["state"], "done", "{shown}");
    assert_eq!(shown["job"]["by"], "token ops, approved by token boss");
    assert_eq!(names(&home)?, ["two", "three"]);
    assert_eq!(daemon.get("/api/v1/jobs")?.json()["jobs"].as_array().unwrap().len(), 1);

    // What has the name now is not what was shown; whoever took it away typed that, and was not asked.
    let request = ops.asks(&deletion("two"));
    home.run(["delete", "db@two"])?.succeeded()?;
    home.run(["snapshot", "db", "--name", "two"])?.succeeded()?;
    let (status, answer) = boss.says("approve", &request);
    assert!(status == 409 && answer["error"].to_string().contains("any more"), "{answer}");
    assert_eq!(state(&daemon, &request)?, "waiting");
    assert_eq!(boss.says("refuse", &request).0, 200);
    assert_eq!(state(&daemon, &request)?, "refused");
    let request = ops.asks(&deletion("two"));
    assert_eq!(ops.says("withdraw", &request).0, 200);
    assert_eq!(boss.says("approve", &request).0, 409);

    // Who asked and is not good any more, or another one under that name, does not get it.
    let request = ops.asks(&deletion("two"));
    home.run(["token", "revoke", "ops"])?.succeeded()?;
    assert_eq!(boss.says("approve", &request).0, 409);
    let ops = Client::new(port, &token(&home, "ops", "admin")?);
    assert_eq!(boss.says("approve", &request).0, 409);
    assert_eq!(ops.says("withdraw", &request).0, 200);

    on_the_host(&home, &daemon, &boss)?;
    assert_eq!(names(&home)?, ["three", "two"]);
    let daemon = time_and_damage(&home, daemon, &listen, &ops, &boss)?;

    // Policies that ask for nothing any more: what is asked for then is done at once, what waits waits.
    let request = ops.asks(&deletion("two"));
    rule(&home, &json!([]))?;
    assert_eq!(daemon.post("/api/v1/reload", &json!({}))?.status, 200);
    assert!(ops.post(ACTIONS, &deletion("three")).1["job"].is_object());
    assert_eq!(state(&daemon, &request)?, "waiting");
    let gone = |jobs: &Value| jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().all(|job| job["state"] == "done"));
    daemon.wait_for("/api/v1/jobs", 60 * SECOND, gone)?;
    assert_eq!(names(&home)?, ["two"]);
    home.run(["audit", "verify"])?.succeeded()?;
    let listed = home.run(["audit", "list", "--json", "--last", "1000"])?.succeeded()?;
    let told: Vec<String> =
        listed.list("entries")?.iter().map(|entry| format!("{}: {}", entry["who"], entry["what"])).collect();
    for entry in [
        "\"token ops\": \"delete db\"",
        "\"token boss\": \"approve delete db\"",
        "\"token boss\": \"refuse delete db\"",
        "\"token ops\": \"withdraw delete db\"",
        "\"keyframe serve\": \"expire delete db\"",
        "\"keyframe serve\": \"read requests for approvals\"",
        "\"token ops, approved by token boss\": \"delete db\"",
    ] {
        assert!(told.iter().any(|line| line == entry), "{entry}: {told:#?}");
    }
    Ok(())
}

/// Root asks, too, and root does not approve what root asked for; by command it is the same.
fn on_the_host(home: &Home, daemon: &Daemon<'_>, boss: &Client) -> Result<()> {
    let answer = daemon.post(ACTIONS, &json!({"action": "stop", "force": true}))?;
    let request = answer.json()["approval"].clone();
    assert!(answer.status == 202 && request["by"].as_str().unwrap().starts_with("uid "), "{answer:?}");
    let id = request["id"].as_str().unwrap();
    let own = home.run(["approvals", "approve", id])?;
    assert!(own.status == Some(1) && own.stderr.contains("another person"), "{}", own.stderr);
    let listed = home.run(["approvals", "list"])?.succeeded()?;
    assert!(listed.stdout.contains("keyframe vm stop db --force"), "{}", listed.stdout);
    home.run(["approvals", "withdraw", id])?.succeeded()?;
    let request = boss.asks(&json!({"action": "revert", "snapshot": "three", "discard": true}));
    home.run(["approvals", "refuse", request["id"].as_str().unwrap()])?.succeeded()?;
    assert_eq!(state(daemon, &request)?, "refused");
    Ok(())
}

/// A request whose time is over, and what is none, when a daemon starts.
fn time_and_damage<'h>(
    home: &'h Home,
    daemon: Daemon<'h>,
    listen: &[&str],
    ops: &Client,
    boss: &Client,
) -> Result<Daemon<'h>> {
    let (late, damaged, kept) = (ops.asks(&deletion("two")), ops.asks(&deletion("two")), ops.asks(&deletion("two")));
    daemon.kill()?;
    let file = |request: &Value| home.path().join(format!("serve/approvals/{}.json", request["id"].as_str().unwrap()));
    let change = |request: &Value, from: &str, to: &str| {
        let text = std::fs::read_to_string(file(request)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(file(request), text.replace(from, to)).unwrap();
    };
    change(&late, late["until"].as_str().unwrap(), "2026-01-01T00:00:00Z");
    // What was approved is what was shown, whatever somebody writes into the file.
    change(&damaged, "\"delete\",", "\"delete\", \"--detach\",");
    let daemon = Daemon::start(home, listen)?;
    assert_eq!(state(&daemon, &late)?, "expired");
    assert_eq!(boss.says("approve", &late).0, 409);
    assert_eq!(daemon.get(&place(&damaged))?.status, 404);
    assert!(file(&damaged).with_extension("json.unreadable").exists());
    let overview = daemon.get(OVERVIEW)?.json();
    assert!(overview["alerts"].to_string().contains("is no request for an approval"), "{overview}");
    assert_eq!(state(&daemon, &kept)?, "waiting");
    assert_eq!(ops.says("withdraw", &kept).0, 200);
    Ok(daemon)
}

#[test]
fn in_a_browser_one_person_asks_and_another_one_approves() -> Result<()> {
    let home = Home::new("approvals-browser")?;
    machine(&home, &["before-upgrade", "nightly"])?;
    rule(&home, &json!(["delete", "revert"]))?;
    let [ops, boss, night] =
        [("ops", "admin"), ("boss", "admin"), ("night", "operate")].map(|(name, role)| token(&home, name, role));
    let port = free_port()?;
    let daemon = Daemon::start(&home, &["--listen", &format!("127.0.0.1:{port}")])?;
    let page = Page::of(&home, port)?;
    let browser = &page.browser;
    page.open()?;
    page.log_in(&ops?)?;

    // The dialog says it before, and what then is there is no job.
    page.go("machines/db")?;
    browser.click("[data-snapshot=nightly] [data-action=delete]")?;
    browser.see("[data-dialog=delete] [data-plan=ready][aria-busy=false]")?;
    let note = browser.text("[data-dialog=delete] [data-needs-approval]")?;
    assert!(note.contains("within 2 h"), "{note}");
    assert_eq!(browser.text("[data-dialog=delete] [data-action=confirm]")?, "Ask for approval");
    page.picture("approval-asked")?;
    page.confirm("delete")?;
    let banner = browser.text("[data-banner=approvals]")?;
    assert!(banner.contains("1 request waits"), "{banner}");
    browser.click("[data-snapshot=nightly] [data-action=test]")?;
    browser.see("[data-dialog=test] [data-plan=ready]")?;
    assert_eq!(browser.count("[data-dialog=test] [data-needs-approval]")?, 0);
    browser.click("[data-dialog=test] [data-action=dismiss]")?;

    // Who asked is offered to withdraw it, and nothing else; by keyboard.
    browser.press("gv")?;
    browser.wait_until("location.hash === '#/approvals'")?;
    let card = browser.text("[data-approval]")?;
    assert!(
        card.contains("Delete of db") && card.contains("token ops asked") && card.contains("would delete"),
        "{card}"
    );
    browser.see("[data-approval] [data-action=withdraw]")?;
    assert_eq!(browser.count("[data-action=approve], [data-action=refuse]")?, 0);

    // Who may not do it may not approve it.
    page.log_out()?;
    page.log_in(&night?)?;
    page.go("approvals")?;
    browser.see("[data-approval]")?;
    assert_eq!(browser.count("[data-action=approve], [data-action=refuse], [data-action=withdraw]")?, 0);

    page.log_out()?;
    page.log_in(&boss?)?;
    browser.click("[data-banner=approvals] a")?;
    browser.see("[data-approval] [data-action=approve]")?;
    assert_eq!(browser.count("[data-action=withdraw]")?, 0);
    page.picture("approvals")?;
    browser.size(390, 844, true)?;
    assert!(page.is_no_wider_than(390)?);
    browser.size(1280, 800, false)?;
    browser.script("document.querySelector('[data-action=approve]').focus()")?;
    browser.press(key::ENTER)?;
    browser.see("[data-dialog=approve]")?;
    // What cannot be undone is not what Enter does at once.
    browser.press(key::ENTER)?;
    page.gone("approve")?;
    browser.see("[data-approval] [data-action=approve]")?;
    browser.click("[data-action=approve]")?;
    page.confirm("approve")?;
    browser.see("[data-approval][data-state=approved]")?;
    browser.wait_until("!document.querySelector('[data-banner=approvals]')")?;
    daemon.wait_for("/api/v1/jobs", 60 * SECOND, |jobs| jobs["jobs"][0]["state"] == "done")?;
    assert_eq!(names(&home)?, ["before-upgrade"]);
    // Not that nobody was logged in, nor that a machine is at work.
    let complaints = page.complaints(&[401, 409])?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
