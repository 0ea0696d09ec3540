//! A QEMU without Keyframe: to show that the judge in the guest judges, and to compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::guests::SmallGuest;
use crate::machine;
use crate::monitor::Monitor;
use crate::process::ProcessId;
use crate::serial::SerialLog;

const UP_WITHIN: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Debug, Clone)]
pub struct BareSpec<'a> {
    /// Where its sockets and its log go: one directory for each process.
    pub dir: PathBuf,
    /// Its kernel and initramfs.
    pub guest: &'a SmallGuest,
    /// Words for the checker.
    pub words: &'a str,
    /// Guest RAM, such as `512M`.
    pub memory: &'a str,
    /// qcow2 images; node names are `disk0`, `disk1`, ...
    pub disks: Vec<PathBuf>,
    /// Bypass the page cache, as Keyframe does.
    pub direct: bool,
    /// Wait for `migrate-incoming` instead of booting.
    pub incoming: bool,
}

/// A running one. Dropping it kills it.
pub struct BareQemu {
    child: Child,
    dir: PathBuf,
    /// Its monitor.
    pub monitor: Monitor,
}

impl BareQemu {
    /// Starts it and connects its monitor.
    ///
    /// # Errors
    /// [`Error::Run`] when it does not start, [`Error::File`] when its monitor does not listen.
    pub fn start(spec: &BareSpec<'_>) -> Result<Self> {
        fs::create_dir_all(&spec.dir).map_err(Error::file("create", &spec.dir))?;
        let mut child = command(spec).spawn().map_err(|source| Error::Run { program: "QEMU".to_owned(), source })?;
        match connect(&spec.dir.join("qmp.sock")) {
            Ok(monitor) => Ok(Self { child, dir: spec.dir.clone(), monitor }),
            Err(error) => {
                let _gone = child.kill();
                let _reaped = child.wait();
                Err(error)
            }
        }
    }

    /// A second connection to its monitor, for who cannot borrow the first.
    ///
    /// # Errors
    /// [`Error::File`] when nobody listens there.
    pub fn second_monitor(&self) -> Result<Monitor> {
        connect(&self.dir.join("qmp2.sock"))
    }

    /// Its process.
    pub fn process(&self) -> ProcessId {
        ProcessId(self.child.id())
    }

    /// Its serial log.
    pub fn serial(&self) -> SerialLog {
        SerialLog::at(self.dir.join("serial.log"))
    }

    /// Types one line at its serial console.
    ///
    /// # Errors
    /// [`Error::File`] when nobody listens there.
    pub fn type_line(&self, line: &str) -> Result<()> {
        machine::type_line(&self.dir.join("console.sock"), line)
    }

    /// Switches migration capabilities on.
    ///
    /// # Errors
    /// [`Error::Monitor`] when QEMU has no such capability.
    pub fn enable(&mut self, capabilities: &[&str]) -> Result<()> {
        self.switch(capabilities, true)
    }

    /// Switches migration capabilities off.
    ///
    /// # Errors
    /// [`Error::Monitor`] when QEMU has no such capability.
    pub fn disable(&mut self, capabilities: &[&str]) -> Result<()> {
        self.switch(capabilities, false)
    }

    fn switch(&mut self, capabilities: &[&str], on: bool) -> Result<()> {
        let list: Vec<_> = capabilities.iter().map(|name| json!({ "capability": name, "state": on })).collect();
        self.monitor.execute("migrate-set-capabilities", &json!({ "capabilities": list })).map(drop)
    }

    /// Waits until an outgoing migration is complete.
    ///
    /// # Errors
    /// [`Error::Monitor`] when it fails or does not end within `within`.
    pub fn wait_until_migrated(&mut self, within: Duration) -> Result<()> {
        self.wait_for_status("query-migrate", within, |status| match status {
            "completed" => Some(true),
            "failed" | "cancelled" => Some(false),
            _ => None,
        })
    }

    /// Waits until an incoming migration is loaded.
    ///
    /// # Errors
    /// [`Error::Monitor`] when it does not end within `within`.
    pub fn wait_until_loaded(&mut self, within: Duration) -> Result<()> {
        self.wait_for_status("query-status", within, |status| (status != "inmigrate").then_some(true))
    }

    /// Polls a command until `judge` says whether its `status` is a good end.
    fn wait_for_status(&mut self, query: &str, within: Duration, judge: impl Fn(&str) -> Option<bool>) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let answer = self.monitor.execute(query, &json!({}))?;
            let status = answer.get("status").and_then(Value::as_str).unwrap_or_default();
            match judge(status) {
                Some(true) => return Ok(()),
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                _ => return Err(Error::Monitor { command: query.to_owned(), answer: answer.to_string() }),
            }
        }
    }
}

impl Drop for BareQemu {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn connect(socket: &Path) -> Result<Monitor> {
    let deadline = Instant::now() + UP_WITHIN;
    loop {
        match Monitor::connect(socket) {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            other => return other,
        }
    }
}

fn command(spec: &BareSpec<'_>) -> Command {
    let at = |name: &str| spec.dir.join(name).display().to_string();
    let append = format!("console=ttyS0 quiet panic=-1 iomem=relaxed {}", spec.words);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=tcg,hpet=off,memory-backend=ram0", "-cpu", "max", "-nodefaults"]);
    command.args(["-display", "none", "-no-reboot", "-m", spec.memory]);
    command.args(["-object", &format!("memory-backend-ram,id=ram0,size={}", spec.memory)]);
    command.arg("-kernel").arg(&spec.guest.kernel).arg("-initrd").arg(&spec.guest.initrd).args(["-append", &append]);
    let cache = if spec.direct { "cache.direct=on,file.cache.direct=on," } else { "" };
    for (number, disk) in spec.disks.iter().enumerate() {
        let file = disk.display();
        command
            .arg("-blockdev")
            .arg(format!("driver=qcow2,node-name=disk{number},{cache}file.driver=file,file.filename={file}"));
        command.args(["-device", &format!("virtio-blk-pci,drive=disk{number},id=vd{number}")]);
    }
    let (console, serial) = (at("console.sock"), at("serial.log"));
    command.args(["-chardev", &format!("socket,id=c0,path={console},server=on,wait=off,logfile={serial}")]);
    command.args(["-serial", "chardev:c0", "-qmp", &format!("unix:{},server=on,wait=off", at("qmp.sock"))]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp2.sock"))]);
    if spec.incoming {
        command.args(["-S", "-incoming", "defer"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}
