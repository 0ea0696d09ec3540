//! An index for 10 TB of different pages stays small in memory.

use keyframe_repo::Keys;
use keyframe_repo::frame::{FRAME_MOST, FrameName};
use keyframe_repo::ids::{Fingerprint, ObjectId, ObjectKind};
use keyframe_repo::index::{HOOKS_MOST, Hooks, Index, IndexLimits, IndexWriter, PackRecord, Segment};
use keyframe_repo::object::{OBJECT_MOST, Object};
use keyframe_repo::pack::{Content, FIRST_FRAME_AT, Layout};

const TEN_TB: u64 = 10_000_000_000_000;
const FRAMES: u32 = 40;
const FRAME_STORED: u32 = 200_000;

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn record(number: u64) -> PackRecord {
    let body_len = u64::from(FRAMES * FRAME_STORED) + 200_000;
    let layout = Layout { object_len: body_len + 100_000, body_len, table_len: 1_200, fingerprints_len: 82_000 };
    let first = FrameName { pack: id(number), number: 0 };
    PackRecord {
        id: id(number),
        content: Content::Pages,
        layout,
        pages: FRAMES * 128,
        segments: vec![Segment { first, count: FRAMES }],
        offsets: (0..=FRAMES).map(|n| FIRST_FRAME_AT + n * FRAME_STORED).collect(),
    }
}

/// Those of a pack's fingerprints that are hooks: as many as chance makes of all.
fn hooks(pack: u64) -> impl Iterator<Item = Fingerprint> {
    (0..u64::from(FRAMES) * 128 / 32).map(move |n| {
        let mut bytes = [0; 16];
        let number = pack * 1000 + n;
        bytes[..8].copy_from_slice(&((number.wrapping_mul(0xd134_2543_de82_ef95) >> 20) << 5).to_le_bytes());
        bytes[8..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        Fingerprint::from_bytes(bytes)
    })
}

fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// One test, as it measures what the process takes.
#[test]
fn ten_terabytes_of_pages_are_indexed_in_little_memory() {
    let packs = TEN_TB / (u64::from(FRAMES) * FRAME_MOST as u64);
    // Reading: the records.
    let before = peak_mib();
    let mut index = Index::default();
    for number in 0..packs {
        assert_eq!(index.add_record(record(number)).map(u64::from), Some(number));
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
    drop(index);

    // A session that stores all of it: what it remembers until its index is written.
    let before = memory_mib();
    let mut writer = IndexWriter::default();
    for number in 0..packs {
        writer.add_record(&record(number), hooks(number));
    }
    let taken = memory_mib().saturating_sub(before);
    assert!(taken < 240, "{taken} MiB for a session of {packs} packs");
    println!("{taken} MiB for a session of {packs} packs");

    // Its index: several objects, each far from the most that one can be. Read back as it is opened, one by one.
    let keys = Keys::generate(id(1)).unwrap();
    let (mut objects, mut index) = (0, Index::default());
    let before = memory_mib();
    let limits = IndexLimits::default();
    let mut read = |id, bytes: Vec<u8>| {
        let object = Object::check(bytes, ObjectKind::Index, id, Some(keys.repository()), keys.auth())?;
        assert!(
            object.header.body_len < limits.body_bytes as u64 + 100_000 && object.header.body_len < OBJECT_MOST / 2
        );
        objects += 1;
        index.add(object, &keys, Hooks::Load)
    };
    writer.write(&keys, 1, &mut read).unwrap();
    index.sort();
    println!("{objects} objects; {} MiB more with the index in memory", memory_mib().saturating_sub(before));
    assert!((3..10).contains(&objects), "{objects} objects");
    assert_eq!(index.packs().len() as u64, packs);
    assert!((HOOKS_MOST / 2..=HOOKS_MOST).contains(&index.hooks()), "{} hooks", index.hooks());
    // Packs of every age have as many of them.
    for part in 0..10 {
        let of_part = (part * packs / 10..(part + 1) * packs / 10).step_by(997);
        let (mut found, mut all) = (0, 0);
        for number in of_part {
            all += 1;
            found += u64::from(hooks(number).any(|hook| index.hooked(hook).any(|at| u64::from(at) == number)));
        }
        assert!(found * 10 >= all * 9, "{found} of {all} packs of part {part} have a hook");
    }
}
