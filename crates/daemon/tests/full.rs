//! A full disk under what the daemon itself writes. Needs root, to mount a small file system.

#[allow(dead_code, reason = "each test program uses a part of the world")]
mod world;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keyframe_daemon::audit;
use keyframe_daemon::job::{Job, State, Step};
use keyframe_daemon::service::{Config, Service, Shared, Wish, directory};
use keyframe_engine::Home;
use world::{DAY, Faults, HOUR, Host, POLICIES, Simulated, begin, play, policies, started};

/// A small file system, mounted until dropped.
struct SmallFs(PathBuf);

impl SmallFs {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let option = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "keyframe-test"]).arg(at).status();
        assert!(mounted.is_ok_and(|status| status.success()), "this test mounts a file system and needs root for it");
        Self(at.to_owned())
    }

    /// Leaves room for nothing.
    fn fill(&self) {
        let open = || File::options().append(true).create(true).open(self.0.join("filler")).unwrap();
        for bytes in [1 << 16, 1 << 12, 1] {
            let (mut filler, chunk) = (open(), vec![0x5a; bytes]);
            while filler.write_all(&chunk).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

/// Plays until a look of the daemon comes to what is waited for.
fn play_until(host: &Host, daemon: &mut Simulated, mut is: impl FnMut(&Simulated) -> bool) {
    let until = host.now().checked_add(DAY).unwrap();
    while !is(daemon) {
        assert!(host.now() < until, "it does not come to that");
        host.pass(Duration::from_secs(1));
        daemon.tick(host.now()).unwrap();
    }
}

#[test]
fn what_cannot_be_remembered_is_not_begun_and_done_once_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let small = SmallFs::mount(dir.path(), "24m");
    let (host, policies) = (Host::new(3, 6, begin(), Faults::default()), policies(POLICIES));
    let (path, mut daemon) = (dir.path().join("catalog.db"), None);
    play(&host, &mut daemon, &path, &policies, DAY);
    // Anew, so that its log of changes is short; and when a backup is about to prune.
    daemon.take();
    let mut daemon = started(&host, &path, &policies);
    let at_thin = |job: &Job| job.state == State::Running && job.steps == [Step::Thin, Step::Prune];
    play_until(&host, &mut daemon, |daemon| daemon.jobs().any(at_thin));
    let id = daemon.jobs().find(|job| at_thin(job)).unwrap().id.clone();
    small.fill();
    let (mut commands, mut errors) = (host.0.borrow().commands, 0);
    let before = commands;
    let full_until = host.now().checked_add(HOUR * 3).unwrap();
    while host.now() < full_until {
        host.pass(Duration::from_secs(1));
        let failed = daemon.tick(host.now()).is_err();
        errors += u32::from(failed);
        let now = host.0.borrow().commands;
        assert!(!failed || now == commands, "something was begun that is not remembered");
        commands = now;
    }
    assert_eq!(commands, before, "nothing could be remembered at any time: the check can fail");
    assert!(errors > 10_000, "{errors}");
    assert!(host.at_work().is_empty());
    let waiting: Vec<State> = daemon.jobs().map(|job| job.state).collect();
    assert!(waiting.len() >= 4 && waiting.iter().all(|state| *state == State::Waiting), "{waiting:?}");

    small.make_room();
    let lines = host.0.borrow().lines.len();
    let back = host.now();
    let mut daemon = Some(daemon);
    play(&host, &mut daemon, &path, &policies, HOUR * 2);
    let daemon = daemon.unwrap();
    let ended = daemon.catalog().job(&id).unwrap().unwrap();
    assert_eq!((ended.state, ended.attempt), (State::Done, 1), "{ended:?}");
    let world = host.0.borrow();
    let prunes = world.lines[lines..].iter().filter(|line| line[..2] == ["repo", "prune"]).count();
    assert_eq!(prunes, 1, "what makes room is not forgotten over it");
    for machine in ["vm000", "vm001", "vm002"] {
        let of = |kind: &str| {
            let made =
                world.made.iter().filter(|(of, name, at)| of == machine && name.starts_with(kind) && *at >= back);
            made.count()
        };
        assert_eq!(of("auto-"), 3, "{machine}: the one that was missed, once, and two hourly ones");
        let points = world.made.iter().filter(|(of, name, _)| of == machine && name.starts_with("job-")).count();
        assert_eq!(points, 3, "{machine}: at once, and on two nights");
    }
    let names: BTreeSet<_> = world.made.iter().map(|(machine, name, _)| (machine, name)).collect();
    assert_eq!(names.len(), world.made.len(), "nothing twice");
    assert_eq!(daemon.jobs().count(), 0);
}

/// A daemon at work in a thread.
struct Daemon {
    shared: Arc<Shared>,
    over: Arc<AtomicBool>,
    serving: JoinHandle<()>,
}

impl Daemon {
    fn start(home: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let config = Config {
            home: Home::open(home).unwrap(),
            policies: Vec::new(),
            program: "false".into(),
            version: "test".to_owned(),
            reload: Arc::default(),
        };
        let (service, shared) = Service::start(config, &over).unwrap();
        let ending = Arc::clone(&over);
        Self { shared, over, serving: std::thread::spawn(move || service.run(&ending, || {})) }
    }

    fn pause(&self, paused: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.shared.wish(Wish::Pause(paused), "uid 0")).unwrap();
    }

    fn alerts(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.shared.view().overview.alerts.iter().map(|alert| alert.id.clone()).collect();
        // The tests' home may be on a disk that is nearly full itself.
        ids.retain(|id| id != "space");
        ids.sort();
        ids
    }

    fn comes_to(&self, alerts: &[&str]) {
        let begun = Instant::now();
        while self.alerts() != alerts {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", self.shared.view().overview.alerts);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.serving.join().unwrap();
    }
}

#[test]
fn a_daemon_without_room_starts_shows_it_and_goes_on_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir_all(home.join("policies")).unwrap();
    let serve = directory(&Home::open(&home).unwrap());
    let small = SmallFs::mount(&serve, "64m");
    let ballast = serve.join("ballast");
    let entries = |what: &str| {
        let (entries, flaws) = audit::read(&serve).unwrap();
        assert_eq!(flaws, []);
        entries.iter().filter(|entry| entry.what == what).count()
    };
    let daemon = Daemon::start(&home);
    daemon.comes_to(&[]);
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 4 << 20);

    // What was kept for that is given up, and everything can be written still.
    small.fill();
    daemon.comes_to(&["ballast"]);
    assert!(!ballast.exists());
    (0..40).for_each(|_| daemon.pause(true));
    assert_eq!((entries("pause"), daemon.alerts()), (40, vec!["ballast".to_owned()]));
    daemon.end();
    assert_eq!(entries("stop"), 1);

    // The next one has no room at all, not even for its catalog's index of changes.
    small.fill();
    let daemon = Daemon::start(&home);
    daemon.comes_to(&["ballast", "unkept"]);
    let view = daemon.shared.view();
    let told = view.overview.alerts.iter().find(|alert| alert.id == "unkept").unwrap();
    assert!(told.what.starts_with("what is decided cannot be kept, and nothing is begun until it can: the catalog "));
    (0..40).for_each(|_| daemon.pause(true));
    daemon.comes_to(&["audit", "ballast", "unkept"]);
    assert!(daemon.shared.view().overview.paused, "what makes less happen is done all the same");
    assert!(entries("pause") < 80, "there was room: the check can fail");
    // A while later, too.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(daemon.alerts(), ["audit", "ballast", "unkept"]);

    small.make_room();
    daemon.comes_to(&[]);
    assert_eq!((entries("start"), entries("pause")), (2, 80), "nothing is lost, nothing is there twice");
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 4 << 20);
    assert!(daemon.shared.view().overview.paused, "as somebody wanted it");
    daemon.end();
}
