//! An index for 10 TB of different pages stays small in memory.

use keyframe_repo::frame::{FRAME_MOST, FrameName};
use keyframe_repo::ids::ObjectId;
use keyframe_repo::index::{Index, PackRecord, Segment};
use keyframe_repo::pack::{Content, FIRST_FRAME_AT, Layout};

const TEN_TB: u64 = 10_000_000_000_000;
const FRAMES: u32 = 40;
const FRAME_STORED: u32 = 200_000;

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

#[test]
fn ten_terabytes_of_pages_are_indexed_in_little_memory() {
    let before = peak_mib();
    let packs = TEN_TB / (u64::from(FRAMES) * FRAME_MOST as u64);
    let mut index = Index::default();
    let id = |number: u64| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        ObjectId::from_bytes(bytes)
    };
    for number in 0..packs {
        let body_len = u64::from(FRAMES * FRAME_STORED) + 200_000;
        let layout = Layout { object_len: body_len + 100_000, body_len, table_len: 1_200, fingerprints_len: 82_000 };
        let first = FrameName { pack: id(number), number: 0 };
        let record = PackRecord {
            id: id(number),
            content: Content::Pages,
            layout,
            pages: FRAMES * 128,
            segments: vec![Segment { first, count: FRAMES }],
            offsets: (0..=FRAMES).map(|n| FIRST_FRAME_AT + n * FRAME_STORED).collect(),
        };
        assert_eq!(index.add_record(record).map(u64::from), Some(number));
    }
    index.sort();
    for number in [0, packs / 3, packs - 1] {
        let found = index.locate(FrameName { pack: id(number), number: 39 }).next().unwrap();
        assert_eq!((u64::from(found.pack), found.position, found.len), (number, 39, FRAME_STORED));
    }
    // Beside it there are at most 64 MiB of hooks, 100 MiB of fingerprints, and the pipeline.
    let taken = peak_mib() - before;
    assert!(taken < 256, "{taken} MiB for {packs} packs");
    println!("{taken} MiB for {packs} packs");
}
