//! Images go in and come out the same.

mod common;

use std::sync::Arc;

use common::{Noise, Places, image, passphrase, put, restore};
use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Parameters, Repository, Run, Session, WriteOptions};
use keyframe_store::{MemoryStore, Store as _};

#[test]
fn images_of_every_shape_come_back() {
    let (_, repository) = common::repository();
    for (n, len) in [0, 1, 4096, 4097, (16 << 20) - 1, (16 << 20) + 1, 40 << 20].into_iter().enumerate() {
        let bytes = image(n as u64, len);
        let point = put(&repository, &format!("shape{n}"), &bytes, None);
        assert_eq!(restore(&repository, &point), bytes, "{len} bytes");
    }
}

#[test]
fn what_did_not_change_is_not_stored_again() {
    let (store, repository) = common::repository();
    let mut bytes = image(1, 64 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let before = store.total_bytes();
    bytes[20 << 20..(20 << 20) + 40_000].fill(9);
    let second = put(&repository, "disk", &bytes, None);
    assert!(second.totals.new_bytes <= 48 * 1024, "{:?}", second.totals);
    assert!(store.total_bytes() - before < 40_000, "{}", store.total_bytes() - before);
    assert_eq!(restore(&repository, &second), bytes);
    assert_ne!(restore(&repository, &first), bytes);
}

#[test]
fn pages_that_moved_are_found() {
    let (_, repository) = common::repository();
    let bytes = image(1, 32 << 20);
    put(&repository, "disk", &bytes, None);
    let mut moved = bytes[5 * 4096..].to_vec();
    moved.extend_from_slice(&bytes[..5 * 4096]);
    let point = put(&repository, "other", &moved, None);
    assert_eq!(point.totals.new_bytes, 0);
    assert_eq!(restore(&repository, &point), moved);
}

#[test]
fn with_a_list_of_changes_only_those_are_read() {
    let (_, repository) = common::repository();
    let mut bytes = image(1, 48 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let changes = [100_000..100_010, (40 << 20)..(40 << 20) + 8192];
    for change in &changes {
        bytes[change.start as usize..change.end as usize].fill(0xee);
    }
    // Not in the list: by its maker's word it did not happen.
    let truth = bytes.clone();
    bytes[30 << 20] ^= 1;
    let point = put(&repository, "disk", &bytes, Some(&changes));
    assert_eq!(point.totals.scanned_bytes, 3 * 4096);
    assert_eq!(restore(&repository, &point), truth);
    assert_ne!(first.images[0].root, point.images[0].root);
}

#[test]
fn images_that_grow_or_shrink_come_back() {
    let (_, repository) = common::repository();
    let whole = image(3, 40 << 20);
    put(&repository, "disk", &whole[..10 << 20], None);
    for len in [10 << 20, (30 << 20) + 5, 40 << 20] {
        let grown = put(&repository, "disk", &whole[..len], Some(&[0..100, 8000..8001]));
        assert_eq!(restore(&repository, &grown), &whole[..len], "{len}");
    }
    let shrunk = put(&repository, "disk", &whole[..5000], None);
    assert_eq!(restore(&repository, &shrunk), &whole[..5000]);
    let mut longer = whole[..5000].to_vec();
    longer.resize(20 << 20, 0);
    let grown = put(&repository, "disk", &longer, Some(&[]));
    assert_eq!(restore(&repository, &grown), longer, "nothing of the longer image shines through");
}

#[test]
fn any_range_is_read() {
    let (_, repository) = common::repository();
    let bytes = image(7, (20 << 20) + 777);
    let point = put(&repository, "disk", &bytes, None);
    let index = repository.index(Hooks::Skip).unwrap();
    let (repository, index) = (Arc::new(repository), Arc::new(index));
    let reader = ImageReader::new(repository, index, point.images[0].clone(), 4 << 20).unwrap();
    let mut noise = Noise(5);
    for _ in 0..500 {
        let start = noise.below(bytes.len());
        let len = noise.below(300_000).min(bytes.len() - start);
        let mut got = vec![1; len];
        reader.read_at(start as u64, &mut got).unwrap();
        assert!(got == bytes[start..start + len], "{len} at {start}");
    }
    assert!(reader.read_at(bytes.len() as u64, &mut [0]).is_err());
}

#[test]
fn the_store_learns_nothing() {
    let (store, repository) = common::repository();
    let bytes: Vec<u8> = b"a sentence that nobody else may read. ".iter().copied().cycle().take(1 << 20).collect();
    put(&repository, "machine-of-the-boss", &bytes, None);
    for place in store.places() {
        let stored = common::get(&store, &place);
        for secret in [&b"sentence"[..], b"machine-of-the-boss"] {
            assert!(!stored.windows(secret.len()).any(|window| window == secret), "{place} tells {secret:?}");
        }
    }
}

#[test]
fn a_wrong_passphrase_opens_nothing_and_changes_nothing() {
    let (store, _) = common::repository();
    let before = store.places();
    let error = Repository::open(store.clone(), &passphrase("wrong")).unwrap_err();
    assert_eq!(error.kind(), keyframe_repo::Kind::WrongKey);
    assert_eq!(store.places(), before);
}

#[test]
fn a_failing_image_leaves_no_point_and_no_hanging_thread() {
    let (_, repository) = common::repository();
    struct Failing;
    impl keyframe_repo::source::Source for Failing {
        fn bytes(&self) -> u64 {
            200 << 20
        }
        fn extents(&self) -> keyframe_repo::Result<Vec<std::ops::Range<u64>>> {
            Ok(vec![std::ops::Range { start: 0, end: 200 << 20 }])
        }
        fn reader(&self) -> keyframe_repo::Result<Box<dyn keyframe_repo::source::SourceReader + Send + '_>> {
            Ok(Box::new(FailingReader))
        }
    }
    struct FailingReader;
    impl keyframe_repo::source::SourceReader for FailingReader {
        fn read(&mut self, at: u64, into: &mut [u8]) -> keyframe_repo::Result<()> {
            into.fill((at >> 20) as u8 | 1);
            if at == 77 << 20 { Err(keyframe_repo::Error::ImageShort) } else { Ok(()) }
        }
    }
    let mut session = Session::begin(&repository, None, WriteOptions { threads: 3 }).unwrap();
    let error = session.add_image("disk", &Failing, None, Run::silent()).unwrap_err();
    assert!(matches!(error, keyframe_repo::Error::ImageShort), "{error:?}");
    assert!(repository.points().unwrap().0.is_empty());
}

#[test]
fn a_second_repository_is_not_made_over_the_first() {
    let (store, _) = common::repository();
    let error = Repository::init(store, &passphrase("x"), Parameters::default()).unwrap_err();
    assert!(matches!(error, keyframe_repo::Error::RepositoryExists { .. }), "{error}");
    let fresh = Arc::new(MemoryStore::new());
    assert_eq!(Repository::open(fresh, &passphrase("x")).unwrap_err().kind(), keyframe_repo::Kind::NotFound);
}

#[test]
fn threads_read_at_random_and_damage_is_named() {
    let (store, repository) = common::repository();
    let bytes = image(11, 40 << 20);
    let point = put(&repository, "disk", &bytes, None);
    let index = Arc::new(repository.index(Hooks::Skip).unwrap());
    let repository = Arc::new(repository);
    let reader = |cache| {
        let (repository, index) = (Arc::clone(&repository), Arc::clone(&index));
        ImageReader::new(repository, index, point.images[0].clone(), cache).unwrap()
    };
    // A cache that holds almost nothing, and one that holds everything.
    for reader in [reader(0), reader(64 << 20)] {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (reader, bytes) = (&reader, &bytes);
                scope.spawn(move || {
                    let mut noise = Noise(thread);
                    for _ in 0..100 {
                        let start = noise.below(bytes.len());
                        let len = noise.below(20_000).min(bytes.len() - start);
                        let mut got = vec![1; len];
                        reader.read_at(start as u64, &mut got).unwrap();
                        assert!(got == bytes[start..start + len], "{len} at {start}");
                    }
                });
            }
        });
    }
    // One pack of pages goes. What was in it cannot be read, and everything else can.
    let packs = store.list("packs").unwrap();
    let largest = packs.iter().max_by_key(|entry| entry.len).unwrap();
    store.spoil(&largest.name, |bytes| bytes[5000..].fill(0));
    let reader = reader(1 << 20);
    let mut lost = 0;
    for page in 0..bytes.len() / 4096 {
        let mut got = [1; 4096];
        match reader.read_at(page as u64 * 4096, &mut got) {
            Ok(()) => assert!(got == bytes[page * 4096..][..4096], "page {page}"),
            Err(error) => {
                lost += 1;
                let text = error.to_string();
                let named = format!("bytes {} to {} of the image image cannot be read", page * 4096, (page + 1) * 4096);
                assert_eq!(text, named);
                let source = std::error::Error::source(&error).unwrap().to_string();
                assert!(source.contains(largest.name.leaf()), "{source}");
            }
        }
    }
    assert!(lost > 100, "{lost}");
}

