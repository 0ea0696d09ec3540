//! The program inside Keyframe's test guests, and a strict judge of what snapshots do to them.
//!
//! It is process 1 of a Linux that has nothing else. It fills memory with a pattern and rewrites it, writes
//! numbered blocks to several disks, remembers which of them were acknowledged, and reads everything back
//! all the time. Memory that is not of one instant, disks that are not of one instant, and disks that are
//! not of memory's instant each make it say `CORRUPT`, and it never says `OK` again in that session.
//!
//! Lines it prints on the serial port:
//!
//! ```text
//! SESSION <token> memory <MiB>+<MiB cold> disks <names>    once, at the start
//! FOUND session <token> seq <a,b>                          disks hold an earlier session's writes, in order
//! READY                                                    memory is filled, disks are blank
//! T <ms> gen <pages rewritten> seq <a,b> gap_ms <worst> token <token>    each tick
//! OK|CORRUPT passes <n> faults <n> seq <a,b> token <token> each second
//! CORRUPT <what>                                           a fault, spelled out
//! CLOSING                                                  the machine is being switched off
//! VMGENID <guid> [-> <guid>]                               at the start, and when it changes (needs iomem=relaxed)
//! VERIFIED pages <n> faults <n> ms <n>                     the answer to `verify`
//! DROVE ms <n> ops <n> kib <n> worst_ms <n>                twice a second while `drive` loads the first disk
//! DROVE off                                                the answer to `drive off`
//! ```
//!
//! `gap_ms` is the longest time between two turns of a thread that asks for one every 5 ms, by the guest's own
//! clock: what the guest itself felt. A pause that stops the guest's clock is only seen from outside.
//!
//! With `root=` on the kernel command line it checks nothing and goes on to the system on that partition:
//! so the same initramfs starts the Debian guest. See [`params`] for all parameters.

mod board;
mod commands;
mod disk;
mod drive;
mod error;
mod init;
mod ledger;
mod memory;
mod params;
mod slot;
mod units;
mod vmgenid;
mod workers;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::board::Board;
use crate::commands::{Command, HELP};
use crate::disk::Disk;
use crate::drive::Driver;
use crate::error::Error;
use crate::memory::Memory;
use crate::params::{CheckParams, Task};
use crate::units::Token;
use crate::workers::{MemorySpeed, Order};

fn main() {
    if std::process::id() != 1 {
        eprintln!("keyframe-checker runs only as the first process of a test guest: it overwrites the disks it finds");
        std::process::exit(2);
    }
    let outcome = run();
    let mut trouble: Option<&dyn std::error::Error> = outcome.as_ref().err().map(|error| error as _);
    while let Some(error) = trouble {
        eprintln!("FATAL {error}");
        trouble = error.source();
    }
    thread::sleep(Duration::from_secs(1));
    let _refused = init::power_off();
}

fn run() -> Result<(), Error> {
    init::mount_basics()?;
    init::load_modules()?;
    let line = fs::read_to_string("/proc/cmdline").map_err(Error::file("read", "/proc/cmdline"))?;
    match Task::from_command_line(&line)? {
        Task::SwitchTo(root) => init::switch_root(&root).map(|never| match never {}),
        Task::Check(params) => check(&params),
    }
}

fn check(params: &CheckParams) -> Result<(), Error> {
    init::set_kernel_log_level()?;
    let (output, input) = open_terminal()?;
    let token = Token::random().map_err(Error::Token)?;
    let names = disk::choose(&params.disks)?;
    let board = Arc::new(Board::new(token, output, names.len()));
    init::obey_power_button(&board);
    let (hot, cold) = (params.extent.hot.pages() / 256, params.extent.cold.pages() / 256);
    let list = if names.is_empty() { "-".to_owned() } else { names.join(",") };
    board.say(format_args!("SESSION {token} memory {hot}+{cold} disks {list}"));

    let driver = Driver::of(names.first().cloned());
    let disks = prepare_disks(&board, names, token)?;
    let memory = Memory::filled(token, params.extent);
    board.say("READY");
    let workers = start_workers(&board, params, memory, disks);
    obey(&board, input, &workers, &driver);
    loop {
        thread::park();
    }
}

