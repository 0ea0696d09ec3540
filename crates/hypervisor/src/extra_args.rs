//! Checks further QEMU arguments for what would let part of the machine escape its snapshots.
//!
//! The rule: what Keyframe decides itself may not be given twice, and what holds guest state outside of
//! RAM, device state and layered disks is refused with the reason and the way to do it instead.

/// Why an argument is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("QEMU argument {argument:?} is refused: {reason}")]
pub struct RefusedArgument {
    /// The argument as given.
    pub argument: String,
    /// What it would break and what to do instead.
    pub reason: &'static str,
}

const DECIDED: &str = "Keyframe decides it itself; use the options of `keyframe vm create`";
const OUTSIDE_DISK: &str = "such a disk would not be part of snapshots; give it with --disk";
const ESCAPES: &str = "its state lives outside of QEMU and would not be part of snapshots";

/// Options that may not be given at all.
const REFUSED_OPTIONS: &[(&[&str], &str)] = &[
    (
        &[
            "S",
            "accel",
            "blockdev-reopen",
            "chroot",
            "cpu",
            "daemonize",
            "display",
            "enable-kvm",
            "incoming",
            "initrd",
            "append",
            "kernel",
            "loadvm",
            "m",
            "M",
            "machine",
            "mem-path",
            "mem-prealloc",
            "name",
            "no-shutdown",
            "no-reboot",
            "nodefaults",
            "nographic",
            "numa",
            "only-migratable",
            "pidfile",
            "preconfig",
            "qmp",
            "qmp-pretty",
            "readconfig",
            "run-with",
            "runas",
            "sandbox",
            "smp",
            "uuid",
            "action",
            "add-fd",
            "writeconfig",
        ],
        DECIDED,
    ),
    (
        &["blockdev", "cdrom", "drive", "fda", "fdb", "hda", "hdb", "hdc", "hdd", "mtdblock", "pflash", "sd"],
        OUTSIDE_DISK,
    ),
    (&["snapshot"], "its writes would be lost behind the layers' back"),
    (&["fsdev", "virtfs"], "QEMU cannot save a machine that shares a host directory this way"),
    (&["tpmdev"], ESCAPES),
    (&["replay"], "record and replay excludes saving the machine while it runs"),
];

/// Beginnings of `-device` and `-object` values that may not be given, with the options they stand behind.
const REFUSED_VALUES: &[(&str, &str, &str)] = &[
    ("device", "vhost-user", "a vhost-user device writes guest memory behind the snapshot's back"),
    ("device", "vhost-", ESCAPES),
    ("device", "vfio-", "QEMU cannot take a background snapshot with a passed-through device"),
    ("device", "ivshmem", "shared memory would not be part of snapshots"),
    ("device", "nvdimm", ESCAPES),
    ("device", "pc-dimm", "use --memory: memory that comes and goes is not supported"),
    ("device", "virtio-mem", "use --memory: memory that comes and goes is not supported"),
    ("device", "virtio-pmem", ESCAPES),
    ("device", "virtio-9p", "QEMU cannot save a machine that shares a host directory this way"),
    ("device", "usb-host", "a passed-through device cannot be saved"),
    ("device", "usb-storage", OUTSIDE_DISK),
    ("device", "nvme", OUTSIDE_DISK),
    ("device", "virtio-blk", OUTSIDE_DISK),
    ("device", "scsi-", OUTSIDE_DISK),
    ("device", "ide-", OUTSIDE_DISK),
    ("device", "tpm-", ESCAPES),
    ("device", "vmgenid", "every machine has one already"),
    ("object", "memory-backend", DECIDED),
    ("object", "iothread", "disk requests served outside of QEMU's main loop are not supported yet"),
    ("netdev", "vhost-user", "a vhost-user device writes guest memory behind the snapshot's back"),
    ("netdev", "vhost-vdpa", ESCAPES),
    ("chardev", "spicevmc", ESCAPES),
];

/// Checks the arguments given behind `--`.
///
/// # Errors
/// The first argument that would break snapshots, and why.
pub fn check(args: &[String]) -> Result<(), RefusedArgument> {
    let refuse = |argument: &str, reason| Err(RefusedArgument { argument: argument.to_owned(), reason });
    let mut option = None;
    for argument in args {
        if argument.contains('\0') {
            return refuse("\\0", "an argument cannot hold a zero byte");
        }
        if let Some(name) = argument.strip_prefix('-') {
            let name = name.strip_prefix('-').unwrap_or(name);
            if let Some((_, reason)) = REFUSED_OPTIONS.iter().find(|(names, _)| names.contains(&name)) {
                return refuse(argument, reason);
            }
            option = Some(name);
            continue;
        }
        let Some(name) = option.take() else {
            return refuse(argument, "it is not an option and belongs to none");
        };
        if let Some(reason) = refused_value(name, argument) {
            return refuse(argument, reason);
        }
    }
    Ok(())
}

/// Looks at `driver=x,…` and `x,…` alike, also written as JSON.
fn refused_value(option: &str, value: &str) -> Option<&'static str> {
    if value.trim_start().starts_with('{') && matches!(option, "device" | "object" | "netdev") {
        return Some("write it as driver,key=value: JSON is not looked through");
    }
    if option == "netdev" && value.split(',').any(|part| part == "vhost=on") {
        return Some("vhost=on lets the host's kernel write guest memory behind the snapshot's back");
    }
    let drivers = value.split(',').enumerate().filter_map(|(position, part)| match part.split_once('=') {
        Some(("driver" | "qom-type" | "type", driver)) => Some(driver),
        None if position == 0 => Some(part),
        _ => None,
    });
    let drivers: Vec<&str> = drivers.collect();
    REFUSED_VALUES
        .iter()
        .find(|(of, beginning, _)| *of == option && drivers.iter().any(|driver| driver.starts_with(beginning)))
        .map(|&(_, _, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), RefusedArgument> {
        check(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn harmless_arguments_pass() {
        for text in [
            "-device virtio-balloon-pci",
            "-netdev user,id=n1 -device virtio-net-pci,netdev=n1",
            "-usb",
            "-boot menu=on",
        ] {
            assert_eq!(checked(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_would_escape_a_snapshot_is_refused() {
        for text in [
            "-drive file=x",
            "--drive file=x",
            "-hda x",
            "-device vfio-pci,host=1",
            "-device driver=vfio-pci",
            "-device vhost-user-blk-pci,chardev=c",
            "-m 2G",
            "-incoming defer",
            "-daemonize",
            "-virtfs local",
            "-netdev tap,id=x,vhost=on",
            "-object memory-backend-file,id=x",
            "-object iothread,id=i",
            "stray",
            r#"-device {"driver":"vfio-pci"}"#,
            "-snapshot",
        ] {
            assert!(checked(text).is_err(), "{text}");
        }
    }
}
