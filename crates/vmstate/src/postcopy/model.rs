//! A destination as QEMU 10 behaves, for tests: it refuses what QEMU would refuse.
//!
//! Written from QEMU's loading code and not from [`super::frames`], so that the two can disagree.
//!
//! Source: QEMU migration/savevm.c `loadvm_process_command`, migration/ram.c `ram_load_precopy` and
//! `ram_load_postcopy`, migration/migration.c `migrate_send_rp_req_pages`.

use std::collections::BTreeSet;

use crate::PAGE_SIZE;

/// One RAM block of the destination.
#[derive(Debug, Clone)]
struct Memory {
    name: String,
    bytes: Vec<u8>,
    received: Vec<bool>,
    discarded: bool,
}

/// QEMU's states of an incoming postcopy, as far as they decide what may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing but the header may come.
    Fresh,
    /// After the header.
    Loading,
    /// Postcopy was announced.
    Advised,
    /// Memory was discarded.
    Discarded,
    /// The vCPUs run; pages go in once and atomically.
    Running,
    /// The connection is lost.
    Paused,
    /// There is a new connection, and no pages yet.
    Recovering,
    /// The stream is over.
    Ended,
}

/// A destination with its memory.
#[derive(Debug, Clone)]
pub struct Destination {
    machine: String,
    memory: Vec<Memory>,
    devices: Vec<u8>,
    state: State,
    return_path: bool,
    in_section: bool,
    last_block: Option<usize>,
    last_asked: Option<usize>,
    pending: BTreeSet<(usize, usize)>,
    input: Vec<u8>,
    replies: Vec<u8>,
}

/// Why QEMU would fail, or that more bytes are needed.
enum Stop {
    More,
    Refused(String),
}

type Step<T> = Result<T, Stop>;

fn refuse<T>(why: impl Into<String>) -> Step<T> {
    Err(Stop::Refused(why.into()))
}

impl Destination {
    /// A machine of that type with blocks of such names and page counts, which knows such device sections.
    #[must_use]
    pub fn new(machine: &str, blocks: &[(&str, usize)], devices: &[u8]) -> Self {
        let memory = blocks.iter().map(|(name, pages)| Memory {
            name: (*name).to_owned(),
            // Fresh memory is not zero here: what has to be zero must be made so by the source.
            bytes: vec![0xee; pages * PAGE_SIZE],
            received: vec![false; *pages],
            discarded: false,
        });
        Self {
            machine: machine.to_owned(),
            memory: memory.collect(),
            devices: devices.to_vec(),
            state: State::Fresh,
            return_path: false,
            in_section: false,
            last_block: None,
            last_asked: None,
            pending: BTreeSet::new(),
            input: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The memory of a block.
    #[must_use]
    pub fn memory(&self, block: usize) -> &[u8] {
        &self.memory[block].bytes
    }

    /// Has the page arrived?
    #[must_use]
    pub fn has(&self, block: usize, page: usize) -> bool {
        self.memory[block].received[page]
    }

    /// The guest touches a page: asks for it unless it is there.
    pub fn touch(&mut self, block: usize, page: usize) {
        if !self.has(block, page) && self.state == State::Running {
            self.pending.insert((block, page));
            self.ask(block, page);
        }
    }

    /// What it says on the return path since the last call.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.replies)
    }

    /// The connection breaks.
    pub fn lose_connection(&mut self) {
        assert_eq!(self.state, State::Running, "only a running postcopy survives");
        self.state = State::Paused;
        self.input.clear();
        self.replies.clear();
        self.in_section = false;
    }

    /// There is a new connection.
    pub fn reconnect(&mut self) {
        assert_eq!(self.state, State::Paused);
        self.state = State::Recovering;
    }

    /// Says goodbye.
    pub fn shut(&mut self) {
        self.reply(1, &0_u32.to_be_bytes());
    }

    /// Takes bytes of the stream.
    ///
    /// # Errors
    /// What QEMU would complain about.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.input.extend_from_slice(bytes);
        loop {
            let input = std::mem::take(&mut self.input);
            let mut rest = input.as_slice();
            let step = self.step(&mut rest);
            self.input = if step.is_ok() { rest.to_vec() } else { input };
            match step {
                Ok(()) if self.input.is_empty() => return Ok(()),
                Ok(()) => {}
                Err(Stop::More) => return Ok(()),
                Err(Stop::Refused(why)) => return Err(why),
            }
        }
    }

