//! Which files differ between two states of a file system, by what is known of them besides their bytes.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::error::{Error, Result, damaged};
use crate::fs::{FileSystem, Kind, Metadata, Node};

/// Directories within directories.
const DEPTH_MOST: usize = 1024;

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
pub enum Change {
    /// Only the later state has it.
    Added,
    /// Only the earlier state has it.
    Removed,
    /// Both have it, and this differs.
    Changed {
        /// Of `kind`, `size`, `times`, `mode`, `owner`, `target`, `device`, `content`.
        what: Vec<&'static str>,
    },
    /// It could not be compared.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its path from the root, with a slash before each name.
    pub path: Vec<u8>,
    /// What it is, in the later state where it has both.
    pub kind: Option<Kind>,
    /// What happened.
    pub change: Change,
    /// Its bytes before and after.
    pub sizes: (Option<u64>, Option<u64>),
}

/// Compares whole file systems; without one of them, everything in the other was added or removed.
///
/// # Errors
/// What `each` says; [`Error::Reader`] and [`Error::Disk`], which concern everything. Other trouble is a difference of its own.
pub fn diff(
    before: Option<&dyn FileSystem>,
    after: Option<&dyn FileSystem>,
    each: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let mut walk = Walk { sides: [Side::of(before), Side::of(after)], each };
    let roots = [before, after].map(|fs| fs.map(FileSystem::root));
    walk.directories(roots, &mut Vec::new(), 0)
}

struct Side<'a> {
    fs: Option<&'a dyn FileSystem>,
    /// Directories on the way and before: a damaged file system names one twice.
    seen: HashSet<Node>,
}

impl<'a> Side<'a> {
    fn of(fs: Option<&'a dyn FileSystem>) -> Self {
        Self { fs, seen: HashSet::new() }
    }

    fn names(&mut self, dir: Option<Node>) -> Result<BTreeMap<Vec<u8>, Node>> {
        let mut names = BTreeMap::new();
        let (Some(fs), Some(dir)) = (self.fs, dir) else { return Ok(names) };
        if !self.seen.insert(dir) {
            return Err(damaged("a directory is named twice"));
        }
        fs.read_dir(dir, &mut |entry| {
            names.insert(entry.name, entry.node);
            Ok(())
        })?;
        Ok(names)
    }

    fn metadata(&self, node: Option<Node>) -> Result<Option<Metadata>> {
        match (self.fs, node) {
            (Some(fs), Some(node)) => fs.metadata(node).map(Some),
            _ => Ok(None),
        }
    }

    fn piece(&self, node: Option<Node>, at: u64, into: &mut [u8]) -> Result<usize> {
        match (self.fs, node) {
            (Some(fs), Some(node)) => fs.read_at(node, at, into),
            _ => Ok(0),
        }
    }

    fn target(&self, node: Option<Node>) -> Result<Vec<u8>> {
        match (self.fs, node) {
            (Some(fs), Some(node)) => fs.read_link(node),
            _ => Ok(Vec::new()),
        }
    }
}

struct Walk<'a> {
    sides: [Side<'a>; 2],
    each: &'a mut dyn FnMut(Difference) -> Result<()>,
}

type Both<T> = [Option<T>; 2];

