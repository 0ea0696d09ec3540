//! The form that every object has: a header, a body, a MAC over both, and parity.
//!
//! ```text
//! header 64   magic, version, kind, ids, length of the body, shape of the parity
//! body
//! mac 32      keyed BLAKE3 of header and body
//! parity      see [`crate::parity`]
//! ```
//!
//! Magic and version are looked at first; then lengths, then the MAC, and only then the body.

use crate::error::{Error, Result};
use crate::ids::{Fields, ObjectId, ObjectKind};
use crate::parity::{self, Shape};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the MAC.
pub const MAC_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"KEYFRAME";
/// The version that this program reads and writes.
pub const VERSION: u16 = 1;
/// Most bytes of an object's body.
pub const OBJECT_MOST: u64 = 256 << 20;
/// Most bytes of a whole object, parity included: more are never read, whatever a store says of its length.
pub const STORED_MOST: u64 = 2 * OBJECT_MOST;
/// The key for objects that are read before any key is known: it makes their MAC a checksum.
pub const PUBLIC_KEY: [u8; 32] = *b"keyframe repository 1: checksum.";

/// What an object's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its id: that of its name.
    pub id: ObjectId,
    /// The repository's.
    pub repository: ObjectId,
    /// Length of the body in bytes.
    pub body_len: u64,
    /// Its parity.
    pub parity: Shape,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.kind.code(), 0]);
        bytes.extend_from_slice(&self.parity.recovery.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.repository.as_bytes());
        bytes.extend_from_slice(&self.body_len.to_le_bytes());
        bytes.extend_from_slice(&self.parity.shard_bytes.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes.try_into().unwrap_or([0; HEADER_BYTES])
    }

    /// Reads a header for what is expected under a name.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Damaged`].
    pub fn decode(bytes: &[u8], kind: ObjectKind, id: ObjectId) -> Result<Self> {
        let name = || format!("{} {id}", kind.area());
        let damaged = |why| Error::damaged(name(), why);
        let mut fields = Fields::new(bytes);
        let cut = || damaged("it is cut short");
        if fields.bytes(8).ok_or_else(cut)? != MAGIC {
            return Err(damaged("it does not begin with the magic number"));
        }
        let version = fields.u16().ok_or_else(cut)?;
        if version != VERSION {
            return Err(Error::Version { object: name(), found: version, known: VERSION });
        }
        let (code, flags) = (fields.u8().ok_or_else(cut)?, fields.u8().ok_or_else(cut)?);
        let (recovery, zero) = (fields.u16().ok_or_else(cut)?, fields.u16().ok_or_else(cut)?);
        let (found_id, repository) = (fields.id().ok_or_else(cut)?, fields.id().ok_or_else(cut)?);
        let body_len = fields.u64().ok_or_else(cut)?;
        let (shard_bytes, last) = (fields.u32().ok_or_else(cut)?, fields.u32().ok_or_else(cut)?);
        if code != kind.code() || found_id != id {
            return Err(damaged("another object lies under its name"));
        }
        if flags != 0 || zero != 0 || last != 0 {
            return Err(damaged("its header has unknown bits"));
        }
        let parity = Shape { recovery, shard_bytes };
        let header = Self { kind, id, repository, body_len, parity };
        if body_len > OBJECT_MOST || !parity.is_sound(header.protected_len()) {
            return Err(damaged("its lengths are not possible"));
        }
        Ok(header)
    }

    /// Bytes of header, body and MAC.
    #[must_use]
    pub fn protected_len(&self) -> u64 {
        HEADER_BYTES as u64 + self.body_len + MAC_BYTES as u64
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.protected_len() + parity::len(self.parity, self.protected_len())
    }
}

