//! A unix stream socket with deadlines, shared by the monitor's and the agent's client.
//!
//! The socket is non-blocking and waits in `ppoll(2)`. Waiting to write also watches for input, so
//! that two peers with full buffers cannot wait for each other.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};

use crate::error::{Error, Result};

/// Longest path of a unix socket, in bytes. Source: unix(7), `sun_path[108]` with its zero.
const SOCKET_PATH_MAX: usize = 107;
/// How long to leave a listener alone whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// What came of trying to read.
pub(crate) enum Read<'a> {
    Bytes(&'a [u8]),
    Nothing,
    End,
}

/// What a socket is ready for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub readable: bool,
    pub writable: bool,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    ReadOrWrite,
}

#[derive(Debug)]
pub(crate) struct Transport {
    socket: OwnedFd,
    peer: String,
    buffer: Box<[u8]>,
}

impl Transport {
    /// Connects before the deadline; a listener whose backlog is full is tried again until then.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let failed = |errno: Errno| Error::Connect { path: path.to_owned(), source: errno.into() };
        let len = path.as_os_str().len();
        if len > SOCKET_PATH_MAX {
            return Err(Error::PathTooLong { path: path.to_owned(), len, max: SOCKET_PATH_MAX });
        }
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self::new(socket, path.display().to_string())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(BACKLOG_PAUSE),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Takes over a connected socket.
    pub fn from_stream(stream: UnixStream) -> Result<Self> {
        let peer = stream
            .peer_addr()
            .ok()
            .and_then(|a| a.as_pathname().map(|p| p.display().to_string()))
            .unwrap_or_else(|| "unnamed socket".to_owned());
        if let Err(source) = stream.set_nonblocking(true) {
            return Err(Error::Io { peer, source });
        }
        Ok(Self::new(stream.into(), peer))
    }

    fn new(socket: OwnedFd, peer: String) -> Self {
        Self { socket, peer, buffer: vec![0; READ_BYTES].into_boxed_slice() }
    }

    /// Name of the other end, for messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Waits until the socket is ready or the deadline has passed (then neither is set).
    pub fn wait(&self, interest: Interest, deadline: Instant) -> Result<Ready> {
        let flags = match interest {
            Interest::Read => PollFlags::IN,
            Interest::ReadOrWrite => PollFlags::IN | PollFlags::OUT,
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), flags)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(_) => {
                    let [fd] = &fds;
                    let got = fd.revents();
                    let over = got.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
                    return Ok(Ready {
                        readable: over || got.contains(PollFlags::IN),
                        writable: got.contains(PollFlags::OUT),
                    });
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    /// Reads what is there, without waiting.
    pub fn read(&mut self) -> Result<Read<'_>> {
        loop {
            match recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(Read::End),
                Ok((got, _)) => return Ok(Read::Bytes(self.buffer.get(..got).unwrap_or_default())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Read::Nothing),
                Err(Errno::CONNRESET) => return Ok(Read::End),
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    /// Writes what the socket takes, without waiting, `fd` attached to the first byte. Returns the
    /// number of bytes taken, 0 if none.
    pub fn write(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // The space above is for one descriptor, and one is what there is.
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.socket, &[io::IoSlice::new(bytes)], &mut control, flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(Error::Disconnected { peer: self.peer.clone() });
                }
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::Io { peer: self.peer.clone(), source: errno.into() }
    }
}

/// Whoever owns a transport and can take input while it writes.
pub(crate) trait Peer {
    fn transport(&self) -> &Transport;

    /// Takes what can be read now; an error where there will be no more.
    fn absorb(&mut self) -> Result<()>;
}

/// Writes a whole line before the deadline, `fd` attached to its first byte. After an error the line
/// may be half written.
pub(crate) fn write_line(
    peer: &mut impl Peer,
    command: &str,
    line: &[u8],
    mut fd: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<()> {
    let start = Instant::now();
    let mut rest = line;
    loop {
        let sent = peer.transport().write(rest, fd)?;
        if sent > 0 {
            fd = None;
            rest = rest.get(sent..).unwrap_or_default();
        }
        if rest.is_empty() {
            return Ok(());
        }
        let ready = peer.transport().wait(Interest::ReadOrWrite, deadline)?;
        if ready.readable {
            peer.absorb()?;
        }
        if !ready.writable && Instant::now() >= deadline {
            let (peer, command) = (peer.transport().peer().to_owned(), command.to_owned());
            return Err(Error::WriteTimeout { peer, command, waited: start.elapsed() });
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
