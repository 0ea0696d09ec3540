//! The decoder against made-up machines: any order, any cut, any damage.

use proptest::prelude::*;

use super::*;
use crate::testing::{Machine, Place, SECTION_ID, stream_header};

/// Rebuilds a machine from what it is told.
#[derive(Default)]
struct Rebuilt {
    header: Option<Header>,
    memory: Vec<Vec<u8>>,
    devices: Vec<u8>,
    order: Vec<Place>,
}

impl Sink for Rebuilt {
    type Error = Error;

    fn header(&mut self, header: &Header) -> Result<(), Error> {
        let blocks = header.ram.blocks().iter();
        self.memory = blocks.map(|block| vec![0xee; block.pages().bytes() as usize]).collect();
        assert!(self.header.replace(header.clone()).is_none(), "one header");
        Ok(())
    }

    fn page(&mut self, block: BlockIndex, page: PageIndex, bytes: &Page) -> Result<(), Error> {
        let start = page.byte_offset() as usize;
        self.memory[block.get()][start..start + PAGE_SIZE].copy_from_slice(bytes);
        self.order.push((block, page));
        Ok(())
    }

    fn zero_page(&mut self, block: BlockIndex, page: PageIndex) -> Result<(), Error> {
        self.page(block, page, &[0; PAGE_SIZE])
    }

    fn device_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.devices.extend(bytes);
        Ok(())
    }
}

fn decode(stream: &[u8], cut: usize) -> Result<(Rebuilt, Summary), Error> {
    let (mut decoder, mut rebuilt) = (Decoder::new(), Rebuilt::default());
    for piece in stream.chunks(cut.max(1)) {
        decoder.feed(piece, &mut rebuilt)?;
    }
    let summary = decoder.finish()?;
    Ok((rebuilt, summary))
}

const BLOCKS: [(&str, u64); 3] = [("pc.ram", 70), ("0000:00:01.0/vga.vram", 20), ("bios", 1)];

#[test]
fn every_cut_gives_the_same_machine() {
    let machine = Machine::new(&BLOCKS, 5);
    let stream = machine.stream(&machine.places(), 17);
    for cut in (1..40).chain([4095, 4096, 4103, 4104, 4105, 70_000, stream.len()]) {
        let (rebuilt, summary) = decode(&stream, cut).expect("complete");
        assert_eq!(rebuilt.header.as_ref(), Some(&machine.header), "cut {cut}");
        assert_eq!(rebuilt.memory, machine.memory, "cut {cut}");
        assert_eq!(rebuilt.devices, machine.devices, "cut {cut}");
        assert_eq!(rebuilt.order, machine.places(), "cut {cut}");
        assert_eq!(summary.stream_bytes, stream.len() as u64);
        assert_eq!(summary.page_frames + summary.zero_frames, 91);
    }
}

#[test]
fn every_truncation_is_noticed() {
    let machine = Machine::new(&[("pc.ram", 3), ("bios", 1)], 1);
    let stream = machine.stream(&machine.places(), 2);
    for length in 0..stream.len() {
        let error = decode(&stream[..length], 4096).err().expect("cut short");
        assert!(matches!(error, Error::Truncated { offset, .. } if offset == length as u64));
    }
}

#[test]
fn of_repeated_pages_the_later_holds() {
    let before = Machine::new(&BLOCKS, 8);
    let mut after = before.clone();
    for (n, place) in before.places().into_iter().enumerate().filter(|(n, _)| n % 3 == 0) {
        after.fill_page(place, (n % 2) as u8);
    }
    let (rebuilt, _) = decode(&after.precopy_stream(&before), 999).expect("complete");
    assert_eq!(rebuilt.memory, after.memory);
}

