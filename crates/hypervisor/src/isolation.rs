//! A machine's hardware without any way out: what tries a snapshot must not be heard outside, nor write there.
//!
//! The guest keeps every device it knows; what its devices are plugged into is replaced. Of further QEMU arguments only
//! what is known to stay inside is kept: one that nobody has thought about is refused.

use std::net::Ipv4Addr;

use crate::definition::{MachineDefinition, Network, Nic};

/// A further QEMU argument that may lead outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nobody knows whether QEMU argument {argument:?} would lead outside")]
pub struct MayLeadOutside {
    /// The argument.
    pub argument: String,
}

/// The network in which a card that must not lead outside is by itself; `address`, if one is given, is the guest's there.
#[must_use]
pub fn network_for(address: Option<Ipv4Addr>) -> Network {
    address.map_or(Network::Isolated, Network::IsolatedFor)
}

/// `definition` with every network card and every character device plugged into nothing, but for the first card, which is in
/// `network`: one that does not lead outside either.
///
/// # Errors
/// [`MayLeadOutside`].
pub fn isolated(definition: &MachineDefinition, network: Network) -> Result<MachineDefinition, MayLeadOutside> {
    Ok(MachineDefinition {
        nic: definition.nic.as_ref().map(|nic| Nic { mac: nic.mac, network }),
        extra_args: without_ways_out(&definition.extra_args)?,
        probes: Vec::new(),
        ..definition.clone()
    })
}

/// Arguments that [`crate::extra_args::check`] has admitted, with what leads outside replaced.
fn without_ways_out(args: &[String]) -> Result<Vec<String>, MayLeadOutside> {
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(argument) = rest.next() {
        let refuse = || MayLeadOutside { argument: argument.clone() };
        let name = argument.trim_start_matches('-');
        if name == "usb" {
            kept.push(argument.clone());
            continue;
        }
        let value = rest.next().ok_or_else(refuse)?;
        let inside = match name {
            "audiodev" | "boot" | "device" | "fw_cfg" | "serial" | "smbios" => value.clone(),
            "netdev" => format!("user,id={},restrict=on", id_in(value).ok_or_else(refuse)?),
            "chardev" => {
                let shared = value.split(',').any(|part| matches!(part, "mux" | "mux=on"));
                let mux = if shared { ",mux=on" } else { "" };
                format!("null,id={}{mux}", id_in(value).ok_or_else(refuse)?)
            }
            // It writes what it hears to a file outside, and nothing refers to it.
            "object" if value.split(',').any(|part| part.ends_with("filter-dump")) => continue,
            "object" => value.clone(),
            _ => return Err(refuse()),
        };
        kept.extend([argument.clone(), inside]);
    }
    Ok(kept)
}

/// The id in `kind,key=value,…`, if it is a plain one. An escaped comma may make another part look like it: then QEMU does
/// not find what refers to the real one, and does not start.
fn id_in(value: &str) -> Option<&str> {
    let id = value.split(',').find_map(|part| part.strip_prefix("id="))?;
    let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    (plain && !id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_way_out_is_closed_and_every_device_stays() {
        let given = "-usb -netdev tap,id=n1,ifname=tap7,script=no --netdev socket,id=n2,connect=10.0.0.1:99 \
                     -netdev user,id=n3,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n1 \
                     -chardev socket,path=/x,server=on,id=c1,mux=on -chardev file,id=c2,path=/etc/x -serial chardev:c1 \
                     -object filter-dump,id=f,netdev=n1,file=/tmp/d -object qom-type=filter-dump,id=g,netdev=n1 \
                     -object rng-random,id=r,filename=/dev/urandom";
        let expected = "-usb -netdev user,id=n1,restrict=on --netdev user,id=n2,restrict=on \
                        -netdev user,id=n3,restrict=on -device virtio-net-pci,netdev=n1 \
                        -chardev null,id=c1,mux=on -chardev null,id=c2 -serial chardev:c1 \
                        -object rng-random,id=r,filename=/dev/urandom";
        assert_eq!(without_ways_out(&words(given)).unwrap(), words(expected));
    }

    #[test]
    fn what_nobody_has_thought_about_is_refused() {
        for text in ["-vnc :1", "-netdev user", "-netdev tap,id=a=b", "-chardev", "-monitor stdio", "-netdev tap,id="] {
            assert!(without_ways_out(&words(text)).is_err(), "{text}");
        }
    }
}
