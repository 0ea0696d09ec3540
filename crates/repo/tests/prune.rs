//! Prune while others write.

mod common;

use std::time::Duration;

use common::{Slice, image, put, restore};
use keyframe_repo::{Error, PruneOptions, Rights, Run, Session, WriteOptions, forget, prune};
use keyframe_store::Store as _;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn options(grace: Duration) -> PruneOptions {
    PruneOptions { grace, ..PruneOptions::default() }
}

#[test]
fn space_is_freed_and_what_is_in_use_stays() {
    let (store, repository) = common::repository();
    let mut bytes = image(1, 24 << 20);
    let first = put(&repository, "disk", &bytes, None);
    // Every second page changes: the first point's packs are half in use.
    for (n, page) in bytes.chunks_exact_mut(4096).enumerate().filter(|(n, _)| n % 2 == 0) {
        page[..8].copy_from_slice(&(n as u64 + 1).to_le_bytes());
    }
    let second = put(&repository, "disk", &bytes, None);
    forget(&repository, &[first.id]).unwrap();
    let full = store.total_bytes();
    let dry = prune(&repository, PruneOptions { dry_run: true, ..options(DAY) }, Run::silent()).unwrap();
    assert!(!dry.plan.rewrite.is_empty() && store.total_bytes() == full);
    let moved = prune(&repository, options(DAY), Run::silent()).unwrap();
    assert!(moved.freed_bytes == 0 && moved.pending_bytes > 0 && store.total_bytes() > full, "{moved:?}");
    assert_eq!(restore(&repository, &second), bytes);
    // Too early: nothing goes.
    store.pass(DAY / 2);
    assert_eq!(prune(&repository, options(DAY), Run::silent()).unwrap().freed_bytes, 0);
    store.pass(DAY);
    let swept = prune(&repository, options(DAY), Run::silent()).unwrap();
    assert!(swept.freed_bytes >= moved.pending_bytes, "{swept:?}");
    assert!(store.total_bytes() < full * 8 / 10, "{} of {full}", store.total_bytes());
    assert_eq!(restore(&repository, &second), bytes);
    let settled = prune(&repository, options(DAY), Run::silent()).unwrap();
    assert!(settled.plan.rewrite.is_empty(), "what was rewritten is not rewritten again: {settled:?}");
    let again = put(&repository, "disk", &bytes, None);
    assert_eq!(again.totals.new_bytes, 0, "moved pages are known");
}

