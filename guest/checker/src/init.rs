//! The first program of a guest: mounts, modules, the power button, and the way on to another system.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::board::Board;
use crate::error::Error;
use crate::params::Root;

const MODULES: &str = "/modules";
const DEVICE_WITHIN: Duration = Duration::from_secs(20);
/// Size of the kernel's `struct input_event` on 64-bit machines. Source: linux/input.h.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Mounts what every Linux program expects.
///
/// # Errors
/// [`Error::File`] for the mount that failed.
pub fn mount_basics() -> Result<(), Error> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target).map_err(Error::file("create", target))?;
        let mounted = mount(kind, target, kind, MountFlags::empty(), None);
        mounted.or_else(already_done).map_err(Error::file("mount", target))?;
    }
    Ok(())
}

fn already_done(errno: rustix::io::Errno) -> rustix::io::Result<()> {
    match errno {
        rustix::io::Errno::BUSY | rustix::io::Errno::EXIST => Ok(()),
        other => Err(other),
    }
}

/// Loads the modules that lie in the initramfs, in the order of their names' numbers.
///
/// # Errors
/// [`Error::File`] for the module that the kernel refused.
pub fn load_modules() -> Result<(), Error> {
    let list = fs::read_dir(MODULES).map_err(Error::file("list", MODULES))?;
    let mut paths: Vec<_> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        finit_module(&file, c"", 0).or_else(already_done).map_err(Error::file("load", &path))?;
    }
    Ok(())
}

/// Lets notices of the kernel through to the serial line (one of them tells of a forked machine) but no
/// chatter.
///
/// # Errors
/// [`Error::File`].
pub fn set_kernel_log_level() -> Result<(), Error> {
    const PATH: &str = "/proc/sys/kernel/printk";
    fs::write(PATH, "6 4 1 7").map_err(Error::file("write", PATH))
}

/// Switches the machine off.
pub fn power_off() -> io::Result<()> {
    rustix::fs::sync();
    Ok(reboot(RebootCommand::PowerOff)?)
}

/// Crashes the kernel, as a person would do with the magic key.
///
/// # Errors
/// When the kernel does not offer it.
pub fn crash_kernel() -> io::Result<()> {
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    fs::write("/proc/sysrq-trigger", "c")
}

/// Waits for the ACPI power button on every input device, each in a thread of its own, and switches off.
pub fn obey_power_button(board: &Arc<Board>) {
    let Ok(list) = fs::read_dir("/dev/input") else { return };
    for path in list.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_event = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("event"));
        if let (true, Ok(device)) = (is_event, File::open(&path)) {
            let board = Arc::clone(board);
            thread::spawn(move || {
                if wait_for_power_key(device).is_ok() {
                    board.close();
                    let _refused = power_off();
                }
            });
        }
    }
}

fn wait_for_power_key(mut device: File) -> io::Result<()> {
    let mut event = [0_u8; INPUT_EVENT_BYTES];
    loop {
        device.read_exact(&mut event)?;
        let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
        if half(16) == EV_KEY && half(18) == KEY_POWER && event[20] == 1 {
            return Ok(());
        }
    }
}

/// Mounts the root file system read-only, as systemd expects it, and becomes its init.
///
/// # Errors
/// [`Error::NoPartition`] or [`Error::File`]; on success it does not return.
pub fn switch_root(root: &Root) -> Result<Infallible, Error> {
    const NEW_ROOT: &str = "/newroot";
    const INIT: &str = "/sbin/init";
    let device = match root {
        Root::Device(path) => appeared(PathBuf::from(path))?,
        Root::PartLabel(label) => partition_named(label)?,
    };
    fs::create_dir_all(NEW_ROOT).map_err(Error::file("create", NEW_ROOT))?;
    mount(&device, NEW_ROOT, "ext4", MountFlags::RDONLY, None).map_err(Error::file("mount", &device))?;
    for (from, to) in [("/dev", "/newroot/dev"), ("/proc", "/newroot/proc"), ("/sys", "/newroot/sys")] {
        mount_move(from, to).map_err(Error::file("move", from))?;
    }
    rustix::process::chdir(NEW_ROOT).map_err(Error::file("enter", NEW_ROOT))?;
    mount_move(".", "/").map_err(Error::file("move", NEW_ROOT))?;
    rustix::process::chroot(".").map_err(Error::file("enter", NEW_ROOT))?;
    rustix::process::chdir("/").map_err(Error::file("enter", "/"))?;
    Err(Error::file("run", INIT)(Command::new(INIT).exec()))
}

fn appeared(device: PathBuf) -> Result<PathBuf, Error> {
    let deadline = Instant::now() + DEVICE_WITHIN;
    while !device.exists() {
        if Instant::now() > deadline {
            return Err(Error::file("find", device)(io::Error::from(io::ErrorKind::NotFound)));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(device)
}

fn partition_named(label: &str) -> Result<PathBuf, Error> {
    let deadline = Instant::now() + DEVICE_WITHIN;
    while Instant::now() < deadline {
        if let Some(name) = find_partition(Path::new("/sys/class/block"), label) {
            return Ok(Path::new("/dev").join(name));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(Error::NoPartition { label: label.to_owned() })
}

fn find_partition(class: &Path, label: &str) -> Option<String> {
    let wanted = format!("PARTNAME={label}");
    let list = fs::read_dir(class).ok()?;
    let mut found = list.filter_map(|entry| {
        let entry = entry.ok()?;
        let uevent = fs::read_to_string(entry.path().join("uevent")).ok()?;
        uevent.lines().any(|line| line == wanted).then(|| entry.file_name().into_string().ok())?
    });
    found.next()
}
