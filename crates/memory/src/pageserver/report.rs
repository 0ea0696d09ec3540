//! What a page server tells while it runs and when it is done.

use keyframe_vmstate::hot::HotList;
use serde::{Deserialize, Serialize};

/// Something that happened. Times count from the start of [`super::serve`] or [`super::resume`]. Serializes as a
/// JSON object, so that a server in a process of its own can write one on each line of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Notice {
    /// The package is out: QEMU has all it needs to load its devices.
    PackageSent {
        /// When, in microseconds.
        after_us: u64,
    },
    /// The devices are loaded; unless QEMU was started paused, its vCPUs run now.
    DevicesLoaded {
        /// When, in microseconds.
        after_us: u64,
    },
    /// There is a hot list and it is of no use: another machine's, or damaged. Pages come in their plain order.
    HotListIgnored,
    /// A destination that was paused goes on; it asks for pages again.
    Resumed {
        /// When, in microseconds.
        after_us: u64,
    },
    /// Pages have been sent. Told a few times a second.
    Progress {
        /// Pages sent on this and earlier connections, eager blocks included.
        pages_sent: u64,
        /// Pages that the snapshot holds. Zero pages are sent only where they are asked for, so this can be
        /// passed a little.
        pages_held: u64,
    },
    /// The memory is complete and QEMU has said so.
    Hydrated {
        /// When, in microseconds.
        after_us: u64,
    },
}

/// Who wants to know. Called from the thread that serves, so it must not block.
pub trait Observer: Sync {
    /// Something happened.
    fn notice(&self, notice: Notice);

    /// Whether a destination that does not listen yet is going to; `None` from who does not know.
    fn is_coming(&self) -> Option<bool> {
        None
    }
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn notice(&self, _: Notice) {}
}

/// What a complete page server did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeReport {
    /// The figures.
    pub figures: ServeFigures,
    /// What was wanted, in that order: extents of the hot list that came in time, and those that the guest
    /// asked for. The next server of this snapshot does well to send them first.
    pub learned: HotList,
}

/// The figures of a complete page server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeFigures {
    /// Pages sent on this connection, zero pages included.
    pub pages_sent: u64,
    /// Bytes written to QEMU.
    pub bytes_sent: u64,
    /// Requests that QEMU sent.
    pub requests: u64,
    /// Those whose page was already on its way.
    pub requests_in_flight: u64,
    /// Extents in the hot list.
    #[serde(default)]
    pub hot_extents: u64,
    /// Those of them that were sent before the guest asked for them.
    #[serde(default)]
    pub hot_extents_in_time: u64,
    /// Longest time from reading a request until its extent was handed to the kernel, in microseconds.
    pub answer_us_max: u64,
    /// Sum of these times over the requests that were not in flight, in microseconds.
    pub answer_us_sum: u64,
    /// From the start until the package was out, in microseconds.
    pub package_us: u64,
    /// From the start until the devices were loaded, in microseconds.
    pub devices_us: u64,
    /// From the start until the memory was complete, in microseconds.
    pub hydrated_us: u64,
}
