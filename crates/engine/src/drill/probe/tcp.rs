//! The guest accepts a TCP connection.
//!
//! Its network leads nowhere; QEMU forwards one port of the host's loopback interface to it, for as long as one connection takes
//! to be made. That QEMU accepts it means nothing, as it does so before it asks the guest: what counts is that the guest
//! has answered, which QEMU's table of connections tells.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use keyframe_hypervisor::launch::NIC_NETDEV;
use keyframe_qmp::Error as QmpError;

use super::{Look, Probe};
use crate::drill::throwaway::Throwaway;

/// The address that QEMU's user network hands out first. Source: `net_slirp_init` in QEMU's net/slirp.c.
const USUAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// How long the guest may take to answer before the connection is tried anew.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Connects to a port of the guest.
#[derive(Debug)]
pub(super) struct PortAccepts {
    guest: SocketAddrV4,
    trying: Option<Trial>,
    /// How the last connection ended: another may be on its way.
    seen: String,
}

/// A connection on its way.
#[derive(Debug)]
struct Trial {
    forward: u16,
    until: Instant,
    /// Our end; without it QEMU forgets the connection.
    ours: TcpStream,
}

impl PortAccepts {
    pub(super) fn new(port: NonZeroU16, address: Option<Ipv4Addr>) -> Self {
        Self {
            guest: SocketAddrV4::new(address.unwrap_or(USUAL_ADDRESS), port.get()),
            trying: None,
            seen: "the guest has not answered".to_owned(),
        }
    }

    /// Opens a forward on a port that the host chooses, and connects to it.
    fn begin(&self, machine: &mut Throwaway) -> Result<Trial, String> {
        let rule = format!("hostfwd_add {NIC_NETDEV} tcp:127.0.0.1:0-{}", self.guest);
        let said = machine.human(&rule).map_err(|error| error.to_string())?;
        if !said.trim().is_empty() {
            return Err(format!("QEMU forwards nothing to it: {}", said.trim()));
        }
        let table = Table::read(machine).map_err(|error| error.to_string())?;
        let forward = table.forward(self.guest).ok_or("QEMU does not say which port it forwards")?;
        let place = SocketAddrV4::new(Ipv4Addr::LOCALHOST, forward);
        match TcpStream::connect_timeout(&place.into(), ANSWER_PATIENCE) {
            Ok(ours) => Ok(Trial { forward, until: Instant::now() + ANSWER_PATIENCE, ours }),
            Err(error) => {
                close(machine, forward).map_err(|error| error.to_string())?;
                Err(format!("QEMU's end of the connection failed: {error}"))
            }
        }
    }
}

fn close(machine: &mut Throwaway, forward: u16) -> Result<(), QmpError> {
    machine.human(&format!("hostfwd_remove {NIC_NETDEV} tcp:127.0.0.1:{forward}")).map(drop)
}

impl Probe for PortAccepts {
    fn name(&self) -> String {
        format!("tcp {}", self.guest)
    }

    fn look(&mut self, machine: &mut Throwaway, _by: Instant) -> Look {
        let trial = match self.trying.take().map_or_else(|| self.begin(machine), Ok) {
            Ok(trial) => trial,
            Err(seen) => return Look::NotYet(seen),
        };
        let table = match Table::read(machine) {
            Ok(table) => table,
            Err(error) => return Look::NotYet(error.to_string()),
        };
        let state = table.connection(trial.forward);
        let asking = state == Some("SYN_SENT") || (state.is_none() && !gone(&trial.ours));
        if asking && Instant::now() < trial.until {
            self.trying = Some(trial);
            return Look::NotYet(self.seen.clone());
        }
        if let Err(error) = close(machine, trial.forward) {
            return Look::NotYet(error.to_string());
        }
        match state {
            // A server that says its word and hangs up has accepted, too.
            Some("ESTABLISHED" | "CLOSE_WAIT" | "FIN_WAIT_1" | "FIN_WAIT_2" | "CLOSING" | "LAST_ACK" | "TIME_WAIT") => {
                return Look::Passed("the guest accepts a connection".to_owned());
            }
            _ if asking => self.seen = "the guest does not answer".to_owned(),
            _ => self.seen = "the guest refuses the connection".to_owned(),
        }
        Look::NotYet(self.seen.clone())
    }
}

/// Whether QEMU has closed its end, as it does when the guest refuses.
fn gone(ours: &TcpStream) -> bool {
    match ours.set_nonblocking(true).and_then(|()| ours.peek(&mut [0])) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// QEMU's table of the connections of its user networks.
#[derive(Debug)]
struct Table(String);

/// A line of it.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    state: &'a str,
    /// The port of the host.
    forward: u16,
    /// The guest's end.
    guest: SocketAddrV4,
}

impl Table {
    fn read(machine: &mut Throwaway) -> Result<Self, QmpError> {
        machine.human("info usernet").map(Self)
    }

    /// Source: `slirp_connection_info` in libslirp's src/misc.c.
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.0.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [state, _fd, _host, forward, address, port, ..] = words[..] else { return None };
            Some(Line {
                state: state.strip_prefix("TCP[")?.strip_suffix(']')?,
                forward: forward.parse().ok()?,
                guest: SocketAddrV4::new(address.parse().ok()?, port.parse().ok()?),
            })
        })
    }

    /// The host's port that is forwarded to the guest's: there is one at a time.
    fn forward(&self, guest: SocketAddrV4) -> Option<u16> {
        self.lines().find(|line| line.state == "HOST_FORWARD" && line.guest == guest).map(|line| line.forward)
    }

    /// The state of the connection that came in through a forwarded port.
    fn connection(&self, forward: u16) -> Option<&str> {
        self.lines().find(|line| line.state != "HOST_FORWARD" && line.forward == forward).map(|line| line.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_a_forward_from_a_connection() {
        let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                     TCP[SYN_SENT]      21       127.0.0.1 40123       10.0.2.15    22     0     0\r\n  \
                     TCP[ESTABLISHED]   22       127.0.0.1 40124       10.0.2.15    22     0     0\r\n  \
                     TCP[HOST_FORWARD]  19       127.0.0.1 40124       10.0.2.15    22     0     0\r\n  \
                     UDP[236 sec]       30       10.0.2.15   123        10.0.2.3   123     0     0\r\n";
        let table = Table(table.to_owned());
        let guest = |port| SocketAddrV4::new(USUAL_ADDRESS, port);
        assert_eq!((table.forward(guest(22)), table.forward(guest(23))), (Some(40124), None));
        assert_eq!(table.connection(40124), Some("ESTABLISHED"));
        assert_eq!((table.connection(40123), table.connection(1)), (Some("SYN_SENT"), None));
    }
}