/// The serial port for output and input, without echo: what a test types must not read like an answer.
fn open_terminal() -> Result<(File, File), Error> {
    let path = if fs::exists("/dev/ttyS0").unwrap_or(false) { "/dev/ttyS0" } else { "/dev/console" };
    let not_controlling = rustix::fs::OFlags::NOCTTY.bits() as i32;
    let mut options = File::options();
    let tty = options.read(true).write(true).custom_flags(not_controlling).open(path);
    let tty = tty.map_err(Error::file("open", path))?;
    if let Ok(mut modes) = tcgetattr(&tty) {
        modes.local_modes.remove(LocalModes::ECHO);
        let _kept_as_it_was = tcsetattr(&tty, OptionalActions::Now, &modes);
    }
    let input = tty.try_clone().map_err(Error::file("open", path))?;
    Ok((tty, input))
}

fn prepare_disks(board: &Board, names: Vec<String>, token: Token) -> Result<Vec<Disk>, Error> {
    let files = names.iter().map(|name| disk::open(name)).collect::<Result<Vec<_>, _>>()?;
    let found: Vec<_> = files.iter().map_while(disk::left_behind).collect();
    if let Some(first) = found.first() {
        let numbers: Vec<_> = found.iter().map(|stamp| stamp.sequence.number().to_string()).collect();
        board.say(format_args!("FOUND session {} seq {}", first.token, numbers.join(",")));
        if !ledger::in_order(&found) {
            board.complain("the disks that an earlier session left are not of one instant");
        }
    }
    let numbered = names.into_iter().zip(files).enumerate();
    numbered.map(|(position, (name, file))| Disk::blank(name, file, position, token)).collect()
}

type Body = Box<dyn FnOnce(&Board, &Receiver<Order>) + Send>;

fn start_workers(board: &Arc<Board>, params: &CheckParams, memory: Memory, disks: Vec<Disk>) -> Vec<Sender<Order>> {
    let mut orders = Vec::new();
    let mut start = |body: Body| {
        let (sender, receiver) = mpsc::channel();
        orders.push(sender);
        let board = Arc::clone(board);
        thread::spawn(move || body(&board, &receiver));
    };
    let speed = MemorySpeed { rewrite: params.rewrite, verify: params.verify };
    start(Box::new(move |board, orders| workers::tend_memory(board, memory, speed, orders)));
    let rate = params.disk_rate;
    for disk in disks {
        start(Box::new(move |board, orders| workers::tend_disk(board, disk, rate, orders)));
    }
    let tick = params.tick;
    start(Box::new(move |board, _| workers::beat(board, tick)));
    start(Box::new(|board, _| vmgenid::watch(board)));
    orders
}

/// Reads commands until the serial line ends.
fn obey(board: &Arc<Board>, input: File, workers: &[Sender<Order>], driver: &Driver) {
    let tell = |order| {
        for worker in workers {
            let _ended = worker.send(order);
        }
    };
    for line in BufReader::new(input).lines() {
        let Ok(line) = line else { return };
        let Ok(command) = line.parse() else {
            board.say(HELP);
            continue;
        };
        match command {
            Command::Wreck => tell(Order::Wreck),
            Command::Rate(rate) => tell(Order::Rate(rate)),
            Command::DiskRate(rate) => tell(Order::DiskRate(rate)),
            Command::Verify => tell(Order::Verify),
            Command::Drive(drive) => driver.obey(board, drive),
            Command::Status => board.say(board.verdict().unwrap_or_else(|| board.heartbeat(0.0))),
            Command::Panic => init::crash_kernel().unwrap_or_else(|error| board.say(error)),
            Command::PowerOff => {
                board.close();
                init::power_off().unwrap_or_else(|error| board.say(error));
            }
        }
    }
}
