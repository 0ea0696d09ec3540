//! The dashboard in a browser, against a daemon with a real guest. Needs QEMU, Chromium and its driver.
//!
//! With `KEYFRAME_SCREENSHOTS=DIR` it leaves a picture of every view there: those of docs/DASHBOARD.md.

mod pile;

use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_acceptance::browser::key;
use keyframe_acceptance::daemon::free_port;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Browser, Daemon, Home, Machine, MachineSpec, Repository, Result, guests};
use serde_json::json;

use pile::SECOND;

/// What a page would run if it took texts for HTML.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1>";
const CONTENT: &str = "what the file browser is to find\n";
const ROW: &str = "[data-machine=worker]";
const VIEWS: [&str; 8] = ["machines", "machines/worker", "jobs", "drills", "alerts", "space", "policies", "audit"];
/// What leads to who did what.
const TO_AUDIT: &str = "a[href*=audit], [data-view=audit]";
/// Whatever needs more than `read`.
const DEEDS: [&str; 12] =
    ["snapshot", "backup", "drill", "start", "stop", "revert", "fork", "test", "delete", "pause", "resume", "reload"];

/// The browser, the daemon's address, and where pictures go.
struct Page {
    browser: Browser,
    address: String,
    pictures: Option<PathBuf>,
    home: PathBuf,
}

/// A script that shows the test's home as the place where a home usually is.
fn usual_place(home: &Path) -> String {
    format!(
        "const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); \
         while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll({}, '/var/lib/keyframe')",
        json!(home)
    )
}

/// Complaints of the page that nobody reckoned with: not that a token is refused or is not good for who did what, nor that a machine
/// is at work.
fn unexpected(complaints: &[String]) -> Vec<&String> {
    let refused = |line: &String| line.contains("/audit") && line.contains("status of 403");
    let expected = |line: &String| line.contains("status of 401") || line.contains("status of 409") || refused(line);
    complaints.iter().filter(|line| !expected(line)).collect()
}

impl Page {
    /// Follows the page's own way: it is not loaded anew.
    fn go(&self, view: &str) -> Result<()> {
        self.browser.script(&format!("location.hash = {}", json!(format!("#/{view}"))))?;
        self.settled()
    }

    fn settled(&self) -> Result<()> {
        self.browser.wait_until("!document.querySelector('main .loading')")
    }

    fn log_in(&self, token: &str) -> Result<()> {
        self.browser.see("[data-dialog=login]")?;
        self.browser.script("document.getElementById('token').value = ''")?;
        self.browser.type_into("#token", token)?;
        self.browser.click("[data-action=log-in]")
    }

    /// The plan of a dialog, once it is there.
    fn plan(&self, dialog: &str) -> Result<String> {
        self.browser.text(&format!("[data-dialog={dialog}] [data-plan=ready][aria-busy=false]"))
    }

    fn confirm(&self, dialog: &str) -> Result<()> {
        self.browser.click(&format!("[data-dialog={dialog}] [data-action=confirm]"))?;
        self.browser.wait_until(&format!("!document.querySelector('[data-dialog={dialog}]')"))
    }

    fn picture(&self, name: &str) -> Result<()> {
        let Some(dir) = &self.pictures else { return Ok(()) };
        // Messages would lie above what is to be seen, and the pointer would light a row up.
        self.browser.wait_until("!document.querySelector('[data-toast=done]')")?;
        self.browser.point_at(0, 0)?;
        self.browser.script("scrollTo(0, 0); document.activeElement.blur()")?;
        self.browser.script(&usual_place(&self.home))?;
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(format!("{name}.png")), self.browser.screenshot()?).unwrap();
        Ok(())
    }
}

