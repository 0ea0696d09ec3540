//! What policies owe, key by key, and what it is on the command line.

use std::collections::BTreeMap;

use keyframe_policy::Policies;

use super::*;
use crate::job::{Action, Made};

fn seen(id: &str, created: &str, owner: &str, held: bool) -> SeenSnapshot {
    let created = created.parse().unwrap();
    SeenSnapshot { id: id.into(), name: id.into(), created, owner: owner.into(), expires: None, held }
}

#[test]
fn only_what_policies_took_and_nothing_holds_goes() {
    let rule = Retention { last: 1, ..Retention::default() };
    let all = [
        seen("person", "2026-11-01T00:00:00Z", "anna", false),
        seen("old", "2026-11-02T00:00:00Z", "policy/standard", false),
        seen("pinned", "2026-11-03T00:00:00Z", "policy/standard", true),
        seen("another's", "2026-11-03T12:00:00Z", "policy/standard-2", false),
        seen("latest", "2026-11-04T00:00:00Z", "policy/standard", false),
    ];
    let not_kept = |made, now: &str| not_kept(&rule, "standard", &all, made, now.parse().unwrap());
    assert_eq!(not_kept(None, "2026-11-05T00:00:00Z"), ["old"]);
    assert_eq!(not_kept(Some("old"), "2026-11-05T00:00:00Z"), Vec::<String>::new(), "what was just made stays");
    // By a clock that ran ahead.
    assert_eq!(not_kept(None, "2026-11-02T12:00:00Z"), Vec::<String>::new(), "the latest of its time stays");
}

#[test]
fn pauses_between_attempts_grow() {
    let minutes: Vec<u64> = (1..7).map(|attempt| backoff(attempt).as_secs() / 60).collect();
    assert_eq!(minutes, [1, 5, 15, 60, 60, 60]);
}

fn now() -> Timestamp {
    "2026-11-05T12:00:00Z".parse().unwrap()
}

fn policies(text: &str) -> Policies {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("policies.toml"), text).unwrap();
    let loaded = keyframe_policy::load(&[dir.path()], now());
    loaded.policies.unwrap_or_else(|| panic!("{text}: {:?}", loaded.mistakes))
}

/// What a policy with these lines owes the machine `db`.
fn owed(lines: &str) -> Owed {
    let text = format!("[policy.p]\nmachines = {{ names = [\"*\"] }}\n{lines}\n");
    policies(&text).for_machine("db", &[]).unwrap()
}

static NO_SNAPSHOTS: Snapshots = Snapshots::new();

/// What a step comes to: the arguments with `|` between them, and what is other for each job by a name of its own.
fn come_to<'a>(owed: &'a Owed, job: &Job, step: Step, more: impl FnOnce(&mut Means<'a>)) -> String {
    let mut job = job.clone();
    job.steps = vec![step];
    let snapshots = &NO_SNAPSHOTS;
    let mut means = Means { owed: Some(owed), snapshots, now: now(), share: None, prune_due: true, anchor: None };
    more(&mut means);
    match todo(&job, means) {
        Todo::Nothing => "nothing".to_owned(),
        Todo::Withdrawn(why) => format!("withdrawn: {why}"),
        Todo::Run(line) => {
            assert_eq!(line.environment, []);
            assert!(line.arguments.iter().all(|argument| !argument.contains('|')), "{line:?}");
            let mut text = line.arguments.join("|").replace(job.id.as_str(), "ID");
            for (number, backup) in owed.backups.iter().enumerate() {
                text = text.replace(&tag("p", backup), &format!("TAG{number}"));
            }
            text
        }
    }
}

fn job(owed: &Owed, duty: Duty) -> Job {
    Job::owed("db", &owed.policy, duty, now(), 0, now())
}

