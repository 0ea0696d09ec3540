//! The tools and how each is told to do the same.

use std::path::Path;

use super::install;

/// A tool. In its lines `{dir}` is a directory of its own, `{store}` the store in it, `{image}` a file, `{tag}` its name.
pub struct Peer {
    pub name: &'static str,
    pub program: String,
    pub init: String,
    pub store: String,
    /// The same by a list of extents, `{list}`.
    pub store_by_list: Option<String>,
    /// Whether it keeps equal pieces once.
    pub deduplicates: bool,
    pub restore: Option<String>,
    pub verify: Option<String>,
}

/// All of them, Keyframe first.
pub fn peers(keyframe: &Path) -> Vec<Peer> {
    let keyframe = keyframe.display();
    let own = format!("KEYFRAME_REPO={{store}} KEYFRAME_KEY_FILE={{dir}}/key {keyframe} --quiet");
    let borg = "BORG_PASSPHRASE=x BORG_BASE_DIR={dir}/home BORG_RELOCATED_REPO_ACCESS_IS_OK=yes borg";
    let restic = "RESTIC_PASSWORD=x restic -q --no-cache -r {store}";
    let [rustic_program, bupstash_program] =
        ["rustic", "bupstash"].map(|name| install::program(name).display().to_string());
    let rustic = format!("RUSTIC_PASSWORD=x {rustic_program} --log-level error --no-progress --no-cache -r {{store}}");
    let bupstash = format!("BUPSTASH_REPOSITORY={{store}} BUPSTASH_KEY={{dir}}/key {bupstash_program}");
    let some = |text: String| Some(text);
    vec![
        Peer {
            name: "keyframe",
            program: keyframe.to_string(),
            init: format!("{own} repo init"),
            // The days are one history, the memory images another.
            store: format!("{own} image put $(echo {{tag}} | tr -d 0-9) {{image}} --tag {{tag}}"),
            store_by_list: some(format!("{own} image put day {{image}} --tag {{tag}} --changes {{list}}")),
            deduplicates: true,
            restore: some(format!("mkdir {{dir}}/out && {own} image get day@{{tag}} {{dir}}/out/image")),
            verify: some(format!("{own} repo verify")),
        },
        Peer {
            name: "borg-fixed",
            program: "borg".to_owned(),
            init: format!("{borg} init -e repokey-blake2 {{store}}"),
            store: format!(
                "{borg} create --sparse -C zstd,1 --chunker-params fixed,65536 {{store}}::{{tag}} {{image}}"
            ),
            store_by_list: None,
            deduplicates: true,
            restore: some(format!("mkdir {{dir}}/out && cd {{dir}}/out && {borg} extract --sparse {{store}}::{{tag}}")),
            verify: some(format!("{borg} check --verify-data {{store}}")),
        },
        Peer {
            name: "borg",
            program: "borg".to_owned(),
            init: format!("{borg} init -e repokey-blake2 {{store}}"),
            store: format!("{borg} create -C zstd,1 {{store}}::{{tag}} {{image}}"),
            store_by_list: None,
            deduplicates: true,
            restore: some(format!("mkdir {{dir}}/out && cd {{dir}}/out && {borg} extract --sparse {{store}}::{{tag}}")),
            verify: some(format!("{borg} check --verify-data {{store}}")),
        },
        Peer {
            name: "restic",
            program: "restic".to_owned(),
            init: format!("{restic} init --repository-version 2"),
            store: format!("{restic} backup --compression auto --tag {{tag}} {{image}}"),
            store_by_list: None,
            deduplicates: true,
            restore: some(format!("{restic} restore latest --tag {{tag}} --target {{dir}}/out")),
            verify: some(format!("{restic} check --read-data")),
        },
        Peer {
            name: "rustic",
            program: rustic_program,
            init: format!("{rustic} init"),
            store: format!("{rustic} backup --tag {{tag}} {{image}}"),
            store_by_list: None,
            deduplicates: true,
            restore: some(format!(
                "mkdir {{dir}}/out && {rustic} restore --filter-tags {{tag}} latest:{{image}} {{dir}}/out/image"
            )),
            verify: some(format!("{rustic} check --read-data")),
        },
        Peer {
            name: "bupstash",
            program: bupstash_program,
            init: format!("{bupstash} init && {bupstash} new-key -o {{dir}}/key"),
            store: format!("{bupstash} put -q --no-send-log name={{tag}} {{image}}"),
            store_by_list: None,
            deduplicates: true,
            restore: some(format!("mkdir {{dir}}/out && {bupstash} get -q name={{tag}} > {{dir}}/out/image")),
            verify: None,
        },
        Peer {
            name: "casync",
            program: "casync".to_owned(),
            init: "mkdir {store}".to_owned(),
            store: "casync make --store={store}/castr {store}/{tag}.caibx {image}".to_owned(),
            store_by_list: None,
            deduplicates: true,
            restore: some(
                "mkdir {dir}/out && casync extract --store={store}/castr {store}/{tag}.caibx {dir}/out/image"
                    .to_owned(),
            ),
            verify: None,
        },
        Peer {
            name: "qemu-img",
            program: "qemu-img".to_owned(),
            init: "mkdir {store}".to_owned(),
            store: "qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd {image} {store}/{tag}".to_owned(),
            store_by_list: None,
            deduplicates: false,
            restore: some(
                "mkdir {dir}/out && qemu-img convert -f qcow2 -O raw {store}/{tag} {dir}/out/image".to_owned(),
            ),
            verify: None,
        },
    ]
}
