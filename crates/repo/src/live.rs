//! What points refer to: marking, for prune and check.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::frame::{FrameName, Slots, slots};
use crate::ids::ObjectId;
use crate::index::Index;
use crate::point::Point;
use crate::progress::Run;
use crate::repository::{NodeReader, Repository};
use crate::tree::{self, NodeRef};

/// Everything that points refer to.
#[derive(Debug, Default)]
pub struct Live {
    /// Pages in use of each frame, by the pack that it was first written in.
    pages: HashMap<ObjectId, Vec<Slots>>,
    /// Frames with nodes in use.
    nodes: HashSet<FrameName>,
    seen: HashSet<(NodeRef, u8)>,
}

impl Live {
    /// Of these points.
    ///
    /// # Errors
    /// When a node cannot be read: what is below it is not known then, and nothing may be removed.
    pub fn of(repository: &Repository, index: &Index, points: &[Point], run: Run<'_>) -> Result<Self> {
        let mut live = Self::default();
        let mut nodes = NodeReader::new(repository, index)?;
        for point in points {
            run.check()?;
            live.add(&mut nodes, point)?;
        }
        live.seen = HashSet::new();
        Ok(live)
    }

    /// Adds what a point refers to. After an error a part of it may have been added.
    ///
    /// # Errors
    /// As [`Live::of`].
    pub fn add(&mut self, nodes: &mut NodeReader<'_>, point: &Point) -> Result<()> {
        point.roots().try_for_each(|(root, bytes)| self.subtree(nodes, root, tree::levels(bytes)?))
    }

    fn subtree(&mut self, nodes: &mut NodeReader<'_>, node: NodeRef, level: u8) -> Result<()> {
        if !self.seen.insert((node, level)) {
            return Ok(());
        }
        self.nodes.insert(node.frame());
        let bytes = nodes.read(node)?;
        if level > 0 {
            let children = tree::decode_node(bytes, level)?;
            return children.into_iter().flatten().try_for_each(|child| self.subtree(nodes, child, level - 1));
        }
        for run in tree::decode_leaf(bytes)? {
            let Some(at) = run.at else { continue };
            let frames = self.pages.entry(at.frame.pack).or_default();
            let number = at.frame.number as usize;
            if number >= crate::pack::PACK_FRAMES_MOST {
                return Err(crate::Error::damaged("a tree node", "it refers to a frame that cannot be"));
            }
            if frames.len() <= number {
                frames.resize(number + 1, 0);
            }
            if let Some(set) = frames.get_mut(number) {
                *set |= slots(at.slot, run.count);
            }
        }
        Ok(())
    }

    /// The pages of a frame that are in use.
    #[must_use]
    pub fn pages(&self, name: FrameName) -> Slots {
        let frames = self.pages.get(&name.pack);
        frames.and_then(|frames| frames.get(name.number as usize)).copied().unwrap_or(0)
    }

    /// Whether nodes in a frame are in use.
    #[must_use]
    pub fn has_nodes(&self, name: FrameName) -> bool {
        self.nodes.contains(&name)
    }

    /// All frames in use: of pages with those, and of nodes.
    pub fn frames(&self) -> impl Iterator<Item = (FrameName, Slots)> + '_ {
        let pages = self.pages.iter().flat_map(|(pack, frames)| {
            (0..)
                .zip(frames)
                .filter(|(_, set)| **set != 0)
                .map(|(number, set)| (FrameName { pack: *pack, number }, *set))
        });
        pages.chain(self.nodes.iter().map(|name| (*name, 0)))
    }
}
