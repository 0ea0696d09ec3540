//! `keyframe files`: file systems made by their own tools, and every byte that was put in compared with what comes out.

mod bench;
mod trees;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use bench::{Bench, Ended};
use trees::{Tree, assert_same, tool};

fn put(bench: &Bench, name: &str) {
    bench.run(&["image", "put", name, name]).with(0);
}

fn files(bench: &Bench, arguments: &[&str]) -> Ended {
    bench.run(&[&["files"], arguments].concat())
}

/// Copies all of a file system out, and compares it with what was put in.
fn compare_all(bench: &Bench, point: &str, volume: &str, tree: &Tree) {
    let out = bench.path(&format!("out-{point}"));
    fs::create_dir(&out).unwrap();
    files(bench, &[point, "cp", "-r", &format!("{volume}/"), out.to_str().unwrap()]).with(0);
    assert_same(&tree.dir, &out, tree.what);
}

#[test]
fn ext4_comes_out_as_it_was_put_in() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    for (name, options) in [
        ("four", &["-t", "ext4", "-b", "4096"][..]),
        ("four-inline", &["-t", "ext4", "-O", "inline_data,64bit,metadata_csum", "-I", "512"]),
        ("four-bare", &["-t", "ext4", "-O", "^flex_bg,^64bit,meta_bg,^resize_inode", "-b", "1024", "-g", "1024"]),
        ("three", &["-t", "ext3", "-b", "1024"]),
        ("two", &["-t", "ext2", "-I", "128", "-b", "2048"]),
    ] {
        let image = bench.path(name);
        let dir = tree.dir.to_str().unwrap();
        tool("mkfs.ext4", &[&["-q", "-F", "-d", dir], options, &[image.to_str().unwrap(), "200M"]].concat());
        // mke2fs forgets a hole at a file's end where it puts data into inodes.
        tool("debugfs", &["-w", "-R", &format!("sif /sparse size {}", 40 << 20), image.to_str().unwrap()]);
        put(&bench, name);
        compare_all(&bench, name, "image:", &tree);
    }
}

#[test]
fn what_a_journal_has_committed_is_read() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let image = bench.path("disk");
    tool("mkfs.ext4", &["-q", "-F", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "200M"]);
    put(&bench, "disk");
    let before = files(&bench, &["disk", "cat", "/small"]).with(0).out;
    // A transaction in the journal alone: it changes the block that the file is in, as a machine that lost its power leaves it.
    let block = tool("debugfs", &["-R", "bmap /small 0", image.to_str().unwrap()]).trim().to_owned();
    let newer = format!("{:4096}", "from the journal");
    fs::write(bench.path("newer"), &newer).unwrap();
    fs::write(bench.path("commands"), format!("jo\njw -b {block} {}\njc\n", bench.path("newer").display())).unwrap();
    tool("debugfs", &["-w", "-f", bench.path("commands").to_str().unwrap(), image.to_str().unwrap()]);
    put(&bench, "disk");
    let after = files(&bench, &["disk", "cat", "/small"]).with(0).out;
    assert_ne!(before, after);
    assert!(newer.starts_with(&after), "{after:?}");
    assert!(files(&bench, &["disk", "ls"]).with(0).out.contains("1 committed transaction"));
}

#[test]
fn partitions_are_found_by_both_tables() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let part = bench.path("part");
    tool("mkfs.ext4", &["-q", "-F", "-L", "root", "-d", tree.dir.to_str().unwrap(), part.to_str().unwrap(), "100M"]);
    let content = fs::read(&part).unwrap();
    for (name, script, at, number) in [
        ("gpt", "label: gpt\nsize=8M, name=\"first\"\nstart=20480, size=204800, name=\"the system\"\n", 20480, 2),
        ("mbr", "label: dos\nsize=8M, type=83\nstart=20480, type=5\nstart=22528, size=204800, type=83\n", 22528, 5),
    ] {
        let disk = fs::File::options().read(true).write(true).create_new(true).open(bench.path(name)).unwrap();
        disk.set_len(160 << 20).unwrap();
        trees::tool_with_input("sfdisk", &["-q", bench.path(name).to_str().unwrap()], script);
        disk.write_all_at(&content, at * 512).unwrap();
        put(&bench, name);
        let said = files(&bench, &["--json", name, "ls"]).with(0).json();
        let volume = &said["volumes"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(volume["volume"], format!("image:{number}"), "{said}");
        assert_eq!((&volume["content"], &volume["label"]), (&"ext4".into(), &"root".into()));
        compare_all(&bench, name, &format!("image:{number}:"), &tree);
        // The only one need not be named.
        files(&bench, &[name, "cat", "/small"]).with(0);
    }
    // A damaged first table: the copy at the end is as good.
    let disk = fs::File::options().write(true).open(bench.path("gpt")).unwrap();
    disk.write_all_at(&[0; 512], 512).unwrap();
    put(&bench, "gpt");
    assert!(files(&bench, &["gpt", "ls"]).with(0).out.contains("the copy at its end is used"));
    files(&bench, &["gpt", "cat", "image:2:/small"]).with(0);
}

