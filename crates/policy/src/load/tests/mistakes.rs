//! One mistake each: what is told of it, and where.

use super::*;

/// A policy with everything, of which the tests change a part.
const WHOLE: &str = r#"[host]
jobs = 2
[policy.db]
machines = { names = ["db*"], tags = ["prod"] }
priority = 1
objectives = { rpo = "2h", rto = "1h" }
[policy.db.snapshot]
schedule = "hourly"
keep = { hourly = 24 }
ttl = "7d"
[[policy.db.backup]]
name = "nightly"
repository = "/backup"
schedule = "*-*-* 00/2:00"
keep = { daily = 14 }
[policy.db.drill]
schedule = "weekly"
what = ["snapshot", "point"]
probes = ["tcp=22"]
[policy.db.windows]
allowed = ["22:00-06:00"]
applies_to = ["drill"]
[notify]
webhook = [{ url = "https://x.example/", policies = ["db"] }]
[[notify.mail]]
to = ["a@b"]
from = "c@d"
server = "e:25"
"#;

#[test]
fn the_whole_has_none() {
    assert_eq!(loaded(&[("a.toml", WHOLE)]).mistakes, []);
}

/// What is put instead of a part, and then the line and column, a part of what is said, and a part of the remedy.
type Case = (&'static str, &'static str, (usize, usize), &'static str, &'static str);

