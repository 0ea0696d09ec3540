//! Homes made by hand, with real qcow2 files: each fault is made, found, put right where it may be, and then not found.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keyframe_hypervisor::process::ProcessId;
use keyframe_hypervisor::{
    AccelChoice, Accelerator, Firmware, InstanceRecord, LayerFormat, MachineDefinition, QemuVersion,
};
use keyframe_qcow2::units::VirtualSize;
use keyframe_qcow2::{Backing, CreateOptions, Format};
use keyframe_types::{ByteLen, DiskId, InstanceId, LayerId, SnapshotId, SnapshotName, Timestamp};
use keyframe_vmstate::shared::{SharedImage, SharedMap, SharedRun};

use super::*;
use crate::context::Silent;
use crate::failpoint::{Died, die_at};
use crate::layers::{create_tops, freeze_tops, planned_overlays};
use crate::machine::write_definition;
use crate::sharing;
use crate::state::head::{Chain, FileOrigin, Head, Layer, Process};
use crate::state::home::VmDir;
use crate::state::journal::Journal;
use crate::state::label::Label;
use crate::state::manifest::{Consistency, Cost, Cut, Manifest, QemuUsed, StateAtCut};
use crate::state::sealed;
use crate::state::tree::{TreeDocument, write_head, write_manifest};

pub(crate) fn definition(name: &VmName) -> MachineDefinition {
    MachineDefinition {
        schema: MachineDefinition::SCHEMA.to_owned(),
        name: name.clone(),
        uuid: "0".to_owned(),
        memory_mib: 64,
        cpus: 1,
        machine_type: "pc-q35-10.0".to_owned(),
        accel: AccelChoice::Tcg,
        firmware: Firmware::Bios,
        nic: None,
        kernel: None,
        disks: vec![],
        probes: vec![],
        cost: None,
        tags: Vec::new(),
        extra_args: vec![],
    }
}

pub(crate) fn snapshot_of(name: &VmName, called: &str, chain: Chain, parent: Option<SnapshotId>) -> Manifest {
    Manifest {
        id: SnapshotId::random(),
        name: SnapshotName::new(called).unwrap(),
        note: None,
        owner: "anna".to_owned(),
        created: Timestamp::now(),
        expires: None,
        pinned: false,
        parent,
        group: None,
        consistency: Consistency::Crash,
        cut: Cut::Still,
        state: StateAtCut::Stopped,
        frozen: false,
        definition: definition(name),
        qemu: QemuUsed {
            version: QemuVersion { major: 10, minor: 0, micro: 2 },
            accelerator: Accelerator::Tcg,
            host_cpu: None,
        },
        memory: None,
        disks: vec![chain],
        nvram: None,
        cost: Cost { pause_ms: 0.0, guest_stall_ms_max: None, total_ms: 1.0 },
    }
}

