//! The undo button of a database server: a session holds an open transaction, pgbench is at work, the machine
//! is taken; the database is dropped; the machine is brought back; *the same session* commits. Needs QEMU.

use std::time::Duration;

use keyframe_acceptance::console::Console;
use keyframe_acceptance::guests::{self, DebianGuest};
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result};

const SECOND: Duration = Duration::from_secs(1);
const BOOT_WITHIN: Duration = Duration::from_secs(300);

fn boot<'h>(home: &'h Home, guest: &DebianGuest, spec: MachineSpec) -> Result<Machine<'h>> {
    let spec = spec.disk(&home.overlay("system.qcow2", &guest.system_disk)?);
    let spec = spec.disk(&home.overlay("data.qcow2", &guest.data_disk)?);
    let machine = Machine::start(home, "dbserver", &spec)?;
    machine.serial()?.wait_for(Mark::START, "(automatic login)", BOOT_WITHIN)?;
    let console = Console::of(&machine);
    console.run("until pg_isready -q; do sleep 1; done")?;
    Ok(machine)
}

/// A bank with pgbench at work on it, and a psql session with something to lose.
fn get_to_work(console: &Console<'_, '_>) -> Result<()> {
    console.run("createdb -U postgres bank")?;
    console.run("pgbench -U postgres -q -i -s 1 bank 2>/tmp/init.log")?;
    console.ask("(pgbench -U postgres -c 2 -T 3600 bank >/tmp/pgbench.log 2>&1 &); echo STARTED", "STARTED")?;
    console.run("sleep 2; pgrep -x pgbench >/dev/null")?;
    console.ask("psql -U postgres -A -t bank", "bank=#")?;
    console.ask("CREATE TABLE kept (n int);", "CREATE TABLE")?;
    console.ask("CREATE TEMPORARY TABLE scratch AS SELECT generate_series(1, 500) AS n;", "SELECT 500")?;
    console.ask("BEGIN;", "BEGIN")?;
    console.ask("INSERT INTO kept SELECT n FROM scratch WHERE n <= 123;", "INSERT 0 123")
}

fn drop_the_database(console: &Console<'_, '_>) -> Result<()> {
    console.ask(r"\q", "keyframe#")?;
    console.run("pkill -x pgbench; dropdb -U postgres --force bank")?;
    console.run("! psql -U postgres -c 'SELECT 1' bank 2>/dev/null")?;
    console.run("rm -rf /var/lib/postgresql/15/main/base && sync")
}

fn same_session_commits(console: &Console<'_, '_>, backend: &str) -> Result<()> {
    console.query("SELECT pg_backend_pid()", backend)?;
    console.query("SELECT count(*) FROM scratch", "500")?;
    console.ask("COMMIT;", "COMMIT")?;
    console.ask(r"\q", "keyframe#")
}

fn data_is_whole(console: &Console<'_, '_>) -> Result<()> {
    console.ask("psql -U postgres -A -t -c \"SELECT 'kept: ' || count(*) FROM kept\" bank", "kept: 123")?;
    console.run("pgrep -x pgbench >/dev/null")?;
    console.run("pkill -x pgbench; while pgrep -x pgbench >/dev/null; do sleep 0.2; done")?;
    // What pgbench moved it moved everywhere or nowhere; every index agrees with its table.
    let sums = "SELECT 'sums: ' || ((SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM \
                pgbench_branches) AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history))";
    console.ask(&format!("psql -U postgres -A -t -c \"{sums}\" bank"), "sums: true")?;
    console.run("/usr/lib/postgresql/15/bin/pg_amcheck -U postgres --install-missing --heapallindexed bank")?;
    console.run("! dmesg | grep -E 'I/O error|EXT4-fs error'")
}

fn survives(home: &Home, machine: &Machine<'_>, strategy: &str) -> Result<()> {
    let console = Console::of(machine);
    get_to_work(&console)?;
    let backend = backend_of(machine)?;
    let taken = machine.snapshot("before-upgrade")?;
    assert_eq!(taken.text("consistency")?, "running-state");

    drop_the_database(&console)?;
    machine.revert("before-upgrade", &["--strategy", strategy])?;
    same_session_commits(&console, &backend)?;
    data_is_whole(&console)?;
    home.run(["vm", "stop", machine.name(), "--timeout", "180s"])?.succeeded().map(drop)
}

/// The process behind the psql session at the console.
fn backend_of(machine: &Machine<'_>) -> Result<String> {
    let serial = machine.serial()?;
    let mark = serial.end();
    machine.type_line("SELECT 'backend: ' || pg_backend_pid();")?;
    let line = serial.wait_for(mark, "backend: ", 30 * SECOND)?;
    let digits = line.rsplit("backend: ").next().unwrap_or_default();
    Ok(digits.chars().take_while(char::is_ascii_digit).collect())
}

#[test]
fn a_session_commits_after_its_database_was_dropped_and_brought_back() -> Result<()> {
    let home = Home::new("postgresql")?;
    let guest = guests::debian()?;
    let words = "root=/dev/vda2 console=ttyS0 quiet panic=-1";
    let spec = MachineSpec::with_memory("1G").direct_kernel(&guest.kernel, &guest.initrd, words);
    let machine = boot(&home, &guest, spec)?;
    survives(&home, &machine, "lazy")
}

#[test]
fn the_same_with_a_machine_that_boots_from_uefi_firmware() -> Result<()> {
    let home = Home::new("uefi")?;
    let guest = guests::debian()?;
    let machine = boot(&home, &guest, MachineSpec::with_memory("1G").option("--firmware", "uefi"))?;
    Console::of(&machine).run("test -d /sys/firmware/efi")?;
    survives(&home, &machine, "eager")
}
