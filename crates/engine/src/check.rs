//! Is every snapshot still what it was?
//!
//! The structure takes milliseconds: chains complete, layers there and untouched, the memory image's head and sums what the
//! manifest says. With data every byte is read again: memory against `memory.b3`, which was made with it; frozen layers against
//! BLAKE3 sums of their files, which `sums.json` has from the first check on. A layer that a merge has rewritten has another
//! fingerprint, and is recorded anew.
//!
//! No lock is held while bytes are read, which may take hours: whoever merges or deletes meanwhile is not kept waiting. A
//! file is judged only if it looked as `tree.json` says before its bytes were read and looks the same behind that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use keyframe_types::{ByteLen, SnapshotId, Timestamp, VmName};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, IoContext as _};
use crate::machine::Machine;
use crate::state::head::{Fingerprint, Layer};
use crate::state::home::VmDir;
use crate::state::lock::Lock;
use crate::state::manifest::Manifest;
use crate::state::sealed::{self, Document};
use crate::state::tree::TreeDocument;
use crate::{memory, recover, snapshots};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// What a frozen layer's file was when it was checked first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    /// What the file looked like.
    frozen: Fingerprint,
    /// BLAKE3 of the whole file, 64 hexadecimal digits.
    blake3: String,
    /// When that was read.
    at: Timestamp,
}

/// `sums.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct LayerSums {
    /// By the layer's file, as documents name it.
    files: BTreeMap<PathBuf, Recorded>,
}

impl Document for LayerSums {
    const SCHEMA: &'static str = "keyframe.layer-sums/1";
}

fn sums_path(dir: &VmDir) -> PathBuf {
    dir.root().join("sums.json")
}

/// How a layer's bytes compare with what is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compared {
    /// They are the same.
    AsRecorded,
    /// There was no record; there is one now.
    RecordedNow,
    /// They are others.
    Changed,
    /// The file was touched, and what it was before is not on record.
    Unknown,
    /// It was written to while it was read.
    Moving,
}

/// A layer whose bytes were read.
#[derive(Debug, Clone, Serialize)]
pub struct CheckedLayer {
    /// Its file.
    pub path: PathBuf,
    /// Bytes that were read.
    pub bytes: ByteLen,
    /// What came of it.
    pub compared: Compared,
}

/// Something that is wrong with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub text: String,
}

/// A snapshot that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct CheckedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name; its id for one that cannot be read.
    pub name: String,
    /// What is wrong with it; empty when nothing is.
    pub problems: Vec<Problem>,
}

/// What a check came to.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// The machine.
    pub vm: VmName,
    /// Whether every byte was read.
    pub data: bool,
    /// Its snapshots by age, those that cannot be read last.
    pub snapshots: Vec<CheckedSnapshot>,
    /// Layers whose bytes were read.
    pub layers: Vec<CheckedLayer>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Bytes that were read, memory included.
    pub bytes_read: ByteLen,
    /// The whole check, in milliseconds.
    pub total_ms: f64,
}

impl CheckReport {
    /// Snapshots that something is wrong with.
    pub fn concerned(&self) -> impl Iterator<Item = &CheckedSnapshot> {
        self.snapshots.iter().filter(|snapshot| !snapshot.problems.is_empty())
    }
}

