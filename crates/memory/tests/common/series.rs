//! A machine's images as a model: what each snapshot's memory must be, and its files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use keyframe_memory::sharing::{Sharing, Step, keep_for_others, reclaim, share};
use keyframe_memory::verify::{VerifyProgress, verify_all};
use keyframe_memory::{Error, ExtentBuf, ImageStore, Keeping, seal};
use keyframe_vmstate::shared::SegmentId;
use keyframe_vmstate::testing::Machine;
use keyframe_vmstate::{EXTENT_SIZE, ExtentIndex, PAGE_SIZE};

pub static NEVER: AtomicBool = AtomicBool::new(false);

/// Goes through all steps.
pub fn through(_: Step) -> Result<(), Error> {
    Ok(())
}

/// Dies behind that step.
pub fn until(last: Step) -> impl Fn(Step) -> Result<(), Error> {
    move |step| if step == last { Err(Error::Stopped { step: "the test's" }) } else { Ok(()) }
}

pub struct Series {
    dir: PathBuf,
    pub store: ImageStore,
    pub machines: BTreeMap<SegmentId, Machine>,
    taken: u64,
}

impl Series {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), store: ImageStore::of_machine(dir), machines: BTreeMap::new(), taken: 0 }
    }

    pub fn dir_of(&self, id: SegmentId) -> PathBuf {
        self.dir.join("snapshots").join(id.to_string())
    }

    pub fn file(&self, id: SegmentId, name: &str) -> PathBuf {
        self.dir_of(id).join(name)
    }

    pub fn kept(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.join("memory")).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    /// Writes a whole image with its sums, as a capture leaves them.
    pub fn take(&mut self, machine: &Machine) -> SegmentId {
        self.taken += 1;
        let id = SegmentId::new(self.taken);
        fs::create_dir_all(self.dir_of(id)).expect("a directory");
        let (path, image) = (self.file(id, "memory.mapped"), machine.image());
        let file = File::create_new(&path).expect("fresh");
        file.set_len(image.len() as u64).expect("sized");
        for (n, page) in image.chunks(PAGE_SIZE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0)) {
            file.write_all_at(page, (n * PAGE_SIZE) as u64).expect("written");
        }
        seal::write_sums(&path, &self.file(id, "memory.b3")).expect("sealed");
        self.machines.insert(id, machine.clone());
        id
    }

    pub fn share(&self, id: SegmentId, older: SegmentId) -> Sharing {
        share(&self.store, id, older, &NEVER, &through).expect("shared")
    }

    /// Deletes a snapshot as the engine does. Ends behind its first half where `dies` says so.
    pub fn delete(&mut self, id: SegmentId, dies: bool) {
        if dies {
            keep_for_others(&self.store, id, &until(Step::Kept)).expect_err("died");
            self.assert_intact();
        }
        keep_for_others(&self.store, id, &through).expect("kept");
        self.machines.remove(&id);
        fs::remove_dir_all(self.dir_of(id)).expect("removed");
        self.assert_intact();
        self.reclaim();
    }

    pub fn reclaim(&self) {
        reclaim(&self.store, &NEVER).expect("reclaimed");
    }

    /// Every image reads as it was taken, and what QEMU would load has every byte.
    pub fn assert_intact(&self) {
        for (id, machine) in &self.machines {
            let image = self.store.open(*id).unwrap_or_else(|error| panic!("{id}: {error}"));
            let mut buf = ExtentBuf::new();
            for (block, described) in image.ram().iter() {
                for (n, bytes) in machine.memory[block.get()].chunks(EXTENT_SIZE).enumerate() {
                    let extent = ExtentIndex::new(n as u64).expect("small");
                    let read = image.read_extent(block, extent, &mut buf);
                    let read = read.unwrap_or_else(|error| panic!("{id}: {error}"));
                    assert!(read == bytes, "{id}: extent {n} of {}", described.id());
                }
            }
            let report = verify_all(&image, NonZeroUsize::MIN, &VerifyProgress::default(), &NEVER).expect("runs");
            assert!(report.is_intact(), "{id}: {report:?}");
            let whole = self.file(*id, "memory.mapped");
            assert_eq!(whole.exists(), self.store.keeping(*id).expect("looked") == Some(Keeping::Whole), "{id}");
            if whole.exists() {
                assert!(fs::read(&whole).expect("read") == machine.image(), "{id}: a whole image is not");
            }
        }
    }
}
