//! Bytes that a server shows, for as long as it takes: a server that dies comes back on the same socket.
//!
//! What the server says cannot be read is an error. Anything else - a connection that breaks, nobody who listens - is waited
//! out, until the directory of the socket is gone: then there is nobody left to wait for.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyframe_nbd::Client;
use keyframe_nbd::wire::PAYLOAD_MOST;

/// How long after a failure the server is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// Reads an export; shared by threads, each of which has a connection while it reads.
#[derive(Debug)]
pub(crate) struct ExportReader {
    socket: PathBuf,
    name: String,
    bytes: u64,
    idle: Mutex<Vec<Client>>,
}

impl ExportReader {
    /// Asks the server how long the export is.
    pub fn open(socket: &Path, name: &str) -> io::Result<Self> {
        let mut export = Self { socket: socket.to_owned(), name: name.to_owned(), bytes: 0, idle: Mutex::default() };
        let client = export.client()?;
        export.bytes = client.bytes();
        export.give_back(client);
        Ok(export)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills a buffer: all of it, or nothing that may be used.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        buf.chunks_mut(PAYLOAD_MOST as usize).try_for_each(|chunk| {
            self.read_one(chunk, at)?;
            at += chunk.len() as u64;
            Ok(())
        })
    }

    fn read_one(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        loop {
            let mut client = self.client()?;
            if client.bytes() != self.bytes {
                return Err(io::Error::other("the export has another length than before"));
            }
            match client.read(offset, buf) {
                Ok(()) => {
                    self.give_back(client);
                    return Ok(());
                }
                Err(error @ (keyframe_nbd::Error::Request { .. } | keyframe_nbd::Error::Range { .. })) => {
                    self.give_back(client);
                    return Err(io::Error::other(error));
                }
                // The connection is of no use any more; another one may be.
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    fn client(&self) -> io::Result<Client> {
        loop {
            if let Some(client) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                return Ok(client);
            }
            let dir = self.socket.parent().unwrap_or(Path::new("/"));
            let dir =
                std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
            // An address holds 107 bytes, and the directory may lie deeper.
            let through = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let path = Path::new(&through).join(self.socket.file_name().unwrap_or_default());
            match UnixStream::connect(path).map(|stream| Client::connect(stream, &self.name, &[])) {
                Ok(Ok(client)) if client.wait_for_ever().is_ok() => return Ok(client),
                Ok(Err(keyframe_nbd::Error::Refused { why, .. })) => return Err(io::Error::other(why)),
                _ => std::thread::sleep(AGAIN),
            }
        }
    }

    fn give_back(&self, client: Client) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use keyframe_nbd::{Allocation, Export, Extent, serve_connection};

    use super::*;

    struct Counting;

    impl Export for Counting {
        fn bytes(&self) -> u64 {
            1 << 20
        }

        fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            if offset >= 512 << 10 {
                return Err(io::Error::other("a page is damaged"));
            }
            (offset..).zip(into).for_each(|(at, byte)| *byte = at as u8);
            Ok(())
        }

        fn extents(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
            Ok(vec![Extent { len: range.end - range.start, allocation: Allocation::Data }])
        }

        fn will_need(&self, _: Range<u64>) {}
    }

    /// Serves so many connections, one request or so each, then is gone.
    fn serve(socket: &Path, connections: usize) -> std::thread::JoinHandle<()> {
        let _stale = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for _ in 0..connections {
                let (stream, _) = listener.accept().unwrap();
                let other = stream.try_clone().unwrap();
                let export: Arc<dyn Export> = Arc::new(Counting);
                let serving = std::thread::spawn(move || drop(serve_connection(&stream, "memory", &*export)));
                std::thread::sleep(Duration::from_millis(100));
                other.shutdown(std::net::Shutdown::Both).unwrap();
                serving.join().unwrap();
            }
        })
    }

    #[test]
    fn a_server_that_dies_is_waited_for_and_damage_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("memory.sock");
        let first = serve(&socket, 1);
        let export = ExportReader::open(&socket, "memory").unwrap();
        let mut bytes = [0; 5];
        export.read_at(&mut bytes, 254).unwrap();
        assert_eq!(bytes, [254, 255, 0, 1, 2]);
        first.join().unwrap();
        let later = std::thread::spawn({
            let socket = socket.clone();
            move || {
                std::thread::sleep(Duration::from_millis(200));
                serve(&socket, 2).join().unwrap();
            }
        });
        export.read_at(&mut bytes, 1).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        let damaged = export.read_at(&mut bytes, 512 << 10).unwrap_err();
        assert!(damaged.to_string().contains("a page is damaged"), "{damaged}");
        // By now this connection is broken, too.
        std::thread::sleep(Duration::from_millis(300));
        drop(dir);
        assert!(export.read_at(&mut bytes, 1).is_err(), "nobody will ever listen there again");
        drop(later);
    }
}
