//! A crash, or another fault, at every single write: every committed point restores, the next backup and prune work.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Noise, key, try_put, try_restore};
use keyframe_repo::{
    Parameters, Point, PruneOptions, Repository, Run, Unlock, VerifyOptions, check, forget, prune, repair, verify,
};
use keyframe_store::fault::{Fault, FaultyStore};
use keyframe_store::{MemoryStore, Store};

const HOUR: Duration = Duration::from_secs(3600);
const NAMES: [&str; 2] = ["alpha", "beta"];

/// A small image, drawn from a state that later images are drawn from too: they share pages.
fn next_image(noise: &mut Noise, image: &mut [u8]) {
    for _ in 0..1 + noise.below(6) {
        let page = noise.below(image.len() / 4096) * 4096;
        match noise.below(3) {
            0 => image[page..page + 4096].fill(0),
            1 => image[page..page + 4096].fill(noise.below(256) as u8),
            _ => image[page..page + 4096]
                .chunks_exact_mut(8)
                .for_each(|bytes| bytes.copy_from_slice(&noise.next().to_le_bytes())),
        }
    }
}

/// What was told to be stored.
type Truth = BTreeMap<String, Vec<u8>>;

/// Works on a repository until something fails. Points that were told to exist are remembered.
fn work(repository: &Repository, clock: &MemoryStore, seed: u64, truth: &mut Truth) -> keyframe_repo::Result<()> {
    let mut noise = Noise(seed);
    let mut image = vec![0; 40 * 4096];
    for _ in 0..6 {
        match noise.below(5) {
            0 => {
                let (points, _) = repository.points()?;
                if let Some(point) = points.get(noise.below(points.len())) {
                    // From the moment it is asked for, both are right: there, or not.
                    truth.remove(&point.id.to_string());
                    forget(repository, &[point.id])?;
                }
            }
            1 => {
                let grace = if noise.below(2) == 0 { Duration::ZERO } else { HOUR };
                prune(repository, PruneOptions { grace, waste_percent: 1, dry_run: false }, Run::silent())?;
                clock.pass(HOUR / 2);
            }
            _ => {
                next_image(&mut noise, &mut image);
                let point = try_put(repository, NAMES[noise.below(2)], &image, None)?;
                truth.insert(point.id.to_string(), image.clone());
            }
        }
    }
    Ok(())
}

fn all_restore(repository: &Repository, truth: &Truth, what: &str) {
    let (points, damaged) = repository.points().unwrap();
    assert!(damaged.is_empty(), "{what}: {damaged:?}");
    for point in &points {
        let bytes = try_restore(repository, point).unwrap_or_else(|error| panic!("{what}: {point:?}: {error}"));
        if let Some(truth) = truth.get(&point.id.to_string()) {
            assert!(bytes == *truth, "{what}: {} came back different", point.id);
        }
    }
    for id in truth.keys() {
        assert!(points.iter().any(|point: &Point| point.id.to_string() == *id), "{what}: {id} is gone");
    }
    let report = check(repository, Run::silent()).unwrap();
    assert!(report.problems.iter().all(|problem| !problem.serious), "{what}: {:?}", report.problems);
}

fn fresh(unlock: &Unlock) -> (Arc<MemoryStore>, Truth) {
    let store = Arc::new(MemoryStore::new());
    let repository = Repository::init(store.clone(), unlock, Parameters::default()).unwrap();
    let mut truth = Truth::new();
    work(&repository, &store, 77, &mut truth).unwrap();
    (store, truth)
}

/// One run: work with one fault, then look, go on, look again.
fn simulate(start: &MemoryStore, truth: &Truth, unlock: &Unlock, fault: Fault, at: u64, seed: u64) -> bool {
    let what = format!("{fault:?} at write {at} with seed {seed}");
    let (store, mut truth) = (Arc::new(start.copy()), truth.clone());
    let faulty = Arc::new(FaultyStore::new(store.clone(), fault, at));
    let repository = Repository::open(faulty.clone() as Arc<dyn Store>, unlock).unwrap();
    let before = truth.clone();
    let outcome = work(&repository, &store, seed, &mut truth);
    if outcome.is_err() && matches!(fault, Fault::CrashAfter | Fault::Unheard) {
        // A removal may have happened although nobody heard of it; what was forgotten is no longer in the truth.
        truth.retain(|id, _| before.contains_key(id) || truth_is_there(&store, unlock, id));
    }
    let repository = Repository::open(store.clone(), unlock).unwrap();
    all_restore(&repository, &truth, &what);
    store.pass(2 * HOUR);
    work(&repository, &store, seed + 1, &mut truth).unwrap_or_else(|error| panic!("{what}: {error}"));
    prune(&repository, PruneOptions { grace: HOUR, ..Default::default() }, Run::silent()).unwrap();
    store.pass(2 * HOUR);
    prune(&repository, PruneOptions { grace: HOUR, ..Default::default() }, Run::silent()).unwrap();
    all_restore(&repository, &truth, &what);
    faulty.writes() > at
}

