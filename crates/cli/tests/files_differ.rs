//! `keyframe diff` and `keyframe mount`; readers that end.

mod bench;
mod trees;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bench::Bench;
use trees::{Tree, UNIX, assert_same, noise, tool};

fn put_tree(bench: &Bench, tree: &Tree, tag: &str) {
    let image = bench.path("disk");
    let _gone = fs::remove_file(&image);
    tool("mkfs.ext4", &["-q", "-F", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "100M"]);
    bench.run(&["image", "put", "disk", "disk", "--tag", tag]).with(0);
}

#[test]
fn what_was_added_removed_and_changed_is_listed() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    put_tree(&bench, &tree, "before");
    bench.run(&["image", "put", "disk", "disk", "--tag", "same"]).with(0);
    assert!(bench.run(&["diff", "disk@before", "disk@same"]).with(0).out.contains("no file differs"));
    fs::write(tree.dir.join("dir/new"), "new").unwrap();
    fs::create_dir(tree.dir.join("new-dir")).unwrap();
    fs::write(tree.dir.join("new-dir/inside"), "x").unwrap();
    fs::remove_file(tree.dir.join("suid")).unwrap();
    fs::write(tree.dir.join("none"), "not empty any more").unwrap();
    fs::set_permissions(tree.dir.join("empty-dir"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(tree.dir.join("link")).unwrap();
    std::os::unix::fs::symlink("small", tree.dir.join("link")).unwrap();
    put_tree(&bench, &tree, "after");
    let said = bench.run(&["--json", "diff", "disk@before", "disk@after"]).with(0).json();
    let change = |kind: &str| -> BTreeSet<&str> {
        let all = said["changes"].as_array().unwrap().iter();
        all.filter(|change| change["what"]["change"] == kind).map(|change| change["path"].as_str().unwrap()).collect()
    };
    assert_eq!(change("added"), BTreeSet::from(["/dir/new", "/new-dir", "/new-dir/inside"]));
    assert_eq!(change("removed"), BTreeSet::from(["/suid"]));
    let changed = change("changed");
    for path in ["/none", "/empty-dir", "/link"] {
        assert!(changed.contains(path), "{path} in {changed:?}");
    }
    assert!(change("unknown").is_empty());
    let lines = bench.run(&["diff", "disk@before", "disk@after"]).with(0).out;
    assert!(lines.contains("- image:/suid  ("), "{lines}");
    assert!(lines.lines().any(|line| line.starts_with("~ image:/none") && line.contains("size")), "{lines}");
    bench.run(&["diff", "disk@before", "disk@after", "--volume", "other"]).with(2);
}

#[test]
fn a_mounted_point_reads_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    put_tree(&bench, &tree, "one");
    let dir = bench.path("mount");
    fs::create_dir(&dir).unwrap();
    let mut command = bench.command(&["mount", "disk@one", "mount"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.join("image").exists() {
        if let Some(status) = child.try_wait().unwrap() {
            let output = child.wait_with_output().unwrap();
            panic!("{status}; this test needs /dev/fuse: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing is mounted");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_same(&tree.dir, &dir.join("image"), UNIX);
    assert!(fs::write(dir.join("image/small"), "x").is_err(), "it is read-only");
    assert!(fs::read(dir.join("image/nothing")).is_err());
    // Ctrl-C ends it, and nothing stays mounted.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

/// Damage anywhere is an error that is told, or does not matter; never a crash of the command, never a wait without end.
#[test]
fn damaged_file_systems_are_errors() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let image = bench.path("disk");
    tool("mkfs.ext4", &["-q", "-F", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "60M"]);
    let file = fs::File::options().read(true).write(true).open(&image).unwrap();
    let begun = Instant::now();
    for round in 0..12u64 {
        // The superblock stays, so that there is something to get lost in.
        for n in 0..40 {
            let place = u64::from_le_bytes(noise(round * 100 + n, 8).try_into().unwrap());
            let at = 4096 + place % (12 << 20);
            file.write_all_at(&noise(place, 64), at).unwrap();
        }
        bench.run(&["image", "put", "disk", "disk"]).with(0);
        let _gone = fs::remove_dir_all(bench.path("out"));
        fs::create_dir(bench.path("out")).unwrap();
        let ended = bench.run(&["files", "disk", "cp", "-r", "/", "out"]);
        assert!([0, 1, 3].contains(&ended.status), "{}{}", ended.status, ended.err);
        assert!(ended.status == 0 || !ended.err.is_empty());
    }
    assert!(begun.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_reader_that_is_killed_is_an_error() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    put_tree(&bench, &tree, "one");
    let dir = bench.path("mount");
    fs::create_dir(&dir).unwrap();
    let mut child = bench.command(&["mount", "disk@one", "mount"]).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !dir.join("image").exists() {
        assert!(begun.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none(), "needs /dev/fuse");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The one process below it.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let reader: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    let status = fs::read_to_string(format!("/proc/{reader}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    let open = fs::read_dir(format!("/proc/{reader}/fd")).unwrap().count();
    assert_eq!(open, 3, "a socket, and twice nothing");
    assert_eq!(fs::read(format!("/proc/{reader}/environ")).unwrap(), b"", "no keys");
    rustix::process::kill_process(rustix::process::Pid::from_raw(reader).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let error = fs::read(dir.join("image/dir/deep/file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
}
