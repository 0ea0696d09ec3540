//! What is said about points binds whoever forgets.

mod common;

use common::{Places as _, image, put};
use keyframe_repo::mark::{Statement, mark, release, standings};
use keyframe_repo::{Error, PruneOptions, Retention, Run, decide, forget, keep_marked};
use keyframe_store::Store as _;
use keyframe_types::Timestamp;

fn in_a_day() -> Timestamp {
    Timestamp::now().after("1d".parse().unwrap())
}

#[test]
fn what_is_held_or_locked_is_not_forgotten() {
    let (store, repository) = common::repository();
    let bytes = image(1, 1 << 20);
    let points: Vec<_> = (0..4).map(|_| put(&repository, "disk", &bytes, None)).collect();
    mark(&repository, points[0].id, Statement::Hold { reason: Some("trial".to_owned()) }).unwrap();
    mark(&repository, points[1].id, Statement::Lock { until: in_a_day() }).unwrap();
    mark(&repository, points[2].id, Statement::Hold { reason: None }).unwrap();
    release(&repository, points[2].id).unwrap();
    for point in &points[..2] {
        assert!(matches!(forget(&repository, &[points[2].id, point.id]), Err(Error::Usage { .. })));
    }
    assert_eq!(repository.points().unwrap().0.len(), 4, "none of them is gone");
    let retention = Retention { last: 1, ..Retention::default() };
    let mut decisions = decide(&retention, &repository.points().unwrap().0);
    keep_marked(&mut decisions, &standings(&repository).unwrap().0, Timestamp::now());
    let reasons = |at: usize| {
        decisions.iter().find(|decision| decision.id == points[at].id).map(|decision| decision.reasons.clone()).unwrap()
    };
    assert_eq!((reasons(0), reasons(1), reasons(2)), (vec!["held"], vec!["locked"], vec![]));
    let places = store.places().len();
    let dry = PruneOptions { dry_run: true, ..PruneOptions::default() };
    forget(&repository, &[points[2].id]).unwrap();
    let told = mark(&repository, points[2].id, Statement::Hold { reason: None });
    assert!(matches!(told, Err(Error::Usage { .. } | Error::NoPoint { .. })), "nobody believes that it is held");
    keyframe_repo::prune(&repository, dry, Run::silent()).unwrap();
    assert!(store.places().len() >= places, "a dry run removes nothing");
    // Its marks go with a prune, the others' stay.
    keyframe_repo::prune(&repository, PruneOptions::default(), Run::silent()).unwrap();
    let (standings, damaged) = standings(&repository).unwrap();
    assert!(damaged.is_empty());
    assert_eq!(standings.len(), 2);
    assert!(matches!(release(&repository, points[2].id), Err(Error::NoPoint { .. })));
}

#[test]
fn who_marks_while_another_forgets_is_told() {
    let (store, repository) = common::repository();
    let point = put(&repository, "disk", &image(1, 1 << 20), None);
    // Between the first look of the one who forgets and the deletion.
    let begun = mark(&repository, point.id, Statement::Forgetting).unwrap();
    let told = mark(&repository, point.id, Statement::Hold { reason: None });
    assert!(matches!(told, Err(Error::Usage { .. })));
    // Although it was told so, its hold is there: who forgets sees it in the second look.
    assert!(matches!(forget(&repository, &[point.id]), Err(Error::Usage { .. })));
    assert_eq!(repository.points().unwrap().0.len(), 1);
    store.delete(&keyframe_repo::ids::ObjectKind::Mark.name(begun.id).unwrap()).unwrap();
    mark(&repository, point.id, Statement::Lock { until: in_a_day() }).unwrap();
}

#[test]
fn a_mark_that_cannot_be_read_could_be_a_lock() {
    let (store, repository) = common::repository();
    let point = put(&repository, "disk", &image(1, 1 << 20), None);
    let other = put(&repository, "disk", &image(2, 1 << 20), None);
    mark(&repository, point.id, Statement::Lock { until: in_a_day() }).unwrap();
    let place = store.places().into_iter().find(|place| place.to_string().starts_with("marks/")).unwrap();
    // More than parity mends.
    assert!(store.spoil(&place, |bytes| bytes.iter_mut().skip(100).for_each(|byte| *byte = !*byte)));
    assert!(forget(&repository, &[other.id]).is_err());
    assert_eq!(repository.points().unwrap().0.len(), 2);
}
