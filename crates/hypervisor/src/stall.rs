//! How long vCPUs wait for a page, seen from the host.
//!
//! While RAM is write-protected, a vCPU that writes to a page not yet saved sleeps in the kernel's userfault
//! handler. A thread here looks every millisecond which vCPU threads sleep there and keeps the longest
//! uninterrupted run, counted from the look before it to the look after it: an upper bound. It costs about one per cent
//! of a core, needs nothing in the guest, and may miss what is shorter than its interval.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks.
pub const INTERVAL: Duration = Duration::from_millis(1);

/// A look-out over a process's vCPU threads.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Duration>>,
}

impl Sampler {
    /// Begins to look at the threads `tids` of the process `pid`.
    #[must_use]
    pub fn start(pid: u32, tids: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(pid, &tids, &stopped));
        Self { stop, thread }
    }

    /// Ends looking. The longest wait seen, zero when there was none; `None` when the kernel does not tell. It is an upper
    /// bound: a wait counts from the last look before it to the first look after it.
    #[must_use]
    pub fn finish(self) -> Option<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().flatten()
    }
}

fn watch(pid: u32, tids: &[u32], stop: &AtomicBool) -> Option<Duration> {
    let mut since: Vec<Option<Instant>> = vec![None; tids.len()];
    let mut longest = Duration::ZERO;
    let mut told = false;
    let mut last_look = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let look = Instant::now();
        for (tid, since) in tids.iter().zip(&mut since) {
            let waits = waits_for_page(pid, *tid);
            told |= waits.is_some();
            // It may have begun right behind the look before, and have ended just before this one.
            if waits == Some(true) {
                since.get_or_insert(last_look);
            }
            if let Some(begun) = *since {
                longest = longest.max(begun.elapsed());
            }
            if waits != Some(true) {
                *since = None;
            }
        }
        last_look = look;
        std::thread::sleep(INTERVAL);
    }
    told.then_some(longest)
}

/// Whether the thread sleeps in a page fault; `None` when the kernel does not tell.
///
/// Source: proc(5). `syscall` begins with `-1` for a thread that blocks outside of any system call, which
/// a page fault of emulated code is; within KVM_RUN the wait channel names the userfault handler.
fn waits_for_page(pid: u32, tid: u32) -> Option<bool> {
    let syscall = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    if syscall.starts_with("-1 ") {
        return Some(true);
    }
    if !syscall.starts_with("16 ") {
        return Some(false);
    }
    let channel = fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).ok()?;
    Some(channel.trim() == "handle_userfault")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_in_a_system_call_does_not_wait_for_a_page() {
        let sleeper = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(60)));
        let sampler = Sampler::start(std::process::id(), vec![std::process::id()]);
        sleeper.join().unwrap();
        assert_eq!(sampler.finish(), Some(Duration::ZERO));
        let none = Sampler::start(std::process::id(), vec![u32::MAX]);
        assert_eq!(none.finish(), None);
    }
}
