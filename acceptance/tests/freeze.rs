//! Freezing a guest's file systems through its agent: what is frozen is thawed, whoever dies, and the label says what was
//! achieved. A real Debian with qemu-guest-agent. Needs QEMU.

use std::time::{Duration, Instant};

use keyframe_acceptance::console::Console;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};

const SECOND: Duration = Duration::from_secs(1);
const BOOT_WITHIN: Duration = Duration::from_secs(300);

fn boot(home: &Home) -> Result<Machine<'_>> {
    let guest = guests::debian()?;
    let words = "root=/dev/vda2 console=ttyS0 quiet panic=-1";
    let spec = MachineSpec::with_memory("512M").direct_kernel(&guest.kernel, &guest.initrd, words);
    let spec = spec.disk(&home.overlay("system.qcow2", &guest.system_disk)?);
    let machine = Machine::start(home, "server", &spec.disk(&home.overlay("data.qcow2", &guest.data_disk)?))?;
    machine.serial()?.wait_for(Mark::START, "(automatic login)", BOOT_WITHIN)?;
    Console::of(&machine).run("until systemctl -q is-active qemu-guest-agent; do sleep 1; done")?;
    Ok(machine)
}

/// A frozen file system would keep `sync` waiting.
fn writes_reach_the_disk(machine: &Machine<'_>, word: &str) -> Result<()> {
    Console::of(machine).run(&format!("echo {word} > /var/tmp/{word} && sync"))
}

#[test]
fn a_frozen_guest_is_thawed_whoever_dies_and_the_label_says_what_was_achieved() -> Result<()> {
    let home = Home::new("freeze")?;
    let machine = boot(&home)?;

    let frozen = home.run(["snapshot", "server", "--disk-only", "--freeze", "--name", "frozen", "--json"])?;
    assert_eq!(frozen.succeeded()?.text("consistency")?, "filesystem");
    writes_reach_the_disk(&machine, "after-disk-only")?;
    let whole = home.run(["snapshot", "server", "--freeze", "--name", "whole", "--json"])?.succeeded()?;
    assert_eq!(whole.text("consistency")?, "running-state");
    assert!(whole.json["frozen_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", whole.stdout);
    writes_reach_the_disk(&machine, "after-whole")?;

    // The command dies with the guest frozen: its guard thaws.
    let killed = home.run_until("snapshot-frozen", ["snapshot", "server", "--freeze", "--name", "never"])?;
    assert_eq!(killed.status, None, "{}", killed.stderr);
    writes_reach_the_disk(&machine, "after-kill")?;
    let failed = home.run_until("snapshot-frozen!", ["snapshot", "server", "--freeze", "--name", "never"])?;
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    writes_reach_the_disk(&machine, "after-failure")?;

    // An agent that stands still is no reason to wait for long, and nothing is called frozen.
    let console = Console::of(&machine);
    console.run("systemctl kill -s STOP qemu-guest-agent")?;
    let begun = Instant::now();
    let tried = home.run(["snapshot", "server", "--disk-only", "--freeze=try", "--name", "tried", "--json"])?;
    assert_eq!(tried.status, Some(3), "{}", tried.stderr);
    assert_eq!(tried.text("consistency")?, "crash");
    assert!(begun.elapsed() < 60 * SECOND, "{:?}", begun.elapsed());
    console.run("systemctl kill -s CONT qemu-guest-agent")?;
    writes_reach_the_disk(&machine, "after-silence")?;

    // What was taken frozen comes back thawed, by the right time.
    machine.revert("whole", &[])?;
    writes_reach_the_disk(&machine, "after-revert")?;
    console.run("test ! -e /var/tmp/after-whole && test -e /var/tmp/after-disk-only")?;
    let now = seconds_now();
    console.run(&format!("d=$(( $(date +%s) - {now} )); test ${{d#-}} -lt 15"))?;
    home.run(["vm", "stop", "server", "--force"])?.succeeded().map(drop)
}

fn seconds_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |span| span.as_secs())
}
