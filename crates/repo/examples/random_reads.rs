//! Measures random 4 KiB reads of a stored image, index and file cache warm:
//!
//!     cargo run --release -p keyframe-repo --example random_reads -- REPO KEY-FILE NAME [READS]

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_repo::index::Hooks;
use keyframe_repo::{ImageReader, Repository, Unlock};
use keyframe_store::LocalStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [repo, key, name, reads @ ..] = arguments.as_slice() else {
        return Err("give REPO KEY-FILE NAME [READS]".into());
    };
    let reads: u64 = reads.first().map_or(Ok(2000), |text| text.parse())?;
    let repository = Repository::open(Arc::new(LocalStore::open(repo.as_ref())?), &Unlock::from_file(key.as_ref())?)?;
    let point = repository.find_point(name)?;
    let image = point.images.first().ok_or("a point without images")?.clone();
    let begun = Instant::now();
    let index = repository.index(Hooks::Skip)?;
    println!("index opened in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    let (repository, index) = (Arc::new(repository), Arc::new(index));
    for cache_mib in [1, 64] {
        let reader = ImageReader::new(Arc::clone(&repository), Arc::clone(&index), image.clone(), cache_mib << 20)?;
        let mut state = 1_u64;
        let mut times = Vec::new();
        let mut page = [0; 4096];
        while (times.len() as u64) < reads {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 16) % (reader.bytes() / 4096) * 4096;
            let begun = Instant::now();
            reader.read_at(at, &mut page)?;
            // Holes cost nothing and would flatter.
            if page.iter().any(|byte| *byte != 0) {
                times.push(begun.elapsed());
            }
        }
        times.sort();
        let at =
            |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(Duration::ZERO).as_secs_f64() * 1e3;
        println!("cache {cache_mib} MiB: median {:.3} ms, 90 % {:.3} ms, 99 % {:.3} ms", at(50), at(90), at(99));
    }
    Ok(())
}
