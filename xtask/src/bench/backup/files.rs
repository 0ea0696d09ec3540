//! A directory in a point of a disk of 1 TB, most of which is a hole.

use std::fs::{self, File};
use std::time::Instant;

use anyhow::Result;
use keyframe_acceptance::{Home, Repository};

use crate::bench::samples::Samples;
use crate::run;

const BYTES: u64 = 1_000_000_000_000;
const FILES: u64 = 1000;

/// Lists it again and again; gives how long the whole command took each time.
///
/// # Errors
/// When a command fails.
pub fn measure(home: &Home, rounds: u64) -> Result<Samples> {
    let (image, tree) = (home.file("huge.raw"), home.file("tree"));
    let listed = tree.join("some/where");
    fs::create_dir_all(&listed)?;
    for number in 0..FILES {
        fs::write(listed.join(format!("file-{number}")), format!("{number}\n"))?;
    }
    File::create(&image)?.set_len(BYTES)?;
    run::quiet(run::command("mke2fs", ["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image))?;
    let disk = image.display().to_string();
    home.run(["vm", "create", "huge", "--memory", "256M", "--disk", &disk])?.succeeded()?;
    let repository = Repository::init(home)?;
    repository.run(home, &["backup", "huge"])?.succeeded()?;
    let mut samples = Samples::default();
    for _ in 0..rounds {
        let begun = Instant::now();
        let said = repository.run(home, &["files", "huge", "ls", "/some/where"])?.succeeded()?;
        samples.push(begun.elapsed());
        anyhow::ensure!(said.stdout.lines().count() as u64 >= FILES, "it lists {} lines", said.stdout.lines().count());
    }
    home.run(["vm", "remove", "huge"])?.succeeded()?;
    fs::remove_file(&image)?;
    fs::remove_dir_all(&tree)?;
    Ok(samples)
}
