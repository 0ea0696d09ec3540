//! The source against [`super::model::Destination`], and the return path against everything.

use std::sync::Arc;

use proptest::prelude::*;

use super::model::{Destination, State};
use super::*;
use crate::config::Configuration;
use crate::mapped::PageBitmap;
use crate::ram::{BlockId, RamBlock, RamLayout};
use crate::{BlockIndex, PAGE_SIZE, PageCount, PageIndex};

const BLOCKS: [(&str, usize); 3] = [("ram0", 150), ("pc.bios", 17), ("vga", 33)];
const DEVICES: &[u8] = b"\x04 whole sections of devices \x7e";
const MACHINE: &str = "pc-q35-10.0";

fn layout() -> Arc<RamLayout> {
    let mut ram = RamLayout::default();
    for (name, pages) in BLOCKS {
        let id = BlockId::parse(name.as_bytes(), 0).unwrap();
        ram.push(RamBlock::new(id, PageCount::new(pages as u64).unwrap()), 0).unwrap();
    }
    Arc::new(ram)
}

fn block(number: usize) -> BlockIndex {
    BlockIndex::new(number).unwrap()
}

fn page(number: usize) -> PageIndex {
    PageIndex::new(number as u64).unwrap()
}

/// Pages whose bytes tell where they belong; every third is zero.
fn content(block: usize, page: usize) -> Vec<u8> {
    match (block + page) % 3 {
        0 => vec![0; PAGE_SIZE],
        _ => [block as u8 + 1, page as u8].repeat(PAGE_SIZE / 2),
    }
}

fn contents(block: usize, first: usize, count: usize) -> Vec<u8> {
    (first..first + count).flat_map(|page| content(block, page)).collect()
}

fn send(source: &mut Source, at: (usize, usize, usize), from: usize, zeros: Zeros, out: &mut Vec<u8>) -> u64 {
    let (number, first, count) = at;
    let pages = PageCount::new(count as u64).unwrap();
    let run = run_within(source.ram(), block(number), page(first), pages).unwrap();
    let bytes = contents(number, first, count);
    source.send(Pages::new(run, &bytes).unwrap(), page(from), zeros, out)
}

/// An opening with block 1 eager, blocks 0 and 2 lazy.
fn open(out: &mut Vec<u8>) -> Source {
    let ram = layout();
    let machine = Configuration::new(MACHINE).unwrap();
    let mut opening = Opening::start(&machine, Arc::clone(&ram), &[block(2), block(0)], out).unwrap();
    assert_eq!(opening.eager_blocks().collect::<Vec<_>>(), [block(1)]);
    let run = run_within(&ram, block(1), page(0), PageCount::new(17).unwrap()).unwrap();
    let bytes = contents(1, 0, 17);
    opening.eager(Pages::new(run, &bytes).unwrap(), out);
    opening.package(DEVICES, out).unwrap()
}

fn running() -> (Source, Destination) {
    let mut out = Vec::new();
    let mut source = open(&mut out);
    let mut there = Destination::new(MACHINE, &BLOCKS, DEVICES);
    there.feed(&out).unwrap();
    source.receive(&there.take_replies()).unwrap();
    assert!(source.devices_loaded());
    (source, there)
}

fn assert_complete(there: &Destination) {
    assert_eq!(there.state(), State::Ended);
    for (number, (name, pages)) in BLOCKS.into_iter().enumerate() {
        assert!(there.memory(number) == contents(number, 0, pages), "{name} is not what was sent");
    }
}

fn send_rest(source: &mut Source, out: &mut Vec<u8>) {
    for (number, (_, pages)) in BLOCKS.into_iter().enumerate() {
        for first in (0..pages).step_by(16) {
            send(source, (number, first, 16.min(pages - first)), first, Zeros::Skip, out);
        }
    }
    source.end(out).unwrap();
}

#[test]
fn the_opening_is_these_bytes() {
    let mut out = Vec::new();
    open(&mut out);
    let start = b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0\
        \x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01\x08\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\0\
        \x01\x4b\x46\0\x01\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\x0c\x80\x04\
        \x04ram0\0\0\0\0\0\x09\x60\0\x07pc.bios\0\0\0\0\0\x01\x10\0\x03vga\0\0\0\0\0\x02\x10\0\
        \0\0\0\0\0\0\0\x10\x7e\x4b\x46\0\x01\
        \x02\x4b\x46\0\x01\0\0\0\0\0\0\0\x08\x07pc.bios\x02\0\x02\0";
    assert_eq!(out.get(..start.len()).unwrap(), start);
    let end = b"\x08\0\x04\0\0\x04 whole sections of devices \x7e\x08\0\x02\0\x04\0\0\0\x03\x08\0\x05\0\0";
    assert!(out.ends_with(end));
}

