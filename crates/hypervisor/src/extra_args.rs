//! Checks further QEMU arguments: only what is known to be part of a machine's snapshots, or to have no state, may be given.
//!
//! A list of what is allowed, not of what is not: QEMU has hundreds of options and devices, gets more with each version,
//! and one that keeps guest state outside of RAM, device state and layered disks makes every snapshot a lie. What people are
//! likely to try is refused with the reason and the way to do it instead.

/// Why an argument is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("QEMU argument {argument:?} is refused: {reason}")]
pub struct RefusedArgument {
    /// The argument as given.
    pub argument: String,
    /// What it would break and what to do instead.
    pub reason: String,
}

const DECIDED: &str = "Keyframe decides it itself; use the options of `keyframe vm create`";
const OUTSIDE_DISK: &str = "such a disk would not be part of snapshots; give it with --disk";
const ESCAPES: &str = "its state lives outside of QEMU and would not be part of snapshots";
const SHARED_DIRECTORY: &str = "QEMU cannot save a machine that shares a host directory this way";
const OTHER_MEMORY: &str = "use --memory: memory of another kind, or that comes and goes, is not supported";
const BEHIND: &str = "it lets another process write guest memory behind the snapshot's back";
const MONITOR: &str = "every machine has a QMP socket already: `keyframe vm show` names it";
const BY_DEVICE: &str = "write it as -netdev and -device, so that it can be looked through";
const OTHERS_DEVICES: &str = "it changes devices that Keyframe has set up; give the property with its own -device";

/// Options that are allowed without a value.
const FLAGS: &[&str] = &["usb"];

/// What a value's first word, or its `driver=`, `qom-type=` or `type=`, may be.
struct Kinds {
    option: &'static str,
    allowed: &'static [&'static str],
    /// Beginnings of what people are likely to try, and why not.
    refused: &'static [(&'static str, &'static str)],
    /// Keys that may not be given with it.
    refused_keys: &'static [(&'static str, &'static str)],
}

