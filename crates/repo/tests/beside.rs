//! Several at work in one repository: prunes, backups, a repair, makers of repositories; clocks that differ.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Between, Slice, image, key, put, restore, try_put};
use keyframe_repo::ids::ObjectKind;
use keyframe_repo::{
    Error, Parameters, PruneOptions, Repository, Rights, Run, Session, WriteOptions, check, forget, prune, repair,
};
use keyframe_store::{CacheStore, MemoryStore, ObjectName, Put, Store};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn options(grace: Duration) -> PruneOptions {
    PruneOptions { grace, waste_percent: 1, dry_run: false }
}

fn is_sound(repository: &Repository) {
    let report = check(repository, Run::silent()).unwrap();
    assert!(report.problems.iter().all(|problem| !problem.serious), "{report:?}");
}

#[test]
fn two_prunes_at_once_do_no_harm() {
    for round in 0..8 {
        let unlock = key();
        let store = Arc::new(MemoryStore::new());
        let repository = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
        let mut bytes = image(round, 12 << 20);
        let first = put(&repository, "disk", &bytes, None);
        bytes.chunks_exact_mut(4096).step_by(2).for_each(|page| page[0] ^= 0x55);
        let kept = put(&repository, "disk", &bytes, None);
        forget(&repository, &[first.id]).unwrap();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let repository = Repository::open(store.clone(), &unlock).unwrap();
                        match prune(&repository, options(DAY), Run::silent()) {
                            // The other one was faster every time: nothing is lost, and it says so.
                            Ok(_) | Err(Error::Overtaken) => {}
                            Err(error) => panic!("round {round}: {error}"),
                        }
                    });
                }
            });
            assert!(restore(&repository, &kept) == bytes, "round {round}");
            store.pass(2 * DAY);
        }
        is_sound(&repository);
        // What both copied is there once in the end.
        for _ in 0..3 {
            prune(&repository, options(DAY), Run::silent()).unwrap();
            store.pass(2 * DAY);
        }
        let single = Arc::new(MemoryStore::new());
        let alone = Repository::init(single.clone(), &key(), Parameters::default()).unwrap();
        put(&alone, "disk", &bytes, None);
        assert!(
            store.total_bytes() < single.total_bytes() * 11 / 10,
            "{} {}",
            store.total_bytes(),
            single.total_bytes()
        );
    }
}

#[test]
fn backups_and_prunes_at_once_lose_nothing() {
    backups_and_prunes(&|store| store);
}

#[test]
fn backups_and_prunes_with_caches_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let number = AtomicU32::new(0);
    // A cache for each host.
    backups_and_prunes(&|store| {
        let place = dir.path().join(number.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(CacheStore::new(store, &place, 64 << 20))
    });
}