#[test]
fn a_request_is_answered_with_its_page_first_and_never_twice() {
    let (mut source, mut there) = running();
    there.touch(0, 37);
    there.touch(0, 38);
    there.touch(2, 3);
    source.receive(&there.take_replies()).unwrap();
    let asked: Vec<_> = std::iter::from_fn(|| source.next_request()).collect();
    let asked: Vec<_> = asked.iter().map(|run| (run.block.get(), run.first.get(), run.count.get())).collect();
    assert_eq!(asked, [(0, 37, 1), (0, 38, 1), (2, 3, 1)]);
    let mut out = Vec::new();
    assert_eq!(send(&mut source, (0, 32, 16), 37, Zeros::Send, &mut out), 16);
    assert_eq!(out.get(5..13).unwrap(), ((37 * 4096_u64) | 8).to_be_bytes());
    assert_eq!(send(&mut source, (0, 32, 16), 38, Zeros::Send, &mut out), 0);
    there.feed(&out).unwrap();
    assert!((32..48).all(|page| there.has(0, page)));
    assert_eq!(there.memory(0).get(32 * PAGE_SIZE..48 * PAGE_SIZE).unwrap(), contents(0, 32, 16));
}

#[test]
fn memory_is_complete_though_zero_pages_were_left_out() {
    let (mut source, mut there) = running();
    let mut out = Vec::new();
    send_rest(&mut source, &mut out);
    there.feed(&out).unwrap();
    assert!(!there.has(0, 0), "a zero page that nobody asked for was sent");
    assert_complete(&there);
    source.receive(&there.take_replies()).unwrap();
    assert_eq!(source.shut(), Some(0));
}

#[test]
fn out_of_order_is_refused() {
    let (ram, machine) = (layout(), Configuration::new(MACHINE).unwrap());
    let mut out = Vec::new();
    let none = Opening::start(&machine, Arc::clone(&ram), &[], &mut out);
    assert_eq!(none.unwrap_err(), PostcopyError::NothingLazy);
    let opening = Opening::start(&machine, ram, &[block(0)], &mut out).unwrap();
    let short = opening.package(DEVICES, &mut out);
    assert_eq!(short.unwrap_err(), PostcopyError::EagerPagesMissing { missing: 17 + 33 });
    let mut source = open(&mut Vec::new());
    assert_eq!(source.end(&mut out), Err(PostcopyError::EndTooEarly));
}

/// The destination's answers to a resume, and the source that waits for them.
fn resuming(mut there: Destination) -> (Resume, Destination) {
    there.lose_connection();
    there.reconnect();
    let mut out = Vec::new();
    let resume = Resume::start(layout(), &mut out);
    there.feed(&out).unwrap();
    (resume, there)
}

#[test]
fn a_second_server_goes_on_where_the_first_died() {
    let (mut source, mut there) = running();
    let mut out = Vec::new();
    send(&mut source, (0, 0, 16), 0, Zeros::Send, &mut out);
    send(&mut source, (0, 64, 16), 64, Zeros::Skip, &mut out);
    // The connection breaks within the second section; a page was waited for.
    there.touch(2, 8);
    there.feed(out.get(..out.len() - 5000).unwrap()).unwrap();
    let (resume, mut there) = resuming(there);
    let mut out = Vec::new();
    let Resumed::Waiting(resume) = resume.receive(&there.take_replies(), &mut out).unwrap() else {
        panic!("resumed without consent")
    };
    there.feed(&out).unwrap();
    out.clear();
    let Resumed::Done(mut source) = resume.receive(&there.take_replies(), &mut out).unwrap() else {
        panic!("not resumed")
    };
    let asked = source.next_request().unwrap();
    assert_eq!((asked.block, asked.first), (block(2), page(8)));
    send(&mut source, (2, 0, 16), 8, Zeros::Send, &mut out);
    send_rest(&mut source, &mut out);
    there.feed(&out).unwrap();
    assert_complete(&there);
}

