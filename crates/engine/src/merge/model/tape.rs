//! What reaches the file system, in order: every write, sync and change of a directory of this thread, and those of the
//! storage daemons that it started.
//!
//! This process's own calls are seen where they leave it: the functions of the C library that Rust's standard library calls
//! are defined here, for the test binary alone. A daemon writes through QEMU's `blklogwrites`, whose log is read whenever this
//! process does something itself: the daemon is then idle, so the order holds.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// One thing that happened to the file system.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// Bytes were written to a file, which had that time of last write then, in nanoseconds.
    Write { path: PathBuf, offset: u64, bytes: Vec<u8>, modified_ns: i64 },
    /// A file was cut or grown.
    SetLen { path: PathBuf, bytes: u64, modified_ns: i64 },
    /// A file's bytes, length and times were made durable.
    SyncFile { path: PathBuf },
    /// The names in a directory were made durable.
    SyncDir { path: PathBuf },
    /// A file came to be.
    MakeFile { path: PathBuf },
    /// A directory came to be.
    MakeDir { path: PathBuf },
    /// A file or directory has another name.
    Rename { from: PathBuf, to: PathBuf },
    /// A file or empty directory is gone.
    Remove { path: PathBuf },
}

/// How something is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// `fsync` of a file.
    Sync,
    /// `fdatasync` of a file, as when a header is changed.
    DataSync,
    /// `fsync` of a directory.
    DirSync,
    /// A flush of the storage daemon's.
    Daemon,
}

/// Syncs that are left out: what a test must notice.
pub(super) type LeftOut = fn(&Path, By) -> bool;

/// A recording in progress.
struct Tape {
    root: PathBuf,
    logs: tempfile::TempDir,
    daemons: Vec<DaemonLog>,
    events: Vec<Event>,
}

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
    static LEFT_OUT: RefCell<Option<LeftOut>> = const { RefCell::new(None) };
}

/// Records what this thread does below `root` from now on.
pub(super) fn start(root: &Path) {
    let logs = tempfile::tempdir().unwrap();
    TAPE.set(Some(Tape { root: root.to_owned(), logs, daemons: Vec::new(), events: Vec::new() }));
}

/// Ends the recording.
pub(super) fn stop() -> Vec<Event> {
    let Some(mut tape) = TAPE.take() else { return Vec::new() };
    tape.read_daemons();
    tape.events
}

/// From now on this thread's recordings are as if syncs for which `which` is true had never been made.
pub(super) fn leave_out(which: Option<LeftOut>) {
    LEFT_OUT.set(which);
}

/// What a storage daemon is to open instead of `options`, so that writes to the file at `path` are recorded.
pub(crate) fn observed(path: &Path, options: Value) -> Value {
    TAPE.with_borrow_mut(|tape| match tape {
        Some(tape) => tape.observe(path, options),
        None => options,
    })
}

impl Tape {
    fn observe(&mut self, path: &Path, mut options: Value) -> Value {
        let log = self.logs.path().join(format!("{}.log", self.daemons.len()));
        std::fs::File::create(&log).unwrap();
        self.daemons.push(DaemonLog { of: path.to_owned(), log: log.clone(), at: SECTOR });
        // This driver cannot be reopened to be written to.
        options["read-only"] = json!(false);
        let file = options["file"].take();
        options["file"] = json!({
            "driver": "blklogwrites",
            "file": file,
            "log": { "driver": "file", "filename": log, "read-only": false },
        });
        options
    }

    fn read_daemons(&mut self) {
        for daemon in &mut self.daemons {
            daemon.read_into(&mut self.events);
        }
    }

    fn push(&mut self, event: Event) {
        self.read_daemons();
        self.events.push(event);
    }
}

/// What blocks are counted in there.
const SECTOR: u64 = 512;
/// Flags of an entry. Source: QEMU's block/blklogwrites.c, the kernel's drivers/md/dm-log-writes.c.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// The log of one daemon's writes to one file.
struct DaemonLog {
    of: PathBuf,
    log: PathBuf,
    at: u64,
}

impl DaemonLog {
    fn read_into(&mut self, events: &mut Vec<Event>) {
        let log = std::fs::File::open(&self.log).unwrap();
        // Nobody knows when each of them was written; no two syncs of ours are between them.
        let Ok(modified_ns) = modified_ns(&self.of) else { return };
        loop {
            let mut head = [0; 32];
            if log.read_exact_at(&mut head, self.at).is_err() {
                return;
            }
            let field = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
            let (sector, sectors, flags) = (field(0), field(8), field(16));
            if (sector, sectors, flags) == (0, 0, 0) {
                return;
            }
            self.at += SECTOR;
            let mut bytes = vec![0; usize::try_from(sectors * SECTOR).unwrap()];
            if flags & DISCARD == 0 {
                log.read_exact_at(&mut bytes, self.at).unwrap();
                self.at += sectors * SECTOR;
            }
            if !bytes.is_empty() {
                let path = self.of.clone();
                events.push(Event::Write { path, offset: sector * SECTOR, bytes, modified_ns });
            }
            if flags & (FLUSH | FUA) != 0 && !is_left_out(&self.of, By::Daemon) {
                events.push(Event::SyncFile { path: self.of.clone() });
            }
        }
    }
}

fn modified_ns(path: &Path) -> std::io::Result<i64> {
    let metadata = std::fs::metadata(path)?;
    Ok(metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec())
}

fn is_left_out(path: &Path, by: By) -> bool {
    LEFT_OUT.with_borrow(|which| which.is_some_and(|which| which(path, by)))
}

