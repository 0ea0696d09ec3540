//! The fuzz target of hostile stores, on its seeds: they get to where it matters, or fuzzing begins in front of a closed door.

#[path = "../../../fuzz/hostile_store.rs"]
mod hostile_store;

use std::path::Path;

use hostile_store::{Reached, attack};

fn seed(name: &str) -> Reached {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/hostile_store").join(name);
    attack(&std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

#[test]
fn untouched_everything_works() {
    let reached = attack(b"");
    assert!(reached.backed_up && reached.images_read == 1 && reached.pruned.is_some(), "{reached:?}");
    assert!(reached.checked.unwrap().problems.is_empty());
}

#[test]
fn every_seed_ends_and_is_tested_here() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/hostile_store");
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let tested = [
        "condemned",
        "config",
        "deep-tree",
        "index",
        "key",
        "node-behind-frame",
        "pending",
        "point",
        "spoiled",
        "tree",
        "tree-of-missing-pages",
    ];
    assert_eq!(names, tested);
    for name in tested {
        let reached = seed(name);
        // A configuration in another's place opens or does not; everything else leaves the way in open.
        assert!(reached.opened || name == "config", "{name}: {reached:?}");
    }
}

#[test]
fn points_of_made_up_trees_are_read_through_to_their_pages() {
    for (name, images, frames) in [("tree", 2, 4), ("deep-tree", 2, 4)] {
        let reached = seed(name);
        assert_eq!(reached.images_read, images, "{name}: {reached:?}");
        assert!(reached.checked.as_ref().unwrap().problems.is_empty(), "{name}: {reached:?}");
        assert!(reached.checked.as_ref().unwrap().frames >= frames, "{name}: {reached:?}");
        assert!(reached.pruned.is_some() && reached.backed_up, "{name}: {reached:?}");
    }
}

#[test]
fn what_is_wrong_in_a_tree_is_found_where_it_is() {
    for (name, why) in
        [("tree-of-missing-pages", "is in no pack"), ("node-behind-frame", "behind the end of its frame")]
    {
        let reached = seed(name);
        let told = reached.unreadable.iter().any(|error| error.contains(why) || error.contains("MissingFrame"));
        assert!(told && reached.unreadable.len() == 1, "{name}: {reached:?}");
        assert!(
            reached.checked.as_ref().unwrap().problems.iter().any(|problem| problem.serious),
            "{name}: {reached:?}"
        );
    }
}

#[test]
fn records_of_condemned_packs_and_pending_points_are_gone_by() {
    let condemned = seed("condemned").pruned.unwrap();
    // The packs in it are condemned already: nobody condemns them again.
    assert!(condemned.plan.unused.is_empty() && condemned.plan.rewrite.is_empty(), "{condemned:?}");
    let pending = seed("pending").pruned.unwrap();
    assert!(
        pending.plan.abandoned.is_empty() && pending.plan.unused.is_empty(),
        "what it refers to is kept: {pending:?}"
    );
}

#[test]
fn an_index_of_what_is_not_there_is_told_and_hurts_nobody() {
    let reached = seed("index");
    let checked = reached.checked.as_ref().unwrap();
    assert!(checked.packs == 3 && checked.problems.iter().any(|problem| !problem.serious), "{reached:?}");
    assert!(reached.images_read == 1 && reached.backed_up, "{reached:?}");
}

#[test]
fn spoiled_objects_are_told() {
    let reached = seed("spoiled");
    assert!(!reached.verified.as_ref().unwrap().problems.is_empty(), "{reached:?}");
    assert!(!reached.repaired.as_ref().unwrap().mended.is_empty(), "{reached:?}");
}