    /// Reads one item. Changes nothing but `rest` unless the item is whole.
    fn step(&mut self, rest: &mut &[u8]) -> Step<()> {
        if self.state == State::Fresh {
            return self.header(rest);
        }
        if self.in_section {
            return self.page(rest);
        }
        match be::<1>(rest)? {
            0 => self.end(),
            1 => self.ram_start(rest),
            2 | 3 => self.ram_section(rest),
            8 => self.command(rest),
            other => refuse(format!("section type {other}")),
        }
    }

    fn header(&mut self, rest: &mut &[u8]) -> Step<()> {
        if take(rest, 4)? != b"QEVM" || be::<4>(rest)? != 3 || be::<1>(rest)? != 7 {
            return refuse("not a migration stream with a configuration");
        }
        let length = be::<4>(rest)?;
        if take(rest, length as usize)? != self.machine.as_bytes() {
            return refuse("another machine type");
        }
        self.state = State::Loading;
        Ok(())
    }

    fn end(&mut self) -> Step<()> {
        if self.state != State::Running {
            return refuse(format!("end of file in state {:?}", self.state));
        }
        self.state = State::Ended;
        // Unregistered memory that never got a page is whatever it was: zero if it was discarded.
        self.shut();
        Ok(())
    }

    fn ram_start(&mut self, rest: &mut &[u8]) -> Step<()> {
        be::<4>(rest)?;
        if take(rest, 4)? != b"\x03ram" || be::<4>(rest)? != 0 || be::<4>(rest)? != 4 {
            return refuse("not the RAM section, version 4");
        }
        let total: usize = self.memory.iter().map(|memory| memory.bytes.len()).sum();
        if be::<8>(rest)? != total as u64 | 4 {
            return refuse("wrong total of memory");
        }
        for memory in &self.memory {
            let name = name(rest)?;
            if name != memory.name || be::<8>(rest)? != memory.bytes.len() as u64 {
                return refuse(format!("block {name} is not what is here"));
            }
        }
        self.in_section = true;
        Ok(())
    }

    fn ram_section(&mut self, rest: &mut &[u8]) -> Step<()> {
        be::<4>(rest)?;
        match self.state {
            State::Advised | State::Running => {
                self.in_section = true;
                Ok(())
            }
            state => refuse(format!("pages in state {state:?}")),
        }
    }

    fn page(&mut self, rest: &mut &[u8]) -> Step<()> {
        let word = be::<8>(rest)?;
        let (flags, offset) = (word & 0xfff, (word & !0xfff) as usize);
        if flags == 0x10 {
            if be::<1>(rest)? != 0x7e {
                return refuse("no footer");
            }
            be::<4>(rest)?;
            self.in_section = false;
            return Ok(());
        }
        let block = match (flags & 0x20 != 0, self.last_block) {
            (true, None) => return refuse("page continues no block"),
            (true, Some(block)) => block,
            (false, _) => self.block(&name(rest)?)?,
        };
        let content = match flags & !0x20 {
            2 if be::<1>(rest)? == 0 => vec![0; PAGE_SIZE],
            8 => take(rest, PAGE_SIZE)?.to_vec(),
            _ => return refuse(format!("page flags {flags:#x}")),
        };
        self.last_block = Some(block);
        self.place(block, offset / PAGE_SIZE, &content)
    }

    fn place(&mut self, block: usize, page: usize, content: &[u8]) -> Step<()> {
        let running = self.state == State::Running;
        let memory = &mut self.memory[block];
        let Some(received) = memory.received.get_mut(page) else {
            return refuse("page behind its block's end");
        };
        if *received && running {
            return refuse(format!("UFFDIO_COPY: page {page} of {} exists", memory.name));
        }
        *received = true;
        memory.bytes[page * PAGE_SIZE..][..PAGE_SIZE].copy_from_slice(content);
        self.pending.remove(&(block, page));
        Ok(())
    }

    fn command(&mut self, rest: &mut &[u8]) -> Step<()> {
        let command = be::<2>(rest)?;
        let length = be::<2>(rest)?;
        let mut payload = take(rest, length as usize)?;
        let fixed = match command {
            1 | 9 => Some(0),
            2 | 7 => Some(4),
            _ => None,
        };
        if fixed.is_some_and(|fixed| fixed != length) {
            return refuse(format!("command {command} with {length} bytes"));
        }
        match (command, self.state) {
            (1, _) => self.return_path = true,
            (2, _) if self.return_path => self.reply(2, payload),
            (3, State::Loading) => {
                if be::<8>(&mut payload)? != 4096 || be::<8>(&mut payload)? != 4096 {
                    return refuse("page sizes differ");
                }
                self.state = State::Advised;
            }
            (6, State::Advised | State::Discarded) => return self.discard(payload),
            (7, State::Discarded) => {
                let length = be::<4>(&mut payload)? as usize;
                let package = take(rest, length)?.to_vec();
                return self.package(&package);
            }
            (9, State::Recovering) => self.resume(),
            (10, State::Recovering) => return self.bitmap(payload),
            (command, state) => return refuse(format!("command {command} in state {state:?}")),
        }
        Ok(())
    }

