//! What systemd is told: that the daemon is ready, alive, or about to end. Without systemd, nobody.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// The line to whoever supervises.
#[derive(Debug)]
pub struct Supervisor {
    socket: Option<(UnixDatagram, String)>,
    beat: Option<Duration>,
    beaten: Instant,
}

impl Supervisor {
    /// The one that the environment names.
    #[must_use]
    pub fn of_environment() -> Self {
        let to = std::env::var("NOTIFY_SOCKET").ok().filter(|path| path.starts_with(['/', '@']));
        let socket = to.and_then(|to| Some((UnixDatagram::unbound().ok()?, to)));
        let us: Option<u64> = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        // Twice as often as it asks for.
        Self { socket, beat: us.map(|us| Duration::from_micros(us / 2)), beaten: Instant::now() }
    }

    /// It serves.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// It decides, still: from the thread that does.
    pub fn beat(&mut self) {
        if self.beat.is_some_and(|every| self.beaten.elapsed() >= every) {
            self.beaten = Instant::now();
            self.say("WATCHDOG=1");
        }
    }

    fn say(&self, what: &str) {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;
        let Some((socket, to)) = &self.socket else { return };
        let address = match to.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(to),
        };
        // Nobody is there to be told that nobody can be told.
        let _ = address.and_then(|address| socket.send_to_addr(what.as_bytes(), &address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_supervises_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        let socket = Some((UnixDatagram::unbound().unwrap(), path.to_str().unwrap().to_owned()));
        let mut supervisor = Supervisor { socket, beat: Some(Duration::ZERO), beaten: Instant::now() };
        supervisor.ready();
        supervisor.beat();
        let mut said = [0; 64];
        let length = listening.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"READY=1");
        let length = listening.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"WATCHDOG=1");
    }
}
