//! What the destination says: page requests, answers to pings, received-bitmaps, the end.
//!
//! Bytes go in as they come off the socket, cut anywhere; whole messages come out. A message is a big-endian
//! type and length, then so many bytes; a received-bitmap has a body of its own behind it. The peer is QEMU, but
//! a guest may have taken QEMU over, so every length and name is checked, and nothing is buffered but one
//! message (at most 268 bytes) and one bitmap of a block that we know.
//!
//! Source: QEMU migration/migration.c, `migrate_send_rp_message` and `source_return_path_thread`.

use std::sync::Arc;

use super::{PostcopyError, run_within};
use crate::mapped::{PageBitmap, PageRun};
use crate::ram::{RamBlock, RamLayout};
use crate::{BlockIndex, PageCount, PageIndex};

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;

/// Ends a received-bitmap. Source: QEMU migration/ram.c, `RAMBLOCK_RECV_BITMAP_ENDING`.
const BITMAP_MARK: u64 = 0x0123_4567_89ab_cdef;

/// Room that is kept for items; a bitmap's is given back.
const ITEM_BYTES_KEPT: usize = 512;

/// Start and length of a request, before the optional name.
const REQUEST_BYTES: u16 = 12;

/// One whole message of the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Nothing more will come; zero says that the migration went well.
    Shut {
        /// What went wrong, 0 for nothing.
        error: u32,
    },
    /// The answer to a ping.
    Pong(u32),
    /// These pages are waited for.
    Request(PageRun),
    /// These pages of a block have been received, the answer when asked in recovery.
    Received {
        /// The block.
        block: BlockIndex,
        /// Its pages that are in place.
        pages: PageBitmap,
    },
    /// The answer to a resume; 1 is consent.
    ResumeAck(u32),
    /// The destination would allow the switch-over. Of no meaning to a source that never asked.
    SwitchoverAck,
}

/// A message and where it started, in bytes of the return path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Offset of its first byte.
    pub offset: u64,
    /// The message.
    pub message: Message,
}

#[derive(Debug)]
enum State {
    Header,
    Payload { kind: u16, length: u16 },
    BitmapLength { block: BlockIndex },
    Bitmap { block: BlockIndex, bytes: usize },
    BitmapMark { block: BlockIndex, pages: PageBitmap },
    Over,
}

/// Incremental parser of the return path. After an error or [`Message::Shut`] every further byte is an error.
#[derive(Debug)]
pub struct ReturnPath {
    ram: Arc<RamLayout>,
    state: State,
    /// The bytes of the item that is being read: at most 268, or the bitmap of a block.
    item: Vec<u8>,
    /// Bytes read in whole items.
    offset: u64,
    /// Where the current message started.
    message_at: u64,
    last_block: Option<BlockIndex>,
}

impl ReturnPath {
    /// A parser for a fresh connection about these blocks.
    #[must_use]
    pub fn new(ram: Arc<RamLayout>) -> Self {
        Self { ram, state: State::Header, item: Vec::new(), offset: 0, message_at: 0, last_block: None }
    }

