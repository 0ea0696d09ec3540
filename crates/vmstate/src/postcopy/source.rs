//! The source's side of a postcopy migration, from the first byte to the last.
//!
//! [`Opening`] writes everything up to the instant at which the destination's vCPUs may run, and becomes a
//! [`Source`], which answers and pushes pages. After a broken connection, [`Resume`] learns which pages have
//! arrived and becomes a [`Source`] again. None of them does I/O: bytes are appended to a buffer of the caller's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frames::{self, Command};
use super::pages::{self, Pages, Zeros};
use super::return_path::{Located, Message, ReturnPath};
use super::{PostcopyError, pages_of};
use crate::config::Configuration;
use crate::limits::MAX_DEVICE_STATE_BYTES;
use crate::mapped::{PageBitmap, PageRun};
use crate::ram::RamLayout;
use crate::{BlockIndex, PageIndex};

/// Asked right behind the header: the answer says that the return path works.
const PING_OPEN: u32 = 1;
/// Asked in the package behind the devices: the answer says that they are loaded. QEMU's own source uses it so.
const PING_DEVICES: u32 = 3;
/// What the destination answers to a resume. Source: QEMU migration/migration.h, `MIGRATION_RESUME_ACK_VALUE`.
const RESUME_CONSENT: u32 = 1;
/// What is out of place when a bitmap or a consent comes unasked.
const STRAY: &str = "an answer of a recovery that is not under way";

/// A stream from its start to the package. Feed it all pages of the eager blocks, then [`Opening::package`].
#[derive(Debug)]
pub struct Opening {
    ram: Arc<RamLayout>,
    lazy: Vec<BlockIndex>,
    sent: Vec<PageBitmap>,
}

impl Opening {
    /// Appends header, configuration, return path, advice and the start of RAM. `lazy` names the blocks whose
    /// pages come later, when asked for or in the background; all pages of the others go in before the package.
    ///
    /// # Errors
    /// [`PostcopyError::NothingLazy`] without a lazy block: QEMU's destination cannot run a postcopy without one.
    pub fn start(
        machine: &Configuration,
        ram: Arc<RamLayout>,
        lazy: &[BlockIndex],
        out: &mut Vec<u8>,
    ) -> Result<Self, PostcopyError> {
        let lazy: Vec<BlockIndex> = ram.iter().map(|(block, _)| block).filter(|block| lazy.contains(block)).collect();
        if lazy.is_empty() {
            return Err(PostcopyError::NothingLazy);
        }
        frames::put_header(out, machine);
        frames::put_command(out, Command::OpenReturnPath, &[]);
        frames::put_ping(out, PING_OPEN);
        frames::put_advise(out);
        frames::put_ram_start(out, &ram);
        let sent = empty_sets(&ram);
        Ok(Self { ram, lazy, sent })
    }

    /// The blocks whose pages have to be given to [`Opening::eager`].
    pub fn eager_blocks(&self) -> impl Iterator<Item = BlockIndex> {
        self.ram.iter().map(|(block, _)| block).filter(|block| !self.lazy.contains(block))
    }

    /// Appends pages of an eager block, zero pages too; those of a lazy block, and those already given, are
    /// left out.
    pub fn eager(&mut self, pages: Pages<'_>, out: &mut Vec<u8>) {
        let run = pages.run();
        let known = (self.ram.get(run.block), self.sent.get_mut(run.block.get()));
        if let (Some(block), Some(sent), false) = (known.0, known.1, self.lazy.contains(&run.block)) {
            pages::put_section(out, block, sent, pages, run.first, Zeros::Send);
        }
    }

    /// Appends the discards and the package: listen, the device sections of the snapshot, run.
    /// `devices` are whole sections without the end-of-file byte.
    ///
    /// # Errors
    /// [`PostcopyError::EagerPagesMissing`]; [`PostcopyError::DeviceState`] above [`MAX_DEVICE_STATE_BYTES`].
    pub fn package(self, devices: &[u8], out: &mut Vec<u8>) -> Result<Source, PostcopyError> {
        let missing = self
            .eager_blocks()
            .filter_map(|block| self.sent.get(block.get()))
            .map(|sent| sent.pages().get().saturating_sub(sent.count()))
            .sum();
        if missing > 0 {
            return Err(PostcopyError::EagerPagesMissing { missing });
        }
        if devices.len() as u64 > MAX_DEVICE_STATE_BYTES {
            return Err(PostcopyError::DeviceState { bytes: devices.len(), limit: MAX_DEVICE_STATE_BYTES });
        }
        for block in self.lazy.iter().filter_map(|block| self.ram.get(*block)) {
            frames::put_discard(out, block);
        }
        let mut package = Vec::with_capacity(devices.len().saturating_add(64));
        frames::put_command(&mut package, Command::PostcopyListen, &[]);
        package.extend_from_slice(devices);
        frames::put_ping(&mut package, PING_DEVICES);
        frames::put_command(&mut package, Command::PostcopyRun, &[]);
        // At most MAX_DEVICE_STATE_BYTES and a few more.
        frames::put_command(out, Command::Packaged, &(package.len() as u32).to_be_bytes());
        out.append(&mut package);
        Ok(Source::new(ReturnPath::new(Arc::clone(&self.ram)), self.ram, self.sent))
    }
}

