//! A mapped-ram file: what is accepted lies in order within the file, and the plan for starting
//! without its largest block covers it without gaps. Never panics.
#![no_main]

use keyframe_vmstate::mapped::{DataExtent, DevicesOnly, PageBitmap, Piece, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(file) = parse(&input) else { return };
    assert_eq!(file.file_bytes(), input.len() as u64);
    let ranges = file.layout().non_page_ranges(file.file_bytes()).expect("a whole file");
    assert!(ranges.is_sorted() && ranges.iter().all(|(start, end)| start <= end));
    assert_eq!(ranges.last().map(|(_, end)| *end), Some(file.file_bytes()));
    assert_eq!(
        file.layout().devices_offset() + file.devices().total_bytes(),
        file.file_bytes()
    );
    let mut bitmaps = Vec::new();
    for (block, described) in file.layout().ram().iter() {
        let placed = file.layout().get(block).expect("placed");
        assert!(placed.pages_end() <= file.layout().devices_offset());
        let all = [DataExtent { start: 0, end: u64::MAX }];
        let full = PageBitmap::from_data_extents(placed, &all);
        assert_eq!(full.count(), described.pages().get());
        let Ok(bitmap) = file.read_bitmap(&input, block) else { return };
        let in_runs: u64 = bitmap.runs().map(|(_, count)| count.get()).sum();
        assert_eq!(in_runs, bitmap.count());
        bitmaps.push(bitmap);
    }
    let Some(largest) = file.layout().ram().largest() else { return };
    let plan = DevicesOnly::plan(&file, largest, |block| bitmaps.get(block.get()));
    let mut at = 0;
    for piece in plan.pieces() {
        let (Piece::Copy { offset, bytes } | Piece::Hole { offset, bytes }) = *piece;
        assert_eq!(offset, at);
        at += bytes;
    }
    assert_eq!(at, file.file_bytes());
});
