//! Mistakes and where they are told to be.

mod mistakes;

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::{ApprovalRule, Consistency, DrillTarget, Keep, PolicyName};
use crate::select::Machine;

pub(super) fn now() -> Timestamp {
    "2026-01-15T00:00:00Z".parse().unwrap()
}

/// A directory with files.
pub(super) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

pub(super) fn loaded(files: &[(&str, &str)]) -> Loaded {
    load(&[directory(files).path()], now())
}

const POLICY: &str = "[policy.NAME]\nmachines = { names = [\"NAME*\"] }\n[policy.NAME.snapshot]\nschedule = \"hourly\"\nkeep = { last = 3 }\n";

/// A policy of that name, for machines whose names begin so.
pub(super) fn policy(name: &str) -> String {
    POLICY.replace("NAME", name)
}

fn machine(name: &str, tags: &[&str]) -> Machine {
    Machine { name: name.to_owned(), tags: tags.iter().map(|tag| (*tag).to_owned()).collect() }
}

#[test]
fn the_examples_are_without_any_mistake() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    let loaded = load(&[&examples], now());
    assert_eq!(loaded.mistakes, []);
    let policies = loaded.policies.unwrap();
    assert_eq!(policies.files.len(), 3);
    assert_eq!(policies.host.jobs, 2);
    let prod = policies.for_machine("db", &["prod".to_owned()]).unwrap();
    let snapshot = prod.snapshot.as_ref().unwrap();
    assert_eq!(prod.policy.as_str(), "prod");
    assert_eq!(prod.overrules.iter().map(PolicyName::as_str).collect::<Vec<_>>(), ["standard"]);
    assert_eq!(snapshot.schedule.to_string(), "*-*-* *:00/30:00");
    assert_eq!(snapshot.max_pause, Some(Duration::from_millis(100)));
    assert_eq!(snapshot.consistency, Consistency::FreezeIfPossible);
    assert_eq!((prod.backups[1].lock_days, prod.backups[1].audit_percent), (30, 5));
    assert_eq!(prod.backups[1].bandwidth.unwrap().bytes(), 20 << 20);
    let away = DrillTarget::Point("away".parse().unwrap());
    assert_eq!(prod.drill.unwrap().what, [DrillTarget::Snapshot, away]);
    assert_eq!(policies.for_machine("db-test", &["prod".to_owned()]).unwrap().policy.as_str(), "standard");
    let shop = policies.for_machine("shop-db", &[]).unwrap();
    assert_eq!((shop.policy.as_str(), shop.group.as_ref().unwrap().as_str()), ("shop", "shop"));
    // Machines of a group are due at one instant.
    assert_eq!(shop.seed(), policies.for_machine("shop-web", &[]).unwrap().seed());
    assert_eq!(policies.notify.mail[0].server, "mail.example.org:587");
}

