//! Starting a QEMU whose main memory is mapped from the snapshot: everything but that memory.
//!
//! QEMU is given `memory-backend-file,offset=<pages_offset>,share=off,readonly=on,rom=off` on the
//! snapshot itself, and loads this much smaller file: the small blocks (ROMs, video memory) with
//! their pages, the mapped block with an empty bitmap, so that not one of its pages is read, and the
//! devices. Offsets are the snapshot's own; the file is sparse where the mapped block's pages would
//! be.

use crate::mapped::{MappedFile, PageBitmap};
use crate::units::BlockIndex;

/// One step of writing the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Copy these bytes of the snapshot to the same offset.
    Copy {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Leave a hole (zeroes) here.
    Hole {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

/// A plan for the file: its pieces cover it from the first byte to the last, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicesOnly {
    pieces: Vec<Piece>,
}

impl DevicesOnly {
    /// Plans the file for a QEMU that maps `mapped`. `bitmap` gives each block's page bitmap; it is
    /// asked for the others only.
    pub fn plan<'a>(
        file: &MappedFile,
        mapped: BlockIndex,
        bitmap: impl Fn(BlockIndex) -> Option<&'a PageBitmap>,
    ) -> Self {
        let mut plan = Planner { pieces: Vec::new(), at: 0 };
        for (index, _) in file.layout().ram().iter() {
            let Some(block) = file.layout().get(index) else {
                continue;
            };
            if index == mapped {
                plan.copy_to(block.bitmap_offset());
                plan.hole_to(block.pages_end());
                continue;
            }
            plan.copy_to(block.bitmap_offset() + block.bitmap_bytes());
            plan.hole_to(block.pages_offset());
            for (first, count) in bitmap(index).iter().flat_map(|bits| bits.runs()) {
                let start = block.pages_offset() + first.byte_offset();
                plan.hole_to(start);
                plan.copy_to(start + count.bytes());
            }
            plan.hole_to(block.pages_end());
        }
        plan.copy_to(file.file_bytes());
        Self { pieces: plan.pieces }
    }

    /// The pieces, in file order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Bytes that are copied: what the file takes on disk.
    pub fn copied_bytes(&self) -> u64 {
        let copied = |piece: &Piece| match piece {
            Piece::Copy { bytes, .. } => *bytes,
            Piece::Hole { .. } => 0,
        };
        self.pieces.iter().map(copied).sum()
    }
}

struct Planner {
    pieces: Vec<Piece>,
    at: u64,
}

impl Planner {
    fn copy_to(&mut self, end: u64) {
        let (offset, bytes) = (self.at, end.saturating_sub(self.at));
        if bytes > 0 {
            self.pieces.push(Piece::Copy { offset, bytes });
            self.at = end;
        }
    }

    fn hole_to(&mut self, end: u64) {
        let (offset, bytes) = (self.at, end.saturating_sub(self.at));
        if bytes > 0 {
            self.pieces.push(Piece::Hole { offset, bytes });
            self.at = end;
        }
    }
}
