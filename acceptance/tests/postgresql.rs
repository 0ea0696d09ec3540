//! The undo button of a database server: a session holds an open transaction, pgbench is at work, the machine
//! is taken; the database is dropped; the machine is brought back; *the same session* commits. Needs QEMU.

mod bank;

use std::time::Duration;

use keyframe_acceptance::console::Console;
use keyframe_acceptance::{Home, Machine, MachineSpec, Result, guests};

use bank::{books_balance, close_the_bank, database_server, open_a_bank, wait_until_up, with_kernel};

const SECOND: Duration = Duration::from_secs(1);

fn boot<'h>(home: &'h Home, spec: &MachineSpec) -> Result<Machine<'h>> {
    let machine = Machine::start(home, "dbserver", spec)?;
    wait_until_up(&machine)?;
    Ok(machine)
}

/// A bank with pgbench at work on it, and a psql session with something to lose.
fn get_to_work(console: &Console<'_, '_>) -> Result<()> {
    open_a_bank(console)?;
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
    close_the_bank(console)?;
    books_balance(console)
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
    let machine = boot(&home, &with_kernel(&guest, database_server(&guest, &home)?))?;
    survives(&home, &machine, "lazy")
}

#[test]
fn the_same_with_a_machine_that_boots_from_uefi_firmware() -> Result<()> {
    let home = Home::new("uefi")?;
    let guest = guests::debian()?;
    let machine = boot(&home, &database_server(&guest, &home)?.option("--firmware", "uefi"))?;
    Console::of(&machine).run("test -d /sys/firmware/efi")?;
    survives(&home, &machine, "eager")
}