/// A machine with two snapshots, one layer each, and an active layer above.
pub(crate) struct Rig {
    _root: tempfile::TempDir,
    pub(crate) home: Home,
    pub(crate) dir: VmDir,
    pub(crate) snapshots: Vec<Manifest>,
    pub(crate) head: Head,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let name = VmName::new("db").unwrap();
        let dir = home.vm(&name);
        let disk = DiskId::new("disk0").unwrap();
        std::fs::create_dir_all(dir.layers(&disk)).unwrap();
        write_definition(&dir.definition(), &definition(&name)).unwrap();
        let mut chain = base(&home, &dir, &disk);
        let mut snapshots: Vec<Manifest> = Vec::new();
        for called in ["one", "two"] {
            freeze_tops(&home, std::iter::once(&mut chain)).unwrap();
            let parent = snapshots.last().map(|before| before.id.clone());
            let manifest = snapshot_of(&name, called, chain.clone(), parent);
            std::fs::create_dir_all(dir.snapshot(&manifest.id).root()).unwrap();
            write_manifest(&dir, &manifest).unwrap();
            snapshots.push(manifest);
            let fresh = planned_overlays(&home, &dir, std::iter::once(&chain)).unwrap();
            create_tops(&home, &fresh).unwrap();
            chain = fresh.into_iter().next().unwrap();
        }
        let parent = snapshots.last().map(|last| last.id.clone());
        let head = Head { parent, disks: vec![chain], nvram: None, process: None, clean_shutdown: false, origin: None };
        write_head(&dir, &head).unwrap();
        Self { _root: root, home, dir, snapshots, head }
    }

    fn fsck(&self, repair: bool) -> FsckReport {
        let never = AtomicBool::new(false);
        let ctx = Context { home: &self.home, progress: &Silent, cancel: &never };
        fsck(&ctx, None, FsckOptions { repair }).unwrap()
    }

    /// The file of the layer that snapshot `number` froze.
    pub(crate) fn frozen(&self, number: usize) -> PathBuf {
        self.home.absolute(&self.snapshots[number].disks[0].layers[0].path)
    }

    fn active(&self) -> PathBuf {
        self.home.absolute(&self.head.disks[0].layers[0].path)
    }

    /// Finds exactly this, and says what is left after a repair.
    fn finds(&self, what: What, severity: Severity, path: &Path) -> FsckReport {
        let found = self.fsck(false).findings;
        assert_eq!(
            found.iter().map(|one| (one.what, one.severity)).collect::<Vec<_>>(),
            [(what, severity)],
            "{found:?}"
        );
        assert_eq!(found[0].path, path);
        assert!(!found[0].text.is_empty() && !found[0].advice.is_empty());
        let still = self.fsck(false).findings;
        assert_eq!(still.len(), 1, "looking changes nothing");
        self.fsck(true)
    }

    /// Finds exactly this, puts it right, and finds nothing more.
    fn repairs(&self, what: What, path: &Path) {
        let report = self.finds(what, Severity::Repairable, path);
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!(report.repaired.iter().map(|one| one.what).collect::<Vec<_>>(), [what]);
        assert!(self.fsck(false).is_clean());
    }

    /// Finds exactly this, and leaves it to a person.
    fn explains(&self, what: What, severity: Severity, path: &Path) {
        let report = self.finds(what, severity, path);
        assert_eq!(report.findings.iter().map(|one| one.what).collect::<Vec<_>>(), [what], "{:?}", report.findings);
        assert!(report.repaired.is_empty());
    }
}

fn base(home: &Home, dir: &VmDir, disk: &DiskId) -> Chain {
    let id = LayerId::random();
    let path = dir.layer(disk, &id);
    let virtual_bytes = ByteLen::from_mib(16);
    keyframe_qcow2::create(&path, VirtualSize::new(virtual_bytes).unwrap(), &CreateOptions::default()).unwrap();
    let layer = Layer {
        id: id.clone(),
        vm: dir.name().clone(),
        file: id,
        path: home.relative(&path),
        format: LayerFormat::Qcow2,
        origin: FileOrigin::Made,
        virtual_bytes,
        frozen: None,
    };
    Chain { disk: disk.clone(), layers: vec![Arc::new(layer)] }
}

/// Flips a bit of a document's body.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - 8;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_machine_as_it_should_be_has_no_findings() {
    let report = Rig::new().fsck(false);
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.machines.len(), 1);
}

#[test]
fn orphans_are_removed_and_what_is_needed_stays() {
    let rig = Rig::new();
    let orphan = rig.active().with_file_name("0123456789abcdef.qcow2");
    std::fs::write(&orphan, "nobody's").unwrap();
    rig.repairs(What::OrphanFile, &orphan);
    assert!(!orphan.exists() && rig.active().exists() && rig.frozen(0).exists() && rig.frozen(1).exists());
}

#[test]
fn while_a_document_cannot_be_read_nothing_is_called_an_orphan() {
    let rig = Rig::new();
    let orphan = rig.active().with_file_name("0123456789abcdef.qcow2");
    std::fs::write(&orphan, "nobody's, or is it").unwrap();
    let manifest = rig.dir.snapshot(&rig.snapshots[0].id).manifest();
    damage(&manifest);
    rig.explains(What::DamagedDocument, Severity::Serious, &manifest);
    assert!(orphan.exists());
}

