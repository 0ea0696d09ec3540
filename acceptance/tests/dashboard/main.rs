//! The dashboard in a browser, against a daemon with a real guest. Needs QEMU, Chromium and its driver.
//!
//! With `KEYFRAME_SCREENSHOTS=DIR` it leaves a picture of every view there: those of docs/DASHBOARD.md.

mod deeds;
mod hostile;
mod looks;
mod many;
mod past;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keyframe_acceptance::browser::key;
use keyframe_acceptance::daemon::free_port;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Daemon, Home, Machine, MachineSpec, Page, Repository, Result, guests};

const SECOND: Duration = Duration::from_secs(1);
/// What a page would run if it took texts for HTML.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1>";
const CONTENT: &str = "what the file browser is to find\n";
const ROW: &str = "[data-machine=worker]";
/// What leads to who did what.
const TO_AUDIT: &str = "a[href*=audit], [data-view=audit]";
/// Whatever needs more than `read`.
const DEEDS: [&str; 12] =
    ["snapshot", "backup", "drill", "start", "stop", "revert", "fork", "test", "delete", "pause", "resume", "reload"];

/// Complaints of the page that nobody reckoned with: not that a token is refused or is not good for who did what, nor that a machine
/// is at work.
fn unexpected(page: &Page) -> Result<Vec<String>> {
    let refused = |line: &String| line.contains("/audit") && line.contains("status of 403");
    Ok(page.complaints(&[401, 409])?.into_iter().filter(|line| !refused(line)).collect())
}

/// What a test of the dashboard has at hand.
struct Stage<'h> {
    home: &'h Home,
    machine: Machine<'h>,
    daemon: Daemon<'h>,
    page: Page,
}

/// `often` for the guest, and `archive` for a machine whose backup is still at work when somebody looks.
fn policies(home: &Home, repository: &Repository, away: &Repository, every: &str) -> Result<()> {
    let (place, away) = (repository.in_policy(), away.in_policy());
    let text = format!(
        r#"
        [host]
        jobs = 4
        jobs_per_disk = 4
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
        [policy.archive]
        machines = {{ names = ["archive"] }}
        [[policy.archive.backup]]
        name = "away"
        {away}
        schedule = "yearly"
        bandwidth = "2M"
        keep = {{ last = 3 }}
        "#
    );
    home.write_policies("often.toml", &text)
}

const EVERY: &str = "*:*:0/15";

/// A disk with a file system and some files, among them such whose names are no names for a page.
fn disk_with_files(home: &Home) -> PathBuf {
    let (tree, raw, disk) = (home.file("tree"), home.file("files.raw"), home.file("files.qcow2"));
    std::fs::create_dir_all(tree.join("etc/app")).unwrap();
    std::fs::write(tree.join("hello.txt"), CONTENT).unwrap();
    std::fs::write(tree.join("etc/app/app.toml"), "workers = 4\n").unwrap();
    std::fs::write(tree.join("etc/hostname"), "worker\n").unwrap();
    std::fs::write(tree.join("orders.csv"), "order,total\n".repeat(4000)).unwrap();
    hostile::files(&tree.join("etc"));
    run("mke2fs", &["-q", "-t", "ext4", "-L", "data", "-d"], &[&tree, &raw], &["32M"]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &disk], &[]);
    disk
}

/// A disk whose content nothing makes smaller.
fn full_disk(home: &Home) -> PathBuf {
    let disk = home.file("archive.raw");
    let mut bytes = vec![0; 160 << 20];
    std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).unwrap();
    std::fs::write(&disk, bytes).unwrap();
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
    hostile::spare(&home)?;
    let archive = full_disk(&home).display().to_string();
    home.run(["vm", "create", "archive", "--memory", "64M", "--disk", &archive])?.succeeded()?;
    home.run(["snapshot", "worker", "--name", "noted", "--note", HOSTILE])?.succeeded()?;
    let (repository, away) = (Repository::init(&home)?, Repository::init(&home)?);
    policies(&home, &repository, &away, EVERY)?;
    let (admin, reader) = (token(&home, "anna", "admin")?, token(&home, "eve", "read")?);
    let days = past::remember(&home);
    let port = free_port()?;
    let daemon = Daemon::start(&home, &["--listen", &format!("127.0.0.1:{port}")])?;
    let stage = Stage { page: Page::of(&home, port)?, home: &home, machine, daemon };
    let page = &stage.page;

    logging_in(page, &admin)?;
    jobs(page)?;
    deeds::a_job_and_its_end(&stage)?;
    drills(page)?;
    keyboard(page)?;
    hostile::texts_are_texts(page)?;
    hostile::names_are_refused(&stage)?;
    deeds::snapshot_and_delete(&stage)?;
    deeds::fork(&stage)?;
    deeds::revert(&stage)?;
    files(page)?;
    hostile::names_of_files(page)?;
    past::calendar(page, &days)?;
    past::space(page)?;
    alerts(page)?;
    audit(page)?;
    deeds::pause_and_resume(&stage)?;
    looks::colours(page)?;
    looks::pictures(page)?;
    looks::phone(page)?;
    mistake(page, || policies(&home, &repository, &away, "whenever"), || policies(&home, &repository, &away, EVERY))?;
    who_may_only_look(page, &reader)?;
    let complaints = unexpected(page)?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    stage.machine.assert_intact(Mark::START)
}

fn logging_in(page: &Page, admin: &str) -> Result<()> {
    page.open()?;
    page.show_token("kf_0000000000000000")?;
    let refusal = page.browser.text("[data-dialog=login] [role=alert]")?;
    assert!(refusal.contains("not known"), "{refusal}");
    assert_eq!(page.browser.count(ROW)?, 0, "nothing is shown to strangers");
    page.picture("log-in")?;
    page.log_in(admin)?;
    page.browser.see(ROW)
}

/// What runs shows its progress, and then that it is done, without being asked.
fn jobs(page: &Page) -> Result<()> {
    page.browser.press("gj")?;
    page.browser.wait_until("location.hash === '#/jobs'")?;
    page.browser.see("[data-view=jobs][aria-current=page]")?;
    page.browser.see("[data-job][data-state=running] [role=progressbar]")?;
    page.browser.see("[data-job][data-state=done]")?;
    let failed = page.browser.text("[data-job][data-state=failed]")?;
    assert!(failed.contains(past::TROUBLE), "{failed}");
    assert_eq!(page.browser.count("[data-job][data-state=failed]")?, 1, "days ago; nothing failed since");
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
    page.browser.see("[data-entry='app.toml']")?;
    page.browser.click("[aria-label=Path] li:nth-last-child(2) a")
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
    assert!(told.contains(HOSTILE), "files that were taken out are told by their names: {told}");
    Ok(())
}

fn mistake(page: &Page, make: impl Fn() -> Result<()>, mend: impl Fn() -> Result<()>) -> Result<()> {
    page.go("machines")?;
    assert_eq!(page.browser.count("[data-banner]")?, 0);
    make()?;
    let banner = page.browser.text("[data-banner=policies]")?;
    assert!(banner.contains("often.toml:"), "{banner}");
    page.browser.click("[data-banner=policies] a")?;
    let mistake = page.browser.text("[data-mistake=error]")?;
    assert!(mistake.contains("whenever"), "{mistake}");
    page.picture("policies-mistake")?;
    mend()?;
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
