//! What is done at the page: its plan is shown first, it is then a job, and it can be ended.

use keyframe_acceptance::browser::key;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, Result};
use serde_json::{Value, json};

use super::{SECOND, Stage};

fn snapshots(home: &Home, machine: &str) -> Result<Vec<Value>> {
    Ok(home.run(["snapshots", machine, "--json"])?.succeeded()?.list("snapshots")?.to_vec())
}

/// A backup to a slow repository, while it is at work: how far it is, and that it ends when somebody wants it to.
pub fn a_job_and_its_end(stage: &Stage<'_>) -> Result<()> {
    let (page, browser) = (&stage.page, &stage.page.browser);
    let runs = |jobs: &Value| jobs["jobs"][0]["state"] == "running";
    let running = stage.daemon.wait_for("/api/v1/jobs?machine=archive", 60 * SECOND, runs)?;
    let id = running["jobs"][0]["id"].as_str().unwrap_or_default().to_owned();
    page.go("jobs")?;
    browser.click(&format!("[data-job={}] a.name", json!(id)))?;
    browser.wait_until(&format!("location.hash === {}", json!(format!("#/jobs/{id}"))))?;
    let done = "Number(document.querySelector('main [role=progressbar]')?.getAttribute('aria-valuenow'))";
    browser.wait_until(&format!("{done} > 0"))?;
    let told = browser.text("main")?;
    for part in ["Backup “away” of archive", "policy archive", " of 160 MiB", "MiB/s", " left"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    if page.takes_pictures() {
        // What the store takes at first at once says nothing of its pace.
        browser.wait_until(&format!("{done} > 40"))?;
        page.picture("job")?;
    }

    browser.click("main [data-action=cancel]")?;
    let plan = browser.text("[data-dialog=cancel]")?;
    assert!(plan.contains("What is committed stays; what is in flight is undone"), "{plan}");
    // What cannot be undone is not what Enter does at once.
    browser.press(key::ENTER)?;
    page.gone("cancel")?;
    browser.click("main [data-action=cancel]")?;
    page.confirm("cancel")?;
    browser.see("main .heading .verdict.is-cancelled")?;
    assert_eq!(browser.count("main [role=progressbar], main [data-action=cancel]")?, 0);
    let told = browser.text("main .facts")?;
    assert!(told.contains("Ended") && told.contains("130"), "{told}");
    let job = stage.daemon.get(&format!("/api/v1/jobs/{id}"))?.json();
    assert_eq!(job["job"]["state"], "cancelled", "{job}");
    assert_eq!(snapshots(stage.home, "archive")?, Vec::<Value>::new(), "what it stood on is gone");
    Ok(())
}

/// A snapshot by keyboard alone, and its end.
pub fn snapshot_and_delete(stage: &Stage<'_>) -> Result<()> {
    let (page, browser) = (&stage.page, &stage.page.browser);
    page.go("machines/worker")?;
    browser.script("window.sameDocument = true")?;
    page.tab_to("main [data-action=snapshot]")?;
    browser.press(key::ENTER)?;
    browser.see("[data-dialog=snapshot]")?;
    browser.wait_until("document.activeElement.id === 'field-note'")?;
    browser.press("before the upgrade")?;
    let plan = page.plan("snapshot")?;
    assert!(plan.contains("worker"), "{plan}");
    page.picture("plan")?;
    page.tab_to("[data-dialog=snapshot] [data-action=confirm]")?;
    browser.press(key::ENTER)?;
    page.gone("snapshot")?;
    browser.wait_until("document.activeElement.dataset.action === 'snapshot'")?;
    let row =
        "[...document.querySelectorAll('[data-snapshot]')].find((row) => row.innerText.includes('before the upgrade'))";
    browser.wait_until(row)?;
    let id = browser.script(&format!("return {row}.dataset.id"))?;
    let id = id.as_str().unwrap_or_default();
    let known = || -> Result<bool> { Ok(snapshots(stage.home, "worker")?.iter().any(|one| one["id"] == id)) };
    assert!(known()?, "the page shows what is not there: {id}");

    let row = format!("[data-id={}]", json!(id));
    browser.click(&format!("{row} [data-action=delete]"))?;
    let plan = page.plan("delete")?;
    let name = browser.script(&format!("return document.querySelector('{row}').dataset.snapshot"))?;
    assert!(plan.contains(name.as_str().unwrap_or("?")), "{plan}");
    assert!(known()?, "a plan does nothing");
    page.confirm("delete")?;
    browser.wait_until(&format!("!document.querySelector('{row}')"))?;
    assert!(!known()?);
    assert_eq!(browser.script("return window.sameDocument")?, true, "it was not loaded anew");
    Ok(())
}

/// The other machine comes to be, and its guest goes on from the snapshot.
pub fn fork(stage: &Stage<'_>) -> Result<()> {
    let page = &stage.page;
    page.browser.click("[data-snapshot=noted] [data-action=fork]")?;
    page.plan("fork")?;
    page.confirm("fork")?;
    page.browser.see("[data-snapshot=noted] .marks a[href='#/machines/worker-fork']")?;
    let fork = Machine::existing(stage.home, "worker-fork");
    let serial = fork.serial()?;
    serial.next_heartbeat(Mark::START, 30 * SECOND)?;
    page.go("machines")?;
    page.browser.see("[data-machine=worker-fork]")?;
    page.go("machines/worker-fork")?;
    page.browser.click("main [data-action=stop]")?;
    page.browser.click("#field-force")?;
    let plan = page.plan("stop")?;
    assert!(plan.contains("as a power cut would"), "{plan}");
    page.confirm("stop")?;
    page.browser.see("main [data-action=start]")?;
    assert_eq!(fork.show()?.text("state")?, "stopped");
    Ok(())
}

/// The guest goes on from the snapshot, and its present is kept, as the plan said.
pub fn revert(stage: &Stage<'_>) -> Result<()> {
    let (page, browser) = (&stage.page, &stage.page.browser);
    page.go("machines/worker")?;
    browser.click("[data-snapshot=noted] [data-action=revert]")?;
    let plan = page.plan("revert")?;
    assert!(plan.contains("worker goes back to worker@"), "{plan}");
    assert!(plan.contains("its present is kept as a snapshot first"), "{plan}");
    // Another choice has another plan, and nothing is confirmed until that is there.
    let chosen = "document.getElementById('field-discard').click(); \
        return document.querySelector('[data-dialog=revert] [data-action=confirm]').disabled";
    assert_eq!(browser.script(chosen)?, true);
    let plan = page.plan("revert")?;
    assert!(plan.contains("its present is NOT kept: it is gone"), "{plan}");
    browser.see("[data-dialog=revert] .danger[data-action=confirm]")?;
    browser.click("#field-discard")?;
    let plan = page.plan("revert")?;
    assert!(plan.contains("its present is kept as a snapshot first"), "{plan}");

    let serial = stage.machine.serial()?;
    let last = serial.next_heartbeat(serial.end(), 30 * SECOND)?;
    let mark = serial.end();
    page.confirm("revert")?;
    let (_, first) = serial.turned_back(mark, &last, 60 * SECOND)?;
    assert_eq!(first.token, last.token, "another program: it was booted, not brought back");
    let notes = "[...document.querySelectorAll('[data-snapshot] .note')]";
    browser.wait_until(&format!("{notes}.some((note) => note.innerText.includes('before the revert'))"))?;
    let listed = snapshots(stage.home, "worker")?;
    assert!(listed.iter().any(|one| one["note"] == "the present before the revert to noted"), "{listed:?}");
    Ok(())
}

/// While it is paused nothing is begun by policy, and the page says so wherever one looks.
pub fn pause_and_resume(stage: &Stage<'_>) -> Result<()> {
    let (page, browser) = (&stage.page, &stage.page.browser);
    let paused = || -> Result<Value> { Ok(stage.daemon.get("/api/v1/overview")?.json()["paused"].clone()) };
    page.go("policies")?;
    let told = browser.text("main")?;
    assert!(told.contains("Nothing is wrong.") && told.contains("often.toml"), "{told}");
    page.picture("policies")?;
    browser.click("main [data-action=pause]")?;
    let plan = browser.text("[data-dialog=pause]")?;
    assert!(plan.contains("Nothing is begun by policy"), "{plan}");
    assert_eq!(paused()?, false);
    page.confirm("pause")?;
    browser.see("[data-banner=paused]")?;
    assert_eq!(paused()?, true);
    page.go("machines")?;
    let banner = browser.text("[data-banner=paused]")?;
    assert!(banner.contains("nothing is begun by policy until somebody resumes"), "{banner}");
    browser.click("[data-banner=paused] [data-action=resume]")?;
    page.confirm("resume")?;
    browser.wait_until("!document.querySelector('[data-banner=paused]')")?;
    assert_eq!(paused()?, false);
    Ok(())
}
