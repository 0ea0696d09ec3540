//! A real QEMU, just enough of it: no kernel, no disks; SeaBIOS leaves plenty in memory.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Guest memory of every machine here.
pub const RAM_MIB: u64 = 64;

/// A running QEMU and its monitor. Killed when dropped.
pub struct Qemu {
    child: Child,
    write: UnixStream,
    read: BufReader<UnixStream>,
    dir: PathBuf,
}

/// How the machine gets its memory.
pub enum Memory<'a> {
    Anonymous,
    /// Mapped privately from that offset of a file.
    Mapped(&'a Path, u64),
}

impl Qemu {
    /// Starts a q35 machine with a VGA card; `extra` arguments follow.
    pub fn start(dir: &Path, name: &str, memory: &Memory<'_>, extra: &[&str]) -> Self {
        let socket = dir.join(format!("{name}.qmp"));
        let backend = match memory {
            Memory::Anonymous => format!("memory-backend-ram,id=ram0,size={RAM_MIB}M"),
            Memory::Mapped(path, offset) => format!(
                "memory-backend-file,id=ram0,size={RAM_MIB}M,mem-path={},offset={offset},\
                 share=off,readonly=on,rom=off",
                path.display()
            ),
        };
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "q35,accel=tcg,memory-backend=ram0", "-m", &format!("{RAM_MIB}M")])
            .args(["-display", "none", "-nodefaults", "-device", "VGA", "-object", &backend])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(extra)
            .stdin(Stdio::null())
            .spawn()
            .expect("these tests need qemu-system-x86_64 10 on PATH");
        let stream = connect(&socket);
        let read = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut qemu = Self { child, write: stream, read, dir: dir.to_owned() };
        qemu.line();
        qemu.ask(r#"{"execute":"qmp_capabilities"}"#);
        qemu
    }

    /// Sends a command; returns the reply's line. Panics when it is an error.
    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.write, "{command}").expect("QEMU is there");
        self.reply(command)
    }

    fn reply(&mut self, command: &str) -> String {
        loop {
            let line = self.line();
            assert!(!line.starts_with(r#"{"error""#), "{command}: {line}");
            if line.starts_with(r#"{"return""#) {
                return line;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.read.read_line(&mut line).expect("QEMU is there");
        assert!(count > 0, "QEMU has ended");
        line
    }

    /// Switches migration capabilities, all others off.
    pub fn capabilities(&mut self, on: &[&str]) {
        let all = ["background-snapshot", "mapped-ram", "events"];
        let states = all.map(|name| format!(r#"{{"capability":"{name}","state":{}}}"#, on.contains(&name)));
        let list = states.join(",");
        self.ask(&format!(r#"{{"execute":"migrate-set-capabilities","arguments":{{"capabilities":[{list}]}}}}"#));
    }

    /// Starts a migration; waits out the previous one's end.
    pub fn migrate(&mut self, uri: &str) {
        let command = format!(r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            writeln!(self.write, "{command}").expect("QEMU is there");
            let line = loop {
                let line = self.line();
                if line.starts_with(r#"{"error""#) || line.starts_with(r#"{"return""#) {
                    break line;
                }
            };
            if line.starts_with(r#"{"return""#) {
                return;
            }
            assert!(line.contains("yank") && Instant::now() < deadline, "{line}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Hands over a descriptor and migrates to it.
    pub fn migrate_to(&mut self, fd: OwnedFd) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "room for one");
        let command = r#"{"execute":"getfd","arguments":{"fdname":"out"}}"#;
        let bytes = [IoSlice::new(command.as_bytes()), IoSlice::new(b"\n")];
        sendmsg(&self.write, &bytes, &mut control, SendFlags::empty()).expect("sent");
        self.reply(command);
        drop(fd);
        self.migrate("fd:out");
    }

    /// Waits until a query's reply has that text.
    pub fn wait(&mut self, query: &str, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let reply = self.ask(&format!(r#"{{"execute":"{query}"}}"#));
            if reply.contains(text) {
                return;
            }
            assert!(!reply.contains(r#""failed""#) && Instant::now() < deadline, "{reply}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All of guest memory.
    pub fn memory(&mut self) -> Vec<u8> {
        let file = self.dir.join("memory.raw");
        let bytes = RAM_MIB << 20;
        self.ask(&format!(
            r#"{{"execute":"pmemsave","arguments":{{"val":0,"size":{bytes},"filename":"{}"}}}}"#,
            file.display()
        ));
        let found = fs::read(&file).expect("written");
        fs::remove_file(&file).expect("removed");
        found
    }

    /// The processor's registers, as text.
    pub fn registers(&mut self) -> String {
        let line = r#"{"command-line":"info registers"}"#;
        self.ask(&format!(r#"{{"execute":"human-monitor-command","arguments":{line}}}"#))
    }

    /// Loads a migration into a machine started with `-incoming defer -S`.
    pub fn load(&mut self, path: &Path) {
        self.capabilities(&["mapped-ram"]);
        let uri = format!("file:{}", path.display());
        self.ask(&format!(r#"{{"execute":"migrate-incoming","arguments":{{"uri":"{uri}"}}}}"#));
        self.wait("query-migrate", r#""status": "completed""#);
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "no monitor: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
