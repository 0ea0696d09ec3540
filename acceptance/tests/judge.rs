//! The judge in the small guest is judged itself, with a QEMU that Keyframe has no part in: it must find
//! nothing wrong with a cut that is right, and find every cut that is not. Needs QEMU.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use keyframe_acceptance::bare::{BareQemu, BareSpec};
use keyframe_acceptance::checker::first_complaint;
use keyframe_acceptance::serial::Mark;
use keyframe_acceptance::{Home, Result, guests};
use serde_json::json;

const MEMORY: &str = "384M";
/// Memory is rewritten slowly, or a page that was garbled might be written anew before anybody looks at it.
const WORDS: &str = "checker.mb=100 checker.rate=4 checker.diskrate=100";
const SECOND: Duration = Duration::from_secs(1);

/// When the disks are cut, compared to the instant whose memory is saved.
#[derive(Clone, Copy)]
enum Cut {
    Same,
    Earlier(Duration),
    Later(Duration),
}

struct Saved {
    memory: PathBuf,
    disks: Vec<PathBuf>,
}

/// Runs the guest, saves its memory while it is stopped, and leaves the disks as of the cut.
fn save(home: &Home, cut: Cut) -> Result<Saved> {
    let guest = guests::small()?;
    let disks = vec![home.empty_disk("a.qcow2", "64M")?, home.empty_disk("b.qcow2", "64M")?];
    let dir = home.file("source");
    let spec = BareSpec {
        dir,
        guest: &guest,
        words: WORDS,
        memory: MEMORY,
        disks: disks.clone(),
        direct: false,
        incoming: false,
    };
    let mut source = BareQemu::start(&spec)?;
    source.serial().wait_for(Mark::START, "OK ", 60 * SECOND)?;
    source.enable(&["mapped-ram"])?;

    if let Cut::Earlier(by) = cut {
        freeze_disks(&mut source, home)?;
        thread::sleep(by);
    }
    source.monitor.execute("stop", &json!({}))?;
    if let Cut::Same = cut {
        freeze_disks(&mut source, home)?;
    }
    let memory = home.file("memory");
    source.monitor.execute("migrate", &json!({ "uri": format!("file:{}", memory.display()) }))?;
    source.wait_until_migrated(60 * SECOND)?;
    if let Cut::Later(by) = cut {
        source.monitor.execute("cont", &json!({}))?;
        thread::sleep(by);
        freeze_disks(&mut source, home)?;
    }
    assert_eq!(
        first_complaint(&source.serial().since(Mark::START)),
        None,
        "the original has nothing to complain about"
    );
    Ok(Saved { memory, disks })
}

/// Puts a new layer over each disk, both in one transaction: from now on the files below do not change.
fn freeze_disks(qemu: &mut BareQemu, home: &Home) -> Result<()> {
    let action = |disk: &str| {
        let file = home.file(&format!("{disk}-next.qcow2"));
        json!({ "type": "blockdev-snapshot-sync", "data": {
            "node-name": disk, "snapshot-node-name": format!("{disk}-next"), "snapshot-file": file, "format": "qcow2" } })
    };
    qemu.monitor.execute("transaction", &json!({ "actions": [action("disk0"), action("disk1")] })).map(drop)
}

/// Goes on from what was saved, in a new QEMU, and gives the first complaint.
fn complaint_after_resuming(home: &Home, saved: &Saved) -> Result<Option<String>> {
    let guest = guests::small()?;
    let disks = vec![home.overlay("a-again.qcow2", &saved.disks[0])?, home.overlay("b-again.qcow2", &saved.disks[1])?];
    let dir = home.file("target");
    let spec = BareSpec { dir, guest: &guest, words: WORDS, memory: MEMORY, disks, direct: false, incoming: true };
    let mut target = BareQemu::start(&spec)?;
    target.enable(&["mapped-ram"])?;
    target.monitor.execute("migrate-incoming", &json!({ "uri": format!("file:{}", saved.memory.display()) }))?;
    target.wait_until_loaded(30 * SECOND)?;
    target.monitor.execute("cont", &json!({}))?;
    target.type_line("verify")?;
    target.serial().wait_for(Mark::START, "VERIFIED", 60 * SECOND)?;
    thread::sleep(3 * SECOND);
    Ok(first_complaint(&target.serial().since(Mark::START)).map(str::to_owned))
}

fn verdict_on(test: &str, cut: Cut) -> Result<Option<String>> {
    let home = Home::new(test)?;
    let saved = save(&home, cut)?;
    complaint_after_resuming(&home, &saved)
}

/// One test, not four: the machine is small, and guests that run side by side only slow each other down.
#[test]
fn wrong_cuts_are_found_and_the_right_one_is_not_complained_about() -> Result<()> {
    assert_eq!(verdict_on("judge-same", Cut::Same)?, None);
    let late = verdict_on("judge-later", Cut::Later(Duration::from_millis(100)))?;
    assert!(late.as_deref().is_some_and(|line| line.contains("NEWER than memory")), "{late:?}");
    let early = verdict_on("judge-earlier", Cut::Earlier(Duration::from_millis(100)))?;
    assert!(early.as_deref().is_some_and(|line| line.contains("OLDER than memory")), "{early:?}");
    Ok(())
}

#[test]
fn one_flipped_bit_of_saved_memory_is_found() -> Result<()> {
    let home = Home::new("judge-bit")?;
    let saved = save(&home, Cut::Same)?;
    flip_a_bit_of_a_checked_page(&saved.memory);
    let verdict = complaint_after_resuming(&home, &saved)?;
    assert!(verdict.as_deref().is_some_and(|line| line.contains("garbled from word")), "{verdict:?}");
    Ok(())
}

/// A page of the checker's begins with its number and its generation, below 2^32 both, followed by anything but zeroes. One whose
/// number no other page has is in use: of one that was copied, or given back, nobody would look at the old place.
fn flip_a_bit_of_a_checked_page(image: &Path) {
    const PAGE_BYTES: usize = 4096;
    let file: File = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    let mut page = [0; PAGE_BYTES];
    let word = |page: &[u8], at: usize| u64::from_le_bytes(page[at * 8..][..8].try_into().unwrap());
    let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for offset in (0..pages).map(|number| number * PAGE_BYTES as u64) {
        file.read_exact_at(&mut page, offset).unwrap();
        let follows = word(&page, 3)
            == word(&page, 2).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if follows && word(&page, 0) < 100 * 256 {
            found.entry(word(&page, 0)).or_default().push(offset);
        }
    }
    let unique = found.values().rev().find_map(|offsets| if let [only] = offsets[..] { Some(only) } else { None });
    let offset = unique.unwrap_or_else(|| panic!("no page of the checker's in {}", image.display()));
    file.read_exact_at(&mut page, offset).unwrap();
    page[2048] ^= 1;
    file.write_all_at(&page, offset).unwrap();
}