/// Options whose value names a kind.
const BY_KIND: &[Kinds] = &[
    Kinds {
        option: "device",
        allowed: &[
            "AC97",
            "e1000",
            "e1000e",
            "hda-duplex",
            "hda-micro",
            "hda-output",
            "i6300esb",
            "ich9-intel-hda",
            "ich9-usb-ehci1",
            "ich9-usb-uhci1",
            "ich9-usb-uhci2",
            "ich9-usb-uhci3",
            "igb",
            "intel-hda",
            "isa-serial",
            "nec-usb-xhci",
            "pci-bridge",
            "pci-serial",
            "pcie-pci-bridge",
            "pcie-root-port",
            "pvpanic",
            "pvpanic-pci",
            "qemu-xhci",
            "rtl8139",
            "usb-ehci",
            "usb-hub",
            "usb-kbd",
            "usb-mouse",
            "usb-tablet",
            "virtconsole",
            "virtio-balloon-pci",
            "virtio-keyboard-pci",
            "virtio-mouse-pci",
            "virtio-net-pci",
            "virtio-rng-pci",
            "virtio-serial-pci",
            "virtio-tablet-pci",
            "virtserialport",
            "vmcoreinfo",
            "vmxnet3",
        ],
        refused: &[
            ("vhost-user", BEHIND),
            ("vhost-", ESCAPES),
            ("vfio-", "QEMU cannot take a background snapshot with a passed-through device"),
            ("usb-host", "a passed-through device cannot be saved"),
            ("usb-redir", "a passed-through device cannot be saved"),
            ("u2f-passthru", "a passed-through device cannot be saved"),
            ("ccid-card-passthru", "a passed-through device cannot be saved"),
            ("ivshmem", "shared memory would not be part of snapshots"),
            ("nvdimm", ESCAPES),
            ("pc-dimm", OTHER_MEMORY),
            ("virtio-mem", OTHER_MEMORY),
            ("virtio-pmem", ESCAPES),
            ("virtio-9p", SHARED_DIRECTORY),
            ("usb-mtp", SHARED_DIRECTORY),
            ("usb-storage", OUTSIDE_DISK),
            ("usb-bot", OUTSIDE_DISK),
            ("usb-uas", OUTSIDE_DISK),
            ("nvme", OUTSIDE_DISK),
            ("virtio-blk", OUTSIDE_DISK),
            ("virtio-scsi", OUTSIDE_DISK),
            ("scsi-", OUTSIDE_DISK),
            ("ide-", OUTSIDE_DISK),
            ("sd-card", OUTSIDE_DISK),
            ("floppy", OUTSIDE_DISK),
            ("isa-fdc", OUTSIDE_DISK),
            ("tpm-", ESCAPES),
            ("vmgenid", "every machine has one already"),
        ],
        refused_keys: &[
            ("drive", OUTSIDE_DISK),
            ("failover", "QEMU cannot save a card that stands in for a passed-through one"),
            ("iothread", "requests served outside of QEMU's main loop are not supported yet"),
            ("memdev", OTHER_MEMORY),
        ],
    },
    Kinds {
        option: "netdev",
        allowed: &["bridge", "dgram", "hubport", "l2tpv3", "socket", "stream", "tap", "user", "vde"],
        refused: &[("vhost-user", BEHIND), ("vhost-vdpa", ESCAPES)],
        refused_keys: &[
            ("vhostfd", BEHIND),
            ("vhostfds", BEHIND),
            ("vhostforce", BEHIND),
            ("smb", SHARED_DIRECTORY),
            ("guestfwd", "QEMU's sandbox forbids it to run programs"),
        ],
    },
    Kinds {
        option: "object",
        allowed: &[
            "filter-dump",
            "rng-builtin",
            "rng-random",
            "secret",
            "tls-creds-anon",
            "tls-creds-psk",
            "tls-creds-x509",
        ],
        refused: &[
            ("memory-backend", DECIDED),
            ("iothread", "requests served outside of QEMU's main loop are not supported yet"),
        ],
        refused_keys: &[],
    },
    Kinds {
        option: "chardev",
        allowed: &["file", "null", "pty", "ringbuf", "socket", "udp"],
        refused: &[("spice", ESCAPES), ("stdio", "a machine outlives the terminal that it was started from")],
        refused_keys: &[],
    },
    Kinds { option: "audiodev", allowed: &["none"], refused: &[], refused_keys: &[] },
];

/// Options whose value is not looked through any further than for these beginnings.
const BY_BEGINNING: &[(&str, &[&str])] = &[
    ("boot", &["menu=", "order=", "once=", "strict=", "splash-time=", "reboot-timeout="]),
    ("fw_cfg", &["name=opt/"]),
    ("serial", &["chardev:", "null"]),
    ("smbios", &["type="]),
];

/// Options that people are likely to try, and why not.
const REFUSED_OPTIONS: &[(&[&str], &str)] = &[
    (
        &[
            "S",
            "accel",
            "action",
            "add-fd",
            "append",
            "cpu",
            "D",
            "d",
            "daemonize",
            "display",
            "enable-kvm",
            "icount",
            "incoming",
            "initrd",
            "kernel",
            "loadvm",
            "M",
            "m",
            "machine",
            "mem-path",
            "mem-prealloc",
            "msg",
            "name",
            "no-reboot",
            "no-shutdown",
            "nodefaults",
            "nographic",
            "numa",
            "only-migratable",
            "overcommit",
            "pidfile",
            "preconfig",
            "readconfig",
            "rtc",
            "run-with",
            "runas",
            "sandbox",
            "smp",
            "trace",
            "uuid",
            "vga",
            "watchdog-action",
            "writeconfig",
        ],
        DECIDED,
    ),
    (
        &["blockdev", "cdrom", "drive", "fda", "fdb", "hda", "hdb", "hdc", "hdd", "mtdblock", "pflash", "sd"],
        OUTSIDE_DISK,
    ),
    (&["snapshot"], "its writes would be lost behind the layers' back"),
    (&["fsdev", "virtfs"], SHARED_DIRECTORY),
    (&["tpmdev"], ESCAPES),
    (&["replay"], "record and replay excludes saving the machine while it runs"),
    (&["mon", "monitor", "qmp", "qmp-pretty"], MONITOR),
    (&["net", "nic"], BY_DEVICE),
    (&["global", "set"], OTHERS_DEVICES),
    (&["spice", "vnc"], "neither a fork nor a machine brought back beside its present could use the same address"),
];