/// Names all keys of which the tables below have a line each: one that is new does not go by without any.
fn each_key_has_a_line(owed: &Owed) {
    let SnapshotPolicy {
        schedule: _,
        jitter: _,
        memory: _,
        consistency: _,
        max_pause: _,
        or_disk_only: _,
        keep: _,
        ttl: _,
    } = owed.snapshot.as_ref().unwrap();
    let BackupPolicy {
        name: _,
        repository: _,
        key_file: _,
        schedule: _,
        jitter: _,
        memory: _,
        consistency: _,
        keep: _,
        lock_days: _,
        bandwidth: _,
        audit_percent: _,
        rpo: _,
        tags: _,
    } = &owed.backups[0];
    let DrillPolicy { schedule: _, jitter: _, what: _, within: _, probes: _ } = owed.drill.as_ref().unwrap();
}

const SNAPSHOT: &str = "snapshot|db|--name|auto-ID|--owner|policy/p|--note|owed by policy p";

fn snapshot_owed(key: &str) -> Owed {
    let keep = if key.contains("keep") { "" } else { "keep = { last = 2 }" };
    owed(&format!("[policy.p.snapshot]\nschedule = \"hourly\"\n{keep}\n{key}"))
}

#[test]
fn each_key_of_snapshots_is_an_argument() {
    for (key, further) in [
        ("", ""),
        ("memory = true", ""),
        ("memory = false", "|--disk-only"),
        ("consistency = \"crash\"", ""),
        ("consistency = \"freeze-if-possible\"", "|--freeze=try"),
        ("consistency = \"freeze\"", "|--freeze=must"),
        ("ttl = \"7d\"", "|--ttl|604800s"),
        ("max_pause = \"250ms\"", "|--max-pause|250ms"),
        ("max_pause = \"2s\"\nor_disk_only = true", "|--max-pause|2000ms|--or-disk-only"),
        ("jitter = \"10m\"", ""),
        (
            "memory = false\nttl = \"1h\"\nmax_pause = \"1s\"\nconsistency = \"freeze\"",
            "|--disk-only|--ttl|3600s|--max-pause|1000ms|--freeze=must",
        ),
    ] {
        let owed = snapshot_owed(key);
        let line = come_to(&owed, &job(&owed, Duty::Snapshot), Step::Main, |_| {});
        assert_eq!(line, format!("{SNAPSHOT}{further}"), "{key}");
    }
}

#[test]
fn snapshots_that_are_not_kept_or_past_their_time_go() {
    let of_policy = |id: &str, day: u8, expired: bool, held: bool| {
        let mut one = seen(id, &format!("2026-11-0{day}T00:00:00Z"), "policy/p", held);
        one.expires = expired.then(now);
        one
    };
    let history = vec![
        of_policy("a", 1, true, false),
        of_policy("b", 2, true, true),
        of_policy("c", 3, false, false),
        of_policy("d", 4, false, false),
    ];
    let all = Snapshots::from([("db".to_owned(), history)]);
    for (key, step, expected) in [
        ("keep = { last = 2 }", Step::Thin, "delete|db@a"),
        ("keep = { last = 1 }", Step::Thin, "delete|db@a|db@c"),
        ("keep = { daily = 3 }", Step::Thin, "delete|db@a"),
        ("keep = \"all\"\nttl = \"7d\"", Step::Thin, "nothing"),
        ("keep = \"all\"\nttl = \"7d\"", Step::Expire, "expire|db"),
    ] {
        let owed = snapshot_owed(key);
        let line = come_to(&owed, &job(&owed, Duty::Snapshot), step, |means| means.snapshots = &all);
        assert_eq!(line, expected, "{key}");
    }
    let owed = snapshot_owed("");
    assert_eq!(come_to(&owed, &job(&owed, Duty::Snapshot), Step::Expire, |_| {}), "nothing");
}

const BACKUP: &str = "backup|db|--tag|job-ID|--note|owed by policy p|--tag|TAG0";
const PLACE: &str = "|--repo|/srv/b";

