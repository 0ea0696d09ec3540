//! Random trees, random operations, random crashes, against a model: what every snapshot and the present read is what was
//! written, whatever was merged or deleted, and wherever that was interrupted.
//!
//! Real qcow2 files, the real storage daemon, no guest. A crash is a panic at a failpoint: nothing behind it runs, as with
//! `kill -9`; the next operation finds the journal. A power cut is the files as a disk with a cache may leave them at any
//! write ([`power`]).

mod medium;
mod power;
pub(super) mod tape;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use keyframe_hypervisor::{AccelChoice, Accelerator, Firmware, LayerFormat, MachineDefinition, QemuVersion};
use keyframe_qcow2::{ChainReader, Format, GuestOffset};
use keyframe_types::{ByteLen, DiskId, LayerId, SnapshotId, SnapshotName, SnapshotRef, Timestamp, VmName};
use std::sync::Arc;

use crate::consolidate::{ConsolidateRequest, consolidate};
use crate::context::{Context, Silent};
use crate::delete::{DeleteOptions, delete};
use crate::error::Error;
use crate::failpoint;
use crate::layers;
use crate::machine::{Machine, write_definition};
use crate::snapshots;
use crate::state::head::{Chain, FileOrigin, Head, Layer, Origin};
use crate::state::home::Home;
use crate::state::lock::Lock;
use crate::state::manifest::{Consistency, Cost, Cut, Manifest, QemuUsed, StateAtCut};
use crate::state::{durable, tree};

/// What a disk is written in.
const BLOCK: usize = 4096;
/// Blocks of a disk: sixteen clusters.
const BLOCKS: usize = 256;

/// What each block of a disk is filled with.
type Content = Vec<u8>;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }
}

/// A machine as it should be.
#[derive(Debug, Clone)]
struct Expected {
    present: Content,
    snapshots: BTreeMap<SnapshotId, Content>,
}

struct World {
    root: tempfile::TempDir,
    home: Home,
    machines: BTreeMap<VmName, Expected>,
    dice: Dice,
    log: Vec<String>,
    /// Snapshots that an operation deletes: a crash leaves each of them there or gone.
    going: BTreeSet<SnapshotId>,
    /// Whether operations are recorded, and what became of the last one.
    records: bool,
    recording: Cell<Option<power::Recording>>,
}

fn name(text: &str) -> VmName {
    VmName::new(text).unwrap()
}

fn disk() -> DiskId {
    DiskId::new("disk0").unwrap()
}

fn definition(vm: &VmName) -> MachineDefinition {
    MachineDefinition {
        schema: MachineDefinition::SCHEMA.to_owned(),
        name: vm.clone(),
        uuid: "00000000-0000-0000-0000-000000000000".to_owned(),
        memory_mib: 64,
        cpus: 1,
        machine_type: "pc-q35-10.0".to_owned(),
        accel: AccelChoice::Tcg,
        firmware: Firmware::Bios,
        nic: None,
        kernel: None,
        disks: Vec::new(),
        probes: Vec::new(),
        cost: None,
        tags: Vec::new(),
        extra_args: Vec::new(),
    }
}

