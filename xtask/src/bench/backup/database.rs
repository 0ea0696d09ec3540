//! What pgbench in a Debian with PostgreSQL gets done while its machine is backed up all the time: beside nothing, beside backups to a
//! directory, and beside backups to a repository that takes one megabyte a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use keyframe_acceptance::console::Console;
use keyframe_acceptance::guests::DebianGuest;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Machine, MachineSpec, Repository};
use serde_json::{Value, json};

use crate::bench::samples::Samples;
use crate::say;

const WITHIN: Duration = Duration::from_secs(300);
/// How long pgbench works each time, in seconds.
const SECONDS: u64 = 20;
const SLOW: &str = "1M";

/// Under one kind of disturbance.
#[derive(Debug, Default)]
pub struct Work {
    /// Transactions a second, each time.
    pub tps: Vec<f64>,
    /// The transaction that took longest, each time.
    pub longest: Samples,
    /// Backups that came to their end meanwhile, and the one at work at the end.
    pub backups: u64,
}

impl Work {
    /// The middle one of the rates.
    pub fn median_tps(&self) -> Option<f64> {
        let mut sorted = self.tps.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    fn to_json(&self) -> Value {
        json!({"tps": self.tps, "longest": self.longest.to_json(), "backups": self.backups})
    }
}

/// What it came to.
#[derive(Debug, Default)]
pub struct Figures {
    pub undisturbed: Work,
    pub backups: Work,
    pub slow: Work,
}

impl Figures {
    /// For the JSON document.
    pub fn to_json(&self) -> Value {
        json!({
            "undisturbed": self.undisturbed.to_json(), "backups": self.backups.to_json(), "slow": self.slow.to_json(),
        })
    }
}

/// Lets pgbench work, once.
fn work(machine: &Machine<'_>, work: &mut Work) -> Result<()> {
    let serial = machine.serial()?;
    let mark = serial.end();
    machine.type_line(&format!(
        "cd /tmp; pgbench -U postgres -n -c 2 -T {SECONDS} -l --log-prefix=took bank 2>/dev/null | grep ^tps; cat took* | awk \
         '$3 > m {{ m = $3 }} END {{ print \"longest = \" m \" us\" }}'; rm took*"
    ))?;
    let number = |text: &str| -> Result<f64> {
        let line = serial.wait_for(mark, text, WITHIN)?;
        let words = line.rsplit(text).next().and_then(|rest| rest.split_whitespace().next());
        words.and_then(|word| word.parse().ok()).with_context(|| format!("pgbench told no number: {line}"))
    };
    work.tps.push(number("tps = ")?);
    work.longest.push_ms(number("longest = ")? / 1e3);
    Ok(())
}

/// The same while one backup follows the other.
fn work_beside_backups(
    machine: &Machine<'_>,
    figures: &mut Work,
    backup: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let (ended, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let backups = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                backup()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let worked = work(machine, figures);
        ended.store(true, Ordering::Relaxed);
        backups.join().map_err(|_| anyhow!("a backup panicked"))??;
        worked
    })?;
    figures.backups += count.into_inner();
    Ok(())
}

/// Measures, in turns.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, guest: &DebianGuest, rounds: u64) -> Result<Figures> {
    let spec = MachineSpec::with_memory("1G").direct_kernel(
        &guest.kernel,
        &guest.initrd,
        "root=/dev/vda2 console=ttyS0 quiet panic=-1",
    );
    let spec = spec.option("--accel", "tcg").disk(&home.overlay("bank-system.qcow2", &guest.system_disk)?);
    let machine = Machine::start(home, "bank", &spec.disk(&home.overlay("bank-data.qcow2", &guest.data_disk)?))?;
    machine.serial()?.wait_for(Mark::START, "(automatic login)", WITHIN)?;
    let console = Console::of(&machine);
    console.run("until pg_isready -q; do sleep 1; done; createdb -U postgres bank")?;
    console.run("pgbench -U postgres -q -i -s 2 bank 2>/tmp/init.log; psql -q -U postgres -c CHECKPOINT")?;
    let repository = Repository::init(home)?;
    let backup = |more: &[&str]| -> Result<()> {
        repository.run(home, &[&["backup", "bank"], more].concat())?.succeeded()?;
        Ok(())
    };
    backup(&[])?;
    let mut figures = Figures::default();
    // Whoever works for the first time reads what nobody else has to.
    work(&machine, &mut Work::default())?;
    for round in 1..=rounds {
        say::note(format_args!("round {round}"));
        work(&machine, &mut figures.undisturbed)?;
        work_beside_backups(&machine, &mut figures.backups, || backup(&[]))?;
        work_beside_backups(&machine, &mut figures.slow, || backup(&["--bandwidth", SLOW]))?;
    }
    home.run(["vm", "stop", "bank", "--force"])?.succeeded()?;
    home.run(["vm", "remove", "bank"])?.succeeded()?;
    Ok(figures)
}