#[test]
fn a_reader_tells_pages_from_zeros() {
    let (_, repository) = common::repository();
    // Across the ends of leaves (16 MiB), and not ending with a page.
    let mut bytes = vec![0; (40 << 20) + 100];
    for page in [1, 2, 3, 4094, 4095, 4096, 4097, 9000, 10_240] {
        let end = bytes.len().min((page + 1) * 4096);
        bytes[page * 4096..end].fill(page as u8 | 1);
    }
    let point = put(&repository, "disk", &bytes, None);
    let index = Arc::new(repository.index(Hooks::Skip).unwrap());
    let reader = ImageReader::new(Arc::new(repository), index, point.images[0].clone(), 0).unwrap();
    let len = bytes.len() as u64;
    let mut at = 0;
    let mut told = Vec::new();
    for (len, there) in reader.parts(0..len).unwrap() {
        told.push((at, len, there));
        at += len;
    }
    assert_eq!(at, len, "{told:?}");
    let there: Vec<_> = told.iter().filter(|(.., there)| *there).map(|(at, len, _)| (at / 4096, *len)).collect();
    assert_eq!(there, [(1, 3 * 4096), (4094, 4 * 4096), (9000, 4096), (10_240, 100)]);
    assert_eq!(reader.parts(5000..6000).unwrap(), [(1000, true)], "within a page");
    assert!(reader.parts(10..10).is_err() && reader.parts(0..len + 1).is_err());
}
