//! How it looks: colours that can be read, a phone, pictures.

use std::time::Duration;

use keyframe_acceptance::{Page, Result};
use serde_json::Value;

const VIEWS: [&str; 8] = ["machines", "machines/worker", "jobs", "drills", "alerts", "space", "policies", "audit"];

/// Colours change within this time.
const TURNED_WITHIN: Duration = Duration::from_millis(300);
/// Texts of the page that stand on what is below them with less than 4.5 of contrast. Source: WCAG 2.2, relative luminance.
const FAINT: &str = r"
    const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
    const colour = (text) => text.match(/[\d.]+/g).map(Number);
    const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const found = colour(getComputedStyle(at).backgroundColor);
            if (found[3] !== 0) return found;
        }
        return [255, 255, 255];
    };
    const faint = [];
    let looked = 0;
    for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((one) => one.nodeType === Node.TEXT_NODE && one.data.trim());
        if (!own || !node.checkVisibility() || node.closest('svg, noscript, .skip, :disabled')) continue;
        looked += 1;
        const [a, b] = [luminance(colour(getComputedStyle(node).color)), luminance(ground(node))].sort((a, b) => b - a);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) faint.push(`${node.className || node.localName}: ${contrast.toFixed(2)}: ${node.innerText}`);
    }
    return { faint, looked, ground: luminance(ground(document.body)) };
";

/// Each text can be read, light and dark; and dark is dark.
pub fn colours(page: &Page) -> Result<()> {
    for (dark, ground) in [(false, 0.8..1.0), (true, 0.0..0.05)] {
        page.browser.dark(dark)?;
        std::thread::sleep(TURNED_WITHIN);
        for view in VIEWS {
            page.go(view)?;
            let seen = page.browser.script(FAINT)?;
            assert_eq!(seen["faint"], Value::Array(Vec::new()), "{view}, dark: {dark}");
            assert!(seen["looked"].as_u64() > Some(10), "{view}: {seen}");
            assert!(ground.contains(&seen["ground"].as_f64().unwrap()), "{view}, dark: {dark}: {seen}");
        }
    }
    page.browser.dark(false)
}

/// On a phone nothing is to be scrolled for sideways.
pub fn phone(page: &Page) -> Result<()> {
    page.browser.size(390, 844, true)?;
    for view in VIEWS.into_iter().chain(["more"]) {
        page.go(view)?;
        assert!(page.is_no_wider_than(390)?, "{view}");
        page.browser.see("#tabs [data-view]")?;
    }
    page.browser.size(1280, 800, false)
}

/// Of every view that nothing else takes one of.
pub fn pictures(page: &Page) -> Result<()> {
    if !page.takes_pictures() {
        return Ok(());
    }
    page.go("jobs")?;
    page.browser.see("[data-job][data-state=running]")?;
    page.picture("jobs")?;
    for view in ["machines", "drills", "alerts", "space", "audit"] {
        page.go(view)?;
        page.picture(view)?;
    }
    page.go("machines/worker")?;
    page.whole_picture("machine")?;
    page.browser.dark(true)?;
    page.go("machines")?;
    page.picture("machines-dark")?;
    page.browser.dark(false)?;
    page.browser.size(390, 844, true)?;
    page.go("machines/worker")?;
    page.picture("machine-phone")?;
    page.browser.size(1280, 800, false)
}
