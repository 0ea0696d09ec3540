//! Allocation and reading, against `qemu-img map` and `qemu-img convert`, on images that qemu-io wrote.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Dir, size};
use keyframe_qcow2::chain::DEPTH_MAX;
use keyframe_qcow2::{
    Backing, ChainReader, CreateOptions, Error, Extent, ExtentKind, Format, GuestOffset, Image, LayerReader, chain,
    create_overlay,
};
use proptest::prelude::*;
use serde_json::Value;

/// A kind of image to try.
#[derive(Debug, Clone, Copy)]
struct Variant {
    options: &'static str,
    cluster: u64,
    /// Smallest unit that is allocated on its own.
    unit: u64,
}

const VARIANTS: [Variant; 6] = [
    Variant { options: "compat=0.10,cluster_size=4096", cluster: 4096, unit: 4096 },
    Variant { options: "cluster_size=512", cluster: 512, unit: 512 },
    Variant { options: "cluster_size=65536", cluster: 65536, unit: 65536 },
    Variant { options: "cluster_size=65536,compression_type=zstd", cluster: 65536, unit: 65536 },
    Variant { options: "cluster_size=65536,extended_l2=on", cluster: 65536, unit: 2048 },
    Variant { options: "cluster_size=16384,extended_l2=on,compression_type=zstd", cluster: 16384, unit: 512 },
];

#[derive(Debug, Clone, Copy)]
enum Step {
    Write { at: u64, len: u64 },
    Zero { at: u64, len: u64 },
    Discard { at: u64, len: u64 },
    Compress { cluster: u64 },
}

/// The disk ends within a cluster.
const DISK: u64 = (1 << 20) - 1024;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..DISK / 512, 1u64..200).prop_map(|(sector, sectors)| {
        let at = sector * 512;
        (at, (sectors * 512).min(DISK - at))
    });
    let step = prop_oneof![
        4 => range.clone().prop_map(|(at, len)| Step::Write { at, len }),
        2 => range.clone().prop_map(|(at, len)| Step::Zero { at, len }),
        1 => range.prop_map(|(at, len)| Step::Discard { at, len }),
        2 => (0..DISK / 65536).prop_map(|cluster| Step::Compress { cluster }),
    ];
    proptest::collection::vec(step, 1..12)
}

/// Runs the steps, compressed writes first: QEMU takes them only where nothing is allocated. Data is
/// text that counts, so that bytes read from the wrong place show, and that compresses.
fn apply(dir: &Dir, image: &str, variant: Variant, steps: &[Step]) {
    let counting: String = (0..1 << 16).map(|n| format!("{image} {n}\n")).collect();
    std::fs::write(dir.file("counting"), counting).unwrap();
    let mut compressed = BTreeSet::new();
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for step in steps {
        match *step {
            Step::Write { at, len } => then.push(format!("write -q -s counting {at} {len}")),
            Step::Zero { at, len } => then.push(format!("write -q -z {at} {len}")),
            Step::Discard { at, len } => then.push(format!("discard -q {at} {len}")),
            Step::Compress { cluster } if compressed.insert(cluster) => {
                let (at, len) = (cluster * 65536, variant.cluster);
                first.push(format!("write -q -c -s counting {at} {len}"));
            }
            Step::Compress { .. } => {}
        }
    }
    let mut args = vec!["-f", "qcow2"];
    args.extend(first.iter().chain(&then).flat_map(|command| ["-c", command]));
    args.push(image);
    dir.run("qemu-io", &args);
}

/// Neighbours of one kind joined.
fn joined(extents: impl IntoIterator<Item = (u64, u64, ExtentKind)>) -> Vec<(u64, u64, ExtentKind)> {
    let mut all: Vec<(u64, u64, ExtentKind)> = Vec::new();
    for (start, len, kind) in extents {
        match all.last_mut() {
            Some(last) if last.0 + last.1 == start && last.2 == kind => last.1 += len,
            _ => all.push((start, len, kind)),
        }
    }
    all
}

