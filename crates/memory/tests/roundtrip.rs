//! Stream to image and back: a captured machine's file is the file built the slow way, its sums are
//! the plain BLAKE3 of its extents, and nothing that was changed is ever handed out.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use common::Place;
use keyframe_memory::capture::{CaptureOptions, CaptureProgress, CaptureReport, capture};
use keyframe_memory::verify::{VerifyProgress, VerifyReport, verify_all};
use keyframe_memory::{Error, ExtentBuf, MemoryImage};
use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::testing::Machine;
use keyframe_vmstate::{EXTENT_SIZE, ExtentIndex, PageIndex};
use proptest::prelude::*;

const BLOCKS: [(&str, u64); 4] = [("pc.ram", 1500), ("0000:00:01.0/vga.vram", 37), ("pc.bios", 64), ("one", 1)];

/// Sends a stream through a socket, in pieces of `cut` bytes, and captures it.
fn capture_stream(place: &Place, stream: &[u8], cut: usize) -> Result<CaptureReport, Error> {
    let (mut from, to) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in stream.chunks(cut) {
                // The other side may have had enough of it.
                if from.write_all(piece).is_err() {
                    break;
                }
            }
        });
        let options = CaptureOptions { buffer_bytes: 4 << 20, ..CaptureOptions::default() };
        let (progress, cancel) = (CaptureProgress::default(), AtomicBool::new(false));
        capture(OwnedFd::from(to), &place.paths, &options, &progress, &cancel)
    })
}

fn assert_image_is(machine: &Machine, place: &Place) {
    assert!(fs::read(&place.paths.mapped).expect("read") == machine.image(), "file differs");
    let image = place.open().expect("opens");
    let mut buf = ExtentBuf::new();
    for (block, described) in image.ram().iter() {
        let memory = &machine.memory[block.get()];
        for (n, bytes) in memory.chunks(EXTENT_SIZE).enumerate() {
            let extent = ExtentIndex::new(n as u64).expect("small");
            let read = image.read_extent(block, extent, &mut buf).expect("intact");
            assert!(read == bytes, "extent {n} of {}", described.id());
        }
    }
    let report = verify(&image);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.extents_read + report.extents_zero, image.ram().total_extents());
}

fn verify(image: &MemoryImage) -> VerifyReport {
    let progress = VerifyProgress::default();
    let threads = NonZeroUsize::new(2).expect("two");
    let report = verify_all(image, threads, &progress, &AtomicBool::new(false)).expect("runs");
    assert_eq!(progress.done_bytes.load(Ordering::Relaxed), image.ram().total_bytes());
    report
}

#[test]
fn a_background_snapshot_becomes_qemus_own_file() {
    let machine = Machine::new(&BLOCKS, 11);
    let place = Place::new();
    let stream = machine.stream(&machine.places(), 200);
    let report = capture_stream(&place, &stream, 100_000).expect("captured");
    assert_image_is(&machine, &place);
    assert_eq!((report.pages_repeated, report.extents_reread, report.hot_runs), (0, 0, 0));
    assert_eq!(report.pages_held + report.pages_zero, 1602);
    assert_eq!(report.stream_bytes, stream.len() as u64);
    let on_disk = fs::metadata(&place.paths.mapped).expect("there").blocks() * 512;
    let most = report.pages_held * 4096 + (64 << 10);
    assert!(on_disk <= most, "zero pages are holes: {on_disk} bytes on disk, not {most}");
}

#[test]
fn pages_written_out_of_turn_are_the_hot_ones() {
    let machine = Machine::new(&BLOCKS, 12);
    let place = Place::new();
    let mut order = machine.places();
    // The guest wants page 900, the scan goes on from there, then it wants 40, and so on.
    let wanted = [900, 40, 1200];
    let mut from = 0;
    let mut sent = Vec::new();
    for at in wanted {
        sent.extend(order[from..].iter().filter(|p| !sent.contains(*p)).take(10).copied().collect::<Vec<_>>());
        from = at;
    }
    sent.extend(order[from..].iter().filter(|p| !sent.contains(*p)).copied().collect::<Vec<_>>());
    order.retain(|p| !sent.contains(p));
    sent.extend(order);
    let stream = machine.stream(&sent, 1000);
    capture_stream(&place, &stream, 1 << 20).expect("captured");
    assert_image_is(&machine, &place);
    let hot = fs::read(&place.paths.hot).expect("there");
    let hot = HotList::parse(&hot, &machine.header.ram).expect("a list");
    let runs: Vec<_> = hot.runs().iter().map(|run| (run.first.get(), run.count.get())).collect();
    assert_eq!(runs, [(896, 16), (32, 16), (1200, 16)]);
}

