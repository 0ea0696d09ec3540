//! The threads: one rewrites and verifies memory, one writes and reads back each disk, one beats.
//!
//! Each takes [`Order`]s between two pieces of work, so whatever it owns needs no lock.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::disk::Disk;
use crate::memory::Memory;
use crate::units::{MemoryRate, WriteRate};

/// Memory is worked on in slices of this length.
const SLICE: Duration = Duration::from_millis(10);
/// The beating thread asks to be woken this often, so that it can tell how late it was.
const WATCH: Duration = Duration::from_millis(5);
const VERDICT_PERIOD: Duration = Duration::from_secs(1);
/// A disk that must not write is still read this often.
const READ_PERIOD: Duration = Duration::from_millis(50);

/// What the person at the serial line wants of a worker.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Destroy what you look after.
    Wreck,
    /// Rewrite this much from now on.
    Rate(MemoryRate),
    /// Write this often from now on.
    DiskRate(WriteRate),
    /// Verify everything once, now and at full speed, and say so.
    Verify,
}

/// The speeds of the memory worker.
#[derive(Debug, Clone, Copy)]
pub struct MemorySpeed {
    /// Pages to rewrite.
    pub rewrite: MemoryRate,
    /// Pages to verify besides.
    pub verify: MemoryRate,
}

/// Rewrites and verifies `memory` for ever. Work that is not done in its slice is dropped, not caught up.
pub fn tend_memory(board: &Board, mut memory: Memory, mut speed: MemorySpeed, orders: &Receiver<Order>) -> ! {
    loop {
        let start = Instant::now();
        match orders.try_recv() {
            Ok(Order::Wreck) => {
                memory.scribble();
                board.say("WRECKED memory");
            }
            Ok(Order::Rate(rate)) => speed.rewrite = rate,
            Ok(Order::Verify) => verify_all(board, &mut memory),
            Ok(Order::DiskRate(_)) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        let quota = speed.rewrite.pages_in(SLICE);
        for _ in 0..quota {
            memory.rewrite_next().unwrap_or_else(|fault| board.complain(fault));
        }
        board.add_rewritten(quota as u64);
        for _ in 0..speed.verify.pages_in(SLICE) {
            if verify_one(board, &mut memory) {
                board.add_pass();
            }
            if start.elapsed() > SLICE {
                break;
            }
        }
        thread::sleep(SLICE.saturating_sub(start.elapsed()).max(Duration::from_millis(1)));
    }
}

fn verify_one(board: &Board, memory: &mut Memory) -> bool {
    let (last, verdict) = memory.verify_next();
    verdict.unwrap_or_else(|fault| board.complain(fault));
    last
}

fn verify_all(board: &Board, memory: &mut Memory) {
    let (start, before) = (Instant::now(), board.faults());
    memory.restart_pass();
    while !verify_one(board, memory) {}
    board.add_pass();
    let (took_ms, found) = (start.elapsed().as_millis(), board.faults() - before);
    board.say(format_args!("VERIFIED pages {} faults {found} ms {took_ms}", memory.len()));
}

/// Writes to `disk` and reads it back for ever.
pub fn tend_disk(board: &Board, mut disk: Disk, mut rate: WriteRate, orders: &Receiver<Order>) -> ! {
    loop {
        let start = Instant::now();
        match orders.try_recv() {
            Ok(Order::Wreck) => match disk.scribble() {
                Ok(()) => board.say(format_args!("WRECKED {}", disk.name())),
                Err(error) => board.complain(error),
            },
            Ok(Order::DiskRate(new)) => rate = new,
            Ok(Order::Rate(_) | Order::Verify) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if rate.period().is_some() {
            disk.write_next(board).unwrap_or_else(|error| board.complain(error));
        }
        disk.read_next(board).unwrap_or_else(|error| board.complain(error));
        let period = rate.period().unwrap_or(READ_PERIOD);
        thread::sleep(period.saturating_sub(start.elapsed()).max(Duration::from_micros(200)));
    }
}

/// Prints a heartbeat each `tick` and a verdict each second, for ever.
pub fn beat(board: &Board, tick: Duration) -> ! {
    // Late beats because the checker itself is busy would say nothing about the machine.
    let _unprivileged = rustix::process::setpriority_process(None, -20);
    let mut beat_due = Instant::now();
    let mut verdict_due = Instant::now() + VERDICT_PERIOD;
    let (mut last, mut worst) = (Instant::now(), Duration::ZERO);
    loop {
        thread::sleep(WATCH.min(beat_due.saturating_duration_since(Instant::now())));
        let now = Instant::now();
        worst = worst.max(now - last);
        last = now;
        if now >= beat_due {
            board.say(board.heartbeat(worst.as_secs_f64() * 1e3));
            worst = Duration::ZERO;
            beat_due = (beat_due + tick).max(now);
        }
        if now >= verdict_due {
            if let Some(line) = board.verdict() {
                board.say(line);
            }
            verdict_due = now + VERDICT_PERIOD;
        }
    }
}
