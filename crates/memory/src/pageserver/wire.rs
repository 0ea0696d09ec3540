//! The serving thread: one socket, requests before everything else.
//!
//! The socket never blocks this thread but in `poll`. What goes out is one section at a time; the kernel's send
//! buffer behind it is kept small, because a request waits for all that is in it. While the destination asks,
//! it is answered; in between it gets what the reader has ready.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use keyframe_vmstate::hot::HotList;
use keyframe_vmstate::postcopy::{Pages, Source, Zeros, extent_run, pages_of};
use keyframe_vmstate::{EXTENT_SIZE, ExtentIndex, PageIndex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::extent_set::ExtentSet;
use super::learned::Learned;
use super::ring::{Buffer, Filled, Plan, Ring};
use super::{ExtentAt, Notice, Observer, PageServerError, PageSource, ServeFigures, Stage, extent_bytes};
use crate::ExtentBuf;

/// Requests that are taken in before the first is answered. QEMU has one under way for each thread that
/// waits; more than this and it waits a little for us to read on.
const MAX_REQUESTS: usize = 1024;

/// Bytes of the return path that are read at once: 256 requests.
const RECEIVE_BYTES: usize = 4096;

/// Extents behind one that was asked for that are wished for: the guest's next steps, likely.
const NEIGHBOURS: u64 = 2;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A request that is not answered yet.
struct Asked {
    at: ExtentAt,
    page: PageIndex,
    since: Instant,
}

/// Whether anything can be done without waiting.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Wait,
}

/// What the serving thread works with.
pub(super) struct Wire<'a> {
    socket: &'a UnixStream,
    pages: &'a dyn PageSource,
    ring: &'a Ring,
    finished: &'a ExtentSet,
    observer: &'a dyn Observer,
    started: Instant,
    source: Source,
    /// The section under way and how much of it the kernel has.
    out: Vec<u8>,
    out_at: usize,
    /// The request that the section under way answers came in then.
    answering: Option<Instant>,
    asked: VecDeque<Asked>,
    buffer: Buffer,
    stage: Stage,
    learned: Learned,
    figures: ServeFigures,
    progress_at: Instant,
    pages_held: u64,
}

/// What a [`Wire`] is made of, besides the state of the conversation.
pub(super) struct Parts<'a> {
    pub(super) socket: &'a UnixStream,
    pub(super) pages: &'a dyn PageSource,
    pub(super) ring: &'a Ring,
    pub(super) finished: &'a ExtentSet,
    pub(super) observer: &'a dyn Observer,
    pub(super) started: Instant,
    pub(super) hot: &'a HotList,
    pub(super) pages_held: u64,
}

impl<'a> Wire<'a> {
    pub(super) fn new(parts: Parts<'a>, source: Source, figures: ServeFigures) -> Self {
        let Parts { socket, pages, ring, finished, observer, started, hot, pages_held } = parts;
        Self {
            socket,
            pages,
            ring,
            finished,
            observer,
            started,
            stage: if source.devices_loaded() { Stage::Serving } else { Stage::Opening },
            source,
            out: Vec::with_capacity(2 * EXTENT_SIZE),
            out_at: 0,
            answering: None,
            asked: VecDeque::new(),
            buffer: ExtentBuf::new(),
            learned: Learned::new(pages.ram(), hot),
            figures,
            progress_at: started,
            pages_held,
        }
    }

    /// Serves until the destination says goodbye.
    pub(super) fn run(mut self) -> Result<(ServeFigures, HotList), PageServerError> {
        self.take_requests();
        loop {
            self.receive()?;
            if let Some(code) = self.source.shut() {
                return self.goodbye(code);
            }
            let idle = self.out.is_empty() && self.fill()? == Next::Wait;
            if idle && !self.ring.will_wait() {
                continue;
            }
            if idle || self.flush()? == Next::Wait {
                self.wait()?;
            }
            self.tell_progress();
        }
    }

    fn goodbye(mut self, code: u32) -> Result<(ServeFigures, HotList), PageServerError> {
        if code != 0 {
            return Err(PageServerError::GivenUp { stage: self.stage, code });
        }
        if self.stage != Stage::Ending {
            return Err(PageServerError::Lost { stage: self.stage });
        }
        let after_us = micros(self.started.elapsed());
        self.figures.hydrated_us = after_us;
        self.figures.hot_extents = self.learned.hot();
        self.observer.notice(Notice::Hydrated { after_us });
        Ok((self.figures, self.learned.finish()))
    }

