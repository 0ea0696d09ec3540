//! Captures one migration by hand, for measuring:
//! `capture SOCKET DIR [BUFFER_MIB [WRITERS]]`, then tell QEMU `migrate unix:SOCKET`;
//! or with `-` for the socket and the pipe as standard input.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use keyframe_memory::capture::{CaptureOptions, CaptureProgress, ImagePaths, capture};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [socket, dir, rest @ ..] = args.as_slice() else {
        return Err("usage: capture SOCKET DIR [BUFFER_MIB [WRITERS [NICE]]]".into());
    };
    let mut options = CaptureOptions::default();
    if let Some(mib) = rest.first() {
        options.buffer_bytes = mib.parse::<usize>()? << 20;
    }
    if let Some(writers) = rest.get(1) {
        options.writers = writers.parse()?;
    }
    let input = if socket == "-" {
        std::io::stdin().as_fd().try_clone_to_owned()?
    } else {
        UnixListener::bind(socket)?.accept()?.0.into()
    };
    let (progress, cancel) = (CaptureProgress::default(), AtomicBool::new(false));
    let paths = ImagePaths::in_dir(Path::new(dir));
    let report = capture(input, &paths, &options, &progress, &cancel)?;
    println!("{report:#?}");
    println!("{progress:?}");
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("RssAnon")) {
        println!("{line}");
    }
    Ok(())
}
