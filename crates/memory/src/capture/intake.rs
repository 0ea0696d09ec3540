//! Pages from the decoder into batches: the reading thread's half of a capture.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keyframe_vmstate::decode::{Header, Sink};
use keyframe_vmstate::hot::{HotList, HotRecorder};
use keyframe_vmstate::mapped::{MappedLayout, PageBitmap};
use keyframe_vmstate::{self as vmstate, BlockIndex, PAGE_SIZE, Page, PageIndex};

use super::batch::Batch;
use super::progress::CaptureProgress;
use super::queue::Queue;
use super::sums::SumTable;
use super::target::{Files, Target};
use crate::Error;

/// Receives the decoder's findings.
pub(super) struct Intake<'p> {
    queue: &'p Queue<'p>,
    progress: &'p CaptureProgress,
    cancel: &'p AtomicBool,
    phase: Phase<'p>,
}

enum Phase<'p> {
    /// The stream has not said what the machine's memory is.
    Waiting(Files),
    Running(Running<'p>),
    /// The header could not be dealt with; nothing follows.
    Failed,
}

struct Running<'p> {
    target: Arc<Target<'p>>,
    batch: Batch,
    /// Pages that have come, as bytes or as zeroes.
    seen: Vec<PageBitmap>,
    /// Pages that the image holds.
    held: Vec<PageBitmap>,
    /// Pages handed over since the queue was last drained; `None` while it never was, then `seen`
    /// says the same.
    under_way: Option<Vec<PageBitmap>>,
    order: Order,
    repeated: u64,
    devices_at: u64,
}

/// What the stream was, for the finishing.
pub(super) struct Received<'p> {
    pub target: Arc<Target<'p>>,
    pub held: Vec<PageBitmap>,
    pub hot: HotList,
    pub repeated: u64,
}

impl<'p> Intake<'p> {
    pub fn new(files: Files, queue: &'p Queue<'p>, progress: &'p CaptureProgress, cancel: &'p AtomicBool) -> Self {
        Self { queue, progress, cancel, phase: Phase::Waiting(files) }
    }

    /// Hands over the last batch.
    ///
    /// # Errors
    /// [`Error::Stream`] when no header has come.
    pub fn finish(self) -> Result<Received<'p>, Error> {
        let Phase::Running(running) = self.phase else {
            return Err(no_header());
        };
        self.queue.submit(running.batch, Arc::clone(&running.target));
        Ok(Received {
            target: running.target,
            held: running.held,
            hot: running.order.recorder.finish(),
            repeated: running.repeated,
        })
    }

    fn start(&mut self, header: &Header) -> Result<(), Error> {
        let Phase::Waiting(files) = std::mem::replace(&mut self.phase, Phase::Failed) else {
            return Err(no_header());
        };
        let layout = MappedLayout::for_stream(header);
        let sized = files.cached.set_len(layout.ram_end());
        sized.map_err(Error::io("size", &files.path))?;
        let none = || header.ram.blocks().iter().map(|b| PageBitmap::new(b.pages())).collect();
        self.progress.ram_bytes.store(header.ram.total_bytes(), Ordering::Relaxed);
        let devices_at = layout.devices_offset();
        let sums = SumTable::new(&header.ram);
        let target = Target { files, layout, sums, progress: self.progress };
        self.phase = Phase::Running(Running {
            target: Arc::new(target),
            batch: self.queue.take_free(self.cancel)?,
            seen: none(),
            held: none(),
            under_way: None,
            order: Order { recorder: HotRecorder::new(&header.ram), last: None },
            repeated: 0,
            devices_at,
        });
        Ok(())
    }

    /// A page, or `None` for zeroes.
    fn arrived(&mut self, (block, page): (BlockIndex, PageIndex), bytes: Option<&Page>) -> Result<(), Error> {
        let Phase::Running(running) = &mut self.phase else {
            return Err(no_header());
        };
        running.order.note(&running.seen, (block, page));
        let seen = insert(&mut running.seen, block, page);
        let held = running.held.get(block.get()).is_some_and(|held| held.get(page));
        if seen && (held || bytes.is_some()) {
            self.again((block, page))?;
        } else if !seen {
            self.progress.seen_bytes.fetch_add(PAGE_SIZE as u64, Ordering::Relaxed);
        }
        let Phase::Running(running) = &mut self.phase else {
            return Err(no_header());
        };
        if running.batch.is_full() {
            hand_over(running, self.queue, self.cancel, self.progress)?;
        }
        if let Some(under_way) = &mut running.under_way {
            insert(under_way, block, page);
        }
        match bytes {
            Some(bytes) => {
                insert(&mut running.held, block, page);
                running.batch.push(block, page, bytes);
            }
            None if held => {
                // The place in the file must become zero too, not only the bit.
                remove(&mut running.held, block, page);
                running.batch.push(block, page, &[0; PAGE_SIZE]);
            }
            None if seen => {}
            None => running.batch.push_zero(block, page),
        }
        Ok(())
    }

    /// A page comes again. Its earlier bytes must be on the disk before the new ones are handed
    /// over, for writers do not keep the order of batches.
    fn again(&mut self, (block, page): (BlockIndex, PageIndex)) -> Result<(), Error> {
        let Phase::Running(running) = &mut self.phase else {
            return Err(no_header());
        };
        running.repeated += 1;
        let under_way = running.under_way.as_ref();
        if under_way.is_none_or(|pages| pages.get(block.get()).is_some_and(|b| b.get(page))) {
            hand_over(running, self.queue, self.cancel, self.progress)?;
            self.queue.drain(self.cancel)?;
            let blocks = running.target.layout.blocks().iter();
            running.under_way = Some(blocks.map(|b| PageBitmap::new(b.block().pages())).collect());
        }
        let ram = running.target.layout.ram();
        if let Some(ordinal) = ram.extent_ordinal(block, page.extent()) {
            running.target.sums.reread(ordinal);
        }
        Ok(())
    }
}