fn backup_owed(key: &str) -> Owed {
    let repository = if key.contains("repository") { "" } else { "repository = \"/srv/b\"" };
    let keep = if key.contains("keep") { "" } else { "keep = \"all\"" };
    owed(&format!("[[policy.p.backup]]\nname = \"away\"\nschedule = \"daily\"\n{repository}\n{keep}\n{key}"))
}

fn backup() -> Duty {
    Duty::Backup("away".to_owned())
}

#[test]
fn each_key_of_backups_is_an_argument() {
    for (key, own, place) in [
        ("", "", PLACE),
        ("memory = false", "", PLACE),
        ("memory = true", "|--memory", PLACE),
        ("consistency = \"crash\"", "", PLACE),
        ("consistency = \"freeze-if-possible\"", "|--freeze=try", PLACE),
        ("consistency = \"freeze\"", "|--freeze=must", PLACE),
        ("audit_percent = 0", "", PLACE),
        ("audit_percent = 5", "|--audit|5%", PLACE),
        ("tags = [\"gold\", \"eu\"]", "|--tag|gold|--tag|eu", PLACE),
        ("repository = \"sftp://b/srv\"", "", "|--repo|sftp://b/srv"),
        ("key_file = \"/etc/a key\"", "", "|--repo|/srv/b|--key-file|/etc/a key"),
        ("bandwidth = \"20M\"", "", "|--repo|/srv/b|--bandwidth|20971520"),
        // These are no matter of this command.
        ("jitter = \"1h\"\nlock_days = 3\nkeep = { last = 4 }\nrpo = \"2d\"", "", PLACE),
        (
            "memory = true\nconsistency = \"freeze\"\naudit_percent = 100\ntags = [\"x\"]\nkey_file = \"/k\"\nbandwidth = \"9000\"",
            "|--memory|--freeze=must|--audit|100%|--tag|x",
            "|--repo|/srv/b|--key-file|/k|--bandwidth|9000",
        ),
    ] {
        let owed = backup_owed(key);
        let line = come_to(&owed, &job(&owed, backup()), Step::Main, |_| {});
        assert_eq!(line, format!("{BACKUP}{own}{place}"), "{key}");
    }
    let owed = backup_owed("");
    let line = come_to(&owed, &job(&owed, backup()), Step::Main, |means| means.anchor = Some("7 abc"));
    assert_eq!(line, format!("{}{PLACE}", BACKUP.replace("policy p|", "policy p; audit 7 abc|")));
}

#[test]
fn the_lesser_of_a_backups_and_the_hosts_bandwidth_counts() {
    for (own, share, expected) in [
        ("", None, ""),
        ("", Some(7000), "|--bandwidth|7000"),
        ("bandwidth = \"9000\"", None, "|--bandwidth|9000"),
        ("bandwidth = \"9000\"", Some(7000), "|--bandwidth|7000"),
        ("bandwidth = \"5000\"", Some(7000), "|--bandwidth|5000"),
    ] {
        let owed = backup_owed(own);
        let line = come_to(&owed, &job(&owed, backup()), Step::Main, |means| means.share = share);
        assert_eq!(line, format!("{BACKUP}{PLACE}{expected}"), "{own:?} {share:?}");
    }
}