/// A source whose package is out, or whose resume was accepted: it answers requests and pushes pages.
#[derive(Debug)]
pub struct Source {
    ram: Arc<RamLayout>,
    sent: Vec<PageBitmap>,
    return_path: ReturnPath,
    requests: VecDeque<PageRun>,
    devices_loaded: bool,
    shut: Option<u32>,
}

impl Source {
    fn new(return_path: ReturnPath, ram: Arc<RamLayout>, sent: Vec<PageBitmap>) -> Self {
        Self { ram, sent, return_path, requests: VecDeque::new(), devices_loaded: false, shut: None }
    }

    /// The machine's RAM blocks.
    #[must_use]
    pub const fn ram(&self) -> &Arc<RamLayout> {
        &self.ram
    }

    /// Appends one section with those of these pages that were not sent before, the one at `from` first.
    /// Says how many that were. No page is ever sent twice: the destination would take it for an error.
    pub fn send(&mut self, pages: Pages<'_>, from: PageIndex, zeros: Zeros, out: &mut Vec<u8>) -> u64 {
        let block = pages.run().block;
        match (self.ram.get(block), self.sent.get_mut(block.get())) {
            (Some(block), Some(sent)) => pages::put_section(out, block, sent, pages, from, zeros),
            _ => 0,
        }
    }

    /// Has every page of the run been sent?
    #[must_use]
    pub fn is_sent(&self, run: PageRun) -> bool {
        self.sent.get(run.block.get()).is_some_and(|sent| pages_of(run).all(|page| sent.get(page)))
    }

    /// Has this page been sent?
    #[must_use]
    pub fn is_page_sent(&self, block: BlockIndex, page: PageIndex) -> bool {
        self.sent.get(block.get()).is_some_and(|sent| sent.get(page))
    }

    /// How many pages of all blocks were sent, on this connection or before.
    #[must_use]
    pub fn pages_sent(&self) -> u64 {
        self.sent.iter().map(PageBitmap::count).sum()
    }

    /// Takes bytes of the return path. Requests queue up: at most one for every 16 bytes, so drain them with
    /// [`Source::next_request`] before the next call.
    ///
    /// # Errors
    /// Whatever [`ReturnPath::feed`] finds, and [`PostcopyError::OutOfPlace`] for recovery's messages.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), PostcopyError> {
        let mut stray = None;
        let Self { return_path, requests, devices_loaded, shut, .. } = self;
        let fed = return_path.feed(bytes, |Located { offset, message }| match message {
            Message::Request(run) => requests.push_back(run),
            Message::Pong(value) => *devices_loaded |= value == PING_DEVICES,
            Message::Shut { error } => *shut = Some(error),
            Message::Received { .. } | Message::ResumeAck(_) => stray = stray.or(Some(offset)),
            Message::SwitchoverAck => {}
        });
        // A stray message came before whatever else is wrong with these bytes.
        stray.map_or(fed, |offset| Err(PostcopyError::OutOfPlace { offset, what: STRAY }))
    }

    /// The oldest request not yet handed out.
    pub fn next_request(&mut self) -> Option<PageRun> {
        self.requests.pop_front()
    }

    /// Has the destination loaded its devices? Its vCPUs run within moments then, unless it was started paused.
    #[must_use]
    pub const fn devices_loaded(&self) -> bool {
        self.devices_loaded
    }

    /// Set once the destination has said that it is done; 0 is success.
    #[must_use]
    pub const fn shut(&self) -> Option<u32> {
        self.shut
    }

    /// Did the return path break off within a message?
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.return_path.is_mid_message()
    }

    /// Appends the end of RAM and of the stream. Pages not sent are zero from then on, in blocks that were
    /// discarded, which the lazy ones were.
    ///
    /// # Errors
    /// [`PostcopyError::EndTooEarly`] before the devices are loaded: the destination's loader might wait for a
    /// page that nobody would read off the stream any more.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), PostcopyError> {
        if !self.devices_loaded {
            return Err(PostcopyError::EndTooEarly);
        }
        frames::put_end(out);
        Ok(())
    }
}

