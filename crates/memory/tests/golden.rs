//! Files of version 1, kept: a stream, and what must become of it for as long as version 1 is
//! read. `KEYFRAME_WRITE_GOLDEN=1` writes them anew, which only a new version may need.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::Place;
use keyframe_memory::capture::{CaptureOptions, CaptureProgress, capture};
use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::sums::SumsHeader;
use keyframe_vmstate::testing::Machine;
use keyframe_vmstate::{Error, PageIndex};

/// BLAKE3 of the mapped-ram file, holes as zeroes: too long to keep, for 16 KiB of pages.
const MAPPED: &str = "golden/memory.mapped.b3sum";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// Three blocks, a jump in the order, a few pages, most of them zeroes.
fn machine_stream() -> Vec<u8> {
    let mut machine = Machine::new(&[("pc.ram", 40), ("vga", 17), ("one", 1)], 3);
    for memory in &mut machine.memory {
        memory.fill(0);
    }
    let places = machine.places();
    for (n, at) in [0, 33, 41].into_iter().enumerate() {
        machine.fill_page(places[at], n as u8 + 1);
    }
    let mut order = places.clone();
    order.sort_by_key(|(block, page)| (block.get(), page.get() < 33, page.get()));
    machine.stream(&order, 25)
}

#[test]
fn the_kept_stream_becomes_the_kept_files() {
    if std::env::var_os("KEYFRAME_WRITE_GOLDEN").is_some() {
        fs::write(golden("golden/stream.bin"), machine_stream()).expect("written");
    }
    let stream = fs::read(golden("golden/stream.bin")).expect("kept");
    assert!(stream == machine_stream(), "the encoder has changed");
    let place = Place::new();
    let input = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&input, &stream, 0).expect("written");
    let (options, progress) = (CaptureOptions::default(), CaptureProgress::default());
    let never = AtomicBool::new(false);
    capture(OwnedFd::from(input), &place.paths, &options, &progress, &never).expect("captured");
    place.open().expect("opens");

    let mapped = blake3::hash(&fs::read(&place.paths.mapped).expect("read")).to_string();
    let made = [
        ("golden/memory.b3", fs::read(&place.paths.sums).expect("read")),
        ("golden/memory.hot", fs::read(&place.paths.hot).expect("read")),
        (MAPPED, format!("{mapped}  memory.mapped\n").into_bytes()),
    ];
    for (name, bytes) in made {
        if std::env::var_os("KEYFRAME_WRITE_GOLDEN").is_some() {
            fs::write(golden(name), &bytes).expect("written");
        }
        assert!(fs::read(golden(name)).expect("kept") == bytes, "{name} has changed");
    }
}

#[test]
fn the_kept_files_are_read() {
    let sums = fs::read(golden("golden/memory.b3")).expect("kept");
    let header = SumsHeader::parse(&sums).expect("version 1");
    let blocks: Vec<_> = header.ram.blocks().iter().map(|b| (b.id().as_str(), b.pages().get())).collect();
    assert_eq!(blocks, [("pc.ram", 40), ("vga", 17), ("one", 1)]);
    let hot = fs::read(golden("golden/memory.hot")).expect("kept");
    let hot = HotList::parse(&hot, &header.ram).expect("version 1");
    assert_eq!(hot.runs().len(), 1);
    assert_eq!(Some(hot.runs()[0].first), PageIndex::new(32));
}

/// What a later version writes is refused by its number, before anything else is looked at.
#[test]
fn other_versions_are_refused() {
    for name in ["golden/memory.b3", "golden/memory.hot"] {
        let mut bytes = fs::read(golden(name)).expect("kept");
        bytes[8] = 2;
        let ram = SumsHeader::parse(&fs::read(golden("golden/memory.b3")).expect("kept"));
        let ram = ram.expect("version 1").ram;
        let error = match name {
            "golden/memory.b3" => SumsHeader::parse(&bytes).err(),
            _ => HotList::parse(&bytes, &ram).err(),
        };
        let refused = matches!(error, Some(Error::UnsupportedVersion { version: 2, .. }));
        assert!(refused, "{name}: {error:?}");
    }
}

#[test]
fn the_kept_map_says_where_pages_lie() {
    use keyframe_vmstate::shared::{SegmentId, SharedImage, SharedMap, SharedRun};
    let of = SharedImage { image_bytes: 700 * 4096, own_pages: 3, image: blake3::hash(b"header of memory.b3") };
    let run = |first, count, segment| SharedRun { first, count, segment };
    let segments = [SegmentId::new(7), SegmentId::new(0xfedc_ba98_7654_3210)];
    let made = SharedMap::new(of, &segments, vec![run(256, 3, 1), run(259, 1, 0), run(600, 100, 1)]).expect("a map");
    if std::env::var_os("KEYFRAME_WRITE_GOLDEN").is_some() {
        fs::write(golden("golden/memory.map"), made.to_bytes()).expect("written");
    }
    let kept = fs::read(golden("golden/memory.map")).expect("kept");
    assert_eq!(SharedMap::parse(&kept), Ok(made.clone()));
    assert!(kept == made.to_bytes(), "the encoder has changed");
    let mut newer = kept.clone();
    newer[8] = 2;
    assert!(matches!(SharedMap::parse(&newer), Err(Error::UnsupportedVersion { version: 2, .. })));
}