impl Sink for Intake<'_> {
    type Error = Error;

    fn header(&mut self, header: &Header) -> Result<(), Error> {
        self.start(header)
    }

    fn page(&mut self, block: BlockIndex, page: PageIndex, bytes: &Page) -> Result<(), Error> {
        // QEMU can be told not to look for zero pages; they still shall cost nothing.
        let zero = *bytes == [0; PAGE_SIZE];
        self.arrived((block, page), (!zero).then_some(bytes))
    }

    fn zero_page(&mut self, block: BlockIndex, page: PageIndex) -> Result<(), Error> {
        self.arrived((block, page), None)
    }

    fn device_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Phase::Running(running) = &mut self.phase else {
            return Err(no_header());
        };
        let target = &running.target;
        let written = target.files.cached.write_all_at(bytes, running.devices_at);
        written.map_err(|source| target.write_error(source))?;
        running.devices_at += bytes.len() as u64;
        Ok(())
    }
}

/// Hands the batch to the writers and takes a free one, noting how long that took.
fn hand_over<'p>(
    running: &mut Running<'p>,
    queue: &Queue<'p>,
    cancel: &AtomicBool,
    progress: &CaptureProgress,
) -> Result<(), Error> {
    let start = Instant::now();
    let free = queue.take_free(cancel)?;
    progress.waited(start.elapsed());
    let full = std::mem::replace(&mut running.batch, free);
    queue.submit(full, Arc::clone(&running.target));
    Ok(())
}

/// Tells pages that the guest wanted from those that QEMU's scan came by.
struct Order {
    recorder: HotRecorder,
    last: Option<(BlockIndex, PageIndex)>,
}

impl Order {
    /// The scan takes the next page that it has not sent; at a block's end it goes on with another
    /// block's first. Anything else is a jump: a guest waits for that page.
    fn note(&mut self, seen: &[PageBitmap], (block, page): (BlockIndex, PageIndex)) {
        let next_in = |block: BlockIndex, from: Option<PageIndex>| {
            seen.get(block.get()).and_then(|pages| pages.next(from?, false))
        };
        let expected = self
            .last
            .and_then(|(last_block, last)| next_in(last_block, last.checked_add(1)).map(|next| (last_block, next)));
        let scanned = match expected {
            Some(expected) => expected == (block, page),
            None => next_in(block, Some(PageIndex::FIRST)) == Some(page),
        };
        if !scanned {
            self.recorder.record(block, page);
        }
        self.last = Some((block, page));
    }
}

fn insert(bitmaps: &mut [PageBitmap], block: BlockIndex, page: PageIndex) -> bool {
    bitmaps.get_mut(block.get()).is_some_and(|bitmap| bitmap.insert(page))
}

fn remove(bitmaps: &mut [PageBitmap], block: BlockIndex, page: PageIndex) -> bool {
    bitmaps.get_mut(block.get()).is_some_and(|bitmap| bitmap.remove(page))
}

fn no_header() -> Error {
    Error::Stream(vmstate::Error::Truncated { offset: 0, what: "stream header" })
}