/// Builds an object in one buffer: the body is appended behind the header's place.
#[derive(Debug)]
pub struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// An empty body.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self::reusing(Vec::new(), capacity)
    }

    /// An empty body in memory that was used before.
    #[must_use]
    pub fn reusing(mut bytes: Vec<u8>, capacity: usize) -> Self {
        bytes.clear();
        bytes.reserve(capacity);
        bytes.resize(HEADER_BYTES, 0);
        Self { bytes }
    }

    /// The object so far; the body begins at [`HEADER_BYTES`]. May be appended to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes so far, header included.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Header, MAC and parity: the object as it is stored. `parity_percent` is of the object's length; 0 is none.
    ///
    /// # Errors
    /// [`Error::Pipeline`] when the body is longer than an object can be, or parity cannot be computed, which its bounds exclude.
    pub fn finish(
        self,
        kind: ObjectKind,
        id: ObjectId,
        repository: ObjectId,
        auth: &[u8; 32],
        parity_percent: u8,
    ) -> Result<Vec<u8>> {
        let mut bytes = self.bytes;
        let protected = bytes.len() + MAC_BYTES;
        let parity = Shape::choose(protected as u64, parity_percent);
        let body_len = (bytes.len() - HEADER_BYTES) as u64;
        if body_len > OBJECT_MOST {
            // Nobody could read it.
            return Err(Error::Pipeline);
        }
        let header = Header { kind, id, repository, body_len, parity }.encode();
        if let Some(place) = bytes.first_chunk_mut::<HEADER_BYTES>() {
            *place = header;
        }
        let mac = blake3::keyed_hash(auth, &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        parity::append(&mut bytes, parity, auth)?;
        Ok(bytes)
    }
}

/// An object that was read whole and authenticated.
#[derive(Debug)]
pub struct Object {
    /// Its header.
    pub header: Header,
    bytes: Vec<u8>,
}

impl Object {
    /// Checks an object that was read under a name.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Damaged`].
    pub fn check(
        bytes: Vec<u8>,
        kind: ObjectKind,
        id: ObjectId,
        repository: Option<ObjectId>,
        auth: &[u8; 32],
    ) -> Result<Self> {
        let header = Header::decode(&bytes, kind, id)?;
        let damaged = |why| Error::damaged(format_args!("{} {id}", kind.area()), why);
        if repository.is_some_and(|repository| repository != header.repository) {
            return Err(damaged("it belongs to another repository"));
        }
        if bytes.len() as u64 != header.object_len() {
            return Err(damaged("it has not the length that its header tells"));
        }
        let end = usize::try_from(header.protected_len()).unwrap_or(usize::MAX);
        let (content, mac) = bytes
            .get(..end)
            .and_then(<[u8]>::split_last_chunk::<MAC_BYTES>)
            .ok_or_else(|| damaged("it is cut short"))?;
        if blake3::keyed_hash(auth, content) != *mac {
            return Err(damaged("its authentication code does not fit"));
        }
        Ok(Self { header, bytes })
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        let len = usize::try_from(self.header.body_len).unwrap_or(0);
        self.bytes.get(HEADER_BYTES..HEADER_BYTES + len).unwrap_or_default()
    }

    /// The body, to open sections in place.
    pub fn body_mut(&mut self) -> &mut [u8] {
        let len = usize::try_from(self.header.body_len).unwrap_or(0);
        self.bytes.get_mut(HEADER_BYTES..HEADER_BYTES + len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_read_back_and_every_flipped_bit_is_found() {
        let (id, repository) = (ObjectId::random().unwrap(), ObjectId::random().unwrap());
        let mut builder = Builder::new(100);
        builder.buffer().extend_from_slice(b"some body");
        let bytes = builder.finish(ObjectKind::Point, id, repository, &[9; 32], 0).unwrap();
        let check = |bytes: &[u8]| Object::check(bytes.to_vec(), ObjectKind::Point, id, Some(repository), &[9; 32]);
        assert_eq!(check(&bytes).unwrap().body(), b"some body");
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(check(&bad).is_err(), "bit {at}");
        }
        for len in 0..bytes.len() {
            assert!(check(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(Object::check(bytes.clone(), ObjectKind::Index, id, None, &[9; 32]).is_err());
        assert!(Object::check(bytes.clone(), ObjectKind::Point, repository, None, &[9; 32]).is_err());
        assert!(Object::check(bytes, ObjectKind::Point, id, Some(id), &[9; 32]).is_err());
    }

    #[test]
    fn a_newer_version_is_told() {
        let id = ObjectId::random().unwrap();
        let mut bytes = Builder::new(0).finish(ObjectKind::Point, id, id, &[0; 32], 0).unwrap();
        bytes[8] = 2;
        let error = Object::check(bytes, ObjectKind::Point, id, None, &[0; 32]).unwrap_err();
        assert!(matches!(error, Error::Version { found: 2, known: 1, .. }), "{error}");
    }
}