/// Checks the arguments given behind `--`.
///
/// # Errors
/// The first argument that would break snapshots, or is not known not to, and why.
pub fn check(args: &[String]) -> Result<(), RefusedArgument> {
    let refuse = |argument: &str, reason: String| Err(RefusedArgument { argument: argument.to_owned(), reason });
    let mut rest = args.iter();
    while let Some(argument) = rest.next() {
        if argument.contains('\0') {
            return refuse("\\0", "an argument cannot hold a zero byte".to_owned());
        }
        let Some(name) = argument.strip_prefix('-') else {
            return refuse(argument, "it is not an option and belongs to none".to_owned());
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        if FLAGS.contains(&name) {
            continue;
        }
        let Some(judge) = judge_of(name) else {
            return refuse(argument, refused_option(name));
        };
        let Some(value) = rest.next() else {
            return refuse(argument, "its value is missing".to_owned());
        };
        if value.contains('\0') {
            return refuse("\\0", "an argument cannot hold a zero byte".to_owned());
        }
        if let Some(reason) = judge(value) {
            return refuse(&format!("{argument} {value}"), reason);
        }
    }
    Ok(())
}

/// Says why a value is refused.
type Judge = Box<dyn Fn(&str) -> Option<String>>;

/// Who says why a value of this option is refused; nobody for an option that is not allowed at all.
fn judge_of(option: &str) -> Option<Judge> {
    if let Some(kinds) = BY_KIND.iter().find(|kinds| kinds.option == option) {
        return Some(Box::new(|value| kinds.refusal(value)));
    }
    let (_, beginnings) = BY_BEGINNING.iter().find(|(name, _)| *name == option)?;
    Some(Box::new(|value| {
        if value.split(',').any(|part| part.starts_with("file=")) {
            return Some(
                "the file may be another one when the machine is brought back; write the value out".to_owned(),
            );
        }
        let fits = beginnings.iter().any(|beginning| value.starts_with(beginning));
        (!fits).then(|| format!("only values that begin with {} are known to be safe", beginnings.join(", ")))
    }))
}

fn refused_option(name: &str) -> String {
    match REFUSED_OPTIONS.iter().find(|(names, _)| names.contains(&name)) {
        Some((_, reason)) => (*reason).to_owned(),
        None => {
            let with_values =
                BY_KIND.iter().map(|kinds| kinds.option).chain(BY_BEGINNING.iter().map(|(name, _)| *name));
            let known: Vec<String> = FLAGS.iter().copied().chain(with_values).map(|name| format!("-{name}")).collect();
            format!("it is not known to be safe with snapshots; these are: {}", known.join(", "))
        }
    }
}

impl Kinds {
    /// Why a value is refused. Splitting at every comma sees more keys than QEMU does, where one is escaped, and never
    /// fewer. Source: `opts_do_parse` in util/qemu-option.c.
    fn refusal(&self, value: &str) -> Option<String> {
        if value.trim_start().starts_with('{') {
            return Some("write it as kind,key=value: JSON is not looked through".to_owned());
        }
        let mut kinds = Vec::new();
        for (position, part) in value.split(',').enumerate() {
            match part.split_once('=') {
                Some(("driver" | "qom-type" | "type" | "backend", kind)) => kinds.push(kind),
                None if position == 0 => kinds.push(part),
                pair => {
                    // A key alone is switched on, one behind `no` off.
                    let (key, setting) = pair.unwrap_or((part, "on"));
                    if let Some(reason) = self.refused_key(key, setting) {
                        return Some(reason.to_owned());
                    }
                }
            }
        }
        if kinds.is_empty() {
            return Some("its kind is missing".to_owned());
        }
        kinds.into_iter().find_map(|kind| self.refused_kind(kind))
    }

    fn refused_key(&self, key: &str, setting: &str) -> Option<&'static str> {
        let off = matches!(setting, "off" | "no" | "n" | "false");
        if self.option == "netdev" && key == "vhost" && !off {
            return Some("vhost lets the host's kernel write guest memory behind the snapshot's back");
        }
        self.refused_keys.iter().find(|(refused, _)| *refused == key).map(|(_, reason)| *reason)
    }

    fn refused_kind(&self, kind: &str) -> Option<String> {
        if self.allowed.contains(&kind) {
            return None;
        }
        let known = self.refused.iter().find(|(beginning, _)| kind.starts_with(beginning));
        Some(known.map_or_else(
            || format!("it is not known to be safe with snapshots; these are: {}", self.allowed.join(", ")),
            |(_, reason)| (*reason).to_owned(),
        ))
    }
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
            "-netdev user,id=n1,hostfwd=tcp::2222-:22 -device virtio-net-pci,netdev=n1",
            "-netdev tap,id=x,ifname=t0,script=no,downscript=no,vhost=off",
            "-usb -device usb-tablet",
            "-boot menu=on",
            "-chardev socket,id=c,path=/tmp/c,server=on,wait=off -device virtserialport,chardev=c",
            "-smbios type=1,serial=7",
            "-fw_cfg name=opt/org.example/x,string=y",
            "-object rng-random,id=r,filename=/dev/urandom --device virtio-rng-pci,rng=r",
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
            "-device virtio-net-pci,driver=vfio-pci",
            "-device vhost-user-blk-pci,chardev=c",
            "-device usb-mtp,rootdir=/",
            "-device sd-card,drive=d",
            "-device floppy",
            "-device u2f-passthru",
            "-device isa-serial,drive=d",
            "-device virtio-net-pci,failover=on",
            "-device",
            "-device id=x",
            "-m 2G",
            "-incoming defer",
            "-daemonize",
            "-virtfs local",
            "-netdev tap,id=x,vhost=on",
            "-netdev tap,id=x,vhost=true",
            "-netdev tap,id=x,vhost=yes",
            "-netdev tap,id=x,vhost=y",
            "-netdev tap,id=x,vhost",
            "-netdev tap,id=x,vhostforce=on",
            "-netdev user,id=x,smb=/",
            "-nic tap,vhost=on",
            "-net tap,vhost=on",
            "-object memory-backend-file,id=x",
            "-object iothread,id=i",
            "stray",
            "-usb stray",
            r#"-device {"driver":"vfio-pci"}"#,
            "-snapshot",
            "-set device.d-disk0.drive=x",
            "-global virtio-blk-pci.iothread=i",
            "-vnc :0",
            "-monitor stdio",
            "-fw_cfg name=opt/x,file=/etc/passwd",
            "-fw_cfg name=etc/acpi,string=x",
            "-device=virtio-balloon-pci",
            "-plugin x.so",
            "-msg timestamp=on",
        ] {
            assert!(checked(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do_or_what_is_known() {
        assert!(checked("-drive file=x").unwrap_err().reason.contains("--disk"));
        let unknown = checked("-device frobnicator").unwrap_err();
        assert!(unknown.reason.contains("virtio-balloon-pci"), "{unknown}");
        assert!(checked("-frobnicate").unwrap_err().reason.contains("-netdev"));
    }
}
