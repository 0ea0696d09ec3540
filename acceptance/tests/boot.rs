//! A machine that runs straight from a repository: at once, with its running state; wholly local in the end; and whoever dies or
//! goes away meanwhile, nothing that the guest reads is wrong and nothing that it wrote is lost. Needs QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keyframe_acceptance::process::{self, ProcessId};
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Outcome, Repository, Result, guests};
use keyframe_engine::failpoint::Failpoint;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// The disk that the checker leaves alone, and that takes some seconds to come.
const LARGE: &str = "disk2";
const LARGE_BYTES: u64 = 512 << 20;
/// A repository that takes as long for it as a test needs.
const SLOW: [&str; 2] = ["--bandwidth", "64M"];

/// How large what is backed up shall be.
#[derive(Clone, Copy, PartialEq)]
enum Size {
    /// Wholly local in a moment.
    Small,
    /// With a disk of bytes that do not compress.
    Large,
    /// With memory that takes some seconds to come.
    Memory,
}

/// A machine that was backed up and is gone.
struct BackedUp {
    /// What its checker calls itself.
    token: String,
    /// The bytes of its large disk.
    original: PathBuf,
}

fn backed_up(home: &Home, repository: &Repository, size: Size, words: &[&str]) -> Result<BackedUp> {
    let (memory, checked) = if size == Size::Memory { ("640M", 448) } else { ("192M", 48) };
    let checker = format!("checker.mb={checked} checker.rate=20 checker.disks=vda,vdb");
    let mut spec = MachineSpec::small(&guests::small()?, memory, &checker);
    for disk in ["a", "b"] {
        spec = spec.disk(&home.empty_disk(&format!("{disk}.qcow2"), "64M")?);
    }
    let original = home.file("original.raw");
    if size == Size::Large {
        let random = std::fs::File::open("/dev/urandom").expect("there is randomness");
        let mut file = std::fs::File::create(&original).expect("created");
        std::io::copy(&mut std::io::Read::take(random, LARGE_BYTES), &mut file).expect("written");
        let used = home.file("c.raw");
        std::fs::copy(&original, &used).expect("copied");
        spec = spec.disk(&used);
    }
    let machine = Machine::start(home, "worker", &spec)?;
    machine.wait_until_checking()?;
    let token = machine.serial()?.next_heartbeat(Mark::START, 10 * SECOND)?.token;
    let words: Vec<&str> = ["backup", "worker", "--tag", "point"].iter().chain(words).copied().collect();
    repository.run(home, &words)?.succeeded()?;
    home.run(["vm", "stop", "worker", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "worker"])?.succeeded()?;
    Ok(BackedUp { token, original })
}

fn boot(home: &Home, repository: &Repository, further: &[&str]) -> Result<Outcome> {
    let words: Vec<&str> = ["boot", "worker@point", "--as", "again", "--json"].iter().chain(further).copied().collect();
    repository.run(home, &words)?.succeeded()
}

/// Where the repository is moved to.
fn elsewhere(repository: &Repository) -> PathBuf {
    repository.path().with_file_name("elsewhere")
}

/// The repository's packs, the largest first.
fn packs(repository: &Repository) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![repository.path().join("packs")]);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).expect("there are packs").flatten() {
            let metadata = entry.metadata().expect("it can be looked at");
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else {
                found.push((metadata.len(), entry.path()));
            }
        }
    }
    found.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    found.into_iter().map(|(_, path)| path).collect()
}

fn status(home: &Home) -> Result<serde_json::Value> {
    Ok(home.run(["boot", "--status", "again", "--json"])?.succeeded()?.json)
}

