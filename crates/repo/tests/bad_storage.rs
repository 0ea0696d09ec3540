//! Storage with bad sectors, and storage that lies.

mod common;

use std::sync::{Arc, Mutex};

use common::{Slice, image, key, put, restore};
use keyframe_repo::ids::ObjectKind;
use keyframe_repo::index::Hooks;
use keyframe_repo::{
    Error, Parameters, PruneOptions, Repository, Run, Session, VerifyOptions, WriteOptions, check, forget, prune,
    repair, verify,
};
use keyframe_store::{Entry, MemoryStore, ObjectName, Put, Store};

const ALL: VerifyOptions = VerifyOptions { data: true, percent: 100, seed: 0, after: None };

/// What is wrong with an object.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// These bytes cannot be read.
    BadSectors(u64, u64),
    /// It is listed, and not there.
    Lost,
    /// It is said to be so long.
    Longer(u64),
}

/// Memory, of which one object is in trouble until it is written anew.
#[derive(Debug)]
struct Bad {
    inner: MemoryStore,
    object: Mutex<Option<(ObjectName, Trouble)>>,
}

impl Bad {
    fn of(&self, name: &ObjectName) -> Option<Trouble> {
        self.object.lock().unwrap().as_ref().filter(|(bad, _)| bad == name).map(|(_, trouble)| *trouble)
    }

    fn read(&self, name: &ObjectName, from: u64, to: u64, limit: u64) -> keyframe_store::Result<()> {
        let name_text = name.to_string();
        match self.of(name) {
            Some(Trouble::BadSectors(start, end)) if from < end && start < to => {
                Err(keyframe_store::Error::Unreadable { name: name_text, source: std::io::Error::other("bad") })
            }
            Some(Trouble::Lost) => Err(keyframe_store::Error::NotFound { name: name_text }),
            Some(Trouble::Longer(len)) if len > limit => {
                Err(keyframe_store::Error::TooLarge { name: name_text, len, limit })
            }
            Some(Trouble::Longer(len)) => panic!("{len} bytes were going to be read"),
            _ => Ok(()),
        }
    }
}

impl Store for Bad {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> keyframe_store::Result<()> {
        if self.of(name).is_some() {
            *self.object.lock().unwrap() = None;
        }
        self.inner.put(name, bytes, mode)
    }
    fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
        self.read(name, 0, u64::MAX, limit)?;
        self.inner.get(name, limit)
    }
    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> keyframe_store::Result<Vec<u8>> {
        self.read(name, offset, offset + len as u64, u64::MAX - 1)?;
        self.inner.get_range(name, offset, len)
    }
    fn stat(&self, name: &ObjectName) -> keyframe_store::Result<Entry> {
        self.inner.stat(name)
    }
    fn list(&self, area: &str) -> keyframe_store::Result<Vec<Entry>> {
        let mut listed = self.inner.list(area)?;
        for entry in &mut listed {
            if let Some(Trouble::Longer(len)) = self.of(&entry.name) {
                entry.len = len;
            }
        }
        Ok(listed)
    }
    fn delete(&self, name: &ObjectName) -> keyframe_store::Result<()> {
        self.inner.delete(name)
    }
    fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
        Ok(true)
    }
    fn describe(&self) -> String {
        "bad storage".to_owned()
    }
}

/// A repository with a point; its objects.
fn start() -> (Arc<Bad>, Repository, keyframe_repo::Point, Vec<u8>) {
    let store = Arc::new(Bad { inner: MemoryStore::new(), object: Mutex::new(None) });
    let parameters = Parameters { parity_percent: 3, ..Parameters::default() };
    let repository = Repository::init(store.clone(), &key(), parameters).unwrap();
    let bytes = image(1, 30 << 20);
    let point = put(&repository, "disk", &bytes, None);
    (store, repository, point, bytes)
}

fn trouble(store: &Bad, name: &ObjectName, trouble: Trouble) {
    *store.object.lock().unwrap() = Some((name.clone(), trouble));
}

fn largest_pack(store: &Bad) -> ObjectName {
    store.inner.list("packs").unwrap().into_iter().max_by_key(|entry| entry.len).unwrap().name
}

