//! A running machine with a large disk is backed up again and again, with one hundredth of the disk written in between; beside it,
//! restic and borg store the same disk's file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use keyframe_acceptance::guests::SmallGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Repository};
use serde_json::{Value, json};

use crate::bench::repo::install;
use crate::bench::samples::Samples;
use crate::{run, say};

const BOOT_WITHIN: Duration = Duration::from_secs(300);
/// A write between backups.
const PIECE: u64 = 64 << 10;
const PAGE: usize = 4096;

/// Another store.
pub struct Peer {
    pub name: &'static str,
    /// The first time.
    pub full_ms: f64,
    /// Each time one hundredth had changed.
    pub again: Samples,
}

/// What it came to.
pub struct Figures {
    pub size_mib: u64,
    pub full_ms: f64,
    pub again: Samples,
    /// How it knew what had changed, each time.
    pub changed_by: Vec<String>,
    /// Bytes read of the disks, each time.
    pub read_bytes: Vec<u64>,
    pub peers: Vec<Peer>,
}

impl Figures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        let peer = |peer: &Peer| json!({"name": peer.name, "full_ms": peer.full_ms, "again": peer.again.to_json()});
        json!({
            "size_mib": self.size_mib, "full_ms": self.full_ms, "again": self.again.to_json(), "changed_by": self.changed_by,
            "read_bytes": self.read_bytes, "peers": self.peers.iter().map(peer).collect::<Vec<_>>(),
        })
    }
}

/// Numbers that do not compress.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn page(&mut self, page: &mut [u8]) {
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}

/// A raw disk of which half does not compress and half does well.
///
/// # Errors
/// When it cannot be written.
pub fn fill(path: &Path, size_mib: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut page = [0; PAGE];
    for number in 0..(size_mib << 20) / PAGE as u64 {
        if number % 2 == 0 {
            noise.page(&mut page);
        } else {
            page.fill(0);
            for (line, text) in page.chunks_mut(64).enumerate() {
                let words = format!("record {number} line {line} balance {}\n", noise.next() % 100_000);
                let len = words.len().min(text.len());
                text[..len].copy_from_slice(&words.as_bytes()[..len]);
            }
        }
        file.write_all(&page)?;
    }
    file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(())
}

/// One command of another store.
fn timed(line: &str, dir: &Path, image: &Path) -> Result<Duration> {
    let line = line.replace("{dir}", &dir.display().to_string()).replace("{image}", &image.display().to_string());
    let begun = Instant::now();
    run::quiet(&mut run::command("sh", ["-c", &line])).with_context(|| format!("{line} failed"))?;
    Ok(begun.elapsed())
}

struct Other {
    name: &'static str,
    dir: PathBuf,
    store: String,
}

fn others(scratch: &Path) -> Result<Vec<Other>> {
    let restic = "RESTIC_PASSWORD=x restic -q --no-cache -r {dir}/store";
    let borg = "BORG_PASSPHRASE=x BORG_BASE_DIR={dir}/home BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg";
    let all = [
        ("restic", format!("{restic} init"), format!("{restic} backup {{image}}")),
        (
            "borg",
            format!("{borg} init -e repokey-blake2 {{dir}}/store"),
            // 1 is a warning: the file of a running machine changes while it reads.
            format!(
                "{borg} create -C zstd,1 --chunker-params fixed,65536 {{dir}}/store::$(date +%s%N) {{image}} || test $? = 1"
            ),
        ),
    ];
    let mut others = Vec::new();
    for (name, init, store) in all {
        if !install::is_there(name) {
            say::note(format_args!("{name} is not installed: `cargo xtask bench repo --install` does that"));
            continue;
        }
        let dir = scratch.join(name);
        fs::create_dir_all(&dir)?;
        timed(&init, &dir, Path::new(""))?;
        others.push(Other { name, dir, store });
    }
    Ok(others)
}

/// Writes one hundredth of the disk, in pieces all over it.
fn change(machine: &Machine<'_>, size_mib: u64, round: u64) -> Result<()> {
    let mut monitor = machine.monitor()?;
    let devices = monitor.execute("query-block", &json!({}))?;
    let of_disk1 = devices.as_array().into_iter().flatten().filter_map(|device| device.pointer("/qdev")?.as_str());
    let device =
        of_disk1.filter(|qdev| qdev.contains("disk1")).map(str::to_owned).next().context("there is no disk1")?;
    let bytes = size_mib << 20;
    let pieces = bytes / 100 / PIECE;
    let mut noise = Noise(round + 1);
    for piece in 0..pieces {
        let at = (noise.next() % (bytes / PIECE)) * PIECE;
        let line = format!("qemu-io -d {device} \"write -P {} {at} {PIECE}\"", 1 + (piece + round) % 250);
        let said = monitor.execute("human-monitor-command", &json!({ "command-line": line }))?;
        let said = said.as_str().unwrap_or_default();
        if !said.contains("ops;") && !said.trim().is_empty() {
            bail!("QEMU did not write: {said}");
        }
    }
    Ok(())
}

/// Measures.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &SmallGuest, size_mib: u64, rounds: u64) -> Result<Figures> {
    let image = home.file("large.raw");
    say::note(format_args!("filling a disk of {size_mib} MiB"));
    fill(&image, size_mib)?;
    let spec =
        MachineSpec::small(guest, "256M", "checker.mb=32 checker.rate=10").disk(&home.empty_disk("small.qcow2", "1G")?);
    let machine = Machine::start(home, "large", &spec.disk(&image).option("--accel", "tcg"))?;
    machine.serial()?.wait_for(Mark::START, "READY", BOOT_WITHIN)?;
    let repository = Repository::init(home)?;
    let backup = || -> Result<(f64, Value)> {
        let begun = Instant::now();
        let made = repository.run(home, &["backup", "large", "--json"])?.succeeded()?;
        Ok((begun.elapsed().as_secs_f64() * 1e3, made.json))
    };
    say::note("the first backup of each");
    let (full_ms, _) = backup()?;
    let others = others(home.path())?;
    let mut peers = Vec::new();
    for other in &others {
        let full = timed(&other.store, &other.dir, &image)?;
        peers.push(Peer { name: other.name, full_ms: full.as_secs_f64() * 1e3, again: Samples::default() });
    }
    let mut figures =
        Figures { size_mib, full_ms, again: Samples::default(), changed_by: Vec::new(), read_bytes: Vec::new(), peers };
    for round in 1..=rounds {
        say::note(format_args!("round {round}"));
        change(&machine, size_mib, round)?;
        let (ms, made) = backup()?;
        figures.again.push_ms(ms);
        figures.changed_by.push(made["changed_by"]["disk1"].as_str().unwrap_or("?").to_owned());
        figures.read_bytes.push(made["totals"]["scanned_bytes"].as_u64().unwrap_or(0));
        for (other, peer) in others.iter().zip(&mut figures.peers) {
            peer.again.push(timed(&other.store, &other.dir, &image)?);
        }
    }
    home.run(["vm", "stop", "large", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "large"])?.succeeded()?;
    for other in &others {
        fs::remove_dir_all(&other.dir)?;
    }
    fs::remove_file(&image)?;
    Ok(figures)
}
