//! Real machines for tests: QEMU 10 with the small guest that `cargo xtask guests` builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use keyframe_memory::pageserver::{Errand, ImageAt, ServeFigures, ServerConfig};
use keyframe_qmp::Client;
use keyframe_qmp::commands::machine::QueryStatus;
use keyframe_qmp::commands::migration::{
    Capability, Migrate, MigrateIncoming, MigrateSetCapabilities, MigrationAddress, MigrationStatus, QueryMigrate,
};

/// How long anything may take that a slow machine has to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where tests may leave things, and where Cargo's own things lie.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp lies in target").to_owned()
}

/// A file of the small guest.
fn guest_file(name: &str) -> PathBuf {
    let path = target().join("guests/small").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask guests` first", path.display());
    path
}

/// One guest at a time: they are heavy and their times are looked at.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static GUESTS: Mutex<()> = Mutex::new(());
    GUESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `probe` until it gives something.
pub fn wait_for<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < give_up, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A machine of the test's own, ended with it.
pub struct Vm {
    child: Child,
    dir: PathBuf,
    pub monitor: Client,
}

impl Vm {
    /// Starts QEMU in `dir`, which must be its own. `extra` are further arguments.
    pub fn start(dir: &Path, ram_mb: u64, extra: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("directory of a machine");
        let socket = dir.join("qmp");
        let _from_before = (fs::remove_file(&socket), fs::remove_file(dir.join("serial")));
        let child = Command::new("qemu-system-x86_64")
            .current_dir(dir)
            .args(["-M", "q35,accel=tcg,hpet=off,memory-backend=ram0", "-cpu", "max", "-nodefaults"])
            .args(["-m", &ram_mb.to_string(), "-display", "none", "-serial", "file:serial"])
            .args(["-object", &format!("memory-backend-ram,id=ram0,size={ram_mb}M")])
            .args(["-qmp", "unix:qmp,server=on,wait=off"])
            .arg("-kernel")
            .arg(guest_file("vmlinuz"))
            .arg("-initrd")
            .arg(guest_file("initrd"))
            .args(extra)
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.join("qemu.log")).expect("log"))
            .spawn()
            .expect("qemu-system-x86_64 must be installed for this test");
        // The socket's file is there a moment before anybody listens on it.
        let monitor = wait_for("QEMU's monitor", PATIENCE, || Client::connect(&socket, PATIENCE).ok());
        Self { child, dir: dir.to_owned(), monitor }
    }

    /// What the guest has printed.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("serial")).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has printed this.
    pub fn wait_serial(&self, text: &str) {
        wait_for(text, PATIENCE, || self.serial().contains(text).then_some(()));
    }

    /// Fails if the guest ever saw a wrong byte; needs it to say that it is well so many times from now on.
    pub fn assert_intact(&self, verdicts: usize) {
        let before = self.serial().matches("\nOK ").count();
        wait_for("verdicts of the guest", PATIENCE, || {
            let said = self.serial();
            assert!(!said.contains("CORRUPT"), "the guest's memory is wrong:\n{}", last_lines(&said));
            (said.matches("\nOK ").count() >= before + verdicts).then_some(())
        });
    }

    /// Makes QEMU await a migration at `socket`.
    pub fn await_migration(&mut self, socket: &Path) {
        self.capabilities([Capability::PostcopyRam]);
        let path = socket.to_str().expect("a path of ours").to_owned();
        self.monitor.call(&MigrateIncoming::from(MigrationAddress::Unix { path })).expect("migrate-incoming");
    }

    pub fn capabilities<const N: usize>(&mut self, which: [Capability; N]) {
        self.monitor.call(&MigrateSetCapabilities::on(which)).expect("capabilities");
    }

    pub fn migration_status(&mut self) -> Option<MigrationStatus> {
        self.monitor.call(&QueryMigrate {}).expect("query-migrate").status
    }

    pub fn is_running(&mut self) -> bool {
        self.monitor.call(&QueryStatus {}).expect("query-status").running
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _may_have_ended = (self.child.kill(), self.child.wait());
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// A snapshot of the small guest's memory, taken while it worked.
pub struct Snapshot {
    pub image: PathBuf,
    pub sums: PathBuf,
}

impl Snapshot {
    /// Its files.
    pub fn image_at(&self) -> ImageAt {
        ImageAt::Files { mapped: self.image.clone(), sums: self.sums.clone() }
    }

    /// The config of a server of this snapshot.
    pub fn server(&self, socket: &Path) -> ServerConfig {
        let image = self.image_at();
        ServerConfig { errand: Errand::Serve, image, hot: None, socket: socket.to_owned() }
    }
}

/// A snapshot with `ram_mb` of memory, of which the guest uses `used_mb`; taken once for each test program.
pub fn snapshot(ram_mb: u64, used_mb: u64) -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| take_snapshot(ram_mb, used_mb))
}

/// Boots the guest and takes a snapshot as QEMU does it by itself: in the background, into a mapped-ram file.
pub fn take_snapshot(ram_mb: u64, used_mb: u64) -> Snapshot {
    let dir = work_dir(&format!("snapshot-{ram_mb}"));
    let parameters = format!(
        "console=ttyS0 quiet panic=1 checker.mb={} checker.cold_mb={} checker.rate=40 checker.disks=none",
        used_mb / 2,
        used_mb / 2
    );
    let mut vm = Vm::start(&dir, ram_mb, &["-append", &parameters]);
    vm.wait_serial("READY");
    vm.assert_intact(2);
    vm.capabilities([Capability::BackgroundSnapshot, Capability::MappedRam]);
    let image = dir.join("memory.mapped");
    let filename = image.to_str().expect("a path of ours").to_owned();
    vm.monitor.call(&Migrate::to(MigrationAddress::File { filename, offset: 0 })).expect("migrate");
    wait_for("the snapshot", PATIENCE, || match vm.migration_status() {
        Some(MigrationStatus::Completed) => Some(()),
        Some(MigrationStatus::Failed) => panic!("the snapshot failed: {}", vm.log()),
        _ => None,
    });
    drop(vm);
    let sums = dir.join("memory.b3");
    keyframe_memory::seal::repair_bitmaps(&image).expect("repair");
    keyframe_memory::seal::write_sums(&image, &sums).expect("sums");
    Snapshot { image, sums }
}

/// A fresh directory for a test; what an earlier run of it left there is gone.
pub fn work_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pageserver").join(name);
    let _from_before = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("work directory");
    dir
}

/// A page server in a process of its own.
pub struct Server {
    child: Child,
    stdout: PathBuf,
}

impl Server {
    pub fn start(dir: &Path, name: &str, config: &ServerConfig) -> Self {
        let (file, stdout) = (dir.join(format!("{name}.json")), dir.join(format!("{name}.out")));
        fs::write(&file, serde_json::to_vec(config).expect("config")).expect("config file");
        let child = Command::new(page_server())
            .arg(file)
            .arg(dir.join(format!("{name}.hot")))
            .stdin(Stdio::null())
            .stdout(fs::File::create(&stdout).expect("output"))
            .stderr(fs::File::create(dir.join(format!("{name}.err"))).expect("errors"))
            .spawn()
            .expect("the page server starts");
        Self { child, stdout }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Waits for its success; says what it did.
    pub fn figures(self) -> ServeFigures {
        let stdout = self.stdout.clone();
        assert!(self.end(), "the page server failed");
        let told = fs::read_to_string(stdout).expect("what it told");
        serde_json::from_str(told.lines().last().expect("a report")).expect("figures")
    }

    /// Waits for its end; says whether it was a success.
    pub fn end(mut self) -> bool {
        wait_for("the page server's end", PATIENCE, || self.child.try_wait().expect("wait")).success()
    }

    /// What it has told so far.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    pub fn wait_told(&self, what: &str) {
        wait_for(what, PATIENCE, || self.told().contains(what).then_some(()));
    }
}

/// The page server's program. `cargo test --test …` does not build examples, so this does.
fn page_server() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("the test program");
        let profile = test.parent().and_then(Path::parent).expect("deps lies in a profile's directory");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "keyframe-memory", "--example", "page_server"]);
        build.args(profile.ends_with("release").then_some("--release"));
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo");
        assert!(built.success(), "the page server cannot be built");
        profile.join("examples/page_server")
    })
}