#[test]
fn a_bad_sector_is_told_the_rest_is_verified_and_parity_mends_it() {
    let (store, repository, point, bytes) = start();
    let (pack, index) = (largest_pack(&store), store.list("index").unwrap().remove(0).name);
    let all = verify(&repository, ALL, Run::silent()).unwrap();
    for at in [300_000, 0] {
        trouble(&store, &pack, Trouble::BadSectors(at, at + 512));
        let report = verify(&repository, ALL, Run::silent()).unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert!(report.problems[0].what.contains("cannot be read"), "{report:?}");
        assert_eq!(report.objects, all.objects, "it does not end there");
        let report = repair(&repository, Run::silent()).unwrap();
        assert_eq!((report.mended.len(), report.problems.len()), (1, 0), "{report:?}");
        assert!(verify(&repository, ALL, Run::silent()).unwrap().problems.is_empty());
        assert!(restore(&repository, &point) == bytes);
    }
    // An index object that is no larger than a sector is made anew.
    trouble(&store, &index, Trouble::BadSectors(0, 512));
    assert!(check(&repository, Run::silent()).unwrap().problems[0].serious);
    let report = repair(&repository, Run::silent()).unwrap();
    assert_eq!((report.reindexed, report.problems.len()), (2, 1), "{report:?}");
    assert!(check(&repository, Run::silent()).unwrap().problems.is_empty());
    assert!(restore(&repository, &point) == bytes);
    // More than parity covers.
    trouble(&store, &pack, Trouble::BadSectors(0, 2 << 20));
    let report = repair(&repository, Run::silent()).unwrap();
    assert_eq!((report.mended.len(), report.problems.len()), (0, 1), "{report:?}");
}

#[test]
fn what_is_listed_and_not_given_is_told() {
    let (store, repository, _, _) = start();
    for name in [largest_pack(&store), store.list("index").unwrap().remove(0).name] {
        trouble(&store, &name, Trouble::Lost);
        let outcome = verify(&repository, VerifyOptions { data: false, ..ALL }, Run::silent()).unwrap();
        assert_eq!(outcome.problems.len(), 1, "{name}: {outcome:?}");
        *store.object.lock().unwrap() = None;
    }
    // One that was removed meanwhile is no problem.
    store.inner.delete(&largest_pack(&store)).unwrap();
    assert!(verify(&repository, VerifyOptions { data: false, ..ALL }, Run::silent()).unwrap().problems.is_empty());
}

#[test]
fn an_object_of_any_length_is_not_read_into_memory() {
    let (store, repository, _, _) = start();
    for name in [largest_pack(&store), store.list("index").unwrap().remove(0).name] {
        trouble(&store, &name, Trouble::Longer(1 << 40));
        let report = verify(&repository, VerifyOptions { data: false, ..ALL }, Run::silent()).unwrap();
        assert_eq!(report.problems.len(), 1, "{name}: {report:?}");
        let report = repair(&repository, Run::silent()).unwrap();
        assert_eq!(report.problems.len(), 1, "{name}: {report:?}");
        *store.object.lock().unwrap() = None;
    }
}

#[test]
fn a_check_that_cannot_reach_the_store_fails_and_tells_of_no_damage() {
    #[derive(Debug)]
    struct Away(Arc<Bad>);
    impl Store for Away {
        fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> keyframe_store::Result<()> {
            self.0.put(name, bytes, mode)
        }
        fn get(&self, name: &ObjectName, limit: u64) -> keyframe_store::Result<Vec<u8>> {
            self.0.get(name, limit)
        }
        fn get_range(&self, _: &ObjectName, _: u64, _: usize) -> keyframe_store::Result<Vec<u8>> {
            Err(keyframe_store::Error::Unavailable { reason: "the network is away".to_owned() })
        }
        fn stat(&self, name: &ObjectName) -> keyframe_store::Result<Entry> {
            self.0.stat(name)
        }
        fn list(&self, area: &str) -> keyframe_store::Result<Vec<Entry>> {
            self.0.list(area)
        }
        fn delete(&self, name: &ObjectName) -> keyframe_store::Result<()> {
            self.0.delete(name)
        }
        fn creates_exclusively(&self) -> keyframe_store::Result<bool> {
            Ok(true)
        }
        fn describe(&self) -> String {
            "away".to_owned()
        }
    }
    let store = Arc::new(Bad { inner: MemoryStore::new(), object: Mutex::new(None) });
    let unlock = key();
    let repository = Repository::init(store.clone(), &unlock, Parameters::default()).unwrap();
    put(&repository, "disk", &image(1, 4 << 20), None);
    let away = Repository::open(Arc::new(Away(store)), &unlock).unwrap();
    let error = check(&away, Run::silent()).unwrap_err();
    assert!(matches!(error, Error::Store(keyframe_store::Error::Unavailable { .. })), "{error}");
}

