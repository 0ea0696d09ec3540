//! A machine's snapshots as a tree, and one of them in full.

use keyframe_types::{ByteLen, SnapshotId, SnapshotRef, Timestamp, VmName};
use serde::Serialize;

use crate::context::Context;
use crate::cost;
use crate::drill::record::{self, LastTest, TestRecord};
use crate::error::Error;
use crate::machine::Machine;
use crate::sharing::{self, MemorySpace};
use crate::snapshots;
use crate::state::head::Chain;
use crate::state::home::VmDir;
use crate::state::manifest::{Consistency, GroupCut, Manifest};
use crate::state::tree::Trees;
use crate::tally::Tally;

/// A snapshot in one line.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotSummary {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: String,
    /// The snapshot that it follows.
    pub parent: Option<SnapshotId>,
    /// The machines that were cut with it, at the same instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupCut>,
    /// What was achieved.
    pub consistency: Consistency,
    /// Whether it has memory.
    pub memory: bool,
    /// The instant that it holds.
    pub created: Timestamp,
    /// Who took it.
    pub owner: String,
    /// Why.
    pub note: Option<String>,
    /// When it may be removed.
    pub expires: Option<Timestamp>,
    /// Kept whatever else is said.
    pub pinned: bool,
    /// Space of its own files: its memory image, and the layers that it froze and nothing older has.
    pub bytes_own: ByteLen,
    /// Bytes of its memory that lie in other snapshots' files.
    pub memory_elsewhere: ByteLen,
    /// How many other snapshots have memory in its files.
    pub memory_readers: usize,
    /// Space of the layers below those, which it needs and others do as well.
    pub bytes_shared: ByteLen,
    /// Space that deleting it and nothing else gives back at once; merging the layers it leaves may give back more.
    pub bytes_freed: ByteLen,
    /// Number of layers of a disk at that instant, at most.
    pub depth: usize,
    /// Whether the machine's present descends directly from it.
    pub is_head: bool,
    /// Machines that were forked from it.
    pub forks: Vec<VmName>,
    /// How its last test ended; `None` for one that was never tested.
    pub last_test: Option<LastTest>,
}

/// A snapshot that cannot be read.
#[derive(Debug, Clone, Serialize)]
pub struct DamagedSummary {
    /// Its id.
    pub id: SnapshotId,
    /// What is wrong with it.
    pub reason: String,
}

/// All of a machine's snapshots.
#[derive(Debug, Serialize)]
pub struct Tree {
    /// The machine.
    pub vm: VmName,
    /// The snapshot that its present descends from.
    pub head: Option<SnapshotId>,
    /// Its snapshots by age.
    pub snapshots: Vec<SnapshotSummary>,
    /// Those that cannot be read.
    pub damaged: Vec<DamagedSummary>,
    /// Machines that were forked from a snapshot that is not there any more.
    pub stray_forks: Vec<VmName>,
    /// What should be seen to, in a line.
    pub warning: Option<String>,
}

/// Lists a machine's snapshots.
///
/// # Errors
/// [`Error::NoMachine`].
pub fn tree(ctx: &Context<'_>, vm: &VmName) -> Result<Tree, Error> {
    crate::recover::recover_if_idle(ctx, vm);
    let machine = Machine::open(ctx.home, vm)?;
    let (manifests, damaged) = snapshots::scan_tops(&Trees::of(ctx.home), &machine.dir)?;
    let head = machine.head.parent.clone();
    // One that cannot be told is looked at when its map is needed; the list must not fail for it.
    let memory = sharing::memory_space(&machine.dir, manifests.iter().map(|manifest| manifest.id.clone()));
    let memory = memory.unwrap_or_default();
    let mut tally = Tally::of(ctx.home, &machine.dir, &machine.head, &manifests)?;
    let snapshots: Vec<SnapshotSummary> = manifests
        .iter()
        .map(|manifest| {
            let space = memory.get(&manifest.id).copied();
            summary(ctx, &machine.dir, manifest, head.as_ref(), space, &mut tally)
        })
        .collect();
    let damaged = damaged
        .into_iter()
        .map(|damaged| DamagedSummary { id: damaged.id, reason: damaged.error.to_string() })
        .collect();
    let warning = cost::brief(ctx, &machine, &manifests);
    let stray_forks = tally.forks_left();
    Ok(Tree { vm: vm.clone(), head, snapshots, damaged, stray_forks, warning })
}

