//! A guest's memory put back into huge pages, from outside and without the guest noticing.
//!
//! A background snapshot splits every huge page of the guest into 512 small ones; the pause of the
//! next one grows with their number: 1.5 ms for the first snapshot of a 4 GiB guest, about 40 ms
//! for the following. `MADV_COLLAPSE` undoes the splitting. Done in slices of 2 MiB, one huge page
//! each, it takes a second for 4 GiB and the guest waits for one slice at the most; slices of 64 MiB
//! stopped it for seconds.
//!
//! Collapsing fills what a slice lacks. What the guest has not used is not empty, though: the
//! snapshot reads every page first, which maps the zero page there, and later splits that mapping
//! too. Such slices take no memory but cost the next pause as much as used ones. Only filling them
//! makes them cheap, so it is a matter of how much memory may be spent:
//! [`CollapseOptions::fill_bytes`]. A slice of which the guest has used half is always collapsed.
//!
//! Source: Linux `Documentation/admin-guide/mm/transhuge.rst`, `pagemap.rst` (bit 56: mapped by one
//! process only, which the zero page never is), process_madvise(2), QEMU.md section 1.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyframe_vmstate::{PAGE_SIZE, PageCount};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Error;

/// Bytes of a huge page on x86-64.
const SLICE_BYTES: u64 = 2 << 20;
const SLICE_PAGES: usize = SLICE_BYTES as usize / PAGE_SIZE;
/// A list of mappings longer than this is no QEMU's.
const MAX_MAPS_BYTES: u64 = 16 << 20;
/// pagemap: the page is in memory, and mapped by this process only.
const PRESENT: u64 = 1 << 63;
const EXCLUSIVE: u64 = 1 << 56;

/// How gently to go about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollapseOptions {
    /// A slice that takes longer is followed by a rest.
    pub slow_slice: Duration,
    /// How long that rest is.
    pub rest: Duration,
    /// Memory that may be given to parts the guest has not used, so that they, too, cost the next
    /// pause nothing. The kernel takes it back when memory is short (underused huge pages, Linux
    /// 6.12). With 0 a slice is collapsed only if the guest has used half of it.
    pub fill_bytes: u64,
}

impl Default for CollapseOptions {
    fn default() -> Self {
        let (slow_slice, rest) = (Duration::from_millis(4), Duration::from_millis(8));
        Self { slow_slice, rest, fill_bytes: 0 }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollapseReport {
    /// Bytes now in huge pages; those that were before count.
    pub collapsed_bytes: u64,
    /// Bytes left alone: not used by the guest, or hardly, and no more memory to fill them with.
    pub unused_bytes: u64,
    /// Bytes given to what the guest had not used.
    pub filled_bytes: u64,
    /// Bytes the kernel would not collapse now: pinned, or no huge page to be had.
    pub refused_bytes: u64,
    /// Rests taken after slow slices.
    pub rests: u64,
    /// The slowest slice.
    pub slowest_slice: Duration,
    /// How long it all took.
    pub elapsed: Duration,
}

/// Puts the guest memory of that QEMU process back into huge pages. `ram` is the size of its main
/// memory, by which the mapping is found. Stops early, without error, when told to.
///
/// # Errors
/// [`Error::NoGuestMemory`]; [`Error::Io`] when the process has ended, or is not ours to advise
/// (needs the right to trace it and CAP_SYS_NICE), or the kernel is older than 6.1.
pub fn collapse_huge_pages(
    pid: Pid,
    ram: PageCount,
    options: &CollapseOptions,
    cancel: &AtomicBool,
) -> Result<CollapseReport, Error> {
    let process = Process::open(pid)?;
    let (first, end) = process.guest_memory(ram)?;
    let (start, mut report) = (Instant::now(), CollapseReport::default());
    let mut at = first.next_multiple_of(SLICE_BYTES);
    while end.saturating_sub(at) >= SLICE_BYTES && !cancel.load(Ordering::Relaxed) {
        let pages = process.pages(at)?;
        let fill = ((SLICE_PAGES - pages.used) * PAGE_SIZE) as u64;
        let may_fill = pages.mapped > 0 && report.filled_bytes + fill <= options.fill_bytes;
        if pages.used < SLICE_PAGES / 2 && !may_fill {
            report.unused_bytes += SLICE_BYTES;
        } else {
            let slice = Instant::now();
            if process.collapse(at)? {
                report.collapsed_bytes += SLICE_BYTES;
                report.filled_bytes += fill;
            } else {
                report.refused_bytes += SLICE_BYTES;
            }
            let took = slice.elapsed();
            report.slowest_slice = report.slowest_slice.max(took);
            if took > options.slow_slice {
                report.rests += 1;
                std::thread::sleep(options.rest);
            }
        }
        at += SLICE_BYTES;
    }
    report.elapsed = start.elapsed();
    Ok(report)
}

/// Pages of a slice that are mapped at all, and those that are the process's own.
struct SlicePages {
    mapped: usize,
    used: usize,
}

/// Another process, pinned: none that comes to have its number can be mistaken for it.
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    pagemap: File,
}

impl Process {
    fn open(pid: Pid) -> Result<Self, Error> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| Error::io("open process of", proc_path(pid, ""))(errno.into()))?;
        let path = proc_path(pid, "pagemap");
        let pagemap = File::open(&path).map_err(Error::io("open", path))?;
        Ok(Self { pid, pidfd, pagemap })
    }

    /// Bounds of the smallest mapping that can be guest memory of that size.
    fn guest_memory(&self, ram: PageCount) -> Result<(u64, u64), Error> {
        let path = proc_path(self.pid, "maps");
        let mut maps = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_MAPS_BYTES).read_to_string(&mut maps))
            .map_err(Error::io("read", path))?;
        let pid = self.pid.as_raw_nonzero().get();
        smallest_mapping(&maps, ram.bytes()).ok_or(Error::NoGuestMemory { pid, ram_bytes: ram.bytes() })
    }

    /// What a slice holds.
    fn pages(&self, address: u64) -> Result<SlicePages, Error> {
        let mut entries = [0; SLICE_PAGES * 8];
        self.pagemap
            .read_exact_at(&mut entries, address / PAGE_SIZE as u64 * 8)
            .map_err(Error::io("read", proc_path(self.pid, "pagemap")))?;
        let (entries, _) = entries.as_chunks::<8>();
        let with = |bits: u64| entries.iter().filter(|entry| u64::from_ne_bytes(**entry) & bits == bits).count();
        Ok(SlicePages { mapped: with(PRESENT), used: with(PRESENT | EXCLUSIVE) })
    }

    /// Collapses a slice; `false` when the kernel would rather not.
    fn collapse(&self, address: u64) -> Result<bool, Error> {
        let range =
            libc::iovec { iov_base: std::ptr::without_provenance_mut(address as usize), iov_len: SLICE_BYTES as usize };
        // SAFETY: the pidfd is open and `range` lives through the call. The kernel reads one iovec
        // and takes the addresses in it as those of the other process: nothing of ours is touched.
        // There, MADV_COLLAPSE changes how memory is mapped and never what is in it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.pidfd.as_raw_fd(),
                &raw const range,
                1usize,
                libc::MADV_COLLAPSE,
                0u32,
            )
        };
        if result >= 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            // No huge page free, pages pinned or on the move, or no such mapping any more.
            Some(Errno::NOMEM | Errno::AGAIN | Errno::BUSY | Errno::INVAL | Errno::FAULT) => Ok(false),
            _ => Err(Error::io("collapse memory of", proc_path(self.pid, ""))(error)),
        }
    }
}