/// Until it holds, or the test fails.
fn until(what: &str, within: Duration, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + within;
    while !holds()? {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Processes of the home whose command line has this word.
fn running(home: &Home, word: &str) -> Vec<ProcessId> {
    let has = |id: &ProcessId| {
        let line = std::fs::read(format!("/proc/{}/cmdline", id.0)).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == word.as_bytes())
    };
    process::of_home(home.path()).into_iter().filter(has).collect()
}

/// Reads or writes a disk behind the guest's back, through its QEMU; gives what that said, which it says in its log.
fn qemu_io(machine: &Machine<'_>, disk: &str, command: &str) -> Result<String> {
    let shown = machine.show()?;
    let log = || std::fs::read_to_string(shown.text("qemu_log").unwrap_or_default()).unwrap_or_default();
    let before = log().len();
    let line = format!("qemu-io -d /machine/peripheral/d-{disk}/virtio-backend \"{command}\"");
    machine.monitor()?.execute("human-monitor-command", &json!({ "command-line": line }))?;
    Ok(log().get(before..).unwrap_or_default().to_owned())
}

fn layer(machine: &Machine<'_>, disk: usize) -> Result<PathBuf> {
    Ok(PathBuf::from(machine.show()?.json["disks"][disk]["layers"][0].as_str().unwrap_or_default()))
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    let compared = Command::new("qemu-img").args(["compare", "-q"]).arg(one).arg(other).status();
    compared.is_ok_and(|status| status.success())
}

fn remove(home: &Home) -> Result<()> {
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    home.run(["fsck", "again"])?.succeeded()?;
    home.run(["vm", "remove", "again"])?.succeeded()?;
    until("whoever served it is gone", 10 * SECOND, || Ok(running(home, "internal-boot").is_empty()))
}

#[test]
fn a_point_runs_at_once_and_becomes_a_machine_like_any_other() -> Result<()> {
    let home = Home::new("boot")?;
    let repository = Repository::init(&home)?;
    let token = backed_up(&home, &repository, Size::Small, &["--memory"])?.token;
    let booted = boot(&home, &repository, &[])?;
    let again = Machine::existing(&home, "again");
    assert_eq!((&booted.json["memory"], &booted.json["state"]), (&json!(true), &json!("running")));
    assert_eq!(again.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token, token, "the same program goes on");
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    let shown = again.show()?;
    assert!(shown.json["boot"].is_null() && shown.json["hydration"].is_null(), "{:#}", shown.json);
    until("whoever served it is gone", 5 * SECOND, || Ok(running(&home, "internal-boot").is_empty()))?;
    // Nothing of the repository is needed any more.
    std::fs::rename(repository.path(), elsewhere(&repository)).expect("moved");
    again.assert_intact(Mark::START)?;
    again.snapshot("kept")?;
    again.revert("kept", &[])?;
    again.assert_intact(Mark::START)?;
    home.run(["delete", "again@kept"])?.succeeded()?;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    let mark = again.serial()?.end();
    home.run(["vm", "start", "again"])?.succeeded()?;
    again.serial()?.wait_for(mark, &format!("FOUND session {token}"), 60 * SECOND)?;
    assert_eq!(home.run(["boot", "--resume", "again"])?.status, Some(2), "it needs no repository");
    remove(&home)
}

#[test]
fn a_paused_one_waits_for_its_start_and_a_cold_one_boots() -> Result<()> {
    let home = Home::new("boot-paused")?;
    let repository = Repository::init(&home)?;
    let token = backed_up(&home, &repository, Size::Small, &["--memory"])?.token;
    let booted = boot(&home, &repository, &["--paused"])?;
    assert_eq!(booted.json["state"], "paused");
    let again = Machine::existing(&home, "again");
    assert_eq!(again.show()?.text("state")?, "paused");
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    home.run(["vm", "start", "again"])?.succeeded()?;
    assert_eq!(again.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token, token);
    again.assert_intact(Mark::START)?;
    let refused = repository.run(&home, &["boot", "worker@point", "--as", "again"])?;
    assert_ne!(refused.status, Some(0), "there is one of this name");
    remove(&home)?;
    let booted = boot(&home, &repository, &["--cold"])?;
    assert_eq!(booted.json["memory"], false);
    again.serial()?.wait_for(Mark::START, &format!("FOUND session {token}"), 60 * SECOND)?;
    again.wait_until_checking()?;
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    again.assert_intact(Mark::START)?;
    remove(&home)
}

#[test]
fn whoever_serves_may_die_and_the_repository_be_away() -> Result<()> {
    let home = Home::new("boot-away")?;
    let repository = Repository::init(&home)?;
    let BackedUp { token, original } = backed_up(&home, &repository, Size::Large, &["--memory"])?;
    boot(&home, &repository, &SLOW)?;
    let again = Machine::existing(&home, "again");
    // The worker is replaced by its supervisor.
    let workers = running(&home, "internal-boot-worker");
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0].kill(home.path())?;
    until("another worker", 10 * SECOND, || {
        Ok(running(&home, "internal-boot-worker").first().is_some_and(|now| now.0 != workers[0].0))
    })?;
    until("it says so", 10 * SECOND, || Ok(status(&home)?["stands_on"]["restarts"] == 1))?;
    // Whoever looks replaces the supervisor.
    running(&home, "internal-boot").iter().try_for_each(|supervisor| supervisor.kill(home.path()))?;
    until("its worker is gone, too", 10 * SECOND, || Ok(running(&home, "internal-boot-worker").is_empty()))?;
    let shown = again.show()?;
    assert_eq!(running(&home, "internal-boot").len(), 1, "{:#}", shown.json);
    assert_eq!(again.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token, token);

    std::fs::rename(repository.path(), elsewhere(&repository)).expect("moved");
    let waited = home.run(["boot", "--wait", "again", "--patience", "2s"])?;
    assert_eq!(waited.status, Some(3), "{}", waited.stderr);
    assert!(waited.stderr.contains("away since"), "{}", waited.stderr);
    let listed = home.run(["vm", "list"])?.succeeded()?;
    assert!(listed.stdout.contains("waits for its repository"), "{}", listed.stdout);
    std::thread::sleep(3 * SECOND);
    std::fs::rename(elsewhere(&repository), repository.path()).expect("moved back");
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    again.assert_intact(Mark::START)?;
    assert_eq!(again.serial()?.next_heartbeat(again.serial()?.end(), 20 * SECOND)?.token, token);
    let large = layer(&again, 2)?;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    assert!(same_bytes(&large, &original));
    home.run(["vm", "start", "again"])?.succeeded()?;
    remove(&home)
}

