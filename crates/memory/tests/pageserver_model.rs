//! The page server against a destination that is a model: every order, every fault, no QEMU.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyframe_memory::pageserver::{
    ExtentAt, Held, Notice, Observer, PageServerError, PageSource, Stage, Unobserved, resume, serve,
};
use keyframe_memory::{Error, ExtentBuf};
use keyframe_vmstate::config::Configuration;
use keyframe_vmstate::hot::{HotList, HotRecorder};
use keyframe_vmstate::postcopy::model::{Destination, State};
use keyframe_vmstate::ram::{BlockId, RamBlock, RamLayout};
use keyframe_vmstate::{BlockIndex, ExtentIndex, PAGE_SIZE, PageCount};

const MACHINE: &str = "pc-q35-10.0";
const DEVICES: &[u8] = b"devices";
/// Two lazy blocks, the second with a short last extent, and an eager one between them.
const BLOCKS: [(&str, usize); 3] = [("ram0", 2048), ("pc.bios", 64), ("vga", 300)];

/// Memory whose bytes tell where they belong. Holes, and pages that are held and zero, come regularly.
struct Memory {
    configuration: Configuration,
    ram: Arc<RamLayout>,
    damaged: HashSet<ExtentAt>,
    grain: u64,
    reads: AtomicU64,
    order: Mutex<Vec<ExtentAt>>,
}

fn is_hole(page: u64) -> bool {
    page % 7 == 3 || (512..1024).contains(&page)
}

fn content(block: usize, page: u64) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    if !is_hole(page) && !page.is_multiple_of(5) {
        bytes.fill(block as u8 + 1);
        bytes[..8].copy_from_slice(&page.to_le_bytes());
    }
    bytes
}

fn extent(block: usize, number: u64) -> ExtentAt {
    ExtentAt { block: BlockIndex::new(block).unwrap(), extent: ExtentIndex::new(number).unwrap() }
}

fn hot(extents: &[ExtentAt]) -> HotList {
    let mut recorder = HotRecorder::new(&layout());
    for at in extents {
        assert!(recorder.record(at.block, at.extent.first_page()), "{at:?} is there twice");
    }
    recorder.finish()
}

fn layout() -> RamLayout {
    let mut ram = RamLayout::default();
    for (name, pages) in BLOCKS {
        let id = BlockId::parse(name.as_bytes(), 0).unwrap();
        ram.push(RamBlock::new(id, PageCount::new(pages as u64).unwrap()), 0).unwrap();
    }
    ram
}

fn memory(damaged: &[ExtentAt]) -> Memory {
    Memory {
        configuration: Configuration::new(MACHINE).unwrap(),
        ram: Arc::new(layout()),
        damaged: damaged.iter().copied().collect(),
        grain: 1,
        reads: AtomicU64::new(0),
        order: Mutex::new(Vec::new()),
    }
}

impl PageSource for Memory {
    fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    fn ram(&self) -> &Arc<RamLayout> {
        &self.ram
    }

    fn devices(&self) -> Result<Vec<u8>, Error> {
        Ok(DEVICES.to_vec())
    }

    fn held(&self, at: ExtentAt) -> Held {
        let pages = self.ram.get(at.block).map_or(0, |block| block.pages().pages_in_extent(at.extent));
        let first = at.extent.first_page().get();
        let bit = |n: usize| u16::from(!is_hole(first + n as u64)) << n;
        Held::from_bits((0..pages).map(bit).sum())
    }

    fn read(&self, at: ExtentAt, into: &mut ExtentBuf) -> Result<(), Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.order.lock().unwrap().push(at);
        let first = at.extent.first_page().get();
        for (n, page) in into.bytes_mut().chunks_mut(PAGE_SIZE).enumerate() {
            page.copy_from_slice(&content(at.block.get(), first + n as u64));
        }
        if !self.damaged.contains(&at) {
            return Ok(());
        }
        into.bytes_mut()[100] ^= 1;
        Err(Error::Damaged {
            path: PathBuf::from("memory.mapped"),
            block: BLOCKS[at.block.get()].0.to_owned(),
            block_offset: at.extent.byte_offset(),
            file_offset: 0,
            extent_bytes: 65536,
        })
    }

    fn will_read(&self, _: ExtentAt, _: u64) {}

    fn grain(&self) -> u64 {
        self.grain
    }
}