fn truth_is_there(store: &Arc<MemoryStore>, unlock: &Unlock, id: &str) -> bool {
    let repository = Repository::open(store.clone(), unlock).unwrap();
    repository.points().unwrap().0.iter().any(|point| point.id.to_string() == id)
}

#[test]
fn every_committed_point_survives_a_crash_at_every_write() {
    let unlock = key();
    let (start, truth) = fresh(&unlock);
    let of_seed = |seed: u64| {
        let mut runs = 0;
        for fault in [Fault::Crash, Fault::CrashAfter, Fault::Refused, Fault::Unheard, Fault::Full] {
            for at in 0.. {
                runs += 1;
                if !simulate(&start, &truth, &unlock, fault, at, seed * 100) {
                    break;
                }
            }
        }
        runs
    };
    let of_seed = &of_seed;
    let runs: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| scope.spawn(move || (1..=24).filter(|seed| seed % 4 == n).map(of_seed).sum::<u32>()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(runs > 2000, "{runs} runs");
}

#[test]
fn a_torn_or_lost_write_is_found_or_harmless() {
    let unlock = key();
    let (start, truth) = fresh(&unlock);
    let (mut runs, mut found) = (0, 0);
    for seed in 1..=4 {
        for fault in [Fault::Torn, Fault::Lost] {
            for at in 0..40 {
                let (store, mut truth) = (Arc::new(start.copy()), truth.clone());
                let faulty = Arc::new(FaultyStore::new(store.clone(), fault, at));
                let repository = Repository::open(faulty as Arc<dyn Store>, &unlock).unwrap();
                let _ = work(&repository, &store, seed * 100, &mut truth);
                let repository = Repository::open(store, &unlock).unwrap();
                runs += 1;
                found += usize::from(is_sound_or_told(&repository, &truth));
            }
        }
    }
    assert!(found > 20 && runs == 320, "{found} of {runs} were found");
}

/// Whether damage was told; what is not told must be whole.
fn is_sound_or_told(repository: &Repository, truth: &Truth) -> bool {
    let options = VerifyOptions { data: true, percent: 100, seed: 0, after: None };
    let verified = verify(repository, options, Run::silent()).unwrap();
    let told = match check(repository, Run::silent()) {
        Ok(report) => !report.problems.is_empty() || !verified.problems.is_empty(),
        Err(_) => true,
    };
    let Ok((points, _)) = repository.points() else { return true };
    for point in points {
        match (try_restore(repository, &point), truth.get(&point.id.to_string())) {
            (Ok(bytes), Some(truth)) => assert!(bytes == *truth, "a point came back different"),
            (Err(error), _) => assert!(told, "{error} was not told"),
            (Ok(_), None) => {}
        }
    }
    told
}

#[test]
fn flipped_bits_in_every_object_are_found_and_mended() {
    let unlock = key();
    let (start, truth) = fresh(&unlock);
    let names = common::Places::places(&*start);
    let mut noise = Noise(9);
    for name in names.iter().cycle().take(400) {
        let store = Arc::new(start.copy());
        store.spoil(name, |bytes| {
            let at = noise.below(bytes.len());
            bytes[at] ^= 1 << noise.below(8);
        });
        let repository = Repository::open(store.clone(), &unlock).unwrap_or_else(|error| panic!("{name}: {error}"));
        let report = repair(&repository, Run::silent()).unwrap();
        assert_eq!(report.mended.len(), 1, "{name}: {report:?}");
        assert_eq!(store.get(name, 1 << 30).unwrap(), start.get(name, 1 << 30).unwrap(), "{name}");
        all_restore(&repository, &truth, name.as_str());
    }
}

#[test]
fn a_lost_index_is_made_anew_from_the_packs() {
    let unlock = key();
    let (store, truth) = fresh(&unlock);
    for (n, entry) in store.list("index").unwrap().into_iter().enumerate() {
        if n % 2 == 0 {
            store.delete(&entry.name).unwrap();
        } else {
            store.spoil(&entry.name, |bytes| bytes.truncate(100));
        }
    }
    let repository = Repository::open(store, &unlock).unwrap();
    let report = repair(&repository, Run::silent()).unwrap();
    assert!(report.reindexed > 0, "{report:?}");
    all_restore(&repository, &truth, "after the repair");
}

#[test]
fn objects_under_each_others_names_are_found() {
    let unlock = key();
    let (store, _) = fresh(&unlock);
    let packs = store.list("packs").unwrap();
    let other = store.get(&packs[1].name, 1 << 30).unwrap();
    store.put(&packs[0].name, &other, keyframe_store::Put::Replace).unwrap();
    let repository = Repository::open(store, &unlock).unwrap();
    let options = VerifyOptions { data: false, percent: 100, seed: 0, after: None };
    let report = verify(&repository, options, Run::silent()).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
}
