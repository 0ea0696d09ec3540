//! Changing the backing file, checked with qemu-img.

mod common;

use std::process::{Command, Stdio};

use common::{Dir, size};
use keyframe_qcow2::{
    Backing, ClusterSize, CreateOptions, Error, Format, Image, chain, create, create_overlay, set_backing,
};

fn overlay(dir: &Dir, cluster: u64) {
    let options = CreateOptions { cluster: ClusterSize::from_bytes(cluster).unwrap(), ..CreateOptions::default() };
    dir.img(&["create", "-q", "-f", "qcow2", "base.qcow2", "8M"]);
    let backing = Backing::new("base.qcow2", Format::Qcow2).unwrap();
    create_overlay(&dir.file("o"), &backing, size(8 << 20), &options).unwrap();
}

#[test]
fn qemu_follows_the_new_name() {
    let dir = Dir::new();
    overlay(&dir, 65536);
    dir.run("qemu-io", &["-c", "write -P 1 0 1M", "base.qcow2"]);
    dir.run("qemu-io", &["-c", "write -P 2 1M 1M", "o"]);
    dir.img(&["convert", "-O", "raw", "base.qcow2", "other.raw"]);
    dir.img(&["convert", "-O", "raw", "o", "before"]);
    set_backing(&dir.file("o"), Some(&Backing::new("other.raw", Format::Raw).unwrap())).unwrap();
    let info = dir.img(&["info", "o"]);
    assert!(info.contains("backing file: other.raw") && info.contains("backing file format: raw"), "{info}");
    dir.img(&["check", "-q", "-f", "qcow2", "o"]);
    dir.img(&["compare", "-q", "-f", "qcow2", "-F", "raw", "o", "before"]);
    assert_eq!(chain(&dir.file("o"), Format::Qcow2).unwrap()[1].path, dir.file("other.raw"));
    // QEMU writes headers anew; ours must survive that.
    dir.img(&["rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "o"]);
    set_backing(&dir.file("o"), Some(&Backing::new("other.raw", Format::Raw).unwrap())).unwrap();
    dir.img(&["compare", "-q", "-f", "qcow2", "-F", "raw", "o", "before"]);
}

#[test]
fn a_backing_file_can_be_taken_away_and_given_back() {
    let dir = Dir::new();
    overlay(&dir, 65536);
    set_backing(&dir.file("o"), None).unwrap();
    assert!(Image::open(&dir.file("o")).unwrap().header().backing().is_none());
    assert!(!dir.img(&["info", "o"]).contains("backing file:"));
    set_backing(&dir.file("o"), Some(&Backing::new("base.qcow2", Format::Qcow2).unwrap())).unwrap();
    assert!(dir.img(&["info", "o"]).contains("backing file: base.qcow2"));
    dir.img(&["check", "-q", "-f", "qcow2", "o"]);
}

#[test]
fn headers_without_room_or_format_are_left_as_they_are() {
    let dir = Dir::new();
    overlay(&dir, 512);
    let before = std::fs::read(dir.file("o")).unwrap();
    let backing = Backing::new("other", Format::Raw).unwrap();
    let error = set_backing(&dir.file("o"), Some(&backing)).unwrap_err();
    assert!(matches!(error.bare(), Error::HeaderFull { .. }), "{error}");
    assert!(std::fs::read(dir.file("o")).unwrap() == before);
    create(&dir.file("alone"), size(1 << 20), &CreateOptions::default()).unwrap();
    let error = set_backing(&dir.file("alone"), Some(&backing)).unwrap_err();
    assert!(matches!(error.bare(), Error::NotInPlace { .. }), "{error}");
}

#[test]
fn unknown_autoclear_bits_are_cleared() {
    let dir = Dir::new();
    overlay(&dir, 65536);
    let mut image = std::fs::read(dir.file("o")).unwrap();
    image[88..96].copy_from_slice(&(1u64 << 40).to_be_bytes());
    std::fs::write(dir.file("o"), image).unwrap();
    set_backing(&dir.file("o"), Some(&Backing::new("base.qcow2", Format::Qcow2).unwrap())).unwrap();
    assert_eq!(Image::open(&dir.file("o")).unwrap().header().autoclear_features(), 0);
}

#[test]
fn an_image_in_use_is_refused() {
    let dir = Dir::new();
    overlay(&dir, 65536);
    let mut user = Command::new("qemu-io")
        .arg(dir.file("o"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io must be installed for this test");
    // Its prompt says that the image is open.
    let mut prompt = [0; 8];
    std::io::Read::read_exact(user.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let backing = Backing::new("other", Format::Raw).unwrap();
    let error = set_backing(&dir.file("o"), Some(&backing)).unwrap_err();
    assert!(matches!(error.bare(), Error::InUse), "{error}");
    drop(user.stdin.take());
    user.wait().unwrap();
    set_backing(&dir.file("o"), Some(&backing)).unwrap();
}