    /// Takes the next bytes and hands every message that they complete to `deliver`, in order.
    ///
    /// # Errors
    /// The variants of [`PostcopyError`] with an offset. Messages before the bad one have been delivered.
    pub fn feed(&mut self, mut bytes: &[u8], mut deliver: impl FnMut(Located)) -> Result<(), PostcopyError> {
        while self.fill(&mut bytes) {
            let outcome = self.take_item();
            self.offset = self.offset.saturating_add(self.item.len() as u64);
            self.item.clear();
            self.item.shrink_to(ITEM_BYTES_KEPT);
            match outcome {
                Ok((state, message)) => {
                    self.state = state;
                    if let Some(message) = message {
                        deliver(Located { offset: self.message_at, message });
                    }
                }
                Err(error) => {
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Is a message begun and not finished? Then the connection must not end here.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        !self.item.is_empty() || !matches!(self.state, State::Header | State::Over)
    }

    /// How many bytes the current item has. One, when no byte may come any more: it is then refused.
    fn wanted(&self) -> usize {
        match &self.state {
            State::Header => 4,
            State::Payload { length, .. } => usize::from(*length),
            State::Over => 1,
            State::BitmapLength { .. } | State::BitmapMark { .. } => 8,
            State::Bitmap { bytes, .. } => *bytes,
        }
    }

    /// Moves bytes into the current item; true when it is complete.
    fn fill(&mut self, bytes: &mut &[u8]) -> bool {
        let missing = self.wanted().saturating_sub(self.item.len());
        let (now, later) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.item.extend_from_slice(now);
        *bytes = later;
        now.len() == missing
    }

    /// Reads the complete item: the state that follows and the message it finishes, if any.
    fn take_item(&mut self) -> Result<(State, Option<Message>), PostcopyError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Over => Err(self.out_of_place("a byte behind the end of the conversation")),
            State::Header => {
                self.message_at = self.offset;
                let (kind, length) = (self.be16(0), self.be16(2));
                check_length(kind, length, self.offset)?;
                Ok((State::Payload { kind, length }, None))
            }
            State::Payload { kind, .. } => self.take_payload(kind),
            State::BitmapLength { block } => Ok((self.bitmap_length(block)?, None)),
            State::Bitmap { block, .. } => {
                let Some(count) = self.ram.get(block).map(RamBlock::pages) else {
                    return Err(self.out_of_place("a bitmap"));
                };
                let pages = PageBitmap::from_bytes(count, &self.item, self.offset);
                let pages = pages.map_err(|source| PostcopyError::Bitmap { block: self.block_name(block), source })?;
                Ok((State::BitmapMark { block, pages }, None))
            }
            State::BitmapMark { block, pages } => {
                let mark = u64::from_be_bytes(self.eight(0));
                if mark != BITMAP_MARK {
                    let block = self.block_name(block);
                    return Err(PostcopyError::BitmapMark { offset: self.offset, block, mark });
                }
                Ok((State::Header, Some(Message::Received { block, pages })))
            }
        }
    }

    fn take_payload(&mut self, kind: u16) -> Result<(State, Option<Message>), PostcopyError> {
        let message = match kind {
            SHUT => return Ok((State::Over, Some(Message::Shut { error: self.be32(0) }))),
            PONG => Message::Pong(self.be32(0)),
            RESUME_ACK => Message::ResumeAck(self.be32(0)),
            SWITCHOVER_ACK => Message::SwitchoverAck,
            RECV_BITMAP => return Ok((State::BitmapLength { block: self.named_block(0)? }, None)),
            REQ_PAGES_ID => {
                self.last_block = Some(self.named_block(usize::from(REQUEST_BYTES))?);
                Message::Request(self.request()?)
            }
            // The header admits no other kind.
            _ => Message::Request(self.request()?),
        };
        Ok((State::Header, Some(message)))
    }

    /// The block whose name, behind a length byte, fills the item from `at` to its end.
    fn named_block(&self, at: usize) -> Result<BlockIndex, PostcopyError> {
        let (length, name) = match self.item.get(at..).and_then(<[u8]>::split_first) {
            Some((length, name)) => (usize::from(*length), name),
            None => (0, [].as_slice()),
        };
        let known = if length == name.len() {
            std::str::from_utf8(name).ok().and_then(|name| self.ram.find(name))
        } else {
            None
        };
        known.ok_or_else(|| PostcopyError::UnknownBlock {
            offset: self.message_at,
            name: String::from_utf8_lossy(name).escape_debug().to_string(),
        })
    }

    fn request(&self) -> Result<PageRun, PostcopyError> {
        let block = self.last_block.ok_or(PostcopyError::NoBlockYet { offset: self.message_at })?;
        let (start, bytes) = (u64::from_be_bytes(self.eight(0)), self.be32(8));
        let run = PageIndex::from_byte_offset(start)
            .zip(PageCount::from_bytes(bytes.into()))
            .and_then(|(first, count)| run_within(&self.ram, block, first, count));
        run.ok_or_else(|| PostcopyError::BadRequest {
            offset: self.message_at,
            block: self.block_name(block),
            start,
            bytes,
        })
    }

    /// A bitmap comes in whole 64 bit words. Source: QEMU migration/ram.c, `ramblock_recv_bitmap_send`.
    fn bitmap_length(&self, block: BlockIndex) -> Result<State, PostcopyError> {
        let pages = self.ram.get(block).map_or(0, |block| block.pages().get());
        let (bytes, expected) = (u64::from_be_bytes(self.eight(0)), pages.div_ceil(64) * 8);
        if bytes != expected {
            let block = self.block_name(block);
            return Err(PostcopyError::BitmapLength { offset: self.offset, block, bytes, expected });
        }
        // A layout's memory is bounded, so this fits.
        Ok(State::Bitmap { block, bytes: bytes as usize })
    }

    fn out_of_place(&self, what: &'static str) -> PostcopyError {
        PostcopyError::OutOfPlace { offset: self.offset, what }
    }

    fn block_name(&self, block: BlockIndex) -> String {
        self.ram.get(block).map(|block| block.id().to_string()).unwrap_or_default()
    }

    // The length of every item was checked with its header, so the zeros for what is missing never show.

    fn eight(&self, at: usize) -> [u8; 8] {
        self.item.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
    }

    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.item.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default())
    }

    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.item.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default())
    }
}

/// Is this a message QEMU sends, with a length that fits?
fn check_length(kind: u16, length: u16, offset: u64) -> Result<(), PostcopyError> {
    // Names are 1 to 255 bytes behind their length byte.
    let fits = match kind {
        SHUT | PONG | RESUME_ACK => length == 4,
        REQ_PAGES => length == REQUEST_BYTES,
        REQ_PAGES_ID => (REQUEST_BYTES + 2..=REQUEST_BYTES + 256).contains(&length),
        RECV_BITMAP => (2..=256).contains(&length),
        SWITCHOVER_ACK => length == 0,
        _ => return Err(PostcopyError::UnknownMessage { offset, kind }),
    };
    if fits { Ok(()) } else { Err(PostcopyError::MessageLength { offset, kind, length }) }
}