/// A conversation taken up again with a destination that is `postcopy-paused` and has a new connection.
#[derive(Debug)]
pub struct Resume {
    source: Source,
    /// Blocks whose bitmap has not come; `None` in the place of one that has.
    awaited: Vec<Option<BlockIndex>>,
    acknowledged: bool,
}

/// Where a resume stands.
#[derive(Debug)]
pub enum Resumed {
    /// Answers are missing; read on.
    Waiting(Resume),
    /// Both sides agree which pages are there, and pages flow again.
    Done(Source),
}

impl Resume {
    /// Appends the questions which pages have arrived, one for each block.
    #[must_use]
    pub fn start(ram: Arc<RamLayout>, out: &mut Vec<u8>) -> Self {
        for (_, block) in ram.iter() {
            frames::put_recv_bitmap(out, block);
        }
        let awaited = ram.iter().map(|(block, _)| Some(block)).collect();
        let sent = empty_sets(&ram);
        let source = Source::new(ReturnPath::new(Arc::clone(&ram)), ram, sent);
        Self { source, awaited, acknowledged: false }
    }

    /// Takes bytes of the return path. When the last bitmap is in, appends the command to resume.
    ///
    /// # Errors
    /// Whatever [`ReturnPath::feed`] finds; [`PostcopyError::OutOfPlace`] for an answer that was not asked for;
    /// [`PostcopyError::ResumeRefused`].
    pub fn receive(mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Resumed, PostcopyError> {
        let mut messages = Vec::new();
        let fed = self.source.return_path.feed(bytes, |located| messages.push(located));
        for Located { offset, message } in messages {
            self.take(offset, message, out)?;
        }
        fed?;
        if self.acknowledged { Ok(Resumed::Done(self.source)) } else { Ok(Resumed::Waiting(self)) }
    }

    /// Set when the destination gave up instead of answering; 0 would be success, which this cannot be.
    #[must_use]
    pub const fn shut(&self) -> Option<u32> {
        self.source.shut
    }

    fn take(&mut self, offset: u64, message: Message, out: &mut Vec<u8>) -> Result<(), PostcopyError> {
        let stray = PostcopyError::OutOfPlace { offset, what: STRAY };
        match message {
            Message::Received { .. } if self.acknowledged => Err(stray),
            Message::Received { block, pages } => self.take_bitmap(offset, block, pages, out),
            Message::ResumeAck(_) if self.acknowledged || !self.all_known() => Err(stray),
            Message::ResumeAck(RESUME_CONSENT) => {
                self.acknowledged = true;
                // Only a destination whose devices are loaded can be resumed.
                self.source.devices_loaded = true;
                Ok(())
            }
            Message::ResumeAck(value) => Err(PostcopyError::ResumeRefused { offset, value }),
            Message::Request(run) if self.acknowledged => {
                self.source.requests.push_back(run);
                Ok(())
            }
            Message::Shut { error } => {
                self.source.shut = Some(error);
                Ok(())
            }
            Message::Request(_) => Err(PostcopyError::OutOfPlace { offset, what: "a page request before the resume" }),
            Message::Pong(_) | Message::SwitchoverAck => Ok(()),
        }
    }

    fn take_bitmap(
        &mut self,
        offset: u64,
        block: BlockIndex,
        pages: PageBitmap,
        out: &mut Vec<u8>,
    ) -> Result<(), PostcopyError> {
        let awaited = self.awaited.get_mut(block.get()).and_then(Option::take);
        let (Some(_), Some(sent)) = (awaited, self.source.sent.get_mut(block.get())) else {
            return Err(PostcopyError::OutOfPlace { offset, what: "a second bitmap of one RAM block" });
        };
        *sent = pages;
        if self.all_known() {
            frames::put_command(out, Command::PostcopyResume, &[]);
        }
        Ok(())
    }

    fn all_known(&self) -> bool {
        self.awaited.iter().all(Option::is_none)
    }
}

fn empty_sets(ram: &RamLayout) -> Vec<PageBitmap> {
    ram.iter().map(|(_, block)| PageBitmap::new(block.pages())).collect()
}