#[test]
fn a_page_that_was_given_up_and_is_needed_is_found_by_check() {
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::init(store.clone(), &key(), Parameters::default()).unwrap();
    let mut bytes = image(1, 8 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let hidden = common::get(&store, &ObjectKind::Point.name(first.id).unwrap());
    bytes.chunks_exact_mut(4096).step_by(2).for_each(|page| page[7] ^= 0x55);
    put(&repository, "disk", &bytes, None);
    let index = repository.index(Hooks::Skip).unwrap();
    let nodes = index.packs().iter().filter(|pack| pack.content == keyframe_repo::pack::Content::Nodes);
    let nodes: Vec<_> = nodes.map(|pack| ObjectKind::Pack.name(pack.id).unwrap()).collect();
    let nodes: Vec<_> = nodes.iter().map(|name| (name, common::get(&store, name))).collect();
    forget(&repository, &[first.id]).unwrap();
    let options = PruneOptions { grace: std::time::Duration::ZERO, ..PruneOptions::default() };
    assert!(!prune(&repository, options, Run::silent()).unwrap().plan.rewrite.is_empty());
    assert!(check(&repository, Run::silent()).unwrap().problems.is_empty());
    // A point that comes back from the dead with its tree: its frames are there, half of their pages are not.
    for (name, bytes) in nodes {
        store.put(name, &bytes, Put::Replace).unwrap();
    }
    assert_eq!(repair(&repository, Run::silent()).unwrap().reindexed, 1);
    store.put(&ObjectKind::Point.name(first.id).unwrap(), &hidden, Put::Create).unwrap();
    let report = check(&repository, Run::silent()).unwrap();
    let lacks = |problem: &keyframe_repo::Problem| problem.serious && problem.what.contains("lack pages");
    assert!(report.problems.len() == 1 && lacks(&report.problems[0]), "{report:?}");
}

#[test]
fn an_index_that_does_not_fit_its_packs_is_found_by_verify() {
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::init(store.clone(), &key(), Parameters::default()).unwrap();
    put(&repository, "disk", &image(1, 8 << 20), None);
    let index = repository.index(Hooks::Skip).unwrap();
    let mut writer = keyframe_repo::index::IndexWriter::default();
    for pack in index.packs() {
        let mut wrong = pack.clone();
        wrong.pages -= 1.min(wrong.pages);
        writer.add_record(&wrong, []);
    }
    for entry in store.list("index").unwrap() {
        store.delete(&entry.name).unwrap();
    }
    let mut place = |id, bytes: Vec<u8>| Ok(store.put(&ObjectKind::Index.name(id)?, &bytes, Put::Create)?);
    writer.write(repository.keys(), 0, &mut place).unwrap();
    let report = verify(&repository, ALL, Run::silent()).unwrap();
    assert!(
        report.problems.iter().all(|problem| problem.what.contains("the index tells something else")),
        "{report:?}"
    );
    assert_eq!(report.problems.len(), 1, "of pages: {report:?}");
}

#[test]
fn sessions_read_round_what_is_bad() {
    let (store, repository, point, bytes) = start();
    trouble(&store, &largest_pack(&store), Trouble::BadSectors(0, u64::MAX));
    let mut session = Session::begin(&repository, Some(point), WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    let second = session.commit("disk", Vec::new(), serde_json::Value::Null).unwrap();
    assert!(second.totals.new_bytes > 0, "what is in the bad pack is stored again");
    assert!(restore(&repository, &second) == bytes);
}
