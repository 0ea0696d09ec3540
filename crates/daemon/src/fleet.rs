//! The machines of a home, as the daemon sees them: looked at from the side, never touched.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use keyframe_engine::machine::Machine;
use keyframe_engine::state::lock::Lock;
use keyframe_engine::tree::{self, Tree};
use keyframe_engine::{Context, Home};
use keyframe_hypervisor::launch::DiskChain;
use keyframe_types::{Silent, VmName};
use serde::Serialize;

use crate::error::Error;

/// A snapshot, as far as keeping it or not is decided by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSnapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The instant that it holds.
    pub created: Timestamp,
    /// Whose it is.
    pub owner: String,
    /// When it may go.
    pub expires: Option<Timestamp>,
    /// It must not go: pinned, or a fork stands on it.
    pub held: bool,
}

/// Snapshots of machines, each one's by age.
pub type Snapshots = BTreeMap<String, Vec<SeenSnapshot>>;

/// A machine.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Seen {
    /// Its UUID: another machine of that name has another one.
    pub uuid: String,
    /// A command on it was ended before its end: the next one goes on there.
    pub unfinished: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// What it does: `running`, `paused`, `stopped`, `crashed`, `unresponsive`; `unknown` for one that cannot be read.
    pub state: String,
    /// Why it cannot be read.
    pub trouble: Option<String>,
    /// The disks of the host that its disks are on, by number.
    pub devices: Vec<u64>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// The instant of the latest.
    pub last_snapshot: Option<Timestamp>,
    /// What its snapshots take.
    pub snapshots_bytes: u64,
    /// Its RAM.
    pub memory_bytes: u64,
    /// Its CPUs.
    pub cpus: u32,
    /// Its disks: id and active layer.
    pub disks: Vec<(String, PathBuf)>,
    /// Why it should be seen to, in a line.
    pub warning: Option<String>,
}

/// All machines by name, as they were looked at last.
pub type Machines = BTreeMap<String, Seen>;

/// When machines were looked at last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastLook {
    /// When that was, by the clock.
    pub at: Timestamp,
    /// How long ago, whatever happened to the clock.
    pub ago: Duration,
}

/// What knows the machines.
pub trait Fleet {
    /// As they were looked at last: the same `Arc` as long as nothing of them changed.
    fn machines(&mut self) -> Arc<Machines>;

    /// When that was.
    fn last_look(&self) -> LastLook;

    /// A machine's snapshots, by age, as they are now.
    ///
    /// # Errors
    /// When they cannot be read.
    fn snapshots(&mut self, machine: &str) -> Result<Vec<SeenSnapshot>, Error>;
}

/// How often machines are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// How long what is known of a machine's snapshots is good, although no file of it changed.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// The machines of a home. A thread looks at them: one that does not answer keeps nobody else waiting. When that thread hangs or is
/// no more, the time of its last look tells.
#[derive(Debug, Clone)]
pub struct Watched {
    home: Home,
    seen: Arc<Mutex<Sight>>,
}

/// What was seen, and when.
#[derive(Debug)]
struct Sight {
    machines: Arc<Machines>,
    at: Timestamp,
    when: Instant,
}

impl Sight {
    fn of(machines: Machines) -> Self {
        Self { machines: Arc::new(machines), at: Timestamp::now(), when: Instant::now() }
    }
}

impl Watched {
    /// Looks once, then again and again until `over`.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn watch(home: &Home, over: Arc<AtomicBool>) -> Result<Self, Error> {
        let mut looker = Looker { home: home.clone(), known: BTreeMap::new() };
        Self::watch_by(home, move || looker.look(), over)
    }

    fn watch_by(
        home: &Home,
        mut look: impl FnMut() -> Result<Machines, Error> + Send + 'static,
        over: Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let seen = Arc::new(Mutex::new(Sight::of(look()?)));
        let watched = Self { home: home.clone(), seen: Arc::clone(&seen) };
        let watching = move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                match look() {
                    Ok(machines) => *seen.lock().unwrap_or_else(PoisonError::into_inner) = Sight::of(machines),
                    Err(error) => tracing::warn!("machines cannot be listed: {error}"),
                }
            }
        };
        let path = Path::new("a thread");
        crate::error::IoContext::or_io(
            std::thread::Builder::new().name("fleet".into()).spawn(watching),
            "start",
            path,
        )?;
        Ok(watched)
    }
}

impl Fleet for Watched {
    fn machines(&mut self) -> Arc<Machines> {
        Arc::clone(&self.seen.lock().unwrap_or_else(PoisonError::into_inner).machines)
    }

    fn last_look(&self) -> LastLook {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        LastLook { at: seen.at, ago: seen.when.elapsed() }
    }

    fn snapshots(&mut self, machine: &str) -> Result<Vec<SeenSnapshot>, Error> {
        let name = VmName::new(machine).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(snapshots_of(&tree_of(&self.home, &name)?))
    }
}

