use std::path::Path;

use super::*;

const NOW: &str = "2026-01-15T12:10:00Z";

fn owed(text: &str) -> Owed {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), format!("[host]\ntime_zone = \"UTC\"\n{text}")).unwrap();
    let loaded = crate::load(&[dir.path()], NOW.parse().unwrap());
    let policies = loaded.policies.unwrap_or_else(|| panic!("{:#?}", loaded.mistakes));
    policies.for_machine("db", &[]).unwrap()
}

fn planned(text: &str, days: u32) -> Vec<Day> {
    let plan = Plan::of(&owed(text), NOW.parse().unwrap(), days);
    assert!(!plan.cut_short);
    plan.days
}

fn shown(times: &[Timestamp]) -> Vec<String> {
    times.iter().map(|at| at.strftime("%d %H:%M").to_string()).collect()
}

const SNAPSHOTS: &str = "[policy.a]\nmachines = { names = [\"db\"] }\n[policy.a.snapshot]\nschedule = \"00/6:00\"\nkeep = { last = 2, daily = 3 }\n";
const BACKUPS: &str =
    "[policy.a]\nmachines = { names = [\"db\"] }\n[[policy.a.backup]]\nname = \"x\"\nrepository = \"/x\"\n";

#[test]
fn the_rule_keeps_what_the_rule_keeps() {
    let days = planned(SNAPSHOTS, 4);
    assert_eq!(days.iter().map(|day| day.date.to_string()).next_back().unwrap(), "2026-01-18");
    // One at once, as there is none; then at 18:00.
    assert_eq!(shown(&days[0].snapshots), ["15 12:10", "15 18:00"]);
    assert_eq!(shown(&days[1].snapshots), ["15 18:00", "16 12:00", "16 18:00"]);
    assert_eq!(shown(&days[3].snapshots), ["16 18:00", "17 18:00", "18 12:00", "18 18:00"]);
    // The same as the rule says of what there is at the end.
    let there: Vec<_> = days[3].snapshots.iter().map(|at| Kept { created: (*at).into(), tags: &[] }).collect();
    let Keep::By(rule) = owed(SNAPSHOTS).snapshot.unwrap().keep else { panic!() };
    assert!(rule.reasons(&there).iter().all(|reasons| !reasons.is_empty()));
    // What goes, goes with the snapshot that takes its place.
    let events = &days[1].events;
    let first = events.iter().position(|event| matches!(event.what, What::SnapshotGoes(_))).unwrap();
    assert_eq!((&events[first - 1].what, events[first - 1].at), (&What::Snapshot, events[first].at));
}

#[test]
fn what_exists_is_what_was_made_and_did_not_go() {
    let days = planned(&format!("{SNAPSHOTS}ttl = \"40h\"\n"), 20);
    let mut there = Vec::new();
    for day in &days {
        for event in &day.events {
            match event.what {
                What::Snapshot => there.push(event.at),
                What::SnapshotGoes(of) => there.retain(|at| *at != of),
                _ => {}
            }
        }
        assert_eq!(there, day.snapshots);
        // None is older than its time to live.
        let end = day.date.tomorrow().unwrap().to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        assert!(there.iter().all(|at| end.duration_since(*at) <= jiff::SignedDuration::from_hours(40)), "{day:?}");
    }
    assert_eq!(shown(&days[19].snapshots), ["02 18:00", "03 12:00", "03 18:00"]);
}

#[test]
fn a_lock_keeps_what_the_rule_does_not() {
    let rule = "schedule = \"daily\"\nkeep = { last = 1 }\n";
    let points = |text: &str| {
        let name = "x".parse().unwrap();
        planned(text, 6).iter().map(|day| day.points[&name].len()).collect::<Vec<_>>()
    };
    assert_eq!(points(&format!("{BACKUPS}{rule}")), [1, 1, 1, 1, 1, 1]);
    assert_eq!(points(&format!("{BACKUPS}{rule}lock_days = 3\n")), [1, 2, 3, 4, 3, 3]);
    assert_eq!(points(&format!("{BACKUPS}schedule = \"daily\"\nkeep = \"all\"\n")), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn windows_put_off_and_do_not_multiply() {
    let windows = "[policy.a.windows]\nallowed = [\"Sat 10:00-12:00\"]\n";
    let days = planned(&format!("{BACKUPS}schedule = \"daily\"\nkeep = \"all\"\n{windows}"), 10);
    let made: Vec<_> = days.iter().flat_map(|day| &day.events).map(|event| event.at).collect();
    // The week's daily ones are one, on Saturday.
    assert_eq!(shown(&made), ["17 10:00", "24 10:00"]);
}

#[test]
fn the_example_played_for_a_year() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    let from: Timestamp = NOW.parse().unwrap();
    let policies = crate::load(&[&examples], from).policies.unwrap();
    let plan = Plan::of(&policies.for_machine("db", &["prod".to_owned()]).unwrap(), from, 366);
    let last = plan.days.last().unwrap();
    assert_eq!(last.date.to_string(), "2027-01-15");
    let points = |name: &str| last.points[&name.parse().unwrap()].len();
    // 31 days and 11 months before; 48 hours, which are of three days in UTC, and 11 days before.
    assert_eq!((plan.cut_short, points("away"), points("here")), (false, 42, 59));
    // Sundays, and the first at once.
    let drills = plan.days.iter().flat_map(|day| &day.events).filter(|event| event.what == What::Drill).count();
    assert_eq!(drills, 53);
}

#[test]
fn nothing_is_owed_to_no_days_and_a_dense_schedule_is_cut() {
    assert!(Plan::of(&owed(SNAPSHOTS), NOW.parse().unwrap(), 0).days.is_empty());
    let plan = Plan::of(&owed(&SNAPSHOTS.replace("00/6:00", "*:*:*")), NOW.parse().unwrap(), 3);
    assert!(plan.cut_short && plan.days.len() == 3);
}