/// What the destination does with the bytes that come.
enum Then {
    /// It goes on.
    Listen,
    /// It closes the connection.
    Close,
    /// It says this, and goes on.
    Say(Vec<u8>),
}

/// Plays the destination on an accepted connection until it ends. `each` is asked after every read.
fn converse(mut stream: UnixStream, there: &mut Destination, mut each: impl FnMut(&mut Destination) -> Then) {
    let mut bytes = vec![0; 32 << 10];
    loop {
        let count = stream.read(&mut bytes).unwrap_or(0);
        if count == 0 {
            return;
        }
        there.feed(&bytes[..count]).expect("QEMU would take this");
        let say = match each(there) {
            Then::Close => return,
            Then::Listen => Vec::new(),
            Then::Say(what) => what,
        };
        let mut replies = there.take_replies();
        replies.extend(say);
        if stream.write_all(&replies).is_err() || there.state() == State::Ended {
            return;
        }
    }
}

fn destination() -> Destination {
    Destination::new(MACHINE, &BLOCKS, DEVICES)
}

struct Socket {
    _dir: tempfile::TempDir,
    path: PathBuf,
    listener: UnixListener,
}

fn socket() -> Socket {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pages");
    let listener = UnixListener::bind(&path).unwrap();
    Socket { _dir: dir, path, listener }
}

/// Runs a server beside a destination that does `each`.
fn with_destination<T>(
    there: &mut Destination,
    each: impl FnMut(&mut Destination) -> Then + Send,
    server: impl FnOnce(&Path) -> T,
) -> T {
    let socket = socket();
    std::thread::scope(|threads| {
        threads.spawn(|| converse(socket.listener.accept().unwrap().0, there, each));
        server(&socket.path)
    })
}

fn assert_complete(there: &Destination) {
    assert_eq!(there.state(), State::Ended);
    for (block, (name, pages)) in BLOCKS.into_iter().enumerate() {
        for (page, bytes) in (0..pages as u64).zip(there.memory(block).chunks(PAGE_SIZE)) {
            assert!(bytes == content(block, page), "{name} page {page} is wrong");
        }
    }
}

/// Touches a few pages after every read, all over the memory.
fn restless(step: usize) -> impl FnMut(&mut Destination) -> Then + Send {
    let mut next = 0;
    move |there| {
        for _ in 0..3 {
            next += step;
            there.touch(0, next % BLOCKS[0].1);
            there.touch(2, next % BLOCKS[2].1);
        }
        Then::Listen
    }
}

#[test]
fn all_memory_arrives_whatever_the_guest_asks_for() {
    for step in [1, 16, 37, 511] {
        let (pages, mut there) = (memory(&[]), destination());
        let report = with_destination(&mut there, restless(step), |socket| {
            serve(&pages, socket, &HotList::default(), &Unobserved).expect("served")
        });
        assert_complete(&there);
        let figures = report.figures;
        assert!(figures.requests > 0 && figures.answer_us_sum > 0, "{figures:?}");
        assert!(!report.learned.runs().is_empty());
    }
}

#[test]
fn a_guest_that_asks_for_nothing_gets_every_extent_once_and_no_hole() {
    let (pages, mut there) = (memory(&[]), destination());
    let report = with_destination(
        &mut there,
        |_| Then::Listen,
        |socket| serve(&pages, socket, &HotList::default(), &Unobserved).expect("served"),
    );
    assert_complete(&there);
    assert!((512..1024).all(|page| !there.has(0, page)), "a hole was sent");
    // 2048 pages less a hole of 512, 64 eager ones, 300.
    assert_eq!(pages.reads.load(Ordering::Relaxed), (2048 - 512) / 16 + 4 + 19);
    assert_eq!(report.figures.requests, 0);
    assert!(report.learned.runs().is_empty());
}