fn run(program: &str, args: &[String]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl World {
    fn new(root: tempfile::TempDir, seed: u64) -> Self {
        let home = Home::open(&root.path().join("home")).unwrap();
        let mut world = Self {
            root,
            home,
            machines: BTreeMap::new(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995 | 1),
            log: Vec::new(),
            going: BTreeSet::new(),
            records: false,
            recording: Cell::new(None),
        };
        world.make_machine();
        world
    }

    /// A machine on a raw disk, or on a qcow2 one that stands on a template.
    fn make_machine(&mut self) {
        let vm = name("db");
        let dir = self.home.vm(&vm);
        durable::create_private_dir(dir.root()).unwrap();
        let template = self.root.path().join("template.raw");
        std::fs::write(&template, vec![7_u8; BLOCK * BLOCKS]).unwrap();
        let given = self.root.path().join("disk.img");
        let layer = |path: &Path, format, origin| {
            let id = LayerId::random();
            let virtual_bytes = ByteLen::from_bytes((BLOCK * BLOCKS) as u64);
            let (file, vm, path) = (id.clone(), vm.clone(), path.to_owned());
            Arc::new(Layer { id, vm, file, path, format, origin, virtual_bytes, frozen: None })
        };
        let layers = if self.dice.below(2) == 0 {
            std::fs::write(&given, vec![7_u8; BLOCK * BLOCKS]).unwrap();
            vec![layer(&given, LayerFormat::Raw, FileOrigin::Given)]
        } else {
            let template = template.to_str().unwrap().to_owned();
            let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(str::to_owned);
            run("qemu-img", &[&words[..], &[template.clone(), given.to_str().unwrap().to_owned()]].concat());
            vec![
                layer(&given, LayerFormat::Qcow2, FileOrigin::Given),
                layer(Path::new(&template), LayerFormat::Raw, FileOrigin::Foreign),
            ]
        };
        let head = Head {
            parent: None,
            disks: vec![Chain { disk: disk(), layers }],
            nvram: None,
            process: None,
            clean_shutdown: false,
            origin: None,
        };
        tree::write_head(&dir, &head).unwrap();
        write_definition(&dir.definition(), &definition(&vm)).unwrap();
        self.machines.insert(vm, Expected { present: vec![7; BLOCKS], snapshots: BTreeMap::new() });
    }

    fn with<R>(&self, act: impl FnOnce(&Context<'_>) -> R) -> R {
        let never = AtomicBool::new(false);
        act(&Context { home: &self.home, progress: &Silent, cancel: &never })
    }

    fn open(&self, vm: &VmName) -> (Lock, Machine) {
        self.with(|ctx| Machine::lock(ctx, vm, "test").unwrap())
    }

    fn some_machine(&mut self) -> VmName {
        let at = self.dice.below(self.machines.len());
        self.machines.keys().nth(at).unwrap().clone()
    }

    fn some_snapshot(&mut self, vm: &VmName) -> Option<SnapshotId> {
        let ids: Vec<SnapshotId> = self.machines[vm].snapshots.keys().cloned().collect();
        (!ids.is_empty()).then(|| ids[self.dice.below(ids.len())].clone())
    }

    /// The guest writes.
    fn write(&mut self, vm: &VmName) {
        let (_lock, machine) = self.open(vm);
        let path = self.home.absolute(&machine.head.disks[0].top().unwrap().path);
        let format = machine.head.disks[0].top().unwrap().format;
        let mut words = vec!["-f".to_owned(), format.as_str().to_owned()];
        for _ in 0..=self.dice.below(4) {
            let (at, pattern) = (self.dice.below(BLOCKS), u8::try_from(self.dice.below(255)).unwrap());
            let many = 1 + self.dice.below(40.min(BLOCKS - at));
            // Zeros are written as such: a layer then says that it reads zero, whatever is below.
            let order = if pattern < 32 { "write -z".to_owned() } else { format!("write -P {pattern}") };
            let fill = if pattern < 32 { 0 } else { pattern };
            words.push("-c".to_owned());
            words.push(format!("{order} {} {}", at * BLOCK, many * BLOCK));
            self.machines.get_mut(vm).unwrap().present[at..at + many].fill(fill);
        }
        words.push(path.to_str().unwrap().to_owned());
        run("qemu-io", &words);
    }

    /// What `snapshot` does to a machine that is off.
    fn snapshot(&mut self, vm: &VmName) {
        let (_lock, mut machine) = self.open(vm);
        let mut before = machine.head.clone();
        let overlays = layers::planned_overlays(&self.home, &machine.dir, before.chains()).unwrap();
        layers::create_tops(&self.home, &overlays).unwrap();
        layers::freeze_tops(&self.home, before.chains_mut()).unwrap();
        let id = SnapshotId::random();
        durable::create_private_dir(machine.dir.snapshot(&id).root()).unwrap();
        let manifest = Manifest {
            id: id.clone(),
            name: SnapshotName::new(format!("s-{id}")).unwrap(),
            note: None,
            owner: "test".to_owned(),
            created: Timestamp::now(),
            expires: None,
            pinned: false,
            parent: before.parent.clone(),
            group: None,
            consistency: Consistency::Crash,
            cut: Cut::Still,
            state: StateAtCut::Stopped,
            frozen: false,
            definition: definition(vm),
            qemu: QemuUsed {
                version: QemuVersion { major: 10, minor: 0, micro: 0 },
                accelerator: Accelerator::Tcg,
                host_cpu: None,
            },
            memory: None,
            disks: before.disks.clone(),
            nvram: None,
            cost: Cost { pause_ms: 0.0, guest_stall_ms_max: None, total_ms: 0.0 },
        };
        tree::write_manifest(&machine.dir, &manifest).unwrap();
        let fresh = overlays[0].layers[0].clone();
        machine.head = before;
        machine.head.disks[0].layers.insert(0, fresh);
        machine.head.parent = Some(id.clone());
        machine.write_head().unwrap();
        let expected = self.machines.get_mut(vm).unwrap();
        expected.snapshots.insert(id, expected.present.clone());
    }

    /// What `revert` does to a machine that is off.
    fn revert(&mut self, vm: &VmName) {
        let Some(id) = self.some_snapshot(vm) else { return };
        let (_lock, mut machine) = self.open(vm);
        let manifest = snapshots::read(&machine.dir, &id).unwrap().unwrap();
        machine.head.disks = layers::planned_overlays(&self.home, &machine.dir, manifest.disks.iter()).unwrap();
        layers::create_tops(&self.home, &machine.head.disks).unwrap();
        machine.head.parent = Some(id.clone());
        machine.write_head().unwrap();
        layers::drop_unused(&self.home, &machine.dir).unwrap();
        let expected = self.machines.get_mut(vm).unwrap();
        expected.present = expected.snapshots[&id].clone();
    }

    /// What `fork` leaves of a machine that is off.
    fn fork(&mut self, vm: &VmName) {
        let Some(id) = self.some_snapshot(vm) else { return };
        let (_lock, machine) = self.open(vm);
        let fork = name(&format!("fork{}", self.machines.len()));
        let manifest = snapshots::read(&machine.dir, &id).unwrap().unwrap();
        let dir = self.home.vm(&fork);
        durable::create_private_dir(dir.root()).unwrap();
        let disks = layers::planned_overlays(&self.home, &dir, manifest.disks.iter()).unwrap();
        layers::create_tops(&self.home, &disks).unwrap();
        let origin = Some(Origin { vm: vm.clone(), snapshot: id.clone() });
        let head = Head { parent: None, disks, nvram: None, process: None, clean_shutdown: false, origin };
        tree::write_head(&dir, &head).unwrap();
        write_definition(&dir.definition(), &definition(&fork)).unwrap();
        let present = self.machines[vm].snapshots[&id].clone();
        self.machines.insert(fork, Expected { present, snapshots: BTreeMap::new() });
    }

    /// Deletes some snapshots, and may crash meanwhile.
    fn delete(&mut self, vm: &VmName, crash: Option<usize>) {
        let mut chosen = Vec::new();
        for _ in 0..=self.dice.below(3) {
            chosen.extend(self.some_snapshot(vm));
        }
        if chosen.is_empty() {
            return;
        }
        let selectors: Vec<_> =
            chosen.iter().map(|id| format!("{vm}@{id}").parse::<SnapshotRef>().unwrap().snapshot).collect();
        let detach = self.dice.below(2) == 0;
        self.going = chosen.into_iter().collect();
        let done = self
            .crashing(crash, |ctx| delete(ctx, vm, &selectors, DeleteOptions { detach, ..DeleteOptions::default() }));
        match done {
            None => {}
            Some(Ok(deletion)) => assert!(deletion.failure.is_none(), "{:?}", deletion.failure),
            Some(Err(Error::Held { .. })) if !detach => {}
            Some(Err(error)) => panic!("{error:?}"),
        }
        self.check_and_tidy_up();
    }

    /// A crash leaves each of those that were to go there or gone, and all others as they were; so does tidying up behind it.
    fn check_and_tidy_up(&mut self) {
        let names: Vec<VmName> = self.machines.keys().cloned().collect();
        for _ in 0..2 {
            for vm in &names {
                let dir = self.home.vm(vm);
                let stays = |id: &SnapshotId| !self.going.contains(id) || dir.snapshot(id).manifest().exists();
                self.machines.get_mut(vm).unwrap().snapshots.retain(|id, _| stays(id));
            }
            self.check();
            names.iter().for_each(|vm| drop(self.open(vm)));
        }
    }

    fn consolidate(&mut self, vm: &VmName, crash: Option<usize>) {
        let flatten = self.dice.below(3) == 0;
        let request = ConsolidateRequest { vm: vm.clone(), dry_run: false, flatten, speed: None };
        match self.crashing(crash, |ctx| consolidate(ctx, &request)) {
            None => {}
            Some(Ok(done)) => {
                assert!(done.failure.is_none(), "{:?}", done.failure);
                assert!(!flatten || done.depth_after <= 2, "{} layers are not flat", done.depth_after);
            }
            Some(Err(error)) => panic!("{error:?}"),
        }
    }

    /// Runs `act`, which dies at the failpoint of that number, if it comes so far.
    fn crashing<R>(&self, at: Option<usize>, act: impl FnOnce(&Context<'_>) -> R) -> Option<R> {
        let recorder = self.records.then(|| power::Recorder::start(self.root.path()));
        failpoint::die_at(at);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| self.with(act)));
        failpoint::die_at(None);
        self.recording.set(recorder.map(power::Recorder::stop));
        match result {
            Ok(result) => Some(result),
            Err(panic) if panic.downcast_ref::<failpoint::Died>().is_some() => None,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn step(&mut self) {
        let vm = self.some_machine();
        let crash = (self.dice.below(2) == 0).then(|| self.dice.below(12));
        let dice = self.dice.below(20);
        let operation = match dice {
            0..=5 => "write",
            6..=10 => "snapshot",
            11..=12 => "revert",
            13 => "fork",
            14..=17 => "delete",
            _ => "consolidate",
        };
        self.log.push(format!("{operation} {vm} crash {crash:?}"));
        self.going.clear();
        match dice {
            0..=5 => self.write(&vm),
            6..=10 => self.snapshot(&vm),
            11..=12 => self.revert(&vm),
            13 if self.machines.len() < 3 => self.fork(&vm),
            14..=17 => self.delete(&vm, crash),
            18.. => self.consolidate(&vm, crash),
            _ => {}
        }
        self.check();
    }

    /// What is on disk reads as the model says, by the headers alone and by the documents, crashed or not.
    fn check(&self) {
        for (vm, expected) in &self.machines {
            let dir = self.home.vm(vm);
            let trees = tree::Trees::of(&self.home);
            let head = trees.head(&dir).unwrap().unwrap();
            self.compare(&head.disks[0], &expected.present, &format!("the present of {vm}"));
            let manifests = snapshots::read_all_with(&trees, &dir).unwrap();
            assert_eq!(manifests.len(), expected.snapshots.len(), "snapshots of {vm}");
            for manifest in manifests {
                self.compare(&manifest.disks[0], &expected.snapshots[&manifest.id], &format!("{vm}@{}", manifest.id));
            }
        }
    }

    fn compare(&self, chain: &Chain, expected: &Content, what: &str) {
        let top = chain.top().unwrap();
        let format = if top.format == LayerFormat::Raw { Format::Raw } else { Format::Qcow2 };
        let files = keyframe_qcow2::chain(&self.home.absolute(&top.path), format).unwrap();
        let mut read = vec![0; BLOCK * BLOCKS];
        ChainReader::open(&files).unwrap().read_at(GuestOffset::new(0), &mut read).unwrap();
        for (at, block) in read.chunks(BLOCK).enumerate() {
            assert!(
                block.iter().all(|byte| *byte == expected[at]),
                "{what}, block {at}: {} is not {}\n{}",
                block[0],
                expected[at],
                self.log.join("\n")
            );
        }
    }

    /// After everything was tidied up, documents and headers agree, nothing is left over, and no layer was touched.
    fn check_tidy(&self) {
        let mut needed: Vec<PathBuf> = Vec::new();
        for vm in self.machines.keys() {
            let (_lock, machine) = self.open(vm);
            assert!(!machine.dir.journal().exists());
            layers::drop_unused(&self.home, &machine.dir).unwrap();
            let manifests = snapshots::read_all_with(&tree::Trees::of(&self.home), &machine.dir).unwrap();
            for chain in machine.head.chains().chain(manifests.iter().flat_map(Manifest::chains)) {
                for layer in &chain.layers {
                    layer.check_untouched(&self.home).unwrap();
                }
                let paths: Vec<PathBuf> = chain.layers.iter().map(|layer| self.home.absolute(&layer.path)).collect();
                let top = chain.top().unwrap();
                let format = if top.format == LayerFormat::Raw { Format::Raw } else { Format::Qcow2 };
                let headers = keyframe_qcow2::chain(&paths[0], format).unwrap();
                let headers: Vec<PathBuf> = headers.iter().map(|layer| layer.path.canonicalize().unwrap()).collect();
                assert_eq!(headers, paths, "headers and documents\n{}", self.log.join("\n"));
                needed.extend(paths);
            }
        }
        for vm in self.machines.keys() {
            for file in layers::files_below(&self.home.vm(vm)).unwrap() {
                assert!(needed.contains(&file), "{} is left over\n{}", file.display(), self.log.join("\n"));
            }
        }
    }
}

/// How many random histories are played; `KEYFRAME_LONG` plays many more.
fn cases(usually: u64, long: u64) -> std::ops::Range<u64> {
    let only = std::env::var("KEYFRAME_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let many = if std::env::var_os("KEYFRAME_LONG").is_some() { long } else { usually };
    only.map_or(0..many, |seed| seed..seed + 1)
}

/// What dies on purpose is not worth a backtrace.
fn die_quietly() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<failpoint::Died>().is_none() {
            usual(info);
        }
    }));
}

#[test]
fn every_snapshot_reads_what_was_written_whatever_was_merged_and_interrupted() {
    die_quietly();
    for seed in cases(60, 4000) {
        eprintln!("seed {seed}");
        let mut world = World::new(tempfile::tempdir().unwrap(), seed);
        for _ in 0..24 {
            world.step();
        }
        world.check_tidy();
        world.check();
    }
}