#[test]
fn documents_that_cannot_be_read_are_named() {
    for document in [VmDir::head, VmDir::journal] {
        let rig = Rig::new();
        sealed::write(&rig.dir.journal(), &Journal::Fork).unwrap();
        damage(&document(&rig.dir));
        let found = rig.fsck(false).findings;
        let damaged = found.iter().find(|one| one.what == What::DamagedDocument).unwrap();
        assert_eq!((damaged.severity, &damaged.path), (Severity::Serious, &document(&rig.dir)));
    }
    let rig = Rig::new();
    std::fs::remove_file(rig.dir.head()).unwrap();
    assert!(rig.fsck(true).findings.iter().any(|one| one.what == What::DamagedDocument && one.path == rig.dir.head()));
    let rig = Rig::new();
    damage(&rig.dir.tree());
    let left = rig.fsck(true);
    assert!(left.findings.iter().any(|one| one.what == What::DamagedDocument && one.path == rig.dir.tree()));
    assert!(rig.frozen(0).exists() && rig.frozen(1).exists() && rig.active().exists(), "nobody knows what is needed");
    let rig = Rig::new();
    let label = rig.dir.snapshot(&rig.snapshots[0].id).label();
    sealed::write(&label, &Label { pinned: Some(true), ..Label::default() }).unwrap();
    damage(&label);
    rig.explains(What::DamagedDocument, Severity::Serious, &label);
    let tests = rig.dir.snapshot(&rig.snapshots[1].id).tests();
    std::fs::remove_file(&label).unwrap();
    std::fs::write(&tests, "{").unwrap();
    rig.explains(What::DamagedDocument, Severity::Harmless, &tests);
}

