//! A host with many machines: the list is there soon, what is looked for is found, and the last one is reached. Needs no guest.

use std::fs;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keyframe_acceptance::browser::key;
use keyframe_acceptance::daemon::free_port;
use keyframe_acceptance::{Daemon, Home, Page, Repository, Result};
use keyframe_daemon::job::{Duty, Made, State};
use serde_json::json;

use super::{SECOND, past, token};

const MACHINES: usize = 500;
const RACKS: usize = 20;
/// Of those without any point, and of those with none that is new.
const UNPROTECTED: usize = 7;
const AT_RISK: usize = 16;
/// Of a daemon without optimization, on a machine that does other things, too.
const SHOWN_WITHIN: Duration = Duration::from_secs(3);
/// Says in `shown_ms` when the first row was painted.
const WATCH: &str = "new MutationObserver((_, watch) => {
    if (!document.querySelector('[data-machine]')) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.shown_ms = performance.now(); }));
}).observe(document, { childList: true, subtree: true });";

fn name(number: usize) -> String {
    format!("web-{number:03}")
}

fn rack(number: usize) -> String {
    format!("rack-{:02}", number % RACKS)
}

/// One machine by command, the others by copies of its documents: it has no disk, so nothing else is its own.
fn machines(home: &Home) -> Result<()> {
    home.run(["vm", "create", &name(0), "--memory", "64M", "--net", "none", "--tag", &rack(0)])?.succeeded()?;
    let vms = home.path().join("vms");
    let first = vms.join(name(0));
    let definition = fs::read_to_string(first.join("machine.toml")).unwrap();
    let uuid = definition.lines().find_map(|line| line.strip_prefix("uuid = ")).unwrap().trim_matches('"');
    for number in 1..MACHINES {
        let dir = vms.join(name(number));
        fs::create_dir(&dir).unwrap();
        fs::copy(first.join("head.json"), dir.join("head.json")).unwrap();
        let own = format!("{}{number:04}", &uuid[..uuid.len() - 4]);
        let text = definition.replace(&name(0), &name(number)).replace(&rack(0), &rack(number)).replace(uuid, &own);
        fs::write(dir.join("machine.toml"), text).unwrap();
    }
    Ok(())
}

/// Each but a few has a point of today; nothing is due before tomorrow.
fn points(home: &Home, repository: &Repository) -> Result<()> {
    let place = repository.in_policy();
    let text = format!(
        "[policy.fleet]\nmachines = {{ names = [\"web-*\"] }}\nobjectives = {{ rpo = \"26h\" }}\n\
         [[policy.fleet.backup]]\nname = \"nightly\"\n{place}\nschedule = \"*-*-* 04:17\"\nkeep = {{ last = 8 }}\n"
    );
    home.write_policies("fleet.toml", &text)?;
    let now = Timestamp::now();
    let backup = || Duty::Backup("nightly".to_owned());
    past::catalog(home)
        .change(|catalog| {
            for number in 0..MACHINES {
                catalog.begin(&name(number), &backup(), now)?;
                let minutes = match number {
                    0..UNPROTECTED => continue,
                    _ if number < UNPROTECTED + AT_RISK => 20 * 24 * 60,
                    _ => 120 + u32::try_from(number).unwrap(),
                };
                let at = now - 60 * SECOND * minutes;
                let mut job = past::ended(&name(number), "fleet", backup(), at, State::Done);
                job.made = Some(Made::new(format!("{number:064x}"), at));
                catalog.put(&job)?;
                catalog.achieve(&name(number), &backup().key(), &job)?;
            }
            catalog.complete()
        })
        .unwrap();
    Ok(())
}

#[test]
fn of_many_machines_the_first_are_shown_at_once_and_every_one_is_found() -> Result<()> {
    let home = Home::new("dashboard-many")?;
    machines(&home)?;
    let repository = Repository::init(&home)?;
    let admin = token(&home, "anna", "admin")?;
    points(&home, &repository)?;
    let port = free_port()?;
    let daemon = Daemon::start(&home, &["--listen", &format!("127.0.0.1:{port}")])?;
    let seen = daemon.wait_for("/api/v1/overview", 60 * SECOND, |shown| shown["counts"]["machines"] == MACHINES)?;
    let protected = MACHINES - UNPROTECTED - AT_RISK;
    let counts = ["protected", "at_risk", "unprotected"].map(|kind| seen["counts"][kind].clone());
    assert_eq!(counts, [json!(protected), json!(AT_RISK), json!(UNPROTECTED)]);
    let page = Page::of(&home, port)?;
    let browser = &page.browser;
    page.open()?;
    page.log_in(&admin)?;

    browser.in_every_page(WATCH)?;
    page.open()?;
    browser.wait_until("window.shown_ms")?;
    let shown = browser.script("return window.shown_ms")?.as_f64().unwrap_or(f64::MAX);
    println!("the first of {MACHINES} machines were shown after {shown:.0} ms");
    assert!(shown < SHOWN_WITHIN.as_secs_f64() * 1e3, "{shown} ms");
    let words = browser.text(".protection .figure")?;
    assert!(words.contains(&format!("{protected} of {MACHINES}")), "{words}");
    assert_eq!(browser.text(".toolbar .found")?, format!("{MACHINES} machines"));
    // What needs somebody is on top.
    assert_eq!(browser.count("[data-machine][data-verdict=unprotected]")?, UNPROTECTED as u64);
    page.picture("machines-many")?;

    browser.press("/")?;
    browser.press("web-499")?;
    browser.see("[data-found='1']")?;
    assert_eq!(browser.count("[data-machine]")?, 1);
    browser.press(key::ESCAPE)?;
    browser.press("/rack-07 at risk")?;
    let found = (UNPROTECTED..UNPROTECTED + AT_RISK).filter(|number| rack(*number) == rack(7)).count();
    browser.see(&format!("[data-found='{found}']"))?;
    browser.press(key::ESCAPE)?;
    browser.see(&format!("[data-found='{MACHINES}']"))?;

    reach_the_last(&page)?;
    browser.size(390, 844, true)?;
    assert!(page.is_no_wider_than(390)?, "all rows are there, and fit");
    page.open()?;
    browser.see("[data-machine]")?;
    assert!(page.is_no_wider_than(390)?);
    page.picture("machines-many-phone")?;
    let complaints = page.complaints(&[401])?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

/// Rows come as one scrolls, and none is left out.
fn reach_the_last(page: &Page) -> Result<()> {
    let browser = &page.browser;
    assert!(browser.count("[data-machine]")? < MACHINES as u64 / 2, "all rows are drawn at once");
    let last = format!("[data-machine={}]", name(MACHINES - 1));
    browser.type_into(".sort select", "name")?;
    browser.see(&format!("[data-machine={}]", name(0)))?;
    let begun = Instant::now();
    browser.wait_until(&format!(
        "(scrollTo(0, document.documentElement.scrollHeight), document.querySelector({}))",
        json!(last)
    ))?;
    println!("the last was reached after {} ms", begun.elapsed().as_millis());
    assert_eq!(browser.count("[data-machine]")?, MACHINES as u64);
    browser.wait_until(&format!(
        "(scrollTo(0, document.documentElement.scrollHeight), document.querySelector({}).getBoundingClientRect().top < innerHeight)",
        json!(last)
    ))
}
