//! The records of condemned packs.

use std::collections::HashSet;

use keyframe_store::Put;

use crate::error::{Error, Result};
use crate::ids::{Fields, ObjectId, ObjectKind};
use crate::object::{Builder, STORED_MOST};
use crate::repository::Repository;

/// Packs that some prune wants to remove.
///
/// # Errors
/// [`Error::Store`], [`Error::Damaged`].
pub(crate) fn condemned_packs(repository: &Repository) -> Result<HashSet<ObjectId>> {
    let mut all = HashSet::new();
    for (id, _) in repository.list(ObjectKind::Condemned)? {
        match read_condemned(repository, id) {
            Err(Error::Store(error)) if error.is_not_found() => {}
            packs => all.extend(packs?),
        }
    }
    Ok(all)
}

/// The packs that one prune condemned.
pub(crate) fn read_condemned(repository: &Repository, id: ObjectId) -> Result<Vec<ObjectId>> {
    let mut object = repository.read_object(ObjectKind::Condemned, id, STORED_MOST)?;
    let key = repository.keys().metadata_key(ObjectKind::Condemned, id)?;
    let damaged = || Error::damaged(format_args!("condemned {id}"), "it is not what was sealed");
    let plain = key.open(0, object.body_mut()).ok_or_else(damaged)?;
    let mut fields = Fields::new(plain);
    Ok(std::iter::from_fn(|| fields.id()).collect())
}

/// Says which packs are to be removed, once the grace period has passed.
pub(crate) fn write_condemned(repository: &Repository, packs: &[ObjectId]) -> Result<ObjectId> {
    let id = ObjectId::random()?;
    let mut builder = Builder::new(packs.len() * 16 + 128);
    let start = builder.position();
    packs.iter().for_each(|pack| builder.buffer().extend_from_slice(pack.as_bytes()));
    repository.keys().metadata_key(ObjectKind::Condemned, id)?.seal(0, builder.buffer(), start)?;
    let (keys, parity) = (repository.keys(), repository.parity_percent());
    let bytes = builder.finish(ObjectKind::Condemned, id, keys.repository(), keys.auth(), parity)?;
    repository.store().put(&ObjectKind::Condemned.name(id)?, &bytes, Put::Create)?;
    Ok(id)
}
