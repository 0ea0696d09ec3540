//! Mending: objects by their parity, the index from the packs.

use std::collections::HashSet;

use keyframe_store::{Error as StoreError, ObjectName, Put};
use serde::Serialize;

use crate::check::Problem;
use crate::crypto::Rights;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::index::{IndexWriter, PackRecord};
use crate::object::{HEADER_BYTES, Header, Object, PUBLIC_KEY, STORED_MOST};
use crate::pack::{read_directory, read_tail};
use crate::parity;
use crate::progress::Run;
use crate::repository::{Repository, config_id};

/// The object in these bytes, mended in memory when it has to be.
///
/// # Errors
/// What is wrong with it, when parity does not mend it.
pub(crate) fn checked_or_mended(
    bytes: Vec<u8>,
    kind: ObjectKind,
    id: ObjectId,
    repository: Option<ObjectId>,
    auth: &[u8; 32],
) -> Result<Object> {
    match Object::check(bytes.clone(), kind, id, repository, auth) {
        // Another version may be a flipped bit.
        Err(error @ (Error::Damaged { .. } | Error::Version { .. })) => match mend(&bytes, kind, id, auth) {
            Some(mended) => Object::check(mended, kind, id, repository, auth),
            None => Err(error),
        },
        checked => checked,
    }
}

/// The whole object as it was written, when its parity suffices.
#[must_use]
pub(crate) fn mend(bytes: &[u8], kind: ObjectKind, id: ObjectId, auth: &[u8; 32]) -> Option<Vec<u8>> {
    let headers = [bytes.get(..HEADER_BYTES), parity::header_copy(bytes)];
    headers.into_iter().flatten().find_map(|header| {
        let header = Header::decode(header, kind, id).ok()?;
        let protected = usize::try_from(header.protected_len()).ok()?;
        let fixed = parity::mend(bytes, header.parity, protected, auth);
        // Where the content is whole, only the parity was damaged.
        let mut whole = fixed.or_else(|| bytes.get(..protected).map(<[u8]>::to_vec))?;
        parity::append(&mut whole, header.parity, auth).ok()?;
        Object::check(whole.clone(), kind, id, Some(header.repository), auth).is_ok().then_some(whole)
    })
}

/// What a repair did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RepairReport {
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects that were mended by their parity.
    pub mended: Vec<String>,
    /// Packs that were put into the index again.
    pub reindexed: u64,
    /// What could not be mended.
    pub problems: Vec<Problem>,
}

/// Mends every object that its parity covers, then puts packs into the index that are in none, and takes the place of index
/// objects that are beyond repair.
///
/// # Errors
/// [`Error::NotAllowed`] without the right to write; [`Error::Store`]. Damage that stays is in the report.
pub fn repair(repository: &Repository, run: Run<'_>) -> Result<RepairReport> {
    repository.keys().require(Rights::Write, "repair")?;
    let mut report = RepairReport::default();
    run.progress.step("looking for damage");
    let mut work = vec![(ObjectKind::Config, config_id())];
    for kind in [ObjectKind::Key].into_iter().chain(ObjectKind::AUTHENTICATED) {
        work.extend(repository.list(kind)?.into_iter().map(|(id, _)| (kind, id)));
    }
    let total = work.len() as u64;
    let mut lost_indexes = Vec::new();
    for (kind, id) in work {
        run.check()?;
        report.objects += 1;
        run.progress.bytes(report.objects, total);
        match mend_object(repository, kind, id) {
            Ok(false) => {}
            Ok(true) => report.mended.push(format!("{} {id}", kind.area())),
            Err(Error::Store(error)) if error.is_not_found() => {}
            Err(error) if error.is_damage() => {
                // One of a newer version is not lost, and not ours to remove.
                if kind == ObjectKind::Index && !matches!(error, Error::Version { .. }) {
                    lost_indexes.push(id);
                }
                let object = format!("{} {id}", kind.area());
                report.problems.push(Problem { object, what: error.to_string(), serious: kind != ObjectKind::Index });
            }
            Err(error) => return Err(error),
        }
    }
    report.reindexed = reindex(repository, &lost_indexes, run)?;
    Ok(report)
}

/// An object as far as it can be read: zeros stand for what is on bad sectors, for parity to fill in.
fn read_all(repository: &Repository, name: &ObjectName, kind: ObjectKind, id: ObjectId) -> Result<Vec<u8>> {
    const BLOCK: u64 = 4096;
    let store = repository.store();
    match store.get(name, STORED_MOST) {
        Err(StoreError::Unreadable { .. }) => {}
        Err(StoreError::TooLarge { .. }) => {
            return Err(Error::damaged(format_args!("{} {id}", kind.area()), "it is larger than it can be"));
        }
        bytes => return Ok(bytes?),
    }
    let len = store.stat(name)?.len.min(STORED_MOST);
    let mut bytes = Vec::new();
    for at in (0..len).step_by(BLOCK as usize) {
        let part = (len - at).min(BLOCK) as usize;
        match store.get_range(name, at, part) {
            Err(StoreError::Unreadable { .. }) => bytes.resize(bytes.len() + part, 0),
            read => bytes.extend_from_slice(&read?),
        }
    }
    Ok(bytes)
}

