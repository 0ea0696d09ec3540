//! Saying something else about a snapshot: its name, note, owner, expiry and pin.
//!
//! One document, written in one rename: there is nothing to finish or to undo.

use keyframe_types::{SnapshotName, SnapshotRef, TimeToLive, Timestamp};

use crate::context::Context;
use crate::error::Error;
use crate::machine::Machine;
use crate::snapshots;
use crate::state::label::{Expires, Label};
use crate::state::manifest::Manifest;
use crate::state::sealed;

/// The longest note, in bytes.
const LONGEST_NOTE: usize = 4096;
/// The longest name of an owner, in bytes.
const LONGEST_OWNER: usize = 256;

/// How long a snapshot is wanted from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Until someone says otherwise.
    Always,
    /// So long, from now.
    For(TimeToLive),
}

/// What to say about a snapshot; what is `None` stays.
#[derive(Debug, Clone)]
pub struct LabelRequest {
    /// The snapshot.
    pub reference: SnapshotRef,
    /// Its new name.
    pub name: Option<SnapshotName>,
    /// Its new note; empty for none.
    pub note: Option<String>,
    /// How long it is wanted.
    pub wanted: Option<Wanted>,
    /// Whether it is kept whatever else is said.
    pub pinned: Option<bool>,
    /// Whose it is.
    pub owner: Option<String>,
}

/// Says something else about a snapshot; gives the snapshot as it is described now.
///
/// # Errors
/// [`Error::NoSnapshot`], [`Error::SnapshotExists`] when another of the machine has that name, [`Error::BadRequest`],
/// [`Error::Busy`].
pub fn set(ctx: &Context<'_>, request: &LabelRequest) -> Result<Manifest, Error> {
    check(request.note.as_deref(), request.owner.as_deref())?;
    let vm = &request.reference.vm;
    // Names are told apart under the lock: two commands cannot give one name to two snapshots.
    let (_lock, machine) = Machine::lock(ctx, vm, &format!("snapshot-set {}", request.reference))?;
    let manifest = snapshots::find(&machine.dir, vm, &request.reference.snapshot)?;
    if let Some(name) = &request.name {
        let (others, _) = snapshots::scan(&machine.dir)?;
        if others.iter().any(|other| other.name == *name && other.id != manifest.id) {
            return Err(Error::SnapshotExists { vm: vm.clone(), name: name.to_string() });
        }
    }
    let dir = machine.dir.snapshot(&manifest.id);
    let before = Label::read_to_change(&dir)?;
    let expires = request.wanted.map(|wanted| match wanted {
        Wanted::Always => Expires::Never,
        Wanted::For(span) => Expires::At(Timestamp::now().after(span)),
    });
    let label = Label {
        name: request.name.clone().or(before.name),
        note: request.note.clone().or(before.note),
        owner: request.owner.clone().or(before.owner),
        expires: expires.or(before.expires),
        pinned: request.pinned.or(before.pinned),
    };
    sealed::write(&dir.label(), &label)?;
    snapshots::read(&machine.dir, &manifest.id)?
        .ok_or_else(|| Error::NoSnapshot { vm: vm.clone(), selector: request.reference.snapshot.to_string() })
}

/// Checks what people say in words of their own.
///
/// # Errors
/// [`Error::BadRequest`].
pub(crate) fn check(note: Option<&str>, owner: Option<&str>) -> Result<(), Error> {
    let bad = |what: String| Err(Error::BadRequest { what });
    if note.is_some_and(|note| note.len() > LONGEST_NOTE) {
        return bad(format!("a note has at most {LONGEST_NOTE} bytes"));
    }
    match owner {
        Some(owner) if owner.is_empty() || owner.len() > LONGEST_OWNER || owner.chars().any(char::is_control) => {
            bad(format!("an owner has 1 to {LONGEST_OWNER} bytes, in one line"))
        }
        _ => Ok(()),
    }
}
