//! Our server and our client against each other, and each against QEMU's tools. Needs qemu-img, qemu-io and qemu-nbd.

use std::io;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyframe_nbd::wire::{BASE_ALLOCATION, state};
use keyframe_nbd::{Allocation, Client, Error, Export, Extent, serve_connection, serve_socket};

const LEN: u64 = 8 << 20;
/// The part that has data; the rest is zeros.
const DATA: Range<u64> = (1 << 20) + 4096..(3 << 20);
/// A part that cannot be read.
const BROKEN: u64 = 2 << 20;

#[derive(Debug)]
struct Pattern {
    broken: bool,
}

fn byte(at: u64) -> u8 {
    if DATA.contains(&at) { (at / 3 % 251) as u8 | 1 } else { 0 }
}

impl Export for Pattern {
    fn bytes(&self) -> u64 {
        LEN
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        if self.broken && (offset..end).contains(&BROKEN) {
            return Err(io::Error::other("chunk 7 is damaged"));
        }
        (offset..end).zip(into).for_each(|(at, place)| *place = byte(at));
        Ok(())
    }

    fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        let (end, allocation) = match range.start {
            at if at < DATA.start => (DATA.start, Allocation::Zero),
            at if at < DATA.end => (DATA.end, Allocation::Data),
            _ => (LEN, Allocation::Zero),
        };
        Ok(vec![Extent { len: end - range.start, allocation }])
    }

    fn will_need(&self, _: Range<u64>) {}
}

/// A client of a server that serves this connection alone.
fn client(broken: bool) -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || drop(serve_connection(&theirs, "disk0", &Pattern { broken })));
    Client::connect(ours, "disk0", &[BASE_ALLOCATION, "qemu:dirty-bitmap:none"]).unwrap()
}

#[test]
fn what_the_server_shows_is_what_the_client_reads() {
    let mut client = client(false);
    assert_eq!(client.bytes(), LEN);
    assert!(client.has_context(BASE_ALLOCATION) && !client.has_context("qemu:dirty-bitmap:none"));
    for (at, len) in [(0, 1), (DATA.start - 5, 5000), (DATA.end - 1, 3), (LEN - 4096, 4096), (0, LEN as usize)] {
        let mut buffer = vec![0xaa; len];
        client.read(at, &mut buffer).unwrap();
        assert!(buffer.iter().zip(at..).all(|(found, at)| *found == byte(at)), "{len} bytes at {at}");
    }
    client.disconnect().unwrap();
}

#[test]
fn block_status_ends_where_the_request_does() {
    let mut client = client(false);
    let told = client.block_status(BASE_ALLOCATION, 0..LEN).unwrap();
    assert_eq!((u64::from(told[0].len), told[0].word), (DATA.start, state::HOLE | state::ZERO));
    let told = client.block_status(BASE_ALLOCATION, DATA.start..DATA.start + 10).unwrap();
    assert_eq!((told[0].len, told[0].word), (10, 0));
    assert!(matches!(client.block_status("qemu:dirty-bitmap:none", 0..LEN), Err(Error::Refused { .. })));
}

#[test]
fn an_error_is_told_with_its_words_and_the_connection_goes_on() {
    let mut client = client(true);
    let mut buffer = vec![0; 4096];
    let error = client.read(BROKEN, &mut buffer).unwrap_err();
    let Error::Request { errno: 5, message, .. } = error else { panic!("{error:?}") };
    assert_eq!(message, "chunk 7 is damaged");
    client.read(DATA.start, &mut buffer).unwrap();
    assert!(matches!(client.read(LEN - 1, &mut buffer), Err(Error::Range { .. })));
}

#[test]
fn an_export_of_another_name_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || drop(serve_connection(&theirs, "disk0", &Pattern { broken: false })));
    assert!(matches!(Client::connect(ours, "disk1", &[]), Err(Error::Refused { .. })));
}

/// A server at a socket, which ends with this.
struct Serving {
    dir: tempfile::TempDir,
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Serving {
    fn start(broken: bool) -> Self {
        Self::show(Arc::new(Pattern { broken }))
    }

    fn show(export: Arc<dyn Export>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("nbd")).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&end);
        let thread = std::thread::spawn(move || serve_socket(&listener, "disk0", &export, &stop).unwrap());
        Self { dir, end, thread: Some(thread) }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk0?socket={}", self.dir.path().join("nbd").display())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[test]
fn qemu_reads_our_server_and_sees_its_holes() {
    let serving = Serving::start(false);
    let copy = serving.dir.path().join("copy.raw");
    let (good, said) = run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &serving.uri(), copy.to_str().unwrap()]);
    assert!(good, "{said}");
    let copied = std::fs::read(&copy).unwrap();
    assert_eq!(copied.len() as u64, LEN);
    assert!(copied.iter().zip(0..).all(|(found, at)| *found == byte(at)));
    let (good, map) = run("qemu-img", &["map", "-f", "raw", "--output=json", &serving.uri()]);
    assert!(good && map.contains(&format!("\"start\": {}", DATA.start)), "{map}");
    let (_, said) = run("qemu-io", &["-f", "raw", "-c", "write 0 4096", &serving.uri()]);
    assert!(["read-only", "Permission denied"].iter().any(|word| said.contains(word)), "{said}");
}

