//! `keyframe image`: sources and targets of both formats.

mod bench;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use bench::{Bench, ended, files, page};

fn qemu_img(bench: &Bench, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).current_dir(bench.dir.path()).output();
    ended(output.expect("qemu-img, which `cargo xtask setup` installs")).with(0).out
}

fn qemu_io(bench: &Bench, file: &str, command: &str) {
    let output = Command::new("qemu-io").args(["-c", command, file]).current_dir(bench.dir.path()).output();
    ended(output.expect("qemu-io, which comes with qemu-img")).with(0);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_image_comes_back_in_either_format() {
    let bench = Bench::new();
    let file = fs::File::create(bench.path("disk")).unwrap();
    file.set_len(300 << 20).unwrap();
    for (n, at) in [0, 65536 - 4096, 7 << 20, 200 << 20, (300 << 20) - 4096].into_iter().enumerate() {
        file.write_all_at(&page(n as u8 + 1), at).unwrap();
    }
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    bench.run(&["image", "get", "disk", "out.raw"]).with(0);
    let said = bench.run(&["--json", "image", "get", "disk", "out.qcow2"]).with(0).json();
    assert_eq!(said["format"], "qcow2");
    bench.run(&["image", "get", "disk", "named.img", "--format", "qcow2"]).with(0);
    bench.run(&["image", "get", "disk", "plain.qcow2", "--format", "raw"]).with(0);
    assert!(fs::read(bench.path("out.raw")).unwrap() == fs::read(bench.path("disk")).unwrap());
    for (name, format) in [("out.qcow2", "qcow2"), ("named.img", "qcow2"), ("plain.qcow2", "raw"), ("out.raw", "raw")] {
        qemu_img(&bench, &["compare", "-f", "raw", "-F", format, "disk", name]);
        let room = fs::metadata(bench.path(name)).unwrap().blocks() * 512;
        assert!(room < 2 << 20, "{name} is sparse: {room}");
    }
    assert!(qemu_img(&bench, &["check", "out.qcow2"]).contains("No errors"));
    assert!(!names(bench.dir.path()).iter().any(|name| name.contains("partial")));
    // What came back can be stored again, and has nothing new.
    bench.run(&["image", "put", "again", "out.qcow2"]).with(0);
    let list = bench.run(&["--json", "image", "list", "again"]).with(0).json();
    assert_eq!(list["images"][0]["totals"]["new_bytes"], 0);
}

#[test]
fn a_file_that_is_there_is_not_replaced_unless_told() {
    let bench = Bench::new();
    let truth = bench.image("disk", &[1, 2, 3]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    fs::write(bench.path("out"), "precious").unwrap();
    assert!(bench.run(&["image", "get", "disk", "out"]).with(2).err.contains("--force"));
    assert_eq!(fs::read_to_string(bench.path("out")).unwrap(), "precious");
    // What fails leaves it as it was, even with force.
    let pack = files(&bench.path("repo/packs")).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = fs::read(&pack).unwrap();
    fs::write(&pack, [&whole[..200], &vec![0; whole.len() - 200]].concat()).unwrap();
    bench.run(&["image", "get", "disk", "out", "--force"]).with(1);
    assert_eq!(fs::read_to_string(bench.path("out")).unwrap(), "precious");
    fs::write(&pack, &whole).unwrap();
    // A link stays one; a directory, or a device, is nothing to be replaced.
    std::os::unix::fs::symlink("out", bench.path("link")).unwrap();
    bench.run(&["image", "get", "disk", "link", "--force"]).with(0);
    assert!(fs::symlink_metadata(bench.path("link")).unwrap().is_symlink());
    assert!(fs::read(bench.path("out")).unwrap() == truth);
    fs::create_dir(bench.path("dir")).unwrap();
    for place in ["dir", "/dev/null"] {
        bench.run(&["image", "get", "disk", place, "--force"]).with(2);
    }
    assert!(!names(bench.dir.path()).iter().any(|name| name.contains("partial")));
    assert_eq!(fs::metadata(bench.path("out")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_chain_of_layers_is_stored_as_what_a_guest_sees() {
    let bench = Bench::new();
    qemu_img(&bench, &["create", "-f", "raw", "base.raw", "8M"]);
    let file = fs::OpenOptions::new().write(true).open(bench.path("base.raw")).unwrap();
    (0..40).for_each(|n| file.write_all_at(&page(n as u8 + 1), n * 65536 * 3).unwrap());
    // Compressed clusters over a raw file, a layer with zeros and subclusters over that, and a longer one on top.
    qemu_img(&bench, &["convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "base.raw", "compressed.qcow2"]);
    qemu_img(
        &bench,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "compressed.qcow2",
            "-F",
            "qcow2",
            "-o",
            "cluster_size=128k,extended_l2=on",
            "middle.qcow2",
        ],
    );
    qemu_io(&bench, "middle.qcow2", "write -P 7 1M 12k");
    qemu_io(&bench, "middle.qcow2", "write -z 0 196608");
    qemu_img(&bench, &["create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", "12M"]);
    qemu_io(&bench, "top.qcow2", "write -P 9 10M 64k");
    qemu_io(&bench, "top.qcow2", "write -P 3 4196352 512");
    for (name, zlib) in [("top", "top.qcow2"), ("compressed", "compressed.qcow2")] {
        bench.run(&["image", "put", name, zlib]).with(0);
        bench.run(&["image", "get", name, &format!("{name}.out.qcow2")]).with(0);
        bench.run(&["image", "get", name, &format!("{name}.out.raw")]).with(0);
        qemu_img(&bench, &["compare", zlib, &format!("{name}.out.qcow2")]);
        qemu_img(&bench, &["compare", "-F", "raw", zlib, &format!("{name}.out.raw")]);
        qemu_img(&bench, &["check", &format!("{name}.out.qcow2")]);
    }
    // The next day's layer costs what is in it.
    qemu_img(&bench, &["create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "next.qcow2"]);
    qemu_io(&bench, "next.qcow2", "write -P 11 5M 8k");
    bench.run(&["image", "put", "top", "next.qcow2"]).with(0);
    let list = bench.run(&["--json", "image", "list", "top"]).with(0).json();
    assert_eq!(list["images"][1]["totals"]["new_bytes"], 4096, "two pages that are alike");
}

#[test]
fn changes_are_read_from_a_list() {
    let bench = Bench::new();
    bench.image("disk", &[1, 2, 3, 4]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    bench.image("disk", &[9, 2, 3, 8]);
    fs::write(bench.path("changes"), "0 4096\n").unwrap();
    bench.run(&["image", "put", "disk", "disk", "--changes", "changes"]).with(0);
    bench.run(&["image", "get", "disk", "out"]).with(0);
    assert!(
        fs::read(bench.path("out")).unwrap() == [9, 2, 3, 4].map(page).concat(),
        "who gives the list vouches for it"
    );
    fs::write(bench.path("changes"), "0 x\n").unwrap();
    bench.run(&["image", "put", "disk", "disk", "--changes", "changes"]).with(2);
}

#[test]
fn absent_points_and_bad_names_are_told() {
    let bench = Bench::new();
    bench.image("disk", &[1]);
    bench.run(&["image", "put", "no/name", "disk"]).with(2);
    bench.run(&["image", "get", "nothing", "out"]).with(10);
    assert!(bench.run(&["image", "list"]).with(0).out.contains("nothing is stored"));
    assert!(!bench.path("out").exists());
}

#[test]
fn a_bandwidth_is_kept_to() {
    let bench = Bench::new();
    let random = fs::File::open("/dev/urandom").unwrap();
    let mut file = fs::File::create(bench.path("noise")).unwrap();
    std::io::copy(&mut std::io::Read::take(random, 4 << 20), &mut file).unwrap();
    let begun = std::time::Instant::now();
    bench.run(&["image", "put", "noise", "noise", "--bandwidth", "2M"]).with(0);
    assert!(begun.elapsed().as_secs_f64() > 1.9, "4 MiB at 2 MiB a second went out in {:?}", begun.elapsed());
    bench.run(&["image", "get", "noise", "again", "--bandwidth", "fast"]).with(2);
    bench.run(&["image", "get", "noise", "again"]).with(0);
    assert!(fs::read(bench.path("again")).unwrap() == fs::read(bench.path("noise")).unwrap());
}
