//! File systems whose files share extents: images stay whole, and equal pages are stored once. Needs root, to mount them.

#[path = "common/series.rs"]
mod series;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use keyframe_memory::Keeping;
use keyframe_memory::sharing::{How, Sharing, freed_by};
use keyframe_vmstate::PageIndex;
use keyframe_vmstate::testing::Machine;
use series::Series;

/// A file system in a file, mounted until dropped.
struct Mounted {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mounted {
    fn make(program: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let (image, at) = (dir.path().join("image"), dir.path().join("mounted"));
        File::create_new(&image).and_then(|file| file.set_len(512 << 20)).expect("a sparse file");
        std::fs::create_dir(&at).expect("a directory");
        run(Command::new(program).args(options).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
        Self { at, _dir: dir }
    }

    /// Bytes of the file system that are in use.
    fn used(&self) -> u64 {
        let file = File::open(&self.at).expect("opens");
        rustix::fs::syncfs(&file).expect("synced");
        let status = rustix::fs::fstatvfs(&file).expect("looked");
        (status.f_blocks - status.f_bfree) * status.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.at));
    }
}

fn run(command: &mut Command) {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask setup` installs it"));
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {why}; this test mounts a file system and needs root for it");
}

fn a_series_is_stored_once(at: &Mounted, dir: &Path) {
    let mut series = Series::new(dir);
    let mut machine = Machine::new(&[("pc.ram", 4000)], 5);
    let empty = at.used();
    let mut older = series.take(&machine);
    let first = at.used() - empty;
    let mut ids = vec![older];
    for n in 0..5_u64 {
        let block = machine.header.ram.find("pc.ram").expect("there");
        for page in (0..40).map(|page| page * 97 + n) {
            machine.fill_page((block, PageIndex::new(page).expect("small")), n as u8);
        }
        let id = series.take(&machine);
        let Sharing::Shared(report) = series.share(id, older) else { panic!("not shared") };
        assert_eq!(report.how, How::Extents);
        assert!(report.shared_pages * 10 > report.held_pages * 9, "{report:?}");
        assert_eq!(series.store.keeping(id).expect("looked"), Some(Keeping::Whole));
        older = id;
        ids.push(id);
    }
    series.assert_intact();
    let all = at.used() - empty;
    assert!(all < 2 * first, "{all} bytes for six, {first} for the first");
    let freed = freed_by(&series.store, &BTreeSet::from([ids[2]])).expect("looked");
    assert!(freed * 4 < first, "{freed} bytes are its own alone, of {first}");
    for id in ids {
        series.delete(id, false);
        series.assert_intact();
        assert!(series.kept().is_empty(), "nobody refers to it by a map");
    }
}

#[test]
fn on_xfs_a_series_is_stored_once() {
    let mounted = Mounted::make("mkfs.xfs", &["-q", "-m", "reflink=1"]);
    a_series_is_stored_once(&mounted, &mounted.at.join("vm"));
}

#[test]
fn on_btrfs_a_series_is_stored_once() {
    let mounted = Mounted::make("mkfs.btrfs", &["-q"]);
    a_series_is_stored_once(&mounted, &mounted.at.join("vm"));
}