    // ---- incoming

    /// Takes in what has arrived, as long as there is room for requests.
    fn receive(&mut self) -> Result<(), PageServerError> {
        let mut bytes = [0; RECEIVE_BYTES];
        while self.asked.len() < MAX_REQUESTS && self.source.shut().is_none() {
            let count = match recv(self.socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(PageServerError::Lost { stage: self.stage }),
                Ok((_, count)) => count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(self.socket_failed(error)),
            };
            let received = self.source.receive(bytes.get(..count).unwrap_or_default());
            self.note_devices();
            received.map_err(|source| PageServerError::Protocol { stage: self.stage, source })?;
            self.take_requests();
        }
        Ok(())
    }

    fn note_devices(&mut self) {
        if self.stage == Stage::Opening && self.source.devices_loaded() {
            self.stage = Stage::Serving;
            let after_us = micros(self.started.elapsed());
            self.figures.devices_us = after_us;
            self.observer.notice(Notice::DevicesLoaded { after_us });
        }
    }

    fn take_requests(&mut self) {
        let since = Instant::now();
        while let Some(run) = self.source.next_request() {
            self.figures.requests += 1;
            self.learned.asked(ExtentAt { block: run.block, extent: run.first.extent() });
            if self.source.is_sent(run) {
                self.figures.requests_in_flight += 1;
                continue;
            }
            for page in pages_of(run) {
                let at = ExtentAt { block: run.block, extent: page.extent() };
                // Of a run, one request for each extent: the answer is all of it.
                if self.asked.back().is_none_or(|last| last.at != at) {
                    self.pages.will_read(at, 1);
                    self.asked.push_back(Asked { at, page, since });
                }
            }
        }
    }

    // ---- outgoing

    /// Puts the next section together. [`Next::Wait`]: there is nothing to send now.
    fn fill(&mut self) -> Result<Next, PageServerError> {
        if self.stage == Stage::Ending {
            // What is still asked for becomes zero pages when the destination tidies up.
            self.asked.clear();
            return Ok(Next::Wait);
        }
        while let Some(asked) = self.asked.pop_front() {
            if self.answer(&asked)? > 0 {
                self.answering = Some(asked.since);
                return Ok(Next::Go);
            }
        }
        while let Some(filled) = self.ring.take() {
            if self.push(filled) > 0 {
                return Ok(Next::Go);
            }
        }
        match self.ring.plan() {
            Plan::Failed(source) => Err(PageServerError::Page { stage: self.stage, source }),
            Plan::Done if self.stage == Stage::Serving => self.end(),
            Plan::Done | Plan::Running => Ok(Next::Wait),
        }
    }

    fn end(&mut self) -> Result<Next, PageServerError> {
        let stage = self.stage;
        self.source.end(&mut self.out).map_err(|source| PageServerError::Protocol { stage, source })?;
        self.stage = Stage::Ending;
        Ok(Next::Go)
    }

    /// Answers a request with its whole extent, the page itself first. Says how many pages that took.
    fn answer(&mut self, asked: &Asked) -> Result<u64, PageServerError> {
        let Asked { at, page, .. } = *asked;
        let Some(run) = extent_run(self.source.ram(), at.block, at.extent) else { return Ok(0) };
        if self.source.is_sent(run) {
            return Ok(0);
        }
        // Of a finished extent only zero pages were left out.
        if self.finished.contains(at) || self.pages.held(at).is_none() {
            let sent = self.source.send(Pages::zero(run), page, Zeros::Send, &mut self.out);
            return Ok(self.count(at, sent));
        }
        self.wish_for_neighbours(at);
        self.load(at)?;
        let bytes = self.buffer.bytes().get(..extent_bytes(self.source.ram(), at));
        let content = bytes.and_then(|bytes| Pages::new(run, bytes));
        let sent = content.map_or(0, |pages| self.source.send(pages, page, Zeros::Send, &mut self.out));
        Ok(self.count(at, sent))
    }

