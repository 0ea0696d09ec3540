//! What `cargo xtask bench repo` measures Keyframe against: the least that a deduplicating store has to do.
//!
//! ```text
//! bare_loop images OUT IMAGE...       skip holes, BLAKE3, hash set, zstd -1, append; one hash set for all images, two threads
//! bare_loop changes BEFORE AFTER      the extents of 64 KiB that differ, as lines of OFFSET LENGTH
//! bare_loop extents OUT IMAGE LIST    BLAKE3 and zstd -1 of just these extents, nothing left out
//! bare_loop random REPO KEY POINT N   N reads of 4 KiB at random places that hold data: median and the 99th of 100, in µs
//! ```
//! Each measurement is one line of JSON.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Repository, Unlock, source};
use keyframe_store::LocalStore;

const BLOCK: u64 = 64 << 10;
const THREADS: usize = 2;
/// What a reader keeps of what it read: little beside the images.
const CACHE_BYTES: usize = 16 << 20;
type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["images", out, images @ ..] => whole(Path::new(out), images),
        ["changes", before, after] => changes(Path::new(before), Path::new(after)),
        ["extents", out, image, list] => extents(Path::new(out), Path::new(image), Path::new(list)),
        ["random", repository, key, point, count] => random(repository, key, point, count.parse()?),
        _ => Err("see the head of bare_loop.rs".into()),
    }
}

/// The blocks of a file that are not holes.
fn blocks(path: &Path) -> Result<Vec<Range<u64>>, Failure> {
    let source = source::open(path, Some(keyframe_qcow2::Format::Raw))?;
    let end = source.bytes();
    let data = source.extents()?;
    let mut starts: Vec<u64> =
        data.iter().flat_map(|extent| extent.start / BLOCK..extent.end.div_ceil(BLOCK)).collect();
    starts.dedup();
    Ok(starts.into_iter().map(|block| block * BLOCK..((block + 1) * BLOCK).min(end)).collect())
}

/// Compresses what is not known, and appends it. Blocks of zeros are left out.
fn store(
    image: &File,
    blocks: &[Range<u64>],
    known: Option<&Mutex<HashSet<[u8; 32]>>>,
    out: &Mutex<File>,
) -> io::Result<u64> {
    let next = AtomicUsize::new(0);
    let stored = std::sync::atomic::AtomicU64::new(0);
    let work = || -> io::Result<()> {
        let mut compressor = zstd::bulk::Compressor::new(1)?;
        let mut raw = vec![0; BLOCK as usize];
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let raw = &mut raw[..(block.end - block.start) as usize];
            image.read_exact_at(raw, block.start)?;
            if raw.iter().all(|byte| *byte == 0) {
                continue;
            }
            let hash = *blake3::hash(raw).as_bytes();
            if known.is_some_and(|known| !known.lock().unwrap().insert(hash)) {
                continue;
            }
            let small = compressor.compress(raw)?;
            out.lock().unwrap().write_all(&small)?;
            stored.fetch_add(small.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    Ok(stored.into_inner())
}

fn whole(out: &Path, images: &[&str]) -> Result<(), Failure> {
    let out = Mutex::new(File::create(out)?);
    let known = Mutex::new(HashSet::new());
    for path in images {
        let begun = Instant::now();
        let image = File::open(path)?;
        let stored = store(&image, &blocks(Path::new(path))?, Some(&known), &out)?;
        println!("{{\"image\": {path:?}, \"seconds\": {:.3}, \"stored\": {stored}}}", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

fn changes(before: &Path, after: &Path) -> Result<(), Failure> {
    let (old, new) = (File::open(before)?, File::open(after)?);
    let mut starts: Vec<Range<u64>> = blocks(before)?;
    starts.extend(blocks(after)?);
    starts.sort_by_key(|block| block.start);
    starts.dedup();
    let (mut a, mut b) = (vec![0; BLOCK as usize], vec![0; BLOCK as usize]);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for block in starts {
        let len = (block.end - block.start) as usize;
        old.read_exact_at(&mut a[..len], block.start)?;
        new.read_exact_at(&mut b[..len], block.start)?;
        if a[..len] != b[..len] {
            writeln!(out, "{} {len}", block.start)?;
        }
    }
    Ok(out.flush()?)
}

fn extents(out: &Path, image: &Path, list: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(list)?;
    let begun = Instant::now();
    let extents: Option<Vec<Range<u64>>> = text
        .lines()
        .map(|line| {
            let (at, len) = line.split_once(' ')?;
            let (at, len): (u64, u64) = (at.parse().ok()?, len.parse().ok()?);
            Some(at..at + len)
        })
        .collect();
    let extents = extents.ok_or("not lines of OFFSET LENGTH")?;
    let stored = store(&File::open(image)?, &extents, None, &Mutex::new(File::create(out)?))?;
    let read: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
    println!("{{\"seconds\": {:.3}, \"read\": {read}, \"stored\": {stored}}}", begun.elapsed().as_secs_f64());
    Ok(())
}

fn random(repository: &str, key: &str, point: &str, count: usize) -> Result<(), Failure> {
    let store = Arc::new(LocalStore::open(Path::new(repository))?);
    let repository = Arc::new(Repository::open(store, &Unlock::from_file(Path::new(key))?)?);
    let index = Arc::new(repository.index(Hooks::Skip)?);
    let point = repository.find_point(point)?;
    let image = point.images.first().ok_or("the point has no image")?.clone();
    let pages = image.bytes / 4096;
    let reader = ImageReader::new(repository, index, image, CACHE_BYTES)?;
    let mut page = vec![0; 4096];
    let mut times = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while times.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let begun = Instant::now();
        reader.read_at(state % pages * 4096, &mut page)?;
        let took = begun.elapsed().as_secs_f64() * 1e6;
        // Zeros cost nothing and would make the figure look better than it is.
        if page.iter().any(|byte| *byte != 0) {
            times.push(took);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(0.0);
    println!("{{\"median_us\": {:.1}, \"p99_us\": {:.1}}}", at(50), at(99));
    Ok(())
}
