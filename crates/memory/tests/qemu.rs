//! Needs QEMU: real streams captured, and loaded again by the QEMU they came from.

mod common;
#[path = "common/qemu.rs"]
mod qemu;

use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::Place;
use keyframe_memory::capture::{CaptureOptions, CaptureProgress, CaptureReport, DirectIo, capture, channel};
use keyframe_memory::seal::{Repair, repair_bitmaps, write_sums};
use keyframe_memory::verify::{VerifyProgress, verify_all};
use keyframe_memory::{Error, MemoryImage};
use qemu::{Memory, Qemu, RAM_MIB};

static NEVER: AtomicBool = AtomicBool::new(false);

/// A machine that has got through its BIOS and stands still, its memory and registers.
fn stopped_machine(dir: &Path) -> (Qemu, Vec<u8>, String) {
    let mut source = Qemu::start(dir, "source", &Memory::Anonymous, &[]);
    std::thread::sleep(Duration::from_millis(1500));
    source.ask(r#"{"execute":"stop"}"#);
    let (memory, registers) = (source.memory(), source.registers());
    assert!(memory.iter().any(|byte| *byte != 0), "the BIOS has left something");
    (source, memory, registers)
}

/// Captures through a pipe; QEMU begins while nobody reads yet.
fn capture_from(source: &mut Qemu, place: &Place) -> Result<CaptureReport, Error> {
    let (for_qemu, input) = channel().expect("a pipe");
    source.migrate_to(for_qemu);
    capture_input(input, place)
}

fn capture_input(input: OwnedFd, place: &Place) -> Result<CaptureReport, Error> {
    let (options, progress) = (CaptureOptions::default(), CaptureProgress::default());
    capture(input, &place.paths, &options, &progress, &NEVER)
}

fn assert_loads(dir: &Path, file: &Path, memory: &[u8], registers: &str) {
    let mut target = Qemu::start(dir, "target", &Memory::Anonymous, &["-S", "-incoming", "defer"]);
    target.load(file);
    assert!(target.memory() == memory, "memory differs after loading {}", file.display());
    assert_eq!(target.registers(), registers);
}

fn assert_intact(image: &MemoryImage) {
    let progress = VerifyProgress::default();
    let report = verify_all(image, NonZeroUsize::MIN, &progress, &NEVER).expect("runs");
    assert!(report.is_intact(), "{report:?}");
}

#[test]
fn a_background_snapshot_loads_and_maps_exactly() {
    let place = Place::new();
    let dir = place.paths.mapped.parent().expect("a directory");
    let (mut source, memory, registers) = stopped_machine(dir);
    source.capabilities(&["background-snapshot"]);
    let report = capture_from(&mut source, &place).expect("captured");
    assert_eq!(report.pages_repeated, 0);
    assert!(matches!(report.direct_io, DirectIo::Used), "{report:?}");

    let image = place.open().expect("opens");
    assert!(image.layout().configuration().machine().starts_with("pc-q35-"));
    assert!(image.ram().blocks().len() > 3, "ROMs and video memory too: {:?}", image.ram());
    assert_intact(&image);
    assert_loads(dir, &place.paths.mapped, &memory, &registers);

    let lazy = image.ram().find("ram0").expect("main memory");
    let offset = image.layout().get(lazy).expect("placed").pages_offset();
    let devices = dir.join("devices.mapped");
    let small = image.write_devices_only(lazy, &devices).expect("written");
    assert!(small < (RAM_MIB << 20) / 2, "{small} bytes");
    let mapped = Memory::Mapped(&place.paths.mapped, offset);
    let mut fork = Qemu::start(dir, "fork", &mapped, &["-S", "-incoming", "defer"]);
    fork.load(&devices);
    assert!(fork.memory() == memory, "memory differs when mapped");
    assert_eq!(fork.registers(), registers);
}

#[test]
fn an_ordinary_migration_of_a_stopped_machine_loads_exactly() {
    let place = Place::new();
    let dir = place.paths.mapped.parent().expect("a directory");
    let (mut source, memory, registers) = stopped_machine(dir);
    source.capabilities(&[]);
    capture_from(&mut source, &place).expect("captured");
    assert_intact(&place.open().expect("opens"));
    assert_loads(dir, &place.paths.mapped, &memory, &registers);
}

#[test]
fn files_that_qemu_wrote_are_understood_and_repaired() {
    let place = Place::new();
    let dir = place.paths.mapped.parent().expect("a directory");
    let (mut source, memory, registers) = stopped_machine(dir);

    // With background-snapshot QEMU 10 leaves the bitmaps empty: all zeroes when loaded.
    source.capabilities(&["background-snapshot", "mapped-ram"]);
    let broken = dir.join("qemu-background.mapped");
    source.migrate(&format!("file:{}", broken.display()));
    source.wait("query-migrate", r#""status": "completed""#);
    let repaired = repair_bitmaps(&broken).expect("repaired");
    assert!(matches!(repaired, Repair::Done { pages } if pages > 100), "{repaired:?}");
    assert_eq!(repair_bitmaps(&broken).expect("looked"), Repair::NotNeeded);
    assert_loads(dir, &broken, &memory, &registers);

    source.capabilities(&["background-snapshot"]);
    capture_from(&mut source, &place).expect("captured");
    let ours = place.open().expect("opens");

    // An ordinary migration's file is right, and our layout is the one it has. It comes last: QEMU
    // does not migrate a machine again that has been migrated away.
    source.capabilities(&["mapped-ram"]);
    let own = dir.join("qemu-own.mapped");
    source.migrate(&format!("file:{}", own.display()));
    source.wait("query-migrate", r#""status": "completed""#);
    assert_eq!(repair_bitmaps(&own).expect("looked"), Repair::NotNeeded);
    let sums = dir.join("qemu-own.b3");
    write_sums(&own, &sums).expect("sealed");
    let qemus = MemoryImage::open(&own, &sums).expect("opens");
    assert_intact(&qemus);
    for (a, b) in ours.layout().blocks().iter().zip(qemus.layout().blocks()) {
        assert_eq!(a, b, "QEMU places a block elsewhere");
    }
}

#[test]
fn a_socket_serves_as_well_as_a_pipe() {
    let place = Place::new();
    let dir = place.paths.mapped.parent().expect("a directory");
    let (mut source, memory, registers) = stopped_machine(dir);
    source.capabilities(&["background-snapshot"]);
    let socket = dir.join("out.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    source.migrate(&format!("unix:{}", socket.display()));
    let (input, _) = listener.accept().expect("QEMU has called");
    let report = capture_input(OwnedFd::from(input), &place);
    report.expect("captured");
    assert_loads(dir, &place.paths.mapped, &memory, &registers);
}

/// Whatever happens to the capture, the guest runs.
#[test]
fn a_capture_given_up_leaves_the_machine_running() {
    let place = Place::new();
    let dir = place.paths.mapped.parent().expect("a directory");
    let mut source = Qemu::start(dir, "source", &Memory::Anonymous, &[]);
    source.capabilities(&["background-snapshot"]);
    let (for_qemu, input) = channel().expect("a pipe");
    let cancel = AtomicBool::new(true);
    source.migrate_to(for_qemu);
    let (options, progress) = (CaptureOptions::default(), CaptureProgress::default());
    let error = capture(input, &place.paths, &options, &progress, &cancel).expect_err("cancelled");
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !source.ask(r#"{"execute":"query-migrate"}"#).contains(r#""status": "failed""#) {
        assert!(std::time::Instant::now() < deadline, "QEMU has not noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // A failure between QEMU's own stop and resume leaves the guest paused: whoever gives up says cont.
    source.ask(r#"{"execute":"cont"}"#);
    source.wait("query-status", r#""running": true"#);
    fs::remove_file(&place.paths.mapped).expect("left for the caller to delete");

    let again = Place::new();
    capture_from(&mut source, &again).expect("the next one succeeds");
    assert_intact(&again.open().expect("opens"));
}