#[test]
fn a_guest_whose_memory_is_away_waits_and_goes_on() -> Result<()> {
    let home = Home::new("boot-memory")?;
    let repository = Repository::init(&home)?;
    let token = backed_up(&home, &repository, Size::Memory, &["--memory"])?.token;
    boot(&home, &repository, &[])?;
    std::fs::rename(repository.path(), elsewhere(&repository)).expect("moved");
    running(&home, "internal-boot-worker").iter().try_for_each(|worker| worker.kill(home.path()))?;
    until("it is seen to be away", 10 * SECOND, || Ok(status(&home)?["stands_on"]["reach"]["state"] == "away"))?;
    let told = status(&home)?;
    assert!(!told["stands_on"]["memory"].is_null(), "all memory was here: the test shows nothing: {told:#}");
    std::thread::sleep(3 * SECOND);
    let shown = home.run(["vm", "show", "again"])?.succeeded()?;
    assert!(shown.stdout.contains("away since"), "{}", shown.stdout);
    std::fs::rename(elsewhere(&repository), repository.path()).expect("moved back");
    let again = Machine::existing(&home, "again");
    let serial = again.serial()?;
    assert_eq!(serial.next_heartbeat(serial.end(), 30 * SECOND)?.token, token);
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    again.assert_intact(Mark::START)?;
    let learned = home.path().join("prefetch/worker.hot");
    assert!(std::fs::metadata(&learned).is_ok_and(|file| file.len() > 0), "what it wanted first is on record");
    remove(&home)
}

#[test]
fn a_machine_half_here_is_stopped_started_and_survives_a_power_cut() -> Result<()> {
    let home = Home::new("boot-stopped")?;
    let repository = Repository::init(&home)?;
    let BackedUp { token, original } = backed_up(&home, &repository, Size::Large, &["--memory"])?;
    boot(&home, &repository, &SLOW)?;
    let again = Machine::existing(&home, "again");
    let refused = home.run(["snapshot", "again"])?;
    assert_eq!(refused.status, Some(1));
    assert!(
        refused.stderr.contains("stands on a repository") && refused.stderr.contains("--wait"),
        "{}",
        refused.stderr
    );
    // What the guest writes, in the midst of what is not here.
    let (at, len) = (200 << 20, 96 << 10);
    for command in [format!("write -P 171 {at} {len}"), "flush".to_owned()] {
        let said = qemu_io(&again, LARGE, &command)?;
        assert!(!said.contains("failed"), "{said}");
    }
    let written = again.serial()?.next_heartbeat(again.serial()?.end(), 20 * SECOND)?.sequences;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    assert!(
        !status(&home)?["stands_on"].is_null(),
        "it was wholly local before it was stopped: the test shows nothing"
    );
    home.run(["fsck", "again", "--repair"])?.succeeded()?;
    let mark = again.serial()?.end();
    home.run(["vm", "start", "again"])?.succeeded()?;
    let found = again.serial()?.wait_for(mark, &format!("FOUND session {token} seq "), 60 * SECOND)?;
    let numbers = found.rsplit(' ').next().unwrap_or_default();
    let numbers: Vec<u64> = numbers.trim().split(',').filter_map(|number| number.parse().ok()).collect();
    assert!(
        numbers.len() == 2 && numbers.iter().zip(&written).all(|(found, told)| found >= told),
        "{found}: {written:?}"
    );
    let read = format!("read -P 171 {at} {len}");
    assert!(!qemu_io(&again, LARGE, &read)?.contains("failed"), "what was written is there");
    again.wait_until_checking()?;

    // All of it is killed, and what lies in run/ is gone, as after a power cut.
    let image = layer(&again, 2)?;
    process::of_home(home.path()).iter().try_for_each(|process| process.kill(home.path()))?;
    std::fs::remove_dir_all(home.path().join("vms/again/run")).expect("removed");
    home.run(["vm", "start", "again"])?.succeeded()?;
    again.wait_until_checking()?;
    assert!(!qemu_io(&again, LARGE, &read)?.contains("failed"), "what was written is there");
    home.run(["boot", "--wait", "again"])?.succeeded()?;
    again.assert_intact(Mark::START)?;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    let pattern = vec![171; len];
    let file = std::fs::OpenOptions::new().write(true).open(&original).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&file, &pattern, at).expect("written");
    assert!(same_bytes(&image, &original), "what is here is not what was backed up and then written");
    home.run(["vm", "start", "again"])?.succeeded()?;
    remove(&home)
}

