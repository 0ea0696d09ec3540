//! Reading ahead for whoever reads an image in order.
//!
//! `block-stream` asks for one piece, writes it, asks for the next, and a page server does the same: without this the repository
//! would stand still while they write, and they while it reads. A distant one would be asked for one piece at a time.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::shelf::Shelf;

/// So far ahead is read: some of the frames that an image's reader keeps.
const AHEAD_BYTES: u64 = 8 << 20;
/// Whoever has read so much in order is expected to go on; page servers read a machine's memory in pieces of 1 MiB at places far apart.
const IN_ORDER_BYTES: u64 = 2 << 20;
/// So much is read by one thread at a time: a frame.
const PIECE_BYTES: u64 = 512 << 10;
/// Who read ahead of one image. A distant repository is asked for so many frames at a time.
const THREADS: usize = 4;
/// So many who read in order are told apart: the copying job, the guest, the page server.
const FOLLOWED: usize = 4;

/// Reads ahead of one image.
pub(super) struct Ahead {
    followed: Mutex<Followed>,
    wanted: SyncSender<Range<u64>>,
}

impl Ahead {
    /// Starts whoever reads; they end with this.
    pub(super) fn start(shelf: &Arc<Shelf>, label: &str) -> Self {
        let (wanted, pieces) = sync_channel((AHEAD_BYTES / PIECE_BYTES) as usize);
        let pieces = Arc::new(Mutex::new(pieces));
        for _ in 0..THREADS {
            let (shelf, label, pieces) = (Arc::clone(shelf), label.to_owned(), Arc::clone(&pieces));
            std::thread::spawn(move || {
                while let Some(piece) = next(&pieces) {
                    shelf.fetch(&label, piece);
                }
            });
        }
        Self { followed: Mutex::default(), wanted }
    }

    /// Somebody reads this range, and may go on behind it.
    pub(super) fn hear(&self, range: &Range<u64>) {
        let ahead = self.followed.lock().unwrap_or_else(PoisonError::into_inner).hear(range);
        for start in ahead.clone().step_by(PIECE_BYTES as usize) {
            // Where all are busy it is read when it is asked for.
            let _ = self.wanted.try_send(start..ahead.end.min(start + PIECE_BYTES));
        }
    }
}

fn next(pieces: &Mutex<Receiver<Range<u64>>>) -> Option<Range<u64>> {
    pieces.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Those who read in order, the last to do so in front.
#[derive(Debug, Default)]
struct Followed(Vec<Reader>);

/// Somebody who may be reading in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reader {
    /// Where it began.
    from: u64,
    /// Where the last read ended.
    at: u64,
    /// Up to where was read ahead.
    fetched: u64,
}

impl Followed {
    /// What to read ahead now that this range is read; nothing for whoever begins somewhere.
    fn hear(&mut self, range: &Range<u64>) -> Range<u64> {
        // Requests of one reader that are on their way together may come in another order.
        let follows = |reader: &Reader| (reader.at..=reader.fetched.max(reader.at)).contains(&range.start);
        let Some(number) = self.0.iter().position(follows) else {
            self.0.truncate(FOLLOWED - 1);
            self.0.insert(0, Reader { from: range.start, at: range.end, fetched: range.end });
            return range.end..range.end;
        };
        let mut reader = self.0.remove(number);
        reader.at = reader.at.max(range.end);
        let (from, to) = (reader.fetched.max(range.end), range.end + AHEAD_BYTES);
        let goes_on = reader.at - reader.from >= IN_ORDER_BYTES;
        // In halves: each piece is a whole one then, however small the reads are.
        let ahead = if goes_on && from + AHEAD_BYTES / 2 <= to { from..to } else { from..from };
        reader.fetched = reader.fetched.max(ahead.end);
        self.0.insert(0, reader);
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 64 << 10;

    /// What is read ahead while somebody reads from a place in order, and how often.
    fn ahead_of(followed: &mut Followed, from: u64, reads: u64) -> (u64, u64) {
        let (mut fetched, mut times) = (from, 0);
        for number in 0..reads {
            let at = from + number * READ;
            let ahead = followed.hear(&(at..at + READ));
            if !ahead.is_empty() {
                assert!(ahead.start <= fetched.max(at + READ), "{ahead:?} leaves out what is behind {fetched}");
                (fetched, times) = (ahead.end, times + 1);
            }
        }
        (fetched, times)
    }

    #[test]
    fn who_reads_in_order_finds_what_is_next() {
        let reads = 1024;
        let (fetched, times) = ahead_of(&mut Followed::default(), 0, reads);
        let read = reads * READ;
        assert!((read + AHEAD_BYTES / 2..=read + AHEAD_BYTES).contains(&fetched), "{fetched} of {read}");
        assert!(times <= read / (AHEAD_BYTES / 2) + 1, "in pieces that are too small: {times}");
    }

    #[test]
    fn who_reads_here_and_there_fetches_nothing() {
        let mut followed = Followed::default();
        for number in 0..100 {
            // A page server: 1 MiB here, 1 MiB there.
            let from = number * 7 % 100 * (16 << 20);
            for at in (from..from + (1 << 20)).step_by(READ as usize) {
                assert!(followed.hear(&(at..at + READ)).is_empty(), "{number}");
            }
        }
    }

    #[test]
    fn one_who_reads_in_order_is_followed_beside_others_who_do_not() {
        let mut followed = Followed::default();
        let mut fetched = 0;
        for number in 0..1000 {
            let at = number * READ;
            let ahead = followed.hear(&(at..at + READ));
            fetched = fetched.max(ahead.end);
            let elsewhere = (1 << 40) + number * 7 % 100 * (16 << 20);
            assert!(followed.hear(&(elsewhere..elsewhere + READ)).is_empty());
        }
        assert!(fetched >= 1000 * READ + AHEAD_BYTES / 2);
    }
}
