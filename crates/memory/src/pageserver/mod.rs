//! The page server: a lazy revert's other half, which gives a running guest its memory.
//!
//! A fresh QEMU is told that a machine migrates to it; we play the machine's old home. It gets the devices at
//! once and runs. Pages come when the guest touches them, and in the background until all are there. What goes
//! over the socket is `keyframe_vmstate::postcopy`'s business; here are the files, the threads and the order:
//!
//! 1. what the guest waits for, its whole verified extent with the page itself first;
//! 2. the extents behind it;
//! 3. the hot list, in its order;
//! 4. everything else that the snapshot holds, from front to back.
//!
//! Zero pages are not pushed at all: the destination's memory was discarded, and what never came is zero once
//! the migration is over.
//!
//! ```text
//!   reader thread ── reads and verifies ──> ring (4 MiB) ──> serving thread ──> socket ──> QEMU
//!        ^                                     wishes <──────────┘   ^─────── requests ──────┘
//! ```
//!
//! No page is sent that was not verified. Memory does not grow with the guest but for one bit a page and one bit an extent.
//! When the server dies, QEMU pauses the migration and keeps what it has; [`resume`] takes it up again.

mod config;
mod error;
mod extent_set;
mod learned;
mod opening;
mod page_source;
mod reader;
mod recovery;
mod report;
mod ring;
mod wire;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use keyframe_vmstate::ExtentIndex;
use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::postcopy::{Source, extent_run, pages_of};
use keyframe_vmstate::ram::RamLayout;

pub use config::{Errand, ExportAt, ImageAt, ServerConfig, run};
pub use error::{PageServerError, Stage};
use extent_set::ExtentSet;
pub use page_source::{ExtentAt, Held, ImagePages, PageSource};
pub use recovery::{RecoveryError, invite};
pub use report::{Notice, Observer, ServeFigures, ServeReport, Unobserved};
use ring::Ring;
use wire::{Parts, Wire, micros};

/// Connects to a QEMU that awaits a migration at `socket` and serves it until its memory is complete. `hot`
/// is sent first, in its order.
///
/// QEMU runs with `-incoming defer` and capability `postcopy-ram`, and is given `migrate-incoming`; that may be later: until
/// then the hot extents are read.
///
/// # Errors
/// [`PageServerError`]; its [`PageServerError::stage`] says whether QEMU can be taken up again by [`resume`].
pub fn serve(
    pages: &dyn PageSource,
    socket: &Path,
    hot: &HotList,
    observer: &dyn Observer,
) -> Result<ServeReport, PageServerError> {
    let round = Round::new(pages, hot, observer, Stage::Opening);
    let lazy = opening::lazy_blocks(pages.ram());
    // The eager blocks are not the reader's business.
    all_extents(pages.ram()).filter(|at| !lazy.contains(&at.block)).for_each(|at| round.finished.insert(at));
    round.converse(|| {
        let stream = opening::connect(socket, Stage::Opening, observer)?;
        opening::prepare(&stream, Stage::Opening)?;
        let (source, bytes_sent) = opening::open(&stream, pages, &lazy)?;
        let after_us = micros(round.started.elapsed());
        observer.notice(Notice::PackageSent { after_us });
        let figures = ServeFigures { bytes_sent, package_us: after_us, ..ServeFigures::default() };
        Ok((stream, source, figures))
    })
}

/// Connects to a QEMU whose postcopy is paused and that was given `migrate-recover` for `socket`, learns what it
/// has, and serves it the rest.
///
/// # Errors
/// [`PageServerError`]; after any of them QEMU can be taken up again.
pub fn resume(
    pages: &dyn PageSource,
    socket: &Path,
    hot: &HotList,
    observer: &dyn Observer,
) -> Result<ServeReport, PageServerError> {
    let round = Round::new(pages, hot, observer, Stage::Serving);
    let stream = opening::connect(socket, Stage::Serving, observer)?;
    opening::prepare(&stream, Stage::Serving)?;
    let source = opening::resume(&stream, pages.ram())?;
    mark_received(pages, &source, &round.finished);
    observer.notice(Notice::Resumed { after_us: micros(round.started.elapsed()) });
    round.converse(|| Ok((stream, source, ServeFigures::default())))
}

/// One server's work on one connection.
struct Round<'a> {
    pages: &'a dyn PageSource,
    hot: &'a HotList,
    observer: &'a dyn Observer,
    started: Instant,
    /// Extents that need not be read for the background any more.
    finished: ExtentSet,
    /// How far the revert had come before.
    stage: Stage,
}

impl<'a> Round<'a> {
    fn new(pages: &'a dyn PageSource, hot: &'a HotList, observer: &'a dyn Observer, stage: Stage) -> Self {
        let finished = ExtentSet::empty(pages.ram());
        Self { pages, hot, observer, started: Instant::now(), finished, stage }
    }

    /// Runs the reader beside the conversation. It starts first, so that the hot extents are ready when `open`
    /// comes back.
    fn converse(
        &self,
        open: impl FnOnce() -> Result<(UnixStream, Source, ServeFigures), PageServerError>,
    ) -> Result<ServeReport, PageServerError> {
        let Self { pages, hot, observer, started, ref finished, stage } = *self;
        let set_up = |source| PageServerError::Setup { stage, source };
        let ring = Ring::new().map_err(set_up)?;
        let pages_held = count_held(pages);
        std::thread::scope(|threads| {
            let reader = std::thread::Builder::new().name("page-reader".to_owned());
            reader.spawn_scoped(threads, || reader::run(pages, &ring, finished, hot)).map_err(set_up)?;
            let served = open().and_then(|(socket, source, figures)| {
                let (socket, ring) = (&socket, &ring);
                let parts = Parts { socket, pages, ring, finished, observer, started, hot, pages_held };
                Wire::new(parts, source, figures).run()
            });
            ring.stop();
            served.map(|(figures, learned)| ServeReport { figures, learned })
        })
    }
}

/// Every extent of the machine's memory, in order.
fn all_extents(ram: &Arc<RamLayout>) -> impl Iterator<Item = ExtentAt> {
    ram.iter().flat_map(|(block, ram)| {
        (0..ram.pages().extents()).filter_map(move |n| Some(ExtentAt { block, extent: ExtentIndex::new(n)? }))
    })
}

fn count_held(pages: &dyn PageSource) -> u64 {
    all_extents(pages.ram()).map(|at| u64::from(pages.held(at).count())).sum()
}

/// Spares the reader the extents of which the destination has every page that the snapshot holds. What it
/// lacks of them is zero.
fn mark_received(pages: &dyn PageSource, source: &Source, finished: &ExtentSet) {
    for at in all_extents(pages.ram()) {
        let held = pages.held(at);
        let there = |position: usize, page| !held.contains(position) || source.is_page_sent(at.block, page);
        let run = extent_run(pages.ram(), at.block, at.extent);
        if run.is_some_and(|run| pages_of(run).enumerate().all(|(position, page)| there(position, page))) {
            finished.insert(at);
        }
    }
}

/// Length of an extent in bytes: 64 KiB, less at its block's end, 0 for one that does not exist.
fn extent_bytes(ram: &RamLayout, at: ExtentAt) -> usize {
    let pages = ram.get(at.block).map_or(0, |block| block.pages().pages_in_extent(at.extent));
    pages * keyframe_vmstate::PAGE_SIZE
}
