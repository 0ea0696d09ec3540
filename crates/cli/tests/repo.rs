//! `keyframe repo` as a person types it: every command, and what it refuses.

mod bench;

use std::fs;

use bench::{Bench, files, page, private};

/// Three points, of which the first two have pages of their own.
fn with_history() -> Bench {
    let bench = Bench::new();
    for (day, pages) in [[1, 2, 0, 3, 9], [1, 4, 0, 3, 8], [1, 4, 5, 3, 7]].into_iter().enumerate() {
        bench.image("disk", &pages);
        bench.run(&["image", "put", "disk", "disk", "--tag", &format!("day{day}")]).with(0);
    }
    bench
}

#[test]
fn a_repository_is_made_once_and_says_what_it_is() {
    let bench = with_history();
    let before = bench.contents("repo");
    let again = bench.run(&["repo", "init"]).with(2);
    assert!(again.err.contains("already") && again.err.contains("nothing was changed"), "{}", again.err);
    assert!(bench.contents("repo") == before);
    let info = bench.run(&["--json", "repo", "info"]).with(0).json();
    assert_eq!(
        (&info["schema"], &info["encrypted"], &info["points"]),
        (&"keyframe.repo-info/1".into(), &true.into(), &3.into())
    );
    assert_eq!(info["logical_bytes"], 3 * 5 * 4096);
    assert_eq!(info["unique_bytes"], 8 * 4096);
    let text = bench.run(&["repo", "info"]).with(0).out;
    assert!(text.contains("encrypted") && text.contains("full"), "{text}");
}

#[test]
fn without_encryption_it_is_said_loudly() {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_REPO", &bench.path("repo").display().to_string());
    let made = bench.run(&["repo", "init", "--no-encryption"]).with(0);
    assert!(made.err.contains("NOT encrypted"), "{}", made.err);
    assert!(bench.run(&["repo", "info"]).with(0).out.contains("NO"));
    // Also for scripts, and never beside a key.
    let mut quiet = Bench::bare();
    quiet.set("KEYFRAME_REPO", &quiet.path("repo").display().to_string());
    let made = quiet.run(&["--json", "repo", "init", "--no-encryption"]).with(0);
    assert_eq!(made.json()["encrypted"], false);
    assert!(made.err.contains("NOT encrypted"), "{}", made.err);
    quiet.run(&["repo", "init", "--no-encryption", "--key-file", "k"]).with(2);
}

#[test]
fn a_wrong_key_is_exit_12_and_changes_nothing() {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_REPO", &bench.path("repo").display().to_string());
    bench.set("KEYFRAME_PASSPHRASE", "right");
    bench.run(&["repo", "init"]).with(0);
    bench.image("disk", &[1, 2]);
    bench.run(&["image", "put", "disk", "disk"]).with(0);
    let before = bench.contents("repo");
    bench.set("KEYFRAME_PASSPHRASE", "wrong");
    let commands: [&[&str]; 12] = [
        &["repo", "info"],
        &["repo", "forget", "--keep-last", "1"],
        &["repo", "prune", "--grace", "0"],
        &["repo", "check"],
        &["repo", "verify"],
        &["repo", "repair"],
        &["repo", "key", "list"],
        &["repo", "key", "add", "--new-key-file", "new"],
        &["repo", "key", "remove", "0"],
        &["image", "put", "disk", "disk"],
        &["image", "get", "disk", "out"],
        &["image", "list"],
    ];
    for command in commands {
        let ended = bench.run(command).with(12);
        assert!(ended.err.contains("nothing was changed"), "{command:?}: {}", ended.err);
        let json = bench.run(&[&["--json"], command].concat()).with(12).json();
        assert_eq!(json["kind"], "wrong-key", "{command:?}");
    }
    assert!(bench.contents("repo") == before);
    assert!(!bench.path("out").exists());
    bench.unset("KEYFRAME_PASSPHRASE");
    bench.run(&["repo", "info"]).with(2);
}

