//! The judge of one disk: what memory knows about each slot, against what the slot holds.
//!
//! A write is *begun* (memory knows it may be on the disk), then *acknowledged* (memory knows it must
//! be). A disk of the same instant as memory therefore holds exactly the acknowledged write in every slot,
//! but for the one write that is under way. Anything less is a lost write: the disk is older than memory.
//! Anything more is a write that memory has not made yet: the disk is from the future.
//!
//! Slots are chosen by chance and not in turn, and chance is stirred with the clock: a machine that was
//! taken back does not repeat its last writes to the same places and so cover up what they left there.

use crate::slot::{Block, DiskIndex, Sequence, SlotIndex, Stamp};
use crate::units::Token;

/// What is wrong with a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotFault {
    /// The acknowledged write is missing and an earlier one is there.
    #[error("slot {} holds write {}, yet {} was acknowledged: the disk is OLDER than memory",
            slot.0, found.number(), acknowledged.number())]
    Lost {
        /// The slot looked at.
        slot: SlotIndex,
        /// The write in it.
        found: Sequence,
        /// The write that was acknowledged for it.
        acknowledged: Sequence,
    },
    /// A later write than memory knows of is there.
    #[error("slot {} holds write {}, yet {} is the last that was made there: the disk is NEWER than memory",
            slot.0, found.number(), made.number())]
    Future {
        /// The slot looked at.
        slot: SlotIndex,
        /// The write in it.
        found: Sequence,
        /// The last write memory made to it.
        made: Sequence,
    },
    /// This disk has a write that the disk before it had not acknowledged.
    #[error("slot {} holds write {}, yet the disk before it has acknowledged only {}: the disks are not of one instant",
            slot.0, found.number(), upstream.number())]
    AheadOfUpstream {
        /// The slot looked at.
        slot: SlotIndex,
        /// The write in it.
        found: Sequence,
        /// The last write that the disk before acknowledged.
        upstream: Sequence,
    },
    /// A valid block of another session, disk or place.
    #[error("slot {} holds what session {} wrote to slot {} of disk {}", slot.0, stamp.token, stamp.slot.0, stamp.disk.0)]
    Misplaced {
        /// The slot looked at.
        slot: SlotIndex,
        /// What it says of itself.
        stamp: Stamp,
    },
    /// Magic or checksum are wrong.
    #[error("slot {} is garbled", slot.0)]
    Garbled {
        /// The slot looked at.
        slot: SlotIndex,
    },
}

/// A write that was begun: to be put on the disk, then acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a begun write has to be acknowledged or reported as failed"]
pub struct Pending {
    slot: SlotIndex,
    sequence: Sequence,
}

impl Pending {
    /// Where it goes.
    pub const fn slot(self) -> SlotIndex {
        self.slot
    }

    /// Which write it is.
    pub const fn sequence(self) -> Sequence {
        self.sequence
    }
}

/// What memory knows about one disk.
pub struct Ledger {
    token: Token,
    disk: DiskIndex,
    acknowledged: Vec<Sequence>,
    last: Sequence,
    pending: Option<Pending>,
}

impl Ledger {
    /// A ring of `slots` blank slots.
    pub fn blank(token: Token, disk: DiskIndex, slots: u32) -> Self {
        let acknowledged = vec![Sequence::BLANK; slots as usize];
        Self { token, disk, acknowledged, last: Sequence::BLANK, pending: None }
    }

    /// All slots of the ring.
    pub fn slots(&self) -> impl Iterator<Item = SlotIndex> + use<> {
        (0..self.acknowledged.len() as u32).map(SlotIndex)
    }

    /// The last acknowledged write of the whole disk.
    pub const fn last(&self) -> Sequence {
        self.last
    }

    /// The block for a slot that no write has gone to yet.
    pub fn blank_block(&self, slot: SlotIndex) -> Block {
        self.block(slot, Sequence::BLANK)
    }

    /// Begins the next write, to `slot`; nothing when there is no such slot. A write that was begun and not
    /// acknowledged is given out again, whatever the slot: it is made before any other.
    pub fn begin(&mut self, slot: SlotIndex) -> Option<(Pending, Block)> {
        if slot.0 as usize >= self.acknowledged.len() {
            return None;
        }
        let pending = *self.pending.get_or_insert(Pending { slot, sequence: self.last.next() });
        Some((pending, self.block(pending.slot, pending.sequence)))
    }

