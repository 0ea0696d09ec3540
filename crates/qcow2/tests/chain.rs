//! Chains of files, sound and broken ones.

mod common;

use common::{Dir, size};
use keyframe_qcow2::chain::{Content, DEPTH_MAX};
use keyframe_qcow2::{Backing, CreateOptions, Error, Format, chain, create_overlay};

fn overlay(dir: &Dir, name: &str, backing: &str, format: Format) {
    let backing = Backing::new(backing, format).unwrap();
    create_overlay(&dir.file(name), &backing, size(1 << 20), &CreateOptions::default()).unwrap();
}

/// Makes the format's extension one that nobody knows, as in headers of old.
fn forget_format(dir: &Dir, name: &str) {
    let mut image = std::fs::read(dir.file(name)).unwrap();
    assert_eq!(image[112..116], [0xe2, 0x79, 0x2a, 0xca]);
    image[112..116].copy_from_slice(&[1, 2, 3, 4]);
    std::fs::write(dir.file(name), image).unwrap();
}

fn broken(dir: &Dir, name: &str) -> Error {
    chain(&dir.file(name), Format::Qcow2).unwrap_err()
}

#[test]
fn a_chain_is_followed_down_to_its_raw_base() {
    let dir = Dir::new();
    std::fs::create_dir(dir.file("sub")).unwrap();
    std::fs::write(dir.file("base.raw"), vec![0; 1000]).unwrap();
    overlay(&dir, "sub/a", "../base.raw", Format::Raw);
    overlay(&dir, "b", "sub/a", Format::Qcow2);
    overlay(&dir, "c", dir.file("b").to_str().unwrap(), Format::Qcow2);
    let layers = chain(&dir.file("c"), Format::Qcow2).unwrap();
    let formats: Vec<_> = layers.iter().map(|l| (l.format(), l.virtual_size.bytes())).collect();
    let qcow2 = (Format::Qcow2, 1 << 20);
    assert_eq!(formats, [qcow2, qcow2, qcow2, (Format::Raw, 1024)]);
    assert_eq!(layers[3].path, dir.file("sub/../base.raw"));
    assert!(matches!(&layers[0].content, Content::Qcow2(h) if h.backing_format() == Some("qcow2")));
}

#[test]
fn a_format_that_the_header_does_not_tell_is_probed() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "base", "1M"]);
    overlay(&dir, "o", "base", Format::Raw);
    forget_format(&dir, "o");
    let layers = chain(&dir.file("o"), Format::Qcow2).unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1].format(), Format::Qcow2);
}

#[test]
fn cycles_are_found_whatever_the_spelling() {
    let dir = Dir::new();
    overlay(&dir, "self", "./self", Format::Qcow2);
    assert!(matches!(broken(&dir, "self").bare(), Error::ChainCycle { .. }));
    overlay(&dir, "x", "y", Format::Qcow2);
    std::os::unix::fs::symlink(dir.file("x"), dir.file("link")).unwrap();
    overlay(&dir, "y", "link", Format::Qcow2);
    assert!(matches!(broken(&dir, "x").bare(), Error::ChainCycle { .. }));
}

#[test]
fn a_missing_file_is_named() {
    let dir = Dir::new();
    overlay(&dir, "o", "gone", Format::Raw);
    let error = broken(&dir, "o");
    assert!(error.to_string().contains("gone"), "{error}");
    assert!(matches!(error.bare(), Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
}

#[test]
fn protocols_and_foreign_formats_are_refused() {
    let dir = Dir::new();
    for (name, backing) in [("j", "json:{\"driver\":\"null-co\"}"), ("n", "nbd://localhost/x")] {
        dir.img(&["create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", name, "1M"]);
        assert!(matches!(broken(&dir, name).bare(), Error::BackingName { .. }), "{backing}");
    }
    dir.img(&["create", "-q", "-f", "vmdk", "base.vmdk", "1M"]);
    dir.img(&["create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", "v", "1M"]);
    assert!(matches!(broken(&dir, "v").bare(), Error::BackingFormat { .. }));
    overlay(&dir, "u", "base.vmdk", Format::Raw);
    forget_format(&dir, "u");
    assert!(matches!(broken(&dir, "u").bare(), Error::ForeignFormat { .. }));
}

#[test]
fn a_pipe_or_directory_is_not_opened_as_a_disk() {
    let dir = Dir::new();
    dir.run("mkfifo", &["pipe"]);
    for base in ["pipe", "."] {
        let name = format!("o{}", base.len());
        overlay(&dir, &name, base, Format::Raw);
        assert!(matches!(broken(&dir, &name).bare(), Error::NotAFile), "{base}");
    }
}

#[test]
fn a_chain_has_a_limit() {
    let dir = Dir::new();
    let name = |n: usize| format!("l{n:04}");
    std::fs::write(dir.file(&name(0)), []).unwrap();
    overlay(&dir, &name(1), &name(0), Format::Raw);
    overlay(&dir, &name(2), &name(1), Format::Qcow2);
    // The rest are copies that name another file: a thousand syncs would take their time.
    let template = std::fs::read(dir.file(&name(2))).unwrap();
    let at = template.windows(5).position(|w| w == name(1).as_bytes()).unwrap();
    for n in 3..=DEPTH_MAX {
        let mut image = template.clone();
        image[at..at + 5].copy_from_slice(name(n - 1).as_bytes());
        std::fs::write(dir.file(&name(n)), image).unwrap();
    }
    let longest = chain(&dir.file(&name(DEPTH_MAX - 1)), Format::Qcow2).unwrap();
    assert_eq!(longest.len(), DEPTH_MAX);
    assert!(matches!(broken(&dir, &name(DEPTH_MAX)).bare(), Error::ChainTooLong { .. }));
}
