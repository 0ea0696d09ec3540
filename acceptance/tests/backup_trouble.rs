//! What backups and restores leave behind when they die, or when something is broken. Needs QEMU.

mod pile;

use std::os::unix::fs::FileExt as _;
use std::process::Command;

use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, Repository, Result};
use serde_json::Value;

use pile::{SECOND, assert_works, points, worker_with};

fn worker(home: &Home) -> Result<Machine<'_>> {
    worker_with(home, "worker", &["a"])
}

fn snapshots(home: &Home) -> Result<Vec<Value>> {
    Ok(home.run(["snapshots", "worker", "--json"])?.succeeded()?.list("snapshots")?.to_vec())
}

fn points_of(home: &Home, repository: &Repository) -> Result<Vec<Value>> {
    Ok(repository.run(home, &["points", "worker", "--json"])?.succeeded()?.list("points")?.to_vec())
}

#[test]
fn a_backup_that_ends_at_any_step_leaves_no_half_point_and_a_working_guest() -> Result<()> {
    let home = Home::new("backup-killed")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    let mut made = 0;
    for point in points("backup-") {
        for (end, at) in [("killed", point.to_owned()), ("failed", format!("{point}!"))] {
            let when = format!("{point}, {end}");
            let outcome = repository.run_until(&home, &at, &["backup", "worker"])?;
            assert_eq!(outcome.status, if end == "killed" { None } else { Some(1) }, "{when}: {}", outcome.stderr);
            made += usize::from(point == "backup-point-made");
            assert_works(&machine, &when)?;
            assert_eq!(
                points_of(&home, &repository)?.len(),
                made,
                "{when}: a point that is half there, or one that is lost"
            );
        }
    }
    // Killed ones leave a snapshot that goes by itself; the others have taken theirs away.
    let left = snapshots(&home)?;
    assert!((1..=points("backup-").len()).contains(&left.len()), "{left:?}");
    assert!(left.iter().all(|snapshot| !snapshot["expires"].is_null()), "{left:?}");
    std::thread::sleep(62 * SECOND);
    repository.run(&home, &["backup", "worker"])?.succeeded()?;
    assert_eq!(snapshots(&home)?.len(), 0, "the next backup takes away what killed ones left");
    assert_eq!(points_of(&home, &repository)?.len(), made + 1);
    repository.run(&home, &["repo", "check"])?.succeeded()?;
    repository.run(&home, &["repo", "verify"])?.succeeded()?;
    machine.assert_intact(Mark::START)
}

#[test]
fn a_restore_that_ends_at_any_step_leaves_no_machine_and_can_be_made_again() -> Result<()> {
    let home = Home::new("restore-killed")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    repository.run(&home, &["backup", "worker", "--memory"])?.succeeded()?;
    let token = machine.serial()?.next_heartbeat(Mark::START, SECOND)?.token;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "worker"])?.succeeded()?;
    for point in points("restore-") {
        for at in [point.to_owned(), format!("{point}!")] {
            let outcome = repository.run_until(&home, &at, &["restore", "worker", "--as", "again"])?;
            assert_ne!(outcome.status, Some(0), "{at} is not on the way");
            let listed = home.run(["vm", "list", "--json"])?.succeeded()?;
            assert!(listed.list("machines")?.is_empty(), "{at}: half a machine: {}", outcome.stderr);
        }
    }
    repository.run(&home, &["restore", "worker", "--as", "again", "--run"])?.succeeded()?;
    let again = Machine::existing(&home, "again");
    assert_eq!(again.serial()?.next_heartbeat(Mark::START, 60 * SECOND)?.token, token);
    again.assert_intact(Mark::START)
}

#[test]
fn a_repository_that_goes_away_is_no_trouble_for_the_guest() -> Result<()> {
    let home = Home::new("backup-gone")?;
    let machine = worker(&home)?;
    let repository = Repository::init(&home)?;
    let (place, away) = (repository.path(), repository.path().with_extension("away"));
    std::fs::rename(&place, &away).unwrap();
    let outcome = repository.run(&home, &["backup", "worker"])?;
    assert!(outcome.status.is_some_and(|status| status != 0), "{}", outcome.stderr);
    assert!(snapshots(&home)?.is_empty(), "the machine is not touched for a repository that is not there");
    std::fs::rename(&away, &place).unwrap();
    repository.run(&home, &["backup", "worker"])?.succeeded()?;
    // It goes when all is stored but the point.
    std::fs::rename(place.join("points"), &away).unwrap();
    std::fs::write(place.join("points"), b"").unwrap();
    let outcome = repository.run(&home, &["backup", "worker"])?;
    assert!(outcome.status.is_some_and(|status| status != 0), "{}", outcome.stderr);
    std::fs::remove_file(place.join("points")).unwrap();
    std::fs::rename(&away, place.join("points")).unwrap();
    assert!(snapshots(&home)?.is_empty(), "its snapshot is let go");
    assert_works(&machine, "without a repository")?;
    assert_eq!(points_of(&home, &repository)?.len(), 1);
    repository.run(&home, &["backup", "worker"])?.succeeded()?;
    machine.assert_intact(Mark::START)
}

#[test]
fn what_cannot_be_read_is_missing_and_said() -> Result<()> {
    let home = Home::new("backup-unreadable")?;
    // A third disk, compressed, with a broken cluster.
    let (raw, disk) = (home.file("raw"), home.file("broken.qcow2"));
    let text: Vec<u8> = (0..16_u32 << 20).map(|at| (at / 4096 % 251) as u8).collect();
    std::fs::write(&raw, &text).unwrap();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-q", "-f", "raw", "-O", "qcow2", "-c"]).arg(&raw).arg(&disk);
    assert!(convert.status().unwrap().success());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap();
    // Compressed clusters lie behind the tables, in order: somewhere in the middle of them.
    let length = file.metadata().unwrap().len();
    let mut good = [0; 600];
    file.read_exact_at(&mut good, length - 3000).unwrap();
    file.write_all_at(&[0xff; 600], length - 3000).unwrap();
    home.run(["vm", "create", "broken", "--disk", &disk.display().to_string()])?.succeeded()?;
    let repository = Repository::init(&home)?;
    let backup = repository.run(&home, &["backup", "broken", "--json"])?;
    assert_eq!(backup.status, Some(3), "{}", backup.stderr);
    let missing = backup.json["unreadable_bytes"].as_u64().unwrap_or_default();
    assert!((1..=1 << 20).contains(&missing), "{}", backup.json);
    assert_eq!(backup.json["incomplete"], true);
    // All the rest is there.
    let back = home.file("back.raw");
    let words = ["restore", "broken", "--disk", "disk0", "--to", &back.display().to_string()];
    repository.run(&home, &words)?.succeeded()?;
    let restored = std::fs::read(&back).unwrap();
    assert_eq!(restored.len(), text.len());
    let differing = restored.iter().zip(&text).filter(|(one, other)| one != other).count() as u64;
    assert!(differing > 0 && differing <= missing, "{differing} differ, {missing} are said to be missing");
    let listed = repository.run(&home, &["points", "broken"])?.succeeded()?;
    assert!(listed.stdout.contains("missing"), "{}", listed.stdout);
    // Mended, nothing is missing any more.
    file.write_all_at(&good, length - 3000).unwrap();
    repository.run(&home, &["backup", "broken"])?.succeeded()?;
    std::fs::remove_file(&back).unwrap();
    repository.run(&home, &words)?.succeeded()?;
    assert!(std::fs::read(&back).unwrap() == text);
    Ok(())
}
