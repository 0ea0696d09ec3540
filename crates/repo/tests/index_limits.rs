//! More packs than one index object takes: whoever writes an index writes several.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Slice, image, key, put, restore};
use keyframe_repo::index::{Hooks, IndexLimits};
use keyframe_repo::{
    Error, Parameters, PruneOptions, Repository, Run, Session, WriteOptions, check, forget, prune, repair,
};
use keyframe_store::{MemoryStore, Store as _};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A pack has some 300 bytes of it beside its hooks.
const LIMITS: IndexLimits = IndexLimits { body_bytes: 1000, hooks: 200 };

fn repository() -> (Arc<MemoryStore>, Repository) {
    let store = Arc::new(MemoryStore::new());
    let made = Repository::init(store.clone(), &key(), Parameters::default()).unwrap();
    (store, made.with_index_limits(LIMITS))
}

fn is_sound(repository: &Repository) {
    let report = check(repository, Run::silent()).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
}

/// Noise, so that every pack is full.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = common::Noise(seed);
    std::iter::repeat_with(|| noise.next().to_le_bytes()).flatten().take(len).collect()
}

#[test]
fn backups_prunes_and_repairs_write_as_many_index_objects_as_it_takes() {
    let (store, repository) = repository();
    let mut bytes = noise(1, 200 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let of_backup = store.list("index").unwrap();
    assert!(of_backup.len() >= 4, "{} objects of a backup", of_backup.len());
    is_sound(&repository);
    // Half of what is in most packs changes: they are rewritten, and then the index is merged.
    bytes.chunks_exact_mut(4096).step_by(2).take(20_000).for_each(|page| page[0] ^= 1);
    let second = put(&repository, "disk", &bytes, None);
    forget(&repository, &[first.id]).unwrap();
    let options = PruneOptions { grace: DAY, ..PruneOptions::default() };
    assert!(!prune(&repository, options, Run::silent()).unwrap().plan.rewrite.is_empty());
    store.pass(2 * DAY);
    assert!(!prune(&repository, options, Run::silent()).unwrap().plan.remove.is_empty());
    let of_prune = store.list("index").unwrap();
    assert!(of_prune.len() >= 4, "{} objects of a prune", of_prune.len());
    assert!(of_prune.iter().all(|entry| !of_backup.iter().any(|old| old.name == entry.name)), "all were merged");
    is_sound(&repository);
    // Full ones are not merged again and again.
    prune(&repository, options, Run::silent()).unwrap();
    assert_eq!(store.list("index").unwrap(), of_prune);
    // All of it is lost.
    of_prune.iter().for_each(|entry| store.delete(&entry.name).unwrap());
    let report = repair(&repository, Run::silent()).unwrap();
    assert!(report.reindexed > 10 && store.list("index").unwrap().len() >= 4, "{report:?}");
    is_sound(&repository);
    assert!(restore(&repository, &second) == bytes);
    // Hooks are few, but they are of all packs alike: every region is found.
    let index = repository.index(Hooks::Load).unwrap();
    assert!((50..=200).contains(&index.hooks()), "{} hooks", index.hooks());
}

#[test]
fn a_crash_between_index_objects_is_harmless() {
    use keyframe_store::fault::{Fault, FaultyStore};
    let unlock = key();
    let start = Arc::new(MemoryStore::new());
    let made = Repository::init(start.clone(), &unlock, Parameters::default()).unwrap().with_index_limits(LIMITS);
    let (old, new) = (noise(1, 60 << 20), noise(2, 90 << 20));
    let first = put(&made, "old", &old, None);
    let mut crashed = 0;
    for at in 4.. {
        let store = Arc::new(start.copy());
        let faulty = Arc::new(FaultyStore::new(store.clone(), Fault::Crash, at));
        let dying = Repository::open(faulty, &unlock).unwrap().with_index_limits(LIMITS);
        let outcome = common::try_put(&dying, "new", &new, None);
        let repository = Repository::open(store.clone(), &unlock).unwrap().with_index_limits(LIMITS);
        for _ in 0..2 {
            prune(&repository, PruneOptions { grace: DAY, ..PruneOptions::default() }, Run::silent()).unwrap();
            store.pass(2 * DAY);
        }
        is_sound(&repository);
        assert!(restore(&repository, &first) == old);
        if let Ok(point) = outcome {
            assert!(restore(&repository, &point) == new);
            break;
        }
        crashed += 1;
    }
    assert!(crashed >= 5, "{crashed}");
}

#[test]
fn after_an_image_that_failed_there_is_no_point() {
    struct Breaks<'a>(Slice<'a>);
    impl keyframe_repo::source::Source for Breaks<'_> {
        fn bytes(&self) -> u64 {
            self.0.bytes()
        }
        fn extents(&self) -> keyframe_repo::Result<Vec<std::ops::Range<u64>>> {
            self.0.extents()
        }
        fn reader(&self) -> keyframe_repo::Result<Box<dyn keyframe_repo::source::SourceReader + Send + '_>> {
            Ok(Box::new(Reader(self.0.0)))
        }
    }
    struct Reader<'a>(&'a [u8]);
    impl keyframe_repo::source::SourceReader for Reader<'_> {
        fn read(&mut self, at: u64, into: &mut [u8]) -> keyframe_repo::Result<()> {
            let end = at as usize + into.len();
            // The last piece cannot be read: pages of the others are known by then, and not stored.
            if end == self.0.len() {
                std::thread::sleep(Duration::from_millis(200));
                return Err(Error::ImageShort);
            }
            into.copy_from_slice(&self.0[at as usize..end]);
            Ok(())
        }
    }
    let (store, repository) = repository();
    let bytes = image(1, 6 << 20);
    let mut session = Session::begin(&repository, None, WriteOptions { threads: 2 }).unwrap();
    let error = session.add_image("disk0", &Breaks(Slice(&bytes)), None, Run::silent()).unwrap_err();
    assert!(matches!(error, Error::ImageShort), "{error}");
    let error = session.add_image("disk1", &Slice(&bytes), None, Run::silent()).unwrap_err();
    assert!(matches!(error, Error::Broken), "{error}");
    let error = session.commit("disk", Vec::new(), serde_json::Value::Null).unwrap_err();
    assert!(matches!(error, Error::Broken), "{error}");
    assert!(store.list("points").unwrap().is_empty() && store.list("pending").unwrap().is_empty());
}

