//! Does a snapshot really come back? `keyframe test` says yes to a good one, and why not to others; it leaves nothing
//! behind, whatever happens to it. Needs QEMU.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyframe_acceptance::process::{self, ProcessId};
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome, Result, guests};
use keyframe_engine::failpoint::Failpoint;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const WORDS: &str = "checker.mb=48 checker.rate=20";

fn worker<'h>(home: &'h Home) -> Result<Machine<'h>> {
    let spec = MachineSpec::small(&guests::small()?, "160M", WORDS);
    let machine = Machine::start(home, "worker", &spec.disk(&home.empty_disk("worker.qcow2", "64M")?))?;
    machine.wait_until_checking()?;
    Ok(machine)
}

fn vm_dir(home: &Home) -> PathBuf {
    home.path().join("vms/worker")
}

/// Processes that have their log below a test's place.
fn testers(home: &Home) -> Vec<ProcessId> {
    let place = vm_dir(home).join("drill");
    let there = |id: &ProcessId| fs::read_link(format!("/proc/{}/fd/2", id.0)).is_ok_and(|log| log.starts_with(&place));
    process::of_home(home.path()).into_iter().filter(there).collect()
}

fn assert_nothing_left(home: &Home, when: &str) {
    assert!(!vm_dir(home).join("drill").exists(), "{when}: the throw-away machine's directory is left");
    assert!(testers(home).is_empty(), "{when}: its process is left");
    let machines: Vec<_> = fs::read_dir(home.path().join("vms")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(machines, ["worker"], "{when}: a machine too many");
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + 60 * SECOND;
    while !is() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The one test in a report.
fn only(outcome: &Outcome) -> &Value {
    assert_eq!(outcome.json["tests"].as_array().map(Vec::len), Some(1), "{} {}", outcome.stdout, outcome.stderr);
    &outcome.json["tests"][0]
}

fn check<'o>(outcome: &'o Outcome, name: &str) -> &'o Value {
    let checks = only(outcome)["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"].as_str().is_some_and(|its| its.starts_with(name)));
    found.unwrap_or_else(|| panic!("no check {name} in {}", outcome.stdout))
}

fn assert_failed(outcome: &Outcome, name: &str, seen: &str) {
    assert_eq!(outcome.status, Some(1), "{}: {}", outcome.stdout, outcome.stderr);
    assert_eq!(only(outcome)["verdict"], "failed");
    let check = check(outcome, name);
    assert_eq!(check["passed"], false, "{check}");
    assert!(check["seen"].as_str().unwrap().contains(seen), "no {seen:?} in {check}");
}

