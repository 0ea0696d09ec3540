//! New images against `qemu-img`.

mod common;

use std::path::Path;

use common::{Dir, size};
use keyframe_qcow2::backing::NAME_MAX;
use keyframe_qcow2::{Backing, ClusterSize, CreateOptions, Error, Format, Image, Subclusters, create, create_overlay};

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// `qemu-io`, one command after another.
fn qemu_io(dir: &Dir, image: &str, commands: &[&str]) {
    let mut args = vec!["-f", "qcow2"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(image);
    let out = dir.run("qemu-io", &args);
    assert!(!out.contains("Pattern verification failed"), "{out}");
}

const GIB: u64 = 1 << 30;

fn options(cluster: u64, subclusters: Subclusters) -> CreateOptions {
    CreateOptions { cluster: ClusterSize::from_bytes(cluster).unwrap(), subclusters, ..CreateOptions::default() }
}

#[test]
fn the_file_is_that_of_qemu_img_byte_for_byte() {
    let dir = Dir::new();
    for (n, bytes_) in [512, 65536, GIB, 10 * GIB, 3 << 40].into_iter().enumerate() {
        let (ours, theirs) = (format!("ours{n}"), format!("theirs{n}"));
        create(&dir.file(&ours), size(bytes_), &CreateOptions::default()).unwrap();
        dir.img(&["create", "-q", "-f", "qcow2", &theirs, &bytes_.to_string()]);
        assert!(bytes(&dir.file(&ours)) == bytes(&dir.file(&theirs)), "{bytes_} bytes");
    }
}

#[test]
fn an_empty_disk_is_an_image_too() {
    let dir = Dir::new();
    create(&dir.file("empty"), size(0), &CreateOptions::default()).unwrap();
    dir.img(&["check", "-q", "-f", "qcow2", "empty"]);
    assert!(Image::open(&dir.file("empty")).unwrap().header().virtual_size().is_empty());
}

#[test]
fn an_overlay_is_that_of_qemu_img_byte_for_byte() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "base.qcow2", "10G"]);
    dir.img(&["create", "-q", "-f", "raw", "base.raw", "10G"]);
    for (base, format) in [("base.qcow2", Format::Qcow2), ("base.raw", Format::Raw)] {
        for (kind, subclusters) in [("off", Subclusters::Off), ("on", Subclusters::On)] {
            let (ours, theirs) = (format!("o-{kind}-{format}"), format!("t-{kind}-{format}"));
            let backing = Backing::new(base, format).unwrap();
            create_overlay(&dir.file(&ours), &backing, size(10 * GIB), &options(65536, subclusters)).unwrap();
            let extended = format!("extended_l2={kind}");
            dir.img(&["create", "-q", "-f", "qcow2", "-o", &extended, "-b", base, "-F", format.as_str(), &theirs]);
            assert!(bytes(&dir.file(&ours)) == bytes(&dir.file(&theirs)), "{kind} {format}");
        }
    }
}

#[test]
fn every_cluster_size_is_an_image_without_errors() {
    let dir = Dir::new();
    for bits in 9..=21 {
        let name = format!("c{bits}");
        let chosen = options(1 << bits, Subclusters::Off);
        let disk = size(if bits == 9 { GIB } else { 64 * GIB });
        create(&dir.file(&name), disk, &chosen).unwrap();
        dir.img(&["check", "-q", "-f", "qcow2", &name]);
        let info = dir.img(&["info", "--output=json", &name]);
        assert!(info.contains(&format!("\"cluster-size\": {}", 1 << bits)), "{info}");
        assert_eq!(Image::open(&dir.file(&name)).unwrap().header().virtual_size(), disk);
        qemu_io(&dir, &name, &["write -P 1 0 64k", &format!("write -P 2 {} 64k", disk.bytes() - 65536)]);
        dir.img(&["check", "-q", "-f", "qcow2", &name]);
    }
}

#[test]
fn an_overlay_reads_like_its_backing_file_and_takes_writes() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "base.qcow2", "64M"]);
    qemu_io(&dir, "base.qcow2", &["write -P 7 1M 3M"]);
    let backing = Backing::new("base.qcow2", Format::Qcow2).unwrap();
    create_overlay(&dir.file("o"), &backing, size(64 << 20), &CreateOptions::default()).unwrap();
    dir.img(&["compare", "-q", "-f", "qcow2", "-F", "qcow2", "base.qcow2", "o"]);
    let info = dir.img(&["info", "o"]);
    assert!(info.contains("backing file: base.qcow2") && info.contains("backing file format: qcow2"), "{info}");
    qemu_io(&dir, "o", &["write -P 9 2M 64k", "read -P 9 2M 64k", "read -P 7 1M 1M"]);
    dir.img(&["check", "-q", "-f", "qcow2", "o"]);
}

#[test]
fn names_of_any_length_fit_and_come_back() {
    let dir = Dir::new();
    for len in [1, 7, 8, 9, 500, NAME_MAX] {
        let name = "n".repeat(len);
        let path = dir.file(&format!("o{len}"));
        let backing = Backing::new(&name, Format::Raw).unwrap();
        create_overlay(&path, &backing, size(GIB), &CreateOptions::default()).unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!(image.header().backing().unwrap(), backing.name());
        assert_eq!(image.header().backing_format(), Some("raw"));
    }
}

#[test]
fn a_header_that_does_not_fit_into_a_cluster_is_refused() {
    let dir = Dir::new();
    let small = options(512, Subclusters::Off);
    let fits = Backing::new("n".repeat(512 - 112 - 16 - 8), Format::Raw).unwrap();
    create_overlay(&dir.file("fits"), &fits, size(1 << 20), &small).unwrap();
    assert_eq!(Image::open(&dir.file("fits")).unwrap().header().backing(), Some(fits.name()));
    let long = Backing::new("n".repeat(512 - 112 - 16 - 8 + 1), Format::Raw).unwrap();
    let error = create_overlay(&dir.file("long"), &long, size(1 << 20), &small).unwrap_err();
    assert!(matches!(error, Error::HeaderFull { need_bytes: 513, cluster_bytes: 512 }), "{error}");
    assert!(!dir.file("long").exists());
}

#[test]
fn sizes_and_options_beyond_the_format_are_refused() {
    let dir = Dir::new();
    let path = dir.file("x");
    assert!(matches!(create(&path, size(256 * GIB), &options(512, Subclusters::Off)), Err(Error::VirtualSize { .. })));
    assert!(matches!(create(&path, size(GIB), &options(8192, Subclusters::On)), Err(Error::ClusterSize { .. })));
    assert!(!path.exists());
}

#[test]
fn a_file_that_exists_is_left_alone() {
    let dir = Dir::new();
    std::fs::write(dir.file("x"), b"precious").unwrap();
    let error = create(&dir.file("x"), size(GIB), &CreateOptions::default()).unwrap_err();
    let Error::Io { source, .. } = error.bare() else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(bytes(&dir.file("x")), b"precious");
}
