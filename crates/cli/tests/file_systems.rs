//! `keyframe files` on XFS, btrfs, FAT, NTFS and LVM, made by their own tools.

mod bench;
mod trees;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bench::Bench;
use trees::{Keeps, PLAIN, Tree, UNIX, assert_same, tool, tool_with_input};

fn empty(path: &Path, mib: u64) {
    fs::File::create(path).unwrap().set_len(mib << 20).unwrap();
}

/// Stores an image, copies all of it out, and compares it with what was put in.
fn compare(bench: &Bench, name: &str, volume: &str, kind: &str, tree: &Path, what: Keeps) {
    bench.run(&["image", "put", name, name]).with(0);
    let said = bench.run(&["--json", "files", name, "ls"]).with(0).json();
    let volumes = said["volumes"].as_array().unwrap();
    let found = volumes.iter().find(|found| found["volume"] == volume).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(found["content"], kind, "{said}");
    assert_eq!(found["label"], "Test", "{said}");
    let out = bench.path(&format!("out-{name}"));
    fs::create_dir(&out).unwrap();
    bench.run(&["files", name, "cp", "-r", &format!("{volume}:/"), out.to_str().unwrap()]).with(0);
    assert_same(tree, &out, what);
    // A part of a file, by its path.
    let part = bench.command(&["files", name, "cat", &format!("{volume}:/dir/deep/file")]).output().unwrap();
    assert!(part.stdout == fs::read(tree.join("dir/deep/file")).unwrap());
}

/// What `mkfs.xfs -p` wants to be told.
fn prototype(dir: &Path, text: &mut String) {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    for path in all {
        let (metadata, name) =
            (fs::symlink_metadata(&path).unwrap(), path.file_name().unwrap().to_str().unwrap().to_owned());
        let mode = metadata.permissions().mode();
        let special = if mode & 0o4000 != 0 { 'u' } else { '-' };
        let tail = format!("{special}-{:03o} {} {}", mode & 0o777, metadata.uid(), metadata.gid());
        if metadata.is_dir() {
            text.push_str(&format!("{name} d{tail}\n"));
            prototype(&path, text);
            text.push_str("$\n");
        } else if metadata.is_symlink() {
            text.push_str(&format!("{name} l{tail} {}\n", fs::read_link(&path).unwrap().display()));
        } else {
            text.push_str(&format!("{name} -{tail} {}\n", path.display()));
        }
    }
}

