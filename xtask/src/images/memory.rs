//! The memory of a guest that has booted and worked.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

const MEMORY_BYTES: u64 = 1 << 30;
const BOOT: Duration = Duration::from_secs(600);
const WORK: Duration = Duration::from_secs(300);
/// What the guest does before its memory is taken: it reads programs, compiles, sorts, asks its database.
const WORKLOAD: &str = "cat /usr/lib/x86_64-linux-gnu/*.so* >/dev/null; python3 -c 'import scipy.linalg as l, numpy as n; \
     l.svd(n.random.rand(300,300))'; find / -xdev | sort >/tmp/list; tail -c 100000000 /srv/database.bin | cksum; echo work''-done";

/// Boots the image, without changing it, lets it work and writes its memory to a file.
pub fn dump(guest: &Path, image: &Path, into: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let mut command = run::command("qemu-system-x86_64", ["-machine", "q35,accel=tcg", "-m", "1G", "-smp", "1"]);
    command.args(["-cpu", "max", "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", image.display())]);
    command.args(["-kernel", &guest.join("vmlinuz").display().to_string()]);
    command.args(["-initrd", &guest.join("initrd").display().to_string()]);
    command.args(["-append", "root=PARTLABEL=keyframe-root console=ttyS0 quiet panic=-1"]);
    let log = at("serial.log");
    command.args(["-chardev", &format!("socket,id=tty,path={},server=on,wait=off,logfile={log}", at("tty"))]);
    command.args(["-serial", "chardev:tty"]);
    command.args(["-monitor", &format!("unix:{},server=on,wait=off", at("monitor"))]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot run QEMU")?;
    let mut guest = Running { child };
    guest.wait_for(Path::new(&log), "keyframe#", BOOT)?;
    keyframe_acceptance::machine::type_line(Path::new(&at("tty")), WORKLOAD)?;
    guest.wait_for(Path::new(&log), "work-done", WORK)?;
    keyframe_acceptance::machine::type_line(
        Path::new(&at("monitor")),
        &format!("pmemsave 0 {MEMORY_BYTES} \"{}\"", into.display()),
    )?;
    let deadline = Instant::now() + WORK;
    while fs::metadata(into).map_or(0, |file| file.len()) < MEMORY_BYTES {
        ensure!(Instant::now() < deadline, "the memory was not written in time");
        thread::sleep(Duration::from_millis(200));
    }
    // Zero pages become holes, as in every tool that writes memory.
    run::quiet(run::command("fallocate", ["--dig-holes"]).arg(into)).map(drop)
}

struct Running {
    child: Child,
}

impl Running {
    fn wait_for(&mut self, log: &Path, word: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let said = fs::read(log).unwrap_or_default();
            if said.windows(word.len()).any(|window| window == word.as_bytes()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended: {status}");
            }
            if Instant::now() > deadline {
                let end = said.len().saturating_sub(500);
                bail!(
                    "the guest did not say {word}; it said … {}",
                    String::from_utf8_lossy(said.get(end..).unwrap_or_default())
                );
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
