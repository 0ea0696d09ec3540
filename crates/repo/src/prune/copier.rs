//! Rewriting packs.

use keyframe_store::Put;

use super::state::State;
use crate::error::{Error, Result};
use crate::frame::{Compressor, Decompressor, FrameName, Slots};
use crate::ids::{Fingerprint, ObjectKind, PAGE_BYTES};
use crate::index::{IndexWriter, PackRecord};
use crate::pack::{Content, Directory, PackKey, TableEntry};

/// Bytes of a new pack, about.
const PACK_BYTES: usize = 24 << 20;
/// Frames of a new pack: they may be nearly empty.
const PACK_FRAMES: usize = 1024;

/// Copies frames into new packs.
pub(super) struct Copier<'a> {
    state: &'a State<'a>,
    content: Content,
    key: PackKey,
    sealed: Vec<Vec<u8>>,
    directory: Directory,
    bytes: usize,
    moved: u64,
    compressor: Compressor,
    decompressor: Decompressor,
    raw: Vec<u8>,
}

impl<'a> Copier<'a> {
    pub fn new(state: &'a State<'a>, content: Content) -> Result<Self> {
        Ok(Self {
            state,
            content,
            key: PackKey::new(state.repository.keys(), content)?,
            sealed: Vec::new(),
            directory: Directory { content, frames: Vec::new(), fingerprints: Vec::new() },
            bytes: 0,
            moved: 0,
            compressor: Compressor::new(state.repository.config().parameters.level)?,
            decompressor: Decompressor::new()?,
            raw: Vec::new(),
        })
    }

    pub fn copy(&mut self, pack: &PackRecord, index: &mut IndexWriter) -> Result<()> {
        let number = self.state.index.number_of(pack.id).ok_or(Error::Pipeline)?;
        let directory = self.state.repository.directory(&self.state.index, number)?;
        let mut fingerprints = directory.fingerprints.as_slice();
        for frame in &directory.frames {
            let (of_frame, rest) = fingerprints.split_at_checked(frame.pages.into()).ok_or(Error::Pipeline)?;
            fingerprints = rest;
            // Another pack may have more of the frame: what this one lacks is kept there.
            let here = (0..).zip(of_frame).filter(|(_, page)| !page.is_absent());
            let here = here.fold(0, |set: Slots, (slot, _): (u32, _)| set | 1 << slot);
            let pages = self.state.live.pages(frame.name) & here;
            if pages != 0 || self.state.live.has_nodes(frame.name) {
                self.frame(frame.name, pages, of_frame)?;
            }
            if self.bytes >= PACK_BYTES || self.sealed.len() >= PACK_FRAMES {
                self.flush(index)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, name: FrameName, pages: Slots, fingerprints: &[Fingerprint]) -> Result<()> {
        let repository = self.state.repository;
        repository.read_frame(&self.state.index, name, pages, &mut self.decompressor, &mut self.raw)?;
        let mut kept = fingerprints.to_vec();
        let mut absent: Slots = 0;
        let page_bytes = self.raw.chunks_exact_mut(PAGE_BYTES);
        for ((slot, fingerprint), page) in kept.iter_mut().enumerate().zip(page_bytes) {
            if pages >> slot & 1 == 0 {
                absent |= 1 << slot;
                *fingerprint = Fingerprint::ABSENT;
                page.fill(0);
            } else if repository.keys().fingerprint(page) != *fingerprint {
                return Err(Error::damaged(
                    format_args!("a frame of pack {}", name.pack),
                    "a page does not have its fingerprint",
                ));
            }
        }
        let position = u32::try_from(self.sealed.len()).map_err(|_| Error::Pipeline)?;
        let sealed = self.compressor.seal(&self.raw, absent, &self.key.key, self.key.nonce(position))?;
        let stored = u32::try_from(sealed.len()).map_err(|_| Error::Pipeline)?;
        self.bytes += sealed.len();
        self.sealed.push(sealed);
        self.directory.frames.push(TableEntry { name, stored, pages: kept.len() as u16 });
        self.directory.fingerprints.extend(kept);
        Ok(())
    }

    fn flush(&mut self, index: &mut IndexWriter) -> Result<()> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        let repository = self.state.repository;
        let empty = Directory { content: self.content, frames: Vec::new(), fingerprints: Vec::new() };
        let directory = std::mem::replace(&mut self.directory, empty);
        let sealed = std::mem::take(&mut self.sealed);
        self.bytes = 0;
        let built = self.key.build(repository.keys(), sealed, directory, repository.parity_percent(), Vec::new())?;
        repository.store().put(&ObjectKind::Pack.name(built.id)?, &built.bytes, Put::Create)?;
        self.moved += built.bytes.len() as u64;
        index.add(&built)?;
        self.key = PackKey::new(repository.keys(), self.content)?;
        Ok(())
    }

    pub fn finish(mut self, index: &mut IndexWriter) -> Result<u64> {
        self.flush(index)?;
        Ok(self.moved)
    }
}