/// Whether it had to be mended, and was.
fn mend_object(repository: &Repository, kind: ObjectKind, id: ObjectId) -> Result<bool> {
    let name = kind.name(id)?;
    let bytes = read_all(repository, &name, kind, id)?;
    let public = matches!(kind, ObjectKind::Config | ObjectKind::Key);
    let auth = if public { &PUBLIC_KEY } else { repository.keys().auth() };
    let parity_is_whole = |bytes: &[u8]| mend(bytes, kind, id, auth).as_deref() == Some(bytes);
    match Object::check(bytes.clone(), kind, id, Some(repository.keys().repository()), auth) {
        Ok(object) if object.header.parity.recovery == 0 || parity_is_whole(&bytes) => Ok(false),
        found => {
            let Some(mended) = mend(&bytes, kind, id, auth) else { return found.map(|_| false) };
            // What was removed since it was read stays removed.
            repository.store().stat(&name)?;
            repository.store().put(&name, &mended, Put::Replace)?;
            Ok(true)
        }
    }
}

/// Writes an index of the packs that are in no readable index; then removes the unreadable ones.
///
/// A prune that runs meanwhile may take a pack away that is in the new index. Backups would then refer to what is not there, so the
/// new index is looked at again once it can be seen, as a point is.
fn reindex(repository: &Repository, lost: &[ObjectId], run: Run<'_>) -> Result<u64> {
    const ATTEMPTS: u32 = 3;
    for _ in 0..ATTEMPTS {
        let mut found = unindexed(repository, lost, run)?;
        let packs: Vec<ObjectId> = found.packs().collect();
        if packs.is_empty() {
            remove_lost(repository, lost)?;
            return Ok(0);
        }
        let written = repository.write_index(&mut found)?;
        let condemned = crate::prune::condemned_packs(repository)?;
        let there: HashSet<ObjectId> = repository.list(ObjectKind::Pack)?.into_iter().map(|(id, _)| id).collect();
        if packs.iter().all(|pack| there.contains(pack) && !condemned.contains(pack)) {
            remove_lost(repository, lost)?;
            return Ok(packs.len() as u64);
        }
        for id in written.ids {
            repository.store().delete(&ObjectKind::Index.name(id)?)?;
        }
    }
    Err(Error::Overtaken)
}

/// Removes index objects that nothing can be read from, if that is still so.
fn remove_lost(repository: &Repository, lost: &[ObjectId]) -> Result<()> {
    for id in lost {
        match repository.read_object(ObjectKind::Index, *id, STORED_MOST) {
            Err(Error::Store(error)) if error.is_not_found() => {}
            Err(Error::Version { .. }) => {}
            Err(error) if error.is_damage() => repository.store().delete(&ObjectKind::Index.name(*id)?)?,
            read => drop(read?),
        }
    }
    Ok(())
}

/// The packs that are in no readable index and not condemned.
fn unindexed(repository: &Repository, lost: &[ObjectId], run: Run<'_>) -> Result<IndexWriter> {
    let index = repository.index_without(lost)?;
    let condemned = crate::prune::condemned_packs(repository)?;
    let mut writer = IndexWriter::new(repository.index_limits());
    for (id, _) in repository.list(ObjectKind::Pack)? {
        run.check()?;
        if index.number_of(id).is_some() || condemned.contains(&id) {
            continue;
        }
        match repository
            .read_object(ObjectKind::Pack, id, STORED_MOST)
            .and_then(|pack| record_of(repository, id, &pack))
        {
            Ok((record, directory)) => writer.add_directory(&record, &directory),
            // It was told as a problem already, or was removed since it was listed.
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(writer)
}

fn record_of(repository: &Repository, id: ObjectId, pack: &Object) -> Result<(PackRecord, crate::pack::Directory)> {
    let (layout, content) = read_tail(id, &pack.header, pack.body())?;
    let (at, len) = layout.directory()?;
    let start = usize::try_from(at).ok().and_then(|at| at.checked_sub(HEADER_BYTES));
    let bytes = start.and_then(|start| pack.body().get(start..start.checked_add(len)?));
    let bytes = bytes.ok_or_else(|| Error::damaged(format_args!("pack {id}"), "it has no directory"))?;
    let directory = read_directory(repository.keys(), id, content, layout.table_len, bytes.to_vec())?;
    Ok((PackRecord::new(id, layout, &directory)?, directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Builder;

    #[test]
    fn damage_anywhere_is_mended() {
        let (id, auth) = (ObjectId::random().unwrap(), [4; 32]);
        let mut builder = Builder::new(0);
        builder.buffer().extend((0..20_000_u32).flat_map(u32::to_le_bytes));
        let bytes = builder.finish(ObjectKind::Point, id, id, &auth, 3).unwrap();
        for at in (0..bytes.len()).step_by(977).chain([0, 8, 48, bytes.len() - 1, bytes.len() - 40]) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert_eq!(mend(&bad, ObjectKind::Point, id, &auth).as_ref(), Some(&bytes), "byte {at}");
        }
        let mut sector = bytes.clone();
        sector[5000..5512].fill(0);
        assert_eq!(mend(&sector, ObjectKind::Point, id, &auth).as_ref(), Some(&bytes));
        let mut gone = bytes;
        gone[..40_000].fill(0);
        assert_eq!(mend(&gone, ObjectKind::Point, id, &auth), None);
    }
}
