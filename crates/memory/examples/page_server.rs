//! A page server in a process of its own: `page_server CONFIG.json [LEARNED]`.
//!
//! Tells what happens on stdout, one JSON object on a line, the report last. Writes what the guest wanted first
//! to LEARNED, in the form of `memory.hot`.

use std::io::Write;

use keyframe_memory::pageserver::{Notice, Observer, ServerConfig, run};

struct Lines;

impl Observer for Lines {
    fn notice(&self, notice: Notice) {
        if let Ok(line) = serde_json::to_string(&notice) {
            let _nobody_reads = writeln!(std::io::stdout(), "{line}");
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let config = args.next().ok_or("usage: page_server CONFIG.json [LEARNED]")?;
    let config: ServerConfig = serde_json::from_slice(&std::fs::read(config)?)?;
    let report = match run(&config, &Lines) {
        Ok(report) => report,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            std::process::exit(1);
        }
    };
    if let Some(learned) = args.next() {
        std::fs::write(learned, report.learned.to_bytes())?;
    }
    println!("{}", serde_json::to_string(&report.figures)?);
    Ok(())
}
