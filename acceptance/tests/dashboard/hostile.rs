//! What others wrote is shown as text, and what is no name is refused in words.

use std::path::Path;

use keyframe_acceptance::browser::key;
use keyframe_acceptance::{Home, Page, Result};
use serde_json::json;

use super::{CONTENT, HOSTILE, Stage, unexpected};

/// A name that ends an attribute and a tag, if it is taken for a part of one.
const QUOTES: &str = "\"'><svg onload=window.hacked=2>";

/// Files whose names are no names for a page, and one in such a directory.
pub fn files(dir: &Path) {
    let inside = dir.join(format!("{HOSTILE}.d"));
    std::fs::create_dir(&inside).unwrap();
    for file in [inside.join(QUOTES), dir.join(format!("{HOSTILE}.txt")), dir.join("javascript:window.hacked=3")] {
        std::fs::write(file, CONTENT).unwrap();
    }
}

/// A machine whose tag is written by hand: `vm create` takes none like it.
pub fn spare(home: &Home) -> Result<()> {
    let refused = home.run(["vm", "create", "spare", "--tag", HOSTILE])?;
    assert!(refused.status == Some(2) && refused.stderr.contains("is not a tag"), "{}", refused.stderr);
    home.run(["vm", "create", "spare", "--memory", "128M", "--tag", "by-hand"])?.succeeded()?;
    let definition = home.path().join("vms/spare/machine.toml");
    let text = std::fs::read_to_string(&definition).unwrap();
    assert!(text.contains("by-hand"), "{text}");
    std::fs::write(&definition, text.replace("by-hand", HOSTILE)).unwrap();
    Ok(())
}

/// Nothing of all that was run, or became an element.
fn nothing_came_of_it(page: &Page) -> Result<()> {
    assert_eq!(page.browser.count("img[src=x], svg[onload], body script")?, 0);
    assert_eq!(page.browser.script("return typeof window.hacked")?, "undefined");
    Ok(())
}

/// A note and a tag are shown as they were written, and do nothing.
pub fn texts_are_texts(page: &Page) -> Result<()> {
    let browser = &page.browser;
    assert_eq!(browser.text("[data-snapshot=noted] .note")?, HOSTILE);
    browser.click("[data-snapshot=noted] [data-action=details]")?;
    browser.see("[data-snapshot=noted] .tree-details")?;
    browser.click("[data-snapshot=noted] [data-action=details]")?;
    page.go("machines/spare")?;
    assert_eq!(browser.text("main .machine-head .tag")?, HOSTILE);
    page.go("machines")?;
    assert_eq!(browser.text("[data-machine=spare] .tag")?, HOSTILE);
    browser.press("/<img")?;
    browser.see("[data-found='1']")?;
    browser.see("[data-machine=spare]")?;
    let fits =
        "const tag = document.querySelector('[data-machine=spare] .tag'); return tag.scrollWidth <= tag.clientWidth";
    assert_eq!(browser.script(fits)?, true, "it lies over what stands beside it");
    browser.press(key::ESCAPE)?;
    nothing_came_of_it(page)?;
    let complaints = browser.complaints()?;
    assert!(!complaints.is_empty(), "the refused token is a complaint: so others would be seen");
    assert!(complaints.iter().all(|line| line.contains("status of 401") || line.contains("status of 409")));
    // Nor would a script do anything that got into the page all the same.
    let injected = "const one = document.createElement('div'); \
        one.innerHTML = '<img src=\"data:,\" onerror=\"window.reached=1\">'; document.body.append(one); \
        return new Promise((done) => setTimeout(() => { one.remove(); done(typeof window.reached); }, 300))";
    assert_eq!(browser.script(injected)?, "undefined");
    // That the browser refused it is a complaint that is expected.
    let complaints = browser.complaints()?;
    let refused = complaints.iter().filter(|line| line.contains("Content Security Policy")).count();
    assert!(refused > 0, "{complaints:?}");
    Ok(())
}

/// A script as the name of a machine: the page refuses it, the daemon does when the page would not, and both say so in text.
pub fn names_are_refused(stage: &Stage<'_>) -> Result<()> {
    let (page, browser) = (&stage.page, &stage.page.browser);
    page.go("machines/worker")?;
    browser.click("[data-snapshot=noted] [data-action=fork]")?;
    page.plan("fork")?;
    let refused = |words: &str| {
        let told = "document.querySelector('[data-dialog=fork] [role=alert]')?.innerText";
        browser.wait_until(&format!("{told}?.startsWith({})", json!(words)))
    };
    browser.script("document.getElementById('field-name').value = ''")?;
    browser.type_into("#field-name", HOSTILE)?;
    refused(&format!("New machine cannot be “{HOSTILE}”"))?;
    let let_through =
        "const of = HTMLInputElement.prototype; of.kept = of.checkValidity; of.checkValidity = () => true";
    browser.script(let_through)?;
    browser.type_into("#field-name", "<")?;
    refused("'<' cannot be part of a machine name")?;
    assert_eq!(browser.script("return document.querySelector('[data-action=confirm]').disabled")?, true);
    browser.script("const of = HTMLInputElement.prototype; of.checkValidity = of.kept; delete of.kept")?;
    browser.click("[data-dialog=fork] [data-action=dismiss]")?;
    page.gone("fork")?;

    // The address of a machine that cannot be.
    browser.script(&format!("location.hash = '#/machines/' + encodeURIComponent({})", json!(HOSTILE)))?;
    let refusal = browser.text("main [role=alert]")?;
    assert!(refusal.contains(&format!("there is no machine {HOSTILE:?}")), "{refusal}");
    assert_eq!(browser.text("main h1")?, HOSTILE);
    nothing_came_of_it(page)?;
    let complaints = page.complaints(&[400, 401, 404, 409])?;
    assert!(complaints.is_empty(), "{complaints:#?}");

    let fork = json!({"action": "fork", "snapshot": "noted", "name": HOSTILE, "plan": true});
    let snapshot = json!({"action": "snapshot", "plan": true});
    let nobody = "/api/v1/machines/%3Cimg%20src=x%20onerror=window.hacked=1%3E/actions";
    for (path, body, status) in [("/api/v1/machines/worker/actions", fork, 400), (nobody, snapshot, 404)] {
        let answer = stage.daemon.post(path, &body)?;
        let head = answer.head.to_lowercase();
        assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
        let error = answer.json()["error"].to_string();
        assert!(answer.status == status && error.contains("cannot be part of a machine name"), "{answer:?}");
    }
    Ok(())
}

/// Files and directories of a guest, from where the two are listed: they are shown, opened and taken out by the names that they have.
pub fn names_of_files(page: &Page) -> Result<()> {
    let browser = &page.browser;
    let row = |name: &str| format!("[data-entry={}]", json!(name));
    let (file, directory) = (row(&format!("{HOSTILE}.txt")), row(&format!("{HOSTILE}.d")));
    assert_eq!(browser.text(&format!("{file} .entry"))?, format!("{HOSTILE}.txt"));
    browser.see(&row("javascript:window.hacked=3"))?;
    let link = json!(format!("{file} [data-action=download]"));
    let fetched =
        browser.promise(&format!("fetch(document.querySelector({link}).href).then((answer) => answer.text())"))?;
    assert_eq!(fetched, CONTENT);
    browser.click(&format!("{directory} a"))?;
    assert_eq!(browser.text(&format!("{} .entry", row(QUOTES)))?, QUOTES);
    assert_eq!(browser.text("[aria-label=Path] [aria-current]")?, format!("{HOSTILE}.d"));
    nothing_came_of_it(page)?;
    let complaints = unexpected(page)?;
    assert!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
