//! A whole repository in a store that somebody with a key has filled: points, pending points, key slots, the configuration and
//! condemned packs with any content behind valid seals, and spoiled copies of real objects. Every command on it ends, without a
//! panic and in bounded memory, and what was whole before is never taken for damaged.
//!
//! Input: objects, each a byte for the kind, a byte for its place, two for its length, and its plain bytes.
#![no_main]

use std::sync::{Arc, OnceLock};

use keyframe_repo::ids::{ObjectId, ObjectKind};
use keyframe_repo::index::Hooks;
use keyframe_repo::object::{Builder, PUBLIC_KEY};
use keyframe_repo::source::{Source, SourceReader};
use keyframe_repo::{
    ImageReader, Parameters, PruneOptions, Repository, Result, Run, Session, Unlock, VerifyOptions, WriteOptions, check,
    prune, repair, verify,
};
use keyframe_store::{MemoryStore, ObjectName, Put, Store};
use libfuzzer_sys::fuzz_target;

/// A small image.
struct Pages;

impl Source for Pages {
    fn bytes(&self) -> u64 {
        16 * 4096
    }
    fn extents(&self) -> Result<Vec<std::ops::Range<u64>>> {
        Ok(vec![std::ops::Range { start: 0, end: self.bytes() }])
    }
    fn reader(&self) -> Result<Box<dyn SourceReader + Send + '_>> {
        Ok(Box::new(Pages))
    }
}

impl SourceReader for Pages {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        into.chunks_mut(4096).zip(at / 4096..).for_each(|(page, number)| page.fill(number as u8));
        Ok(())
    }
}

fn start() -> &'static (MemoryStore, Vec<ObjectName>) {
    static START: OnceLock<(MemoryStore, Vec<ObjectName>)> = OnceLock::new();
    START.get_or_init(|| {
        let store = Arc::new(MemoryStore::new());
        let made = Repository::init(store.clone(), &Unlock::Nothing, Parameters::default()).expect("a repository");
        let mut session = Session::begin(&made, None, WriteOptions { threads: 1 }).expect("a session");
        session.add_image("disk", &Pages, None, Run::silent()).expect("an image");
        session.commit("disk", Vec::new(), serde_json::Value::Null).expect("a point");
        let areas = ["keys", "packs", "index", "points"];
        let names = areas.iter().flat_map(|area| store.list(area).expect("a list")).map(|entry| entry.name).collect();
        (store.copy(), names)
    })
}

fn place(store: &MemoryStore, names: &[ObjectName], kind: u8, place: u8, plain: &[u8]) -> Option<()> {
    let made = Repository::open(Arc::new(start().0.copy()), &Unlock::Nothing).expect("a repository");
    let keys = made.keys();
    let id = ObjectId::from_bytes([place; 16]);
    let kinds = [ObjectKind::Point, ObjectKind::Pending, ObjectKind::Condemned, ObjectKind::Key, ObjectKind::Config];
    let Some(kind) = kinds.get(usize::from(kind % 8)).copied() else {
        // Bytes of a real object are exchanged.
        let name = names.get(usize::from(place) % names.len())?;
        store.spoil(name, |bytes| {
            let at = plain.first().map_or(0, |first| usize::from(*first) * bytes.len() / 256);
            bytes.iter_mut().skip(at).zip(plain).for_each(|(byte, other)| *byte = *other);
        });
        return Some(());
    };
    let id = if kind == ObjectKind::Config { ObjectId::from_bytes([0; 16]) } else { id };
    let mut builder = Builder::new(plain.len() + 100);
    let from = builder.position();
    // Documents name themselves: so that they get further, these words are replaced.
    let text = String::from_utf8_lossy(plain).replace("ID", &id.to_string());
    let text = text.replace("REPOSITORY", &keys.repository().to_string());
    builder.buffer().extend_from_slice(if kind == ObjectKind::Condemned { plain } else { text.as_bytes() });
    let public = matches!(kind, ObjectKind::Key | ObjectKind::Config);
    if !public {
        keys.metadata_key(kind, id).expect("all rights").seal(0, builder.buffer(), from).expect("sealing");
    }
    let auth = if public { &PUBLIC_KEY } else { keys.auth() };
    let bytes = builder.finish(kind, id, keys.repository(), auth, plain.first().map_or(0, |byte| byte % 50)).ok()?;
    store.put(&kind.name(id).expect("a name"), &bytes, Put::Replace).ok()
}

fuzz_target!(|input: &[u8]| {
    let (clean, names) = start();
    let store = Arc::new(clean.copy());
    let mut rest = input;
    while let [kind, at, low, high, more @ ..] = rest {
        let (plain, behind) = more.split_at(more.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        place(&store, names, *kind, *at, plain);
        rest = behind;
    }
    let Ok(repository) = Repository::open(store.clone(), &Unlock::Nothing) else { return };
    let all = VerifyOptions { data: true, percent: 100, seed: 0, after: None };
    let _ = verify(&repository, all, Run::silent());
    let _ = check(&repository, Run::silent());
    let _ = repair(&repository, Run::silent());
    let _ = prune(&repository, PruneOptions { waste_percent: 0, ..PruneOptions::default() }, Run::silent());
    let repository = Arc::new(repository);
    let Ok(index) = repository.index(Hooks::Load) else { return };
    let index = Arc::new(index);
    let Ok((points, _)) = repository.points() else { return };
    for image in points.iter().take(4).flat_map(|point| point.images.iter().take(4)) {
        let reader = ImageReader::new(Arc::clone(&repository), Arc::clone(&index), image.clone(), 0);
        let Ok(reader) = reader else { continue };
        for at in [0, 4096, reader.bytes().saturating_sub(5000)] {
            let mut into = vec![0; usize::try_from(reader.bytes().min(5000)).expect("it is small")];
            let _ = reader.read_at(at, &mut into);
        }
    }
});