fn backups_and_prunes(host: &(dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Sync)) {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    let (stop, made, fenced) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let truth = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let repository = Repository::open(host(store.clone()), &unlock).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // Half of what is there goes. Time passes by jumps that are longer than some backups and shorter than others.
                let (points, _) = repository.points().unwrap();
                let go: Vec<_> = points.iter().filter(|point| point.tags.is_empty()).step_by(2).map(|p| p.id).collect();
                forget(&repository, &go).unwrap();
                match prune(&repository, options(DAY), Run::silent()) {
                    Ok(_) | Err(Error::Overtaken) => {}
                    Err(error) => panic!("{error}"),
                }
                store.pass(DAY * 2 / 3);
            }
        });
        let writers: Vec<_> = (0..2_u64)
            .map(|writer| {
                let (store, unlock, truth, made, fenced) = (&store, &unlock, &truth, &made, &fenced);
                scope.spawn(move || {
                    let repository = Repository::open(host(store.clone()), unlock).unwrap();
                    for round in 0..25 {
                        // Images come again, so that packs are found that a prune is about to take.
                        let bytes = image(round % 5, 3 << 20);
                        let previous = repository.points().unwrap().0.pop().filter(|_| round % 3 == 0);
                        let point = Session::begin(&repository, previous, WriteOptions { threads: 1 }).and_then(
                            |mut session| {
                                session.add_image("image", &Slice(&bytes), None, Run::silent())?;
                                session.commit(&format!("writer{writer}"), vec!["kept".into()], serde_json::Value::Null)
                            },
                        );
                        match point {
                            Ok(point) => {
                                made.fetch_add(1, Ordering::Relaxed);
                                truth.lock().unwrap().push((point, bytes));
                            }
                            Err(Error::Fenced) => {
                                fenced.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error}: {error:?}"),
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    let truth = truth.into_inner().unwrap();
    assert!(made.into_inner() >= 10, "backups come through; {} did not", fenced.into_inner());
    for _ in 0..3 {
        for (point, bytes) in &truth {
            assert!(restore(&repository, point) == *bytes, "{point:?}");
        }
        prune(&repository, options(DAY), Run::silent()).unwrap();
        store.pass(2 * DAY);
    }
    is_sound(&repository);
}

#[test]
fn a_point_that_is_taken_back_was_never_seen() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    let bytes = image(1, 8 << 20);
    let first = put(&admin, "disk", &bytes, None);
    let points_written = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&points_written);
    let at_write = Box::new(move |name: &ObjectName| {
        counter.fetch_add(u32::from(name.is_in("points")), Ordering::Relaxed);
    });
    let watched = Arc::new(Between { inner: store.clone(), at_write });
    let writer = Repository::open(watched, &unlock).unwrap();
    let mut session = Session::begin(&writer, None, WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    forget(&admin, &[first.id]).unwrap();
    prune(&admin, options(Duration::ZERO), Run::silent()).unwrap();
    let error = session.commit("late", Vec::new(), serde_json::Value::Null).unwrap_err();
    assert!(matches!(error, Error::Fenced), "{error}");
    assert_eq!(points_written.load(Ordering::Relaxed), 0, "not for a moment");
    assert!(store.list("pending").unwrap().is_empty());
}

#[test]
fn a_pending_point_is_pruned_round_and_a_dead_one_goes() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Arc::new(Repository::init(store.clone(), &unlock, Parameters::default()).unwrap());
    let bytes = image(1, 8 << 20);
    let first = put(&admin, "disk", &bytes, None);
    // At the moment at which the point is pending and not there yet, everything that it refers to is up for removal.
    let (pruner, forgotten) = (Arc::clone(&admin), first.id);
    let at_write = Box::new(move |name: &ObjectName| {
        if name.is_in("points") {
            forget(&pruner, &[forgotten]).unwrap();
            prune(&pruner, options(Duration::ZERO), Run::silent()).unwrap();
        }
    });
    let writer = Repository::open(Arc::new(Between { inner: store.clone(), at_write }), &unlock).unwrap();
    let point = try_put(&writer, "disk", &bytes, None).unwrap();
    assert!(restore(&admin, &point) == bytes);
    is_sound(&admin);
    // One that was left behind.
    let name = ObjectKind::Pending.name(first.id).unwrap();
    store.put(&name, b"torn", Put::Create).unwrap();
    prune(&admin, options(Duration::ZERO), Run::silent()).unwrap();
    assert_eq!(store.list("pending").unwrap().len(), 1, "it could be a running backup's");
    store.pass(Duration::from_secs(7200));
    let report = prune(&admin, options(Duration::ZERO), Run::silent()).unwrap();
    assert_eq!(report.plan.abandoned, [first.id]);
    assert!(store.list("pending").unwrap().is_empty());
    assert!(restore(&admin, &point) == bytes);
}

/// Lets somebody else work when an area is listed for the first time.
#[derive(Debug)]
struct AtList {
    inner: Arc<dyn Store>,
    area: &'static str,
    once: AtomicBool,
    work: Work,
}

struct Work(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

impl Store for AtList {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> keyframe_store::Result<()> {
        self.inner.put(name, bytes, mode)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
        self.inner.get(name, limit)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
        self.inner.get_range(name, offset, len)
    }
    fn get_range_often(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
        self.inner.get_range_often(name, offset, len)
    }
    fn stat(&self, name: &ObjectName) -> keyframe_store::Result<keyframe_store::Entry> {
        self.inner.stat(name)
    }
    fn list(&self, area: &str) -> keyframe_store::Result<Vec<keyframe_store::Entry>> {
        if area == self.area && self.once.swap(false, Ordering::Relaxed) {
            (self.work.0)();
        }
        self.inner.list(area)
    }
    fn delete(&self, name: &ObjectName) -> keyframe_store::Result<()> {
        self.inner.delete(name)
    }
    fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
        self.inner.creates_exclusively()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_prune_looks_anew_for_what_was_written_after_it_read_the_index() {
    // A point, and one that is pending, of packs that are in an index object which the prune has not seen.
    for pending in [false, true] {
        let unlock = key();
        let (store, dir) = (Arc::new(MemoryStore::new()), tempfile::tempdir().unwrap());
        let admin = Arc::new(Repository::init(store.clone(), &unlock, Parameters::default()).unwrap());
        let (first, shared) = (image(1, 8 << 20), image(2, 8 << 20));
        let gone = put(&admin, "gone", &first, None);
        put(&admin, "kept", &shared, None);
        let (writer, bytes, clock) = (Arc::clone(&admin), [&first[..], &image(3, 4 << 20)].concat(), store.clone());
        let expected = bytes.clone();
        // When packs are listed, the index is read already.
        let work = move || {
            let point = put(&writer, "late", &bytes, None);
            if pending {
                let (of, to) = (ObjectKind::Point, ObjectKind::Pending);
                let unsealed = writer.point(point.id).unwrap();
                clock.delete(&of.name(point.id).unwrap()).unwrap();
                writer.announce_for_tests(&unsealed).unwrap();
                assert!(clock.stat(&to.name(point.id).unwrap()).is_ok());
            }
            forget(&writer, &[gone.id]).unwrap();
        };
        let cached = Arc::new(CacheStore::new(store.clone() as Arc<dyn Store>, dir.path(), 1 << 30));
        let work = Work(Box::new(work));
        let watched = Arc::new(AtList { inner: cached, area: "packs", once: AtomicBool::new(true), work });
        let pruner = Repository::open(watched, &unlock).unwrap();
        let report = prune(&pruner, options(DAY), Run::silent()).unwrap();
        // The tree of the one that was forgotten goes, and none of the pages that the new one shares with it.
        let plan = &report.plan;
        assert_eq!((plan.unused.len(), plan.rewrite.len(), plan.missing.len()), (1, 0, 0), "{pending}: {report:?}");
        assert!(plan.condemned_bytes < 10_000, "{pending}: {report:?}");
        let name = if pending { ObjectKind::Pending } else { ObjectKind::Point };
        assert_eq!(store.list(name.area()).unwrap().len(), if pending { 1 } else { 2 });
        if !pending {
            let late = admin.find_point("late").unwrap();
            assert!(restore(&admin, &late) == expected);
        }
    }
}

#[test]
fn packs_that_are_missed_stay_in_the_index_and_are_told() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    let bytes = image(1, 8 << 20);
    let point = put(&admin, "disk", &bytes, None);
    let other = put(&admin, "other", &image(2, 8 << 20), None);
    // As a disk that is not mounted: the pages are away, the nodes are not.
    let index = admin.index(keyframe_repo::index::Hooks::Skip).unwrap();
    let pages = index.packs().iter().filter(|pack| pack.content == keyframe_repo::pack::Content::Pages);
    let away: Vec<_> = pages.map(|pack| ObjectKind::Pack.name(pack.id).unwrap()).collect();
    let kept: Vec<_> = away.iter().map(|name| (name, common::get(&store, name))).collect();
    away.iter().for_each(|name| store.delete(name).unwrap());
    forget(&admin, &[other.id]).unwrap();
    for _ in 0..3 {
        let report = prune(&admin, options(DAY), Run::silent()).unwrap();
        assert_eq!(report.plan.missing.len(), 1, "{report:?}");
        store.pass(2 * DAY);
    }
    assert!(check(&admin, Run::silent()).unwrap().problems.iter().any(|problem| problem.serious));
    kept.iter().for_each(|(name, bytes)| store.put(name, bytes, Put::Create).unwrap());
    assert!(restore(&admin, &point) == bytes, "it is all there again");
    is_sound(&admin);
}

#[test]
fn who_may_not_delete_still_backs_up() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    #[derive(Debug)]
    struct AppendOnly(Arc<MemoryStore>);
    impl Store for AppendOnly {
        fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> keyframe_store::Result<()> {
            assert_eq!(mode, Put::Create, "{name} is replaced");
            self.0.put(name, bytes, mode)
        }
        fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
            self.0.get(name, limit)
        }
        fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
            self.0.get_range(name, offset, len)
        }
        fn stat(&self, name: &ObjectName) -> keyframe_store::Result<keyframe_store::Entry> {
            self.0.stat(name)
        }
        fn list(&self, area: &str) -> keyframe_store::Result<Vec<keyframe_store::Entry>> {
            self.0.list(area)
        }
        fn delete(&self, _: &ObjectName) -> keyframe_store::Result<()> {
            Err(keyframe_store::Error::Refused { reason: "nobody deletes here".to_owned() })
        }
        fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
            Ok(true)
        }
        fn describe(&self) -> String {
            "append-only".to_owned()
        }
    }
    let writer_key = key();
    admin.add_key(&writer_key, Rights::Write, "writer").unwrap();
    let writer = Repository::open(Arc::new(AppendOnly(store.clone())), &writer_key).unwrap();
    let bytes = image(1, 4 << 20);
    let point = put(&writer, "disk", &bytes, None);
    assert!(restore(&admin, &point) == bytes);
    let report = prune(&admin, options(DAY), Run::silent()).unwrap();
    assert_eq!(report.plan.abandoned, [point.id], "what the writer could not remove");
    assert_eq!(admin.points().unwrap().0.len(), 1);
}