#[test]
fn of_pages_that_come_again_the_later_holds() {
    let before = Machine::new(&BLOCKS, 13);
    let mut after = before.clone();
    for (n, place) in before.places().into_iter().enumerate().filter(|(n, _)| n % 7 == 0) {
        after.fill_page(place, (n % 3) as u8);
    }
    let place = Place::new();
    let stream = after.precopy_stream(&before);
    let report = capture_stream(&place, &stream, 64 << 10).expect("captured");
    assert!(report.pages_repeated > 0 && report.extents_reread > 0);
    assert_image_is(&after, &place);
}

#[test]
fn a_stream_cut_short_is_an_error_and_its_sums_are_not_valid() {
    let machine = Machine::new(&[("pc.ram", 300)], 14);
    let stream = machine.stream(&machine.places(), 50);
    for length in [0, 5, 100, 5000, stream.len() / 2, stream.len() - 1] {
        let place = Place::new();
        let error = capture_stream(&place, &stream[..length], 9999).expect_err("cut short");
        assert!(matches!(error, Error::Stream(_)), "{error:?}");
        assert!(place.open().is_err());
    }
}

#[test]
fn files_that_exist_are_not_touched() {
    let machine = Machine::new(&[("pc.ram", 3)], 1);
    let place = Place::new();
    fs::write(&place.paths.sums, "precious").expect("write");
    let stream = machine.stream(&machine.places(), 50);
    let error = capture_stream(&place, &stream, 9999).expect_err("refused");
    assert!(matches!(error, Error::Io { action: "create", .. }), "{error:?}");
    assert_eq!(fs::read(&place.paths.sums).expect("read"), b"precious");
}

fn captured(seed: u64) -> (Machine, Place) {
    let (machine, place) = (Machine::new(&BLOCKS, seed), Place::new());
    let stream = machine.stream(&machine.places(), 200);
    capture_stream(&place, &stream, 100_000).expect("captured");
    (machine, place)
}

fn flip(path: &std::path::Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 8], offset).expect("write");
}

#[test]
fn a_flipped_bit_is_named_by_block_and_offset() {
    let (machine, place) = captured(15);
    let image = place.open().expect("opens");
    let block = image.ram().find("0000:00:01.0/vga.vram").expect("there");
    let page = (0..37).filter_map(PageIndex::new).rfind(|p| image.has_page(block, *p));
    let page = page.expect("a page that is no hole");
    let at = image.layout().get(block).and_then(|b| b.page_offset(page)).expect("a place");
    flip(&place.paths.mapped, at + 77);

    let mut buf = ExtentBuf::new();
    let error = image.read_extent(block, page.extent(), &mut buf).expect_err("damaged");
    let named = matches!(&error, Error::Damaged { block, block_offset, file_offset, .. }
        if block == "0000:00:01.0/vga.vram"
            && *block_offset == page.extent().byte_offset()
            && *file_offset + page.within_extent() as u64 * 4096 == at);
    assert!(named, "{error}");
    let report = verify(&image);
    assert_eq!(report.extents_damaged, 1);
    assert_eq!(report.damaged[0].to_string(), error.to_string());

    flip(&place.paths.mapped, at + 77);
    assert_image_is(&machine, &place);
    image.read_extent_from_disk(block, page.extent(), &mut buf).expect("intact again");
}

/// A fork maps the file and never looks at the bitmap: what lies under a clear bit counts.
#[test]
fn bytes_in_a_hole_are_damage() {
    let (_, place) = captured(16);
    let image = place.open().expect("opens");
    let block = image.ram().find("pc.ram").expect("there");
    let hole = (0..93).filter_map(ExtentIndex::new).find(|e| !image.has_extent(block, *e));
    let hole = hole.expect("a whole extent of zeroes");
    let (at, _) = image.layout().get(block).and_then(|b| b.extent(hole)).expect("a place");
    flip(&place.paths.mapped, at + 5000);
    assert_eq!(verify(&image).extents_damaged, 1);
}

