//! Room that is kept for the daemon's own records: a file that is given up when its file system is full, so that what was done can
//! still be written down, what is not kept can still go, and somebody can still ask for more of that.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyframe_engine::state::durable;

use crate::alerts::Trouble;
use crate::verdict::Severity;

/// How much is kept.
const BYTES: usize = 4 << 20;
/// With less than this free it is given up.
const HARDLY_ANY: u64 = 1 << 20;
/// With this much free it is made: far from filling up anything itself.
const AMPLE: u64 = 32 << 20;
/// How often that is tried.
const TRIED_EVERY: Duration = Duration::from_secs(5);

/// The file, and whether it is there.
#[derive(Debug)]
pub(crate) struct Ballast {
    path: PathBuf,
    is_there: bool,
    tried: Option<Instant>,
}

impl Ballast {
    /// The one below `HOME/serve`, made or given up as the room is.
    pub fn of(serve: &Path) -> Self {
        let path = serve.join("ballast");
        let is_there = path.exists();
        let mut ballast = Self { path, is_there, tried: None };
        ballast.look();
        ballast
    }

    /// Gives it up when there is hardly any room, and makes it when there is enough.
    pub fn look(&mut self) {
        let Some(free) = self.path.parent().and_then(|serve| rustix::fs::statvfs(serve).ok()) else { return };
        let free = free.f_bavail * free.f_frsize;
        if self.is_there && free < HARDLY_ANY {
            tracing::error!(
                "the file system of HOME/serve is full: what was kept for the daemon's own records is given up"
            );
            self.is_there = false;
            if let Err(error) = durable::remove_file(&self.path) {
                tracing::error!("what was kept for the daemon's own records cannot be given up: {error}");
            }
        } else if !self.is_there && free >= AMPLE && self.tried.is_none_or(|at| at.elapsed() >= TRIED_EVERY) {
            self.tried = Some(Instant::now());
            self.is_there = self.make();
        }
    }

    fn make(&self) -> bool {
        // Nothing that a file system could make less of.
        let mut bytes = vec![0; BYTES];
        blake3::Hasher::new().update(b"ballast").finalize_xof().fill(&mut bytes);
        let made = durable::replace(&self.path, &bytes);
        if let Err(error) = &made {
            tracing::warn!("no room can be kept for the daemon's own records: {error}");
            // A part of it would only take room.
            let _ = durable::remove_file(&self.path.with_extension("tmp"));
        }
        made.is_ok()
    }

    /// What is to be seen to while no room is kept.
    pub fn trouble(&self) -> Option<Trouble> {
        (!self.is_there).then(|| Trouble {
            id: "ballast".to_owned(),
            severity: Severity::Critical,
            machine: None,
            what: "hardly any room is left for the daemon's own records, and none is kept for them any more".to_owned(),
            advice: format!(
                "make room, `keyframe cost` says what takes it: when these cannot be written nothing is begun any more. With {} free \
                 room is kept again",
                keyframe_types::ByteLen::from_bytes(AMPLE)
            ),
        })
    }
}
