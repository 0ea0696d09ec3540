//! The S3 store against a server: what every store does, and what goes wrong on the way.

use std::time::Duration;

use keyframe_store::{Error, ObjectName, Put, RetryStore, S3Store, Store, conformance};
use keyframe_test_s3::{Server, Trouble};

fn store(server: &Server, prefix: &str) -> S3Store {
    S3Store::new(&format!("s3://bucket{prefix}"), server.environment()).unwrap()
}

fn retrying(server: &Server) -> RetryStore<S3Store> {
    RetryStore::new(store(server, "/x"), 3, Duration::from_millis(1))
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

#[test]
fn it_conforms() {
    let server = Server::start();
    for prefix in ["", "/some/where"] {
        let store = store(&server, prefix);
        assert!(store.creates_exclusively().unwrap());
        conformance::run(&store).unwrap();
        assert!(store.list("probe").unwrap().is_empty(), "trying leaves nothing behind");
    }
}

#[test]
fn listings_go_over_pages() {
    let server = Server::start();
    let dir = server.bucket_dir().join("x/many");
    std::fs::create_dir_all(&dir).unwrap();
    for n in 0..2500 {
        std::fs::write(dir.join(format!("{n:05}")), b"x").unwrap();
    }
    let listed = store(&server, "/x").list("many").unwrap();
    assert_eq!(listed.len(), 2500);
    assert!(listed.is_sorted_by(|a, b| a.name < b.name));
}

#[test]
fn a_server_that_ignores_conditions_is_found_out() {
    let server = Server::start();
    server.ignore_conditions();
    let store = store(&server, "/x");
    assert!(!store.creates_exclusively().unwrap());
    conformance::run(&store).unwrap();
}

#[test]
fn a_server_that_knows_no_conditions_is_found_out_and_can_be_used() {
    let server = Server::start();
    server.refuse_conditions();
    assert!(!store(&server, "/x").creates_exclusively().unwrap());
    conformance::run(&store(&server, "/y")).unwrap();
}

#[test]
fn what_passes_is_tried_again() {
    let server = Server::start();
    let store = retrying(&server);
    let large = vec![7; 1 << 20];
    store.put(&name("a/1"), &large, Put::Replace).unwrap();
    for trouble in [Trouble::Busy, Trouble::Unheard, Trouble::CutShort] {
        server.meet(&[trouble]);
        assert_eq!(store.get(&name("a/1"), 1 << 20).unwrap(), large, "{trouble:?}");
        server.meet(&[trouble]);
        assert_eq!(store.get_range(&name("a/1"), 5, 500_000).unwrap(), large[5..500_005], "{trouble:?}");
        server.meet(&[trouble]);
        assert_eq!(store.list("a").unwrap().len(), 1, "{trouble:?}");
        server.meet(&[trouble]);
        store.put(&name("a/2"), b"x", Put::Replace).unwrap();
        server.meet(&[trouble]);
        store.delete(&name("a/2")).unwrap();
    }
    server.meet(&[Trouble::Busy; 3]);
    assert!(store.get(&name("a/1"), 1 << 20).unwrap_err().is_transient(), "after three times it is given up");
}

#[test]
fn without_trying_again_trouble_is_told_as_it_is() {
    let server = Server::start();
    let store = store(&server, "/x");
    store.put(&name("a/1"), &[7; 100_000], Put::Replace).unwrap();
    for trouble in [Trouble::Busy, Trouble::CutShort] {
        server.meet(&[trouble]);
        let error = store.get(&name("a/1"), 1 << 20).unwrap_err();
        assert!(error.is_transient(), "{trouble:?}: {error}");
    }
    server.meet(&[Trouble::Full]);
    let error = store.put(&name("a/2"), b"x", Put::Create).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
}

#[test]
fn a_creation_that_was_carried_out_unheard_succeeds() {
    let server = Server::start();
    let store = retrying(&server);
    server.meet(&[Trouble::Unheard]);
    store.put(&name("a/1"), b"ours", Put::Create).unwrap();
    server.meet(&[Trouble::Unheard]);
    let error = store.put(&name("a/1"), b"theirs", Put::Create).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

#[test]
fn silence_ends() {
    let server = Server::start();
    let environment = server.environment().into_iter().chain([("AWS_READ_TIMEOUT".to_owned(), "1 second".to_owned())]);
    let store = S3Store::new("s3://bucket/x", environment).unwrap();
    store.put(&name("a/1"), b"x", Put::Replace).unwrap();
    server.meet(&[Trouble::Silent(Duration::from_secs(20))]);
    let begun = std::time::Instant::now();
    let error = store.get(&name("a/1"), 1).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(RetryStore::new(store, 2, Duration::ZERO).get(&name("a/1"), 1).unwrap(), b"x");
}

#[test]
fn wrong_credentials_and_absent_buckets_are_refused_and_no_secret_is_told() {
    let server = Server::start();
    let mut environment = server.environment();
    for (name, value) in &mut environment {
        if name == "AWS_SECRET_ACCESS_KEY" {
            *value = "another-secret".to_owned();
        }
    }
    let stranger = S3Store::new("s3://bucket/x", environment).unwrap();
    let elsewhere = S3Store::new("s3://nowhere/x", server.environment()).unwrap();
    for store in [stranger, elsewhere] {
        for error in [store.put(&name("a/1"), b"x", Put::Create).unwrap_err(), store.list("a").unwrap_err()] {
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret") && !text.contains("AKID"), "{text}");
        }
        assert!(!format!("{store:?}").contains(server.secret()));
    }
}

#[test]
fn plain_http_is_spoken_only_where_the_endpoint_says_so() {
    let server = Server::start();
    let environment =
        server.environment().into_iter().map(|(name, value)| (name, value.replace("http://", "https://")));
    let environment = environment.chain([("AWS_ALLOW_HTTP".to_owned(), "true".to_owned())]);
    let store = S3Store::new("s3://bucket/x", environment).unwrap();
    assert!(store.list("a").is_err());
    assert_eq!(server.requests(), 0);
}
