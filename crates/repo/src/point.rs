//! Points: what a repository is for. Each is complete in itself.

use keyframe_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::Keys;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, ObjectKind};
use crate::object::{Builder, Object};
use crate::tree::{Child, IMAGE_MOST, NodeRef};

const SCHEMA: &str = "keyframe.point/1";
/// Most bytes of a point.
pub const POINT_MOST: u64 = 4 << 20;

/// An image in a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// What it is in the point, such as `disk0` or `memory`.
    pub label: String,
    /// Its length.
    pub bytes: u64,
    /// The root of its tree; nothing where it is all zeros.
    pub root: Child,
}

/// What storing it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes of the images, holes included.
    pub logical_bytes: u64,
    /// Bytes that were read and hashed.
    pub scanned_bytes: u64,
    /// Bytes of pages that were new.
    pub new_bytes: u64,
    /// Bytes that were written to the store, everything included.
    pub stored_bytes: u64,
    /// Time from the beginning until the point was there.
    pub seconds: f64,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    schema: String,
    /// Its id.
    pub id: ObjectId,
    /// Whose history it belongs to.
    pub name: String,
    /// What it was marked with.
    pub tags: Vec<String>,
    /// When.
    pub created: Timestamp,
    /// On which host.
    pub host: String,
    /// What is in it.
    pub images: Vec<StoredImage>,
    /// What it cost.
    pub totals: Totals,
    /// What its maker wants to find again; the repository does not look at it.
    pub extra: serde_json::Value,
}

impl Point {
    /// A point of now.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name or tag that could not be found again; [`Error::Crypto`].
    pub fn new(name: &str, tags: Vec<String>, images: Vec<StoredImage>, totals: Totals) -> Result<Self> {
        for word in tags.iter().map(String::as_str).chain([name]) {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if word.is_empty() || word.len() > 64 || !word.chars().all(plain) {
                let what = format!("{word:?} cannot be a name: use at most 64 letters, digits, '.', '_' and '-'");
                return Err(Error::Usage { what });
            }
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            schema: SCHEMA.to_owned(),
            id: ObjectId::random()?,
            name: name.to_owned(),
            tags,
            created: Timestamp::now(),
            host,
            images,
            totals,
            extra: serde_json::Value::Null,
        })
    }

    /// The roots of its trees with the images' sizes.
    pub fn roots(&self) -> impl Iterator<Item = (NodeRef, u64)> + '_ {
        self.images.iter().filter_map(|image| image.root.map(|root| (root, image.bytes)))
    }

    /// As a point, or as one that is pending.
    pub(crate) fn encode(&self, kind: ObjectKind, keys: &Keys, parity_percent: u8) -> Result<Vec<u8>> {
        let key = keys.metadata_key(kind, self.id)?;
        let mut builder = Builder::new(1024);
        let start = builder.position();
        serde_json::to_writer(builder.buffer(), self).map_err(|_| Error::Pipeline)?;
        key.seal(0, builder.buffer(), start)?;
        let bytes = builder.finish(kind, self.id, keys.repository(), keys.auth(), parity_percent)?;
        if bytes.len() as u64 > POINT_MOST {
            // Nobody would read it.
            let what =
                format!("the point would have {} bytes, more than the {POINT_MOST} that it may have", bytes.len());
            return Err(Error::Usage { what });
        }
        Ok(bytes)
    }

    pub(crate) fn decode(mut object: Object, keys: &Keys) -> Result<Self> {
        let (id, kind) = (object.header.id, object.header.kind);
        let damaged = |why| Error::damaged(format_args!("point {id}"), why);
        let plain = keys.metadata_key(kind, id)?.open(0, object.body_mut());
        let plain = plain.ok_or_else(|| damaged("it is not what was sealed"))?;
        let point: Self = serde_json::from_slice(plain).map_err(|_| damaged("it is no point"))?;
        let possible =
            |image: &StoredImage| image.bytes <= IMAGE_MOST && image.root.is_none_or(|root| root.is_possible());
        if point.schema != SCHEMA || point.id != id || !point.images.iter().all(possible) {
            return Err(damaged("its content is not possible"));
        }
        Ok(point)
    }
}