#[test]
fn a_destination_that_does_not_consent_is_not_served() {
    let (_, there) = running();
    let (resume, mut there) = resuming(there);
    let mut out = Vec::new();
    let Ok(Resumed::Waiting(resume)) = resume.receive(&there.take_replies(), &mut out) else {
        panic!("resumed without consent")
    };
    let refused = resume.receive(b"\0\x06\0\x04\0\0\0\x02", &mut out);
    assert!(matches!(refused, Err(PostcopyError::ResumeRefused { value: 2, .. })));
    let Ok(Resumed::Waiting(resume)) = Resume::start(layout(), &mut out).receive(b"\0\x01\0\x04\0\0\0\x09", &mut out)
    else {
        panic!("resumed without consent")
    };
    assert_eq!(resume.shut(), Some(9));
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let (mut source, _) = running();
    let ack = b"\0\x06\0\x04\0\0\0\x01";
    assert!(matches!(source.receive(ack), Err(PostcopyError::OutOfPlace { .. })));
    let mut out = Vec::new();
    let early = Resume::start(layout(), &mut out).receive(ack, &mut out);
    assert!(matches!(early, Err(PostcopyError::OutOfPlace { offset: 0, .. })));
    let request = b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\x10\0\x04ram0";
    let early = Resume::start(layout(), &mut out).receive(request, &mut out);
    assert!(matches!(early, Err(PostcopyError::OutOfPlace { offset: 0, .. })));
}

// ---- the return path

fn parse(pieces: &[&[u8]]) -> (Vec<Located>, Result<(), PostcopyError>) {
    let (mut path, mut messages) = (ReturnPath::new(layout()), Vec::new());
    for piece in pieces {
        let fed = path.feed(piece, |message| messages.push(message));
        if fed.is_err() {
            assert!(path.feed(b"x", |_| panic!("a message after an error")).is_err());
            return (messages, fed);
        }
    }
    (messages, Ok(()))
}

/// A conversation with every kind of message.
fn everything() -> Vec<u8> {
    let (_, mut there) = running();
    there.touch(0, 1);
    there.touch(0, 2);
    there.touch(2, 32);
    let mut said = there.take_replies();
    let (_, mut there) = resuming(there);
    said.extend(there.take_replies());
    said.extend(b"\0\x07\0\0\0\x06\0\x04\0\0\0\x01\0\x02\0\x04\0\0\0\x07");
    there.shut();
    said.extend(there.take_replies());
    said
}

#[test]
fn every_cut_gives_the_same_messages() {
    let bytes = everything();
    let (whole, result) = parse(&[&bytes]);
    assert_eq!((whole.len(), result), (10, Ok(())));
    assert_eq!(whole.last().unwrap().message, Message::Shut { error: 0 });
    for cut in 0..=bytes.len() {
        let (left, right) = bytes.split_at(cut);
        assert_eq!(parse(&[left, right]).0, whole, "cut at {cut}");
    }
    let bytewise: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(parse(&bytewise).0, whole);
}

#[test]
fn a_message_cut_short_is_seen() {
    let bytes = everything();
    let whole: Vec<u64> = parse(&[&bytes]).0.iter().map(|located| located.offset).collect();
    for cut in 0..bytes.len() {
        let mut path = ReturnPath::new(layout());
        path.feed(bytes.get(..cut).unwrap(), |_| {}).unwrap();
        assert_eq!(path.is_mid_message(), !whole.contains(&(cut as u64)), "cut at {cut}");
    }
}

