//! What is said about a point after it was made: that it is held, locked until a day, verified, drilled.
//!
//! Every statement is an object of its own, written once: two hosts that say something at once do not get in each other's way.
//! Holds and locks bind whoever forgets by this code; they do not bind whoever can delete in the store itself, for whom stores
//! have locks of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use keyframe_store::Put;
use keyframe_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::{Keys, Rights};
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::object::{Builder, Object};
use crate::repository::Repository;

const SCHEMA: &str = "keyframe.mark/1";
/// Most bytes of a mark.
const MARK_MOST: u64 = 64 << 10;
/// How long somebody may be about to forget a point; who takes longer was killed.
const FORGETTING_TAKES: Duration = Duration::from_secs(3600);
/// Most characters of what a person says in it.
const TEXT_MOST: usize = 1000;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Statement {
    /// It is kept, whatever rules say, until that is taken back.
    Hold {
        /// Why.
        reason: Option<String>,
    },
    /// Holds are taken back: these, whatever clocks say. One that is put beside stands.
    Release {
        /// The marks.
        holds: Vec<ObjectId>,
    },
    /// It is being forgotten: who says something at the same moment is told.
    Forgetting,
    /// It is kept until a time. Locks are only ever made longer.
    Lock {
        /// Until when.
        until: Timestamp,
    },
    /// It was brought back to see whether it works.
    Drilled {
        /// Whether it did.
        passed: bool,
        /// BLAKE3 of the document that is evidence of it, on the host that did it.
        document: String,
    },
}

/// A statement about a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    schema: String,
    /// Its own id.
    pub id: ObjectId,
    /// The point's.
    pub point: ObjectId,
    /// When it was said, by the clock of whoever said it.
    pub at: Timestamp,
    /// On which host.
    pub host: String,
    /// What.
    pub statement: Statement,
}

/// What all marks of a point come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Held, and why.
    pub held: Option<String>,
    /// Locked until then.
    pub locked_until: Option<Timestamp>,
    /// The latest drill: when, and whether it passed.
    pub drilled: Option<(Timestamp, bool)>,
    /// Marks that hold it.
    pub holds: Vec<ObjectId>,
    /// Since when somebody forgets it.
    #[serde(skip)]
    forgetting: Option<Timestamp>,
}