/// A machine's tree of snapshots.
///
/// # Errors
/// When it cannot be read.
pub fn tree_of(home: &Home, name: &VmName) -> Result<Tree, Error> {
    let never = AtomicBool::new(false);
    Ok(tree::tree(&Context { home, progress: &Silent, cancel: &never }, name)?)
}

fn snapshots_of(tree: &Tree) -> Vec<SeenSnapshot> {
    let seen = |one: &tree::SnapshotSummary| SeenSnapshot {
        id: one.id.to_string(),
        name: one.name.clone(),
        created: one.created.into(),
        owner: one.owner.clone(),
        expires: one.expires.map(Into::into),
        held: one.pinned || !one.forks.is_empty(),
    };
    tree.snapshots.iter().map(seen).collect()
}

/// What tells that something of a machine's snapshots changed.
type Stamp = [Option<SystemTime>; 3];

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    at: Instant,
    seen: Seen,
}

#[derive(Debug)]
struct Looker {
    home: Home,
    known: BTreeMap<VmName, Known>,
}

impl Looker {
    fn look(&mut self) -> Result<Machines, Error> {
        let names = self.home.machine_names()?;
        self.known.retain(|name, _| names.contains(name));
        let mut machines = BTreeMap::new();
        for name in names {
            match self.machine(&name) {
                Ok(seen) => drop(machines.insert(name.to_string(), seen)),
                // It went meanwhile.
                Err(Error::Engine(keyframe_engine::Error::NoMachine(_))) => {}
                Err(error) => {
                    // Its tags are as they were: it does not lose its policy for a moment's trouble.
                    let known = self.known.get(&name).map(|known| known.seen.clone()).unwrap_or_default();
                    let seen = Seen { state: "unknown".into(), trouble: Some(error.to_string()), ..known };
                    machines.insert(name.to_string(), seen);
                }
            }
        }
        Ok(machines)
    }

    fn machine(&mut self, name: &VmName) -> Result<Seen, Error> {
        let machine = Machine::open(&self.home, name)?;
        let state = machine.look();
        let dir = &machine.dir;
        let changed = |path: PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamp = [changed(dir.snapshots()), changed(dir.tree()), changed(dir.head())];
        let known = self.known.get(name).filter(|known| known.stamp == stamp && known.at.elapsed() < GOOD_FOR);
        let mut seen = match known {
            Some(known) => known.seen.clone(),
            None => {
                let seen = described(&self.home, &machine)?;
                self.known.insert(name.clone(), Known { stamp, at: Instant::now(), seen: seen.clone() });
                seen
            }
        };
        state.as_str().clone_into(&mut seen.state);
        // Its definition was read just now.
        seen.uuid.clone_from(&machine.definition.uuid);
        seen.tags.clone_from(&machine.definition.tags);
        seen.unfinished = dir.journal().exists() && Lock::holder(&dir.lock()).is_none();
        Ok(seen)
    }
}

fn described(home: &Home, machine: &Machine) -> Result<Seen, Error> {
    let tree = tree_of(home, machine.name())?;
    let chains = machine.disk_chains(home, &machine.head.disks);
    let active = |chain: &DiskChain| Some((chain.disk.to_string(), chain.layers.first()?.path.clone()));
    let disks: Vec<(String, PathBuf)> = chains.iter().filter_map(active).collect();
    let mut devices: Vec<u64> =
        disks.iter().filter_map(|(_, path)| std::fs::metadata(path).ok()).map(|meta| meta.dev()).collect();
    devices.sort_unstable();
    devices.dedup();
    Ok(Seen {
        uuid: machine.definition.uuid.clone(),
        unfinished: false,
        tags: machine.definition.tags.clone(),
        state: String::new(),
        trouble: tree.damaged.first().map(|damaged| format!("a snapshot is damaged: {}", damaged.reason)),
        devices,
        snapshots: tree.snapshots.len(),
        last_snapshot: tree.snapshots.last().map(|one| one.created.into()),
        snapshots_bytes: tree.snapshots.iter().map(|one| one.bytes_own.bytes()).sum(),
        memory_bytes: machine.definition.memory().bytes(),
        cpus: machine.definition.cpus,
        disks,
        warning: tree.warning,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gets_old(look: impl FnMut() -> Result<Machines, Error> + Send + 'static) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let watched = Watched::watch_by(&home, look, Arc::clone(&over)).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < EVERY * 4 && watched.last_look().ago < EVERY * 2 {
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        watched.last_look().ago >= EVERY * 2
    }

    #[test]
    fn a_look_that_hangs_or_a_thread_that_dies_makes_the_last_one_old() {
        assert!(!gets_old(|| Ok(Machines::new())), "it looks all the time");
        let mut looks = 0;
        assert!(gets_old(move || {
            looks += 1;
            if looks > 2 {
                std::thread::sleep(EVERY * 6);
            }
            Ok(Machines::new())
        }));
        let mut looks = 0;
        assert!(gets_old(move || {
            looks += 1;
            assert!(looks < 3, "it dies");
            Ok(Machines::new())
        }));
    }
}
