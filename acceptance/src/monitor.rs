//! Raw QMP: for looking at, and meddling with, a machine behind `keyframe`'s back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A QMP connection whose greeting is done.
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Monitor {
    /// Connects and leaves negotiation mode.
    ///
    /// # Errors
    /// [`Error::File`] when nobody listens, [`Error::Monitor`] when it is not QMP.
    pub fn connect(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).map_err(Error::file("connect to", socket))?;
        writer.set_read_timeout(Some(ANSWER_WITHIN)).map_err(Error::file("set up", socket))?;
        let reader = BufReader::new(writer.try_clone().map_err(Error::file("set up", socket))?);
        let mut monitor = Self { reader, writer };
        monitor.receive("greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Executes a command and gives its `return`; events that arrive meanwhile are dropped.
    ///
    /// # Errors
    /// [`Error::Monitor`] with QEMU's answer when it says no.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = writeln!(self.writer, "{request}");
        sent.map_err(|error| Error::Monitor { command: command.to_owned(), answer: error.to_string() })?;
        loop {
            let mut answer = self.receive(command)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if answer.get("error").is_some() {
                return Err(Error::Monitor { command: command.to_owned(), answer: answer.to_string() });
            }
        }
    }

    fn receive(&mut self, command: &str) -> Result<Value> {
        let trouble = |answer: String| Error::Monitor { command: command.to_owned(), answer };
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(trouble("the connection was closed".to_owned())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| trouble(format!("{error}: {line}"))),
            Err(error) => Err(trouble(error.to_string())),
        }
    }
}
