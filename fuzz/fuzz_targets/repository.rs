//! What a hostile repository can hold, behind valid seals: as by a client that has a key. Bounded memory, no panic; what is
//! accepted is possible.
//!
//! Input: the first byte says which part, the rest is its plain bytes.
#![no_main]

use std::sync::OnceLock;

use keyframe_repo::frame::{Decompressor, FRAME_MOST};
use keyframe_repo::ids::{ObjectId, ObjectKind};
use keyframe_repo::index::{Hooks, Index};
use keyframe_repo::object::{Builder, Header, Object};
use keyframe_repo::pack::{Content, FIRST_FRAME_AT, read_directory};
use keyframe_repo::tree::{LEAF_PAGES, decode_leaf, decode_node, encode_leaf, encode_node};
use keyframe_repo::{Keys, SectionKey};
use libfuzzer_sys::fuzz_target;

const ID: ObjectId = ObjectId::from_bytes([7; 16]);
/// Sections of an index object.
const SECTIONS: u32 = 9;

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::generate(ID).expect("the system has randomness"))
}

fn leaf(bytes: &[u8]) {
    let Ok(runs) = decode_leaf(bytes) else { return };
    assert_eq!(runs.iter().map(|run| u64::from(run.count)).sum::<u64>(), LEAF_PAGES);
    assert_eq!(decode_leaf(&encode_leaf(&runs)).expect("what was encoded"), runs);
}

fn node(bytes: &[u8]) {
    let level = bytes.first().copied().unwrap_or(1);
    let Ok(children) = decode_node(bytes, level) else { return };
    assert!(children.iter().flatten().all(|child| child.is_possible()));
    assert_eq!(decode_node(&encode_node(level, &children), level).expect("what was encoded"), children);
}

/// The first section is the input, the others are parts of it.
fn index(bytes: &[u8]) {
    let key = keys().metadata_key(ObjectKind::Index, ID).expect("all rights");
    let mut sections = Vec::new();
    for number in 0..SECTIONS {
        let mut section =
            if number == 0 { bytes.to_vec() } else { bytes[..bytes.len() / (number as usize + 1)].to_vec() };
        key.seal(number, &mut section, 0).expect("sealing");
        sections.push(section);
    }
    let mut builder = Builder::new(0);
    for section in &sections {
        builder.buffer().extend_from_slice(&(section.len() as u32).to_le_bytes());
    }
    sections.iter().for_each(|section| builder.buffer().extend_from_slice(section));
    let auth = [1; 32];
    let object = builder.finish(ObjectKind::Index, ID, ID, &auth, 0).expect("an object");
    let object = Object::check(object, ObjectKind::Index, ID, Some(ID), &auth).expect("what was built");
    let mut index = Index::default();
    if index.add(object, keys(), Hooks::Load).is_err() {
        return;
    }
    index.sort();
    for pack in index.packs() {
        assert!(pack.offsets.first().is_none_or(|first| *first == FIRST_FRAME_AT) && pack.offsets.is_sorted());
        assert!(pack.offsets.last().is_none_or(|last| u64::from(*last) <= pack.layout.body_len + 64));
        for name in pack.names().take(100) {
            assert!(index.locate(name).all(|at| index.pack(at.pack).is_some()));
        }
    }
}

fn frame(bytes: &[u8]) {
    let key = SectionKey::new(&[2; 32]).expect("a key");
    let mut sealed = bytes.to_vec();
    key.seal(0, &mut sealed, 0).expect("sealing");
    let mut raw = Vec::new();
    let _ = Decompressor::new().expect("zstd").open(&mut sealed, &key, 0, &mut raw);
    assert!(raw.len() <= FRAME_MOST && raw.capacity() <= 2 * FRAME_MOST);
}

fn object(bytes: &[u8]) {
    for kind in ObjectKind::AUTHENTICATED {
        if let Ok(header) = Header::decode(bytes, kind, ID) {
            assert!(header.object_len() < 1 << 30);
        }
        let _ = Object::check(bytes.to_vec(), kind, ID, None, &[1; 32]);
    }
}

fn directory(bytes: &[u8]) {
    let key = keys().metadata_key(ObjectKind::Pack, ID).expect("all rights");
    let mut table = bytes[..bytes.len() / 28 * 28].to_vec();
    let mut fingerprints = vec![3; bytes.iter().take(400).map(|byte| usize::from(*byte)).sum::<usize>() / 16 * 16];
    key.seal(0, &mut table, 0).expect("sealing");
    key.seal(1, &mut fingerprints, 0).expect("sealing");
    let table_len = table.len() as u32;
    table.extend_from_slice(&fingerprints);
    for content in [Content::Pages, Content::Nodes] {
        if let Ok(directory) = read_directory(keys(), ID, content, table_len, table.clone()) {
            let pages: usize = directory.frames.iter().map(|frame| usize::from(frame.pages)).sum();
            assert_eq!(pages, directory.fingerprints.len());
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((part, bytes)) = input.split_first() else { return };
    match part % 6 {
        0 => leaf(bytes),
        1 => node(bytes),
        2 => index(bytes),
        3 => frame(bytes),
        4 => object(bytes),
        _ => directory(bytes),
    }
});
