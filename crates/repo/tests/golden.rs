//! Repositories that earlier versions wrote: whole, broken, and of a version to come.
//!
//! `tests/golden/1` was made by `keyframe repo init --parity 5` and two times `image put`; in `1-broken` a pack is cut short, a
//! bit of an index object is flipped and a point is torn; `2-newer` says version 2.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::restore;
use keyframe_repo::{Error, Repository, Run, Unlock, VerifyOptions, check, repair, verify};
use keyframe_store::LocalStore;

const ALL: VerifyOptions = VerifyOptions { data: true, percent: 100, seed: 0, after: None };

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

fn open(name: &str, dir: &Path) -> keyframe_repo::Result<Repository> {
    copy(&golden(name), &dir.join("repo"));
    let key = dir.join("key");
    fs::copy(golden("key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let store = LocalStore::open(&dir.join("repo")).unwrap();
    Repository::open(Arc::new(store), &Unlock::from_file(&key).unwrap())
}

fn page(number: usize, day: usize) -> Vec<u8> {
    if number.is_multiple_of(4) {
        return vec![0; 4096];
    }
    let day = if number % 16 == 1 { day } else { 0 };
    format!("page {number} day {day} ").bytes().cycle().take(4096).collect()
}

fn image(day: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..64).flat_map(|number| page(number, day)).collect();
    bytes.extend_from_slice(b"tail");
    bytes
}

#[test]
fn format_1_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open("1", dir.path()).unwrap();
    for day in [1, 2] {
        let point = repository.find_point(&format!("golden@day{day}")).unwrap();
        assert!(restore(&repository, &point) == image(day), "day {day}");
    }
    assert!(check(&repository, Run::silent()).unwrap().problems.is_empty());
    let report = verify(&repository, ALL, Run::silent()).unwrap();
    assert!(report.problems.is_empty() && report.pages == 49 + 4, "{report:?}");
}

#[test]
fn broken_format_1_is_told_and_mended_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let repository = open("1-broken", dir.path()).unwrap();
    let report = verify(&repository, ALL, Run::silent()).unwrap();
    assert_eq!(report.problems.len(), 3, "{report:?}");
    let repaired = repair(&repository, Run::silent()).unwrap();
    assert!(repaired.mended.iter().any(|object| object.starts_with("index")), "{repaired:?}");
    let left = verify(&repository, ALL, Run::silent()).unwrap();
    assert_eq!(left.problems.len(), repaired.problems.len(), "{left:?}");
    assert!(left.problems.iter().any(|problem| problem.object.starts_with("packs")), "{left:?}");
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = open("2-newer", dir.path()).unwrap_err();
    assert!(matches!(error, Error::Version { found: 2, known: 1, .. }), "{error}");
}