    fn discard(&mut self, mut payload: &[u8]) -> Step<()> {
        if be::<1>(&mut payload)? != 0 {
            return refuse("discard version");
        }
        let block = self.block(&name(&mut payload)?)?;
        if be::<1>(&mut payload)? != 0 || payload.is_empty() || !payload.len().is_multiple_of(16) {
            return refuse("discard shape");
        }
        let memory = &mut self.memory[block];
        while !payload.is_empty() {
            let (start, length) = (be::<8>(&mut payload)? as usize, be::<8>(&mut payload)? as usize);
            let Some(bytes) = memory.bytes.get_mut(start..).and_then(|bytes| bytes.get_mut(..length)) else {
                return refuse("discard outside of its block");
            };
            bytes.fill(0);
            memory.received[start / PAGE_SIZE..][..length / PAGE_SIZE].fill(false);
            memory.discarded = true;
        }
        self.state = State::Discarded;
        Ok(())
    }

    fn package(&mut self, package: &[u8]) -> Step<()> {
        let mut wanted = vec![8, 0, 4, 0, 0];
        wanted.extend_from_slice(&self.devices);
        wanted.extend_from_slice(&[8, 0, 2, 0, 4]);
        let run = &[8, 0, 5, 0, 0];
        let ping = package.strip_prefix(wanted.as_slice()).and_then(|rest| rest.strip_suffix(run));
        let Some(ping) = ping.filter(|ping| ping.len() == 4) else {
            return refuse("the package is not listen, devices, ping, run");
        };
        if self.memory.iter().any(|memory| !memory.discarded && memory.received.contains(&false)) {
            return refuse("a page is neither here nor discarded");
        }
        self.state = State::Running;
        let ping = ping.to_vec();
        self.reply(2, &ping);
        Ok(())
    }

    fn resume(&mut self) {
        self.state = State::Running;
        self.last_asked = None;
        self.reply(6, &1_u32.to_be_bytes());
        for (block, page) in self.pending.clone() {
            self.ask(block, page);
        }
    }

    fn bitmap(&mut self, mut payload: &[u8]) -> Step<()> {
        let name = name(&mut payload)?;
        let received = self.memory[self.block(&name)?].received.clone();
        let mut payload = vec![name.len() as u8];
        payload.extend_from_slice(name.as_bytes());
        self.reply(5, &payload);
        let bytes = received.len().div_ceil(64) * 8;
        self.replies.extend_from_slice(&(bytes as u64).to_be_bytes());
        let mut bitmap = vec![0; bytes];
        for (page, _) in received.iter().enumerate().filter(|(_, received)| **received) {
            bitmap[page / 8] |= 1 << (page % 8);
        }
        self.replies.append(&mut bitmap);
        self.replies.extend_from_slice(&0x0123_4567_89ab_cdef_u64.to_be_bytes());
        Ok(())
    }

    fn ask(&mut self, block: usize, page: usize) {
        let mut payload = ((page * PAGE_SIZE) as u64).to_be_bytes().to_vec();
        payload.extend_from_slice(&(PAGE_SIZE as u32).to_be_bytes());
        if self.last_asked == Some(block) {
            return self.reply(4, &payload);
        }
        self.last_asked = Some(block);
        let name = &self.memory[block].name;
        payload.push(name.len() as u8);
        payload.extend_from_slice(name.as_bytes());
        self.reply(3, &payload);
    }

    fn reply(&mut self, kind: u16, payload: &[u8]) {
        self.replies.extend_from_slice(&kind.to_be_bytes());
        self.replies.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        self.replies.extend_from_slice(payload);
    }

    fn block(&self, name: &str) -> Step<usize> {
        match self.memory.iter().position(|memory| memory.name == name) {
            Some(block) => Ok(block),
            None => refuse(format!("no block {name}")),
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Step<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count).ok_or(Stop::More)?;
    *rest = left;
    Ok(taken)
}

fn be<const BYTES: usize>(rest: &mut &[u8]) -> Step<u64> {
    Ok(take(rest, BYTES)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn name(rest: &mut &[u8]) -> Step<String> {
    let length = be::<1>(rest)? as usize;
    Ok(String::from_utf8_lossy(take(rest, length)?).into_owned())
}