#[test]
fn a_layer_that_stands_on_a_repository_is_never_made_to_stand_on_nothing() {
    let rig = Rig::new();
    let path = rig.active();
    let export = keyframe_qcow2::Backing::export(Path::new("/h/run/boot/disk0.sock"), "disk0").unwrap();
    keyframe_qcow2::set_backing(&path, Some(&export)).unwrap();
    rig.explains(What::WrongBacking, Severity::Serious, &path);
    let header = keyframe_qcow2::Header::read(&std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(header.backing(), Some(export.name()), "a repair left it alone");
    std::fs::write(rig.dir.boot(), "{").unwrap();
    assert!(rig.fsck(true).findings.iter().any(|one| one.what == What::DamagedDocument && one.path == rig.dir.boot()));
}

#[test]
fn a_definition_that_a_person_mistyped_is_named() {
    let rig = Rig::new();
    std::fs::write(rig.dir.definition(), "naem = 1").unwrap();
    rig.explains(What::DamagedDocument, Severity::Serious, &rig.dir.definition());
}

#[test]
fn temporary_files_go() {
    for path in ["head.tmp", "layers/disk0/0123456789abcdef.tmp"] {
        let rig = Rig::new();
        let path = rig.dir.root().join(path);
        std::fs::write(&path, "half").unwrap();
        rig.repairs(What::TemporaryFile, &path);
        assert!(!path.exists());
    }
}

#[test]
fn memory_that_no_image_refers_to_goes_and_what_is_missing_is_told() {
    let rig = Rig::new();
    let kept = rig.dir.root().join("memory");
    std::fs::create_dir(&kept).unwrap();
    let (orphan, stranger) = (kept.join("0123456789abcdef.pages"), kept.join("notes.txt"));
    std::fs::write(&orphan, "nobody's").unwrap();
    rig.repairs(What::OrphanFile, &orphan);
    assert!(!orphan.exists());
    std::fs::write(&stranger, "a person's").unwrap();
    rig.explains(What::OrphanFile, Severity::Harmless, &stranger);
    std::fs::remove_file(&stranger).unwrap();
    // An image with a page in a file that is gone.
    let gone = SnapshotId::random();
    let of = SharedImage { image_bytes: 1 << 20, own_pages: 0, image: blake3::hash(b"") };
    let runs = vec![SharedRun { first: 1, count: 2, segment: 0 }];
    let map = SharedMap::new(of, &[sharing::segment(&gone)], runs).unwrap();
    let reader = rig.dir.snapshot(&rig.snapshots[0].id);
    std::fs::write(reader.memory_pages(), "own").unwrap();
    std::fs::write(reader.memory_map(), map.to_bytes()).unwrap();
    rig.explains(What::MemoryImage, Severity::Serious, &kept.join(format!("{gone}.pages")));
}

#[test]
fn a_snapshot_that_never_was_goes() {
    let rig = Rig::new();
    let never = rig.dir.snapshot(&SnapshotId::random());
    std::fs::create_dir_all(never.root()).unwrap();
    std::fs::write(never.memory(), "memory").unwrap();
    rig.repairs(What::UncommittedSnapshot, never.root());
}

#[test]
fn an_operation_that_was_interrupted_is_finished() {
    let rig = Rig::new();
    let (id, parent) = (rig.snapshots[1].id.clone(), rig.snapshots[1].parent.clone());
    sealed::write(&rig.dir.journal(), &Journal::Delete { id: id.clone(), parent: parent.clone() }).unwrap();
    let before = rig.fsck(false).findings;
    assert_eq!(before.iter().map(|one| one.what).collect::<Vec<_>>(), [What::UnfinishedOperation]);
    let after = rig.fsck(true);
    assert!(after.is_clean(), "{:?}", after.findings);
    assert!(!rig.dir.snapshot(&id).root().exists() && !rig.dir.journal().exists());
}

#[test]
fn layers_that_are_gone_or_were_touched_are_serious() {
    let rig = Rig::new();
    let away = rig.frozen(0).with_extension("away");
    std::fs::rename(rig.frozen(0), &away).unwrap();
    let found = rig.fsck(true);
    let missing: Vec<_> = found.findings.iter().filter(|one| one.what == What::MissingLayer).collect();
    assert_eq!(
        missing.iter().map(|one| (one.severity, &one.path)).collect::<Vec<_>>(),
        [(Severity::Serious, &rig.frozen(0))]
    );
    let rig = Rig::new();
    std::fs::remove_file(rig.active()).unwrap();
    rig.explains(What::MissingLayer, Severity::Serious, &rig.active());
    let rig = Rig::new();
    std::fs::File::options().write(true).open(rig.frozen(1)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    rig.explains(What::TouchedLayer, Severity::Serious, &rig.frozen(1));
}

/// Lets a layer's header name another file, as a tool would that keeps the file's time.
fn misname(rig: &Rig, path: &Path) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    keyframe_qcow2::set_backing(path, Some(&Backing::new("elsewhere.qcow2", Format::Qcow2).unwrap())).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    assert!(!rig.fsck(false).is_clean());
}

#[test]
fn headers_are_put_right() {
    let rig = Rig::new();
    misname(&rig, &rig.frozen(1));
    rig.repairs(What::WrongBacking, &rig.frozen(1));
    misname(&rig, &rig.active());
    rig.repairs(What::WrongBacking, &rig.active());
    let file = std::fs::File::open(rig.active()).unwrap();
    let header = keyframe_qcow2::Header::read(&file).unwrap();
    assert_eq!(header.backing().unwrap().as_path(), rig.frozen(1).file_name().unwrap());
}

#[test]
fn a_header_of_a_touched_layer_is_put_right_and_it_is_still_a_touched_one() {
    let rig = Rig::new();
    keyframe_qcow2::set_backing(&rig.frozen(1), Some(&Backing::new("x.qcow2", Format::Qcow2).unwrap())).unwrap();
    std::fs::File::options().write(true).open(rig.frozen(1)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let left = rig.fsck(true);
    assert_eq!(left.repaired.iter().map(|one| one.what).collect::<Vec<_>>(), [What::WrongBacking]);
    assert_eq!(left.findings.iter().map(|one| one.what).collect::<Vec<_>>(), [What::TouchedLayer]);
}

#[test]
fn a_header_in_work_when_the_power_fails_is_known_as_such() {
    for step in 0..3 {
        let rig = Rig::new();
        misname(&rig, &rig.frozen(1));
        die_at(Some(step));
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.fsck(true)));
        die_at(None);
        assert!(died.is_err_and(|what| what.is::<Died>()), "step {step}");
        assert!(rig.fsck(false).findings.iter().any(|one| one.what == What::UnfinishedMending), "step {step}");
        let after = rig.fsck(true);
        assert!(after.is_clean(), "step {step}: {:?}", after.findings);
        assert!(!mending::Mending::path(&rig.dir).exists());
    }
}