#[test]
fn the_manual_has_every_key_that_is_read() {
    let manual = include_str!("../../../../docs/POLICIES.md");
    let tables = [
        "[policy.a]",
        "[policy.a.machines]",
        "[policy.a.snapshot]",
        "[policy.a.snapshot.keep]",
        "[[policy.a.backup]]",
        "[policy.a.drill]",
        "[policy.a.objectives]",
        "[policy.a.windows]",
        "[policy.a.limits]",
        "[group.a]",
        "[host]",
        "[host.deadlines]",
        "[host.approval]",
        "[[notify.healthchecks]]",
        "[[notify.webhook]]",
        "[[notify.mail]]",
    ];
    let mut seen = 0;
    for table in tables {
        let found = loaded(&[("a.toml", &format!("{table}\nqqqqqqqqq = 1\n"))]);
        let told = found.mistakes.iter().find_map(|mistake| mistake.remedy.strip_prefix("here can be: "));
        for key in told.unwrap_or_else(|| panic!("{table}: {found:#?}")).split(", ") {
            // As a key of its own, as one within a table, or as a table.
            let forms = [
                format!("`{key}`"),
                format!(".{key}`"),
                format!("`{key}."),
                format!(".{key}]"),
                format!("{key}, "),
                format!(" {key} }}"),
            ];
            assert!(forms.iter().any(|form| manual.contains(form)), "{table} {key}");
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn what_is_not_said_has_its_default() {
    let text = policy("db");
    let owed = loaded(&[("a.toml", &text)]).policies.unwrap().for_machine("db1", &[]).unwrap();
    let snapshot = owed.snapshot.unwrap();
    assert!(snapshot.memory && !snapshot.or_disk_only && snapshot.max_pause.is_none() && snapshot.ttl.is_none());
    assert_eq!((snapshot.jitter, snapshot.consistency), (Duration::ZERO, Consistency::Crash));
    assert!(matches!(snapshot.keep, Keep::By(rule) if rule.last == 3));
    assert_eq!(owed.place.to_string().rsplit('/').next(), Some("a.toml:1:9"));
}

#[test]
fn deadlines_are_the_hosts_each_for_itself() {
    let text = "[host.deadlines]\nbackup = \"3d\"\ncancel = \"30s\"\n";
    let host = loaded(&[("a.toml", text)]).policies.unwrap().host;
    let spans = [host.deadlines.snapshot, host.deadlines.backup, host.deadlines.cancel].map(|span| span.as_secs());
    assert_eq!(spans, [7200, 259_200, 30]);
    let wrong = loaded(&[("a.toml", "[host.deadlines]\nbackups = \"3d\"\n")]);
    assert!(wrong.mistakes[0].what.contains("host.deadlines.backups is not known"), "{:?}", wrong.mistakes);
}

#[test]
fn what_needs_an_approval_is_nothing_until_it_is_said_and_the_last_file_counts() {
    let rule = |files: &[(&str, &str)]| loaded(files).policies.unwrap().host.approval;
    assert_eq!(rule(&[("a.toml", "[host]\njobs = 3\n")]), ApprovalRule::default());
    assert!(ApprovalRule::default().asked_for.is_empty());
    let text = "[host.approval]\nasked_for = [\"delete\", \"stop\"]\n";
    let both = rule(&[("a.toml", text)]);
    assert_eq!(both.asked_for.iter().map(|deed| deed.as_str()).collect::<Vec<_>>(), ["stop", "delete"]);
    assert_eq!(both.valid, Duration::from_secs(86_400));
    let later = rule(&[("a.toml", text), ("z.toml", "[host.approval]\nvalid = \"30m\"\n")]);
    assert_eq!((later.asked_for, later.valid.as_secs()), (both.asked_for, 1800), "each key for itself");
    let none = rule(&[("a.toml", text), ("z.toml", "[host.approval]\nasked_for = []\n")]);
    assert!(none.asked_for.is_empty());
}

#[test]
fn files_count_in_order_and_all_of_their_mistakes_are_told() {
    let (a, c) = (policy("a").replace("hourly", "hurly"), policy("c").replace("last", "lost"));
    let found =
        loaded(&[("b.toml", &a), ("conf.d/a.toml", &c), (".hidden.toml", "?"), ("note.txt", "?"), ("z.toml", "x = [")]);
    assert!(found.policies.is_none());
    let told: Vec<(String, usize)> = found
        .mistakes
        .iter()
        .map(|mistake| (mistake.place.file.file_name().unwrap().to_string_lossy().into_owned(), mistake.place.line))
        .collect();
    assert!(told.contains(&("b.toml".to_owned(), 4)), "{told:?}");
    assert!(told.contains(&("a.toml".to_owned(), 5)), "{told:?}");
    assert!(told.contains(&("z.toml".to_owned(), 1)), "{told:?}");
    let (a, b, c) = (policy("a"), policy("b"), policy("c"));
    let dir = directory(&[("b.toml", &b), ("conf.d/a.toml", &a), ("c.toml", &c)]);
    let files = load(&[dir.path()], now()).policies.unwrap().files;
    let names: Vec<_> = files.iter().map(|file| file.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["b.toml", "c.toml", "conf.d/a.toml"]);
}

#[test]
fn a_zone_of_any_file_is_that_of_all_schedules() {
    let text = policy("db").replace("hourly", "02:30");
    let host = "[host]\ntime_zone = \"Asia/Tokyo\"\njobs = 7\n";
    let policies = loaded(&[("a.toml", &text), ("z.toml", host)]).policies.unwrap();
    let owed = policies.for_machine("db1", &[]).unwrap();
    let next = owed.snapshot_times().unwrap().next_after(now()).unwrap();
    assert_eq!((next.to_string().as_str(), policies.host.jobs), ("2026-01-15T17:30:00Z", 7));
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let dir = directory(&[("large.toml", &"#".repeat(1 << 21)), ("inner.toml/x", "")]);
    std::fs::write(dir.path().join("latin.toml"), b"# ok\n# Z\xfcrich\n").unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("link.toml")).unwrap();
    let found = load(&[dir.path(), Path::new("/nonexistent/policies")], now());
    assert!(found.policies.is_none());
    let told: Vec<String> =
        found.mistakes.iter().map(|mistake| format!("{}: {}", mistake.place, mistake.what)).collect();
    let has = |start: &str, what: &str| told.iter().any(|text| text.contains(start) && text.contains(what));
    assert!(has("latin.toml:2:4", "UTF-8") && has("large.toml:1:1", "1 MiB"), "{told:#?}");
    assert!(has("inner.toml:1:1", "cannot be read") && has("link.toml:1:1", "cannot be read"), "{told:#?}");
    assert!(has("/nonexistent/policies:1:1", "cannot be listed"), "{told:#?}");
}

#[test]
fn policies_are_compared_with_the_machines_there_are() {
    let named = |name: &str, pattern: &str, priority: i64| {
        let priority = format!("priority = {priority}\n[policy.{name}.snapshot]");
        policy(name).replace(&format!("{name}*"), pattern).replace(&format!("[policy.{name}.snapshot]"), &priority)
    };
    let text = [
        named("one", "db*", 1),
        named("two", "*1", 1),
        named("low", "db2", 0),
        named("nobody", "web*", 0),
        "[group.pair]\nmachines = { names = [\"db1\", \"db2\"] }\n".to_owned(),
        "[group.alone]\nmachines = { names = [\"db1\"] }\n".to_owned(),
    ]
    .concat();
    let policies = loaded(&[("a.toml", &text)]).policies.unwrap();
    let machines = [machine("db1", &[]), machine("db2", &[]), machine("x", &[])];
    let told: Vec<String> = policies
        .against(&machines)
        .iter()
        .map(|mistake| format!("{} {:?} {}", mistake.place.line, mistake.severity, mistake.what))
        .collect();
    let has = |line: usize, severity: &str, what: &str| {
        told.iter().any(|text| text.starts_with(&format!("{line} {severity}")) && text.contains(what))
    };
    assert!(has(7, "Error", "both choose db1 with priority 1"), "{told:#?}");
    assert!(has(13, "Warning", "policy.low counts for no machine: others come before it for db2"), "{told:#?}");
    assert!(has(19, "Warning", "policy.nobody chooses none of the 3"), "{told:#?}");
    assert!(has(25, "Error", "db1 belongs to group.alone and group.pair"), "{told:#?}");
    assert!(has(27, "Warning", "group.alone chooses 1"), "{told:#?}");
    assert_eq!(told.len(), 5, "{told:#?}");
    // Whichever way, a machine is owed something.
    let owed = policies.for_machine("db1", &[]).unwrap();
    assert_eq!((owed.policy.as_str(), owed.contradicted_by[0].as_str()), ("one", "two"));
    assert!(policies.for_machine("x", &[]).is_none());
}

#[test]
fn a_group_is_of_one_policy_and_has_a_name_of_its_own() {
    let text = [
        policy("db"),
        policy("web"),
        "[group.shop]\nmachines = { names = [\"db1\", \"web1\"] }\n".to_owned(),
        "[group.db2]\nmachines = { names = [\"db2\", \"db3\"] }\n".to_owned(),
    ]
    .concat();
    let policies = loaded(&[("a.toml", &text)]).policies.unwrap();
    let machines = ["db1", "db2", "db3", "web1"].map(|name| machine(name, &[]));
    let told: Vec<String> =
        policies.against(&machines).iter().map(|mistake| format!("{:?} {}", mistake.severity, mistake.what)).collect();
    let expected = [
        "Error group.shop has machines of policies db, web",
        "Error group.db2 has the name of a machine: backups of the group are refused",
    ];
    assert_eq!(told, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_changed_character_is_a_mistake_in_the_file_or_none(at in 0_usize..2000, with in "[\\[\\]{}=\".a0\n é*#-]") {
        let mut text = include_str!("../../../../examples/policies/standard.toml").to_owned();
        let at = text.char_indices().map(|(at, _)| at).nth(at % text.chars().count()).unwrap();
        let length = text[at..].chars().next().unwrap().len_utf8();
        text.replace_range(at..at + length, &with);
        let lines = text.lines().count() + 1;
        for mistake in loaded(&[("a.toml", &text)]).mistakes {
            prop_assert!((1..=lines).contains(&mistake.place.line), "{mistake:?}");
            prop_assert!(!mistake.what.is_empty() && !mistake.remedy.is_empty(), "{mistake:?}");
        }
    }
}