    /// Gets the extent into our buffer: from the ring if it is there, else from the source.
    fn load(&mut self, at: ExtentAt) -> Result<(), PageServerError> {
        if let Some(filled) = self.ring.take_exactly(at) {
            self.ring.give_back(std::mem::replace(&mut self.buffer, filled.buffer));
            return Ok(());
        }
        let stage = self.stage;
        self.pages.read(at, &mut self.buffer).map_err(|source| PageServerError::Page { stage, source })
    }

    fn wish_for_neighbours(&self, at: ExtentAt) {
        let next = (1..=NEIGHBOURS).filter_map(|n| ExtentIndex::new(at.extent.get().checked_add(n)?));
        let next = next.map(|extent| ExtentAt { block: at.block, extent });
        next.filter(|next| !self.finished.contains(*next)).for_each(|next| self.ring.wish(next));
    }

    /// Sends what the reader has read, without its zero pages. Says how many pages that were.
    fn push(&mut self, filled: Filled) -> u64 {
        let Filled { at, buffer } = filled;
        let ram = self.source.ram();
        let content = extent_run(ram, at.block, at.extent)
            .zip(buffer.bytes().get(..extent_bytes(ram, at)))
            .and_then(|(run, bytes)| Pages::new(run, bytes));
        let sent = content.map_or(0, |pages| self.source.send(pages, pages.run().first, Zeros::Skip, &mut self.out));
        self.ring.give_back(buffer);
        self.figures.hot_extents_in_time += u64::from(self.learned.pushed(at));
        self.count(at, sent)
    }

    fn count(&mut self, at: ExtentAt, sent: u64) -> u64 {
        self.finished.insert(at);
        self.figures.pages_sent += sent;
        sent
    }

    /// Gives the kernel what it takes. [`Next::Wait`]: it takes no more now.
    fn flush(&mut self) -> Result<Next, PageServerError> {
        while let Some(left) = self.out.get(self.out_at..).filter(|left| !left.is_empty()) {
            match send(self.socket, left, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.out_at = self.out_at.saturating_add(count);
                    self.figures.bytes_sent += count as u64;
                }
                Err(Errno::AGAIN) => return Ok(Next::Wait),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.send_failed(error)),
            }
        }
        self.out.clear();
        self.out_at = 0;
        if let Some(since) = self.answering.take() {
            let us = micros(since.elapsed());
            self.figures.answer_us_max = self.figures.answer_us_max.max(us);
            self.figures.answer_us_sum += us;
        }
        Ok(Next::Go)
    }

    /// A destination that gave up has said so before it closed; that is worth more than a broken pipe.
    fn send_failed(&mut self, error: Errno) -> PageServerError {
        self.asked.clear();
        match self.receive() {
            Err(said) => said,
            Ok(()) => match self.source.shut() {
                Some(code) if code != 0 => PageServerError::GivenUp { stage: self.stage, code },
                _ => self.socket_failed(error),
            },
        }
    }

    fn socket_failed(&self, error: Errno) -> PageServerError {
        match error {
            Errno::CONNRESET | Errno::PIPE => PageServerError::Lost { stage: self.stage },
            error => PageServerError::Socket { stage: self.stage, source: error.into() },
        }
    }

    // ---- waiting and telling

    /// Waits until the destination says something, takes something, or the reader has something.
    fn wait(&self) -> Result<(), PageServerError> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.asked.len() < MAX_REQUESTS);
        interest.set(PollFlags::OUT, !self.out.is_empty());
        let mut fds = [PollFd::new(self.socket, interest), PollFd::from_borrowed_fd(self.ring.wakes(), PollFlags::IN)];
        // While a section is under way the reader's news can wait.
        let count = if self.out.is_empty() { 2 } else { 1 };
        match poll(fds.get_mut(..count).unwrap_or_default(), None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(PageServerError::Setup { stage: self.stage, source: error.into() }),
        }
    }

    fn tell_progress(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.progress_at) >= PROGRESS_EVERY {
            self.progress_at = now;
            let (pages_sent, pages_held) = (self.source.pages_sent(), self.pages_held);
            self.observer.notice(Notice::Progress { pages_sent, pages_held });
        }
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