#[test]
fn each_step_behind_a_point_goes_to_its_repository() {
    let keys = "key_file = \"/k\"\nbandwidth = \"9000\"\n";
    let place = format!("{PLACE}|--key-file|/k|--bandwidth|9000");
    let rules = "keep = { last = 1, hourly = 2, daily = 3, weekly = 4, monthly = 5, yearly = 6 }";
    let kept = "--keep-last|1|--keep-hourly|2|--keep-daily|3|--keep-weekly|4|--keep-monthly|5|--keep-yearly|6";
    for (key, step, expected) in [
        ("", Step::Look, "points|db".to_owned()),
        ("lock_days = 3", Step::Lock, "lock|db@POINT|--for|3d".to_owned()),
        (rules, Step::Thin, format!("repo|forget|--name|db|--tag|TAG0|{kept}")),
        ("keep = { weekly = 8 }", Step::Thin, "repo|forget|--name|db|--tag|TAG0|--keep-weekly|8".to_owned()),
        ("", Step::Prune, "repo|prune".to_owned()),
    ] {
        let owed = backup_owed(&format!("{keys}{key}"));
        let mut job = job(&owed, backup());
        job.made = Some(Made::new("POINT".to_owned(), now()));
        assert_eq!(come_to(&owed, &job, step, |_| {}), format!("{expected}{place}"), "{key} {step:?}");
    }
    let owed = backup_owed("lock_days = 3\nkeep = { last = 1 }");
    let (fresh, mut torn) = (job(&owed, backup()), job(&owed, backup()));
    torn.incomplete = true;
    assert_eq!(come_to(&owed, &fresh, Step::Lock, |_| {}), "nothing", "there is no point");
    assert_eq!(come_to(&owed, &torn, Step::Thin, |_| {}), "nothing", "what is missing may be in what would go");
    assert_eq!(come_to(&owed, &fresh, Step::Prune, |means| means.prune_due = false), "nothing");
    let (owed, mut made) = (backup_owed(""), fresh);
    made.made = Some(Made::new("POINT".to_owned(), now()));
    for step in [Step::Lock, Step::Thin] {
        assert_eq!(come_to(&owed, &made, step, |_| {}), "nothing", "no days, and all are kept: {step:?}");
    }
}

const TWO_BACKUPS: &str = "[[policy.p.backup]]\nname = \"away\"\nschedule = \"daily\"\nrepository = \"/srv/b\"\nkeep = \"all\"\n\
    [[policy.p.backup]]\nname = \"far\"\nschedule = \"daily\"\nrepository = \"s3://far\"\nkeep = \"all\"\nbandwidth = \"9000\"\n\
    [policy.p.snapshot]\nschedule = \"hourly\"\nkeep = { last = 2 }\n\
    [policy.p.drill]\nschedule = \"weekly\"\n";

#[test]
fn each_key_of_drills_is_an_argument() {
    let (old, latest) =
        (seen("old", "2026-11-01T00:00:00Z", "anna", false), seen("new", "2026-11-02T00:00:00Z", "anna", false));
    let all = Snapshots::from([("db".to_owned(), vec![old, latest])]);
    // The latest of the backup itself, whatever else is called so.
    let test = "test|db@new";
    let (away, far) = ("drill|db@TAG0|--repo|/srv/b", "drill|db@TAG1|--repo|s3://far|--bandwidth|9000");
    let usual = "|--within|120000ms";
    for (keys, expected, further) in [
        ("what = \"snapshot\"", vec![test], usual),
        ("what = \"point\"", vec![away, far], usual),
        ("what = \"point:far\"", vec![far], usual),
        ("what = [\"snapshot\", \"point:far\"]", vec![test, far], usual),
        ("what = [\"point:far\", \"snapshot\"]", vec![far, test], usual),
        ("what = \"point\"\njitter = \"1h\"", vec![away, far], usual),
        ("what = \"point\"\nwithin = \"5m\"", vec![away, far], "|--within|300000ms"),
        (
            "what = \"point\"\nprobes = [\"tcp=80\", \"serial=login: \"]",
            vec![away, far],
            "|--within|120000ms|--probe|tcp=80|--probe|serial=login: ",
        ),
    ] {
        let owed = owed(&format!("{TWO_BACKUPS}{keys}"));
        each_key_has_a_line(&owed);
        let job = job(&owed, Duty::Drill);
        let lines: Vec<String> = (0..=u8::try_from(expected.len()).unwrap())
            .map(|number| come_to(&owed, &job, Step::Drill(number), |means| means.snapshots = &all))
            .collect();
        let expected = expected.iter().map(|line| format!("{line}{further}")).chain(["nothing".to_owned()]);
        assert_eq!(lines, expected.collect::<Vec<_>>(), "{keys}");
    }
    let owed = owed(&format!("{TWO_BACKUPS}what = \"snapshot\""));
    let none = come_to(&owed, &job(&owed, Duty::Drill), Step::Drill(0), |_| {});
    assert_eq!(none, "withdrawn: db has no snapshot that could be tested");
}