#[test]
fn a_damaged_chunk_is_an_error_and_never_wrong_data() -> Result<()> {
    let home = Home::new("boot-damaged")?;
    let repository = Repository::init(&home)?;
    let original = backed_up(&home, &repository, Size::Large, &[])?.original;
    // Of the large disk's packs, the second largest: kernel and small disks are elsewhere.
    let pack = packs(&repository).swap_remove(1);
    let whole = std::fs::read(&pack).expect("read");
    let mut spoilt = whole.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&pack, &spoilt).expect("written");
    boot(&home, &repository, &[])?;
    let again = Machine::existing(&home, "again");
    let waited = home.run(["boot", "--wait", "again", "--patience", "1s"])?;
    assert_eq!(waited.status, Some(3), "{}", waited.stderr);
    until("all else is here", 60 * SECOND, || {
        Ok(status(&home)?["stands_on"]["disks"].as_array().map(Vec::len) == Some(1))
    })?;
    let told = status(&home)?;
    let lost = &told["stands_on"]["lost"][0];
    assert_eq!(lost["image"], LARGE, "{told:#}");
    let (at, end) = (lost["at"].as_u64().unwrap_or(0), lost["end"].as_u64().unwrap_or(0));
    // Within what was asked for at once, some of it is damaged, and that alone cannot be read.
    let read = |at: u64| Ok(!qemu_io(&again, LARGE, &format!("read {at} 64k"))?.contains("failed"));
    let places: Vec<bool> = (at..end).step_by(64 << 10).map(read).collect::<Result<_>>()?;
    assert!(places.contains(&false), "{at} to {end}: {places:?}");
    // A pattern that is not there is told, or the test shows nothing.
    assert!(qemu_io(&again, LARGE, "read -P 1 0 64k")?.contains("verification failed"));
    assert!(read(0)? && read(LARGE_BYTES - (64 << 10))?, "all else can be read");
    again.wait_until_checking()?;
    again.assert_intact(Mark::START)?;
    // Mended, it goes on.
    std::fs::write(&pack, &whole).expect("written");
    repository.run(&home, &["boot", "--resume", "again"])?.succeeded()?;
    home.run(["boot", "--wait", "again", "--patience", "60s"])?.succeeded()?;
    let image = layer(&again, 2)?;
    home.run(["vm", "stop", "again", "--force"])?.succeeded()?;
    assert!(same_bytes(&image, &original));
    home.run(["vm", "start", "again"])?.succeeded()?;
    remove(&home)
}

#[test]
fn killed_at_any_step_there_is_no_machine_or_one_that_runs() -> Result<()> {
    let home = Home::new("boot-killed")?;
    let repository = Repository::init(&home)?;
    let token = backed_up(&home, &repository, Size::Small, &["--memory"])?.token;
    let again = Machine::existing(&home, "again");
    let points = |operation: &'static str| {
        Failpoint::ALL.iter().map(|point| point.name()).filter(move |name| name.starts_with(operation))
    };
    for point in points("boot-") {
        let committed = ["boot-head-written", "boot-running"].contains(&point);
        let words = ["boot", "worker@point", "--as", "again"];
        for failpoint in [point.to_owned(), format!("{point}!")] {
            let ended = repository.run_until(&home, &failpoint, &words)?;
            assert_ne!(ended.status, Some(0), "{failpoint} was not passed");
            let killed = !failpoint.ends_with('!');
            let exists = || Ok(home.run(["vm", "show", "again"])?.status != Some(10));
            if killed && committed {
                until("it runs", 20 * SECOND, || Ok(again.show()?.text("state")? == "running"))?;
                assert_eq!(again.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token, token, "{failpoint}");
                home.run(["boot", "--wait", "again"])?.succeeded()?;
                again.assert_intact(Mark::START)?;
                remove(&home)?;
            } else {
                until(&format!("{failpoint}: it is gone"), 20 * SECOND, || Ok(!exists()?))?;
                until("so is whoever served it", 20 * SECOND, || Ok(running(&home, "internal-boot").is_empty()))?;
            }
        }
    }
    for point in points("pull-") {
        repository.run_until(&home, point, &["boot", "worker@point", "--as", "again"])?.succeeded()?;
        home.run(["boot", "--wait", "again"])?.succeeded()?;
        assert_eq!(again.serial()?.next_heartbeat(Mark::START, 20 * SECOND)?.token, token, "{point}");
        again.assert_intact(Mark::START)?;
        // No job is in the way, and no node.
        again.snapshot("kept")?;
        remove(&home)?;
    }
    Ok(())
}
