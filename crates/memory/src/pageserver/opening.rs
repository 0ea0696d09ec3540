//! The first words on a connection: everything up to the package, or the resume's questions and answers.
//!
//! The socket blocks here, with a time limit: until the package is out the destination has nothing to ask.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_vmstate::postcopy::{Opening, Pages, Resume, Resumed, Source, extent_run};
use keyframe_vmstate::ram::RamLayout;
use keyframe_vmstate::{BlockIndex, ExtentIndex};
use rustix::net::sockopt;

use super::{ExtentAt, Observer, PageServerError, PageSource, Stage, extent_bytes};
use crate::ExtentBuf;

/// How long the destination may stay silent before the vCPUs run, or while it resumes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a socket may take to appear.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The same where it is known that the destination is on its way.
const COMES_WITHIN: Duration = Duration::from_secs(600);

/// Bytes that the kernel may hold on their way to the destination, roughly. QEMU takes some 500 MB/s or more,
/// so a request waits half a millisecond at most for background data that is already out of our hands.
const SEND_BUFFER_BYTES: usize = 192 << 10;

/// Blocks up to this length go with the opening: firmware, tables, option ROMs. Larger ones are lazy.
const EAGER_BYTES: u64 = 1 << 20;

/// Pages are written out whenever this many bytes have come together.
const WRITE_BYTES: usize = 1 << 20;

/// Connects to QEMU's socket, waiting for it to appear as long as `observer` knows that it is coming.
pub(super) fn connect(socket: &Path, stage: Stage, observer: &dyn Observer) -> Result<UnixStream, PageServerError> {
    // A server may be started together with its destination.
    let begun = Instant::now();
    let is_vain = || match observer.is_coming() {
        Some(true) => begun.elapsed() >= COMES_WITHIN,
        Some(false) => true,
        None => begun.elapsed() >= CONNECT_WITHIN,
    };
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(source) if is_vain() => {
                return Err(PageServerError::Connect { stage, socket: socket.to_owned(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Limits how long the first words may take and how much may be under way.
pub(super) fn prepare(stream: &UnixStream, stage: Stage) -> Result<(), PageServerError> {
    let set_up = |source| PageServerError::Setup { stage, source };
    stream.set_read_timeout(Some(PATIENCE)).map_err(set_up)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(set_up)?;
    sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER_BYTES).map_err(|error| set_up(error.into()))
}

/// The blocks that are loaded lazily: the large ones, and the largest in any case.
pub(super) fn lazy_blocks(ram: &RamLayout) -> Vec<BlockIndex> {
    let largest = ram.largest();
    let lazy = ram.iter().filter(|(block, b)| b.pages().bytes() > EAGER_BYTES || Some(*block) == largest);
    lazy.map(|(block, _)| block).collect()
}

/// Sends everything up to the package. Says how many bytes that were, too.
pub(super) fn open(
    mut stream: &UnixStream,
    pages: &dyn PageSource,
    lazy: &[BlockIndex],
) -> Result<(Source, u64), PageServerError> {
    let stage = Stage::Opening;
    let bad_page = |source| PageServerError::Page { stage, source };
    let protocol = |source| PageServerError::Protocol { stage, source };
    let devices = pages.devices().map_err(bad_page)?;
    let (mut out, mut written) = (Vec::new(), 0);
    let ram = Arc::clone(pages.ram());
    let mut opening = Opening::start(pages.configuration(), Arc::clone(&ram), lazy, &mut out).map_err(protocol)?;
    let mut buffer = ExtentBuf::new();
    for at in eager_extents(&ram, &opening) {
        let Some(run) = extent_run(&ram, at.block, at.extent) else { continue };
        pages.read(at, &mut buffer).map_err(bad_page)?;
        let bytes = buffer.bytes().get(..extent_bytes(&ram, at));
        if let Some(pages) = bytes.and_then(|bytes| Pages::new(run, bytes)) {
            opening.eager(pages, &mut out);
        }
        if out.len() >= WRITE_BYTES {
            written += write_out(&mut stream, &mut out, stage)?;
        }
    }
    let source = opening.package(&devices, &mut out).map_err(protocol)?;
    written += write_out(&mut stream, &mut out, stage)?;
    Ok((source, written))
}

fn eager_extents(ram: &RamLayout, opening: &Opening) -> Vec<ExtentAt> {
    let extents = |block: BlockIndex| {
        let count = ram.get(block).map_or(0, |block| block.pages().extents());
        (0..count).filter_map(ExtentIndex::new).map(move |extent| ExtentAt { block, extent })
    };
    opening.eager_blocks().flat_map(extents).collect()
}

/// Asks a paused destination what it has, and tells it to go on.
pub(super) fn resume(mut stream: &UnixStream, ram: &Arc<RamLayout>) -> Result<Source, PageServerError> {
    let stage = Stage::Serving;
    let protocol = |source| PageServerError::Protocol { stage, source };
    let mut out = Vec::new();
    let mut resume = Resume::start(Arc::clone(ram), &mut out);
    let mut bytes = vec![0; 64 << 10];
    loop {
        write_out(&mut stream, &mut out, stage)?;
        let count = match stream.read(&mut bytes) {
            Ok(0) => return Err(PageServerError::Lost { stage }),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error, stage)),
        };
        match resume.receive(bytes.get(..count).unwrap_or_default(), &mut out).map_err(protocol)? {
            Resumed::Waiting(waiting) => match waiting.shut() {
                Some(code) => return Err(PageServerError::GivenUp { stage, code }),
                None => resume = waiting,
            },
            Resumed::Done(source) => return Ok(source),
        }
    }
}

fn write_out(stream: &mut &UnixStream, out: &mut Vec<u8>, stage: Stage) -> Result<u64, PageServerError> {
    stream.write_all(out).map_err(|error| failed(error, stage))?;
    let written = out.len() as u64;
    out.clear();
    Ok(written)
}

fn failed(error: io::Error, stage: Stage) -> PageServerError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            PageServerError::Silent { stage, seconds: PATIENCE.as_secs() }
        }
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => PageServerError::Lost { stage },
        _ => PageServerError::Socket { stage, source: error },
    }
}