#[test]
fn damage_outside_the_pages_is_seen_when_opening() {
    let (_, place) = captured(17);
    let layout = place.open().expect("opens").layout().clone();
    let bitmap = layout.blocks()[0].bitmap_offset() + 3;
    for at in [4, 40, bitmap, layout.devices_offset() + 30] {
        flip(&place.paths.mapped, at);
        let error = place.open().expect_err("damaged");
        assert!(matches!(error, Error::DamagedRest { .. } | Error::Format { .. }), "{error:?}");
        flip(&place.paths.mapped, at);
    }
    place.open().expect("mended");
    flip(&place.paths.sums, 60);
    assert!(matches!(place.open(), Err(Error::Format { .. })));
    flip(&place.paths.sums, 60);
    let (_, other) = captured(18);
    let error = MemoryImage::open(&other.paths.mapped, &place.paths.sums).expect_err("not a couple");
    assert!(matches!(error, Error::DamagedRest { .. } | Error::NotACouple { .. }), "{error:?}");
}

#[test]
fn a_damaged_table_is_told_from_a_damaged_image() {
    let (_, place) = captured(19);
    let image = place.open().expect("opens");
    let length = fs::metadata(&place.paths.sums).expect("there").len();
    flip(&place.paths.sums, length - 7);
    let progress = VerifyProgress::default();
    let one = NonZeroUsize::MIN;
    let error = verify_all(&image, one, &progress, &AtomicBool::new(false)).expect_err("damaged");
    assert!(matches!(error, Error::DamagedSums { .. }), "{error:?}");
    let cancelled = verify_all(&image, one, &progress, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(Error::DamagedSums { .. } | Error::Cancelled)));
}

#[test]
fn devices_only_is_a_file_of_its_own() {
    let (machine, place) = captured(20);
    let image = place.open().expect("opens");
    let mapped = image.ram().largest().expect("blocks");
    let dest = place.paths.mapped.with_extension("devices");
    image.write_devices_only(mapped, &dest).expect("written");
    let mut expected = machine.clone();
    expected.memory[mapped.get()].fill(0);
    assert!(fs::read(&dest).expect("read") == expected.image(), "file differs");
    let devices = [image.device_sections().expect("read"), vec![0, 6]].concat();
    assert!(machine.devices.starts_with(&devices));
    assert!(machine.devices.ends_with(&image.device_description().expect("read")));
}

#[test]
fn a_file_without_bitmaps_is_repaired_once() {
    use keyframe_memory::seal::{Repair, repair_bitmaps, write_sums};
    let (machine, place) = captured(21);
    let layout = place.open().expect("opens").layout().clone();
    assert_eq!(repair_bitmaps(&place.paths.mapped).expect("looked"), Repair::NotNeeded);
    let file = OpenOptions::new().write(true).open(&place.paths.mapped).expect("opens");
    for block in layout.blocks() {
        let empty = vec![0; block.bitmap_bytes() as usize];
        file.write_all_at(&empty, block.bitmap_offset()).expect("write");
    }
    assert!(matches!(place.open(), Err(Error::DamagedRest { .. })));
    let repaired = repair_bitmaps(&place.paths.mapped).expect("repaired");
    assert!(matches!(repaired, Repair::Done { pages } if pages > 0));
    assert_eq!(repair_bitmaps(&place.paths.mapped).expect("looked"), Repair::NotNeeded);
    fs::remove_file(&place.paths.sums).expect("removed");
    write_sums(&place.paths.mapped, &place.paths.sums).expect("sealed");
    assert_image_is(&machine, &place);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_any_cut_gives_the_same_files(
        seed: u64,
        cut in 100usize..300_000,
        jump in 1usize..700,
    ) {
        let machine = Machine::new(&[("pc.ram", 700), ("vga", 33)], seed);
        let places = machine.places();
        let mut order: Vec<_> = (0..jump).flat_map(|n| places.iter().skip(n).step_by(jump)).copied().collect();
        if seed % 2 == 0 {
            order.reverse();
        }
        let place = Place::new();
        let report = capture_stream(&place, &machine.stream(&order, 90), cut).expect("captured");
        prop_assert_eq!(report.extents_reread, 0);
        assert_image_is(&machine, &place);
    }
}
