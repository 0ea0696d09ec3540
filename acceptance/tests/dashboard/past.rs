//! Days before the test: jobs and free space that the daemon finds in its catalog, as one that ran meanwhile would have left them.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use keyframe_acceptance::{Home, Page, Result};
use keyframe_daemon::catalog::Catalog;
use keyframe_daemon::job::{Duty, Job, State};
use keyframe_daemon::space::Space;

/// Why a job of those days was given up.
pub const TROUBLE: &str = "the repository did not answer for 30 min";
/// How many days are remembered.
const DAYS: i64 = 13;
/// Days ago on which a backup failed.
const BAD_DAY: i64 = 4;
/// In how many days the disk is full, as it goes.
const FULL_IN_DAYS: u64 = 40;
const HOUR: Duration = Duration::from_secs(3600);

/// Some of the days that were remembered.
#[derive(Debug)]
pub struct Days {
    /// One as any other.
    usual: Date,
    /// The one on which something failed.
    bad: Date,
}

/// A job as it is when it has ended.
pub fn ended(machine: &str, policy: &str, duty: Duty, at: Timestamp, state: State) -> Job {
    let began = at - Duration::from_secs(42);
    let mut job = Job::owed(machine, &policy.parse().unwrap(), duty, began, 0, began);
    (job.state, job.began, job.ended) = (state, Some(began), Some(at));
    job.what = (state == State::Failed).then(|| TROUBLE.to_owned());
    job
}

/// The catalog of a home whose daemon does not run yet.
pub fn catalog(home: &Home) -> Catalog {
    let serve = home.path().join("serve");
    std::fs::create_dir_all(&serve).unwrap();
    Catalog::open(&serve.join("catalog.db"), Timestamp::now()).unwrap().0
}

/// Fills the catalog: each day four snapshots and a point, each fourth a drill; and a disk that fills up.
pub fn remember(home: &Home) -> Days {
    let now = Timestamp::now();
    let day = |ago: i64| now.to_zoned(TimeZone::system()).date().checked_sub(ago.days()).unwrap();
    let at = |ago: i64, hour: i8| day(ago).at(hour, 20, 0, 0).to_zoned(TimeZone::system()).unwrap().timestamp();
    let free = Space::of(home.path(), Vec::new(), now).free_bytes;
    let filled_each_hour = free / FULL_IN_DAYS / 24;
    let often = |duty, at, state| ended("worker", "often", duty, at, state);
    let backup = || Duty::Backup("local".to_owned());
    catalog(home)
        .change(|catalog| {
            for ago in 1..=DAYS {
                for hour in [1, 7, 13, 19] {
                    catalog.put(&often(Duty::Snapshot, at(ago, hour), State::Done))?;
                }
                let came = if ago == BAD_DAY { State::Failed } else { State::Done };
                catalog.put(&often(backup(), at(ago, 2), came))?;
                if ago % 4 == 1 {
                    catalog.put(&often(Duty::Drill, at(ago, 3), State::Done))?;
                }
            }
            for hours in (1..=24 * u32::try_from(DAYS).unwrap()).step_by(6) {
                catalog.note_space(now - HOUR * hours, free + filled_each_hour * u64::from(hours))?;
            }
            catalog.complete()
        })
        .unwrap();
    Days { usual: day(5), bad: day(BAD_DAY) }
}

/// A machine's days: what each left, what is missing on one, and what the coming ones will leave.
pub fn calendar(page: &Page, days: &Days) -> Result<()> {
    let browser = &page.browser;
    page.go("machines/worker")?;
    let usual = format!("[data-date='{}']", days.usual);
    assert_eq!(browser.text(&format!("{usual} .day-mark.is-snapshot"))?, "4");
    assert_eq!(browser.text(&format!("{usual} .day-mark.is-point"))?, "1");
    browser.see(&format!("{usual} .day-mark.is-passed"))?;
    let told = |day: &str| browser.script(&format!("return document.querySelector(\"{day}\").title"));
    assert_eq!(told(&usual)?, format!("{}: 4 snapshots, 1 point, 1 drill passed", days.usual));
    let bad = format!("[data-date='{}']", days.bad);
    browser.see(&format!("{bad}.bad .day-mark.is-failed"))?;
    assert_eq!(told(&bad)?, format!("{}: 4 snapshots, 1 job failed", days.bad));
    assert_eq!(browser.count(&format!("{bad} .is-point"))?, 0);
    for mark in ["snapshot", "point", "passed"] {
        browser.see(&format!("[data-day=today] .day-mark.is-{mark}"))?;
        browser.see(&format!("[data-day=coming] .day-mark.is-{mark}"))?;
    }
    Ok(())
}

/// Where the room goes, and when there is none left.
pub fn space(page: &Page) -> Result<()> {
    page.go("space")?;
    let words = page.browser.text(".space-words")?;
    let days = words.split("Full in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let days: u64 = days.unwrap_or_else(|| panic!("no forecast: {words}"));
    assert!((FULL_IN_DAYS / 2..FULL_IN_DAYS * 2).contains(&days), "{words}");
    assert_eq!(page.browser.count(".chart-ahead")?, 1);
    let foot = page.browser.text("figcaption")?;
    assert!(foot.contains(", if it goes on: "), "{foot}");
    let takers = page.browser.text("#takers")?;
    assert!(takers.contains("worker") && takers.contains("snapshots"), "{takers}");
    Ok(())
}