/// Checks all snapshots of a machine; with `data`, every byte of them.
///
/// # Errors
/// [`Error::NoMachine`], [`Error::Interrupted`], [`Error::Io`]; what is wrong with a snapshot is no error but told in the report.
pub fn check(ctx: &Context<'_>, vm: &VmName, data: bool) -> Result<CheckReport, Error> {
    let begun = Instant::now();
    recover::recover_if_idle(ctx, vm);
    let machine = Machine::open(ctx.home, vm)?;
    let (manifests, damaged) = snapshots::scan(&machine.dir)?;
    let mut layers = structure(ctx, &manifests);
    let mut run = Run { ctx, dir: &machine.dir, checked: Vec::new(), notes: Vec::new(), read: 0 };
    if data {
        run.layers(&manifests, &mut layers)?;
    }
    let mut checked = Vec::new();
    for manifest in &manifests {
        ctx.check()?;
        let chains = manifest.chains().flat_map(|chain| &chain.layers);
        let mut problems: Vec<Problem> =
            chains.filter_map(|layer| layers.get(&ctx.home.absolute(&layer.path)).cloned().flatten()).collect();
        problems.extend(run.memory(manifest, data)?);
        checked.push(CheckedSnapshot { id: manifest.id.clone(), name: manifest.name.to_string(), problems });
    }
    for one in damaged {
        let path = machine.dir.snapshot(&one.id).manifest();
        let problems = vec![Problem { path, text: one.error.to_string() }];
        checked.push(CheckedSnapshot { name: one.id.to_string(), id: one.id, problems });
    }
    Ok(CheckReport {
        vm: vm.clone(),
        data,
        snapshots: checked,
        layers: run.checked,
        notes: run.notes,
        bytes_read: ByteLen::from_bytes(run.read),
        total_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

/// Every layer that a snapshot stands on, by its file, and what is wrong with it: looked at once, however many stand on it.
fn structure(ctx: &Context<'_>, manifests: &[Manifest]) -> BTreeMap<PathBuf, Option<Problem>> {
    let mut seen = BTreeMap::new();
    for layer in manifests.iter().flat_map(Manifest::chains).flat_map(|chain| &chain.layers) {
        let path = ctx.home.absolute(&layer.path);
        seen.entry(path.clone()).or_insert_with(|| {
            let problem = |text: String| Some(Problem { path: path.clone(), text });
            match layer.check_untouched(ctx.home) {
                Err(_) if moved_on(ctx, layer) => None,
                Err(error) => problem(error.told()),
                Ok(()) if !path.exists() => problem(Error::LayerMissing { path: path.clone() }.to_string()),
                Ok(()) => None,
            }
        });
    }
    seen
}

/// Whether a layer is merged in this moment, or was since its chain was read: it is judged by the next check.
fn moved_on(ctx: &Context<'_>, layer: &Layer) -> bool {
    let dir = ctx.home.vm(&layer.vm);
    let same = |tree: TreeDocument| {
        tree.find(&layer.id).is_some_and(|now| now.layer.frozen == layer.frozen && now.layer.path == layer.path)
    };
    dir.journal().exists() || !TreeDocument::read(&dir).is_ok_and(same)
}

/// A check that is under way.
struct Run<'a> {
    ctx: &'a Context<'a>,
    dir: &'a VmDir,
    checked: Vec<CheckedLayer>,
    notes: Vec<String>,
    read: u64,
}

impl Run<'_> {
    /// Reads all layers that snapshots stand on, compares them with the record, and puts what is not on it there.
    fn layers(&mut self, manifests: &[Manifest], found: &mut BTreeMap<PathBuf, Option<Problem>>) -> Result<(), Error> {
        let mut sums = match sealed::read::<LayerSums>(&sums_path(self.dir)) {
            Ok(sums) => sums.unwrap_or_default(),
            Err(error @ (Error::Damaged { .. } | Error::Schema { .. })) => {
                self.notes.push(format!("{error}; layers are recorded anew"));
                LayerSums::default()
            }
            Err(error) => return Err(error),
        };
        let before = sums.clone();
        let mut layers: BTreeMap<PathBuf, Arc<Layer>> = BTreeMap::new();
        for layer in manifests.iter().flat_map(Manifest::chains).flat_map(|chain| &chain.layers) {
            layers.entry(layer.path.clone()).or_insert_with(|| layer.clone());
        }
        let total = layers.keys().filter_map(|path| std::fs::metadata(self.ctx.home.absolute(path)).ok());
        let total = total.fold(0_u64, |sum, found| sum.saturating_add(found.len()));
        self.ctx.progress.step("reading layers");
        for (name, layer) in &layers {
            let interrupted = self.ctx.check();
            if interrupted.is_err() {
                // What was read is not read in vain.
                self.record(&before, sums)?;
                return interrupted;
            }
            let path = self.ctx.home.absolute(name);
            let Some(frozen) = &layer.frozen else { continue };
            match self.layer(&path, frozen, sums.files.get(name), total) {
                Err(Error::Interrupted) => {
                    self.record(&before, sums)?;
                    return Err(Error::Interrupted);
                }
                Ok((Compared::Moving | Compared::Changed | Compared::Unknown, _, _)) | Err(_)
                    if moved_on(self.ctx, layer) =>
                {
                    self.notes.push(format!("{} was merged or deleted while it was read: not judged", path.display()));
                    found.insert(path, None);
                }
                Ok((compared, digest, bytes)) => {
                    if compared == Compared::RecordedNow {
                        let fresh = Recorded { frozen: frozen.clone(), blake3: digest, at: Timestamp::now() };
                        sums.files.insert(name.clone(), fresh);
                    }
                    let before = found.get(&path).cloned().flatten();
                    found.insert(path.clone(), judged(&path, compared, before));
                    self.checked.push(CheckedLayer { path, bytes: ByteLen::from_bytes(bytes), compared });
                }
                Err(error) => {
                    // What is not there was told before.
                    let told = found.entry(path.clone()).or_default();
                    told.get_or_insert(Problem { path: path.clone(), text: error.to_string() });
                }
            }
        }
        let needed: BTreeSet<&PathBuf> = layers.keys().collect();
        sums.files.retain(|path, _| needed.contains(path));
        self.record(&before, sums)
    }

    /// Reads one layer and compares it.
    fn layer(
        &mut self,
        path: &Path,
        frozen: &Fingerprint,
        recorded: Option<&Recorded>,
        total: u64,
    ) -> Result<(Compared, String, u64), Error> {
        let before = Fingerprint::of(path)?;
        let (digest, bytes) = self.digest(path, total)?;
        let same_file = Fingerprint::of(path).is_ok_and(|after| after == before);
        let recorded = recorded.filter(|recorded| recorded.frozen == *frozen);
        let compared = match recorded {
            _ if !same_file => Compared::Moving,
            Some(recorded) if recorded.blake3 == digest => Compared::AsRecorded,
            Some(_) => Compared::Changed,
            None if before == *frozen => Compared::RecordedNow,
            None => Compared::Unknown,
        };
        Ok((compared, digest, bytes))
    }

    fn digest(&mut self, path: &Path, total: u64) -> Result<(String, u64), Error> {
        let mut file = File::open(path).or_io("open", path)?;
        let (mut hasher, mut buf, mut bytes) = (blake3::Hasher::new(), vec![0; CHUNK], 0_u64);
        loop {
            self.ctx.check()?;
            let got = match file.read(&mut buf) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.or_io("read", path)?,
            };
            let Some(chunk) = buf.get(..got).filter(|chunk| !chunk.is_empty()) else { break };
            hasher.update(chunk);
            bytes += got as u64;
            self.read += got as u64;
            self.ctx.progress.bytes(self.read, total);
        }
        Ok((hasher.finalize().to_hex().to_string(), bytes))
    }

    /// Puts what is new on record. Only now, and for a moment, the machine's lock is held.
    fn record(&mut self, before: &LayerSums, sums: LayerSums) -> Result<(), Error> {
        if *before == sums {
            return Ok(());
        }
        match Lock::take(&self.dir.lock(), &format!("check {}", self.dir.name())) {
            Ok(_lock) => sealed::write(&sums_path(self.dir), &sums),
            Err(Error::Busy { holder }) => {
                self.notes.push(format!("nothing was recorded: {holder} is at work on the machine"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What is wrong with a snapshot's memory.
    fn memory(&mut self, manifest: &Manifest, data: bool) -> Result<Option<Problem>, Error> {
        let Some(described) = &manifest.memory else { return Ok(None) };
        let snapshot = self.dir.snapshot(&manifest.id);
        let problem = |text: String| Ok(Some(Problem { path: snapshot.memory(), text }));
        let image = match memory::open(self.dir, manifest) {
            Ok(image) => image,
            // Deleted meanwhile.
            Err(_) if !snapshot.manifest().exists() => return Ok(None),
            Err(error) => return problem(error.told()),
        };
        if data {
            match memory::verify(self.ctx, &image) {
                Ok(()) => self.read = self.read.saturating_add(described.bytes_on_disk.bytes()),
                Err(keyframe_memory::Error::Cancelled) => return Err(Error::Interrupted),
                Err(error) => return problem(error.to_string()),
            }
        }
        Ok(None)
    }
}

/// What is wrong with a layer, now that its bytes are known.
fn judged(path: &Path, compared: Compared, before: Option<Problem>) -> Option<Problem> {
    let problem = |text: &str| Some(Problem { path: path.to_owned(), text: text.to_owned() });
    match compared {
        // Its bytes are what the record says: only its time is not.
        Compared::AsRecorded if before.is_some() => {
            problem("it was written to from outside, and its content is as recorded: --accept-touched-layers goes on")
        }
        Compared::Changed => problem("its content is not what was recorded"),
        Compared::Moving => problem("it was written to while it was read"),
        _ => before,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::context::Silent;
    use crate::fsck::tests::Rig;

    fn checked(rig: &Rig, data: bool) -> CheckReport {
        let never = AtomicBool::new(false);
        check(&Context { home: &rig.home, progress: &Silent, cancel: &never }, rig.dir.name(), data).unwrap()
    }

    fn compared(report: &CheckReport) -> Vec<Compared> {
        report.layers.iter().map(|layer| layer.compared).collect()
    }

    fn names(report: &CheckReport) -> Vec<String> {
        report.concerned().map(|snapshot| snapshot.name.clone()).collect()
    }

    /// Changes a byte, and sets the file's time back to what it was if `quietly`.
    fn flip(path: &Path, quietly: bool) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let (mut byte, at) = ([0], file.metadata().unwrap().len() - 1);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let time = if quietly { modified } else { std::time::UNIX_EPOCH };
        file.set_modified(time).unwrap();
    }

    #[test]
    fn layers_are_recorded_once_and_compared_from_then_on() {
        let rig = Rig::new();
        assert!(names(&checked(&rig, false)).is_empty());
        assert!(!sums_path(&rig.dir).exists(), "the structure needs no record");
        let first = checked(&rig, true);
        assert_eq!(compared(&first), [Compared::RecordedNow; 2]);
        let second = checked(&rig, true);
        assert_eq!(compared(&second), [Compared::AsRecorded; 2]);
        assert!(names(&second).is_empty() && second.bytes_read > ByteLen::ZERO);
    }

    #[test]
    fn a_byte_that_changed_by_itself_concerns_all_that_stand_on_it() {
        let rig = Rig::new();
        checked(&rig, true);
        flip(&rig.frozen(0), true);
        assert!(names(&checked(&rig, false)).is_empty(), "only its bytes tell");
        assert_eq!(names(&checked(&rig, true)), ["one", "two"]);
        flip(&rig.frozen(0), true);
        flip(&rig.frozen(1), true);
        assert_eq!(names(&checked(&rig, true)), ["two"]);
    }

    #[test]
    fn a_touched_layer_is_told_whether_its_content_is_as_it_was() {
        let rig = Rig::new();
        flip(&rig.frozen(1), false);
        let unknown = checked(&rig, true);
        assert_eq!((names(&unknown), compared(&unknown).contains(&Compared::Unknown)), (vec!["two".into()], true));
        let rig = Rig::new();
        checked(&rig, true);
        File::options().write(true).open(rig.frozen(1)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let touched = checked(&rig, true);
        assert_eq!(compared(&touched), [Compared::AsRecorded; 2]);
        assert!(touched.concerned().next().unwrap().problems[0].text.contains("as recorded"));
        flip(&rig.frozen(1), false);
        assert!(compared(&checked(&rig, true)).contains(&Compared::Changed));
    }

    #[test]
    fn a_layer_that_a_merge_rewrote_is_recorded_anew() {
        let rig = Rig::new();
        checked(&rig, true);
        flip(&rig.frozen(1), false);
        let mut tree = crate::state::tree::TreeDocument::read(&rig.dir).unwrap();
        for entry in &mut tree.layers {
            let frozen = Some(Fingerprint::of(&rig.home.absolute(&entry.layer.path)).unwrap());
            entry.layer = Arc::new(Layer { frozen, ..Layer::clone(&entry.layer) });
        }
        tree.write(&rig.dir).unwrap();
        let report = checked(&rig, true);
        assert!(compared(&report).contains(&Compared::RecordedNow) && names(&report).is_empty());
        assert_eq!(compared(&checked(&rig, true)), [Compared::AsRecorded; 2]);
    }

    #[test]
    fn what_is_missing_or_damaged_is_told_of_the_snapshots_concerned() {
        let rig = Rig::new();
        std::fs::remove_file(rig.frozen(1)).unwrap();
        for data in [false, true] {
            assert_eq!(names(&checked(&rig, data)), ["two"]);
        }
        let rig = Rig::new();
        std::fs::write(rig.dir.snapshot(&rig.snapshots[0].id).manifest(), "{").unwrap();
        assert_eq!(names(&checked(&rig, false)), [rig.snapshots[0].id.to_string()]);
        std::fs::write(sums_path(&rig.dir), "{").unwrap();
        let report = checked(&rig, true);
        assert!(!report.notes.is_empty() && compared(&report).contains(&Compared::RecordedNow));
    }

    #[test]
    fn memory_that_is_not_there_is_told() {
        let rig = Rig::new();
        let memory = crate::state::manifest::Memory {
            file: "memory.mapped".into(),
            sums_file: "memory.b3".into(),
            sums_blake3: "0".repeat(64),
            ram_bytes: ByteLen::from_mib(64),
            bytes_on_disk: ByteLen::ZERO,
        };
        let manifest = Manifest { memory: Some(memory), ..rig.snapshots[1].clone() };
        crate::state::tree::write_manifest(&rig.dir, &manifest).unwrap();
        assert_eq!(names(&checked(&rig, false)), ["two"]);
    }

    #[test]
    fn an_interruption_keeps_what_was_read() {
        let rig = Rig::new();
        let cancelled = AtomicBool::new(true);
        let ctx = Context { home: &rig.home, progress: &Silent, cancel: &cancelled };
        assert!(matches!(check(&ctx, rig.dir.name(), true), Err(Error::Interrupted)));
        assert_eq!(compared(&checked(&rig, true)), [Compared::RecordedNow; 2]);
    }
}
