//! `keyframe policy` as a person types it.

mod bench;

use std::fs;

use bench::Bench;

/// A home with machines, of which each has its tag.
fn with_machines(machines: &[(&str, &str)]) -> Bench {
    let bench = Bench::bare();
    for (name, tag) in machines {
        let dir = bench.path("machines/vms").join(name);
        fs::create_dir_all(&dir).unwrap();
        let text = format!(
            "schema = \"keyframe.machine/1\"\nname = \"{name}\"\nuuid = \"0\"\nmemory_mib = 64\ncpus = 1\n\
             machine_type = \"pc-q35-10.0\"\ntags = [\"{tag}\"]\n"
        );
        fs::write(dir.join("machine.toml"), text).unwrap();
    }
    let mut bench = bench;
    bench.set("KEYFRAME_HOME", &bench.path("machines").display().to_string());
    bench.set("TZ", "UTC");
    bench
}

fn write(bench: &Bench, name: &str, text: &str) {
    let path = bench.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const HOURLY: &str = "[policy.all]\nmachines = { names = [\"*\"] }\n[policy.all.snapshot]\nschedule = \"hourly UTC\"\nkeep = { last = 5 }\n";

#[test]
fn the_example_can_be_used_as_it_is() {
    let bench = with_machines(&[("db", "prod"), ("scratch", "test")]);
    let example = bench.run(&["policy", "example"]).with(0).out;
    write(&bench, "machines/policies/example.toml", &example);
    let checked = bench.run(&["policy", "check"]).with(0);
    assert!(checked.out.contains("2 policies in 1 file; 2 machines here"), "{}", checked.out);
    assert!(checked.out.contains("  db: prod\n  scratch: standard\nnothing is wrong\n"), "{}", checked.out);
    let json = bench.run(&["--json", "policy", "check"]).with(0).json();
    assert_eq!((&json["schema"], &json["usable"]), (&"keyframe.policy-check/1".into(), &true.into()));
    assert_eq!(json["machines"][0]["policy"], "prod");
    assert_eq!(bench.run(&["--json", "policy", "example"]).with(0).json()["toml"], example);
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_to_do() {
    let bench = with_machines(&[("db", "prod")]);
    write(&bench, "etc/a.toml", &HOURLY.replace("hourly", "Mon 24:00").replace("last", "lats"));
    write(&bench, "etc/conf.d/b.toml", "[host]\njobs = \"many\"\n");
    let checked = bench.run(&["policy", "check", "etc"]).with(1);
    let expected = "etc/a.toml:4:17: error: policy.all.snapshot.schedule = \"Mon 24:00 UTC\": \"24\" is not an hour\n  \
                    4 | schedule = \"Mon 24:00 UTC\"\n    |                 ^\n  \
                    try: write a whole number from 0 to 23, or *\n";
    assert!(checked.out.contains(expected), "{}", checked.out);
    assert!(
        checked.out.contains("etc/a.toml:5:10: error: policy.all.snapshot.keep.lats is not known"),
        "{}",
        checked.out
    );
    assert!(checked.out.contains("try: did you mean last?"), "{}", checked.out);
    assert!(checked.out.contains("etc/conf.d/b.toml:2:8: error: host.jobs is a string"), "{}", checked.out);
    assert!(checked.out.contains("they cannot be used; errors: 4"), "{}", checked.out);
    let json = bench.run(&["--json", "policy", "check", "etc"]).with(1).json();
    assert_eq!(
        (&json["usable"], &json["errors"], &json["policies"]),
        (&false.into(), &4.into(), &serde_json::Value::Null)
    );
    let place = &json["mistakes"][0]["place"];
    assert_eq!((&place["file"], &place["line"], &place["column"]), (&"etc/a.toml".into(), &4.into(), &17.into()));
    // Nothing is told of a machine by files that cannot be used.
    for command in ["show", "plan"] {
        let told = bench.run(&["policy", command, "db", "--policies", "etc"]).with(1);
        assert!(told.err.contains("etc/a.toml:4:17") && told.out.is_empty(), "{told:?}");
        let json = bench.run(&["--json", "policy", command, "db", "--policies", "etc"]).with(1).json();
        assert_eq!(json["schema"], "keyframe.error/1");
    }
    let nowhere = bench.run(&["policy", "check", "nowhere"]).with(1);
    assert!(nowhere.out.contains("nowhere:1:1: error: the directory cannot be listed"), "{}", nowhere.out);
}

#[test]
fn policies_are_compared_with_the_machines_of_the_home() {
    let bench = with_machines(&[("db", "prod"), ("web", "test")]);
    let text =
        "[policy.NAME]\nmachines = MACHINES\n[policy.NAME.snapshot]\nschedule = \"daily\"\nkeep = { last = 1 }\n";
    let of = |name: &str, machines: &str| text.replace("NAME", name).replace("MACHINES", machines);
    write(&bench, "machines/policies/a.toml", &of("prod", "{ tags = [\"prod\"] }"));
    write(&bench, "machines/policies/b.toml", &of("db", "{ names = [\"db*\"] }"));
    let checked = bench.run(&["policy", "check"]).with(1);
    assert!(checked.out.contains("both choose db with priority 0"), "{}", checked.out);
    assert!(checked.out.contains("  web: nothing: no policy chooses it\n"), "{}", checked.out);
    // A machine that two policies choose is owed something all the same.
    let shown = bench.run(&["policy", "show", "db"]).with(0);
    assert!(shown.out.contains("what policy db says") && shown.err.contains("by its name only"), "{shown:?}");
    write(&bench, "machines/policies/b.toml", &of("db", "{ names = [\"mysql*\"] }"));
    let checked = bench.run(&["policy", "check"]).with(0);
    assert!(checked.out.contains("policy.db chooses none of the 2 machine(s) here"), "{}", checked.out);
}

#[test]
fn without_a_home_files_are_checked_and_none_is_made() {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_HOME", &bench.path("no-home").display().to_string());
    write(&bench, "etc/a.toml", HOURLY);
    assert!(bench.run(&["policy", "check", "etc"]).with(0).out.contains("1 policy in 1 file; 0 machines here"));
    bench.run(&["policy", "show", "db", "--policies", "etc"]).with(10);
    // A machine that is to come is given by a tag.
    bench.run(&["policy", "show", "db", "--policies", "etc", "--tag", "prod"]).with(0);
    assert!(!bench.path("no-home").exists());
}

#[test]
fn a_machine_that_cannot_be_read_is_told_and_hides_no_other() {
    let bench = with_machines(&[("db", "prod"), ("web", "prod")]);
    write(&bench, "machines/vms/web/machine.toml", "schema = 5");
    write(&bench, "machines/policies/a.toml", HOURLY);
    let checked = bench.run(&["policy", "check"]).with(3);
    assert!(checked.out.contains("  db: all\n") && checked.err.contains("web/machine.toml"), "{checked:?}");
    bench.run(&["policy", "show", "db"]).with(0);
    bench.run(&["policy", "show", "web"]).with(1);
}

#[test]
fn show_says_what_a_machine_is_owed_and_when() {
    let bench = with_machines(&[("db", "prod")]);
    let example = bench.run(&["policy", "example"]).with(0).out;
    write(&bench, "etc/example.toml", &example);
    let shown = bench.run(&["policy", "show", "db", "--policies", "etc"]).with(0).out;
    for part in [
        "db is owed what policy prod says, at etc/example.toml:27:9",
        "policy standard chooses it too",
        "*-*-* *:00/30:00: next ",
        "kept: 4 last, 24 hourly, 7 daily; none longer than 14d",
        "to s3://example-backups/keyframe, kept: 31 daily, 24 monthly, 7 yearly",
        "disks only, locked 30 days",
        "of the latest snapshot, the latest point of away",
        "RPO 1h, RTO 15m",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = bench.run(&["--json", "policy", "show", "db", "--policies", "etc"]).with(0).json();
    assert_eq!((&json["schema"], &json["owed"]["policy"]), (&"keyframe.policy-show/1".into(), &"prod".into()));
    assert_eq!(json["owed"]["objectives"]["rpo"], 3600);
    assert_eq!(json["next"]["snapshot"].as_array().unwrap().len(), 3);
    assert_eq!(json["next"]["backup"]["away"].as_array().unwrap().len(), 3);
    write(&bench, "other/a.toml", &HOURLY.replace("\"*\"", "\"web\""));
    let told = bench.run(&["policy", "show", "db", "--policies", "other"]).with(1);
    assert!(told.err.contains("db is owed nothing: no policy chooses it"), "{}", told.err);
}

#[test]
fn a_plan_says_what_exists_when() {
    let bench = with_machines(&[("db", "prod")]);
    write(&bench, "machines/policies/a.toml", &format!("[host]\ntime_zone = \"UTC\"\n{HOURLY}"));
    let plan = bench.run(&["policy", "plan", "db", "--days", "4"]).with(0).out;
    let lines: Vec<Vec<&str>> = plan.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 6, "{plan}");
    assert_eq!(lines[1], ["DAY", "SNAPSHOTS", "THERE", "OLDEST"]);
    // A whole day: 24 come, 24 go, the latest five are there.
    assert_eq!((&lines[4][2..5], lines[4][6]), (&["+24", "-24", "5"][..], "19:00"), "{plan}");
    let json = bench.run(&["--json", "policy", "plan", "db", "--days", "4"]).with(0).json();
    let day = &json["plan"]["days"][2];
    assert_eq!(
        (json["schema"].as_str(), day["events"].as_array().unwrap().len()),
        (Some("keyframe.policy-plan/1"), 48)
    );
    assert_eq!(day["snapshots"].as_array().unwrap().len(), 5);
    let events = bench.run(&["policy", "plan", "db", "--days", "2", "--events"]).with(0).out;
    assert!(events.contains("a snapshot is taken\n") && events.contains("goes\n"), "{events}");
    bench.run(&["policy", "plan", "db", "--days", "0"]).with(2);
}