fn summary(
    ctx: &Context<'_>,
    dir: &VmDir,
    manifest: &Manifest,
    head: Option<&SnapshotId>,
    space: Option<MemorySpace>,
    tally: &mut Tally,
) -> SnapshotSummary {
    SnapshotSummary {
        id: manifest.id.clone(),
        name: manifest.name.to_string(),
        parent: manifest.parent.clone(),
        group: manifest.group.clone(),
        consistency: manifest.consistency,
        memory: manifest.memory.is_some(),
        created: manifest.created,
        owner: manifest.owner.clone(),
        note: manifest.note.clone(),
        expires: manifest.expires,
        pinned: manifest.pinned,
        bytes_own: own_bytes_of(ctx, manifest, space),
        memory_elsewhere: space.map_or(ByteLen::ZERO, |space| space.elsewhere_bytes),
        memory_readers: space.map_or(0, |space| space.readers),
        bytes_shared: tally.shared(manifest),
        bytes_freed: tally.freed(manifest, space),
        depth: tally.depth(manifest),
        forks: tally.forks_of(&manifest.id),
        is_head: head == Some(&manifest.id),
        last_test: record::last(&dir.snapshot(&manifest.id)),
    }
}

/// Space that only a snapshot takes: its memory image, of which `space` tells what is its own, and the layers that it
/// froze.
pub(crate) fn own_bytes_of(ctx: &Context<'_>, manifest: &Manifest, space: Option<MemorySpace>) -> ByteLen {
    let written = manifest.memory.as_ref().map_or(ByteLen::ZERO, |memory| memory.bytes_on_disk);
    let memory = space.map_or(written, |space| space.own_bytes);
    let layers: ByteLen = manifest.chains().filter_map(|chain| own_bytes(ctx, manifest, chain)).sum();
    memory + layers
}

/// Space of the layer that the snapshot froze; `None` for a disk that was there before the machine.
fn own_bytes(ctx: &Context<'_>, manifest: &Manifest, chain: &Chain) -> Option<ByteLen> {
    use std::os::unix::fs::MetadataExt as _;
    let top = chain.layers.first()?;
    let path = ctx.home.absolute(&top.path);
    let ours = path.starts_with(ctx.home.vm(&manifest.definition.name).root());
    let blocks = std::fs::metadata(&path).ok()?.blocks();
    ours.then(|| ByteLen::from_bytes(blocks.saturating_mul(512)))
}

/// One snapshot in full.
#[derive(Debug, Serialize)]
pub struct SnapshotReport {
    /// What it is, as it is described now.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// How its tests ended, the oldest first.
    pub tests: Vec<TestRecord>,
    /// Why nothing is known of its tests, although there were some.
    pub tests_unreadable: Option<String>,
}

