//! The file's parser against files built the slow way, and against damage.

use proptest::prelude::*;

use super::*;
use crate::Error;
use crate::testing::{Machine, SECTION_ID};
use crate::units::PAGE_SIZE;
use crate::wire::{COMMAND, RAM_EOS, SECTION_END, SECTION_FOOTER, SECTION_PART};

const BLOCKS: [(&str, u64); 3] = [("pc.ram", 70), ("0000:00:01.0/vga.vram", 20), ("bios", 1)];

#[test]
fn a_file_is_parsed_to_the_layout_it_was_built_from() {
    let machine = Machine::new(&BLOCKS, 3);
    let bytes = machine.image();
    let source = bytes.as_slice();
    let file = parse(&source).expect("a file");
    assert_eq!(*file.layout(), MappedLayout::for_stream(&machine.header));
    assert_eq!(file.devices().total_bytes(), machine.devices.len() as u64);
    for (block, described) in file.layout().ram().iter() {
        let bitmap = file.read_bitmap(&source, block).expect("a bitmap");
        let placed = file.layout().get(block).expect("a block");
        assert!(placed.pages_offset().is_multiple_of(1 << 20));
        let memory = &machine.memory[block.get()];
        for (n, page) in memory.chunks_exact(PAGE_SIZE).enumerate() {
            let index = crate::PageIndex::new(n as u64).expect("small");
            assert_eq!(bitmap.get(index), page.iter().any(|byte| *byte != 0));
            let at = placed.page_offset(index).expect("in the block") as usize;
            assert_eq!(&bytes[at..at + PAGE_SIZE], page);
        }
        assert_eq!(described.pages(), bitmap.pages());
    }
}

/// QEMU's own files have sections without pages between memory and devices.
#[test]
fn empty_sections_are_skipped() {
    let machine = Machine::new(&BLOCKS, 4);
    let devices_at = MappedLayout::for_stream(&machine.header).devices_offset() as usize;
    let mut bytes = machine.image();
    let mut between = Vec::new();
    for mark in [SECTION_PART, SECTION_PART, COMMAND, SECTION_END] {
        if mark == COMMAND {
            between.extend([COMMAND, 0, 11, 0, 0]);
            continue;
        }
        between.push(mark);
        between.extend(SECTION_ID.to_be_bytes());
        between.extend(RAM_EOS.to_be_bytes());
        between.push(SECTION_FOOTER);
        between.extend(SECTION_ID.to_be_bytes());
    }
    bytes.splice(devices_at..devices_at, between.iter().copied());
    let file = parse(&bytes.as_slice()).expect("a file");
    assert_eq!(file.layout().devices_offset() as usize, devices_at + between.len());
    assert_eq!(file.devices().total_bytes(), machine.devices.len() as u64);
}

#[test]
fn every_truncation_is_noticed() {
    let machine = Machine::new(&[("pc.ram", 3), ("bios", 1)], 1);
    let bytes = machine.image();
    let head_and_tail = (0..200).chain((1 << 20) - 5..(1 << 20) + 5);
    for length in head_and_tail.chain(bytes.len() - 400..bytes.len()) {
        let error = parse(&&bytes[..length]).expect_err("cut short");
        assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn devices_only_has_everything_but_the_mapped_block() {
    let machine = Machine::new(&BLOCKS, 9);
    let bytes = machine.image();
    let source = bytes.as_slice();
    let file = parse(&source).expect("a file");
    let mapped = file.layout().ram().find("pc.ram").expect("there");
    let bitmaps: Vec<_> =
        file.layout().ram().iter().map(|(block, _)| file.read_bitmap(&source, block).expect("a bitmap")).collect();
    let plan = DevicesOnly::plan(&file, mapped, |block| bitmaps.get(block.get()));
    let mut built = Vec::new();
    for piece in plan.pieces() {
        match *piece {
            Piece::Copy { offset, bytes: count } => {
                assert_eq!(offset, built.len() as u64, "no gap");
                built.extend(&bytes[offset as usize..(offset + count) as usize]);
            }
            Piece::Hole { offset, bytes: count } => {
                assert_eq!(offset, built.len() as u64, "no gap");
                built.resize(built.len() + count as usize, 0);
            }
        }
    }
    let mut expected = machine.clone();
    expected.memory[mapped.get()].fill(0);
    assert_eq!(built, expected.image());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics(flips in prop::collection::vec((0usize..220, 0u8..8), 1..6)) {
        let machine = Machine::new(&[("pc.ram", 40), ("bios", 1)], 2);
        let mut bytes = machine.image();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        let source = bytes.as_slice();
        if let Ok(file) = parse(&source) {
            for (block, _) in file.layout().ram().iter() {
                let _ = file.read_bitmap(&source, block);
            }
            prop_assert!(file.layout().non_page_ranges(file.file_bytes()).is_ok());
        }
    }
}
