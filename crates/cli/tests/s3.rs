//! A repository in a bucket, with the cache before it.

mod bench;

use std::fs;

use bench::{Bench, files, page};
use keyframe_test_s3::{Server, Trouble};

fn bench(server: &Server) -> Bench {
    let mut bench = Bench::bare();
    server.environment().iter().for_each(|(name, value)| bench.set(name, value));
    bench.set("KEYFRAME_REPO", "s3://bucket/some/where");
    bench.set("KEYFRAME_KEY_FILE", &bench.path("key").display().to_string());
    bench
}

#[test]
fn a_bucket_is_used_as_a_directory_is_and_read_once() {
    let server = Server::start();
    let bench = bench(&server);
    bench.run(&["repo", "info"]).with(10);
    bench.run(&["repo", "init"]).with(0);
    let truth = bench.image("disk", &[1, 2, 0, 3]);
    bench.run(&["image", "put", "disk", "disk", "--tag", "one"]).with(0);
    bench.image("disk", &[1, 2, 4, 3]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    let read = |arguments: &[&str]| {
        let before = server.bytes_out();
        bench.run(arguments).with(0);
        server.bytes_out() - before
    };
    let cold = read(&["image", "get", "disk@one", "cold", "--no-cache"]);
    read(&["image", "get", "disk@one", "first"]);
    let warm = read(&["image", "get", "disk@one", "warm"]);
    assert!(warm < cold, "{warm} of {cold} bytes came from the server");
    for name in ["cold", "first", "warm"] {
        assert!(fs::read(bench.path(name)).unwrap() == truth, "{name}");
    }
    // Damage in the cache harms nobody, and it may go at any time.
    let cache = bench.path("home/.cache/keyframe");
    assert!(!files(&cache).is_empty());
    files(&cache).iter().for_each(|path| fs::write(path, "damaged").unwrap());
    bench.run(&["image", "get", "disk@one", "damaged-cache"]).with(0);
    fs::remove_dir_all(&cache).unwrap();
    bench.run(&["image", "get", "disk@one", "no-cache"]).with(0);
    // Whether the store is whole is asked of the store.
    bench.run(&["repo", "check"]).with(0);
    let index = files(&server.bucket_dir().join("some/where/index"));
    fs::write(&index[0], "damaged").unwrap();
    bench.run(&["repo", "verify"]).with(3);
    bench.run(&["repo", "repair"]).with(0);
    bench.run(&["repo", "verify"]).with(0);
    bench.run(&["repo", "forget", "--keep-last", "1"]).with(0);
    bench.run(&["repo", "prune", "--waste", "0", "--grace", "0"]).with(0);
    bench.run(&["image", "get", "disk@one", "gone"]).with(10);
    bench.run(&["image", "get", "disk", "out"]).with(0);
    assert!(fs::read(bench.path("out")).unwrap() == [1, 2, 4, 3].map(page).concat());
}

#[test]
fn trouble_on_the_way_passes() {
    let server = Server::start();
    let bench = bench(&server);
    bench.run(&["repo", "init"]).with(0);
    let truth = bench.image("disk", &[1, 2]);
    server.meet(&[Trouble::Busy, Trouble::Unheard]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    server.meet(&[Trouble::CutShort]);
    bench.run(&["image", "get", "disk", "out"]).with(0);
    assert!(fs::read(bench.path("out")).unwrap() == truth);
}

#[test]
fn a_server_that_ignores_conditional_writes_is_refused_unless_nobody_else_is_there() {
    let server = Server::start();
    server.ignore_conditions();
    let bench = bench(&server);
    let refused = bench.run(&["repo", "init"]).with(1);
    assert!(refused.err.contains("--alone") && refused.err.contains("nothing was changed"), "{}", refused.err);
    bench.run(&["repo", "info"]).with(10);
    bench.run(&["repo", "init", "--alone"]).with(0);
    let refused = bench.run(&["repo", "key", "add", "--new-key-file", "writer", "--rights", "write"]).with(1);
    assert!(refused.err.contains("If-None-Match"), "{}", refused.err);
    bench.image("disk", &[1, 2]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    bench.run(&["repo", "check"]).with(0);
}

#[test]
fn who_we_are_may_be_a_credential_of_systemd() {
    let server = Server::start();
    let mut bench = bench(&server);
    bench.unset("AWS_ACCESS_KEY_ID");
    bench.unset("AWS_SECRET_ACCESS_KEY");
    bench.run(&["repo", "init"]).with(1);
    fs::create_dir(bench.path("credentials")).unwrap();
    bench.set("CREDENTIALS_DIRECTORY", &bench.path("credentials").display().to_string());
    for (name, value) in server.environment().into_iter().filter(|(name, _)| name.contains("_KEY")) {
        fs::write(bench.path("credentials").join(name), format!("{value}\n")).unwrap();
    }
    bench.run(&["repo", "init"]).with(0);
    bench.run(&["repo", "info"]).with(0);
    // A variable is nearer.
    bench.set("AWS_SECRET_ACCESS_KEY", "wrong");
    bench.run(&["repo", "info"]).with(1);
}

#[test]
fn no_secret_is_told() {
    let server = Server::start();
    let mut bench = bench(&server);
    bench.set("AWS_ACCESS_KEY_ID", "AKIDWRONG");
    for verbosity in ["-q", "-vv"] {
        let ended = bench.run(&[verbosity, "repo", "info"]);
        assert_eq!(ended.status, 1, "{ended:?}");
        let text = format!("{}{}", ended.out, ended.err);
        assert!(!text.contains(server.secret()) && !text.contains("AKIDWRONG"), "{text}");
    }
}