/// Records an event at `path`, if it is recorded at all.
fn record(path: impl FnOnce() -> Option<PathBuf>, event: impl FnOnce(PathBuf) -> Option<Event>) {
    // Where the thread is at its end, or in the middle of recording, nothing is recorded.
    let _ = TAPE.try_with(|tape| {
        let Ok(mut tape) = tape.try_borrow_mut() else { return };
        let Some(tape) = tape.as_mut() else { return };
        let Some(path) = path().filter(|path| path.starts_with(&tape.root)) else { return };
        if let Some(event) = event(path) {
            tape.push(event);
        }
    });
}

fn of_descriptor(fd: c_int) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok().filter(|path| path.exists())
}

/// # Safety
/// `path` is a string as C has them.
unsafe fn of_name(dir: c_int, path: *const c_char) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    // SAFETY: the caller's.
    let path = Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    if path.is_absolute() || dir == libc::AT_FDCWD {
        return Some(std::env::current_dir().ok()?.join(path));
    }
    Some(of_descriptor(dir)?.join(path))
}

/// What a system call returned, as the C library tells it.
#[allow(clippy::cast_possible_truncation)] // descriptors and 0
fn told(result: c_long) -> c_int {
    result as c_int
}

fn wrote(fd: c_int, at: impl FnOnce() -> i64, data: *const c_void, count: isize) {
    let Ok(count) = usize::try_from(count) else { return };
    let write = |path: PathBuf| {
        // SAFETY: the call has read that many bytes from there.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), count) }.to_vec();
        let modified_ns = modified_ns(&path).ok()?;
        Some(Event::Write { path, offset: u64::try_from(at()).ok()?, bytes, modified_ns })
    };
    record(|| of_descriptor(fd).filter(|path| path.is_file()), write);
}

fn synced(fd: c_int, by: By) {
    let sync = |path: PathBuf| {
        let by = if path.is_dir() { By::DirSync } else { by };
        let event = if by == By::DirSync {
            Event::SyncDir { path: path.clone() }
        } else {
            Event::SyncFile { path: path.clone() }
        };
        (!is_left_out(&path, by)).then_some(event)
    };
    record(|| of_descriptor(fd), sync);
}

// The functions that Rust's standard library calls, in place of the C library's. Each makes the same system call.

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, data: *const c_void, count: usize) -> isize {
    // SAFETY: the same call, with the caller's own arguments; so everywhere below.
    let done = unsafe { libc::syscall(libc::SYS_write, fd, data, count) } as isize;
    // SAFETY: as above.
    wrote(fd, || unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) - done as i64 }, data, done);
    done
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: c_int, data: *const c_void, count: usize, offset: i64) -> isize {
    // SAFETY: as above.
    let done = unsafe { libc::syscall(libc::SYS_pwrite64, fd, data, count, offset) } as isize;
    wrote(fd, || offset, data, done);
    done
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(fd: c_int, bytes: i64) -> c_int {
    // SAFETY: as above.
    let done = told(unsafe { libc::syscall(libc::SYS_ftruncate, fd, bytes) });
    if done == 0 {
        record(
            || of_descriptor(fd),
            |path| {
                let modified_ns = modified_ns(&path).ok()?;
                Some(Event::SetLen { path, bytes: bytes.unsigned_abs(), modified_ns })
            },
        );
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd, By::Sync);
    // SAFETY: as above.
    told(unsafe { libc::syscall(libc::SYS_fsync, fd) })
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd, By::DataSync);
    // SAFETY: as above.
    told(unsafe { libc::syscall(libc::SYS_fdatasync, fd) })
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: as above; `path` is a string, since `open` takes one.
    let before = (flags & (libc::O_CREAT | libc::O_TRUNC) != 0)
        .then(|| unsafe { of_name(libc::AT_FDCWD, path) })
        .flatten()
        .map(|path| std::fs::metadata(path).map(|found| found.len()).ok());
    // SAFETY: as above.
    let done = told(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) });
    match before {
        Some(None) if done >= 0 => record(|| of_descriptor(done), |path| Some(Event::MakeFile { path })),
        Some(Some(1..)) if done >= 0 && flags & libc::O_TRUNC != 0 => record(
            || of_descriptor(done),
            |path| {
                let modified_ns = modified_ns(&path).ok()?;
                Some(Event::SetLen { path, bytes: 0, modified_ns })
            },
        ),
        _ => {}
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: as above.
    let done = told(unsafe { libc::syscall(libc::SYS_rename, from, to) });
    if done == 0 {
        // SAFETY: both are strings, since `rename` takes those.
        let (source, target) = unsafe { (of_name(libc::AT_FDCWD, from), of_name(libc::AT_FDCWD, to)) };
        record(|| target, |to| Some(Event::Rename { from: source?, to }));
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: as above.
    let done = told(unsafe { libc::syscall(libc::SYS_mkdir, path, mode) });
    if done == 0 {
        // SAFETY: as above.
        record(|| unsafe { of_name(libc::AT_FDCWD, path) }, |path| Some(Event::MakeDir { path }));
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as above.
    let done = told(unsafe { libc::syscall(libc::SYS_unlinkat, dir, path, flags) });
    if done == 0 {
        // SAFETY: as above.
        record(|| unsafe { of_name(dir, path) }, |path| Some(Event::Remove { path }));
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    unlinkat(libc::AT_FDCWD, path, 0)
}

#[unsafe(no_mangle)]
extern "C" fn rmdir(path: *const c_char) -> c_int {
    unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR)
}
