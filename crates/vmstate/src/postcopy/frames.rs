//! The bytes of a migration stream, piece by piece. No state but the buffer they are appended to.
//!
//! Source: QEMU migration/savevm.c (sections, commands), migration/ram.c (pages), migration/ram.h (flags).

use crate::config::Configuration;
use crate::ram::{BlockId, RamBlock, RamLayout};
use crate::{PAGE_SIZE, PageIndex};

const FILE_MAGIC: &[u8; 4] = b"QEVM";
const FILE_VERSION: u32 = 3;

const SECTION_START: u8 = 1;
const SECTION_PART: u8 = 2;
const SECTION_END: u8 = 3;
const COMMAND: u8 = 8;
const FOOTER: u8 = 0x7e;
const EOF: u8 = 0;

const FLAG_ZERO: u64 = 0x02;
const FLAG_MEM_SIZE: u64 = 0x04;
const FLAG_PAGE: u64 = 0x08;
const FLAG_EOS: u64 = 0x10;
const FLAG_CONTINUE: u64 = 0x20;

/// Version of the RAM section's layout. Source: QEMU migration/ram.c, `ram_load` takes 4 only.
const RAM_VERSION: u32 = 4;

/// Our number for the RAM section. QEMU numbers sections from 0 up, so no device's section in a snapshot
/// meets it; the destination looks sections up by it and would otherwise hand pages to a device.
const RAM_SECTION: u32 = 0x4b46_0001;

/// Commands of the stream. Source: QEMU migration/savevm.c, `enum qemu_vm_cmd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    OpenReturnPath = 1,
    Ping = 2,
    PostcopyAdvise = 3,
    PostcopyListen = 4,
    PostcopyRun = 5,
    PostcopyRamDiscard = 6,
    Packaged = 7,
    PostcopyResume = 9,
    RecvBitmap = 10,
}

/// Magic, version and the configuration section: which machine type this is.
pub(super) fn put_header(out: &mut Vec<u8>, machine: &Configuration) {
    out.extend_from_slice(FILE_MAGIC);
    out.extend_from_slice(&FILE_VERSION.to_be_bytes());
    machine.for_stream().encode(out);
}

/// A command with at most 64 KiB of payload; every one of ours is far shorter.
pub(super) fn put_command(out: &mut Vec<u8>, command: Command, payload: &[u8]) {
    out.push(COMMAND);
    out.extend_from_slice(&(command as u16).to_be_bytes());
    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(payload);
}

pub(super) fn put_ping(out: &mut Vec<u8>, value: u32) {
    put_command(out, Command::Ping, &value.to_be_bytes());
}

/// Host page size and target page size, which have to be the destination's.
pub(super) fn put_advise(out: &mut Vec<u8>) {
    let mut payload = [0; 16];
    let (host, target) = payload.split_at_mut(8);
    host.copy_from_slice(&(PAGE_SIZE as u64).to_be_bytes());
    target.copy_from_slice(&(PAGE_SIZE as u64).to_be_bytes());
    put_command(out, Command::PostcopyAdvise, &payload);
}

/// Throws a whole block of the destination away, so that every page of it has to come from us.
pub(super) fn put_discard(out: &mut Vec<u8>, block: &RamBlock) {
    let mut payload = vec![0];
    put_name(&mut payload, block.id());
    payload.push(0);
    payload.extend_from_slice(&0_u64.to_be_bytes());
    payload.extend_from_slice(&block.pages().bytes().to_be_bytes());
    put_command(out, Command::PostcopyRamDiscard, &payload);
}

/// Asks which pages of a block have arrived.
pub(super) fn put_recv_bitmap(out: &mut Vec<u8>, block: &RamBlock) {
    let mut payload = Vec::new();
    put_name(&mut payload, block.id());
    put_command(out, Command::RecvBitmap, &payload);
}

/// The RAM section's start: names and lengths of all blocks.
pub(super) fn put_ram_start(out: &mut Vec<u8>, ram: &RamLayout) {
    out.push(SECTION_START);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
    out.extend_from_slice(b"\x03ram");
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&RAM_VERSION.to_be_bytes());
    out.extend_from_slice(&(ram.total_bytes() | FLAG_MEM_SIZE).to_be_bytes());
    for (_, block) in ram.iter() {
        put_name(out, block.id());
        out.extend_from_slice(&block.pages().bytes().to_be_bytes());
    }
    put_ram_end_of_section(out);
}

/// Opens a section of pages.
pub(super) fn put_ram_part(out: &mut Vec<u8>) {
    out.push(SECTION_PART);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
}

/// Closes the section that [`put_ram_part`] opened.
pub(super) fn put_ram_end_of_section(out: &mut Vec<u8>) {
    out.extend_from_slice(&FLAG_EOS.to_be_bytes());
    out.push(FOOTER);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
}

/// The end of RAM and of the stream.
pub(super) fn put_end(out: &mut Vec<u8>) {
    out.push(SECTION_END);
    out.extend_from_slice(&RAM_SECTION.to_be_bytes());
    put_ram_end_of_section(out);
    out.push(EOF);
}

/// How a page's frame says which block it is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of<'a> {
    /// By name: the first frame of a section.
    Block(&'a RamBlock),
    /// The same block as the frame before.
    Same,
}

/// One page: its bytes, or the word that it is zero.
pub(super) fn put_page(out: &mut Vec<u8>, of: Of<'_>, page: PageIndex, bytes: Option<&[u8]>) {
    let kind = if bytes.is_some() { FLAG_PAGE } else { FLAG_ZERO };
    // The low bits of a page's offset are free for flags.
    let offset = page.byte_offset() | kind;
    match of {
        Of::Same => out.extend_from_slice(&(offset | FLAG_CONTINUE).to_be_bytes()),
        Of::Block(block) => {
            out.extend_from_slice(&offset.to_be_bytes());
            put_name(out, block.id());
        }
    }
    match bytes {
        Some(bytes) => out.extend_from_slice(bytes),
        None => out.push(0),
    }
}

/// A name behind its length; a [`BlockId`] has at most 255 bytes.
fn put_name(out: &mut Vec<u8>, name: &BlockId) {
    out.push(name.as_str().len() as u8);
    out.extend_from_slice(name.as_str().as_bytes());
}