fn policy(home: &Home, repository: &Repository, every: &str) -> Result<()> {
    let place = repository.in_policy();
    let text = format!(
        r#"
        [policy.often]
        machines = {{ names = ["worker"] }}
        objectives = {{ rpo = "10m", rto = "5m" }}
        [policy.often.snapshot]
        schedule = "{every}"
        keep = {{ last = 3 }}
        [[policy.often.backup]]
        name = "local"
        {place}
        schedule = "*:*:0/30"
        keep = {{ last = 3 }}
        [policy.often.drill]
        schedule = "hourly"
        what = "point"
        probes = ["serial=token"]
        "#
    );
    home.write_policies("often.toml", &text)
}

const EVERY: &str = "*:*:0/15";

/// A disk with a file system and some files.
fn disk_with_files(home: &Home) -> PathBuf {
    let (tree, raw, disk) = (home.file("tree"), home.file("files.raw"), home.file("files.qcow2"));
    std::fs::create_dir_all(tree.join("etc/app")).unwrap();
    std::fs::write(tree.join("hello.txt"), CONTENT).unwrap();
    std::fs::write(tree.join("etc/app/app.toml"), "workers = 4\n").unwrap();
    std::fs::write(tree.join("etc/hostname"), "worker\n").unwrap();
    std::fs::write(tree.join("orders.csv"), "order,total\n".repeat(4000)).unwrap();
    run("mke2fs", &["-q", "-t", "ext4", "-L", "data", "-d"], &[&tree, &raw], &["32M"]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &disk], &[]);
    disk
}

