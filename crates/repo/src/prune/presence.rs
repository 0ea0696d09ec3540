//! Where what is in use really is.

use std::collections::{HashMap, HashSet};

use super::state::State;
use crate::error::Result;
use crate::frame::{FrameName, Slots};
use crate::ids::ObjectId;
use crate::index::PackRecord;
use crate::pack::{Content, Directory, TableEntry};

/// Which pages packs really have: a frame's copy may lack some.
pub(super) struct Presence<'a> {
    state: &'a State<'a>,
    /// Packs that do not count: they are to go.
    excluded: HashSet<ObjectId>,
    directories: HashMap<u32, HashMap<FrameName, Slots>>,
}

impl<'a> Presence<'a> {
    pub fn new(state: &'a State<'a>, excluded: HashSet<ObjectId>) -> Self {
        Self { state, excluded, directories: HashMap::new() }
    }

    /// Whether everything in use of a pack is in another one as well; then it does not count any more.
    pub fn is_redundant(&mut self, pack: &PackRecord) -> Result<bool> {
        self.excluded.insert(pack.id);
        let needed = self.is_needed(pack)?;
        if needed {
            self.excluded.remove(&pack.id);
        }
        Ok(!needed)
    }

    /// Whether a condemned pack has something in use that is nowhere else.
    pub fn is_needed(&mut self, pack: &PackRecord) -> Result<bool> {
        for name in pack.names() {
            let pages = self.state.live.pages(name);
            let in_use = match pack.content {
                Content::Pages => pages != 0,
                Content::Nodes => self.state.live.has_nodes(name),
            };
            if in_use && !self.is_elsewhere(name, pages)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_elsewhere(&mut self, name: FrameName, pages: Slots) -> Result<bool> {
        let places: Vec<_> = self.state.index.locate(name).map(|at| at.pack).collect();
        for number in places {
            let Some(pack) = self.state.index.pack(number) else { continue };
            if self.excluded.contains(&pack.id) || !self.state.stored.contains_key(&pack.id) {
                continue;
            }
            if pack.content == Content::Nodes || self.present(number, name)? & pages == pages {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn present(&mut self, number: u32, name: FrameName) -> Result<Slots> {
        if !self.directories.contains_key(&number) {
            let directory = self.state.repository.directory(&self.state.index, number)?;
            self.directories.insert(number, present_pages(&directory));
        }
        let frames = self.directories.get(&number);
        Ok(frames.and_then(|frames| frames.get(&name)).copied().unwrap_or(0))
    }
}

/// The pages of each frame that a pack really has.
pub(crate) fn present_pages(directory: &Directory) -> HashMap<FrameName, Slots> {
    let mut fingerprints = directory.fingerprints.iter();
    let of_frame = |frame: &TableEntry| {
        let pages = fingerprints.by_ref().take(frame.pages.into()).enumerate();
        let set = pages.filter(|(_, page)| !page.is_absent()).fold(0, |set: Slots, (slot, _)| set | 1 << slot);
        (frame.name, set)
    };
    directory.frames.iter().map(of_frame).collect()
}