#[test]
fn a_credential_of_systemd_opens_a_repository_as_a_file_or_a_variable_does() {
    let mut bench = Bench::bare();
    bench.set("KEYFRAME_REPO", &bench.path("repo").display().to_string());
    fs::create_dir(bench.path("credentials")).unwrap();
    bench.set("CREDENTIALS_DIRECTORY", &bench.path("credentials").display().to_string());
    private(&bench.path("credentials/KEYFRAME_PASSPHRASE"), "right\n");
    bench.run(&["repo", "init"]).with(0);
    bench.run(&["repo", "info"]).with(0);
    // A variable is nearer.
    bench.set("KEYFRAME_PASSPHRASE", "wrong");
    bench.run(&["repo", "info"]).with(12);
    bench.set("KEYFRAME_PASSPHRASE", "right");
    bench.run(&["repo", "key", "add", "--new-key-file", "key"]).with(0);
    bench.unset("KEYFRAME_PASSPHRASE");
    private(&bench.path("credentials/KEYFRAME_PASSPHRASE"), "wrong\n");
    bench.run(&["repo", "info"]).with(12);
    fs::rename(bench.path("key"), bench.path("credentials/office-key")).unwrap();
    bench.run(&["repo", "info", "--key-file", "credential:office-key"]).with(0);
    bench.run(&["repo", "info", "--key-file", "credential:../credentials/office-key"]).with(2);
    private(&bench.path("credentials/KEYFRAME_PASSPHRASE"), "\n");
    assert!(bench.run(&["repo", "info"]).with(2).err.contains("is empty"));
    fs::remove_file(bench.path("credentials/KEYFRAME_PASSPHRASE")).unwrap();
    bench.run(&["repo", "info"]).with(2);
    bench.unset("CREDENTIALS_DIRECTORY");
    let nobody = bench.run(&["repo", "info", "--key-file", "credential:office-key"]).with(2);
    assert!(nobody.err.contains("systemd hands credentials to its services alone"), "{}", nobody.err);
}

#[test]
fn there_is_nothing_where_there_is_no_repository() {
    let mut bench = Bench::bare();
    for place in ["nowhere", "sftp-less://host/x", "s3://id:secret@bucket/x"] {
        bench.set("KEYFRAME_REPO", place);
        let ended = bench.run(&["repo", "info"]);
        assert!([1, 2, 10].contains(&ended.status), "{ended:?}");
        assert!(!ended.err.contains("secret"), "{}", ended.err);
    }
    fs::create_dir(bench.path("empty")).unwrap();
    bench.set("KEYFRAME_REPO", "empty");
    bench.run(&["repo", "info"]).with(10);
    assert!(files(&bench.path("empty")).is_empty());
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let mut bench = Bench::new();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../repo/tests/golden");
    let mut copy = std::process::Command::new("cp");
    copy.arg("-r").arg(format!("{golden}/2-newer")).arg(bench.path("newer"));
    assert!(copy.status().unwrap().success());
    private(&bench.path("golden-key"), &fs::read_to_string(format!("{golden}/key")).unwrap());
    bench.set("KEYFRAME_REPO", "newer");
    bench.set("KEYFRAME_KEY_FILE", "golden-key");
    let before = bench.contents("newer");
    for command in [&["repo", "info"][..], &["repo", "repair"], &["repo", "init"], &["repo", "prune", "--grace", "0"]] {
        let ended = bench.run(command);
        assert!(ended.status == 1 || ended.status == 2, "{command:?}: {ended:?}");
        assert!(ended.err.contains("nothing was changed"), "{command:?}: {}", ended.err);
    }
    assert!(bench.run(&["repo", "info"]).with(1).err.contains("newer Keyframe"));
    assert!(bench.contents("newer") == before);
}

#[test]
fn points_are_forgotten_by_rule_and_their_space_is_freed() {
    let bench = with_history();
    assert!(bench.run(&["repo", "forget"]).with(2).err.contains("say what to keep"));
    let before = bench.contents("repo");
    let plan =
        bench.run(&["--json", "repo", "forget", "--keep-last", "1", "--keep-tag", "day0", "--dry-run"]).with(0).json();
    assert_eq!(plan["forgotten"].as_array().unwrap().len(), 1);
    assert!(bench.contents("repo") == before, "a dry run changes nothing");
    bench.run(&["repo", "forget", "--keep-last", "1", "--name", "other"]).with(0);
    assert!(bench.contents("repo") == before, "another history is not this one");
    let done = bench.run(&["--json", "repo", "forget", "--keep-last", "1"]).with(0).json();
    assert_eq!(done["forgotten"].as_array().unwrap().len(), 2);
    let plan = bench.run(&["--json", "repo", "prune", "--waste", "0", "--dry-run"]).with(0).json();
    assert!(plan["report"]["plan"]["condemned_bytes"].as_u64().unwrap() > 0, "{plan}");
    let first = bench.run(&["--json", "repo", "prune", "--waste", "0"]).with(0).json();
    assert_eq!(first["report"]["freed_bytes"], 0, "within the grace period nothing goes");
    assert!(first["report"]["pending_bytes"].as_u64().unwrap() > 0);
    let packs = files(&bench.path("repo/packs")).len();
    let second = bench.run(&["repo", "prune", "--waste", "0", "--grace", "0"]).with(0);
    assert!(second.out.contains("freed"), "{}", second.out);
    assert!(files(&bench.path("repo/packs")).len() < packs);
    assert_eq!(bench.run(&["--json", "repo", "info"]).with(0).json()["unique_bytes"], 5 * 4096);
    bench.run(&["image", "get", "disk", "out"]).with(0);
    assert!(fs::read(bench.path("out")).unwrap() == [1, 4, 5, 3, 7].map(page).concat());
    bench.run(&["repo", "check"]).with(0);
}

