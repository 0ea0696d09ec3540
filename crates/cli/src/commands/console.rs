//! `vm console`: the terminal, connected to a machine's serial port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use keyframe_engine::Error;
use keyframe_hypervisor::socket;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

/// The terminal in raw mode, until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // Standard input that is no terminal stays as it is.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Connects the terminal to the console at `path` until Ctrl-] is typed, the input ends or the machine does.
pub fn run(path: &Path) -> Result<(), Error> {
    let io = |source| Error::Io { action: "talk to", path: path.to_owned(), source };
    let stream = socket::connect(path).map_err(io)?;
    eprintln!("connected; Ctrl-] ends it");
    let raw = Raw::enter();
    let output = stream.try_clone().map_err(io)?;
    let printer = std::thread::spawn(move || print_all(output));
    let sent = send_all(&stream);
    if sent.is_ok() {
        // The printer ends when the connection does.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    drop(printer.join());
    drop(raw);
    eprintln!();
    sent.map_err(io)
}

fn print_all(mut from: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut terminal = std::io::stdout();
        if terminal.write_all(&buffer[..count]).and_then(|()| terminal.flush()).is_err() {
            return;
        }
    }
}

fn send_all(mut to: &UnixStream) -> std::io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        let count = std::io::stdin().read(&mut buffer)?;
        let typed = &buffer[..count];
        let end = typed.iter().position(|&byte| byte == ESCAPE);
        to.write_all(&typed[..end.unwrap_or(count)])?;
        if end.is_some() || count == 0 {
            return Ok(());
        }
    }
}