#[test]
fn hot_extents_come_first_and_in_order() {
    let (pages, mut there) = (memory(&[]), destination());
    let wanted = [extent(0, 100), extent(2, 18), extent(0, 7), extent(0, 8)];
    let report = with_destination(
        &mut there,
        |_| Then::Listen,
        |socket| serve(&pages, socket, &hot(&wanted), &Unobserved).expect("served"),
    );
    assert_complete(&there);
    let lazy: Vec<_> = pages.order.lock().unwrap().iter().filter(|at| at.block.get() != 1).copied().collect();
    assert_eq!(lazy[..4], wanted);
    assert_eq!(report.learned, hot(&wanted), "what was hot stays hot");
}

#[test]
fn behind_the_first_hot_extents_those_beside_each_come_with_it() {
    let (mut pages, mut there) = (memory(&[]), destination());
    pages.grain = 8;
    // Of the first block all but what is a hole, in an order that jumps; the first 128 recorded come alone.
    let far_apart: Vec<_> = (0..128).map(|n| extent(0, n * 37 % 128)).chain([extent(2, 13)]).collect();
    let report = with_destination(
        &mut there,
        |_| Then::Listen,
        |socket| serve(&pages, socket, &hot(&far_apart), &Unobserved).expect("served"),
    );
    assert_complete(&there);
    let lazy: Vec<_> = pages.order.lock().unwrap().iter().filter(|at| at.block.get() != 1).copied().collect();
    let alone: Vec<_> = far_apart[..128].iter().filter(|at| !pages.held(**at).is_none()).copied().collect();
    let (first, then) = lazy.split_at(alone.len());
    assert_eq!(first, alone);
    assert_eq!(then[..8], (8..16).map(|n| extent(2, n)).collect::<Vec<_>>());
    let sent = [alone.as_slice(), &far_apart[128..]].concat();
    assert_eq!(report.learned, hot(&sent), "what only came with it is not hot");
}

#[test]
fn a_damaged_extent_never_reaches_the_guest() {
    let bad = extent(0, 80);
    for asked in [true, false] {
        let (pages, mut there) = (memory(&[bad]), destination());
        let touch = |there: &mut Destination| {
            if asked {
                there.touch(0, 80 * 16 + 4);
            }
            Then::Listen
        };
        let error = with_destination(&mut there, touch, |socket| {
            serve(&pages, socket, &HotList::default(), &Unobserved).expect_err("damaged")
        });
        let PageServerError::Page { source: Error::Damaged { block, block_offset, .. }, stage } = error else {
            panic!("{error:?}")
        };
        assert_eq!((block.as_str(), block_offset, stage), ("ram0", 80 * 65536, Stage::Serving));
        assert_eq!(there.state(), State::Running);
        assert!((0..16).all(|page| !there.has(0, 80 * 16 + page)), "a page of it was sent");
    }
}

#[test]
fn damage_in_an_eager_block_is_found_before_anything_runs() {
    let (pages, mut there) = (memory(&[extent(1, 2)]), destination());
    let error = with_destination(
        &mut there,
        |_| Then::Listen,
        |socket| serve(&pages, socket, &HotList::default(), &Unobserved).expect_err("damaged"),
    );
    assert!(matches!(error, PageServerError::Page { stage: Stage::Opening, .. }), "{error:?}");
    assert_ne!(there.state(), State::Running);
}

/// Serves until the destination has closed the connection after `reads` reads with a running guest.
fn broken_off(there: &mut Destination, reads: usize) -> PageServerError {
    let mut left = reads;
    let mut touch = restless(37);
    let close = move |there: &mut Destination| {
        if there.state() == State::Running {
            left = left.saturating_sub(1);
        }
        if left == 0 { Then::Close } else { touch(there) }
    };
    let pages = memory(&[]);
    with_destination(there, close, |socket| {
        serve(&pages, socket, &HotList::default(), &Unobserved).expect_err("the connection is closed")
    })
}