/// One snapshot in full.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::NoSnapshot`], [`Error::AmbiguousSnapshot`], [`Error::Damaged`].
pub fn show(ctx: &Context<'_>, reference: &SnapshotRef) -> Result<SnapshotReport, Error> {
    crate::recover::recover_if_idle(ctx, &reference.vm);
    let machine = Machine::open(ctx.home, &reference.vm)?;
    let manifest = snapshots::find(&machine.dir, &reference.vm, &reference.snapshot)?;
    let (tests, tests_unreadable) = match record::read(&machine.dir.snapshot(&manifest.id)) {
        Ok(tests) => (tests, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Ok(SnapshotReport { manifest, tests, tests_unreadable })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use keyframe_hypervisor::{AccelChoice, Accelerator, Firmware, LayerFormat, MachineDefinition, QemuVersion};
    use keyframe_types::{DiskId, LayerId, SnapshotName};

    use super::*;
    use crate::context::Silent;
    use crate::drill;
    use crate::drill::record::{Check, Verdict};
    use crate::machine::write_definition;
    use crate::state::head::{FileOrigin, Head, Layer};
    use crate::state::home::Home;
    use crate::state::label::{Expires, Label};
    use crate::state::manifest::{Cost, Cut, QemuUsed, StateAtCut};
    use crate::state::sealed::{self, Document};
    use crate::state::tree::{FrozenTop, LayerRef, TreeDocument, TreeLayer, write_head, write_manifest};

    fn definition(name: &VmName) -> MachineDefinition {
        MachineDefinition {
            schema: MachineDefinition::SCHEMA.to_owned(),
            name: name.clone(),
            uuid: "0".to_owned(),
            memory_mib: 1024,
            cpus: 1,
            machine_type: "pc-q35-10.0".to_owned(),
            accel: AccelChoice::Tcg,
            firmware: Firmware::Bios,
            nic: None,
            kernel: None,
            disks: vec![],
            probes: vec!["agent".parse().unwrap()],
            cost: None,
            tags: Vec::new(),
            extra_args: vec![],
        }
    }

    /// How long this thread has been at work: what it waits for others on a busy host does not count.
    fn busy() -> Duration {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap())
    }

    fn chain(home: &Home, dir: &VmDir, disk: &str) -> Chain {
        let (disk, id) = (DiskId::new(disk).unwrap(), LayerId::random());
        let layer = Layer {
            vm: dir.name().clone(),
            file: id.clone(),
            path: home.relative(&dir.layer(&disk, &id)),
            id,
            format: LayerFormat::Qcow2,
            origin: FileOrigin::Made,
            virtual_bytes: ByteLen::from_mib(1 << 10),
            frozen: None,
        };
        Chain { disk, layers: vec![Arc::new(layer)] }
    }

    fn manifest(home: &Home, dir: &VmDir, number: usize) -> Manifest {
        let name: VmName = "db".parse().unwrap();
        Manifest {
            id: SnapshotId::random(),
            name: SnapshotName::new(format!("s{number}")).unwrap(),
            note: Some("an hour has passed".to_owned()),
            owner: "anna".to_owned(),
            created: Timestamp::now(),
            expires: None,
            pinned: false,
            parent: None,
            group: None,
            consistency: Consistency::RunningState,
            cut: Cut::AtQemusStop,
            state: StateAtCut::Running,
            frozen: false,
            definition: definition(&name),
            qemu: QemuUsed {
                version: QemuVersion { major: 10, minor: 0, micro: 2 },
                accelerator: Accelerator::Tcg,
                host_cpu: None,
            },
            memory: None,
            disks: ["disk0", "disk1"].map(|disk| chain(home, dir, disk)).into(),
            nvram: None,
            cost: Cost { pause_ms: 3.5, guest_stall_ms_max: None, total_ms: 1200.0 },
        }
    }

    /// Written without waiting for the disk: there are thousands.
    fn put<T: Document>(path: &std::path::Path, document: &T) {
        let body = serde_json::to_string_pretty(document).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, sealed::sealed(T::SCHEMA, &body)).unwrap();
    }

    fn test_record() -> TestRecord {
        let check =
            Check { name: "serial /login/".into(), passed: true, after_ms: Some(230.1), seen: "login: ".repeat(20) };
        TestRecord {
            started: Timestamp::now(),
            verdict: Verdict::Passed,
            strategy: None,
            within_ms: 60_000,
            running_ms: Some(1.0),
            total_ms: 2.0,
            checks: vec![check; 8],
            screenshot: Some("x.png".into()),
            serial: Some("x.serial.log".into()),
            notes: vec![],
        }
    }

    #[test]
    fn what_is_tested_stands_on_its_layers_and_no_other_does() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name: VmName = "db".parse().unwrap();
        let dir = home.vm(&name);
        std::fs::create_dir_all(dir.root()).unwrap();
        write_definition(&dir.definition(), &definition(&name)).unwrap();
        let both: Vec<Manifest> = (0..2).map(|number| manifest(&home, &dir, number)).collect();
        for one in &both {
            std::fs::create_dir_all(dir.snapshot(&one.id).root()).unwrap();
            write_manifest(&dir, one).unwrap();
        }
        assert!(drill::stood_on(&home).unwrap().is_empty());
        let place = dir.drill(&both[1].id);
        std::fs::create_dir_all(place.root()).unwrap();
        assert!(drill::stood_on(&home).unwrap().is_empty(), "a test that was killed stands on nothing");
        let held = std::fs::File::open(place.root()).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let expected =
            both[1].chains().flat_map(|chain| &chain.layers).map(|layer| home.absolute(&layer.path)).collect();
        assert_eq!(drill::stood_on(&home).unwrap(), expected);
    }

    #[test]
    fn a_thousand_snapshots_are_listed_in_no_time_with_what_was_said_and_tested_later() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name: VmName = "db".parse().unwrap();
        let dir = home.vm(&name);
        std::fs::create_dir_all(dir.root()).unwrap();
        write_definition(&dir.definition(), &definition(&name)).unwrap();
        let head =
            Head { parent: None, disks: vec![], nvram: None, process: None, clean_shutdown: false, origin: None };
        write_head(&dir, &head).unwrap();
        for number in 0..1000 {
            let manifest = Manifest { disks: vec![], ..manifest(&home, &dir, number) };
            let snapshot = dir.snapshot(&manifest.id);
            put(&snapshot.manifest(), &manifest.with_chains(FrozenTop::of).unwrap());
            let expires = Some(Expires::At(Timestamp::now()));
            let note = Some(format!("later {number}"));
            put(&snapshot.label(), &Label { note, expires, pinned: Some(true), ..Label::default() });
            record::put_for_a_test(&snapshot, &vec![test_record(); 10]);
        }
        let never = AtomicBool::new(false);
        let ctx = Context { home: &home, progress: &Silent, cancel: &never };
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let begun = busy();
            let listed = tree(&ctx, &name).unwrap();
            quickest = quickest.min(busy() - begun);
            assert_eq!((listed.snapshots.len(), listed.damaged.len()), (1000, 0));
            let told = |one: &SnapshotSummary| {
                one.pinned && one.expires.is_some() && one.note.as_ref().is_some_and(|note| note.starts_with("later"))
            };
            assert!(listed.snapshots.iter().all(told), "what was said later goes before the manifest");
            assert!(listed.snapshots.iter().all(|one| one.last_test.is_some()));
        }
        println!("1000 snapshots listed in {quickest:?}");
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }

    #[test]
    fn a_chain_of_a_thousand_layers_is_listed_in_no_time() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name: VmName = "db".parse().unwrap();
        let dir = home.vm(&name);
        std::fs::create_dir_all(dir.root()).unwrap();
        write_definition(&dir.definition(), &definition(&name)).unwrap();
        let mut document = TreeDocument::default();
        let mut manifests: Vec<Manifest> = Vec::new();
        for number in 0..1000 {
            let fresh = manifest(&home, &dir, number);
            for chain in &fresh.disks {
                let last = manifests.last().and_then(|last| last.disks.iter().find(|other| other.disk == chain.disk));
                let below = last.map(|last| LayerRef::to(&last.layers[0]));
                document.layers.push(TreeLayer { disk: chain.disk.clone(), layer: chain.layers[0].clone(), below });
                let path = home.absolute(&chain.layers[0].path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "x").unwrap();
            }
            let parent = manifests.last().map(|last| last.id.clone());
            manifests.push(Manifest { parent, ..fresh });
        }
        document.write(&dir).unwrap();
        for manifest in &manifests {
            put(&dir.snapshot(&manifest.id).manifest(), &manifest.clone().with_chains(FrozenTop::of).unwrap());
        }
        let head = Head {
            parent: manifests.last().map(|last| last.id.clone()),
            disks: vec![],
            nvram: None,
            process: None,
            clean_shutdown: false,
            origin: None,
        };
        write_head(&dir, &head).unwrap();
        let never = AtomicBool::new(false);
        let ctx = Context { home: &home, progress: &Silent, cancel: &never };
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let begun = busy();
            let listed = tree(&ctx, &name).unwrap();
            quickest = quickest.min(busy() - begun);
            assert_eq!((listed.snapshots.len(), listed.damaged.len()), (1000, 0));
            assert_eq!(listed.snapshots.iter().map(|one| one.depth).max(), Some(1000));
        }
        println!("a chain of 1000 layers listed in {quickest:?}");
        assert!(quickest < Duration::from_millis(200), "{quickest:?}");
    }
}
