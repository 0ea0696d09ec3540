//! Trees of files to put into images, and their comparison with what comes out.
#![allow(dead_code)] // each test uses some of it

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files in one directory: more than a block of names.
pub const MANY: usize = 700;

/// What a file system keeps besides names and bytes.
#[derive(Debug, Clone, Copy)]
pub struct Keeps {
    pub mode: bool,
    pub links: bool,
    pub times_ns: i64,
    pub xattrs: bool,
}

/// Names and bytes.
pub const PLAIN: Keeps = Keeps { mode: false, links: false, times_ns: i64::MAX, xattrs: false };
/// All of it; mke2fs keeps whole seconds.
pub const UNIX: Keeps = Keeps { mode: true, links: true, times_ns: 1_000_000_000, xattrs: true };

/// A directory full of all that is to be kept.
pub struct Tree {
    pub dir: PathBuf,
    pub what: Keeps,
}

/// Bytes that look like nothing, and are the same each time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

impl Tree {
    /// Names and bytes alone: for file systems that know no more.
    pub fn plain(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("dir/deep/deeper")).unwrap();
        fs::create_dir(dir.join("empty-dir")).unwrap();
        fs::create_dir(dir.join("many")).unwrap();
        for n in 0..MANY {
            fs::write(dir.join(format!("many/a-file-with-a-name-that-is-long-enough-{n:05}")), n.to_string()).unwrap();
        }
        fs::write(dir.join("small"), "a small file\n").unwrap();
        fs::write(dir.join("none"), "").unwrap();
        fs::write(dir.join("dir/deep/file"), noise(1, 5000)).unwrap();
        fs::write(dir.join("dir/deep/deeper/Grüße-und-日本.txt"), noise(2, 70_000)).unwrap();
        fs::write(dir.join("large"), noise(3, 9_000_001)).unwrap();
        fs::write(dir.join("compressible"), "the same words again and again. ".repeat(50_000)).unwrap();
        Self { dir: dir.to_owned(), what: PLAIN }
    }

    /// With links, holes, permissions, times and attributes.
    pub fn unix(dir: &Path) -> Self {
        let tree = Self::plain(dir);
        let sparse = fs::File::create(dir.join("sparse")).unwrap();
        for at in [0, 100_000, 5 << 20, 30 << 20] {
            sparse.write_all_at(&noise(at, 4096), at).unwrap();
        }
        sparse.set_len(40 << 20).unwrap();
        symlink("dir/deep/file", dir.join("link")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("x".repeat(900), dir.join("long-link")).unwrap();
        fs::hard_link(dir.join("small"), dir.join("dir/second name")).unwrap();
        fs::write(dir.join("suid"), "#!/bin/false\n").unwrap();
        fs::set_permissions(dir.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(dir.join("empty-dir"), fs::Permissions::from_mode(0o1700)).unwrap();
        let attributes: [(&str, &str, Vec<u8>); 3] = [
            ("small", "user.origin", b"somewhere".to_vec()),
            ("small", "user.longer", noise(9, 300)),
            ("dir", "user.on-a-directory", b"x".to_vec()),
        ];
        for (file, name, value) in attributes {
            rustix::fs::setxattr(dir.join(file), name, &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        let old = fs::File::options().write(true).open(dir.join("small")).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
        old.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
        Self { what: UNIX, ..tree }
    }
}

/// What is compared of a file.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: fs::FileType,
    size: u64,
    mode: u32,
    links: u64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn walk(root: &Path, dir: &Path, all: &mut BTreeMap<PathBuf, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        // What mkfs makes for itself.
        if name == Path::new("lost+found") || name == Path::new("System Volume Information") {
            continue;
        }
        all.insert(name, path.clone());
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            walk(root, &path, all);
        }
    }
}

fn seen(path: &Path, what: Keeps) -> Seen {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file = metadata.is_file();
    let mut xattrs = BTreeMap::new();
    if what.xattrs && !metadata.is_symlink() {
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(path, &mut names).unwrap();
        for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 70_000];
            let len = rustix::fs::getxattr(path, name.as_str(), &mut value).unwrap();
            value.truncate(len);
            xattrs.insert(name, value);
        }
    }
    Seen {
        kind: metadata.file_type(),
        size: if file { metadata.len() } else { 0 },
        mode: if what.mode { metadata.mode() & 0o7777 } else { 0 },
        links: if what.links && file { metadata.nlink() } else { 0 },
        target: fs::read_link(path).ok(),
        xattrs,
    }
}

/// Every file of both is in the other, and is the same.
#[track_caller]
pub fn assert_same(truth: &Path, copy: &Path, what: Keeps) {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    walk(truth, truth, &mut left);
    walk(copy, copy, &mut right);
    let names = |all: &BTreeMap<PathBuf, PathBuf>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    assert!(left.len() > MANY);
    for (name, path) in left {
        let other = &right[&name];
        assert_eq!(seen(&path, what), seen(other, what), "{}", name.display());
        let (metadata, copied) = (fs::symlink_metadata(&path).unwrap(), fs::symlink_metadata(other).unwrap());
        if metadata.is_file() {
            assert!(fs::read(&path).unwrap() == fs::read(other).unwrap(), "the bytes of {}", name.display());
            let at = |metadata: &fs::Metadata| metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            let apart = (at(&metadata) - at(&copied)).abs();
            assert!(apart < what.times_ns, "{}: {apart} ns apart", name.display());
        }
    }
}

/// Runs a tool that `cargo xtask setup` installs; gives what it said.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    tool_with_input(program, arguments, "")
}

#[track_caller]
pub fn tool_with_input(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Where Debian has them, whether or not the user's PATH says so.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("MTOOLS_SKIP_CHECK", "1").env("LC_ALL", "C.UTF-8");
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{program}, which `cargo xtask setup` installs: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}
