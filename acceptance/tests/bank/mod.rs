//! A real Debian with PostgreSQL and pgbench at work: what tests of databases have in common.

use std::time::Duration;

use keyframe_acceptance::console::Console;
use keyframe_acceptance::guests::DebianGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result};

const BOOT_WITHIN: Duration = Duration::from_secs(300);

/// A machine of 1 GiB with the Debian guest's two disks, which boots as its definition says.
pub fn database_server(guest: &DebianGuest, home: &Home) -> Result<MachineSpec> {
    let spec = MachineSpec::with_memory("1G").disk(&home.overlay("system.qcow2", &guest.system_disk)?);
    Ok(spec.disk(&home.overlay("data.qcow2", &guest.data_disk)?))
}

/// The same with the guest's kernel loaded by QEMU, which is faster.
pub fn with_kernel(guest: &DebianGuest, spec: MachineSpec) -> MachineSpec {
    spec.direct_kernel(&guest.kernel, &guest.initrd, "root=/dev/vda2 console=ttyS0 quiet panic=-1")
}

/// Waits until root is logged in on a machine's console and its database answers.
pub fn wait_until_up(machine: &Machine<'_>) -> Result<()> {
    machine.serial()?.wait_for(Mark::START, "(automatic login)", BOOT_WITHIN)?;
    Console::of(machine).run("until pg_isready -q; do sleep 1; done")
}

/// A bank with two pgbench clients at work on it.
pub fn open_a_bank(console: &Console<'_, '_>) -> Result<()> {
    console.run("createdb -U postgres bank")?;
    console.run("pgbench -U postgres -q -i -s 1 bank 2>/tmp/init.log")?;
    console.ask("(pgbench -U postgres -c 2 -T 3600 bank >/tmp/pgbench.log 2>&1 &); echo STARTED", "STARTED")?;
    console.run("sleep 2; pgrep -x pgbench >/dev/null")
}

/// Nobody works any more.
pub fn close_the_bank(console: &Console<'_, '_>) -> Result<()> {
    console.run("pgrep -x pgbench >/dev/null")?;
    console.run("pkill -x pgbench; while pgrep -x pgbench >/dev/null; do sleep 0.2; done")
}

/// What pgbench moved it moved everywhere or nowhere; every index agrees with its table; no disk complained.
pub fn books_balance(console: &Console<'_, '_>) -> Result<()> {
    let sums = "SELECT 'sums: ' || ((SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM \
                pgbench_branches) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history) \
                AND (SELECT count(*) FROM pgbench_history) > 0)";
    console.ask(&format!("psql -U postgres -A -t -c \"{sums}\" bank"), "sums: true")?;
    console.run("/usr/lib/postgresql/15/bin/pg_amcheck -U postgres --install-missing --heapallindexed bank")?;
    console.run("! dmesg | grep -E 'I/O error|EXT4-fs error'")
}
