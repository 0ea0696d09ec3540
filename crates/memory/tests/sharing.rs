//! Images that share pages: each reads as it was taken, whatever is deleted, at whatever step something dies.

#[path = "common/series.rs"]
mod series;

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use keyframe_memory::sharing::{
    Faults, How, Left, Sharing, SharingReport, Step, export, freed_by, make_whole, reclaim, share, space, survey,
};
use keyframe_memory::{Error, Keeping, MemoryImage};
use keyframe_vmstate::shared::SegmentId;
use keyframe_vmstate::testing::Machine;
use keyframe_vmstate::{EXTENT_SIZE, ExtentIndex, PAGE_SIZE, PageIndex};
use proptest::prelude::*;
use series::{NEVER, Series, through, until};

const BLOCKS: [(&str, u64); 3] = [("pc.ram", 700), ("vga", 33), ("one", 1)];

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The machine some time later: these pages changed.
fn later(machine: &Machine, pages: impl IntoIterator<Item = u64>, fill: u8) -> Machine {
    let mut machine = machine.clone();
    let block = machine.header.ram.find("pc.ram").expect("there");
    for page in pages {
        machine.fill_page((block, PageIndex::new(page).expect("small")), fill);
    }
    machine
}

/// Bytes on disk of all images together.
fn allocated(series: &Series) -> u64 {
    let entries = |id: &SegmentId| fs::read_dir(series.dir_of(*id)).expect("listed");
    let files = series.machines.keys().flat_map(entries).map(|entry| entry.expect("an entry").path());
    files.chain(series.kept()).map(|path| fs::metadata(path).expect("there").blocks() * 512).sum()
}

fn report(sharing: Sharing) -> SharingReport {
    match sharing {
        Sharing::Shared(report) => report,
        left @ Sharing::Left(_) => panic!("{left:?}"),
    }
}

/// Three snapshots in a row; the second and third share.
fn three(dir: &tempfile::TempDir) -> (Series, [SegmentId; 3]) {
    let mut series = Series::new(dir.path());
    let first = Machine::new(&BLOCKS, 3);
    let second = later(&first, [5, 6, 7, 300], 0xaa);
    let third = later(&second, [6, 100, 101, 699], 0xbb);
    let ids = [&first, &second, &third].map(|machine| series.take(machine));
    assert_eq!(report(series.share(ids[1], ids[0])).how, How::Mapped, "this test needs a file system without reflinks");
    let last = report(series.share(ids[2], ids[1]));
    assert_eq!(last.segments, 2, "it refers to the files that have the pages");
    assert_eq!(last.held_pages - last.shared_pages, 4, "{last:?}");
    series.assert_intact();
    (series, ids)
}

#[test]
fn a_series_takes_what_differs() {
    let dir = dir();
    let mut series = Series::new(dir.path());
    let mut machine = Machine::new(&[("pc.ram", 6000)], 9);
    let mut older = series.take(&machine);
    let first = allocated(&series);
    for n in 0..9 {
        machine = later(&machine, (0..60).map(|page| page * 97 + n), n as u8);
        let id = series.take(&machine);
        report(series.share(id, older));
        older = id;
    }
    series.assert_intact();
    let all = allocated(&series);
    assert!(all * 4 <= first * 5, "{all} bytes for ten, {first} for the first");
    let spaces = space(&series.store).expect("looked");
    let own: u64 = spaces.values().map(|space| space.own_bytes).sum();
    assert!(own <= all && spaces.len() == 10, "{spaces:?}");
}

/// A listing says the same of each image alone as a plan for its deletion.
fn assert_listed_as_planned(series: &Series) {
    for (id, space) in space(&series.store).expect("looked") {
        let planned = freed_by(&series.store, &BTreeSet::from([id])).expect("looked");
        assert_eq!(space.freed_bytes, planned, "{id}: {space:?}");
    }
}