#[test]
fn chains_that_end_nowhere_or_in_themselves_are_serious() {
    let rig = Rig::new();
    let whole = TreeDocument::read(&rig.dir).unwrap();
    let mut cut = whole.clone();
    cut.layers.retain(|entry| entry.layer.id != rig.snapshots[0].disks[0].layers[0].id);
    cut.write(&rig.dir).unwrap();
    assert!(
        rig.fsck(true).findings.iter().any(|one| one.what == What::BrokenChain && one.severity == Severity::Serious)
    );
    let mut circle = whole.clone();
    circle.layers[0].below = Some(crate::state::tree::LayerRef::to(&whole.layers[1].layer));
    circle.write(&rig.dir).unwrap();
    assert!(rig.fsck(true).findings.iter().any(|one| one.what == What::BrokenChain && one.path == rig.dir.tree()));
    assert!(rig.frozen(0).exists() && rig.frozen(1).exists());
    whole.write(&rig.dir).unwrap();
    assert!(rig.fsck(false).is_clean());
}

#[test]
fn what_nobody_needs_is_forgotten() {
    let rig = Rig::new();
    let mut tree = TreeDocument::read(&rig.dir).unwrap();
    let (needless, id) = (tree.layers[0].clone(), LayerId::random());
    let layer =
        Layer { id: id.clone(), file: id, path: "vms/db/layers/disk0/x.qcow2".into(), ..Layer::clone(&needless.layer) };
    tree.put(crate::state::tree::TreeLayer { layer: Arc::new(layer), ..needless });
    tree.write(&rig.dir).unwrap();
    rig.repairs(What::UnneededEntry, &rig.dir.tree());
}

#[test]
fn two_layers_in_one_file_and_two_snapshots_of_one_name_are_serious() {
    let rig = Rig::new();
    let mut tree = TreeDocument::read(&rig.dir).unwrap();
    let layer = Layer::clone(&tree.layers[1].layer);
    tree.layers[1].layer = Arc::new(Layer { path: tree.layers[0].layer.path.clone(), ..layer });
    tree.write(&rig.dir).unwrap();
    assert!(
        rig.fsck(false).findings.iter().any(|one| one.what == What::SharedFile && one.severity == Severity::Serious)
    );
    let rig = Rig::new();
    let second = rig.dir.snapshot(&rig.snapshots[1].id);
    let label = Label { name: Some(rig.snapshots[0].name.clone()), ..Label::default() };
    sealed::write(&second.label(), &label).unwrap();
    rig.explains(What::SameName, Severity::Serious, second.root());
}

#[test]
fn a_process_that_is_gone_is_told() {
    let mut rig = Rig::new();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let process = ProcessId::of(child.id()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let version = QemuVersion { major: 10, minor: 0, micro: 2 };
    let dir = rig.dir.run().join("i");
    let instance =
        InstanceRecord { id: InstanceId::random(), process, dir: dir.clone(), version, started: Timestamp::now() };
    rig.head.process =
        Some(Process { instance, accelerator: Accelerator::Tcg, definition: None, mapped: None, served: None });
    write_head(&rig.dir, &rig.head).unwrap();
    rig.explains(What::ProcessGone, Severity::Harmless, &dir);
}

#[test]
fn tables_that_are_wrong_are_found_by_qemu_img() {
    use std::os::unix::fs::FileExt as _;
    let rig = Rig::new();
    let file = std::fs::File::options().read(true).write(true).open(rig.active()).unwrap();
    // An L1 entry that leads far behind the end of the file.
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 40).unwrap();
    file.write_all_at(&((1_u64 << 63) | (1 << 40)).to_be_bytes(), u64::from_be_bytes(at)).unwrap();
    rig.explains(What::CorruptImage, Severity::Serious, &rig.active());
}

#[test]
fn who_is_at_work_is_not_disturbed() {
    let rig = Rig::new();
    let _lock = Lock::take(&rig.dir.lock(), "snapshot db").unwrap();
    let report = rig.fsck(true);
    assert!(report.machines.is_empty() && !report.is_clean());
    assert!(report.busy[0].holder.contains("snapshot db"));
}

#[test]
fn directories_without_a_definition_are_told() {
    let rig = Rig::new();
    let stray = rig.home.root().join("vms/stray");
    std::fs::create_dir_all(stray.join("snapshots")).unwrap();
    rig.explains(What::NoMachine, Severity::Serious, &stray);
    std::fs::remove_dir(stray.join("snapshots")).unwrap();
    rig.explains(What::NoMachine, Severity::Harmless, &stray);
}
