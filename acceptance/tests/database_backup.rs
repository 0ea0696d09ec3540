//! A database is backed up while it works, and every point of it is whole: with its running state, and from its disks alone.
//! Files come out of both without mounting anything. Needs QEMU.

mod bank;

use std::time::Duration;

use keyframe_acceptance::console::Console;
use keyframe_acceptance::{Home, Machine, Repository, Result, guests};

use bank::{books_balance, close_the_bank, database_server, open_a_bank, wait_until_up, with_kernel};

#[test]
fn a_bank_is_backed_up_while_it_works_and_every_point_of_it_is_whole() -> Result<()> {
    let home = Home::new("bank")?;
    let guest = guests::debian()?;
    let machine = Machine::start(&home, "bank", &with_kernel(&guest, database_server(&guest, &home)?))?;
    wait_until_up(&machine)?;
    let console = Console::of(&machine);
    open_a_bank(&console)?;
    let repository = Repository::init(&home)?;
    let backup = |words: &[&str]| repository.run(&home, &[&["backup", "bank", "--json"], words].concat())?.succeeded();
    let warm = backup(&["--memory", "--tag", "warm"])?;
    assert_eq!(warm.text("consistency")?, "running-state");
    console.run("echo later > /root/later; sync")?;
    std::thread::sleep(Duration::from_secs(2));
    let cold = backup(&["--tag", "cold"])?;
    assert_eq!(cold.text("consistency")?, "crash");
    assert_eq!(cold.json["changed_by"]["disk1"], "bitmap", "{}", cold.json);
    // Who works there has noticed nothing.
    close_the_bank(&console)?;
    books_balance(&console)?;
    home.run(["vm", "stop", "bank", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "bank"])?.succeeded()?;

    files_come_out(&home, &repository)?;
    resumed(&home, &repository)?;
    restarted(&home, &repository)
}

fn files_come_out(home: &Home, repository: &Repository) -> Result<()> {
    let files = |words: &[&str]| repository.run(home, &[&["files"], words].concat())?.succeeded();
    let hostname = files(&["bank@cold", "cat", "disk0:2:/etc/hostname"])?;
    assert_eq!(hostname.stdout, "keyframe-debian\n");
    let version = home.file("PG_VERSION");
    let to = version.display().to_string();
    files(&["bank@warm", "cp", "disk1:/15/main/PG_VERSION", &to])?;
    assert_eq!(std::fs::read_to_string(&version).expect("it was copied"), "15\n");
    // The journal of a file system that was in use is read along.
    let later = files(&["bank@cold", "cat", "disk0:2:/root/later"])?;
    assert_eq!(later.stdout, "later\n");
    let earlier = repository.run(home, &["files", "bank@warm", "cat", "disk0:2:/root/later"])?;
    assert_eq!(earlier.status, Some(10), "{}", earlier.stderr);
    let differ = repository.run(home, &["diff", "bank@warm", "bank@cold"])?.succeeded()?;
    assert!(differ.stdout.contains("/root/later"), "{}", differ.stdout);
    Ok(())
}

/// Straight from the repository, with everybody at work.
fn resumed(home: &Home, repository: &Repository) -> Result<()> {
    repository.run(home, &["boot", "bank@warm", "--as", "resumed"])?.succeeded()?;
    let machine = Machine::existing(home, "resumed");
    let console = Console::of(&machine);
    console.run("test ! -e /root/later")?;
    close_the_bank(&console)?;
    books_balance(&console)?;
    home.run(["boot", "--wait", "resumed"])?.succeeded()?;
    books_balance(&console)?;
    home.run(["vm", "stop", "resumed", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "resumed"])?.succeeded().map(drop)
}

/// As after a power cut: the database recovers, and the books balance.
fn restarted(home: &Home, repository: &Repository) -> Result<()> {
    repository.run(home, &["restore", "bank@cold", "--as", "restarted", "--run"])?.succeeded()?;
    let machine = Machine::existing(home, "restarted");
    wait_until_up(&machine)?;
    let console = Console::of(&machine);
    console.run("test \"$(cat /root/later)\" = later")?;
    books_balance(&console)
}
