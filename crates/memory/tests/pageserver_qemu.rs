//! Lazy reverts of a real guest by a real QEMU. The guest's own checker says `CORRUPT` if a page is wrong.

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyframe_memory::MemoryImage;
use keyframe_memory::pageserver::{Errand, ImageAt, RecoveryError, ServerConfig, invite};
use keyframe_qmp::commands::migration::MigrationStatus;
use keyframe_vmstate::BlockIndex;
use support::{PATIENCE, Server, Vm, one_at_a_time, snapshot, wait_for, work_dir};

const RAM_MB: u64 = 512;
const USED_MB: u64 = 300;

/// A QEMU that awaits the snapshot, the config of its page server, and where both leave things.
fn awaiting(name: &str) -> (Vm, ServerConfig, PathBuf) {
    let snapshot = snapshot(RAM_MB, USED_MB);
    let dir = work_dir(name);
    let mut vm = Vm::start(&dir, RAM_MB, &["-incoming", "defer"]);
    let socket = dir.join("pages");
    vm.await_migration(&socket);
    (vm, snapshot.server(&socket), dir)
}

#[test]
fn a_guest_runs_at_once_and_is_whole_in_the_end() {
    let _alone = one_at_a_time();
    let (mut vm, config, dir) = awaiting("whole");
    let started = Instant::now();
    let server = Server::start(&dir, "first", &config);
    vm.wait_serial("\nT ");
    eprintln!("the guest visibly went on after {:?}", started.elapsed());
    assert!(server.end(), "the page server failed");
    eprintln!("its memory was complete after {:?}", started.elapsed());
    wait_for("the migration's end", PATIENCE, || {
        (vm.migration_status() == Some(MigrationStatus::Completed)).then_some(())
    });
    assert!(vm.is_running());
    vm.assert_intact(3);
}

#[test]
fn what_one_server_learned_spares_the_next_its_requests() {
    let _alone = one_at_a_time();
    let mut hot = None;
    let figures = ["cold", "hot"].map(|name| {
        let (vm, mut config, dir) = awaiting("learned");
        config.hot = hot.take();
        let server = Server::start(&dir, name, &config);
        let figures = server.figures();
        vm.assert_intact(1);
        let learned = std::env::temp_dir().join(format!("keyframe-learned-{}", std::process::id()));
        std::fs::copy(dir.join(format!("{name}.hot")), &learned).expect("what was learned");
        hot = Some(learned);
        figures
    });
    let _tidy = hot.map(std::fs::remove_file);
    let [cold, hot] = figures;
    // All of these the first server was asked for before it had sent them.
    eprintln!("of {} extents that were asked for, {} came in time", hot.hot_extents, hot.hot_extents_in_time);
    assert_eq!((cold.hot_extents, cold.hot_extents_in_time), (0, 0));
    assert!(hot.hot_extents > 20, "the guest asked for {} extents", hot.hot_extents);
    assert!(hot.hot_extents_in_time * 10 > hot.hot_extents * 8, "{hot:?}");
}

#[test]
fn a_server_that_is_killed_twice_is_replaced_and_the_guest_is_whole() {
    let _alone = one_at_a_time();
    for (round, delay_ms) in [0, 5, 40, 150, 300].into_iter().enumerate() {
        let (mut vm, mut config, dir) = awaiting("killed");
        let server = Server::start(&dir, "first", &config);
        server.wait_told("devices-loaded");
        // Before the guest runs there is nothing worth saving, and QEMU gives up for good.
        wait_for("the guest to run", PATIENCE, || vm.is_running().then_some(()));
        std::thread::sleep(Duration::from_millis(delay_ms));
        server.kill();
        config.errand = Errand::Resume;
        for (again, delay_ms) in [("second", Some(delay_ms / 2)), ("third", None)] {
            config.socket = dir.join(again);
            match invite(&mut vm.monitor, &config.socket, Duration::from_secs(5)) {
                Ok(()) => {}
                // It was done before it was killed.
                Err(RecoveryError::Refused { .. }) if round > 0 => break,
                Err(error) => panic!("{error:?}: {}", vm.log()),
            }
            let server = Server::start(&dir, again, &config);
            let Some(delay_ms) = delay_ms else {
                assert!(server.end(), "{again} failed: {}", server_errors(&dir, again));
                break;
            };
            server.wait_told("resumed");
            std::thread::sleep(Duration::from_millis(delay_ms));
            server.kill();
        }
        wait_for("the migration's end", PATIENCE, || {
            (vm.migration_status() == Some(MigrationStatus::Completed)).then_some(())
        });
        vm.assert_intact(2);
    }
}