#[test]
fn a_repair_does_not_index_what_a_prune_takes_meanwhile() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Arc::new(Repository::init(store.clone(), &unlock, Parameters::default()).unwrap());
    let bytes = image(1, 8 << 20);
    // A backup that was broken off before its index: its packs are in none.
    let mut session = Session::begin(&admin, None, WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    drop(session);
    assert!(!store.list("packs").unwrap().is_empty() && store.list("index").unwrap().is_empty());
    let (pruner, once) = (Arc::clone(&admin), AtomicBool::new(true));
    let at_write = Box::new(move |name: &ObjectName| {
        if name.is_in("index") && once.swap(false, Ordering::Relaxed) {
            prune(&pruner, options(Duration::ZERO), Run::silent()).unwrap();
        }
    });
    let repairer = Repository::open(Arc::new(Between { inner: store.clone(), at_write }), &unlock).unwrap();
    let report = repair(&repairer, Run::silent()).unwrap();
    assert!(store.list("packs").unwrap().is_empty(), "the prune took them");
    assert_eq!(report.reindexed, 0, "{report:?}");
    assert!(store.list("index").unwrap().is_empty(), "and no index names them");
    let point = put(&admin, "disk", &bytes, None);
    assert!(restore(&admin, &point) == bytes);
}

#[test]
fn a_repair_beside_a_backup_and_a_prune_loses_nothing() {
    let unlock = key();
    let store = Arc::new(MemoryStore::new());
    let admin = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    let bytes = image(2, 6 << 20);
    let first = put(&admin, "disk", &bytes, None);
    let mut session = Session::begin(&admin, Some(first.clone()), WriteOptions::default()).unwrap();
    let other = image(3, 6 << 20);
    session.add_image("image", &Slice(&other), None, Run::silent()).unwrap();
    for entry in store.list("index").unwrap() {
        store.spoil(&entry.name, |bytes| bytes.truncate(100));
    }
    let report = repair(&admin, Run::silent()).unwrap();
    assert!(report.reindexed >= 4, "the running backup's packs too: {report:?}");
    let second = session.commit("disk", Vec::new(), serde_json::Value::Null).unwrap();
    for _ in 0..3 {
        prune(&admin, options(DAY), Run::silent()).unwrap();
        store.pass(2 * DAY);
        assert!(restore(&admin, &first) == bytes && restore(&admin, &second) == other);
    }
    is_sound(&admin);
}

