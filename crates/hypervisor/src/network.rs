//! Tap interfaces, opened here because QEMU's sandbox forbids it to run a helper that would.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

use crate::definition::{InterfaceName, Network};
use crate::error::Error;

/// The descriptor that QEMU needs for `network`; `None` for one that needs none.
///
/// # Errors
/// [`Error::Network`] when the interface or bridge cannot be used.
pub fn open(network: &Network) -> Result<Option<OwnedFd>, Error> {
    let failed = |source| Error::Network { network: network.to_string(), source };
    match network {
        Network::User | Network::Isolated | Network::IsolatedFor(_) | Network::Private(_) => Ok(None),
        Network::Tap(name) => {
            if interface_index(name.as_str()).is_none() {
                return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
            }
            open_tap(Some(name)).map(|(tap, _)| Some(tap.into())).map_err(failed)
        }
        Network::Bridge(bridge) => open_on_bridge(bridge).map(Some).map_err(failed),
    }
}

/// Source: linux/if_tun.h and netdevice(7): the name, then flags; the rest of the 40 bytes is unused here.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: InterfaceValue,
}

#[repr(C)]
union InterfaceValue {
    flags: libc::c_short,
    index: libc::c_int,
    padding: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

impl InterfaceRequest {
    fn new(name: &str) -> Self {
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from;
        }
        Self { name: bytes, value: InterfaceValue { padding: [0; 24] } }
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(self.name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
    }
}

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_UP: libc::c_short = 0x1;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
const SIOCSIFFLAGS: libc::c_ulong = 0x8914;

fn request(fd: &impl std::os::fd::AsRawFd, number: libc::c_ulong, argument: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: all requests used here read and write one `struct ifreq`, whose 40 bytes `argument` owns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens the tap called `name`, or a fresh one; returns it with its name.
fn open_tap(name: Option<&InterfaceName>) -> io::Result<(File, String)> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut wanted = InterfaceRequest::new(name.map_or("kf%d", InterfaceName::as_str));
    wanted.value.flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    request(&tun, TUNSETIFF, &mut wanted)?;
    rustix::io::ioctl_fionbio(&tun, true)?;
    Ok((tun, wanted.name()))
}

fn open_on_bridge(bridge: &InterfaceName) -> io::Result<OwnedFd> {
    let (tap, name) = open_tap(None)?;
    let index = interface_index(&name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let control = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut join = InterfaceRequest::new(bridge.as_str());
    join.value.index = index;
    request(&control, SIOCBRADDIF, &mut join)?;
    let mut up = InterfaceRequest::new(&name);
    up.value.flags = IFF_UP;
    request(&control, SIOCSIFFLAGS, &mut up)?;
    Ok(tap.into())
}

fn interface_index(name: &str) -> Option<libc::c_int> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a valid C string for the whole call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    libc::c_int::try_from(index).ok().filter(|&index| index > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_refused() {
        for network in ["tap:kf-none", "bridge:kf-none"] {
            assert!(matches!(open(&network.parse().unwrap()), Err(Error::Network { .. })), "{network}");
        }
        assert!(open(&Network::User).unwrap().is_none());
    }
}