#[test]
fn what_qemu_would_not_say_is_refused() {
    use PostcopyError as E;
    type Expected = fn(&PostcopyError) -> bool;
    let cases: [(&[u8], Expected); 14] = [
        (b"\0\0\0\0", |e| matches!(e, E::UnknownMessage { offset: 0, kind: 0 })),
        (b"\0\x08\0\0", |e| matches!(e, E::UnknownMessage { kind: 8, .. })),
        (b"\0\x01\0\x05", |e| matches!(e, E::MessageLength { kind: 1, length: 5, .. })),
        (b"\0\x03\xff\xff", |e| matches!(e, E::MessageLength { kind: 3, .. })),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0", |e| matches!(e, E::NoBlockYet { offset: 0 })),
        (b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\x10\0\x04ram9", |e| matches!(e, E::UnknownBlock { .. })),
        (b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\x10\0\x03ram0", |e| matches!(e, E::UnknownBlock { .. })),
        (b"\0\x03\0\x11\0\0\0\0\0\0\0\x01\0\0\x10\0\x04ram0", |e| matches!(e, E::BadRequest { start: 1, .. })),
        (b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\x10\x01\x04ram0", |e| matches!(e, E::BadRequest { .. })),
        (b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\0\0\x04ram0", |e| matches!(e, E::BadRequest { bytes: 0, .. })),
        (b"\0\x03\0\x11\0\0\0\0\0\x09\x60\0\0\0\x10\0\x04ram0", |e| matches!(e, E::BadRequest { .. })),
        (b"\0\x05\0\x05\x04ram0\0\0\0\0\0\0\0\x20", |e| matches!(e, E::BitmapLength { bytes: 32, expected: 24, .. })),
        (b"\0\x05\0\x04\x03vga\0\0\0\0\0\0\0\x08\0\0\0\0\x02\0\0\0", |e| matches!(e, E::Bitmap { .. })),
        (b"\0\x05\0\x04\x03vga\0\0\0\0\0\0\0\x08\0\0\0\0\x01\0\0\0wrong!!!", |e| {
            matches!(e, E::BitmapMark { offset: 24, .. })
        }),
    ];
    for (bytes, expected) in cases {
        let (messages, result) = parse(&[bytes]);
        let error = result.expect_err("refused");
        assert!(expected(&error) && messages.is_empty(), "{error} for {bytes:02x?}");
    }
    let mut after = everything();
    after.push(0);
    assert!(matches!(parse(&[&after]).1, Err(E::OutOfPlace { .. })));
}

#[test]
fn a_bitmap_says_exactly_what_arrived() {
    let (_, mut there) = running();
    there.feed(&[]).unwrap();
    let (_, mut there) = resuming(there);
    let (messages, result) = parse(&[&there.take_replies()]);
    assert_eq!(result, Ok(()));
    let mut bios = PageBitmap::new(PageCount::new(17).unwrap());
    (0..17).for_each(|number| assert!(!bios.insert(page(number))));
    assert_eq!(messages.get(1).unwrap().message, Message::Received { block: block(1), pages: bios });
    let ram = PageBitmap::new(PageCount::new(150).unwrap());
    assert_eq!(messages.first().unwrap().message, Message::Received { block: block(0), pages: ram });
}

/// One step of a revert.
#[derive(Debug, Clone)]
enum Act {
    Touch {
        block: usize,
        page: usize,
    },
    Push {
        block: usize,
        first: usize,
        count: usize,
        zeros: Zeros,
    },
    /// The connection breaks after so many bytes of what is under way.
    Break {
        delivered: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let place = (0..3_usize).prop_flat_map(|block| (Just(block), 0..BLOCKS[block].1));
    let push = (place.clone(), 1..40_usize, any::<bool>()).prop_map(|((block, first), count, skip)| {
        let count = count.min(BLOCKS[block].1 - first);
        let zeros = if skip { Zeros::Skip } else { Zeros::Send };
        Act::Push { block, first, count, zeros }
    });
    let touch = place.prop_map(|(block, page)| Act::Touch { block, page });
    let lost = (0..100_000_usize).prop_map(|delivered| Act::Break { delivered });
    prop::collection::vec(prop_oneof![4 => touch, 6 => push, 1 => lost], 0..40)
}

/// Lets the two talk until neither has anything to say; requests are answered with their extent.
fn settle(source: &mut Source, there: &mut Destination, out: &mut Vec<u8>) {
    there.feed(out).unwrap();
    out.clear();
    source.receive(&there.take_replies()).unwrap();
    while let Some(run) = source.next_request() {
        let (number, wanted) = (run.block.get(), run.first.get() as usize);
        let first = wanted / 16 * 16;
        let count = 16.min(BLOCKS[number].1 - first);
        send(source, (number, first, count), wanted, Zeros::Send, out);
    }
    there.feed(out).unwrap();
    out.clear();
}

fn recover(there: &mut Destination) -> Source {
    let (mut resume, mut again) = resuming(there.clone());
    let mut out = Vec::new();
    loop {
        match resume.receive(&again.take_replies(), &mut out).unwrap() {
            Resumed::Waiting(waiting) => resume = waiting,
            Resumed::Done(source) => {
                *there = again;
                return source;
            }
        }
        again.feed(&out).unwrap();
        out.clear();
    }
}

proptest! {
    #[test]
    fn any_order_with_any_breaks_ends_with_the_same_memory(acts in acts()) {
        let (mut source, mut there) = running();
        let mut out = Vec::new();
        for act in acts {
            match act {
                Act::Touch { block, page } => there.touch(block, page),
                Act::Push { block, first, count, zeros } => {
                    send(&mut source, (block, first, count), first, zeros, &mut out);
                }
                Act::Break { delivered } => {
                    there.feed(out.get(..delivered).unwrap_or(&out)).unwrap();
                    out.clear();
                    source = recover(&mut there);
                }
            }
            if out.len() > 300_000 {
                settle(&mut source, &mut there, &mut out);
            }
        }
        settle(&mut source, &mut there, &mut out);
        send_rest(&mut source, &mut out);
        there.feed(&out).unwrap();
        assert_complete(&there);
    }

    #[test]
    fn noise_never_panics_and_never_grows_the_parser(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        at in 0..400_usize,
        flip in any::<u8>(),
    ) {
        parse(&[&bytes]).1.ok();
        let mut damaged = everything();
        if let Some(byte) = damaged.get_mut(at) {
            *byte ^= flip;
        }
        parse(&[&damaged]).1.ok();
    }
}