fn run(program: &str, before: &[&str], paths: &[&Path], behind: &[&str]) {
    let output = Command::new(program).args(before).args(paths).args(behind).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn worker(home: &Home) -> Result<Machine<'_>> {
    // The checker overwrites the disks that it is given: it leaves the second one alone.
    let words = "checker.mb=32 checker.rate=20 checker.diskrate=50 checker.disks=vda";
    let spec = MachineSpec::small(&guests::small()?, "128M", words);
    let spec = spec.disk(&home.empty_disk("work.qcow2", "32M")?).disk(&disk_with_files(home));
    let machine = Machine::start(home, "worker", &spec)?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn token(home: &Home, name: &str, role: &str) -> Result<String> {
    let made = home.run(["token", "add", name, "--role", role, "--json"])?.succeeded()?;
    made.text("token").map(str::to_owned)
}

#[test]
fn a_person_sees_and_does_in_a_browser_what_the_daemon_offers() -> Result<()> {
    let home = Home::new("dashboard")?;
    let machine = worker(&home)?;
    home.run(["vm", "create", "spare", "--memory", "128M"])?.succeeded()?;
    home.run(["snapshot", "worker", "--name", "noted", "--note", HOSTILE])?.succeeded()?;
    let repository = Repository::init(&home)?;
    policy(&home, &repository, EVERY)?;
    let (admin, reader) = (token(&home, "anna", "admin")?, token(&home, "eve", "read")?);
    let port = free_port()?;
    let _daemon = Daemon::start(&home, &["--listen", &format!("127.0.0.1:{port}")])?;
    let page = Page {
        browser: Browser::start(&home)?,
        address: format!("https://127.0.0.1:{port}/"),
        pictures: std::env::var_os("KEYFRAME_SCREENSHOTS").map(PathBuf::from),
        home: home.path().to_owned(),
    };

    logging_in(&page, &admin)?;
    jobs(&page)?;
    drills(&page)?;
    keyboard(&page)?;
    texts_are_texts(&page)?;
    snapshot_and_delete(&page, &home)?;
    fork(&page, &home)?;
    files(&page)?;
    alerts(&page)?;
    audit(&page)?;
    pictures(&page)?;
    phone(&page)?;
    mistake(&page, &home, &repository)?;
    who_may_only_look(&page, &reader)?;
    let complaints = page.browser.complaints()?;
    assert!(unexpected(&complaints).is_empty(), "{complaints:#?}");
    machine.assert_intact(Mark::START)
}

fn logging_in(page: &Page, admin: &str) -> Result<()> {
    page.browser.open(&page.address)?;
    page.log_in("kf_0000000000000000")?;
    let refusal = page.browser.text("[data-dialog=login] [role=alert]")?;
    assert!(refusal.contains("not known"), "{refusal}");
    assert_eq!(page.browser.count(ROW)?, 0, "nothing is shown to strangers");
    page.picture("log-in")?;
    page.log_in(admin)?;
    page.browser.see(ROW)?;
    page.browser.see("[data-connection=live]")
}

/// What runs shows its progress, and then that it is done, without being asked.
fn jobs(page: &Page) -> Result<()> {
    page.browser.press("gj")?;
    page.browser.wait_until("location.hash === '#/jobs'")?;
    page.browser.see("[data-view=jobs][aria-current=page]")?;
    page.browser.see("[data-job][data-state=running] [role=progressbar]")?;
    page.browser.see("[data-job][data-state=done]")?;
    assert_eq!(page.browser.count("[data-job][data-state=failed]")?, 0);
    Ok(())
}

fn drills(page: &Page) -> Result<()> {
    page.go("machines")?;
    page.browser.wait_within(120 * SECOND, &format!("document.querySelector('{ROW}[data-verdict=protected]')"))?;
    page.browser.click("[data-view=drills]")?;
    page.browser.see("[data-drill][data-passed=true]")?;
    page.browser.wait_until("document.querySelector('[data-drill] img')?.naturalWidth > 0")?;
    page.browser.click("[data-action=screenshot]")?;
    page.browser.wait_until("document.querySelector('[data-dialog=screenshot] img')?.naturalWidth > 0")?;
    page.browser.press(key::ESCAPE)?;
    page.browser.wait_until("!document.querySelector('dialog')")
}

fn keyboard(page: &Page) -> Result<()> {
    let browser = &page.browser;
    page.go("machines")?;
    browser.see("[data-machine=spare][data-verdict=unprotected]")?;
    browser.press("/")?;
    browser.wait_until("document.activeElement.type === 'search'")?;
    browser.press("work")?;
    browser.see("[data-found='1']")?;
    assert_eq!(browser.count("[data-machine=spare]")?, 0);
    browser.press(key::ESCAPE)?;
    browser.see("[data-machine=spare]")?;
    browser.click("[data-filter=protected]")?;
    browser.wait_until("!document.querySelector('[data-machine=spare]')")?;
    browser.press("/")?;
    browser.press(key::DOWN)?;
    browser.press(key::ENTER)?;
    browser.wait_until("location.hash === '#/machines/worker'")?;
    browser.press("?")?;
    browser.see("[data-dialog=help]")?;
    browser.press(key::ESCAPE)?;
    browser.wait_until("!document.querySelector('dialog')")?;
    page.settled()
}

/// A note is shown as it was written, and does nothing.
fn texts_are_texts(page: &Page) -> Result<()> {
    assert_eq!(page.browser.text("[data-snapshot=noted] .note")?, HOSTILE);
    page.browser.click("[data-snapshot=noted] [data-action=details]")?;
    page.browser.see("[data-snapshot=noted] .tree-details")?;
    page.browser.click("[data-snapshot=noted] [data-action=details]")?;
    assert_eq!(page.browser.count("img[src=x]")?, 0);
    assert_eq!(page.browser.script("return typeof window.hacked")?, "undefined");
    let complaints = page.browser.complaints()?;
    assert!(unexpected(&complaints).is_empty(), "{complaints:#?}");
    assert!(!complaints.is_empty(), "the refused token is a complaint: so others would be seen");
    // Nor would a script do anything that got into the page all the same.
    let injected = "const one = document.createElement('div'); \
        one.innerHTML = '<img src=\"data:,\" onerror=\"window.reached=1\">'; document.body.append(one); \
        return new Promise((done) => setTimeout(() => { one.remove(); done(typeof window.reached); }, 300))";
    assert_eq!(page.browser.script(injected)?, "undefined");
    // That the browser refused it is a complaint that is expected.
    let complaints = page.browser.complaints()?;
    let refused = complaints.iter().filter(|line| line.contains("Content Security Policy")).count();
    assert!(refused > 0, "{complaints:?}");
    Ok(())
}

fn snapshot_and_delete(page: &Page, home: &Home) -> Result<()> {
    let browser = &page.browser;
    browser.script("window.sameDocument = true")?;
    browser.press("s")?;
    browser.see("[data-dialog=snapshot]")?;
    browser.type_into("#field-note", "before the upgrade")?;
    let plan = page.plan("snapshot")?;
    assert!(plan.contains("worker"), "{plan}");
    page.picture("plan")?;
    page.confirm("snapshot")?;
    let row =
        "[...document.querySelectorAll('[data-snapshot]')].find((row) => row.innerText.includes('before the upgrade'))";
    browser.wait_until(row)?;
    let id = browser.script(&format!("return {row}.dataset.id"))?;
    let id = id.as_str().unwrap_or_default();
    let known = |home: &Home| -> Result<bool> {
        let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
        Ok(listed.list("snapshots")?.iter().any(|snapshot| snapshot["id"] == id))
    };
    assert!(known(home)?, "the page shows what is not there: {id}");
    let row = format!("[data-id={}]", json!(id));
    browser.click(&format!("{row} [data-action=delete]"))?;
    let plan = page.plan("delete")?;
    let name = browser.script(&format!("return document.querySelector('{row}').dataset.snapshot"))?;
    assert!(plan.contains(name.as_str().unwrap_or("?")), "{plan}");
    assert!(known(home)?, "a plan does nothing");
    page.confirm("delete")?;
    browser.wait_until(&format!("!document.querySelector('{row}')"))?;
    assert!(!known(home)?);
    assert_eq!(browser.script("return window.sameDocument")?, true, "it was not loaded anew");
    Ok(())
}

/// The other machine comes to be, and its guest goes on from the snapshot.
fn fork(page: &Page, home: &Home) -> Result<()> {
    page.browser.click("[data-snapshot=noted] [data-action=fork]")?;
    page.plan("fork")?;
    page.confirm("fork")?;
    page.browser.see("[data-snapshot=noted] .marks a[href='#/machines/worker-fork']")?;
    let fork = Machine::existing(home, "worker-fork");
    let serial = fork.serial()?;
    serial.next_heartbeat(Mark::START, 30 * SECOND)?;
    page.go("machines")?;
    page.browser.see("[data-machine=worker-fork]")?;
    page.go("machines/worker-fork")?;
    page.browser.click("main [data-action=stop]")?;
    page.browser.click("#field-force")?;
    page.plan("stop")?;
    page.confirm("stop")?;
    page.browser.see("main [data-action=start]")?;
    assert_eq!(fork.show()?.text("state")?, "stopped");
    Ok(())
}

fn files(page: &Page) -> Result<()> {
    page.go("machines/worker")?;
    page.browser.click("[data-point] [data-action=browse]")?;
    page.browser.click("[data-entry][data-kind=volume] a")?;
    page.browser.see("[data-entry='hello.txt'][data-kind=file]")?;
    page.picture("files")?;
    let link = "document.querySelector(\"[data-entry='hello.txt'] [data-action=download]\").href";
    let fetched = page.browser.promise(&format!("fetch({link}).then((answer) => answer.text())"))?;
    assert_eq!(fetched, CONTENT);
    page.browser.click("[data-entry=etc] a")?;
    page.browser.click("[data-entry=app] a")?;
    page.browser.see("[data-entry='app.toml']")
}

fn alerts(page: &Page) -> Result<()> {
    page.go("alerts")?;
    page.browser.wait_until(
        "[...document.querySelectorAll('[data-alert]')].some((alert) => alert.innerText.includes('spare') \
         && alert.querySelector('.advice')?.innerText)",
    )?;
    let badge = page.browser.text("[data-view=alerts] .badge")?;
    assert_eq!(badge, page.browser.count("main [data-alert]")?.to_string());
    Ok(())
}

fn audit(page: &Page) -> Result<()> {
    page.go("audit")?;
    page.browser.see("[data-verified=true]")?;
    let told = page.browser.text("main")?;
    assert!(told.contains("token anna") && told.contains("fork"), "{told}");
    Ok(())
}

fn pictures(page: &Page) -> Result<()> {
    if page.pictures.is_none() {
        return Ok(());
    }
    page.go("jobs")?;
    page.browser.see("[data-job][data-state=running]")?;
    page.picture("jobs")?;
    for (view, name) in [
        ("machines", "machines"),
        ("machines/worker", "machine"),
        ("drills", "drills"),
        ("alerts", "alerts"),
        ("space", "space"),
        ("policies", "policies"),
        ("audit", "audit"),
    ] {
        page.go(view)?;
        page.picture(name)?;
    }
    page.browser.dark(true)?;
    page.go("machines")?;
    page.picture("machines-dark")?;
    page.browser.dark(false)?;
    page.browser.size(390, 844, true)?;
    page.go("machines/worker")?;
    page.picture("machine-phone")?;
    page.browser.size(1280, 800, false)
}

/// On a phone nothing is to be scrolled for sideways.
fn phone(page: &Page) -> Result<()> {
    page.browser.size(390, 844, true)?;
    for view in VIEWS.into_iter().chain(["more"]) {
        page.go(view)?;
        let width = page.browser.script("return document.documentElement.scrollWidth")?;
        let seen = page.browser.script("return visualViewport.width")?;
        assert_eq!((width.as_u64(), seen.as_f64()), (Some(390), Some(390.0)), "{view}");
        page.browser.see("#tabs [data-view]")?;
    }
    page.browser.size(1280, 800, false)
}

fn mistake(page: &Page, home: &Home, repository: &Repository) -> Result<()> {
    page.go("machines")?;
    assert_eq!(page.browser.count("[data-banner]")?, 0);
    policy(home, repository, "whenever")?;
    let banner = page.browser.text("[data-banner=policies]")?;
    assert!(banner.contains("often.toml:"), "{banner}");
    page.browser.click("[data-banner=policies] a")?;
    let mistake = page.browser.text("[data-mistake=error]")?;
    assert!(mistake.contains("whenever"), "{mistake}");
    page.picture("policies-mistake")?;
    policy(home, repository, EVERY)?;
    page.browser.wait_until("!document.querySelector('[data-mistake], [data-banner]')")
}

fn who_may_only_look(page: &Page, reader: &str) -> Result<()> {
    let deeds = DEEDS.map(|deed| format!("[data-action={deed}]")).join(", ");
    page.go("machines/worker")?;
    assert!(page.browser.count(&deeds)? > 10, "an administrator has them");
    page.go("more")?;
    assert!(page.browser.count(TO_AUDIT)? > 0, "so is who did what");
    page.browser.click("[data-action=log-out]")?;
    page.log_in(reader)?;
    page.browser.see("[data-role=read]")?;
    for view in ["machines", "machines/worker", "policies", "jobs", "drills", "alerts", "space", "more"] {
        page.go(view)?;
        assert_eq!(page.browser.count(&deeds)?, 0, "{view}");
        assert_eq!(page.browser.count(TO_AUDIT)?, 0, "{view} leads to what is not for a reader");
    }
    // Who types the address is told why.
    page.go("audit")?;
    let refusal = page.browser.text("main [role=alert]")?;
    assert!(refusal.contains("has the role read, and this takes operate"), "{refusal}");
    assert_eq!(page.browser.count("main [data-entry]")?, 0);
    page.go("machines/worker")?;
    page.browser.see("[data-snapshot=noted]")?;
    page.browser.see("[data-point]")?;
    assert_eq!(page.browser.count(&deeds)?, 0);
    Ok(())
}
