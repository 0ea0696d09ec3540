//! An image from outside: header, allocation, reading. Never a panic, extents in order and within the
//! disk, and a reader that agrees with the allocation about what the layer holds.
#![no_main]

use keyframe_qcow2::{GuestOffset, Image, LayerReader, probe};
use libfuzzer_sys::fuzz_target;

/// Extents looked at; a hostile L1 table maps far more of the same.
const EXTENTS: usize = 256;

fuzz_target!(|input: &[u8]| {
    let _format_or_refusal = probe::probe_source(input);
    let Ok(image) = Image::new(input) else { return };
    let disk = image.header().virtual_size().bytes();
    let Ok(extents) = image.extents() else { return };
    let mut sound = Vec::new();
    let mut end = 0;
    for extent in extents.take(EXTENTS) {
        let Ok(extent) = extent else { break };
        assert!(extent.start.bytes() >= end && extent.len.bytes() > 0, "{extent:?} after {end}");
        end = extent.end().bytes();
        assert!(end <= disk, "{extent:?} on a disk of {disk}");
        sound.push(extent);
    }
    let Ok(mut reader) = LayerReader::new(image) else { return };
    for extent in sound.iter().take(16) {
        let mut buf = vec![0; usize::try_from(extent.len.bytes().min(4096)).unwrap_or(0)];
        if let Ok(holes) = reader.read_at(extent.start, &mut buf) {
            assert!(holes.is_empty(), "{extent:?} has holes {holes:?}");
        }
    }
    let _behind = reader.read_at(GuestOffset::new(disk), &mut [0]).expect_err("behind the end");
});