    /// Notes that the disk has acknowledged the write that was begun.
    pub fn acknowledge(&mut self, write: Pending) {
        if self.pending.take() == Some(write) {
            self.acknowledged[write.slot.0 as usize] = write.sequence;
            self.last = write.sequence;
        }
    }

    /// Judges what was read from `slot`. `upstream` is the last write acknowledged by the disk that must be
    /// ahead of this one, as read from memory *after* the block was read from the disk.
    ///
    /// # Errors
    /// The [`SlotFault`] when the slot does not hold what memory knows it to hold.
    pub fn judge(&self, slot: SlotIndex, block: &Block, upstream: Option<Sequence>) -> Result<(), SlotFault> {
        let Some(stamp) = block.stamp() else {
            return Err(SlotFault::Garbled { slot });
        };
        if stamp.token != self.token || stamp.disk != self.disk || stamp.slot != slot {
            return Err(SlotFault::Misplaced { slot, stamp });
        }
        let found = stamp.sequence;
        let acknowledged = self.acknowledged.get(slot.0 as usize).copied().unwrap_or(Sequence::BLANK);
        let made = self.pending.filter(|write| write.slot == slot).map_or(acknowledged, |write| write.sequence);
        if found < acknowledged {
            return Err(SlotFault::Lost { slot, found, acknowledged });
        }
        if found > made {
            return Err(SlotFault::Future { slot, found, made });
        }
        match upstream {
            Some(upstream) if found > upstream => Err(SlotFault::AheadOfUpstream { slot, found, upstream }),
            _ => Ok(()),
        }
    }

    fn block(&self, slot: SlotIndex, sequence: Sequence) -> Block {
        Block::stamped(Stamp { token: self.token, disk: self.disk, slot, sequence })
    }
}

/// What an earlier session left on a disk: the newest intact write in its ring.
pub fn newest(blocks: impl IntoIterator<Item = Block>) -> Option<Stamp> {
    blocks.into_iter().filter_map(|block| block.stamp()).max_by_key(|stamp| stamp.sequence)
}

