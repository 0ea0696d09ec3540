//! A store in which somebody hostile, who has a key, has put what they like: points, pending points, key slots, the configuration,
//! condemned packs, trees and indexes with any content behind valid seals, and spoiled copies of real objects.
//!
//! Input: objects, each a byte for the kind, a byte for its place, two for its length, and its plain bytes. So that input gets
//! far, some of them stand for what is drawn at random:
//!
//! | in | these | are replaced by |
//! |---|---|---|
//! | documents | `ID`, `REPOSITORY` | the object's id, the repository's |
//! | documents | `TREE`, `PAGES` | the pack of the latest tree, the real pack of pages |
//! | trees, indexes | sixteen times `T`, sixteen times `P` | the same |

use std::sync::{Arc, OnceLock};

use keyframe_repo::frame::{Compressor, FRAME_MOST, FrameName};
use keyframe_repo::ids::{ObjectId, ObjectKind};
use keyframe_repo::index::{Hooks, IndexWriter};
use keyframe_repo::object::{Builder, PUBLIC_KEY};
use keyframe_repo::pack::{Content, Directory, PackKey, TableEntry};
use keyframe_repo::source::{Source, SourceReader};
use keyframe_repo::{
    CheckReport, ImageReader, Keys, Parameters, PruneOptions, PruneReport, RepairReport, Repository, Result, Run,
    Session, Unlock, VerifyOptions, VerifyReport, WriteOptions, check, prune, repair, verify,
};
use keyframe_store::{MemoryStore, ObjectName, Put, Store};

/// Sections of an index object.
const SECTIONS: u32 = 9;

/// A small image: its first page is zeros.
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

/// A repository with one point, before anybody was at it.
struct Start {
    store: MemoryStore,
    names: Vec<ObjectName>,
    pages: ObjectId,
    tree: ObjectId,
}

fn start() -> &'static Start {
    static START: OnceLock<Start> = OnceLock::new();
    START.get_or_init(|| {
        let store = Arc::new(MemoryStore::new());
        let made = Repository::init(store.clone(), &Unlock::Nothing, Parameters::default()).expect("a repository");
        let mut session = Session::begin(&made, None, WriteOptions { threads: 1 }).expect("a session");
        session.add_image("disk", &Pages, None, Run::silent()).expect("an image");
        session.commit("disk", Vec::new(), serde_json::Value::Null).expect("a point");
        let index = made.index(Hooks::Skip).expect("an index");
        let of = |content| index.packs().iter().find(|pack| pack.content == content).expect("a pack").id;
        let areas = ["keys", "packs", "index", "points"];
        let names = areas.iter().flat_map(|area| store.list(area).expect("a list")).map(|entry| entry.name).collect();
        Start { pages: of(Content::Pages), tree: of(Content::Nodes), names, store: store.copy() }
    })
}

struct Attacker<'a> {
    store: &'a MemoryStore,
    keys: &'a Keys,
    /// The pack of the latest tree.
    tree: ObjectId,
}

impl Attacker<'_> {
    fn place(&mut self, kind: u8, place: u8, plain: &[u8]) -> Result<()> {
        let documents =
            [ObjectKind::Point, ObjectKind::Pending, ObjectKind::Condemned, ObjectKind::Key, ObjectKind::Config];
        match (kind % 8, documents.get(usize::from(kind % 8))) {
            (_, Some(kind)) => self.document(*kind, place, plain),
            (5, _) => self.tree(plain),
            (6, _) => self.index(plain),
            _ => {
                self.spoil(place, plain);
                Ok(())
            }
        }
    }

    fn put(&self, kind: ObjectKind, id: ObjectId, bytes: &[u8]) -> Result<()> {
        Ok(self.store.put(&kind.name(id)?, bytes, Put::Replace)?)
    }

    fn document(&self, kind: ObjectKind, place: u8, plain: &[u8]) -> Result<()> {
        let id = if kind == ObjectKind::Config { 0 } else { place };
        let id = ObjectId::from_bytes([id; 16]);
        let mut text = String::from_utf8_lossy(plain).into_owned();
        let words = [("TREE", self.tree), ("PAGES", start().pages), ("ID", id), ("REPOSITORY", self.keys.repository())];
        words.iter().for_each(|(word, id)| text = text.replace(word, &id.to_string()));
        let mut builder = Builder::new(plain.len() + 100);
        let from = builder.position();
        let bytes = if kind == ObjectKind::Condemned { self.named(plain) } else { text.into_bytes() };
        builder.buffer().extend_from_slice(&bytes);
        let public = matches!(kind, ObjectKind::Key | ObjectKind::Config);
        if !public {
            self.keys.metadata_key(kind, id)?.seal(0, builder.buffer(), from)?;
        }
        let auth = if public { &PUBLIC_KEY } else { self.keys.auth() };
        let parity = plain.first().map_or(0, |byte| byte % 50);
        self.put(kind, id, &builder.finish(kind, id, self.keys.repository(), auth, parity)?)
    }

    /// Plain bytes with the ids of real packs in them.
    fn named(&self, plain: &[u8]) -> Vec<u8> {
        let mut bytes = plain.to_vec();
        for (letter, id) in [(b'T', self.tree), (b'P', start().pages)] {
            let mut at = 0;
            while let Some(place) = bytes.get_mut(at..at + 16) {
                if place == [letter; 16] {
                    place.copy_from_slice(id.as_bytes());
                    at += 15;
                }
                at += 1;
            }
        }
        bytes
    }

    /// A pack with one frame of nodes, and its index.
    fn tree(&mut self, plain: &[u8]) -> Result<()> {
        let key = PackKey::new(self.keys, Content::Nodes)?;
        self.tree = key.id;
        let raw = self.named(&plain[..plain.len().min(FRAME_MOST)]);
        let sealed = Compressor::new(1)?.seal(&raw, 0, &key.key, key.nonce(0))?;
        let name = FrameName { pack: key.id, number: 0 };
        let frames = vec![TableEntry { name, stored: sealed.len() as u32, pages: 0 }];
        let directory = Directory { content: Content::Nodes, frames, fingerprints: Vec::new() };
        let built = key.build(self.keys, vec![sealed], directory, 0, Vec::new())?;
        self.put(ObjectKind::Pack, built.id, &built.bytes)?;
        let mut index = IndexWriter::default();
        index.add(&built)?;
        index.write(self.keys, 0, &mut |id, bytes| self.put(ObjectKind::Index, id, &bytes))
    }

    /// An index object: the first two bytes say where its hooks begin.
    fn index(&self, plain: &[u8]) -> Result<()> {
        let (head, rest) = plain.split_at(plain.len().min(2));
        let records = head.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)).min(rest.len());
        let (records, hooks) = rest.split_at(records);
        let id = ObjectId::random()?;
        let key = self.keys.metadata_key(ObjectKind::Index, id)?;
        let mut sections = Vec::new();
        for number in 0..SECTIONS {
            let mut section = if number == 0 { self.named(records) } else { hooks.to_vec() };
            key.seal(number, &mut section, 0)?;
            sections.push(section);
        }
        let mut builder = Builder::new(0);
        let lengths = sections.iter().flat_map(|section| (section.len() as u32).to_le_bytes());
        builder.buffer().extend(lengths);
        sections.iter().for_each(|section| builder.buffer().extend_from_slice(section));
        let bytes = builder.finish(ObjectKind::Index, id, self.keys.repository(), self.keys.auth(), 0)?;
        self.put(ObjectKind::Index, id, &bytes)
    }

    /// Bytes of a real object are exchanged.
    fn spoil(&self, place: u8, plain: &[u8]) {
        let names = &start().names;
        let Some(name) = names.get(usize::from(place) % names.len()) else { return };
        self.store.spoil(name, |bytes| {
            let at = plain.first().map_or(0, |first| usize::from(*first) * bytes.len() / 256);
            bytes.iter_mut().skip(at).zip(plain).for_each(|(byte, other)| *byte = *other);
        });
    }
}