#[test]
fn files_that_nobody_needs_and_pages_that_are_missing_are_found() {
    let dir = dir();
    let (mut series, ids) = three(&dir);
    series.delete(ids[0], false);
    let kept = series.kept().pop().expect("kept");
    let (stranger, orphan) = (kept.with_file_name("notes.txt"), kept.with_file_name("00000000000000ff.pages"));
    let leftover = dir.path().join("snapshots").join(ids[1].to_string()).join("memory.map.tmp");
    for path in [&stranger, &orphan, &leftover] {
        fs::write(path, "something").expect("written");
    }
    let mut faults = survey(&series.store).expect("looked");
    faults.orphans.sort();
    let mut orphans = vec![orphan.clone(), leftover.clone()];
    orphans.sort();
    assert_eq!((faults.orphans, faults.strangers, faults.torn), (orphans, vec![stranger.clone()], vec![]));
    reclaim(&series.store, &NEVER).expect("reclaimed");
    assert!(stranger.exists() && !orphan.exists() && !leftover.exists());
    // Cut short: what lay behind that is missing in both that refer to it.
    let len = fs::metadata(&kept).expect("looked").len();
    fs::File::options().write(true).open(&kept).and_then(|file| file.set_len(len / 2)).expect("cut");
    let torn = survey(&series.store).expect("looked").torn;
    assert_eq!(
        torn.iter().map(|torn| (torn.reader, &torn.file)).collect::<Vec<_>>(),
        [(ids[1], &kept), (ids[2], &kept)]
    );
    assert!(torn.iter().all(|torn| torn.pages > 50), "{torn:?}");
    fs::remove_file(&kept).expect("removed");
    let all = survey(&series.store).expect("looked").torn;
    assert!(all.iter().zip(&torn).all(|(all, torn)| all.pages > torn.pages), "{all:?}");
    fs::remove_file(stranger).expect("removed");
}

#[test]
fn any_of_three_can_go() {
    for gone in 0..3 {
        let dir = dir();
        let (mut series, ids) = three(&dir);
        let (before, planned) = (allocated(&series), freed_by(&series.store, &BTreeSet::from([ids[gone]])));
        assert_listed_as_planned(&series);
        assert_eq!(survey(&series.store).expect("looked"), Faults::default());
        series.delete(ids[gone], false);
        assert_listed_as_planned(&series);
        assert_eq!(survey(&series.store).expect("looked"), Faults::default());
        assert_eq!(series.kept().len(), usize::from(gone < 2), "only what is referred to is kept");
        let freed = before - allocated(&series);
        let planned = planned.expect("looked");
        assert!(freed.abs_diff(planned) <= 16 << 10, "{gone}: {freed} freed, {planned} planned");
        series.assert_intact();
        for id in ids {
            if series.machines.contains_key(&id) {
                series.delete(id, true);
            }
        }
        assert_eq!(series.kept(), Vec::<std::path::PathBuf>::new(), "nobody refers to them");
    }
}

#[test]
fn a_page_that_only_the_deleted_had_in_common_is_given_back() {
    let dir = dir();
    let (mut series, ids) = three(&dir);
    series.delete(ids[0], false);
    let kept = fs::read(&series.kept()[0]).expect("read");
    let image = series.store.open(ids[1]).expect("opens");
    let start = image.layout().blocks()[0].pages_offset() as usize;
    let page = |n: usize| &kept[start + n * PAGE_SIZE..][..PAGE_SIZE];
    assert_eq!(page(300), [0; PAGE_SIZE], "the first one's page 300 is needed by nobody");
    let first = Machine::new(&BLOCKS, 3);
    let needed = (0..700).find(|n| *n > 310 && first.memory[0][n * PAGE_SIZE] != 0).expect("a page");
    assert!(page(needed) == &first.memory[0][needed * PAGE_SIZE..][..PAGE_SIZE]);
}

#[test]
fn memory_that_is_another_is_left_whole() {
    let dir = dir();
    let mut series = Series::new(dir.path());
    let machines = [Machine::new(&BLOCKS, 1), Machine::new(&BLOCKS, 2), Machine::new(&[("pc.ram", 701)], 1)];
    let ids = machines.each_ref().map(|machine| series.take(machine));
    assert_eq!(series.share(ids[1], ids[0]), Sharing::Left(Left::TooDifferent));
    assert_eq!(series.share(ids[2], ids[0]), Sharing::Left(Left::OtherLayout));
    series.assert_intact();
}

#[test]
fn pages_in_extents_that_differ_are_found_by_the_sample() {
    let dir = dir();
    let mut series = Series::new(dir.path());
    let machine = Machine::new(&BLOCKS, 4);
    let older = series.take(&machine);
    // One page in each extent: no two sums are equal, and yet most is the same.
    let id = series.take(&later(&machine, (0..700).step_by(16), 1));
    assert!(report(series.share(id, older)).shared_pages > 200);
    series.assert_intact();
}

