//! JSON documents that notice when they were cut short or changed.
//!
//! ```text
//! {
//!   "schema": "keyframe.snapshot/1",
//!   "blake3": "<BLAKE3 of the bytes of the body, 64 hexadecimal digits>",
//!   "body": { … }
//! }
//! ```
//! Schema and checksum are looked at before the body is decoded.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, IoContext as _};
use crate::state::durable;

/// The largest document that is read: a thousand disks with chains of a thousand layers do not reach it.
const LIMIT_BYTES: u64 = 64 << 20;

/// A document with a schema.
pub trait Document: Serialize + DeserializeOwned {
    /// Name and version of its form.
    const SCHEMA: &'static str;
}

#[derive(Deserialize)]
struct Envelope<'a> {
    schema: String,
    blake3: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Writes `document` to `path` durably.
///
/// # Errors
/// [`Error::Io`]; an older document at `path` is then unchanged.
pub fn write<T: Document>(path: &Path, document: &T) -> Result<(), Error> {
    let body = serde_json::to_string_pretty(document).map_err(|source| Error::Encode { source })?;
    durable::replace(path, sealed(T::SCHEMA, &body).as_bytes())
}

/// A body in its envelope.
#[must_use]
pub fn sealed(schema: &str, body: &str) -> String {
    let digest = blake3::hash(body.as_bytes());
    format!("{{\n\"schema\": \"{schema}\",\n\"blake3\": \"{digest}\",\n\"body\": {body}\n}}\n")
}

/// Reads a document; `None` when there is no such file.
///
/// # Errors
/// [`Error::Damaged`] when it is not whole, [`Error::Schema`] when it is of another version,
/// [`Error::Io`] when it cannot be read.
pub fn read<T: Document>(path: &Path) -> Result<Option<T>, Error> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.or_io("open", path)?,
    };
    let mut text = String::new();
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    match file.by_ref().take(LIMIT_BYTES).read_to_string(&mut text) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(damaged("it is not text".into()));
        }
        other => other.or_io("read", path)?,
    };
    decode(&text, path).map(Some)
}

/// Decodes what was read from `path`, which only an error names.
///
/// # Errors
/// [`Error::Damaged`], [`Error::Schema`].
pub fn decode<T: Document>(text: &str, path: &Path) -> Result<T, Error> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|error| damaged(format!("it is cut short or no JSON: {error}")))?;
    if envelope.schema != T::SCHEMA {
        return Err(Error::Schema { path: path.to_owned(), found: envelope.schema, expected: T::SCHEMA });
    }
    if blake3::hash(envelope.body.get().as_bytes()).to_hex().as_str() != envelope.blake3 {
        return Err(damaged("its checksum is wrong: it was changed after it was written".into()));
    }
    serde_json::from_str(envelope.body.get()).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        count: u32,
    }
    impl Document for Note {
        const SCHEMA: &'static str = "keyframe.note/1";
    }

    fn written() -> (tempfile::TempDir, std::path::PathBuf, Note) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note.json");
        let note = Note { text: "an {odd} \"text\"\n".into(), count: 7 };
        write(&path, &note).unwrap();
        (dir, path, note)
    }

    #[test]
    fn a_document_reads_back() {
        let (_dir, path, note) = written();
        assert_eq!(read::<Note>(&path).unwrap(), Some(note));
        assert_eq!(read::<Note>(&path.with_extension("none")).unwrap(), None);
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_the_body_is_noticed() {
        let (_dir, path, note) = written();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read::<Note>(&path), Err(Error::Damaged { .. })), "cut to {length}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            match read::<Note>(&path) {
                Err(Error::Damaged { .. } | Error::Schema { .. }) => {}
                // A flipped bit between the members may still be the same document.
                other => assert_eq!(other.unwrap().unwrap(), note, "byte {at}"),
            }
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let (_dir, path, _) = written();
        let text = std::fs::read_to_string(&path).unwrap().replace("note/1", "note/2");
        std::fs::write(&path, text).unwrap();
        assert!(matches!(read::<Note>(&path), Err(Error::Schema { .. })));
    }
}