fn tried(cases: &[Case], severity: Severity) {
    let mut wrong = Vec::new();
    for (part, instead, place, says, remedy) in cases {
        assert_eq!(WHOLE.matches(part).count(), 1, "{part}");
        let found = loaded(&[("a.toml", &WHOLE.replace(part, instead))]);
        let told: Vec<_> = found.mistakes.iter().filter(|mistake| mistake.severity == severity).collect();
        let as_wished = matches!(told[..], [mistake] if (mistake.place.line, mistake.place.column) == *place
            && mistake.what.contains(says) && mistake.remedy.contains(remedy));
        if !as_wished || found.policies.is_none() != (severity == Severity::Error) {
            wrong.push((instead, found.mistakes));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_written_wrongly() {
    tried(
        &[
            ("jobs = 2", "jobs = 0", (2, 8), "host.jobs is out of range", "1 to 1000"),
            ("jobs = 2", "jobs = \"2\"", (2, 8), "host.jobs is a string", "whole number"),
            ("jobs = 2", "job = 2", (2, 1), "host.job is not known", "did you mean jobs?"),
            ("[host]", "[hosts]", (1, 2), "hosts is not known", "did you mean host?"),
            ("jobs = 2", "time_zone = \"Mars\"", (2, 13), "\"Mars\" is not a time zone", "Europe/Berlin"),
            (
                "jobs = 2",
                "approval = { asked_for = [\"delete\", \"start\"] }",
                (2, 38),
                "\"start\" never needs an approval",
                "stop, delete",
            ),
            ("jobs = 2", "approval = { valid = \"59s\" }", (2, 22), "host.approval.valid is out of range", "30d"),
            ("jobs = 2", "approval = { valid = \"31d\" }", (2, 22), "host.approval.valid is out of range", "1m"),
            ("jobs = 2", "approval = { ask_for = [] }", (2, 14), "ask_for is not known", "did you mean asked_for?"),
            ("[\"db*\"]", "[\"db[12]\"]", (4, 24), "not a pattern", "letters, digits"),
            ("names = [\"db*\"], tags = [\"prod\"]", "", (4, 12), "says neither names nor tags", "names = "),
            ("names = [\"db*\"], tags = [\"prod\"]", "names = [\"!db\"]", (4, 12), "chooses no machine", "names = "),
            ("{ names = [\"db*\"], tags = [\"prod\"] }", "[\"db*\"]", (4, 12), "is an array", "a table"),
            (
                "machines = { names = [\"db*\"], tags = [\"prod\"] }\n",
                "",
                (3, 9),
                "policy.db.machines is missing",
                "which machines",
            ),
            ("\"hourly\"", "\"Mon 24:00\"", (8, 17), "\"24\" is not an hour", "0 to 23"),
            ("\"hourly\"", "'Mon  25:00'", (8, 18), "\"25\" is not an hour", "0 to 23"),
            ("\"hourly\"", "\"\\u004don 25:00\"", (8, 12), "\"25\" is not an hour", "0 to 23"),
            ("\"hourly\"", "60", (8, 12), "policy.db.snapshot.schedule is an integer", "a schedule"),
            ("\"hourly\"", "\"2020-01-01\"", (8, 12), "is never due", "still to come"),
            ("schedule = \"hourly\"\n", "", (7, 1), "policy.db.snapshot.schedule is missing", "a schedule"),
            ("ttl = \"7d\"", "ttl = \"7 days\"", (10, 7), "not a time to live", "12h"),
            ("ttl = \"7d\"", "ttl = \"7d\"\njitter = \"8d\"", (11, 10), "more than a week", "7d"),
            ("ttl = \"7d\"", "consistency = \"frozen\"", (10, 15), "\"frozen\" is not known", "\"freeze\""),
            ("ttl = \"7d\"", "memory = 1", (10, 10), "is an integer", "true or false"),
            ("ttl = \"7d\"", "or_disk_only = true", (10, 16), "pause with memory would be too long", "max_pause"),
            ("keep = { hourly = 24 }", "keep = { hourly = 0 }", (9, 8), "keeps nothing", "last"),
            ("keep = { hourly = 24 }", "keep = \"none\"", (9, 8), "keep is \"none\"", "\"all\""),
            ("keep = { hourly = 24 }", "keep = { ourly = 24, last = 1 }", (9, 10), "keep.ourly is not known", "hourly"),
            ("keep = { hourly = 24 }\nttl = \"7d\"\n", "", (7, 1), "keeps all snapshots for ever", "ttl"),
            ("name = \"nightly\"\n", "", (11, 1), "backup.name is missing", "nightly"),
            ("name = \"nightly\"", "name = \"a/b\"", (12, 8), "is not a name", "such as"),
            ("\"/backup\"", "\"backup\"", (13, 14), "not an absolute path", "s3://"),
            ("\"/backup\"", "\"http://x\"", (13, 14), "are not known", "sftp://"),
            (
                "repository = \"/backup\"",
                "repository = \"/backup\"\nkey_file = \"k\"",
                (14, 12),
                "not an absolute path",
                "absolute",
            ),
            (
                "repository = \"/backup\"",
                "repository = \"/backup\"\nkey_file = \"credential:a/b\"",
                (14, 12),
                "not the name of a credential",
                "credential:NAME",
            ),
            (
                "repository = \"/backup\"",
                "repository = \"/backup\"\nbandwidth = \"0\"",
                (14, 13),
                "lets nothing through",
                "20M",
            ),
            ("keep = { daily = 14 }\n", "", (11, 1), "backup.keep is missing", "daily"),
            ("\"point\"", "\"point:daily\"", (18, 21), "makes no such points", "what the policy makes"),
            ("\"point\"", "\"tape\"", (18, 21), "not known", "\"point:BACKUP\""),
            ("what = [\"snapshot\", \"point\"]\n", "", (16, 1), "policy.db.drill.what is missing", "snapshot"),
            ("\"tcp=22\"", "\"ping\"", (19, 12), "\"ping\" is not a probe", "tcp=PORT"),
            ("\"22:00-06:00\"", "\"22:00\"", (21, 13), "a window is some days and a span", "POLICIES.md"),
            ("\"22:00-06:00\"", "\"Mox 22:00-06:00\"", (21, 13), "\"Mox\" is not a day of the week", "Mon, Tue"),
            ("[\"drill\"]", "[\"drills\"]", (22, 16), "is not known", "snapshot, backup or drill"),
            ("[\"db\"]", "[\"web\"]", (24, 54), "there is no policy web", "name one that there is"),
            ("https://x.example/", "ftp://x", (24, 20), "no address of the web", "https://"),
            ("[\"a@b\"]", "[\"a\"]", (26, 8), "no mail address", "admin@example.org"),
            ("server = \"e:25\"", "server = \"e\"", (28, 10), "is no server", "HOST:PORT"),
            (
                "policies = [\"db\"] }]",
                "events = [\"alive\", \"job-fail\"] }]",
                (24, 62),
                "\"job-fail\" is no kind of event",
                "job-failed",
            ),
            (
                "to = [\"a@b\"]",
                "to = [\"a@b\"]\nevents = [\"alert\"]",
                (27, 12),
                "\"alert\" is no kind of event",
                "alert-raised",
            ),
            ("from = \"c@d\"\n", "", (25, 1), "mail.from is missing", "admin@example.org"),
            ("priority = 1", "priority = 1\npriority = 2", (6, 1), "this is no TOML", "toml.io"),
            (
                "[host]",
                "[group.'a b']\nmachines = { names = [\"x\"] }\n[host]",
                (1, 8),
                "is not a name",
                "choose such a name",
            ),
        ],
        Severity::Error,
    );
}

#[test]
fn promises_that_cannot_be_kept() {
    tried(
        &[
            (
                "rpo = \"2h\"",
                "rpo = \"30m\"",
                (6, 22),
                "up to 60 min pass between two times of its schedules",
                "denser",
            ),
            (
                "allowed = [\"22:00-06:00\"]",
                "forbidden = [\"00:00-24:00\"]",
                (3, 9),
                "never permit drills",
                "applies_to",
            ),
        ],
        Severity::Error,
    );
    tried(
        &[
            (
                "*-*-* 00/2:00",
                "daily",
                (6, 22),
                "only snapshots keep it; when the host is lost, so is work of up to 24 h",
                "backup",
            ),
            (
                "keep = { daily = 14 }",
                "keep = { daily = 14 }\n[[policy.db.backup]]\nname = \"away\"\nrepository = \"/away\"\nschedule = \"daily\"\nkeep = { daily = 14 }",
                (3, 9),
                "up to 24 h pass between two points of backup away, and 2 h are promised for it",
                "an rpo of its own",
            ),
            (
                "keep = { daily = 14 }",
                "keep = { daily = 14 }\nrpo = \"60m\"",
                (3, 9),
                "up to 2 h pass between two points of backup nightly, and 60 min are promised for it",
                "an rpo of its own",
            ),
            ("ttl = \"7d\"", "ttl = \"2h\"", (10, 7), "nothing gets older than 2 h", "ttl longer"),
            ("hourly = 24", "last = 1, daily = 30", (10, 7), "daily = 30 would keep", "daily"),
            (
                "*-*-* 00/2:00\"\nkeep = { daily = 14 }",
                "*-*-* 00/2:00\"\nkeep = { hourly = 24 }",
                (11, 1),
                "due every 2 h only",
                "larger periods",
            ),
            (
                "keep = { daily = 14 }",
                "keep = { daily = 14 }\nlock_days = 30",
                (3, 9),
                "locked for 30 days, and its keep reaches back 14 days",
                "agree",
            ),
            (
                "[policy.db.drill]\nschedule = \"weekly\"\nwhat = [\"snapshot\", \"point\"]\nprobes = [\"tcp=22\"]\n",
                "",
                (6, 34),
                "rto is never measured",
                "drill",
            ),
        ],
        Severity::Warning,
    );
}

#[test]
fn names_are_given_once_and_priorities_tell_who_comes_first() {
    let (first, again) = (policy("db"), policy("db").replace("db*", "web*"));
    let found = loaded(&[("a.toml", &first), ("b.toml", &again)]);
    let [mistake] = &found.mistakes[..] else { panic!("{found:#?}") };
    assert!(mistake.place.file.ends_with("b.toml") && mistake.what.contains("a.toml:1:9"), "{mistake:#?}");
    let other = policy("web").replace("web*", "db*");
    let found = loaded(&[("a.toml", &first), ("b.toml", &other)]);
    let [mistake] = &found.mistakes[..] else { panic!("{found:#?}") };
    assert!(mistake.what.contains("both choose machines named db* with priority 0"), "{mistake:#?}");
    let higher = other.replace("[policy.web]", "[policy.web]\npriority = 1");
    assert_eq!(loaded(&[("a.toml", &first), ("b.toml", &higher)]).mistakes, []);
    let spared = other.replace("\"db*\"", "\"db*\", \"!db1\"");
    assert_eq!(loaded(&[("a.toml", &first), ("b.toml", &spared)]).mistakes, []);
}

#[test]
fn a_policy_that_does_nothing_is_told() {
    let found = loaded(&[("a.toml", "[policy.none]\nmachines = { names = [\"scratch*\"] }\n")]);
    assert!(found.policies.is_some() && found.mistakes[0].what.contains("not protected"), "{found:#?}");
    let twice = "[[policy.db.backup]]\nname = \"nightly\"\nrepository = \"/x\"\nschedule = \"daily\"\nkeep = \"all\"\n[policy.db.drill]";
    let found = loaded(&[("a.toml", &WHOLE.replace("[policy.db.drill]", twice))]);
    assert!(found.mistakes.iter().any(|mistake| mistake.what.contains("two backups named nightly")), "{found:#?}");
}
