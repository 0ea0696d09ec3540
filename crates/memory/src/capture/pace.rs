//! When the reading thread sleeps. Two reasons, both measured with a guest (docs/CAPTURE.md):
//!
//! * **Naps.** QEMU sends every page with a write of its own. A reader that waits for readiness is
//!   woken for each of them, a hundred thousand times for a GiB, and takes the processor from the
//!   guest each time. One that finds nothing to read sleeps for a millisecond instead: the pipe
//!   holds what comes meanwhile. The nap shrinks as soon as the pipe gets near full in it.
//! * **Braking.** When the disk falls behind, reading on at full speed until the buffer is full and
//!   then not at all would stop QEMU, and every write fault of the guest with it, for as long as the
//!   disk takes. As the buffer fills, reading is slowed to what the disk takes plus a share of what
//!   room is left. A fault needs one page: at a tenth of the speed it is still served at once.

use std::time::Duration;

/// The longest nap, taken when little comes.
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// The shortest nap: about what the timer can do.
const SHORTEST_NAP: Duration = Duration::from_micros(60);
/// The room that is left is spread over this time.
const HORIZON: Duration = Duration::from_millis(200);
/// Time over which the disk's rate is averaged.
const RATE_WINDOW: Duration = Duration::from_millis(20);
/// Braking does not sleep for less than this: a sleep always takes a little longer than asked.
const SHORTEST_BRAKE: Duration = Duration::from_micros(500);
/// Braking sleeps no longer than this at once, to look again.
const LONGEST_BRAKE: Duration = Duration::from_millis(10);
/// Bytes to read at once: freely, and while braking.
pub(super) const MAX_READ_BYTES: usize = 512 << 10;
const BRAKED_READ_BYTES: usize = 32 << 10;

/// Room in the buffer, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub free: usize,
    pub total: usize,
}

/// Decides about sleeping; knows no clock and does not sleep itself.
#[derive(Debug)]
pub(super) struct Pace {
    pipe_bytes: usize,
    nap: Duration,
    read_since_nap: usize,
    written: u64,
    /// Bytes per second the disk takes.
    disk_rate: f64,
    /// Seconds by which reading is ahead of the rate allowed.
    owed: f64,
}

impl Pace {
    /// For an input that holds so many bytes while nobody reads.
    pub fn new(pipe_bytes: usize) -> Self {
        Self { pipe_bytes, nap: LONGEST_NAP, read_since_nap: 0, written: 0, disk_rate: 0.0, owed: 0.0 }
    }

    /// Most bytes to read next.
    pub fn read_bytes(room: Room) -> usize {
        if brakes(room) { BRAKED_READ_BYTES } else { MAX_READ_BYTES }
    }

    /// There was nothing to read: how long to sleep.
    pub fn nap(&mut self) -> Duration {
        if self.read_since_nap > self.pipe_bytes / 2 {
            self.nap = (self.nap / 2).max(SHORTEST_NAP);
        } else if self.read_since_nap < self.pipe_bytes / 8 {
            self.nap = (self.nap * 2).min(LONGEST_NAP);
        }
        self.read_since_nap = 0;
        self.nap
    }

    /// So many bytes were read, and the disk has taken `written` in all: how long to sleep before
    /// reading on. `since_last` is the time since this was last asked.
    pub fn brake(&mut self, read: usize, written: u64, room: Room, since_last: Duration) -> Option<Duration> {
        self.read_since_nap += read;
        self.note_disk(written, since_last);
        if !brakes(room) {
            self.owed = 0.0;
            return None;
        }
        let allowed_rate = self.disk_rate + room.free as f64 / HORIZON.as_secs_f64();
        self.owed += read as f64 / allowed_rate.max(1.0) - since_last.as_secs_f64();
        self.owed = self.owed.clamp(0.0, LONGEST_BRAKE.as_secs_f64());
        (self.owed >= SHORTEST_BRAKE.as_secs_f64()).then(|| Duration::from_secs_f64(self.owed))
    }

    fn note_disk(&mut self, written: u64, since_last: Duration) {
        let seconds = since_last.as_secs_f64().max(1e-6);
        let weight = 1.0 - (-seconds / RATE_WINDOW.as_secs_f64()).exp();
        let rate = written.saturating_sub(self.written) as f64 / seconds;
        self.disk_rate += weight * (rate - self.disk_rate);
        self.written = written;
    }
}

/// A quarter of the buffer takes up speed differences; the rest is braked into.
fn brakes(room: Room) -> bool {
    room.free < room.total / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn naps_shrink_when_the_pipe_fills_and_grow_when_little_comes() {
        let mut pace = Pace::new(MIB);
        let full = Room { free: 24 * MIB, total: 24 * MIB };
        assert_eq!(pace.nap(), LONGEST_NAP);
        let mut naps = Vec::new();
        for read in [MIB, MIB, MIB / 4, MIB / 16] {
            assert!(pace.brake(read, 0, full, Duration::from_millis(1)).is_none());
            naps.push(pace.nap().as_micros());
        }
        assert_eq!(naps, [500, 250, 250, 500]);
        for _ in 0..20 {
            pace.brake(MIB, 0, full, Duration::from_millis(1));
            assert!(pace.nap() >= SHORTEST_NAP);
        }
    }

    /// The disk stops; the guest sends 400 MB/s as long as it is let.
    #[test]
    fn a_disk_that_stops_brakes_the_stream_slowly() {
        let (mut pace, total) = (Pace::new(MIB), 24 * MIB);
        let (mut free, mut at, mut rates) = (total, Duration::ZERO, Vec::new());
        let (mut since, mut mark) = (Duration::ZERO, (Duration::ZERO, total));
        while free > 0 && at < Duration::from_millis(500) {
            let room = Room { free, total };
            let read = Pace::read_bytes(room).min(free);
            let receiving = Duration::from_secs_f64(read as f64 / 400e6);
            since += receiving;
            let pause = pace.brake(read, 0, room, since).unwrap_or_default();
            at += receiving + pause;
            since = pause;
            free -= read;
            if at - mark.0 > Duration::from_millis(50) {
                rates.push((mark.1 - free) as f64 / (at - mark.0).as_secs_f64());
                mark = (at, free);
            }
        }
        assert!(at >= Duration::from_millis(500), "buffer gone after {at:?}");
        assert!(rates.iter().all(|rate| *rate > 3e6), "stopped dead: {rates:?}");
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0] * 1.2), "not smooth: {rates:?}");
    }

    #[test]
    fn a_slow_but_steady_disk_is_kept_busy() {
        let mut pace = Pace::new(MIB);
        let room = Room { free: 6 * MIB, total: 24 * MIB };
        let step = Duration::from_millis(1);
        for n in 1..200 {
            pace.brake(0, n * 100_000, room, step);
        }
        let pause = pace.brake(32 << 10, 200 * 100_000, room, Duration::ZERO).unwrap_or_default();
        let rate = (32 << 10) as f64 / pause.as_secs_f64();
        assert!(rate > 100e6, "{rate} is below what the disk takes");
    }
}