#[test]
fn what_cannot_be_captured_is_named() {
    let machine = Machine::new(&[("pc.ram", 2)], 3);
    let head = stream_header(&machine.header);
    let start = head.len() - 13 - (1 + 6 + 8) - 8 - (1 + 4 + 4 + 8);
    let with = |at: usize, insert: &[u8]| [&head[..at], insert, &head[at..]].concat();
    let refused = |stream: &[u8]| decode(stream, 64).err().expect("refused").to_string();

    let ping = refused(&with(start, &[8, 0, 2, 0, 4, 0, 0, 0, 1]));
    assert!(ping.contains("command PING"), "{ping}");
    let early = refused(&with(start, b"\x04\0\0\0\x07\x0avirtio-mem\0\0\0\0\0\0\0\x01"));
    assert!(early.contains("virtio-mem"), "{early}");
    let second = refused(&with(head.len(), b"\x01\0\0\0\x09\x04vfio\0\0\0\0\0\0\0\x01"));
    assert!(second.contains("second section"), "{second}");
    let other = refused(&with(head.len(), b"\x02\0\0\0\x09"));
    assert!(other.contains("section 9"), "{other}");
    let mut mapped = Vec::new();
    stream_start_mapped(&mut mapped, &machine);
    let mapped = refused(&mapped);
    assert!(mapped.contains("mapped-ram"), "{mapped}");
}

fn stream_start_mapped(out: &mut Vec<u8>, machine: &Machine) {
    crate::encode::stream_start(out, &machine.header.configuration.for_mapped_ram());
    crate::encode::ram_setup(out, SECTION_ID, &machine.header.ram);
}

#[test]
fn pages_that_do_not_exist_are_refused() {
    let machine = Machine::new(&[("pc.ram", 2)], 3);
    let mut stream = stream_header(&machine.header);
    crate::encode::ram_part(&mut stream, crate::encode::Part::More, SECTION_ID);
    let frame = |word: u64, name: &[u8]| {
        let mut bad = stream.clone();
        bad.extend(word.to_be_bytes());
        bad.push(name.len() as u8);
        bad.extend(name);
        bad.push(0);
        decode(&bad, 5).err().expect("refused")
    };
    assert!(matches!(frame(0x2000 | RAM_ZERO, b"pc.ram"), Error::NoSuchPage { .. }));
    assert!(matches!(frame(!0xfff | RAM_ZERO, b"pc.ram"), Error::NoSuchPage { .. }));
    assert!(matches!(frame(RAM_ZERO, b"pc.rom"), Error::NoSuchPage { .. }));
    assert!(matches!(frame(RAM_ZERO | RAM_CONTINUE, b"pc.ram"), Error::NoSuchPage { .. }));
    assert!(matches!(frame(0x40, b"pc.ram"), Error::Unexpected { .. }));
    assert!(matches!(frame(0, b"pc.ram"), Error::Unexpected { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_any_cut(seed: u64, cut in 1usize..20_000, per_section in 1usize..100) {
        let machine = Machine::new(&BLOCKS, seed);
        let mut order = machine.places();
        let length = order.len();
        for n in 0..length {
            order.swap(n, (seed.rotate_left(n as u32) % length as u64) as usize);
        }
        let (rebuilt, _) = decode(&machine.stream(&order, per_section), cut).expect("complete");
        prop_assert_eq!(rebuilt.memory, machine.memory);
        prop_assert_eq!(rebuilt.order, order);
    }

    #[test]
    fn damage_never_panics(seed: u64, flips in prop::collection::vec((any::<u32>(), 0u8..8), 1..9)) {
        let machine = Machine::new(&[("pc.ram", 4), ("bios", 1)], seed);
        let mut stream = machine.stream(&machine.places(), 3);
        let length = stream.len();
        for (at, bit) in flips {
            // Half of the flips in the header, where most of the structure is.
            let at = if bit % 2 == 0 { at as usize % 120 } else { at as usize % length };
            stream[at] ^= 1 << bit;
        }
        if let Ok((rebuilt, summary)) = decode(&stream, 777) {
            prop_assert_eq!(summary.stream_bytes, length as u64);
            prop_assert!(rebuilt.header.is_some());
        }
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..5000), keep in 0usize..200) {
        let machine = Machine::new(&[("pc.ram", 4)], 1);
        let mut stream = machine.stream(&machine.places(), 3);
        stream.truncate(keep);
        stream.extend(noise);
        prop_assert!(decode(&stream, 333).is_err());
    }
}