fn server_errors(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(format!("{name}.err"))).unwrap_or_default()
}

#[test]
fn a_server_that_dies_while_it_resumes_is_replaced() {
    let _alone = one_at_a_time();
    let (mut vm, mut config, dir) = awaiting("handshake");
    let server = Server::start(&dir, "first", &config);
    server.wait_told("devices-loaded");
    wait_for("the guest to run", PATIENCE, || vm.is_running().then_some(()));
    server.kill();
    // Nobody comes to the first new socket; whoever comes to the second says nothing.
    invite(&mut vm.monitor, &dir.join("unused"), PATIENCE).expect("QEMU listens again");
    invite(&mut vm.monitor, &dir.join("silent"), PATIENCE).expect("QEMU listens once more");
    drop(UnixStream::connect(dir.join("silent")).expect("QEMU listens"));
    config.errand = Errand::Resume;
    config.socket = dir.join("last");
    invite(&mut vm.monitor, &config.socket, PATIENCE).expect("QEMU listens a third time");
    assert!(Server::start(&dir, "last", &config).end(), "{}", server_errors(&dir, "last"));
    vm.assert_intact(2);
}

#[test]
fn a_stream_that_ends_before_the_devices_are_loaded_fails_for_good() {
    let _alone = one_at_a_time();
    let (mut vm, config, _) = awaiting("early");
    // A stream that ends within the opening.
    let stream = UnixStream::connect(&config.socket).expect("QEMU listens");
    std::io::Write::write_all(&mut &stream, b"QEVM\0\0\0\x03\x07\0\0").expect("written");
    drop(stream);
    wait_for("QEMU's verdict", PATIENCE, || (vm.migration_status() == Some(MigrationStatus::Failed)).then_some(()));
    let refused = invite(&mut vm.monitor, &config.socket, Duration::from_millis(50));
    assert!(matches!(refused, Err(RecoveryError::Refused { .. })), "{refused:?}");
}

#[test]
fn a_flipped_bit_is_named_and_the_guest_never_sees_it() {
    let _alone = one_at_a_time();
    let good = snapshot(RAM_MB, USED_MB);
    let image = MemoryImage::open(&good.image, &good.sums).expect("image");
    let ram = BlockIndex::new(0).expect("the first block");
    // Far from the start, so that the guest runs before the background comes to it.
    let held = image.bitmap(ram).expect("bitmap").runs().last().expect("pages").0;
    let offset = image.layout().get(ram).expect("block").page_offset(held).expect("page");
    drop(image);
    let (mut vm, mut config, dir) = awaiting("flipped");
    let mapped = dir.join("memory.mapped");
    config.image = ImageAt::Files { mapped: mapped.clone(), sums: good.sums.clone() };
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([&good.image, &mapped])
        .status();
    assert!(copied.expect("cp").success());
    flip_bit(&mapped, offset + 77);
    let server = Server::start(&dir, "first", &config);
    assert!(!server.end(), "the damage was not noticed");
    let errors = server_errors(&dir, "first");
    let extent = held.extent().byte_offset();
    let (block, place) = ("RAM block ram0", format!("at {extent:#x} of"));
    let file = mapped.display().to_string();
    assert!([block, &place, &file].iter().all(|word| errors.contains(*word)), "{errors}");
    // The good image is at hand: the caller decides to go on with it, and the guest has lost nothing.
    config.image = good.image_at();
    config.errand = Errand::Resume;
    config.socket = dir.join("second");
    invite(&mut vm.monitor, &config.socket, PATIENCE).expect("QEMU listens again");
    assert!(Server::start(&dir, "second", &config).end(), "{}", server_errors(&dir, "second"));
    vm.assert_intact(2);
}

fn flip_bit(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("write");
    file.sync_all().expect("sync");
}

#[test]
fn an_invitation_that_cannot_be_taken_is_refused() {
    let _alone = one_at_a_time();
    let (mut vm, config, _) = awaiting("refused");
    let refused = invite(&mut vm.monitor, &config.socket, Duration::from_millis(50));
    assert!(matches!(refused, Err(RecoveryError::Refused { .. })), "{refused:?}");
}
