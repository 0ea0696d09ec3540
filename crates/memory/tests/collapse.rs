//! Collapsing memory of a real process: our own child would do, we ourselves do better.

use std::sync::atomic::AtomicBool;

use keyframe_memory::Error;
use keyframe_memory::collapse::{CollapseOptions, collapse_huge_pages};
use keyframe_vmstate::PageCount;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::getpid;
use rustix::thread::disable_transparent_huge_pages;

const HUGE: usize = 2 << 20;
const HUGE_PAGES: usize = 24;

/// Kilobytes of this process's memory that smaps says about the mapping at that address.
fn smaps(address: usize, field: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
    let mut lines = smaps.lines().skip_while(|line| {
        let start = line.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok());
        start.is_none_or(|start| start > address || !line.contains('-'))
            || !line.split_once('-').is_some_and(|(_, rest)| {
                let end = rest.split(' ').next().unwrap_or_default();
                usize::from_str_radix(end, 16).is_ok_and(|end| end > address)
            })
    });
    let line = lines.find(|line| line.starts_with(field)).expect("the field");
    line.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn used_memory_becomes_huge_and_unused_stays_unused() {
    let bytes = HUGE * HUGE_PAGES;
    // Room on both sides that nobody may touch keeps the kernel's other mappings away.
    let flags = MapFlags::PRIVATE;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let room =
        unsafe { mmap_anonymous(std::ptr::null_mut(), bytes + 3 * HUGE, ProtFlags::empty(), flags) }.expect("memory");
    let base = room.map_addr(|at| (at + 1).next_multiple_of(HUGE));
    let usable = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: the range lies within the fresh mapping, which is ours and stays as it is.
    unsafe { mprotect(base, bytes, usable) }.expect("usable");
    disable_transparent_huge_pages(true).expect("always allowed");
    // SAFETY: readable, writable, zeroed, and nothing else refers to it.
    let memory = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), bytes) };
    let mut sum = 0;
    for (n, huge) in memory.chunks_exact_mut(HUGE).enumerate() {
        for page in huge.chunks_exact_mut(4096) {
            match n % 3 {
                0 => page[7] = n as u8 + 1,
                // Read only: the kernel maps the zero page, as a snapshot's populating does.
                1 => sum += u64::from(page[7]),
                _ => {}
            }
        }
    }
    assert_eq!(sum, 0);
    disable_transparent_huge_pages(false).expect("always allowed");
    assert_eq!(smaps(memory.as_ptr().addr(), "AnonHugePages:"), 0);

    let ram = PageCount::from_bytes(bytes as u64).expect("whole pages");
    let options = CollapseOptions::default();
    let report = collapse_huge_pages(getpid(), ram, &options, &AtomicBool::new(false))
        .expect("needs Linux 6.1 and the right to advise a process");
    assert_eq!(report.refused_bytes, 0, "{report:?}");
    assert_eq!(report.collapsed_bytes, (bytes / 3) as u64, "{report:?}");
    assert_eq!(smaps(memory.as_ptr().addr(), "AnonHugePages:"), bytes as u64 / 3 / 1024);
    for (n, huge) in memory.chunks_exact(HUGE).enumerate() {
        let expected = if n % 3 == 0 { n as u8 + 1 } else { 0 };
        assert!(huge.chunks_exact(4096).all(|page| page[7] == expected && page[8] == 0));
    }

    // With memory to spend, what was only read is filled; what was never touched stays a hole.
    let options = CollapseOptions { fill_bytes: HUGE as u64 * 5, ..options };
    let report = collapse_huge_pages(getpid(), ram, &options, &AtomicBool::new(false)).expect("again");
    assert_eq!(report.filled_bytes, HUGE as u64 * 5, "{report:?}");
    let huge_kib = smaps(memory.as_ptr().addr(), "AnonHugePages:");
    assert_eq!(huge_kib, (bytes / 3 + HUGE * 5) as u64 / 1024);

    let too_large = PageCount::from_bytes(1 << 41).expect("whole pages");
    let error = collapse_huge_pages(getpid(), too_large, &options, &AtomicBool::new(false));
    assert!(matches!(error, Err(Error::NoGuestMemory { .. })));
    // SAFETY: `memory` is not used after this.
    unsafe { munmap(room, bytes + 3 * HUGE) }.expect("unmapped");
}