#[test]
fn damage_is_found_told_and_mended() {
    let bench = with_history();
    for command in ["check", "verify", "repair"] {
        assert!(bench.run(&["repo", command]).with(0).out.contains(if command == "repair" {
            "0 mended"
        } else {
            "nothing is wrong"
        }));
    }
    let pack = files(&bench.path("repo/packs")).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let whole = fs::read(&pack).unwrap();
    let mut bad = whole.clone();
    bad[600] ^= 1;
    fs::write(&pack, &bad).unwrap();
    let found = bench.run(&["--json", "repo", "verify"]).with(3).json();
    assert_eq!(found["report"]["problems"].as_array().unwrap().len(), 1, "{found}");
    bench.run(&["repo", "verify", "--no-data"]).with(3);
    let mended = bench.run(&["repo", "repair"]).with(0);
    assert!(mended.out.contains("1 mended"), "{}", mended.out);
    assert!(fs::read(&pack).unwrap() == whole);
    // Beyond what parity covers: said, with the way on.
    fs::write(&pack, &whole[..300]).unwrap();
    bench.run(&["repo", "check"]).with(3);
    let told = bench.run(&["repo", "repair"]).with(3);
    assert!(told.out.contains("1 beyond repair"), "{}", told.out);
    let failed = bench.run(&["image", "get", "disk", "out"]).with(1);
    assert!(failed.err.contains("repo repair"), "{}", failed.err);
    assert!(!files(bench.dir.path()).iter().any(|path| path.to_string_lossy().contains("/out")), "nothing is left");
    // Every index object goes: they are made anew from the packs.
    fs::write(&pack, &whole).unwrap();
    files(&bench.path("repo/index")).iter().for_each(|path| fs::remove_file(path).unwrap());
    bench.run(&["repo", "check"]).with(3);
    assert!(bench.run(&["--json", "repo", "repair"]).with(0).json()["reindexed"].as_u64().unwrap() > 0);
    bench.run(&["repo", "check"]).with(0);
    bench.run(&["image", "get", "disk@day0", "out"]).with(0);
    assert!(fs::read(bench.path("out")).unwrap() == [1, 2, 0, 3, 9].map(page).concat());
}

#[test]
fn verification_is_sampled_and_goes_on_where_it_was() {
    let bench = Bench::new();
    for n in 0..12_u8 {
        bench.image("disk", &[n + 1, n + 100]);
        bench.run(&["image", "put", &format!("disk{n}"), "disk"]).with(0);
    }
    let packs = files(&bench.path("repo/packs"));
    let sample = |arguments: &[&str]| {
        let all = [&["--json", "repo", "verify"], arguments].concat();
        bench.run(&all).with(0).json()
    };
    let half = sample(&["--percent", "50", "--seed", "7"]);
    assert_eq!(half, {
        let mut again = sample(&["--percent", "50", "--seed", "7"]);
        again["seconds"] = half["seconds"].clone();
        again
    });
    let left_out = half["report"]["left_out"].as_u64().unwrap();
    assert!((1..packs.len() as u64).contains(&left_out), "{half}");
    assert_eq!(half["seed"], 7);
    // Every pack's turn comes, with one seed or another.
    let drawn =
        |seed: u64| sample(&["--percent", "50", "--seed", &seed.to_string()])["report"]["left_out"].as_u64().unwrap();
    assert!((0..6).map(drawn).collect::<std::collections::HashSet<_>>().len() > 1);
    // In the order of ids, so what is behind one is all that is left.
    let ids: Vec<_> = packs.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let all = sample(&[])["report"]["objects"].as_u64().unwrap();
    for (done, id) in (1..).zip(&ids) {
        let rest = sample(&["--after", id]);
        assert_eq!(rest["report"]["objects"].as_u64().unwrap(), all - done, "{id}");
    }
    // Damage in front of that place is not seen again, and behind it is.
    let bad = fs::read(&packs[3]).unwrap();
    fs::write(&packs[3], &bad[..bad.len() - 1]).unwrap();
    sample(&["--after", ids[3]]);
    bench.run(&["repo", "verify", "--after", ids[2]]).with(3);
    bench.run(&["repo", "verify", "--after", "nonsense"]).with(2);
}