fn proc_path(pid: Pid, name: &str) -> PathBuf {
    format!("/proc/{}/{name}", pid.as_raw_nonzero()).into()
}

/// The smallest writable anonymous or memfd area of at least `bytes`, neighbours taken together:
/// setting flags on part of guest memory cuts its mapping into several.
fn smallest_mapping(maps: &str, bytes: u64) -> Option<(u64, u64)> {
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for (start, end) in maps.lines().filter_map(memory_area) {
        match areas.last_mut() {
            Some((_, last_end)) if *last_end == start => *last_end = end,
            _ => areas.push((start, end)),
        }
    }
    let large = areas.into_iter().filter(|(start, end)| end - start >= bytes && bytes > 0);
    large.min_by_key(|(start, end)| end - start)
}

/// Start and end of a line of /proc/PID/maps, if it can be guest memory.
fn memory_area(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    // Translated code of software emulation is executable, and often just as large.
    let access = fields.next()?;
    let writable = access.starts_with("rw") && !access.contains('x');
    let name = fields.nth(3).unwrap_or("");
    let anonymous = name.is_empty() || name.starts_with("[anon") || name.starts_with("/memfd:");
    (start < end && writable && anonymous).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d4a3a00000-55d4a3e00000 r--p 00000000 fd:00 1234 /usr/bin/qemu-system-x86_64
7effe0000000-7effe4000000 rwxp 00000000 00:00 0
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
7f0010000000-7f0018000000 rw-p 00000000 00:00 0
7f0018000000-7f0030000000 rw-p 00000000 00:00 0
7f0040000000-7f00ffe00000 r--p 00000000 00:00 0
7f0100000000-7f0180000000 rw-s 00000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f0200000000-7f0a00000000 rw-p 00000000 fd:00 99 /some/file
7ffd0a000000-7ffd0a021000 rw-p 00000000 00:00 0 [stack]";

    #[test]
    fn the_smallest_that_is_large_enough_is_found() {
        let find = |mib: u64| smallest_mapping(MAPS, mib << 20);
        assert_eq!(find(64), Some((0x7f00_0000_0000, 0x7f00_0400_0000)), "not translated code");
        assert_eq!(find(65), Some((0x7f00_1000_0000, 0x7f00_3000_0000)), "two halves are one");
        assert_eq!(find(512), find(65));
        assert_eq!(find(2048), Some((0x7f01_0000_0000, 0x7f01_8000_0000)), "memfd");
        assert_eq!(find(4096), None, "files and read-only memory are no guest's");
        assert_eq!(find(0), None);
    }

    #[test]
    fn strange_lines_are_passed_over() {
        for line in ["", "-", "zz-1 rw-p", "2-1 rw-p", "1-2", "ffffffffffffffff1-2 rw-p", "1-2 r"] {
            assert_eq!(memory_area(line), None, "{line:?}");
        }
    }
}