/// What qemu-img says of the topmost layer.
fn qemu_map(dir: &Dir, image: &str) -> Vec<(u64, u64, ExtentKind)> {
    let text = dir.img(&["map", "--output=json", "-f", "qcow2", image]);
    let map: Vec<Value> = serde_json::from_str(&text).unwrap();
    let flag = |entry: &Value, name: &str| entry[name] == true;
    let top = map.iter().filter(|e| e["depth"] == 0 && flag(e, "present"));
    joined(top.map(|e| {
        // Data that is a hole in the file is both data and zero.
        let kind = match (flag(e, "compressed"), flag(e, "data")) {
            (true, _) => ExtentKind::Compressed,
            (false, true) => ExtentKind::Data,
            (false, false) => ExtentKind::Zero,
        };
        (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap(), kind)
    }))
}

fn our_map(path: &Path) -> Vec<(u64, u64, ExtentKind)> {
    let image = Image::open(path).unwrap();
    let extents: Vec<Extent> = image.extents().unwrap().collect::<Result<_, _>>().unwrap();
    extents.iter().map(|e| (e.start.bytes(), e.len.bytes(), e.kind)).collect()
}

/// What qemu-img reads, through the whole chain.
fn qemu_bytes(dir: &Dir, image: &str) -> Vec<u8> {
    dir.img(&["convert", "-f", "qcow2", "-O", "raw", image, "converted.raw"]);
    std::fs::read(dir.file("converted.raw")).unwrap()
}

fn our_bytes(dir: &Dir, image: &str, chunk: usize) -> Vec<u8> {
    let mut reader = ChainReader::open(&chain(&dir.file(image), Format::Qcow2).unwrap()).unwrap();
    let len = usize::try_from(reader.virtual_size().bytes()).unwrap();
    let mut bytes = vec![0xa5; len];
    for (n, part) in bytes.chunks_mut(chunk).enumerate() {
        reader.read_at(GuestOffset::new((n * chunk) as u64), part).unwrap();
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_is_what_qemu_says_it_is(variant in 0..VARIANTS.len(), below in steps(), above in steps(), chunk in 1usize..200_000) {
        let variant = VARIANTS[variant];
        let dir = Dir::new();
        let disk = DISK.to_string();
        dir.img(&["create", "-q", "-f", "qcow2", "-o", variant.options, "base", &disk]);
        apply(&dir, "base", variant, &below);
        prop_assert_eq!(our_map(&dir.file("base")), qemu_map(&dir, "base"));
        dir.img(&["create", "-q", "-f", "qcow2", "-o", variant.options, "-b", "base", "-F", "qcow2", "top"]);
        apply(&dir, "top", variant, &above);
        prop_assert_eq!(our_map(&dir.file("top")), qemu_map(&dir, "top"));
        let equal = our_bytes(&dir, "top", chunk) == qemu_bytes(&dir, "top");
        prop_assert!(equal, "the bytes differ");
        for (start, len, _) in our_map(&dir.file("top")) {
            let whole = |bytes: u64| bytes.is_multiple_of(variant.unit) || bytes == DISK;
            prop_assert!(whole(start) && whole(start + len));
        }
    }
}

#[test]
fn sums_are_those_of_the_extents() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "i", "1G"]);
    dir.run("qemu-io", &["-c", "write -P 1 0 192k", "-c", "write -z 512M 128k", "-c", "write -c -P 3 1M 64k", "i"]);
    let sum = Image::open(&dir.file("i")).unwrap().allocated().unwrap();
    let kib = |len: keyframe_types::ByteLen| len.bytes() >> 10;
    assert_eq!((kib(sum.data), kib(sum.zero), kib(sum.compressed), kib(sum.total())), (192, 128, 64, 384));
}