#[test]
fn another_server_goes_on_where_one_died_twice() {
    for reads in [1, 2, 20, 60] {
        let mut there = destination();
        let error = broken_off(&mut there, reads);
        // With the first reads, the answer that the devices are loaded may not have been heard.
        assert!(matches!(error, PageServerError::Lost { stage: Stage::Serving | Stage::Opening }), "{error:?}");
        let pages = memory(&[]);
        for closes in [true, false] {
            there.lose_connection();
            there.reconnect();
            let mut touch = restless(16);
            let resumed = |there: &mut Destination| match there.state() {
                State::Running if closes => Then::Close,
                _ => touch(there),
            };
            let outcome = with_destination(&mut there, resumed, |socket| {
                resume(&pages, socket, &HotList::default(), &Unobserved)
            });
            assert_eq!(outcome.is_err(), closes, "{outcome:?}");
        }
        assert_complete(&there);
        let extents = (2048 - 512) / 16 + 19;
        let reads = pages.reads.load(Ordering::Relaxed);
        assert!(reads <= extents + 2 * 64, "{reads} reads: the second server began anew");
    }
}

#[test]
fn a_destination_that_dies_early_is_told_from_one_that_can_be_resumed() {
    let (pages, mut there) = (memory(&[]), destination());
    let error = with_destination(
        &mut there,
        |_| Then::Close,
        |socket| serve(&pages, socket, &HotList::default(), &Unobserved).expect_err("closed"),
    );
    assert_eq!(error.stage(), Stage::Opening);
    let nobody = tempfile::tempdir().unwrap();
    let error = serve(&pages, &nobody.path().join("none"), &HotList::default(), &Unobserved).expect_err("nobody");
    assert!(matches!(error, PageServerError::Connect { stage: Stage::Opening, .. }), "{error:?}");
    let error = resume(&pages, &nobody.path().join("none"), &HotList::default(), &Unobserved).expect_err("nobody");
    assert!(matches!(error, PageServerError::Connect { stage: Stage::Serving, .. }), "{error:?}");
}

#[test]
fn what_the_destination_says_is_not_trusted() {
    let failed = b"\0\x01\0\x04\0\0\0\x05".to_vec();
    let early = b"\0\x01\0\x04\0\0\0\0".to_vec();
    let outside = b"\0\x03\0\x11\0\0\0\x01\0\0\0\0\0\0\x10\0\x04ram0".to_vec();
    let noise = vec![0xff; 4000];
    type Expected = fn(&PageServerError) -> bool;
    let cases: [(Vec<u8>, Expected); 4] = [
        (failed, |error| matches!(error, PageServerError::GivenUp { code: 5, .. })),
        (early, |error| matches!(error, PageServerError::Lost { .. })),
        (outside, |error| matches!(error, PageServerError::Protocol { .. })),
        (noise, |error| matches!(error, PageServerError::Protocol { .. })),
    ];
    for (words, expected) in cases {
        let (pages, mut there) = (memory(&[]), destination());
        let mut unsaid = words.clone();
        let say = |there: &mut Destination| match there.state() {
            State::Running => Then::Say(std::mem::take(&mut unsaid)),
            _ => Then::Listen,
        };
        let error = with_destination(&mut there, say, |socket| {
            serve(&pages, socket, &HotList::default(), &Unobserved).expect_err("refused")
        });
        assert!(expected(&error), "{error:?} for {:02x?}", &words[..words.len().min(20)]);
    }
}

#[test]
fn an_observer_hears_each_step_once_and_in_order() {
    #[derive(Default)]
    struct Heard(Mutex<Vec<Notice>>);
    impl Observer for Heard {
        fn notice(&self, notice: Notice) {
            self.0.lock().unwrap().push(notice);
        }
    }
    let (pages, mut there, heard) = (memory(&[]), destination(), Heard::default());
    let slow = |_: &mut Destination| {
        std::thread::sleep(Duration::from_millis(2));
        Then::Listen
    };
    with_destination(&mut there, slow, |socket| serve(&pages, socket, &HotList::default(), &heard).expect("served"));
    let heard = heard.0.into_inner().unwrap();
    let steps: Vec<_> = heard.iter().filter(|notice| !matches!(notice, Notice::Progress { .. })).collect();
    assert!(
        matches!(steps[..], [Notice::PackageSent { .. }, Notice::DevicesLoaded { .. }, Notice::Hydrated { .. }]),
        "{heard:?}"
    );
    assert!(heard.iter().any(|notice| matches!(notice, Notice::Progress { pages_held, .. } if *pages_held > 1500)));
}
