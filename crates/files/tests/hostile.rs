//! Disks that nobody vouches for: real ones, spoiled. Never a panic, an answer without end, or more bytes than there are.

use std::path::PathBuf;
use std::sync::Arc;

use keyframe_files::exercise::{Sparse, everything};
use proptest::prelude::*;

fn seed(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/file_systems");
    std::fs::read(dir.join(name)).unwrap()
}

fn look(input: &[u8]) -> usize {
    everything(Arc::new(Sparse::read(input)))
}

/// What is spoiled below is something to begin with.
#[test]
fn seeds_are_whole() {
    // The topmost directory, two files, a link, a directory with a file; in most one more with forty.
    for (name, files) in [
        ("ext2", 46),
        ("ext4", 46),
        ("ext4-inline", 46),
        ("ext4-journal", 46),
        ("btrfs", 46),
        ("fat12", 44),
        ("fat16", 44),
        ("fat32", 44),
        ("ntfs", 46),
        ("xfs", 5),
    ] {
        assert!(look(&seed(name)) >= files, "{name}: {}", look(&seed(name)));
    }
}

const ALL: [&str; 13] = [
    "ext2",
    "ext4",
    "ext4-inline",
    "ext4-journal",
    "btrfs",
    "fat12",
    "fat16",
    "fat32",
    "ntfs",
    "xfs",
    "gpt",
    "mbr",
    "lvm",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn spoiled_disks_are_errors(
        which in 0..ALL.len(),
        spoils in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1usize..9), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut input = seed(ALL[which]);
        for (place, value, count) in spoils {
            let at = place.index(input.len() - 4) + 4;
            input.iter_mut().skip(at).take(count).for_each(|byte| *byte = value);
        }
        if let Some(cut) = cut {
            input.truncate(cut.index(input.len()));
        }
        look(&input);
    }

    #[test]
    fn noise_is_nothing(input in proptest::collection::vec(any::<u8>(), 0..6000)) {
        look(&input);
    }
}