#[test]
fn a_backup_that_refers_to_what_a_prune_took_is_no_point() {
    let (store, repository) = common::repository();
    let bytes = image(1, 8 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let mut session = Session::begin(&repository, None, WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    forget(&repository, &[first.id]).unwrap();
    prune(&repository, options(Duration::ZERO), Run::silent()).unwrap();
    let error = session.commit("late", Vec::new(), serde_json::Value::Null).unwrap_err();
    assert!(matches!(error, Error::Fenced), "{error}");
    assert!(repository.points().unwrap().0.is_empty());
    assert!(store.list("packs").unwrap().is_empty());
    let point = put(&repository, "late", &bytes, None);
    assert_eq!(restore(&repository, &point), bytes);
}

#[test]
fn a_backup_whose_point_before_is_pruned_says_so() {
    let (_, repository) = common::repository();
    let bytes = image(1, 40 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let mut session = Session::begin(&repository, Some(first.clone()), WriteOptions::default()).unwrap();
    forget(&repository, &[first.id]).unwrap();
    prune(&repository, options(Duration::ZERO), Run::silent()).unwrap();
    let changes = [std::ops::Range { start: 0, end: 4096 }];
    let error = session.add_image("image", &Slice(&bytes), Some(&changes), Run::silent()).unwrap_err();
    assert!(matches!(error, Error::Fenced), "{error}");
    // Without a prune it is what it looks like.
    let point = put(&repository, "disk", &bytes, None);
    let index = repository.index(keyframe_repo::index::Hooks::Skip).unwrap();
    for pack in index.packs().iter().filter(|pack| pack.content == keyframe_repo::pack::Content::Nodes) {
        let name = keyframe_repo::ids::ObjectKind::Pack.name(pack.id).unwrap();
        repository.store().delete(&name).unwrap();
    }
    let mut session = Session::begin(&repository, Some(point), WriteOptions::default()).unwrap();
    let error = session.add_image("image", &Slice(&bytes), Some(&changes), Run::silent()).unwrap_err();
    assert!(matches!(error, Error::Store(keyframe_store::Error::NotFound { .. })), "{error}");
}

#[test]
fn a_backup_across_a_prune_with_grace_keeps_what_it_found() {
    let (store, repository) = common::repository();
    let bytes = image(1, 8 << 20);
    let first = put(&repository, "disk", &bytes, None);
    let mut session = Session::begin(&repository, None, WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    let point = session.commit("other", Vec::new(), serde_json::Value::Null).unwrap();
    forget(&repository, &[first.id]).unwrap();
    for _ in 0..3 {
        prune(&repository, options(DAY), Run::silent()).unwrap();
        store.pass(2 * DAY);
    }
    assert_eq!(restore(&repository, &point), bytes);
}

#[test]
fn condemned_packs_that_are_needed_again_are_spared() {
    let (store, repository) = common::repository();
    let bytes = image(1, 8 << 20);
    let first = put(&repository, "disk", &bytes, None);
    // A backup finds the pages before they are condemned, and is committed before they are removed; its own look at the
    // condemned packs comes too early to notice.
    let mut session = Session::begin(&repository, None, WriteOptions::default()).unwrap();
    session.add_image("image", &Slice(&bytes), None, Run::silent()).unwrap();
    let point = session.commit("late", Vec::new(), serde_json::Value::Null).unwrap();
    let name = keyframe_repo::ids::ObjectKind::Point.name(point.id).unwrap();
    let hidden = store.get(&name, 1 << 20).unwrap();
    store.delete(&name).unwrap();
    forget(&repository, &[first.id]).unwrap();
    prune(&repository, options(DAY), Run::silent()).unwrap();
    store.put(&name, &hidden, keyframe_store::Put::Create).unwrap();
    store.pass(2 * DAY);
    let report = prune(&repository, options(DAY), Run::silent()).unwrap();
    assert!(report.plan.spare.len() == 2, "pages and nodes: {report:?}");
    assert_eq!(restore(&repository, &point), bytes);
}

#[test]
fn who_may_only_write_neither_forgets_nor_prunes() {
    let (store, repository) = common::repository();
    let key = common::key();
    repository.add_key(&key, Rights::Write, "writer").unwrap();
    let writer = keyframe_repo::Repository::open(store.clone(), &key).unwrap();
    let bytes = image(1, 8 << 20);
    let point = put(&writer, "disk", &bytes, None);
    let second = put(&writer, "disk", &bytes, None);
    assert_eq!(second.totals.new_bytes, 0, "a writer deduplicates");
    for error in [
        common::try_restore(&writer, &point).unwrap_err(),
        forget(&writer, &[point.id]).unwrap_err(),
        prune(&writer, options(DAY), Run::silent()).map(drop).unwrap_err(),
        writer.add_key(&common::key(), Rights::Full, "more").map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotAllowed { .. }), "{error}");
    }
    assert_eq!(restore(&repository, &point), bytes);
    let verifier = common::key();
    repository.add_key(&verifier, Rights::Verify, "verifier").unwrap();
    let verifier = keyframe_repo::Repository::open(store, &verifier).unwrap();
    let options = keyframe_repo::VerifyOptions { data: false, percent: 100, seed: 0, after: None };
    let report = keyframe_repo::verify(&verifier, options, Run::silent()).unwrap();
    assert!(report.problems.is_empty() && report.objects > 3, "{report:?}");
    assert!(verifier.points().is_err());
}