#[test]
fn qemu_is_told_of_what_cannot_be_read() {
    let serving = Serving::start(true);
    let (_, said) = run("qemu-io", &["-r", "-f", "raw", "-c", &format!("read {BROKEN} 4096"), &serving.uri()]);
    assert!(said.contains("Input/output error"), "{said}");
}

/// Its first page can be read only after its last one was.
#[derive(Debug, Default)]
struct Backwards {
    last_was_read: AtomicBool,
}

impl Export for Backwards {
    fn bytes(&self) -> u64 {
        LEN
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(7);
        if offset > 0 {
            self.last_was_read.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.last_was_read.load(Ordering::Relaxed) {
            if Instant::now() > deadline {
                return Err(io::Error::other("nobody came by"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { len: range.end - range.start, allocation: Allocation::Absent }])
    }

    fn will_need(&self, _: Range<u64>) {}
}

#[test]
fn a_read_that_takes_long_does_not_hold_up_another() {
    let serving = Serving::show(Arc::new(Backwards::default()));
    let last = format!("read -P 7 {} 4096", LEN - 4096);
    let words = ["-r", "-f", "raw", "-c", "aio_read -P 7 0 4096", "-c", &last, "-c", "aio_flush", &serving.uri()];
    let (good, said) = run("qemu-io", &words);
    assert!(good && !said.contains("rror"), "{said}");
}

#[test]
fn what_was_never_there_is_left_out_of_a_copy() {
    let serving = Serving::show(Arc::new(Backwards::default()));
    let top = serving.dir.path().join("top.qcow2");
    let top = top.to_str().unwrap();
    let (good, said) = run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &serving.uri(), top]);
    assert!(good, "{said}");
    // As `block-stream` does: it copies what is allocated below, and then stands on nothing.
    let (good, map) = run("qemu-img", &["map", "--output=json", top]);
    assert!(good && map.contains("\"present\": false") && !map.contains("\"present\": true"), "{map}");
}

/// A qemu-nbd that ends with this.
struct QemuNbd(Child);

impl QemuNbd {
    fn serve(image: &Path, socket: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-x", "export", "-e", "4", "-f", "qcow2", "-k"]).arg(socket).args(more).arg(image);
        let child = Self(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_client_reads_qemu_its_allocation_and_its_dirty_bitmap() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image.qcow2"), dir.path().join("socket"));
    let name = image.to_str().unwrap();
    for (program, words) in [
        ("qemu-img", vec!["create", "-q", "-f", "qcow2", name, "8M"]),
        ("qemu-io", vec!["-f", "qcow2", "-c", "write -P 7 1M 128k", name]),
        ("qemu-img", vec!["bitmap", "--add", "--enable", "-g", "64k", name, "b0"]),
        ("qemu-io", vec!["-f", "qcow2", "-c", "write -P 9 4M 64k", name]),
    ] {
        let (good, said) = run(program, &words);
        assert!(good, "{program} {words:?}: {said}");
    }
    let _server = QemuNbd::serve(&image, &socket, &["-B", "b0"]);
    let bitmap = "qemu:dirty-bitmap:b0";
    let stream = UnixStream::connect(&socket).unwrap();
    let mut client = Client::connect(stream, "export", &[BASE_ALLOCATION, bitmap]).unwrap();
    assert_eq!(client.bytes(), LEN);
    let set = |client: &mut Client, context: &str, wanted: &dyn Fn(u32) -> bool| {
        let mut found = Vec::new();
        let mut at = 0;
        while at < LEN {
            for status in client.block_status(context, at..LEN).unwrap() {
                if wanted(status.word) {
                    found.push(at..at + u64::from(status.len));
                }
                at += u64::from(status.len);
            }
        }
        found
    };
    const MIB: u64 = 1 << 20;
    let dirty = 4 * MIB..4 * MIB + (64 << 10);
    assert_eq!(set(&mut client, bitmap, &|word| word & 1 != 0), vec![dirty]);
    let data = set(&mut client, BASE_ALLOCATION, &|word| word & state::ZERO == 0);
    assert_eq!(data, [MIB..MIB + (128 << 10), 4 * MIB..4 * MIB + (64 << 10)]);
    let mut buffer = vec![0; 256 << 10];
    client.read(MIB, &mut buffer).unwrap();
    assert!(buffer[..128 << 10].iter().all(|byte| *byte == 7) && buffer[128 << 10..].iter().all(|byte| *byte == 0));
    client.disconnect().unwrap();
}
