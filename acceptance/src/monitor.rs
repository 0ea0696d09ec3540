//! Raw QMP: for looking at, and meddling with, a machine behind `keyframe`'s back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::error::{Error, Result};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Events that nobody asked for are forgotten when there are more than this.
const MOST_EVENTS: usize = 10_000;

/// Something that QEMU told of itself.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// When it happened, by QEMU's clock.
    pub at: SystemTime,
    /// What it says.
    pub data: Value,
}

impl Event {
    fn parse(message: &Value) -> Option<Self> {
        let number = |name: &str| message.get("timestamp")?.get(name)?.as_u64();
        let since = Duration::from_secs(number("seconds")?).checked_add(Duration::from_micros(number("microseconds")?));
        Some(Self {
            name: message.get("event")?.as_str()?.to_owned(),
            at: SystemTime::UNIX_EPOCH.checked_add(since?)?,
            data: message.get("data").cloned().unwrap_or(Value::Null),
        })
    }
}

/// A QMP connection whose greeting is done.
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: Vec<Event>,
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
        let mut monitor = Self { reader, writer, events: Vec::new() };
        monitor.receive("greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Executes a command and gives its `return`; events that arrive meanwhile are kept for [`Monitor::wait_for_event`].
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
            self.keep(&answer);
        }
    }

    fn keep(&mut self, message: &Value) {
        if self.events.len() >= MOST_EVENTS {
            self.events.clear();
        }
        self.events.extend(Event::parse(message));
    }

    /// Forgets the events that have arrived so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Gives the first event that `accept` wants, of those that have arrived since the last
    /// [`Monitor::forget_events`] and those to come. It stays kept.
    ///
    /// # Errors
    /// [`Error::Monitor`] after `within`.
    pub fn wait_for_event(&mut self, what: &str, within: Duration, accept: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + within;
        let trouble = |answer: String| Error::Monitor { command: what.to_owned(), answer };
        let outcome = loop {
            if let Some(found) = self.events.iter().find(|event| accept(event)) {
                break Ok(found.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(trouble(format!("no such event within {within:?}")));
            }
            self.writer.set_read_timeout(Some(left)).map_err(|error| trouble(error.to_string()))?;
            match self.receive(what) {
                Ok(message) => self.keep(&message),
                Err(error) => break Err(error),
            }
        };
        self.writer.set_read_timeout(Some(ANSWER_WITHIN)).map_err(|error| trouble(error.to_string()))?;
        outcome
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn events_are_kept_while_an_answer_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let say = |text: &str| writeln!(&stream, "{text}").unwrap();
            say(r#"{"QMP": {}}"#);
            lines.next().unwrap().unwrap();
            say(r#"{"return": {}}"#);
            lines.next().unwrap().unwrap();
            say(r#"{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}"#);
            say(r#"{"return": {}}"#);
        });
        let mut monitor = Monitor::connect(&socket).unwrap();
        monitor.execute("stop", &json!({})).unwrap();
        let stop = monitor.wait_for_event("STOP", Duration::from_secs(5), |event| event.name == "STOP").unwrap();
        assert_eq!(stop.at.duration_since(SystemTime::UNIX_EPOCH).unwrap(), Duration::from_micros(5_000_007));
        monitor.forget_events();
        assert!(monitor.wait_for_event("STOP", Duration::from_millis(1), |event| event.name == "STOP").is_err());
        qemu.join().unwrap();
    }
}
