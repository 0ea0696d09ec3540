//! What happens to the system on each day.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::noise::Noise;
use crate::run;

const DATABASE: &str = "srv/database.bin";
const DATABASE_PAGES: u64 = 300 * 1024 * 1024 / PAGE as u64;
const PAGE: usize = 8192;
const MIB: usize = 1 << 20;
/// Installed in the course of the days.
const NEW_PACKAGES: [&str; 4] =
    ["php-cli apache2 mariadb-server", "default-mysql-client nginx", "gfortran cmake", "ruby-full redis"];

/// The database, media and logs of day 0.
pub fn first(root: &Path, seed: u64) -> Result<()> {
    let mut noise = Noise::new(seed, 100);
    let mut database = create(&root.join(DATABASE))?;
    for _ in 0..DATABASE_PAGES {
        database.write_all(&noise.database_page(PAGE))?;
    }
    fs::create_dir_all(root.join("srv/media"))?;
    for n in 0..20 {
        create(&root.join(format!("srv/media/first-{n}.bin")))?.write_all(&noise.bytes(10 * MIB))?;
    }
    create(&root.join("var/log/app.log"))?.write_all(noise.log(60 * MIB).as_bytes())?;
    Ok(())
}

/// Another day.
pub fn next(root: &Path, seed: u64, day: u32) -> Result<()> {
    let mut noise = Noise::new(seed, 100 + u64::from(day));
    install(root, day)?;
    upgrade(root, &mut noise)?;
    update_database(root, &mut noise)?;
    let log = OpenOptions::new().append(true).open(root.join("var/log/app.log"));
    log.context("cannot open the log")?.write_all(noise.log(40 * MIB).as_bytes())?;
    for n in 0..8 {
        create(&root.join(format!("srv/media/day{day}-{n}.bin")))?.write_all(&noise.bytes(10 * MIB))?;
    }
    move_files(root, day, &mut noise)
}

/// Installs a few packages with apt, from the lists and the mirror that the system was made with.
fn install(root: &Path, day: u32) -> Result<()> {
    let Some(packages) = NEW_PACKAGES.get(day as usize - 1) else { return Ok(()) };
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")).context("cannot copy resolv.conf")?;
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive; printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; \
         chmod +x /usr/sbin/policy-rc.d; mount -t proc proc /proc; trap 'umount /proc' EXIT; \
         apt-get update -q && apt-get install -q -y --no-install-recommends {packages}"
    );
    run::quiet(run::command("chroot", []).arg(root).args(["sh", "-c", &script])).map(drop)
}

/// Writes a tenth of the system's libraries and programs anew, as an upgrade does: beside the old ones, then renamed over
/// them. In every third some bytes differ, where no program of the system runs on them.
fn upgrade(root: &Path, noise: &mut Noise) -> Result<()> {
    for file in files(&root.join("usr/lib"))? {
        if noise.below(10) != 0 {
            continue;
        }
        let mut bytes = fs::read(&file)?;
        let harmless = ["jvm", "libreoffice", "go-"].iter().any(|part| file.to_string_lossy().contains(part));
        if noise.below(3) == 0 && harmless && !bytes.is_empty() {
            for _ in 0..=bytes.len() / 100_000 {
                let at = usize::try_from(noise.below(bytes.len() as u64))?;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1;
                }
            }
        }
        let beside = file.with_extension("dpkg-new");
        fs::write(&beside, &bytes)?;
        fs::set_permissions(&beside, fs::metadata(&file)?.permissions())?;
        fs::rename(&beside, &file)?;
    }
    Ok(())
}

/// Rewrites one page in ten, at random places.
fn update_database(root: &Path, noise: &mut Noise) -> Result<()> {
    let database = OpenOptions::new().write(true).open(root.join(DATABASE)).context("cannot open the database")?;
    for _ in 0..DATABASE_PAGES / 10 {
        let at = noise.below(DATABASE_PAGES) * PAGE as u64;
        database.write_all_at(&noise.database_page(PAGE), at)?;
    }
    Ok(())
}

/// Copies some of the oldest media elsewhere, and removes them where they were.
fn move_files(root: &Path, day: u32, noise: &mut Noise) -> Result<()> {
    let archive = root.join(format!("srv/archive{day}"));
    fs::create_dir_all(&archive)?;
    for file in files(&root.join("srv/media"))? {
        if noise.below(6) == 0 {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(&file, archive.join(name))?;
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// All plain files below a directory, in the order of their names.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}