#[test]
fn clocks_may_differ_by_any_amount() {
    // The store's clock is years away from this host's, in both directions; only it decides.
    for offset in [Duration::ZERO, Duration::from_secs(30 * 365 * 24 * 3600)] {
        let unlock = key();
        let store = Arc::new(MemoryStore::new());
        store.pass(offset);
        let repository = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
        let bytes = image(1, 6 << 20);
        let first = put(&repository, "disk", &bytes, None);
        let kept = put(&repository, "disk", &image(2, 6 << 20), None);
        forget(&repository, &[first.id]).unwrap();
        assert!(prune(&repository, options(DAY), Run::silent()).unwrap().pending_bytes > 0);
        assert_eq!(prune(&repository, options(DAY), Run::silent()).unwrap().freed_bytes, 0, "no time has passed");
        store.pass(DAY - Duration::from_secs(1));
        assert_eq!(prune(&repository, options(DAY), Run::silent()).unwrap().freed_bytes, 0, "not enough");
        store.pass(Duration::from_secs(2));
        assert!(prune(&repository, options(DAY), Run::silent()).unwrap().freed_bytes > 0);
        assert!(restore(&repository, &kept) == image(2, 6 << 20));
    }
}

#[test]
fn of_several_who_make_a_repository_one_succeeds() {
    for _ in 0..10 {
        let store = Arc::new(MemoryStore::new());
        let unlock = key();
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Repository::init(store.clone(), &unlock, Parameters::default())))
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
        });
        let [made] = made.as_slice() else { panic!("{} were made", made.len()) };
        let opened = Repository::open(store.clone(), &unlock).unwrap();
        assert_eq!(opened.config().repository, made.config().repository);
        assert_eq!(store.list("keys").unwrap().len(), 1, "the others took their slots away");
    }
}