/// The guest works, and found nothing wrong with its memory and disks.
fn assert_works(machine: &Machine<'_>) -> Result<()> {
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_good_snapshot_passes_and_what_is_not_so_is_told() -> Result<()> {
    let home = Home::new("drill")?;
    let machine = worker(&home)?;
    let taken = machine.snapshot("good")?;
    let mac_before = machine.show()?.json["definition"]["nic"]["mac"].clone();

    // Nothing declared: life.
    let passed = home.run(["test", "worker@good", "--json"])?.succeeded()?;
    assert_eq!(passed.json["schema"], "keyframe.tested/1");
    assert_eq!((&only(&passed)["verdict"], &only(&passed)["strategy"]), (&"passed".into(), &"mapped".into()));
    assert!(check(&passed, "life")["seen"].as_str().unwrap().contains("serial console"), "{}", passed.stdout);
    assert!(only(&passed)["running_ms"].as_f64().unwrap() > 0.0);
    assert_nothing_left(&home, "passed");
    let snapshot = vm_dir(&home).join("snapshots").join(taken.text("id")?);
    let picture = snapshot.join("tests").join(only(&passed)["screenshot"].as_str().unwrap());
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"), "{picture:?}");

    // Declared ones: the console obeys, a port that nobody listens on is closed or silent, there is no agent.
    declare(&home, "kind = \"serial\"\nregex = \"VERIFIED\"\nsend = \"verify\\n\"");
    let verified = home.run(["test", "worker@good", "--json", "--within", "120s"])?.succeeded()?;
    assert_eq!(check(&verified, "serial")["passed"], true, "memory and disks as the guest knew them");
    let words = ["test", "worker@good", "--json", "--within", "8s", "--probe"];
    let run = |probe: &str| home.run(words.iter().copied().chain([probe]));
    assert_failed(&run("serial=^never said$")?, "serial /^never", "the console said");
    assert_failed(&run("tcp=22")?, "tcp 10.0.2.15:22", "the guest");
    assert_failed(&run("agent")?, "agent", "no program in the guest");
    assert_failed(&run("command=/bin/true")?, "command", "no program in the guest");
    assert_nothing_left(&home, "failed");
    assert_eq!(run("serial=(")?.status, Some(2), "a probe that cannot be asked");
    declare(&home, "kind = \"agent\"\nregex = \"x\"");
    let unknown = home.run(["test", "worker@good"])?;
    assert!(unknown.status == Some(1) && unknown.stderr.contains("regex"), "{}", unknown.stderr);
    declare(&home, "kind = \"serial\"\nregex = \"T \"");

    // All of it is on record, beside the snapshot.
    let shown = home.run(["show", "worker@good", "--json"])?.succeeded()?;
    assert_eq!(shown.list("tests")?.len(), 6);
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    assert_eq!(listed.json["snapshots"][0]["last_test"]["verdict"], "failed");
    machine.snapshot("second")?;
    let all = home.run(["test", "worker", "--all", "--json"])?.succeeded()?;
    assert_eq!(all.list("tests")?.len(), 2);
    assert_eq!(home.run(["test", "worker"])?.status, Some(2));
    assert_eq!(home.run(["test", "worker@none"])?.status, Some(10));

    // The original has noticed nothing, and everything still comes back and goes.
    assert_works(&machine)?;
    assert_eq!(machine.show()?.json["definition"]["nic"]["mac"], mac_before);
    machine.revert("good", &[])?;
    machine.serial()?.next_heartbeat(machine.serial()?.end(), 20 * SECOND)?;
    home.run(["delete", "worker@second", "worker@good"]).map(drop)
}

/// Puts one probe into machine.toml, instead of any that is there.
fn declare(home: &Home, probe: &str) {
    let path = vm_dir(home).join("machine.toml");
    let text = fs::read_to_string(&path).unwrap();
    let without = text.split("\n[[probe]]").next().unwrap();
    fs::write(&path, format!("{}\n[[probe]]\n{probe}\n", without.trim_end())).unwrap();
}

/// Changes one bit of guest memory.
fn flip_a_bit(image: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    // Behind the head of the file, at the first page that is its own.
    let (mut at, mut page) = (4_u64 << 20, [0_u8; 4096]);
    while page.iter().all(|&byte| byte == 0) {
        at += 4096;
        file.read_exact_at(&mut page, at).unwrap();
    }
    let place = page.iter().position(|&byte| byte != 0).unwrap();
    file.write_all_at(&[page[place] ^ 0x10], at + place as u64).unwrap();
}

#[test]
fn damage_and_death_are_reported_and_what_is_tested_stays() -> Result<()> {
    let home = Home::new("drill-trouble")?;
    let machine = worker(&home)?;
    let taken = machine.snapshot("good")?;
    let bad = vm_dir(&home).join("snapshots").join(machine.snapshot("bad")?.text("id")?);
    // What it shares with the other is in the other's file; what is damaged here is its own.
    let image = ["memory.pages", "memory.mapped"].map(|name| bad.join(name)).into_iter().find(|path| path.exists());
    flip_a_bit(&image.expect("a memory image"));
    assert_failed(&home.run(["test", "worker@bad", "--json"])?, "memory image", "checksum");
    assert_nothing_left(&home, "damaged");
    // One bad snapshot keeps no other from being tested.
    let all = home.run(["test", "worker", "--all", "--json"])?;
    assert_eq!((all.status, all.list("tests")?.len()), (Some(1), 2), "{}", all.stderr);

    // A test that waits for what never comes, until its QEMU is killed. Meanwhile: nobody deletes it, others take
    // snapshots, and who only looks does not tidy it away.
    let waiting = ["test", "worker@good", "--json", "--within", "100s", "--probe", "serial=^never said$"];
    let running = home.start(waiting)?;
    wait_until("the throw-away machine's start", || !testers(&home).is_empty());
    let held = home.run(["delete", "worker@good"])?;
    assert!(held.status == Some(1) && held.stderr.contains("being tested"), "{}", held.stderr);
    assert_eq!(home.run(waiting)?.status, Some(11), "one test of a snapshot at a time");
    machine.snapshot("meanwhile")?;
    home.run(["snapshots", "worker"])?.succeeded()?;
    let tester = testers(&home);
    assert_eq!(tester.len(), 1, "it still runs");
    tester[0].kill(home.path())?;
    assert_failed(&running.wait()?, "runs on", "its QEMU ended");
    assert_nothing_left(&home, "killed QEMU");

    // Ctrl-C is no verdict.
    let before = home.run(["show", "worker@good", "--json"])?.list("tests")?.len();
    let running = home.start(waiting)?;
    wait_until("the throw-away machine's start", || !testers(&home).is_empty());
    let pid = rustix::process::Pid::from_raw(running.process().0 as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(running.wait()?.status, Some(130));
    assert_nothing_left(&home, "interrupted");
    assert_eq!(home.run(["show", "worker@good", "--json"])?.list("tests")?.len(), before);

    assert!(!taken.text("id")?.is_empty());
    assert_works(&machine)?;
    home.run(["test", "worker@meanwhile"])?.succeeded().map(drop)
}

#[test]
fn a_test_killed_at_any_step_leaves_nothing_behind() -> Result<()> {
    let home = Home::new("drill-killed")?;
    let machine = worker(&home)?;
    machine.snapshot("good")?;
    let points = Failpoint::ALL.iter().map(|point| point.name()).filter(|name| name.starts_with("test-"));
    for point in points {
        assert_eq!(home.run_until(point, ["test", "worker@good"])?.status, None, "{point}");
        // Its guard sees to a process, and the next command to what is left: one that only looks will do.
        wait_until("the end of the throw-away machine's process", || testers(&home).is_empty());
        home.run(["snapshots", "worker"])?.succeeded()?;
        wait_until("tidying up", || !vm_dir(&home).join("drill").exists());
        assert_nothing_left(&home, point);
        // What fails there is told, and leaves nothing either.
        let failed = home.run_until(&format!("{point}!"), ["test", "worker@good"])?;
        assert!(failed.status == Some(1) && failed.stderr.contains(point), "{point}: {}", failed.stderr);
        assert_nothing_left(&home, point);
    }
    home.run(["test", "worker@good"])?.succeeded()?;
    let shown = home.run(["show", "worker@good", "--json"])?.succeeded()?;
    // Only those that came to their record are on it: killed behind it, failed behind it, and this one.
    assert_eq!(shown.list("tests")?.len(), 3);
    let evidence = vm_dir(&home).join("snapshots").join(shown.text("id")?).join("tests");
    let named: usize = shown
        .list("tests")?
        .iter()
        .map(|test| ["screenshot", "serial"].iter().filter(|kind| test[**kind].is_string()).count())
        .sum();
    assert_eq!(fs::read_dir(evidence).unwrap().count(), named, "evidence that no record names");
    assert_works(&machine)
}

#[test]
fn a_snapshot_without_memory_is_booted_in_the_same_isolation() -> Result<()> {
    let home = Home::new("drill-cold")?;
    let machine = worker(&home)?;
    home.run(["snapshot", "worker", "--name", "disks", "--disk-only"])?.succeeded()?;
    let passed =
        home.run(["test", "worker@disks", "--json", "--within", "120s", "--probe", "serial=READY"])?.succeeded()?;
    assert_eq!(only(&passed)["strategy"], "cold");
    assert_nothing_left(&home, "booted");
    // A machine whose guest does not get anywhere shows no life, whatever its firmware does.
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    home.run(
        ["vm", "create", "empty", "--memory", "128M", "--disk"]
            .map(Into::into)
            .into_iter()
            .chain([home.empty_disk("empty.qcow2", "16M")?.into_os_string()]),
    )?
    .succeeded()?;
    home.run(["snapshot", "empty", "--name", "nothing"])?.succeeded()?;
    let failed = home.run(["test", "empty@nothing", "--json", "--within", "10s"])?;
    assert_failed(&failed, "life", "no sign of life");
    machine.serial().map(drop)
}

#[test]
fn a_machine_with_further_ways_out_is_tested_without_them() -> Result<()> {
    let home = Home::new("drill-ways-out")?;
    let (heard, port) = (home.file("heard"), TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let spec = MachineSpec::small(&guests::small()?, "256M", WORDS).option("--firmware", "uefi");
    let spec = spec.disk(&home.empty_disk("worker.qcow2", "64M")?).for_qemu(&[
        "-netdev",
        &format!("user,id=more,hostfwd=tcp:127.0.0.1:{port}-:22"),
        "-device",
        "e1000,netdev=more",
        "-chardev",
        &format!("file,id=out,path={}", heard.display()),
        "-device",
        "isa-serial,chardev=out,index=1",
    ]);
    let machine = Machine::start(&home, "worker", &spec)?;
    machine.wait_until_checking()?;
    machine.snapshot("good")?;
    // QEMU cuts such a file when it opens it, and cannot forward a port twice.
    fs::write(&heard, "what was heard before").unwrap();
    home.run(["test", "worker@good", "--json"])?.succeeded()?;
    assert_nothing_left(&home, "further ways out");
    assert_eq!(fs::read_to_string(&heard).unwrap(), "what was heard before");
    assert_works(&machine)
}

#[test]
fn what_is_said_about_a_snapshot_can_be_said_anew() -> Result<()> {
    let home = Home::new("label")?;
    let machine = worker(&home)?;
    let taken =
        home.run(["snapshot", "worker", "--name", "one", "--disk-only", "--owner", "anna", "--json"])?.succeeded()?;
    home.run(["snapshot", "worker", "--name", "two", "--disk-only"])?.succeeded()?;
    let set = |words: &[&str]| home.run(["snapshot-set", "worker@one"].iter().chain(words));
    let changed = set(&["--note", "before the upgrade", "--pin", "--ttl", "7d", "--json"])?.succeeded()?;
    assert_eq!((changed.text("owner")?, changed.text("note")?), ("anna", "before the upgrade"));
    assert!(changed.json["pinned"] == true && changed.json["expires"].is_string());
    assert_eq!(set(&["--name", "two"])?.status, Some(1), "a name is unique");
    assert_eq!(set(&[])?.status, Some(2), "nothing is said");
    assert_eq!(home.run(["delete", "worker@one"])?.status, Some(1), "it is pinned");
    set(&["--name", "first", "--note", "", "--unpin", "--no-ttl"])?.succeeded()?;
    assert_eq!(home.run(["show", "worker@one"])?.status, Some(10), "the old name is nobody's");
    let shown = home.run(["show", "worker@first", "--json"])?.succeeded()?;
    assert_eq!(shown.text("id")?, taken.text("id")?);
    assert!(shown.json.get("note").is_none() && shown.json.get("expires").is_none() && shown.json["pinned"] == false);
    home.run(["snapshot", "worker", "--name", "one", "--disk-only"])?.succeeded()?;

    // A label that nobody can read holds the snapshot, and is written anew.
    let label = vm_dir(&home).join("snapshots").join(taken.text("id")?).join("label.json");
    fs::write(&label, "{").unwrap();
    let listed = home.run(["snapshots", "worker", "--json"])?.succeeded()?;
    let held = listed.list("snapshots")?.iter().find(|one| one["id"] == taken.json["id"]).unwrap();
    assert!(held["pinned"] == true && held["note"].as_str().unwrap().contains("label.json"), "{held}");
    home.run(["snapshot-set", &machine.at(taken.text("id")?), "--name", "first"])?.succeeded()?;
    let shown = home.run(["show", "worker@first", "--json"])?.succeeded()?;
    assert_eq!(shown.json["pinned"], false);
    machine.serial()?.next_heartbeat(Mark::START, 20 * SECOND).map(drop)
}

#[test]
fn what_snapshots_cost_is_told_with_the_command_that_helps() -> Result<()> {
    let home = Home::new("cost")?;
    let machine = worker(&home)?;
    machine.snapshot("one")?;
    machine.snapshot("two")?;
    let cost = home.run(["cost", "worker", "--check", "--json"])?.succeeded()?;
    let told = &cost.json["machines"][0];
    assert_eq!((&told["snapshots"], told["disks"][0]["layers"].as_array().map(Vec::len)), (&2.into(), Some(3)));
    assert!(told["bytes"].as_u64().unwrap() > 1 << 20, "{told}");
    assert!(told["disks"][0]["reads"]["requests"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(told["warnings"], serde_json::json!([]));
    // The checker reads its disk all the time: QEMU has been counting since it was asked first.
    wait_until("counting", || {
        let again = home.run(["cost", "worker", "--json"]).unwrap();
        again.json["machines"][0]["disks"][0]["reads"]["p99_ms"].is_number()
    });

    let path = vm_dir(&home).join("machine.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[cost]\nmax_depth = 2\n")).unwrap();
    let warned = home.run(["cost", "--check", "--json"])?;
    let warnings = warned.json["machines"][0]["warnings"].as_array().unwrap().clone();
    assert_eq!((warned.status, warnings.len()), (Some(1), 1), "{}", warned.stdout);
    assert_eq!(warnings[0]["fix"], "keyframe consolidate worker");
    for listing in [&["snapshots", "worker"][..], &["vm", "list"]] {
        let listed = home.run(listing)?.succeeded()?;
        assert!(
            listed.stdout.contains("3 layers") && listed.stdout.contains("keyframe cost worker"),
            "{}",
            listed.stdout
        );
    }
    assert_eq!(home.run(["cost", "worker"])?.status, Some(0), "only --check makes it a status");
    fs::write(&path, format!("{text}\n[cost]\nmax_dept = 2\n")).unwrap();
    assert_eq!(home.run(["cost", "worker"])?.status, Some(1), "a mistyped limit is none");
    fs::write(&path, text).unwrap();
    assert_works(&machine)
}

#[test]
fn agent_port_command_and_screen_of_a_whole_system_are_asked() -> Result<()> {
    let home = Home::new("drill-debian")?;
    let guest = guests::debian()?;
    let words = "root=/dev/vda2 console=tty0 console=ttyS0 quiet panic=-1";
    let spec = MachineSpec::with_memory("1G").direct_kernel(&guest.kernel, &guest.initrd, words);
    let spec = spec.disk(&home.overlay("system.qcow2", &guest.system_disk)?);
    let spec = spec.disk(&home.overlay("data.qcow2", &guest.data_disk)?);
    let machine = Machine::start(&home, "worker", &spec)?;
    machine.serial()?.wait_for(Mark::START, "(automatic login)", 300 * SECOND)?;
    let listen = "until pg_isready -q; do sleep 1; done; (perl -MIO::Socket -e '$s = IO::Socket::INET->new(LocalPort => 7777, \
                  Listen => 5); sleep 1 while $s->accept' &); ip -4 addr show; echo UP-$((40 + 2))";
    let mark = machine.serial()?.end();
    machine.type_line(listen)?;
    machine.serial()?.wait(mark, "UP-42", 200 * SECOND, |log| log.contains("UP-42").then_some(()))?;
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let reach = format!(
        "/usr/bin/perl -MIO::Socket::INET -e exit!IO::Socket::INET->new(PeerAddr=>'10.0.2.2:{port}',Timeout=>3)"
    );
    // For a shell, the last word needs quotes.
    let (program, script) = reach.split_at(reach.find("exit!").unwrap());
    let mark = machine.serial()?.end();
    machine.type_line(&format!("{program} \"{script}\" && echo REACHED-$((40 + 2))"))?;
    machine.serial()?.wait(mark, "REACHED-42", 60 * SECOND, |log| log.contains("REACHED-42").then_some(()))?;
    wait_until("the agent's start", || {
        let mut monitor = machine.monitor().unwrap();
        let channels = monitor.execute("query-chardev", &serde_json::json!({})).unwrap();
        channels.as_array().unwrap().iter().any(|one| one["label"] == "agent0" && one["frontend-open"] == true)
    });
    machine.snapshot("good")?;
    let words = ["test", "worker@good", "--json", "--within", "120s"];
    let with = |probes: &[&str]| home.run(words.iter().chain(probes.iter().flat_map(|probe| [&"--probe", probe])));
    let life = with(&[])?.succeeded()?;
    assert!(check(&life, "life")["seen"].as_str().unwrap().contains("agent answers"), "{}", life.stdout);
    let probes = ["agent", "tcp=7777", "command=/usr/bin/pg_isready -q", "screen"];
    let passed = with(&probes)?;
    assert_eq!(passed.status, Some(0), "{}", passed.stdout);
    for name in ["agent", "tcp 10.0.2.15:7777", "command /usr/bin/pg_isready", "screen", "runs on"] {
        assert!(check(&passed, name)["after_ms"].as_f64().is_some(), "{name}: {}", passed.stdout);
    }
    let short = ["test", "worker@good", "--json", "--within", "15s", "--probe"];
    let run = |probe: &str| home.run(short.iter().copied().chain([probe]));
    assert_failed(&run("tcp=7778")?, "tcp 10.0.2.15:7778", "refuses");
    assert_failed(&run("command=/bin/false")?, "command /bin/false", "exit status 1");
    assert_failed(&run("command=/no/such")?, "command /no/such", "could not be run");
    // What the original reaches at the host, the test does not.
    assert_failed(&run(&format!("command={reach}"))?, "command /usr/bin/perl", "exit status 1");
    assert_nothing_left(&home, "Debian");
    Ok(())
}
