//! The guest writes something to its serial console, perhaps because something was typed there.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use keyframe_hypervisor::socket;
use regex::Regex;

use super::{Look, Probe, quoted};
use crate::drill::throwaway::Throwaway;

/// Waits for a pattern in what the guest writes.
#[derive(Debug)]
pub(super) struct SerialSays {
    pattern: Regex,
    typing: Typing,
}

/// What is to be typed at the console. QEMU hands it on a few bytes at a time and forgets the rest when the typist goes: so
/// the connection is held, and what the guest says is read, since it would wait for a reader.
#[derive(Debug)]
enum Typing {
    /// Nothing.
    Nothing,
    /// This, when the machine is looked at first.
    Ahead(String),
    /// Typed.
    Done(UnixStream),
}

impl SerialSays {
    pub(super) fn new(pattern: Regex, send: Option<String>) -> Self {
        Self { pattern, typing: send.map_or(Typing::Nothing, Typing::Ahead) }
    }

    fn go_on_typing(&mut self, machine: &Throwaway) -> std::io::Result<()> {
        if let Typing::Ahead(text) = &self.typing {
            let mut console = socket::connect(&machine.instance().console_socket())?;
            console.write_all(text.as_bytes())?;
            console.set_nonblocking(true)?;
            self.typing = Typing::Done(console);
        }
        if let Typing::Done(console) = &mut self.typing {
            let mut sink = [0; 4096];
            // What is read here is in the log as well. A guest that never stops must not keep us.
            for _ in 0..64 {
                if !matches!(console.read(&mut sink), Ok(1..)) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Probe for SerialSays {
    fn name(&self) -> String {
        format!("serial /{}/", self.pattern)
    }

    fn look(&mut self, machine: &mut Throwaway, _by: Instant) -> Look {
        if let Err(error) = self.go_on_typing(machine) {
            return Look::NotYet(format!("nothing can be typed at the console: {error}"));
        }
        let said = machine.serial();
        let text = String::from_utf8_lossy(&said);
        match self.pattern.find(&text) {
            Some(found) => {
                self.typing = Typing::Nothing;
                Look::Passed(quoted(found.as_str().as_bytes()))
            }
            None if said.is_empty() => Look::NotYet("the serial console is silent".to_owned()),
            None => Look::NotYet(format!("the console said: {}", quoted(&said))),
        }
    }
}