impl Walk<'_> {
    fn directories(&mut self, dirs: Both<Node>, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > DEPTH_MOST {
            return self.unknown(path, damaged("directories lie too deep"));
        }
        let mut all: BTreeMap<Vec<u8>, Both<Node>> = BTreeMap::new();
        for side in 0..2 {
            let Some((from, dir)) = self.sides.get_mut(side).zip(dirs.get(side)) else { continue };
            match from.names(*dir) {
                Ok(names) => {
                    for (name, node) in names {
                        if let Some(place) = all.entry(name).or_default().get_mut(side) {
                            *place = Some(node);
                        }
                    }
                }
                Err(error) => return self.unknown(path, error),
            }
        }
        for (name, nodes) in all {
            let len = path.len();
            path.push(b'/');
            path.extend(&name);
            let outcome = match self.entry(nodes, path, depth) {
                Err(Told::Each(error)) => Err(error),
                Err(Told::Fs(error)) => self.unknown(path, error),
                Ok(()) => Ok(()),
            };
            path.truncate(len);
            outcome?;
        }
        Ok(())
    }

    /// What is wrong with one file is told, what is wrong with the reader ends it.
    fn unknown(&mut self, path: &[u8], error: Error) -> Result<()> {
        if matches!(error, Error::Reader { .. } | Error::Disk { .. }) {
            return Err(error);
        }
        let change = Change::Unknown { reason: error.to_string() };
        (self.each)(Difference { path: path.to_vec(), kind: None, change, sizes: (None, None) })
    }

    fn entry(&mut self, nodes: Both<Node>, path: &mut Vec<u8>, depth: usize) -> std::result::Result<(), Told> {
        let [old, new] = &self.sides;
        let (before, after) = (old.metadata(nodes[0])?, new.metadata(nodes[1])?);
        let what = match (&before, &after) {
            (Some(before), Some(after)) => differing(before, after, |kind| match kind {
                Kind::Link => Ok(old.target(nodes[0])? != new.target(nodes[1])?),
                Kind::File => bytes_differ(old, new, nodes),
                _ => Ok(false),
            })?,
            _ => Vec::new(),
        };
        let change = match (&before, &after) {
            (None, _) => Some(Change::Added),
            (_, None) => Some(Change::Removed),
            _ if what.is_empty() => None,
            _ => Some(Change::Changed { what }),
        };
        let kind = after.as_ref().or(before.as_ref()).map(|metadata| metadata.kind);
        let size = |metadata: &Option<Metadata>| metadata.as_ref().map(|metadata| metadata.size);
        if let Some(change) = change {
            let sizes = (size(&before), size(&after));
            (self.each)(Difference { path: path.clone(), kind, change, sizes }).map_err(Told::Each)?;
        }
        let is_dir = |metadata: Option<Metadata>| metadata.is_some_and(|metadata| metadata.kind == Kind::Directory);
        let dirs = [nodes[0].filter(|_| is_dir(before)), nodes[1].filter(|_| is_dir(after))];
        if dirs != [None, None] {
            self.directories(dirs, path, depth + 1).map_err(Told::Each)?;
        }
        Ok(())
    }
}

/// Whose trouble it is: one file's, or everybody's.
enum Told {
    Fs(Error),
    Each(Error),
}

impl From<Error> for Told {
    fn from(error: Error) -> Self {
        Self::Fs(error)
    }
}

fn differing(before: &Metadata, after: &Metadata, look: impl Fn(Kind) -> Result<bool>) -> Result<Vec<&'static str>> {
    let mut what = Vec::new();
    let mut compare = |name, differs: bool| {
        if differs {
            what.push(name);
        }
    };
    let is_dir = before.kind == Kind::Directory && after.kind == Kind::Directory;
    compare("kind", before.kind != after.kind);
    // What is in a directory is looked at; its own size and times only say that something was.
    compare("size", !is_dir && before.size != after.size);
    compare("times", !is_dir && (before.modified, before.changed) != (after.modified, after.changed));
    compare("mode", before.mode != after.mode);
    compare("owner", before.owner != after.owner);
    compare("device", before.device != after.device);
    if before.kind == after.kind && before.kind == Kind::Link {
        compare("target", look(Kind::Link)?);
    }
    // Where times are not known, the bytes have to say.
    let untimed = before.modified.is_none() || after.modified.is_none();
    if before.kind == after.kind && before.kind == Kind::File && before.size == after.size && untimed {
        compare("content", look(Kind::File)?);
    }
    Ok(what)
}

/// Whether two files of one size differ.
fn bytes_differ(old: &Side<'_>, new: &Side<'_>, nodes: Both<Node>) -> Result<bool> {
    const PIECE: usize = 1 << 20;
    let (mut left, mut right, mut at) = (vec![0; PIECE], vec![0; PIECE], 0);
    loop {
        let (read, other) = (old.piece(nodes[0], at, &mut left)?, new.piece(nodes[1], at, &mut right)?);
        if read != other || left.get(..read) != right.get(..other) {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        at += read as u64;
    }
}