impl Standing {
    /// Why it must not be forgotten now.
    #[must_use]
    pub fn kept_as(&self, now: Timestamp) -> Option<&'static str> {
        if self.locked_until.is_some_and(|until| until > now) {
            Some("locked")
        } else {
            self.held.as_ref().map(|_| "held")
        }
    }

    /// Marks of one point, in any order.
    fn of(mut marks: Vec<Mark>) -> Self {
        marks.sort_by_key(|mark| (mark.at, mark.id));
        let mut standing = Self::default();
        let released: Vec<ObjectId> = marks
            .iter()
            .filter_map(|mark| match &mark.statement {
                Statement::Release { holds } => Some(holds),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        for mark in marks {
            match mark.statement {
                Statement::Hold { reason } if !released.contains(&mark.id) => {
                    standing.held = Some(reason.unwrap_or_default());
                    standing.holds.push(mark.id);
                }
                Statement::Hold { .. } | Statement::Release { .. } => {}
                Statement::Forgetting => standing.forgetting = Some(mark.at),
                Statement::Lock { until } => standing.locked_until = standing.locked_until.max(Some(until)),
                Statement::Drilled { passed, .. } => standing.drilled = Some((mark.at, passed)),
            }
        }
        standing
    }
}

impl Mark {
    fn encode(&self, keys: &Keys, parity_percent: u8) -> Result<Vec<u8>> {
        let key = keys.metadata_key(ObjectKind::Mark, self.id)?;
        let mut builder = Builder::new(256);
        let start = builder.position();
        serde_json::to_writer(builder.buffer(), self).map_err(|_| Error::Pipeline)?;
        key.seal(0, builder.buffer(), start)?;
        builder.finish(ObjectKind::Mark, self.id, keys.repository(), keys.auth(), parity_percent)
    }

    fn decode(mut object: Object, keys: &Keys) -> Result<Self> {
        let id = object.header.id;
        let damaged = |why| Error::damaged(format_args!("mark {id}"), why);
        let plain = keys.metadata_key(ObjectKind::Mark, id)?.open(0, object.body_mut());
        let plain = plain.ok_or_else(|| damaged("it is not what was sealed"))?;
        let mark: Self = serde_json::from_slice(plain).map_err(|_| damaged("it is no mark that this version knows"))?;
        if mark.schema != SCHEMA || mark.id != id {
            return Err(damaged("its content is not possible"));
        }
        Ok(mark)
    }
}

/// Says something about a point.
///
/// # Errors
/// [`Error::NoPoint`] when it was forgotten meanwhile; [`Error::NotAllowed`]: taking a hold back needs all rights;
/// [`Error::Usage`], [`Error::Store`].
pub fn mark(repository: &Repository, point: ObjectId, statement: Statement) -> Result<Mark> {
    let lifts = matches!(statement, Statement::Release { .. } | Statement::Forgetting);
    let rights = if lifts { Rights::Full } else { Rights::Write };
    repository.keys().require(rights, "say this about points")?;
    if let Statement::Hold { reason: Some(reason) } = &statement
        && reason.chars().count() > TEXT_MOST
    {
        return Err(Error::Usage { what: format!("a reason has at most {TEXT_MOST} characters") });
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (schema, id) = (SCHEMA.to_owned(), ObjectId::random()?);
    let mark = Mark { schema, id, point, at: Timestamp::now(), host, statement };
    let bytes = mark.encode(repository.keys(), repository.parity_percent())?;
    let name = ObjectKind::Mark.name(mark.id)?;
    repository.store().put(&name, &bytes, Put::Create).map_err(Error::Store)?;
    // Whoever forgets says so first and looks at marks then; whoever marks does it the other way round. One of the two sees the
    // other.
    if mark.statement != Statement::Forgetting {
        let (standings, _) = standings(repository)?;
        let begun = standings.get(&point).and_then(|standing| standing.forgetting);
        if begun.is_some_and(|begun| begun.until(mark.at) < FORGETTING_TAKES) {
            let what = format!(
                "point {point} is being forgotten at this moment: look whether it is still there, and try again"
            );
            return Err(Error::Usage { what });
        }
    }
    repository.point(point)?;
    Ok(mark)
}

/// Takes all holds of a point back that are there now.
///
/// # Errors
/// As [`mark`].
pub fn release(repository: &Repository, point: ObjectId) -> Result<Mark> {
    let (standings, _) = standings(repository)?;
    let holds = standings.get(&point).map(|standing| standing.holds.clone()).unwrap_or_default();
    mark(repository, point, Statement::Release { holds })
}

/// How points stand, by their ids.
pub type Standings = BTreeMap<ObjectId, Standing>;

/// What is said of points, and marks that cannot be read with the reason.
///
/// # Errors
/// [`Error::Store`], [`Error::NotAllowed`].
pub fn standings(repository: &Repository) -> Result<(Standings, Vec<(ObjectId, Error)>)> {
    let (mut by_point, mut damaged): (BTreeMap<ObjectId, Vec<Mark>>, _) = (BTreeMap::new(), Vec::new());
    for (id, _) in repository.list(ObjectKind::Mark)? {
        match repository
            .read_object(ObjectKind::Mark, id, MARK_MOST)
            .and_then(|object| Mark::decode(object, repository.keys()))
        {
            Ok(mark) => by_point.entry(mark.point).or_default().push(mark),
            // Removed since it was listed, with its point.
            Err(Error::Store(error)) if error.is_not_found() => {}
            Err(error) if error.is_damage() => damaged.push((id, error)),
            Err(error) => return Err(error),
        }
    }
    Ok((by_point.into_iter().map(|(point, marks)| (point, Standing::of(marks))).collect(), damaged))
}

/// Removes marks of points that are gone. Marks are only written about points that are there.
///
/// # Errors
/// [`Error::Store`].
pub(crate) fn drop_orphans(repository: &Repository) -> Result<()> {
    for (id, _) in repository.list(ObjectKind::Mark)? {
        let object = repository.read_object(ObjectKind::Mark, id, MARK_MOST);
        let Ok(mark) = object.and_then(|object| Mark::decode(object, repository.keys())) else { continue };
        if matches!(repository.point(mark.point), Err(Error::NoPoint { .. })) {
            repository.store().delete(&ObjectKind::Mark.name(id)?).map_err(Error::Store)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        serde_json::from_value(serde_json::json!(text)).unwrap()
    }

    fn said(time: &str, statement: Statement) -> Mark {
        let id = ObjectId::random().unwrap();
        Mark { schema: SCHEMA.to_owned(), id, point: id, at: at(time), host: "h".to_owned(), statement }
    }

    #[test]
    fn locks_are_never_made_shorter_and_a_release_takes_back_what_it_names() {
        let lock = |until| Statement::Lock { until: at(until) };
        let hold = Statement::Hold { reason: Some("trial".to_owned()) };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let standing =
            Standing::of(vec![said(late, lock("2027-01-01T00:00:00Z")), said(early, lock("2028-01-01T00:00:00Z"))]);
        assert_eq!(standing.locked_until, Some(at("2028-01-01T00:00:00Z")));
        assert_eq!(standing.kept_as(at("2027-06-01T00:00:00Z")), Some("locked"));
        assert_eq!(standing.kept_as(at("2028-06-01T00:00:00Z")), None);
        // Whatever clocks say: a release takes back what it names.
        let held = said(late, hold.clone());
        let release = Statement::Release { holds: vec![held.id] };
        let standing = Standing::of(vec![said(early, release.clone()), held.clone()]);
        assert_eq!(standing.kept_as(at(late)), None);
        let standing = Standing::of(vec![said(late, release), held, said(early, hold)]);
        assert_eq!((standing.kept_as(at(late)), standing.held.as_deref()), (Some("held"), Some("trial")));
    }
}
