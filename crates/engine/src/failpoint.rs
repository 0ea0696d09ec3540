//! Places where a test may kill the process, as a power cut or `kill -9` would, or make a step fail.
//!
//! `KEYFRAME_FAILPOINT=NAME` makes the process kill itself when it comes by, `KEYFRAME_FAILPOINT=NAME!` makes the step
//! fail there, as a full disk would; `KEYFRAME_FAILPOINT=NAME!N` only when it comes by for the Nth time.
//! `KEYFRAME_FAILPOINT=NAME@` stops the process there (SIGSTOP) until somebody lets it go on, for what others see meanwhile.
//! `KEYFRAME_FAILPOINT_WITH=PID` has that process, a QEMU, killed with it, as a power cut would. Every step of every
//! operation that changes something has one, so that a loop over [`Failpoint::ALL`] kills at every step.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Error;

macro_rules! failpoints {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// A step behind which a test may kill the process.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Failpoint { $($(#[$doc])* $variant,)+ }

        impl Failpoint {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name to give in `KEYFRAME_FAILPOINT`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

failpoints! {
    /// The journal of a snapshot is written.
    SnapshotJournaled = "snapshot-journaled",
    /// Its overlays exist.
    SnapshotOverlaysCreated = "snapshot-overlays-created",
    /// QEMU has opened them.
    SnapshotOverlaysOpened = "snapshot-overlays-opened",
    /// The guest's file systems are frozen.
    SnapshotFrozen = "snapshot-frozen",
    /// Disks and memory are cut at QEMU's own stop, and the cut is exact. Failing here is what a cut does that is not.
    SnapshotProved = "snapshot-proved",
    /// Disks and memory are cut.
    SnapshotCut = "snapshot-cut",
    /// The head names the new layers.
    SnapshotHeadWritten = "snapshot-head-written",
    /// Memory is being written.
    SnapshotStreaming = "snapshot-streaming",
    /// Memory is written and durable.
    SnapshotCaptured = "snapshot-captured",
    /// The manifest is written: committed.
    SnapshotCommitted = "snapshot-committed",
    /// The head descends from it.
    SnapshotParentWritten = "snapshot-parent-written",
    /// The map of an image that is going to share pages is written; the image is whole.
    ShareMapWritten = "share-map-written",
    /// The image has the name of a shared one.
    ShareRenamed = "share-renamed",
    /// Pages that lie in other files are holes.
    SharePunched = "share-punched",
    /// A whole image is written beside a shared one.
    WholeWritten = "whole-written",
    /// It has its name.
    WholeNamed = "whole-named",
    /// The map is gone; the shared image's own file is still there.
    WholeMapRemoved = "whole-map-removed",
    /// The journal of a revert is written.
    RevertJournaled = "revert-journaled",
    /// Its overlays exist.
    RevertOverlaysCreated = "revert-overlays-created",
    /// The new QEMU runs.
    RevertProcessStarted = "revert-process-started",
    /// The present is stopped.
    RevertPresentStopped = "revert-present-stopped",
    /// The new QEMU has loaded what it needs.
    RevertLoaded = "revert-loaded",
    /// The head names the new process: committed.
    RevertHeadWritten = "revert-head-written",
    /// The reverted machine runs.
    RevertRunning = "revert-running",
    /// The present's memory is written, and the journal says so.
    RevertPresentCaptured = "revert-present-captured",
    /// The old process has ended; the snapshot that keeps the present is not committed.
    RevertPresentEnded = "revert-present-ended",
    /// The present is kept as a snapshot.
    RevertPresentKept = "revert-present-kept",
    /// The old process is gone.
    RevertOldGone = "revert-old-gone",
    /// A fork's directory and layers exist, its definition does not.
    ForkPrepared = "fork-prepared",
    /// A fork's definition is written.
    ForkDefined = "fork-defined",
    /// A fork's process has loaded its state.
    ForkLoaded = "fork-loaded",
    /// The head names its process: it is a machine, stopped before its first instruction.
    ForkHeadWritten = "fork-head-written",
    /// It runs, with the original's network card and the cable pulled.
    ForkRunning = "fork-running",
    /// The layers and documents of a machine that boots from a point exist, its definition does not.
    BootPrepared = "boot-prepared",
    /// Its definition is written.
    BootDefined = "boot-defined",
    /// It is shown what it stands on.
    BootServed = "boot-served",
    /// Its process has loaded its state, or could start.
    BootLoaded = "boot-loaded",
    /// The head names its process: it is a machine, stopped before its first instruction.
    BootHeadWritten = "boot-head-written",
    /// It runs.
    BootRunning = "boot-running",
    /// All of a disk that stood on a repository is copied.
    PullCopied = "pull-copied",
    /// QEMU was told to take the repository out of the chain.
    PullFinalized = "pull-finalized",
    /// It has, and its job is gone.
    PullDismissed = "pull-dismissed",
    /// What of the machine is local is on record.
    PullNoted = "pull-noted",
    /// The journal of a deletion is written.
    DeleteJournaled = "delete-journaled",
    /// The memory that others refer to has a second name.
    DeleteMemoryKept = "delete-memory-kept",
    /// The manifest is gone: committed.
    DeleteManifestGone = "delete-manifest-gone",
    /// Memory and layers that nothing needs are gone.
    DeleteFilesGone = "delete-files-gone",
    /// The journal of a merge is written.
    MergeJournaled = "merge-journaled",
    /// All data are copied.
    MergeCopied = "merge-copied",
    /// QEMU reads through the shorter chain.
    MergeChainChanged = "merge-chain-changed",
    /// All headers name the merged layer.
    MergeHeadersWritten = "merge-headers-written",
    /// The documents tell of the merged layer: committed.
    MergeCommitted = "merge-committed",
    /// The files of merged layers are gone.
    MergeFilesGone = "merge-files-gone",
    /// The place for a test's throw-away machine is taken.
    TestClaimed = "test-claimed",
    /// Its layers exist.
    TestPrepared = "test-prepared",
    /// Its QEMU runs.
    TestStarted = "test-started",
    /// It has loaded its state.
    TestLoaded = "test-loaded",
    /// It runs, on its way to its first probe.
    TestRunning = "test-running",
    /// All probes are done.
    TestProbed = "test-probed",
    /// What was seen is kept beside the snapshot, and no record names it.
    TestEvidenceKept = "test-evidence-kept",
    /// The throw-away machine is gone.
    TestThrownAway = "test-thrown-away",
    /// The verdict is on record.
    TestRecorded = "test-recorded",
    /// A backup's snapshot is taken.
    BackupSnapshotTaken = "backup-snapshot-taken",
    /// It is held, and it is known what changed.
    BackupHeld = "backup-held",
    /// All images are stored, and there is no point.
    BackupStored = "backup-stored",
    /// The point is there: committed. The snapshot is, too.
    BackupPointMade = "backup-point-made",
    /// The journal of a live backup is written.
    LiveJournaled = "live-journaled",
    /// Its scratch files exist.
    LiveScratchMade = "live-scratch-made",
    /// QEMU has opened them, they have no names any more, and filters are there that nothing goes through.
    LivePrepared = "live-prepared",
    /// The guest is stopped for the filters of several disks.
    LiveStopped = "live-stopped",
    /// The first disk's filter is in place, and the guest still stands.
    LiveAttaching = "live-attaching",
    /// All filters are in place, and the guest runs.
    LiveAttached = "live-attached",
    /// The disks as they were are shown.
    LiveShown = "live-shown",
    /// All disks are read; they are still shown.
    LiveStored = "live-stored",
    /// The filters are gone, and there is no point.
    LiveRemoved = "live-removed",
    /// The point is there: committed.
    LivePointMade = "live-point-made",
    /// The directory of a machine that is being restored is there, and says so.
    RestoreJournaled = "restore-journaled",
    /// Its disks are written.
    RestoreDisksWritten = "restore-disks-written",
    /// Its running state is a snapshot.
    RestoreMemoryWritten = "restore-memory-written",
    /// Its head is written, its definition is not.
    RestoreHeadWritten = "restore-head-written",
    /// Its definition is written; the journal still says that it is being made.
    RestoreDefined = "restore-defined",
    /// All layers of a restore in place are made, and no head names them.
    InPlaceLayersMade = "in-place-layers-made",
    /// It is noted which layer's header is being put right.
    MendingNoted = "mending-noted",
    /// The header is written.
    MendingHeaderWritten = "mending-header-written",
    /// The tree knows what the file looks like now: committed.
    MendingCommitted = "mending-committed",
}

/// The variable that names the failpoint.
pub const VARIABLE: &str = "KEYFRAME_FAILPOINT";

/// The variable that names a process which dies with this one.
pub const WITH_VARIABLE: &str = "KEYFRAME_FAILPOINT_WITH";

/// Kills or stops the process, or fails, if this is the failpoint that was asked for.
///
/// # Errors
/// [`Error::Failpoint`].
pub fn pass(point: Failpoint) -> Result<(), Error> {
    #[cfg(test)]
    dying::pass_by();
    static ASKED: OnceLock<Option<Asked>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| Asked::of(&text))).as_ref();
    let Some(asked) = asked.filter(|asked| asked.name == point.name()) else { return Ok(()) };
    if asked.fails_now() {
        return Err(Error::Failpoint { name: point.name() });
    }
    if asked.what == What::Stop {
        // A signal that cannot be sent shows in the test that waits for the process to be stopped.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
    if asked.what == What::Kill {
        let with = std::env::var(WITH_VARIABLE).ok().and_then(|pid| pid.parse().ok());
        if let Some(with) = with.and_then(rustix::process::Pid::from_raw) {
            // One that is gone already is as good.
            let _ = rustix::process::kill_process(with, rustix::process::Signal::KILL);
        }
        let us = rustix::process::getpid();
        // Nothing may run behind this, no destructor and no handler: SIGKILL is what a test wants to see.
        let _ = rustix::process::kill_process(us, rustix::process::Signal::KILL);
        std::process::abort();
    }
    Ok(())
}

/// What was asked for.
#[derive(Debug)]
struct Asked {
    name: String,
    what: What,
    passed: AtomicU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Kill,
    Stop,
    Fail,
    /// Only when somebody comes by for this time, counted from 1.
    FailOnce(u32),
}

impl Asked {
    fn of(text: &str) -> Self {
        if let Some(name) = text.strip_suffix('@') {
            return Self { name: name.to_owned(), what: What::Stop, passed: AtomicU32::new(0) };
        }
        let (name, what) = match text.split_once('!') {
            None => (text, What::Kill),
            // A number that is none asks for nothing that ever comes.
            Some((name, number)) if !number.is_empty() => (name, What::FailOnce(number.parse().unwrap_or(0))),
            Some((name, _)) => (name, What::Fail),
        };
        Self { name: name.to_owned(), what, passed: AtomicU32::new(0) }
    }

    fn fails_now(&self) -> bool {
        let time = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        self.what == What::Fail || self.what == What::FailOnce(time)
    }
}

#[cfg(test)]
pub(crate) use dying::{Died, die_at};

/// Dying within a test's own process: a panic at the failpoint of some number, so that nothing behind it runs.
#[cfg(test)]
mod dying {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// What a thread panics with that dies on purpose.
    #[derive(Debug)]
    pub(crate) struct Died;

    /// The failpoint, counted from now on, at which this thread dies; none of them if `None`.
    pub(crate) fn die_at(number: Option<usize>) {
        LEFT.set(number);
    }

    pub(super) fn pass_by() {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                std::panic::panic_any(Died);
            }
            left => LEFT.set(left.map(|left| left - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood() {
        let fails = |text: &str| {
            let asked = Asked::of(text);
            (asked.name.clone(), [asked.fails_now(), asked.fails_now(), asked.fails_now()])
        };
        assert_eq!(fails("a-b"), ("a-b".to_owned(), [false; 3]));
        assert_eq!(Asked::of("a-b").what, What::Kill);
        assert_eq!((Asked::of("a-b@").what, fails("a-b@")), (What::Stop, ("a-b".to_owned(), [false; 3])));
        assert_eq!(fails("a-b!"), ("a-b".to_owned(), [true; 3]));
        assert_eq!(fails("a-b!2"), ("a-b".to_owned(), [false, true, false]));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Failpoint::ALL.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Failpoint::ALL.len());
    }
}