#[test]
fn a_sharing_that_dies_at_any_step_leaves_the_image_readable() {
    for step in [Step::MapWritten, Step::Renamed, Step::Punched] {
        let dir = dir();
        let mut series = Series::new(dir.path());
        let machine = Machine::new(&BLOCKS, 5);
        let older = series.take(&machine);
        let id = series.take(&later(&machine, [9], 7));
        share(&series.store, id, older, &NEVER, &until(step)).expect_err("died");
        series.assert_intact();
        series.reclaim();
        series.assert_intact();
        let is_whole = series.store.keeping(id).expect("looked") == Some(Keeping::Whole);
        assert_eq!(is_whole, step == Step::MapWritten, "{step:?}");
        assert_eq!(series.file(id, "memory.map").exists(), !is_whole, "{step:?}");
        // What comes next works.
        let next = series.take(&later(&machine, [9, 10], 8));
        report(series.share(next, id));
        series.delete(id, true);
        series.delete(older, true);
        series.assert_intact();
    }
}

#[test]
fn an_image_made_whole_at_any_step_is_readable_and_others_read_on() {
    for step in [None, Some(Step::WholeWritten), Some(Step::WholeNamed), Some(Step::MapRemoved)] {
        let dir = dir();
        let (mut series, ids) = three(&dir);
        if let Some(step) = step {
            make_whole(&series.store, ids[1], &NEVER, &until(step)).expect_err("died");
            series.assert_intact();
            series.reclaim();
            series.assert_intact();
        }
        make_whole(&series.store, ids[1], &NEVER, &through).expect("whole");
        assert_eq!(series.store.keeping(ids[1]).expect("looked"), Some(Keeping::Whole));
        series.assert_intact();
        series.delete(ids[0], false);
        series.delete(ids[1], false);
        series.assert_intact();
    }
}

#[test]
fn an_export_is_what_the_capture_wrote() {
    let dir = dir();
    let (series, ids) = three(&dir);
    for (n, id) in ids.iter().enumerate() {
        let (image, dest) = (series.store.open(*id).expect("opens"), dir.path().join(format!("{n}.mapped")));
        export(&image, &dest, &NEVER).expect("written");
        assert!(fs::read(&dest).expect("read") == series.machines[id].image(), "{n}");
        assert!(MemoryImage::open(&dest, &series.file(*id, "memory.b3")).is_ok());
        let refused = export(&image, &dest, &NEVER).expect_err("it exists");
        assert!(matches!(refused, Error::Io { action: "create", .. }), "{refused:?}");
    }
}

fn flip(path: &std::path::Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 8], offset).expect("written");
}

#[test]
fn damage_in_the_file_of_another_reaches_nobody() {
    let dir = dir();
    let (series, ids) = three(&dir);
    let image = series.store.open(ids[2]).expect("opens");
    let (block, page) = (image.ram().find("pc.ram").expect("there"), PageIndex::new(300).expect("small"));
    let offset = image.layout().get(block).and_then(|placed| placed.page_offset(page)).expect("a place");
    // The second one changed it, the third one has it from there.
    flip(&series.file(ids[1], "memory.pages"), offset + 9);
    let mut buf = keyframe_memory::ExtentBuf::new();
    let read = image.read_extent(block, page.extent(), &mut buf);
    assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");
    let unwhole = make_whole(&series.store, ids[2], &NEVER, &through).expect_err("refused");
    assert!(matches!(unwhole, Error::Damaged { .. }), "{unwhole:?}");
    assert_eq!(series.store.keeping(ids[2]).expect("looked"), Some(Keeping::Shared));
    flip(&series.file(ids[1], "memory.pages"), offset + 9);
    series.assert_intact();
}

#[test]
fn a_map_that_is_wrong_is_refused_and_nothing_is_given_back() {
    let dir = dir();
    let (mut series, ids) = three(&dir);
    let map = series.file(ids[2], "memory.map");
    let good = fs::read(&map).expect("read");
    for bad in [vec![], good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat(), vec![7; good.len()]] {
        fs::write(&map, bad).expect("written");
        assert!(matches!(series.store.open(ids[2]), Err(Error::Format { .. })));
    }
    let refused = reclaim(&series.store, &NEVER).expect_err("nobody knows who needs what");
    assert!(matches!(refused, Error::Format { .. }), "{refused:?}");
    // While it cannot be read, what it may refer to is kept.
    let machine = series.machines.remove(&ids[2]).expect("there");
    keyframe_memory::sharing::keep_for_others(&series.store, ids[0], &through).expect("kept");
    series.machines.remove(&ids[0]);
    fs::remove_dir_all(series.dir_of(ids[0])).expect("removed");
    fs::write(&map, &good).expect("mended");
    series.machines.insert(ids[2], machine);
    series.reclaim();
    series.assert_intact();
    // The map of another image.
    fs::copy(series.file(ids[1], "memory.map"), &map).expect("copied");
    assert!(matches!(series.store.open(ids[2]), Err(Error::NotACouple { .. })));
    fs::write(&map, &good).expect("mended");
    for path in series.kept() {
        fs::remove_file(path).expect("removed");
    }
    let missing = series.store.open(ids[2]).expect_err("a file is missing");
    assert!(matches!(missing, Error::NoSegment { id, .. } if id == ids[0]), "{missing:?}");
}

