//! Sockets that the service manager opened before the daemon was there: who comes while it is started anew waits, and is not refused.
//!
//! Source: `sd_listen_fds(3)`.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use crate::error::Error;

/// Sockets that were handed over, listening.
#[derive(Debug, Default)]
pub struct Handed {
    /// For the host's own users.
    pub local: Vec<UnixListener>,
    /// For those who come over the network.
    pub network: Vec<TcpListener>,
}

impl Handed {
    /// Those that this process's environment names; it names none afterwards. To be called while there is no other thread: it changes
    /// the environment.
    ///
    /// # Errors
    /// [`Error::Refused`] when something else was handed over.
    pub fn of_environment() -> Result<Self, Error> {
        let mut all = ListenFd::from_env();
        let mut handed = Self::default();
        for nth in 0..all.len() {
            let refused = |what: &str| {
                Error::Refused(format!(
                    "socket {} of those that the service manager handed over cannot be used: {what}; the socket's unit may have \
                     ListenStream= alone",
                    nth + 1
                ))
            };
            if let Ok(Some(listener)) = all.take_unix_listener(nth) {
                listens(&listener).map_err(|_| refused("nobody can connect to it"))?;
                handed.local.push(listener);
            } else if let Ok(Some(listener)) = all.take_tcp_listener(nth) {
                listens(&listener).map_err(|_| refused("nobody can connect to it"))?;
                handed.network.push(listener);
            } else {
                return Err(refused("it is no stream"));
            }
        }
        Ok(handed)
    }
}

/// That clients can connect, as with `Accept=no`.
fn listens(socket: impl AsFd) -> io::Result<()> {
    if rustix::net::sockopt::socket_acceptconn(&socket)? { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}
