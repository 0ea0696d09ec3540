//! Points are drilled: restored into isolation, brought up both ways, asked, thrown away, and kept as evidence. Needs QEMU.

mod pile;

use std::path::{Path, PathBuf};

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, Repository, Result};

use pile::{SECOND, worker_with};

fn worker(home: &Home) -> Result<Machine<'_>> {
    worker_with(home, "worker", &["a"])
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_point_comes_back_both_ways_and_the_evidence_can_be_checked() -> Result<()> {
    let home = Home::new("drill-point")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    repository.run(&home, &["backup", "worker", "--memory"])?.succeeded()?;
    let drill = |words: &[&str]| {
        let all: Vec<&str> = ["drill", "worker", "--json"].iter().chain(words).copied().collect();
        repository.run(&home, &all)
    };
    let passed = drill(&["--probe", "serial=token"])?.succeeded()?;
    assert_eq!(passed.text("verdict")?, "passed");
    for way in ["resume", "cold"] {
        assert_eq!(passed.json[way]["verdict"], "passed", "{}", passed.json);
        assert!(passed.json[way]["running_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", passed.json);
    }
    let hash = passed.json["disks"][0]["blake3"].as_str().unwrap_or_default().to_owned();
    let back = home.file("back.raw");
    let words = ["restore", "worker", "--disk", "disk0", "--to", &back.display().to_string()];
    repository.run(&home, &words)?.succeeded()?;
    assert_eq!(hash, blake3::hash(&std::fs::read(&back).unwrap()).to_hex().to_string());
    let evidence = PathBuf::from(passed.text("evidence")?);
    for name in ["drill.json", "drill.html", "resume.png", "cold.png", "resume.serial.log", "cold.serial.log"] {
        assert!(evidence.join(name).is_file(), "{name} is missing");
    }
    let page = std::fs::read_to_string(evidence.join("drill.html")).unwrap();
    assert!(page.contains("data:image/png;base64,") && page.contains(&hash));
    // Nothing of it is left, and the machine itself noticed nothing.
    assert_eq!(files(&home.path().join("drills")), Vec::<PathBuf>::new());
    machine.assert_intact(Mark::START)?;

    let failed = drill(&["--ways", "resume", "--within", "5s", "--probe", "serial=never said"])?;
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert_eq!(failed.text("verdict")?, "failed");
    let said =
        repository.run(&home, &["drill", "worker", "--ways", "resume", "--within", "5s", "--probe", "serial=never"])?;
    assert!(
        said.stdout.contains("FAILED") && said.stdout.contains("serial") && said.stdout.contains("| "),
        "{}",
        said.stdout
    );

    let verified = home.run(["drills", "worker", "--verify", "--json"])?.succeeded()?;
    assert_eq!(verified.list("drills")?.len(), 3);
    let head = verified.text("head")?.to_owned();
    home.run(["drills", "--verify", "--head", &head])?.succeeded()?;
    let page = evidence.join("drill.html");
    let html = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, html.replace("passed", "failed")).unwrap();
    assert_eq!(home.run(["drills", "--verify"])?.status, Some(1), "the page was changed");
    std::fs::write(&page, html).unwrap();
    home.run(["drills", "--verify"])?.succeeded()?;
    let log = home.path().join("evidence/log.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(&log, text.replacen("\"failed\"", "\"passed\"", 1)).unwrap();
    let verified = home.run(["drills", "--verify"])?;
    assert_eq!(verified.status, Some(1));
    assert!(verified.stdout.contains("line 2"), "{}", verified.stdout);
    Ok(())
}

#[test]
fn a_point_that_is_damaged_or_a_drill_that_is_killed_leaves_a_verdict_or_nothing() -> Result<()> {
    let home = Home::new("drill-damaged")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    repository.run(&home, &["backup", "worker"])?.succeeded()?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    for failpoint in ["restore-disks-written", "test-running"] {
        let killed = repository.run_until(&home, failpoint, &["drill", "worker"])?;
        assert_eq!(killed.status, None, "{failpoint}: {}", killed.stderr);
    }
    assert!(home.run(["drills", "--json"])?.succeeded()?.list("drills")?.is_empty(), "no drill, no verdict");
    // A guard may still be taking the throw-away machine of the killed one away.
    std::thread::sleep(SECOND);
    repository.run(&home, &["drill", "worker"])?.succeeded()?;
    assert_eq!(files(&home.path().join("drills")), Vec::<PathBuf>::new(), "what the killed ones left is gone");
    // A byte in the middle of every pack.
    for pack in files(&repository.path().join("packs")) {
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        let end = (middle + 4096).min(bytes.len());
        bytes[middle..end].iter_mut().for_each(|byte| *byte = !*byte);
        std::fs::write(&pack, bytes).unwrap();
    }
    let failed = repository.run(&home, &["drill", "worker", "--json"])?;
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert!(failed.json["trouble"].is_string(), "{}", failed.json);
    assert_eq!(home.run(["drills", "--json"])?.succeeded()?.list("drills")?.len(), 2);
    drop(machine);
    Ok(())
}