#[test]
fn a_point_that_nobody_could_read_is_not_made() {
    let (store, repository) = repository();
    let mut session = Session::begin(&repository, None, WriteOptions::default()).unwrap();
    session.add_image("disk", &Slice(&image(1, 1 << 20)), None, Run::silent()).unwrap();
    let error = session.commit("disk", Vec::new(), serde_json::Value::String("x".repeat(5 << 20))).unwrap_err();
    assert!(matches!(error, Error::Usage { .. }), "{error}");
    assert!(store.list("points").unwrap().is_empty() && store.list("pending").unwrap().is_empty());
}

#[test]
fn a_backup_does_without_what_is_damaged_of_the_point_before() {
    let (store, repository) = repository();
    let bytes = image(1, 40 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let index = repository.index(Hooks::Skip).unwrap();
    let nodes = index.packs().iter().filter(|pack| pack.content == keyframe_repo::pack::Content::Nodes);
    for pack in nodes {
        store.delete(&keyframe_repo::ids::ObjectKind::Pack.name(pack.id).unwrap()).unwrap();
    }
    let mut session = Session::begin(&repository, Some(first), WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    let second = session.commit("disk", Vec::new(), serde_json::Value::Null).unwrap();
    assert_eq!(second.totals.new_bytes, 0, "the pages are there");
    assert!(restore(&repository, &second) == bytes);
}
