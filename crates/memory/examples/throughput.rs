//! How fast this machine decodes, captures and verifies, without QEMU:
//! `throughput DIR [PAGES [WRITERS [BUFFER_MIB]]]` (default 262144 pages, 1 GiB).

use std::io::{PipeWriter, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use keyframe_memory::MemoryImage;
use keyframe_memory::capture::{CaptureOptions, CaptureProgress, ImagePaths, capture, channel};
use keyframe_memory::verify::{VerifyProgress, verify_all};
use keyframe_vmstate::decode::{Decoder, Header, Sink};
use keyframe_vmstate::encode::{Frames, Part, ram_part, ram_section_end};
use keyframe_vmstate::testing::{Machine, SECTION_ID, device_state, stream_header};
use keyframe_vmstate::{self as vmstate, BlockIndex, Page, PageCount, PageIndex};

/// Pages of one section, made once and sent again and again with new addresses.
const SECTION_PAGES: u64 = 1024;

struct Generator {
    sample: Machine,
    header: Header,
    pages: u64,
}

impl Generator {
    fn new(pages: u64) -> Result<Self, vmstate::Error> {
        let sample = Machine::new(&[("pc.ram", SECTION_PAGES)], 7);
        let mut ram = vmstate::ram::RamLayout::default();
        let id = vmstate::ram::BlockId::parse(b"pc.ram", 0)?;
        let count = PageCount::new(pages).unwrap_or(PageCount::ZERO);
        ram.push(vmstate::ram::RamBlock::new(id, count), 0)?;
        let header = Header { ram, ..sample.header.clone() };
        Ok(Self { sample, header, pages })
    }

    /// Calls `send` with the stream's pieces.
    fn run<E>(&self, mut send: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        send(&stream_header(&self.header))?;
        let places = self.sample.places();
        for first in (0..self.pages).step_by(SECTION_PAGES as usize) {
            let (mut out, mut frames) = (Vec::with_capacity(5 << 20), Frames::new());
            ram_part(&mut out, Part::More, SECTION_ID);
            for (place, page) in places.iter().zip(first..self.pages) {
                let Some(page) = PageIndex::new(page) else {
                    break;
                };
                let bytes = Some(self.sample.page(*place));
                frames.push(&mut out, &self.header.ram, (place.0, page), bytes);
            }
            ram_section_end(&mut out, SECTION_ID);
            send(&out)?;
        }
        send(&device_state(1))
    }
}

/// Adds up one byte of each page, so that the decoder's work cannot be left out.
#[derive(Default)]
struct Nothing(u64);

impl Sink for Nothing {
    type Error = vmstate::Error;

    fn header(&mut self, _: &Header) -> Result<(), Self::Error> {
        Ok(())
    }

    fn page(&mut self, _: BlockIndex, _: PageIndex, bytes: &Page) -> Result<(), Self::Error> {
        self.0 += u64::from(bytes[77]);
        Ok(())
    }

    fn zero_page(&mut self, _: BlockIndex, _: PageIndex) -> Result<(), Self::Error> {
        Ok(())
    }

    fn device_state(&mut self, _: &[u8]) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let dir = args.first().ok_or("usage: throughput DIR [PAGES [WRITERS [BUFFER_MIB]]]")?;
    let pages = args.get(1).map_or(Ok(262_144), |n| n.parse())?;
    let mut options = CaptureOptions::default();
    if let Some(writers) = args.get(2) {
        options.writers = writers.parse()?;
    }
    if let Some(mib) = args.get(3) {
        options.buffer_bytes = mib.parse::<usize>()? << 20;
    }
    let generator = Generator::new(pages)?;
    let gigabytes = pages as f64 * 4096.0 / 1e9;
    let rate = |start: Instant| gigabytes / start.elapsed().as_secs_f64();

    let (mut decoder, mut sink, mut seconds) = (Decoder::new(), Nothing::default(), 0.0);
    generator.run(|piece| {
        let start = Instant::now();
        let fed = piece.chunks(256 << 10).try_for_each(|part| decoder.feed(part, &mut sink));
        seconds += start.elapsed().as_secs_f64();
        fed
    })?;
    decoder.finish()?;
    println!("decode   {:6.2} GB/s (check {})", gigabytes / seconds, sink.0);

    let paths = ImagePaths::in_dir(Path::new(dir));
    let (for_qemu, input) = channel()?;
    let start = Instant::now();
    let (progress, cancel) = (CaptureProgress::default(), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        let generator = &generator;
        scope.spawn(move || {
            let mut pipe = PipeWriter::from(for_qemu);
            generator.run(|piece| pipe.write_all(piece))
        });
        capture(input, &paths, &options, &progress, &cancel)
    })?;
    println!("capture  {:6.2} GB/s ({:?})", rate(start), report.direct_io);
    println!("         {progress:?}");

    let image = MemoryImage::open(&paths.mapped, &paths.sums)?;
    for what in ["verify from disk", "verify from cache"] {
        let (start, two) = (Instant::now(), NonZeroUsize::new(2).ok_or("two")?);
        let verified = verify_all(&image, two, &VerifyProgress::default(), &cancel)?;
        println!("{what} {:6.2} GB/s, intact: {}", rate(start), verified.is_intact());
    }
    Ok(())
}
