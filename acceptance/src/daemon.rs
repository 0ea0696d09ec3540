//! A `keyframe serve` at work, and HTTP spoken with it on its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::process::ProcessId;
use crate::running::Running;

/// How long a daemon may take to answer its first request.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A port of the loopback interface that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    let find = || std::net::TcpListener::bind("127.0.0.1:0")?.local_addr();
    find().map(|address| address.port()).map_err(Error::file("listen on", Path::new("127.0.0.1:0")))
}

/// A daemon. It ends with its home.
pub struct Daemon<'h> {
    home: &'h Home,
    running: Running,
}

/// What it answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its head, as it came.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl<'h> Daemon<'h> {
    /// Starts one with these further arguments, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(home: &'h Home, arguments: &[&str]) -> Result<Self> {
        let running = home.start([&["serve"], arguments].concat())?;
        let daemon = Self { home, running };
        let begun = Instant::now();
        while daemon.get("/api/v1/session").map_or(true, |answer| answer.status != 200) {
            if begun.elapsed() > STARTS_WITHIN || !daemon.process().is_running() {
                let outcome = daemon.running.wait()?;
                return Err(Error::Failed {
                    command: outcome.command,
                    status: format!("{:?}", outcome.status),
                    stderr: outcome.stderr,
                });
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(daemon)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.running.process()
    }

    /// Kills it, as the kernel does for want of memory.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn kill(self) -> Result<()> {
        self.process().kill(self.home.path())?;
        self.running.wait().map(drop)
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("serve/api.sock")
    }

    /// Sends these bytes as they are, and reads what comes until the connection ends.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn raw(&self, request: &[u8]) -> Result<Answer> {
        let path = self.socket();
        let talk = || -> std::io::Result<Vec<u8>> {
            let mut stream = UnixStream::connect(&path)?;
            stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
            // It may hang up before it has read all.
            let _ = stream.write_all(request);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if answer.is_empty() => Err(error),
                _ => Ok(answer),
            }
        };
        let bytes = talk().map_err(Error::file("talk to", &path))?;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(Answer { status, head, body: bytes[end..].to_vec() })
    }

    /// Looks at something.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.raw(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.0\r\nHost: localhost\r\nX-Keyframe: 1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw([head.as_bytes(), body.as_bytes()].concat().as_slice())
    }

    /// Waits until what it shows satisfies a condition; returns what it showed last, whether it did or not.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn wait_for(&self, path: &str, within: Duration, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let shown = self.get(path)?.json();
            if is(&shown) || begun.elapsed() > within {
                return Ok(shown);
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}