#[test]
fn what_is_owed_to_a_group_is_one_command_for_all_of_it() {
    let text = format!(
        "[policy.p]\nmachines = {{ names = [\"*\"] }}\n{TWO_BACKUPS}what = [\"snapshot\", \"point:far\"]\n\
         [group.shop]\nmachines = {{ names = [\"db\", \"web\"] }}\nwithin = \"500ms\"\n"
    );
    let owed = policies(&text).for_machine("db", &[]).unwrap();
    let of = |duty| job(&owed, duty).for_group("shop", ["db", "web"].map(str::to_owned));
    let one = |id: &str| vec![seen(id, "2026-11-01T00:00:00Z", "policy/p", false)];
    let all = Snapshots::from([("db".to_owned(), one("d")), ("web".to_owned(), one("w"))]);
    let within = "|--within|120000ms";
    for (duty, step, expected) in [
        (Duty::Snapshot, Step::Main, SNAPSHOT.replace("|db|", "|db|web|--within|500ms|")),
        (backup(), Step::Main, format!("{}{PLACE}", BACKUP.replace("|db|", "|db|web|--group|shop|--within|500ms|"))),
        (backup(), Step::Look, format!("points|db{PLACE}")),
        (Duty::Drill, Step::Drill(0), format!("test|db@d|web@w{within}")),
        (Duty::Drill, Step::Drill(1), format!("drill|shop@TAG1|--repo|s3://far|--bandwidth|9000{within}")),
    ] {
        let line = come_to(&owed, &of(duty.clone()), step, |means| means.snapshots = &all);
        assert_eq!(line, expected, "{duty:?} {step:?}");
    }
}

#[test]
fn what_somebody_asks_for_is_as_they_said_with_the_repository_of_the_backup() {
    let owed = backup_owed("key_file = \"/k\"");
    let asked = |backup: Option<&str>| {
        let arguments = vec!["restore".to_owned(), "db".to_owned()];
        let action = Action { kind: "restore".to_owned(), arguments, backup: backup.map(str::to_owned) };
        Job::asked("db", action, "uid 0", now())
    };
    for (backup, expected) in [
        (None, "restore|db"),
        (Some("away"), "restore|db|--repo|/srv/b|--key-file|/k|--bandwidth|7000"),
        (Some("none"), "withdrawn: there is no backup none in its policy"),
    ] {
        let line = come_to(&owed, &asked(backup), Step::Main, |means| means.share = Some(7000));
        assert_eq!(line, expected);
    }
}

#[test]
fn what_a_policy_does_not_say_any_more_is_not_done() {
    let (owed, other) = (owed(&format!("{TWO_BACKUPS}what = \"point\"")), owed(""));
    let withdrawn: BTreeMap<String, String> = [Duty::Snapshot, backup(), Duty::Drill]
        .into_iter()
        .map(|duty| (duty.key(), come_to(&other, &job(&owed, duty), Step::Drill(0), |_| {})))
        .collect();
    assert_eq!(
        withdrawn.into_values().collect::<Vec<_>>(),
        [
            "withdrawn: policy p has no backup away any more",
            "withdrawn: policy p asks for no drills any more",
            "withdrawn: policy p asks for no snapshots any more",
        ]
    );
    let nobody = come_to(&owed, &job(&owed, Duty::Drill), Step::Drill(0), |means| means.owed = None);
    assert_eq!(nobody, "withdrawn: policy p does not choose db any more");
}
