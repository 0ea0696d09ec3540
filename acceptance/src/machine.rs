//! One machine of a test: created through `keyframe`, watched through its serial log.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::checker;
use crate::error::{Error, Result};
use crate::guests::SmallGuest;
use crate::home::Home;
use crate::monitor::Monitor;
use crate::process::ProcessId;
use crate::running::Outcome;
use crate::serial::{Mark, SerialLog};

/// A checker needs this long at most to verify all memory of a small test machine.
const VERIFY_WITHIN: Duration = Duration::from_secs(120);
/// The checker reads every slot of every disk at least once in this time.
const DISKS_READ_WITHIN: Duration = Duration::from_secs(3);

/// QEMU hands a line to the guest a few bytes at a time, and drops the rest when the typist leaves earlier.
const TYPING: Duration = Duration::from_millis(300);

/// What to create: `keyframe vm create`'s options.
#[derive(Debug, Clone, Default)]
pub struct MachineSpec {
    arguments: Vec<OsString>,
}

impl MachineSpec {
    /// A machine with that much memory, such as `1G`.
    #[must_use]
    pub fn with_memory(memory: &str) -> Self {
        Self::default().option("--memory", memory)
    }

    /// The small guest with these words for its checker, besides what every test wants.
    #[must_use]
    pub fn small(guest: &SmallGuest, memory: &str, words: &str) -> Self {
        let append = format!("console=ttyS0 quiet panic=-1 iomem=relaxed {words}");
        Self::with_memory(memory).direct_kernel(&guest.kernel, &guest.initrd, &append)
    }

    /// A kernel to boot without firmware's help.
    #[must_use]
    pub fn direct_kernel(self, kernel: &Path, initrd: &Path, append: &str) -> Self {
        self.option("--kernel", kernel).option("--initrd", initrd).option("--append", append)
    }

    /// One more disk.
    #[must_use]
    pub fn disk(self, path: &Path) -> Self {
        self.option("--disk", path)
    }

    /// Arguments for QEMU itself; nothing can be said behind them.
    #[must_use]
    pub fn for_qemu(mut self, arguments: &[&str]) -> Self {
        self.arguments.push("--".into());
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    /// Any option with its value.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }
}

/// A machine that exists in a home.
pub struct Machine<'h> {
    home: &'h Home,
    name: String,
}

impl<'h> Machine<'h> {
    /// Creates and starts one.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `keyframe` said.
    pub fn start(home: &'h Home, name: &str, spec: &MachineSpec) -> Result<Self> {
        let words = ["vm", "create", name].map(OsString::from);
        home.run(words.into_iter().chain(spec.arguments.iter().cloned()))?.succeeded()?;
        home.run(["vm", "start", name])?.succeeded()?;
        Ok(Self::existing(home, name))
    }

    /// One that a command other than `vm create` has made: a fork, say.
    pub fn existing(home: &'h Home, name: &str) -> Self {
        Self { home, name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `VM@SNAP`.
    pub fn at(&self, snapshot: &str) -> String {
        format!("{}@{snapshot}", self.name)
    }

    /// What `vm show --json` tells.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `keyframe` said.
    pub fn show(&self) -> Result<Outcome> {
        self.home.run(["vm", "show", &self.name, "--json"])?.succeeded()
    }

    /// `snapshot --json` under this name.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `keyframe` said.
    pub fn snapshot(&self, snapshot: &str) -> Result<Outcome> {
        self.home.run(["snapshot", &self.name, "--name", snapshot, "--json"])?.succeeded()
    }

    /// `revert --discard --json` with further arguments.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `keyframe` said.
    pub fn revert(&self, snapshot: &str, further: &[&str]) -> Result<Outcome> {
        let target = self.at(snapshot);
        let words = ["revert", &target, "--discard", "--json"].into_iter().chain(further.iter().copied());
        self.home.run(words)?.succeeded()
    }

    /// Its QEMU process.
    ///
    /// # Errors
    /// [`Error::Json`] when it does not run.
    pub fn process(&self) -> Result<ProcessId> {
        let shown = self.show()?;
        let pid = shown.number("pid")?;
        Ok(ProcessId(pid as u32))
    }

    /// Its QEMU's monitor.
    ///
    /// # Errors
    /// [`Error::File`] when nobody listens there.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(Path::new(self.show()?.text("qmp")?))
    }

    /// Its serial log.
    ///
    /// # Errors
    /// [`Error::Json`] when `vm show` does not tell of it.
    pub fn serial(&self) -> Result<SerialLog> {
        Ok(SerialLog::at(self.show()?.text("serial_log")?))
    }

    /// Types one line at its serial console, with `vm console`.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `keyframe` said.
    pub fn type_line(&self, line: &str) -> Result<()> {
        let mut command = self.home.keyframe()?;
        command.args(["vm", "console", &self.name]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let shown = format!("keyframe vm console {}", self.name);
        let trouble = |source| Error::Run { program: shown.clone(), source };
        let mut child = command.spawn().map_err(trouble)?;
        if let Some(mut typist) = child.stdin.take() {
            // When it does not listen, its exit status tells.
            let _unheard = typist.write_all(format!("{line}\n").as_bytes());
            thread::sleep(TYPING);
        }
        let output = child.wait_with_output().map_err(trouble)?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Failed { command: shown, status: output.status.to_string(), stderr })
    }

    /// Waits until the checker in the small guest is at work.
    ///
    /// # Errors
    /// [`Error::Silent`] when it does not get there.
    pub fn wait_until_checking(&self) -> Result<()> {
        let serial = self.serial()?;
        serial.wait_for(Mark::START, "READY", Duration::from_secs(120))?;
        serial.next_heartbeat(Mark::START, Duration::from_secs(10)).map(drop)
    }

    /// Makes the checker verify all memory at full speed, waits until it has read all disks too, and sees that
    /// it had nothing to complain about since the mark.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first complaint, [`Error::Silent`] when there is no verdict.
    pub fn assert_intact(&self, since: Mark) -> Result<()> {
        let serial = self.serial()?;
        let (mark, start) = (serial.end(), Instant::now());
        self.type_line("verify")?;
        serial.wait_for(mark, "VERIFIED", VERIFY_WITHIN)?;
        thread::sleep(DISKS_READ_WITHIN.saturating_sub(start.elapsed()));
        serial.next_heartbeat(serial.end(), Duration::from_secs(10))?;
        match checker::first_complaint(&serial.since(since)) {
            Some(line) => Err(Error::Corrupt { line: line.to_owned() }),
            None => Ok(()),
        }
    }
}

/// Types one line at the console behind a socket. What the guest says meanwhile is read and thrown away (it is
/// in the log): a guest whose console is connected and not read would wait for us.
///
/// # Errors
/// [`Error::File`] when nobody listens there.
pub fn type_line(socket: &Path, line: &str) -> Result<()> {
    let mut console = UnixStream::connect(socket).map_err(Error::file("connect to", socket))?;
    let mut listener = console.try_clone().map_err(Error::file("listen to", socket))?;
    let reader = thread::spawn(move || {
        let mut sink = [0; 4096];
        while listener.read(&mut sink).is_ok_and(|count| count > 0) {}
    });
    let typed = console.write_all(format!("{line}\n").as_bytes());
    thread::sleep(TYPING);
    let _gone_already = console.shutdown(std::net::Shutdown::Both);
    let _nothing = reader.join();
    typed.map_err(Error::file("type at", socket))
}