#[test]
fn a_huge_empty_disk_is_walked_at_once() {
    let dir = Dir::new();
    let started = std::time::Instant::now();
    keyframe_qcow2::create(&dir.file("i"), size(1 << 50), &CreateOptions::default()).unwrap();
    assert_eq!(our_map(&dir.file("i")), []);
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn a_backing_file_may_be_shorter_or_longer_and_lower_layers_do_not_shine_through() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "bottom", "3M"]);
    dir.run("qemu-io", &["-c", "write -P 7 0 3M", "bottom"]);
    for (name, below, len) in [("middle", "bottom", "1M"), ("top", "middle", "2M")] {
        dir.img(&["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name, len]);
    }
    let bytes = our_bytes(&dir, "top", 1 << 20);
    assert!(bytes[..1 << 20].iter().all(|&b| b == 7) && bytes[1 << 20..].iter().all(|&b| b == 0));
    assert_eq!(bytes, qemu_bytes(&dir, "top"));
}

#[test]
fn a_raw_base_of_odd_length_reads_as_qemu_reads_it() {
    let dir = Dir::new();
    std::fs::write(dir.file("base"), vec![9; 70_001]).unwrap();
    dir.img(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top"]);
    assert_eq!(our_bytes(&dir, "top", 4096), qemu_bytes(&dir, "top"));
}

#[test]
fn a_layer_tells_where_it_holds_nothing() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "i", "1M"]);
    dir.run("qemu-io", &["-c", "write -P 5 64k 64k", "-c", "write -z 192k 64k", "i"]);
    let mut reader = LayerReader::new(Image::open(&dir.file("i")).unwrap()).unwrap();
    let mut buf = vec![1; 300 << 10];
    let holes = reader.read_at(GuestOffset::new(0), &mut buf).unwrap();
    let kib = |n: usize| n << 10;
    assert_eq!(holes, [0..kib(64), kib(128)..kib(192), kib(256)..kib(300)]);
    assert!(buf[kib(64)..kib(128)].iter().all(|&b| b == 5));
    assert!(buf[kib(128)..].iter().all(|&b| b == 0));
    let behind = reader.read_at(GuestOffset::new((1 << 20) - 1), &mut buf[..2]);
    assert!(matches!(behind, Err(Error::OutOfRange { .. })));
    assert!(reader.read_at(GuestOffset::new(u64::MAX), &mut buf).is_err());
}

#[test]
fn what_cannot_be_read_is_said() {
    let dir = Dir::new();
    dir.img(&["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "external", "1M"]);
    let secret =
        ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    dir.img(&[&["create", "-q", "-f", "qcow2"][..], &secret, &["luks", "1M"]].concat());
    for name in ["external", "luks"] {
        let image = Image::open(&dir.file(name)).unwrap();
        assert!(matches!(LayerReader::new(image), Err(Error::Unreadable { .. })), "{name}");
    }
    dir.run("qemu-io", &["-c", "write 0 64k", "-c", "write 512k 64k", "external"]);
    let kinds = our_map(&dir.file("external"));
    assert_eq!(kinds, [(0, 65536, ExtentKind::Data), (524_288, 65536, ExtentKind::Data)]);
}

#[test]
fn a_long_chain_reads_to_its_bottom_within_bounded_memory() {
    let dir = Dir::new();
    let depth = 200;
    assert!(depth < DEPTH_MAX);
    std::fs::write(dir.file("l0"), vec![3; 1 << 20]).unwrap();
    for n in 1..=depth {
        let format = if n == 1 { Format::Raw } else { Format::Qcow2 };
        let backing = Backing::new(format!("l{}", n - 1), format).unwrap();
        create_overlay(&dir.file(&format!("l{n}")), &backing, size(1 << 20), &CreateOptions::default()).unwrap();
    }
    let bytes = our_bytes(&dir, &format!("l{depth}"), 1 << 16);
    assert!(bytes.iter().all(|&b| b == 3));
}