/// Whether disks that an earlier session left behind can be of one instant: of one session, none ahead of
/// the disk before it. All that can be said without that session's memory.
pub fn in_order(newest_of_each: &[Stamp]) -> bool {
    newest_of_each.windows(2).all(|pair| matches!(pair, [a, b] if a.token == b.token && b.sequence <= a.sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: Token = Token::from_raw(0xfeed);
    const SLOTS: u32 = 8;

    /// A disk as an array; what a snapshot does to it is a copy.
    #[derive(Clone)]
    struct Platter(Vec<Block>);

    impl Platter {
        fn formatted(ledger: &Ledger) -> Self {
            Self(ledger.slots().map(|slot| ledger.blank_block(slot)).collect())
        }

        fn put(&mut self, write: Pending, block: Block) {
            self.0[write.slot().0 as usize] = block;
        }

        fn faults(&self, ledger: &Ledger) -> Vec<SlotFault> {
            let judged = ledger.slots().map(|slot| ledger.judge(slot, &self.0[slot.0 as usize], None));
            judged.filter_map(Result::err).collect()
        }
    }

    fn ledger() -> Ledger {
        Ledger::blank(TOKEN, DiskIndex(1), SLOTS)
    }

    fn write(ledger: &mut Ledger, platter: &mut Platter, slot: u32) {
        let (pending, block) = ledger.begin(SlotIndex(slot)).unwrap();
        platter.put(pending, block);
        ledger.acknowledge(pending);
    }

    fn busy() -> (Ledger, Platter) {
        let mut ledger = ledger();
        let mut platter = Platter::formatted(&ledger);
        for n in 0..20 {
            write(&mut ledger, &mut platter, n * 5 % SLOTS);
        }
        (ledger, platter)
    }

    #[test]
    fn a_disk_of_the_same_instant_is_right() {
        let (ledger, platter) = busy();
        assert_eq!(platter.faults(&ledger), []);
    }

    #[test]
    fn a_lost_write_is_found() {
        let (mut ledger, mut platter) = busy();
        let snapshot = platter.clone();
        write(&mut ledger, &mut platter, 3);
        assert!(matches!(snapshot.faults(&ledger)[..], [SlotFault::Lost { slot: SlotIndex(3), .. }]));
    }

    #[test]
    fn a_disk_from_the_future_is_found() {
        let (mut ledger, mut platter) = busy();
        let (pending, block) = ledger.begin(SlotIndex(6)).unwrap();
        platter.put(pending, block);
        let before = Ledger { acknowledged: ledger.acknowledged.clone(), pending: None, ..ledger };
        assert!(matches!(platter.faults(&before)[..], [SlotFault::Future { slot: SlotIndex(6), .. }]));
    }

    #[test]
    fn a_write_under_way_may_be_there_or_not() {
        let (mut ledger, mut platter) = busy();
        let (pending, block) = ledger.begin(SlotIndex(2)).unwrap();
        assert_eq!(platter.faults(&ledger), []);
        platter.put(pending, block);
        assert_eq!(platter.faults(&ledger), []);
        ledger.acknowledge(pending);
        assert_eq!(platter.faults(&ledger), []);
    }

    #[test]
    fn only_one_write_is_under_way_and_only_within_the_ring() {
        let mut ledger = ledger();
        assert!(ledger.begin(SlotIndex(SLOTS)).is_none());
        let (pending, _) = ledger.begin(SlotIndex(0)).unwrap();
        assert_eq!(ledger.begin(SlotIndex(1)).unwrap().0, pending, "tried again before any other");
        ledger.acknowledge(pending);
        assert_ne!(ledger.begin(SlotIndex(1)).unwrap().0, pending);
    }

    #[test]
    fn a_disk_ahead_of_the_one_before_it_is_found() {
        let (ledger, platter) = busy();
        let newest = ledger.last();
        let slot = ledger.slots().find(|s| ledger.acknowledged[s.0 as usize] == newest).unwrap();
        let block = &platter.0[slot.0 as usize];
        assert_eq!(ledger.judge(slot, block, Some(newest)), Ok(()));
        let behind = Sequence::from_number(newest.number() - 1);
        assert!(matches!(ledger.judge(slot, block, Some(behind)), Err(SlotFault::AheadOfUpstream { .. })));
    }

    #[test]
    fn blocks_of_another_session_disk_or_place_are_found() {
        let (ledger, mut platter) = busy();
        platter.0.swap(0, 1);
        assert_eq!(platter.faults(&ledger).len(), 2);
        for other in [Ledger::blank(Token::from_raw(1), DiskIndex(1), SLOTS), Ledger::blank(TOKEN, DiskIndex(0), SLOTS)]
        {
            let verdict = ledger.judge(SlotIndex(0), &other.blank_block(SlotIndex(0)), None);
            assert!(matches!(verdict, Err(SlotFault::Misplaced { .. })));
        }
    }

    #[test]
    fn an_erased_slot_is_found() {
        let (ledger, mut platter) = busy();
        platter.0[4] = Block::zeroed();
        assert_eq!(platter.faults(&ledger), [SlotFault::Garbled { slot: SlotIndex(4) }]);
    }

    #[test]
    fn what_an_earlier_session_left_is_read_and_ordered() {
        let (_, platter) = busy();
        let found = newest(platter.0).unwrap();
        assert_eq!(found.sequence, Sequence::from_number(20));
        let older = Stamp { sequence: Sequence::from_number(19), ..found };
        assert!(in_order(&[found, older]) && in_order(&[found]) && in_order(&[]));
        assert!(!in_order(&[older, found]), "the second disk is ahead");
        assert!(!in_order(&[found, Stamp { token: Token::from_raw(1), ..older }]), "two sessions");
    }

    proptest! {
        /// Whatever is written when, a disk copied at any other step than memory is found out exactly when
        /// a slot differs between the two instants.
        #[test]
        fn any_difference_of_instants_is_found(
            slots in prop::collection::vec(0..SLOTS, 1..40), disk_at: prop::sample::Index, memory_at: prop::sample::Index
        ) {
            let mut ledger = ledger();
            let mut platter = Platter::formatted(&ledger);
            let mut instants = vec![(platter.clone(), ledger.acknowledged.clone(), ledger.last)];
            for slot in slots {
                write(&mut ledger, &mut platter, slot);
                instants.push((platter.clone(), ledger.acknowledged.clone(), ledger.last));
            }
            let (disk, disk_knows, _) = disk_at.get(&instants);
            let (_, acknowledged, last) = memory_at.get(&instants);
            let then = Ledger { acknowledged: acknowledged.clone(), last: *last, pending: None, ..ledger };
            let differing = disk_knows.iter().zip(acknowledged).filter(|(a, b)| a != b).count();
            prop_assert_eq!(disk.faults(&then).len(), differing);
        }
    }
}
