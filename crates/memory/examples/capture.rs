//! Captures one migration by hand, for measuring:
//! `capture SOCKET DIR [BUFFER_MIB [WRITERS [NICE]]]`, then tell QEMU `migrate unix:SOCKET`.

use std::os::fd::OwnedFd;
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
    if let Some(nice) = rest.get(2) {
        options.writer_nice = nice.parse()?;
    }
    let listener = UnixListener::bind(socket)?;
    let (input, _) = listener.accept()?;
    let (progress, cancel) = (CaptureProgress::default(), AtomicBool::new(false));
    let paths = ImagePaths::in_dir(Path::new(dir));
    let report = capture(OwnedFd::from(input), &paths, &options, &progress, &cancel)?;
    println!("{report:#?}");
    println!("{progress:?}");
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status
        .lines()
        .filter(|l| l.starts_with("VmHWM") || l.starts_with("RssAnon"))
    {
        println!("{line}");
    }
    Ok(())
}