/// What commands made of a hostile store.
#[derive(Debug, Default)]
pub struct Reached {
    pub opened: bool,
    pub verified: Option<VerifyReport>,
    pub checked: Option<CheckReport>,
    pub repaired: Option<RepairReport>,
    pub pruned: Option<PruneReport>,
    /// Images whose bytes could be read.
    pub images_read: usize,
    /// What reading the others gave.
    pub unreadable: Vec<String>,
    /// Whether a backup of the real image after the latest point came through.
    pub backed_up: bool,
}

/// Lets every command work on a store that holds what the input says.
pub fn attack(input: &[u8]) -> Reached {
    let store = Arc::new(start().store.copy());
    let made = Repository::open(Arc::new(start().store.copy()), &Unlock::Nothing).expect("a repository");
    let mut attacker = Attacker { store: &store, keys: made.keys(), tree: start().tree };
    let mut rest = input;
    while let [kind, at, low, high, more @ ..] = rest {
        let (plain, behind) = more.split_at(more.len().min(usize::from(u16::from_le_bytes([*low, *high]))));
        // What is refused here could not be made at all.
        let _ = attacker.place(*kind, *at, plain);
        rest = behind;
    }
    let mut reached = Reached::default();
    let Ok(repository) = Repository::open(store.clone(), &Unlock::Nothing) else { return reached };
    reached.opened = true;
    let all = VerifyOptions { data: true, percent: 100, seed: 0, after: None };
    reached.verified = verify(&repository, all, Run::silent()).ok();
    reached.checked = check(&repository, Run::silent()).ok();
    let repository = Arc::new(repository);
    read_images(&repository, &mut reached);
    reached.backed_up = backup(&repository);
    reached.repaired = repair(&repository, Run::silent()).ok();
    let options = PruneOptions { waste_percent: 0, ..PruneOptions::default() };
    reached.pruned = prune(&repository, options, Run::silent()).ok();
    read_images(&repository, &mut Reached::default());
    reached
}

fn read_images(repository: &Arc<Repository>, reached: &mut Reached) {
    let Ok(index) = repository.index(Hooks::Load).map(Arc::new) else { return };
    let Ok((points, _)) = repository.points() else { return };
    for image in points.iter().take(4).flat_map(|point| point.images.iter().take(4)) {
        let reader = ImageReader::new(Arc::clone(repository), Arc::clone(&index), image.clone(), 0);
        let Ok(reader) = reader else { continue };
        let outcome = [0, 4096, reader.bytes().saturating_sub(5000)].into_iter().try_for_each(|at| {
            let len = reader.bytes().saturating_sub(at).min(5000);
            reader.read_at(at, &mut vec![0; usize::try_from(len).expect("it is small")])
        });
        match outcome {
            Ok(()) => reached.images_read += 1,
            Err(error) => reached.unreadable.push(format!("{error}: {:?}", std::error::Error::source(&error))),
        }
    }
}

fn backup(repository: &Repository) -> bool {
    let Ok((mut points, _)) = repository.points() else { return false };
    let session = Session::begin(repository, points.pop(), WriteOptions { threads: 1 });
    session.is_ok_and(|mut session| {
        session.add_image("disk", &Pages, None, Run::silent()).is_ok()
            && session.commit("after", Vec::new(), serde_json::Value::Null).is_ok()
    })
}