#[test]
fn listing_and_showing_say_what_is_there() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let image = bench.path("disk");
    tool("mkfs.ext4", &["-q", "-F", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "100M"]);
    put(&bench, "disk");
    let said = files(&bench, &["--json", "disk", "ls", "/"]).with(0).json();
    let small = said["entries"].as_array().unwrap().iter().find(|entry| entry["name"] == "small").unwrap();
    let real = fs::metadata(tree.dir.join("small")).unwrap();
    assert_eq!(small["bytes"], real.len());
    assert_eq!(small["mode"], format!("{:04o}", real.mode() & 0o7777));
    assert_eq!((small["uid"].as_u64(), small["gid"].as_u64()), (Some(real.uid().into()), Some(real.gid().into())));
    assert_eq!(small["modified"]["seconds"], real.mtime());
    let long = files(&bench, &["disk", "ls", "--long", "/"]).with(0).out;
    assert!(
        long.lines().any(|line| line.starts_with("lrwxrwxrwx") && line.ends_with("link -> dir/deep/file")),
        "{long}"
    );
    // Links are followed within the image, whatever lies here.
    let shown = bench.command(&["files", "disk", "cat", "/link", "/small"]).output().unwrap().stdout;
    let truth = [fs::read(tree.dir.join("dir/deep/file")).unwrap(), fs::read(tree.dir.join("small")).unwrap()].concat();
    assert!(shown == truth);
    files(&bench, &["disk", "cat", "/loop"]).with(1);
    assert!(files(&bench, &["disk", "cat", "/nothing"]).with(10).err.contains("keyframe files"));
    files(&bench, &["disk", "cat", "/dir"]).with(1);
    files(&bench, &["disk", "ls", "dir"]).with(2);
    files(&bench, &["disk", "ls", "elsewhere:/"]).with(2);
    files(&bench, &["nobody", "ls"]).with(10);
}

#[test]
fn copying_replaces_nothing_and_stays_where_it_is_told() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let image = bench.path("disk");
    tool("mkfs.ext4", &["-q", "-F", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "100M"]);
    put(&bench, "disk");
    // One file under a new name; then it is there.
    files(&bench, &["disk", "cp", "/small", "copy"]).with(0);
    let truth = fs::read(tree.dir.join("small")).unwrap();
    assert!(fs::read(bench.path("copy")).unwrap() == truth);
    fs::write(bench.path("copy"), "precious").unwrap();
    assert!(files(&bench, &["disk", "cp", "/small", "copy"]).with(1).err.contains("--force"));
    assert_eq!(fs::read_to_string(bench.path("copy")).unwrap(), "precious");
    files(&bench, &["disk", "cp", "--force", "/small", "copy"]).with(0);
    assert!(fs::read(bench.path("copy")).unwrap() == truth);
    // A directory needs -r.
    files(&bench, &["disk", "cp", "/dir", "."]).with(1);
    // The guest has a directory where a link here leads out: nothing goes through it.
    let (dest, outside) = (bench.path("dest"), bench.path("outside"));
    fs::create_dir(&dest).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, dest.join("dir")).unwrap();
    let said = files(&bench, &["disk", "cp", "-r", "/", "dest"]).with(3);
    assert!(said.err.contains("not copied: dir"), "{}", said.err);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(fs::read(dest.join("small")).unwrap() == truth, "the rest came");
    assert!(
        !fs::read_dir(&dest).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().contains("partial"))
    );
}

#[test]
fn names_that_lead_out_are_refused() {
    let bench = Bench::new();
    let tree = bench.path("evil");
    fs::create_dir_all(tree.join("sub")).unwrap();
    for name in ["AAAAAAAAAAAAAAAAAA", "BB", "fine"] {
        fs::write(tree.join("sub").join(name), name).unwrap();
    }
    let image = bench.path("disk");
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-O", "^metadata_csum", "-d", tree.to_str().unwrap(), image.to_str().unwrap(), "20M"],
    );
    // A guest can write any name into its own directories.
    let mut bytes = fs::read(&image).unwrap();
    for (from, to) in [("AAAAAAAAAAAAAAAAAA", "../../outside/evil"), ("BB", "..")] {
        let places: Vec<usize> = bytes
            .windows(from.len() + 2)
            .enumerate()
            .filter(|(_, window)| window[0] == from.len() as u8 && &window[2..] == from.as_bytes())
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at + 2..at + 2 + from.len()].copy_from_slice(to.as_bytes()));
    }
    fs::write(&image, bytes).unwrap();
    put(&bench, "disk");
    fs::create_dir(bench.path("dest")).unwrap();
    let said = files(&bench, &["disk", "cp", "-r", "/", "dest"]).with(3);
    assert!(said.err.contains("is no name that a file can have here"), "{}", said.err);
    assert_eq!(fs::read_to_string(bench.path("dest/sub/fine")).unwrap(), "fine");
    assert!(!bench.path("outside").exists() && !bench.path("evil/evil").exists());
    assert_eq!(fs::read_dir(bench.path("dest/sub")).unwrap().count(), 1);
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_directory_of_a_terabyte_is_listed_at_once() {
    let bench = Bench::new();
    let tree = Tree::unix(&bench.path("tree"));
    let image = bench.path("disk");
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-E", "lazy_itable_init=1", "-d", tree.dir.to_str().unwrap(), image.to_str().unwrap(), "1T"],
    );
    put(&bench, "disk");
    let mut best = std::time::Duration::MAX;
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let said = files(&bench, &["disk", "ls", "--long", "/many"]).with(0).out;
        best = best.min(begun.elapsed());
        assert_eq!(said.lines().count(), trees::MANY);
    }
    println!("ls of {} files: {best:?}", trees::MANY);
    // The bound of the bench is 300 ms; this build is not optimized as a release is.
    assert!(best < std::time::Duration::from_secs(3), "{best:?}");
    assert_eq!(mode(&tree.dir.join("suid")), 0o4755);
}
