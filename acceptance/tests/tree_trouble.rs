//! What gets in the way of keeping snapshots in order: expiries that die, guests that are faster than a merge, others that need
//! what is to go, headers that were not written. Needs QEMU.

mod pile;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyframe_acceptance::{Home, Machine, Result};
use serde_json::{Value, json};

use pile::{
    End, SECOND, assert_works, contents, disk_only, layers_of, points, wait_tidy, worker, worker_with, writes_on,
};

fn with_ttl(home: &Home, name: &str) -> Result<()> {
    home.run(["snapshot", "worker", "--disk-only", "--name", name, "--ttl", "1s"])?.succeeded().map(drop)
}

#[test]
fn an_expiry_ended_at_any_step_loses_nothing_that_stays() -> Result<()> {
    let home = Home::new("expire-killed")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("keep")?;
    let mut passed_by = Vec::new();
    for point in points("delete-").into_iter().chain(points("merge-")) {
        for end in [End::Killed, End::KilledWithQemu] {
            let when = format!("{point} {end:?}");
            for name in ["one", "two"] {
                with_ttl(&home, name)?;
                writes_on(&machine, 4)?;
            }
            disk_only(&home, &machine, "stays")?;
            writes_on(&machine, 4)?;
            with_ttl(&home, "three")?;
            std::thread::sleep(Duration::from_millis(1100));
            let mut before = contents(&home, &machine)?;
            before.retain(|name, _| ["keep", "stays"].contains(&name.as_str()));
            let pid = machine.process()?.0.to_string();
            let with = if end == End::KilledWithQemu { pid.as_str() } else { "" };
            let variables = [("KEYFRAME_FAILPOINT", point), ("KEYFRAME_FAILPOINT_WITH", with)];
            let outcome = home.run_with(&variables, ["expire", "worker"])?;
            match outcome.status {
                None => {}
                Some(0) => passed_by.push(point),
                status => panic!("{when}: {status:?}: {}", outcome.stderr),
            }
            if end == End::KilledWithQemu && outcome.status.is_none() {
                let mark = machine.serial()?.end();
                home.run(["vm", "start", "worker"])?.succeeded()?;
                machine.serial()?.next_heartbeat(mark, 120 * SECOND)?;
            } else {
                wait_tidy(&home, &machine, &when);
                assert_works(&machine, &when)?;
            }
            // Each of the others is there or gone.
            let mut after = contents(&home, &machine)?;
            after.retain(|name, _| before.contains_key(name));
            assert_eq!(after, before, "{when}: what stays reads otherwise");
            home.run(["expire", "worker"])?.succeeded()?;
            home.run(["consolidate", "worker"])?.succeeded()?;
            assert_eq!(contents(&home, &machine)?, before, "{when}: after the next expiry");
            assert_eq!(layers_of(&machine)?, 3, "{when}: two snapshots and the present");
            home.run(["delete", "worker@stays"])?.succeeded()?;
            assert_works(&machine, &when)?;
        }
    }
    assert!(passed_by.is_empty(), "never reached: {passed_by:?}");
    let mark = machine.serial()?.end();
    machine.revert("keep", &[])?;
    machine.serial()?.next_heartbeat(mark, 20 * SECOND)?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_guest_that_is_faster_than_the_merge_is_left_alone_in_the_end() -> Result<()> {
    let home = Home::new("not-converging")?;
    let machine = worker_with(&home, "worker", &["a"])?;
    // The given disk takes what the present holds, whatever its size.
    disk_only(&home, &machine, "one")?;
    machine.type_line("diskrate 1000")?;
    writes_on(&machine, 10)?;
    let words = ["delete", "worker@one", "--speed", "512K"];
    let planned = home.run(words.into_iter().chain(["--dry-run", "--json"]))?.succeeded()?;
    assert_eq!(planned.json["machines"][0]["forecast"]["converges"], false, "{}", planned.json);
    assert_eq!(planned.json["machines"][0]["forecast"]["seconds"], Value::Null);
    let said = home.run(words.into_iter().chain(["--dry-run"]))?;
    assert!(
        (said.stdout.clone() + &said.stderr).contains("would not come to an end"),
        "{}\n{}",
        said.stdout,
        said.stderr
    );

    let mut monitor = machine.monitor()?;
    let begun = Instant::now();
    let outcome = home.run(words)?;
    assert_eq!(outcome.status, Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("faster than its layers can be merged"), "{}", outcome.stderr);
    // Three fruitless spans of 28 s in a row; where the guest itself was slow for one of them, it counts anew.
    assert!(begun.elapsed() < 280 * SECOND, "it was given up after {:?} only", begun.elapsed());
    // It was never stopped: that is for a moment in which little is left.
    let stopped = monitor.wait_for_event("a stop", SECOND / 10, |event| event.name == "STOP");
    assert!(stopped.is_err(), "the guest was stopped");
    assert_works(&machine, "given up")?;
    assert_eq!(layers_of(&machine)?, 2, "the layers are as they were");

    machine.type_line("diskrate 5")?;
    home.run(["consolidate", "worker"])?.succeeded()?;
    assert_eq!(layers_of(&machine)?, 1);
    assert_works(&machine, "a calm guest")?;
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn what_is_reverted_to_or_forked_from_does_not_go_meanwhile() -> Result<()> {
    let home = Home::new("busy")?;
    let machine = worker(&home, "worker")?;
    machine.snapshot("base")?;
    for (words, failpoint, holder) in [
        (vec!["revert", "worker@base", "--discard"], "revert-journaled", "revert worker@base"),
        (vec!["fork", "worker@base", "twin"], "fork-prepared", "fork worker@base"),
    ] {
        let running = home.start_until(failpoint, &words)?;
        let refused = home.run(["delete", "worker@base"])?;
        assert_eq!(refused.status, Some(11), "{holder}: {}", refused.stderr);
        assert!(refused.stderr.contains(holder), "{}", refused.stderr);
        running.resume()?;
        running.wait()?.succeeded()?;
    }
    // The fork's memory is the image: a copy of its disks does not let that go.
    let refused = home.run(["delete", "worker@base", "--detach"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("twin runs from its memory image"), "{}", refused.stderr);
    home.run(["vm", "stop", "twin", "--force"])?.succeeded()?;
    home.run(["delete", "worker@base", "--detach"])?.succeeded()?;
    assert_works(&machine, "without it")
}

#[test]
fn a_clock_that_jumped_lets_nothing_go() -> Result<()> {
    let home = Home::new("clock")?;
    let machine = worker(&home, "worker")?;
    with_ttl(&home, "short")?;
    std::thread::sleep(Duration::from_millis(1100));
    home.run(["expire", "--dry-run"])?.succeeded()?;
    // As if the host had been up for long by a clock that was a year behind.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let body = json!({ "wall": "2025-06-01T00:00:00Z", "since_boot_ms": 0, "boot_id": boot.trim() }).to_string();
    let digest = blake3::hash(body.as_bytes());
    let record = format!("{{\"schema\": \"keyframe.clock/1\", \"blake3\": \"{digest}\", \"body\": {body}}}");
    std::fs::write(home.path().join("clock.json"), record).unwrap();
    let refused = home.run(["expire"])?;
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("--accept-clock") && refused.stderr.contains("ahead"), "{}", refused.stderr);
    assert_eq!(contents(&home, &machine)?.len(), 1);
    home.run(["expire", "--accept-clock"])?.succeeded()?;
    assert!(contents(&home, &machine)?.is_empty());
    Ok(())
}

/// The node of a layer's file in the machine's QEMU.
fn node_of(machine: &Machine<'_>, file: &Path) -> Result<String> {
    let nodes = machine.monitor()?.execute("query-named-block-nodes", &json!({ "flat": true }))?;
    let is_it = |node: &&Value| {
        let told = node["file"].as_str().unwrap_or_default();
        let options = told.strip_prefix("json:").and_then(|options| serde_json::from_str::<Value>(options).ok());
        let path = options.as_ref().map_or(Some(told), |options| options["file"]["filename"].as_str());
        node["drv"] == "qcow2" && path.is_some_and(|path| Path::new(path) == file)
    };
    let found = nodes.as_array().and_then(|nodes| nodes.iter().find(is_it));
    Ok(found.and_then(|node| node["node-name"].as_str()).expect("a node of that file").to_owned())
}

/// The files of the present's layers, the active one first.
fn files_of(home: &Home, machine: &Machine<'_>) -> Result<Vec<PathBuf>> {
    let shown = machine.show()?;
    let layers = shown.json["disks"][0]["layers"].as_array().cloned().unwrap_or_default();
    Ok(layers.iter().map(|layer| home.path().join(layer.as_str().unwrap())).collect())
}

const CLUSTER: usize = 64 << 10;

fn header(file: &Path) -> Vec<u8> {
    let mut bytes = vec![0; CLUSTER];
    std::fs::File::open(file).unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

fn put_header(file: &Path, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// Notes in `tree.json` what the files of its layers look like now, as the merge would have whose last step failed.
fn note_again(home: &Home) {
    let path = home.path().join("vms/worker/tree.json");
    let tree: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut body = tree["body"].clone();
    for layer in body["layers"].as_array_mut().unwrap() {
        let found = std::fs::metadata(home.path().join(layer["path"].as_str().unwrap())).unwrap();
        let modified_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
        layer["frozen"] = json!({ "bytes": found.len(), "modified_ns": modified_ns });
    }
    let body = body.to_string();
    let (schema, digest) = (&tree["schema"], blake3::hash(body.as_bytes()));
    std::fs::write(&path, format!("{{\"schema\": {schema}, \"blake3\": \"{digest}\", \"body\": {body}}}")).unwrap();
}

fn run_job(machine: &Machine<'_>, command: &str, arguments: &Value) -> Result<()> {
    let mut monitor = machine.monitor()?;
    monitor.execute(command, arguments)?;
    let ended = |name: &str| name == "BLOCK_JOB_COMPLETED";
    monitor.wait_for_event("the job's end", 60 * SECOND, |event| ended(&event.name)).map(drop)
}

/// As if the last step of a merge had failed to write a header: QEMU's chain is ahead of it, and of the documents.
fn header_owed(
    test: &str,
    before: usize,
    after: usize,
    job: impl Fn(&[String]) -> (&'static str, usize, Value),
) -> Result<()> {
    let home = Home::new(test)?;
    let machine = worker_with(&home, "worker", &["a"])?;
    disk_only(&home, &machine, "one")?;
    writes_on(&machine, before)?;
    disk_only(&home, &machine, "two")?;
    writes_on(&machine, after)?;
    disk_only(&home, &machine, "three")?;
    let mut expected = contents(&home, &machine)?;
    expected.remove("two");
    // The snapshot goes, its merge is left.
    assert_eq!(home.run_until("merge-journaled!", ["delete", "worker@two"])?.status, Some(3));
    let files = files_of(&home, &machine)?;
    assert_eq!(files.len(), 4);
    let nodes = files.iter().map(|file| node_of(&machine, file)).collect::<Result<Vec<_>>>()?;
    let (command, changed, mut arguments) = job(&nodes);
    let old = header(&files[changed]);
    arguments["job-id"] = json!("test");
    run_job(&machine, command, &arguments)?;
    assert!(header(&files[changed]) != old, "the chain has changed");
    put_header(&files[changed], &old);
    note_again(&home);

    home.run(["consolidate", "worker"])?.succeeded()?;
    assert_eq!(layers_of(&machine)?, 3);
    assert_eq!(contents(&home, &machine)?, expected);
    home.run(["fsck", "worker"])?.succeeded()?;
    assert_works(&machine, test)?;
    for gone in ["one", "three"] {
        home.run(["delete", &machine.at(gone)])?.succeeded()?;
    }
    assert_eq!(layers_of(&machine)?, 1);
    machine.assert_intact(machine.serial()?.end())
}

#[test]
fn a_header_that_was_not_written_when_data_were_pushed_down_is_written_by_the_retry() -> Result<()> {
    header_owed("header-pushed", 40, 2, |nodes| {
        let arguments = json!({ "device": nodes[0], "top-node": nodes[1], "base-node": nodes[2] });
        ("block-commit", 0, arguments)
    })
}

#[test]
fn a_header_that_was_not_written_when_data_were_pulled_up_is_written_by_the_retry() -> Result<()> {
    header_owed("header-pulled", 2, 40, |nodes| {
        ("block-stream", 1, json!({ "device": nodes[1], "base-node": nodes[3] }))
    })
}