#[test]
fn keys_are_added_listed_and_removed() {
    let mut bench = with_history();
    let (identity, recipient) = {
        let identity = age::x25519::Identity::generate();
        use age::secrecy::ExposeSecret as _;
        (format!("# a comment\n{}\n", identity.to_string().expose_secret()), identity.to_public().to_string())
    };
    bench.run(&["repo", "key", "add", "--new-key-file", "writer", "--rights", "write", "--label", "host7"]).with(0);
    bench.run(&["repo", "key", "add", "--new-key-file", "verifier", "--rights", "verify"]).with(0);
    bench.run(&["repo", "key", "add", "--age-recipient", &recipient, "--label", "safe"]).with(0);
    bench.set("KEYFRAME_NEW_PASSPHRASE", "by heart");
    bench.run(&["repo", "key", "add"]).with(0);
    bench.run(&["repo", "key", "add", "--age-recipient", "age1nonsense"]).with(2);
    bench.run(&["repo", "key", "add", "--age-recipient", &recipient, "--new-key-file", "x"]).with(2);
    let keys = bench.run(&["--json", "repo", "key", "list"]).with(0).json();
    let keys = keys["keys"].as_array().unwrap().clone();
    let kinds: Vec<_> = keys.iter().map(|key| key["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "key file").count(), 3, "{kinds:?}");
    assert!(kinds.contains(&"passphrase") && kinds.contains(&"age"));
    assert!(bench.run(&["repo", "key", "list"]).with(0).out.contains(&recipient));
    // Each may what it may.
    bench.run(&["image", "put", "disk", "disk", "--key-file", "writer"]).with(0);
    let refused = bench.run(&["image", "get", "disk", "out", "--key-file", "writer"]).with(1);
    assert!(refused.err.contains("may not"), "{}", refused.err);
    bench.run(&["repo", "prune", "--key-file", "writer"]).with(1);
    bench.run(&["repo", "verify", "--no-data", "--key-file", "verifier"]).with(0);
    bench.run(&["image", "list", "--key-file", "verifier"]).with(1);
    // An age identity opens as a key file does, when only its owner can read it.
    private(&bench.path("identity"), &identity);
    bench.run(&["image", "get", "disk@day1", "out", "--key-file", "identity"]).with(0);
    assert!(fs::read(bench.path("out")).unwrap() == [1, 4, 0, 3, 8].map(page).concat());
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(bench.path("identity"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bench.run(&["repo", "info", "--key-file", "identity"]).with(1).err.contains("chmod 600"));
    fs::set_permissions(bench.path("identity"), fs::Permissions::from_mode(0o600)).unwrap();
    // Rotation: the first key goes, the others stay; the last full one cannot go.
    let full = |kind: &str| {
        let key = keys.iter().find(|key| key["kind"] == kind && key["rights"] == "full").unwrap();
        key["id"].as_str().unwrap().to_owned()
    };
    bench.run(&["repo", "key", "remove", &full("key file")]).with(0);
    bench.run(&["repo", "info"]).with(12);
    bench.set("KEYFRAME_KEY_FILE", "identity");
    bench.run(&["repo", "key", "remove", &full("passphrase")]).with(0);
    let last = bench.run(&["repo", "key", "remove", &full("age")]).with(2);
    assert!(last.err.contains("last key"), "{}", last.err);
    bench.run(&["repo", "key", "remove", ""]).with(2);
    bench.run(&["repo", "info"]).with(0);
}

#[test]
fn a_repository_can_be_made_for_an_age_identity() {
    use age::secrecy::ExposeSecret as _;
    let mut bench = Bench::bare();
    private(&bench.path("identity"), age::x25519::Identity::generate().to_string().expose_secret());
    bench.set("KEYFRAME_REPO", "repo");
    bench.set("KEYFRAME_KEY_FILE", "identity");
    bench.run(&["repo", "init"]).with(0);
    bench.run(&["repo", "info"]).with(0);
    private(&bench.path("identity"), age::x25519::Identity::generate().to_string().expose_secret());
    bench.run(&["repo", "info"]).with(12);
}