/// Who has an image open reads on while it is made whole and what it refers to is deleted.
#[test]
fn an_open_image_reads_on_while_names_change() {
    let dir = dir();
    let (mut series, ids) = three(&dir);
    let image = series.store.open(ids[2]).expect("opens");
    make_whole(&series.store, ids[1], &NEVER, &through).expect("whole");
    series.delete(ids[1], false);
    series.delete(ids[0], false);
    let memory = &series.machines[&ids[2]].memory[0];
    let (block, mut buf) = (image.ram().find("pc.ram").expect("there"), keyframe_memory::ExtentBuf::new());
    for (n, bytes) in memory.chunks(EXTENT_SIZE).enumerate() {
        let extent = ExtentIndex::new(n as u64).expect("small");
        assert!(image.read_extent(block, extent, &mut buf).expect("intact") == bytes, "extent {n}");
    }
}

/// What may happen to a machine's images. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Operation {
    Take { on: usize, pages: Vec<u64>, fill: u8, dies: Option<usize> },
    Delete { which: usize, dies: bool },
    Whole { which: usize, dies: Option<usize> },
    Reclaim,
}

fn operation() -> impl Strategy<Value = Operation> {
    let dies = proptest::option::weighted(0.3, 0..3_usize);
    prop_oneof![
        4 => (0..2_usize, proptest::collection::vec(0..120_u64, 0..40), 0..4_u8, dies.clone())
            .prop_map(|(on, pages, fill, dies)| Operation::Take { on, pages, fill, dies }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, dies)| Operation::Delete { which, dies }),
        1 => (any::<usize>(), dies).prop_map(|(which, dies)| Operation::Whole { which, dies }),
        1 => Just(Operation::Reclaim),
    ]
}

fn carry_out(series: &mut Series, operation: Operation) {
    let ids: Vec<_> = series.machines.keys().copied().collect();
    match operation {
        Operation::Take { on, pages, fill, dies } => {
            // On the youngest or the one before it: two branches.
            let older = ids.iter().rev().nth(on).or(ids.last()).copied();
            let before = older
                .map_or_else(|| Machine::new(&[("pc.ram", 120), ("vga", 5)], 7), |id| series.machines[&id].clone());
            let id = series.take(&later(&before, pages, fill));
            let Some(older) = older else { return };
            let steps = [Step::MapWritten, Step::Renamed, Step::Punched];
            let died = |step: Step| match dies.and_then(|n| steps.get(n)) {
                Some(last) => until(*last)(step),
                None => Ok(()),
            };
            // It may also find nothing to share; the model does not care.
            let _ = share(&series.store, id, older, &NEVER, &died);
        }
        Operation::Delete { which, dies } if !ids.is_empty() => series.delete(ids[which % ids.len()], dies),
        Operation::Whole { which, dies } if !ids.is_empty() => {
            let steps = [Step::WholeWritten, Step::WholeNamed, Step::MapRemoved];
            let died = |step: Step| match dies.and_then(|n| steps.get(n)) {
                Some(last) => until(*last)(step),
                None => Ok(()),
            };
            let _ = make_whole(&series.store, ids[which % ids.len()], &NEVER, &died);
        }
        Operation::Delete { .. } | Operation::Whole { .. } => {}
        Operation::Reclaim => series.reclaim(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_image_is_as_it_was_taken(
        operations in proptest::collection::vec(operation(), 1..14),
    ) {
        let dir = dir();
        let mut series = Series::new(dir.path());
        for operation in operations {
            carry_out(&mut series, operation);
            series.assert_intact();
        }
        for id in series.machines.keys().copied().collect::<Vec<_>>() {
            series.delete(id, false);
        }
        prop_assert!(series.kept().is_empty(), "files that nobody refers to: {:?}", series.kept());
    }
}
