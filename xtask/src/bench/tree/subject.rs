//! A machine whose disk is driven, be it Keyframe's or a bare QEMU, and what is seen of it from outside and inside.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use keyframe_acceptance::Machine;
use keyframe_acceptance::bare::BareQemu;
use keyframe_acceptance::monitor::Monitor;
use keyframe_acceptance::process::ProcessId;
use keyframe_acceptance::serial::{Mark, SerialLog};
use serde_json::{Value, json};

/// Data are laid into layers in pieces of this size: each stops the guest for as long as it takes.
const PIECE_MIB: u64 = 32;
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

/// A part of a disk, in MiB.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Where it begins.
    pub from_mib: u64,
    /// How long it is.
    pub span_mib: u64,
}

impl Area {
    /// Where a mixed load of the checker writes.
    pub const WRITTEN: Self = Self { from_mib: 16, span_mib: 64 };
}

/// What the guest felt of its disk over some time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Felt {
    /// Requests a second, by report.
    rates: Vec<f64>,
    kib: f64,
    ms: f64,
    /// The longest single request.
    pub worst_ms: f64,
}

impl Felt {
    /// From the checker's lines.
    pub fn parse(log: &str) -> Self {
        let mut felt = Self::default();
        for line in log.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let ["DROVE", "ms", ms, "ops", ops, "kib", kib, "worst_ms", worst] = words[..] else { continue };
            if let (Ok(ms), Ok(ops), Ok(kib), Ok(worst)) =
                (ms.parse::<f64>(), ops.parse::<f64>(), kib.parse::<f64>(), worst.parse::<f64>())
            {
                felt.rates.push(ops * 1e3 / ms);
                felt.kib += kib;
                felt.ms += ms;
                felt.worst_ms = felt.worst_ms.max(worst);
            }
        }
        felt
    }

    /// MiB a second over all of it. Nothing when nothing was reported.
    pub fn mib_per_s(&self) -> Option<f64> {
        (self.ms > 0.0).then(|| self.kib / 1024.0 / self.ms * 1e3)
    }

    /// Requests a second: the middle of all reports. Nothing when nothing was reported.
    pub fn requests_per_s(&self) -> Option<f64> {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({ "mib_per_s": self.mib_per_s(), "requests_per_s": self.rates, "worst_ms": self.worst_ms, "ms": self.ms })
    }
}

/// Types one line at the guest's serial console.
type Typist<'a> = Box<dyn Fn(&str) -> Result<()> + 'a>;

/// One of the two.
pub struct Subject<'a> {
    serial: SerialLog,
    process: ProcessId,
    /// Its monitor.
    pub monitor: Monitor,
    typist: Typist<'a>,
}

