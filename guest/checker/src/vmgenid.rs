//! The virtual machine generation id, read where the firmware put it.
//!
//! Debian 12's cloud kernel has no vmgenid driver, so the guest looks for itself: the ACPI table that QEMU
//! gives its `vmgenid` device names the physical address (`VGIA`) of a page with the GUID at offset 40.
//!
//! Source: QEMU docs/specs/vmgenid.rst; hw/acpi/vmgenid.c, `vmgenid_build_acpi`.

use std::fmt;
use std::fs::{self, File};
use std::time::Duration;
use std::{io, ptr, thread};

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::board::Board;
use crate::units::PAGE_BYTES;

const TABLES: &str = "/sys/firmware/acpi/tables";
const GUID_OFFSET: u64 = 40;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// AML prefix of a 32-bit constant. Source: ACPI 6.4, 20.2.3.
const AML_DWORD: u8 = 0x0c;
const NAME: [u8; 4] = *b"VGIA";

/// The 16 bytes as they lie in memory, printed in the order that people write a GUID in.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Guid([u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (at, place) in ORDER.into_iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{:02x}", self.0[place])?;
        }
        Ok(())
    }
}

/// Says `VMGENID <guid>` now and `VMGENID <old> -> <new>` whenever it changes; ends when there is none. The kernel
/// lets a program look only with `iomem=relaxed` on its command line: without, that is said.
pub fn watch(board: &Board) {
    let Some(address) = locate() else { return };
    let window = match Window::open(address) {
        Ok(window) => window,
        Err(error) => return board.say(format_args!("VMGENID at {address:#x} is unreadable: {error}")),
    };
    let mut known = window.read();
    board.say(format_args!("VMGENID {known}"));
    loop {
        thread::sleep(LOOK_EVERY);
        let found = window.read();
        if found != known {
            board.say(format_args!("VMGENID {known} -> {found}"));
            known = found;
        }
    }
}

fn locate() -> Option<u64> {
    let tables = fs::read_dir(TABLES).ok()?.filter_map(|entry| fs::read(entry.ok()?.path()).ok());
    tables.filter_map(|table| address_in(&table)).next().map(u64::from)
}

/// The physical page with the GUID, mapped for reading and never unmapped.
struct Window {
    guid: *const u64,
}

impl Window {
    /// `read` on `/dev/mem` refuses what lies above the last ordinary memory; mapping does not.
    fn open(address: u64) -> io::Result<Self> {
        let memory = File::open("/dev/mem")?;
        let page = address & !(PAGE_BYTES as u64 - 1);
        let within = (address - page + GUID_OFFSET) as usize;
        if !within.is_multiple_of(align_of::<u64>()) || within + size_of::<Guid>() > PAGE_BYTES {
            return Err(io::Error::other("the GUID lies askew"));
        }
        // SAFETY: a new mapping at an address of the kernel's choosing; nothing of ours is replaced.
        let mapped = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, ProtFlags::READ, MapFlags::SHARED, &memory, page)? };
        // SAFETY: `within` plus the GUID's size is inside the page just mapped, as checked above.
        Ok(Self { guid: unsafe { mapped.cast::<u8>().add(within).cast::<u64>() } })
    }

    /// The hypervisor may write it at any time, so it is read until two readings agree.
    fn read(&self) -> Guid {
        let mut last = self.glance();
        loop {
            let next = self.glance();
            if next == last {
                return next;
            }
            last = next;
        }
    }

    fn glance(&self) -> Guid {
        // SAFETY: `guid` points to 16 mapped, aligned bytes that are never unmapped; volatile, as they change.
        let halves = unsafe { [self.guid.read_volatile(), self.guid.add(1).read_volatile()] };
        let mut bytes = [0; 16];
        for (part, half) in bytes.chunks_exact_mut(8).zip(halves) {
            part.copy_from_slice(&half.to_ne_bytes());
        }
        Guid(bytes)
    }
}

fn address_in(table: &[u8]) -> Option<u32> {
    let found = table.windows(9).find_map(|window| match window {
        [n0, n1, n2, n3, AML_DWORD, a, b, c, d] if [*n0, *n1, *n2, *n3] == NAME => {
            Some(u32::from_le_bytes([*a, *b, *c, *d]))
        }
        _ => None,
    });
    found.filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_a_table_of_qemu() {
        let table = b"SSDT....\x08VGIA\x0c\x00\xe0\xff\x3f\x10\x42_SB_";
        assert_eq!(address_in(table), Some(0x3fff_e000));
        assert_eq!(address_in(b"SSDT\x08VGIA\x0c\x00\x00"), None, "cut short");
        assert_eq!(address_in(b"SSDT\x08VGIA\x0c\0\0\0\0"), None, "not filled in by the firmware");
    }

    #[test]
    fn a_guid_is_printed_as_people_write_it() {
        let bytes = [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(Guid(bytes).to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