/// Creating replaces: a server that ignores the condition.
#[derive(Debug)]
struct Lying(MemoryStore);

impl Store for Lying {
    fn put(&self, name: &ObjectName, bytes: &[u8], _: Put) -> keyframe_store::Result<()> {
        self.0.put(name, bytes, Put::Replace)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
        self.0.get(name, limit)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
        self.0.get_range(name, offset, len)
    }
    fn stat(&self, name: &ObjectName) -> keyframe_store::Result<keyframe_store::Entry> {
        self.0.stat(name)
    }
    fn list(&self, area: &str) -> keyframe_store::Result<Vec<keyframe_store::Entry>> {
        self.0.list(area)
    }
    fn delete(&self, name: &ObjectName) -> keyframe_store::Result<()> {
        self.0.delete(name)
    }
    fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
        Ok(false)
    }
    fn describe(&self) -> String {
        "a liar".to_owned()
    }
}

#[test]
fn where_creating_is_not_exclusive_what_needs_it_is_refused() {
    let store = Arc::new(Lying(MemoryStore::new()));
    let unlock = key();
    let refused = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap_err();
    assert!(matches!(refused, Error::NotExclusive { .. }), "{refused}");
    for area in ["keys", "packs", "probe"] {
        assert!(store.list(area).unwrap().is_empty(), "nothing was written");
    }
    let repository = Repository::init_alone(store.clone(), &unlock, Parameters::default()).unwrap();
    let again = Repository::init_alone(store, &unlock, Parameters::default()).unwrap_err();
    assert!(matches!(again, Error::RepositoryExists { .. }), "{again}");
    let refused = repository.add_key(&key(), Rights::Write, "writer").unwrap_err();
    assert!(matches!(refused, Error::NotExclusive { .. }), "{refused}");
    repository.add_key(&key(), Rights::Full, "second").unwrap();
    let bytes = image(1, 4 << 20);
    let point = put(&repository, "disk", &bytes, None);
    assert!(restore(&repository, &point) == bytes);
}