#[test]
fn xfs_comes_out_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::plain(&bench.path("tree"));
    fs::set_permissions(tree.dir.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("dir/deep/file", tree.dir.join("link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(900), tree.dir.join("long-link")).unwrap();
    let mut text = String::from("/dev/null\n0 0\nd--755 0 0\n");
    prototype(&tree.dir, &mut text);
    text.push_str("$\n");
    fs::write(bench.path("proto"), text).unwrap();
    let proto = bench.path("proto");
    for (name, options) in [
        ("five", &["-m", "crc=1"][..]),
        ("small-blocks", &["-b", "size=1024", "-n", "size=4096"]),
        ("four", &["-m", "crc=0"]),
    ] {
        empty(&bench.path(name), 400);
        let image = bench.path(name);
        tool(
            "mkfs.xfs",
            &[&["-q", "-L", "Test", "-p", proto.to_str().unwrap()], options, &[image.to_str().unwrap()]].concat(),
        );
        compare(&bench, name, "image", "xfs", &tree.dir, Keeps { mode: true, ..PLAIN });
    }
}

#[test]
fn btrfs_comes_out_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    for (name, options) in
        [("plain", &[][..]), ("mixed", &["--mixed", "-n", "4096"]), ("dup", &["-n", "65536", "-d", "dup"])]
    {
        empty(&bench.path(name), 400);
        let (image, dir) = (bench.path(name), tree.dir.to_str().unwrap());
        tool("mkfs.btrfs", &[&["-q", "-L", "Test", "--rootdir", dir], options, &[image.to_str().unwrap()]].concat());
        // mkfs.btrfs makes a file of each name.
        compare(&bench, name, "image", "btrfs", &tree.dir, Keeps { links: false, ..UNIX });
    }
}

#[test]
fn fat_comes_out_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::plain(&bench.path("tree"));
    for (bits, mib, cluster) in [("12", 14, "8"), ("16", 60, "4"), ("32", 100, "1")] {
        let name = format!("fat{bits}");
        empty(&bench.path(&name), mib);
        let image = bench.path(&name);
        tool("mkfs.vfat", &["-F", bits, "-s", cluster, "-n", "Test", image.to_str().unwrap()]);
        let mut arguments = vec!["-s", "-m", "-Q", "-i", image.to_str().unwrap()];
        let all: Vec<PathBuf> = fs::read_dir(&tree.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        arguments.extend(all.iter().map(|path| path.to_str().unwrap()));
        arguments.push("::/");
        tool("mcopy", &arguments);
        let times = Keeps { times_ns: 2_000_000_000, ..PLAIN };
        compare(&bench, &name, "image", &name, &tree.dir, times);
    }
}

#[test]
fn ntfs_comes_out_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::plain(&bench.path("tree"));
    let image = bench.path("disk");
    empty(&image, 100);
    tool("mkntfs", &["-F", "-Q", "-q", "-L", "Test", image.to_str().unwrap()]);
    // Its own driver fills it: that needs /dev/fuse, and root.
    let mount = bench.path("mount");
    fs::create_dir(&mount).unwrap();
    tool("ntfs-3g", &[image.to_str().unwrap(), mount.to_str().unwrap()]);
    let copied = std::process::Command::new("cp").args(["-a", "-T"]).args([&tree.dir, &mount]).output();
    tool("umount", &[mount.to_str().unwrap()]);
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    compare(&bench, "disk", "image", "ntfs", &tree.dir, Keeps { times_ns: 1000, ..PLAIN });
}

#[test]
fn logical_volumes_are_put_together_of_their_pieces() {
    const EXTENT: u64 = 4 << 20;
    const BEGIN: u64 = 1 << 20;
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let content = bench.path("content");
    tool("mkfs.ext4", &["-q", "-F", "-L", "Test", "-d", tree.dir.to_str().unwrap(), content.to_str().unwrap(), "140M"]);
    let content = fs::read(&content).unwrap();
    // Two physical volumes in two partitions. What lvm2 2.03 wrote into their first MiB is kept here: `root` is 20 extents of
    // the first from the tenth on, 10 of the second, and 5 of the first.
    empty(&bench.path("disk"), 340);
    let disk = fs::File::options().read(true).write(true).open(bench.path("disk")).unwrap();
    tool_with_input(
        "sfdisk",
        &["-q", bench.path("disk").to_str().unwrap()],
        "label: gpt\nstart=2048, size=200M\nsize=120M\n",
    );
    let starts = [1 << 20, 201 << 20];
    for (golden, at) in
        [&include_bytes!("golden/lvm2-pv1.gz")[..], include_bytes!("golden/lvm2-pv2.gz")].into_iter().zip(starts)
    {
        let mut head = Vec::new();
        flate2::read::GzDecoder::new(golden).read_to_end(&mut head).unwrap();
        disk.write_all_at(&head, at).unwrap();
    }
    let pieces = [(0, 10, 20), (1, 0, 10), (0, 35, 5)];
    let mut done = 0;
    for (volume, first, count) in pieces {
        let len = (count * EXTENT) as usize;
        let at = starts[volume] + BEGIN + first * EXTENT;
        disk.write_all_at(&content[done..done + len], at).unwrap();
        done += len;
    }
    assert_eq!(done, content.len());
    compare(&bench, "disk", "vg-test/root", "ext4", &tree.dir, UNIX);
    let said = bench.run(&["files", "disk", "ls"]).with(0).out;
    assert!(said.contains("not in one piece"), "{said}");
    bench.run(&["files", "disk", "ls", "vg-test/striped:/"]).with(1);
}