impl<'a> Subject<'a> {
    /// A machine of Keyframe's.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of_keyframe(machine: &'a Machine<'a>) -> Result<Self> {
        let typist = Box::new(|line: &str| Ok(machine.type_line(line)?));
        Ok(Self { serial: machine.serial()?, process: machine.process()?, monitor: machine.monitor()?, typist })
    }

    /// A bare QEMU.
    ///
    /// # Errors
    /// When its monitor does not answer.
    pub fn of_bare(qemu: &'a BareQemu) -> Result<Self> {
        let typist = Box::new(|line: &str| Ok(qemu.type_line(line)?));
        Ok(Self { serial: qemu.serial(), process: qemu.process(), monitor: qemu.second_monitor()?, typist })
    }

    /// Begins to drive the disk: `read` or `mixed`.
    ///
    /// # Errors
    /// When the guest does not begin.
    pub fn drive(&self, mix: &str, area: Area) -> Result<()> {
        let begun = self.serial.end();
        (self.typist)(&format!("drive {mix} {} {}", area.from_mib, area.span_mib))?;
        // The second report is the first of a disk that is being driven all the time.
        let two = |log: &str| (log.matches("DROVE ms").count() >= 2).then_some(());
        Ok(self.serial.wait(begun, "the guest drives its disk", BEGINS_WITHIN, two)?)
    }

    /// Lets the disk rest.
    ///
    /// # Errors
    /// When the guest does not hear.
    pub fn rest(&self) -> Result<()> {
        let mark = self.serial.end();
        (self.typist)("drive off")?;
        self.serial.wait_for(mark, "DROVE off", BEGINS_WITHIN)?;
        Ok(())
    }

    /// Now, in the log.
    pub fn mark(&self) -> Mark {
        self.serial.end()
    }

    /// What was felt since then.
    pub fn felt_since(&self, mark: Mark) -> Felt {
        Felt::parse(&self.serial.since(mark))
    }

    /// What is felt in the time to come.
    pub fn felt_for(&self, span: Duration) -> Felt {
        let mark = self.mark();
        std::thread::sleep(span);
        self.felt_since(mark)
    }

    /// Bytes that its QEMU has written to files for other reasons than the guest's own writes.
    ///
    /// # Errors
    /// When the kernel or QEMU does not tell.
    pub fn moved_bytes(&mut self) -> Result<u64> {
        let path = format!("/proc/{}/io", self.process.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let written = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<u64>().ok());
        let stats = self.monitor.execute("query-blockstats", &json!({}))?;
        let devices = stats.as_array().into_iter().flatten();
        let of_guest: u64 = devices.filter_map(|device| device.pointer("/stats/wr_bytes")?.as_u64()).sum();
        Ok(written.with_context(|| format!("{path} tells no write_bytes"))?.saturating_sub(of_guest))
    }

    /// Lays data into the disk's active layer.
    ///
    /// # Errors
    /// When QEMU does not write them.
    pub fn fill(&mut self, area: Area) -> Result<()> {
        let device = self.device()?;
        for from in (area.from_mib..area.from_mib + area.span_mib).step_by(PIECE_MIB as usize) {
            let span = PIECE_MIB.min(area.from_mib + area.span_mib - from);
            let line = format!("qemu-io -d {device} \"write -P {} {from}M {span}M\"", 1 + from % 250);
            let said = self.monitor.execute("human-monitor-command", &json!({ "command-line": line }))?;
            let said = said.as_str().unwrap_or_default();
            if !said.contains("ops;") && !said.trim().is_empty() {
                bail!("QEMU did not write into the layer: {said}");
            }
        }
        Ok(())
    }

    fn query_block(&mut self, pointer: &str) -> Result<String> {
        let devices = self.monitor.execute("query-block", &json!({}))?;
        let found = devices.as_array().into_iter().flatten().find_map(|device| device.pointer(pointer)?.as_str());
        found.map(str::to_owned).with_context(|| format!("QEMU tells of no disk's {pointer}"))
    }

    fn device(&mut self) -> Result<String> {
        self.query_block("/qdev")
    }

    /// The file of the disk's active layer.
    ///
    /// # Errors
    /// When QEMU does not tell.
    pub fn active_file(&mut self) -> Result<PathBuf> {
        // The file of a chain with options of its own has no name but that of the node below it, which is `f-` and the
        // layer's file.
        let layer = self.query_block("/inserted/node-name")?;
        let node = layer.split_once('-').map(|(_, file)| format!("f-{file}")).context("a layer has a name")?;
        let nodes = self.monitor.execute("query-named-block-nodes", &json!({ "flat": true }))?;
        let named = |at: &&Value| at.get("node-name").and_then(Value::as_str) == Some(&node);
        let found = nodes.as_array().into_iter().flatten().find(named);
        let file = found.and_then(|node| node.get("file")?.as_str());
        file.map(PathBuf::from).with_context(|| format!("QEMU tells of no {node}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up_and_other_lines_do_not_matter() {
        let log = "T 1 gen 2\nDROVE ms 500.0 ops 10 kib 1024 worst_ms 3.0\nDROVE off\nDROVE ms 500.0 ops 30 kib 3072 worst_ms 9.5\n\
                   DROVE ms 500.0 ops 20 kib 2048 worst_ms 1.0\nDROVE ms 500.0 op";
        let felt = Felt::parse(log);
        assert_eq!((felt.mib_per_s(), felt.requests_per_s(), felt.worst_ms), (Some(4.0), Some(40.0), 9.5));
        assert_eq!(Felt::parse("").mib_per_s(), None);
    }
}
