//! Key slots: the repository's keys, wrapped by something that a person has.
//!
//! A slot is a JSON document in an object of kind `key`. Several slots hold the same keys, or some of them. Taking a slot away
//! takes nothing from those who opened it before: they know the keys.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::age::{self, AgeIdentities, AgeRecipient};
use super::bundle::{Keys, Rights};
use super::random;
use super::seal::{SectionKey, TAG_BYTES};
use crate::error::{Error, Result};
use crate::ids::{ObjectId, hex, hex_decode};

/// What a wrapping key is derived from.
type Secret = Zeroizing<[u8; 32]>;

const KEY_FILE_WORD: &str = "keyframe-key-1:";
/// Argon2id as new slots use it: 64 MiB, three passes.
const ARGON_KIB: u32 = 64 * 1024;
const ARGON_PASSES: u32 = 3;
/// What a slot of a hostile repository may ask of us.
const ARGON_KIB_MOST: u32 = 1024 * 1024;
const ARGON_PASSES_MOST: u32 = 16;

/// 256 random bits in a file that only its owner reads.
#[derive(Clone)]
pub struct KeyFile(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFile(..)")
    }
}

impl KeyFile {
    /// Draws a fresh one.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn generate() -> Result<Self> {
        Ok(Self(random()?.into()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::KeyFile`] when it is not there, is no key file, or is readable for others.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_private(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        let digits = text.trim().strip_prefix(KEY_FILE_WORD);
        if digits.is_some_and(|digits| hex_decode(digits, &mut *key)) {
            Ok(Self(key))
        } else {
            Err(Error::KeyFile { path: path.to_owned(), why: "is no key file".to_owned() })
        }
    }

    /// Writes it to a file that is not there yet, for its owner alone.
    ///
    /// # Errors
    /// [`Error::KeyFile`] when there is a file already, or it cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        let trouble = |error: std::io::Error| Error::KeyFile {
            path: path.to_owned(),
            why: match error.kind() {
                ErrorKind::AlreadyExists => "is there already".to_owned(),
                _ => format!("cannot be written: {error}"),
            },
        };
        let text = Zeroizing::new(format!("{KEY_FILE_WORD}{}\n", hex(&*self.0)));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(trouble)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(trouble)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(trouble)
    }

    /// Tells key files apart without telling the key.
    fn hint(&self) -> String {
        let digest = blake3::derive_key("keyframe repository 1: telling key files apart", &*self.0);
        hex(&digest[..8])
    }
}

/// The text of a file that only its owner can read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    const MOST: u64 = 16 << 10;
    let trouble = |why: String| Error::KeyFile { path: path.to_owned(), why };
    let unreadable = |error: std::io::Error| trouble(format!("cannot be read: {error}"));
    let file = fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(trouble("can be read by others: chmod 600 it".to_owned()));
    }
    if !metadata.is_file() || metadata.len() > MOST {
        return Err(trouble("is no key file".to_owned()));
    }
    // Room for all of it beforehand: growing would leave copies in memory.
    let mut text = Zeroizing::new(String::with_capacity(MOST as usize + 1));
    file.take(MOST).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// What opens a slot, or what one is made for.
#[derive(Clone)]
pub enum Unlock {
    /// A key file.
    File(KeyFile),
    /// A passphrase.
    Passphrase(Zeroizing<String>),
    /// age identities; a slot is made for the first of them.
    Age(AgeIdentities),
    /// An age recipient: a slot can be made for it, and it opens none.
    AgeRecipient(AgeRecipient),
    /// Nothing: for a repository without encryption.
    Nothing,
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl Unlock {
    /// The key file at a path, or the age identities in it.
    ///
    /// # Errors
    /// As [`KeyFile::read`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = read_private(path)?;
        if AgeIdentities::are_in(&text) {
            AgeIdentities::parse(path, &text).map(Self::Age)
        } else {
            KeyFile::parse(path, &text).map(Self::File)
        }
    }

    /// The key file at a path; it is made where there is none.
    ///
    /// # Errors
    /// As [`KeyFile::read`] and [`KeyFile::write_new`].
    pub fn from_file_or_new(path: &Path) -> Result<(Self, bool)> {
        if path.exists() {
            return Ok((Self::from_file(path)?, false));
        }
        let key = KeyFile::generate()?;
        key.write_new(path)?;
        Ok((Self::File(key), true))
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::File(_) => "key file",
            Self::Passphrase(_) => "passphrase",
            Self::Age(_) => "age identity",
            Self::AgeRecipient(_) => "age recipient",
            Self::Nothing => "no key at all",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Wrap {
    File {
        hint: String,
    },
    Argon2id {
        memory_kib: u32,
        passes: u32,
    },
    /// The secret, as an age file for this recipient.
    Age {
        recipient: String,
        secret: String,
    },
    Open,
}

/// A key slot, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeySlot {
    id: ObjectId,
    repository: ObjectId,
    rights: Rights,
    label: String,
    created: keyframe_types::Timestamp,
    wrap: Wrap,
    salt: String,
    sealed: String,
}

/// A key slot, as people see it.
#[derive(Debug, Clone, Serialize)]
pub struct SlotInfo {
    /// Its id.
    pub id: ObjectId,
    /// What its holder may do.
    pub rights: Rights,
    /// What it was called.
    pub label: String,
    /// When it was made.
    pub created: keyframe_types::Timestamp,
    /// `key file`, `passphrase`, `age` or `none`.
    pub kind: &'static str,
    /// The age recipient that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
}

impl KeySlot {
    /// Wraps keys.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub(crate) fn new(id: ObjectId, keys: &Keys, unlock: &Unlock, label: &str) -> Result<Self> {
        let salt: [u8; 32] = random()?;
        let for_age = |recipient: &AgeRecipient| -> Result<(Wrap, Secret)> {
            let (secret, sealed) = recipient.secret()?;
            Ok((Wrap::Age { recipient: recipient.to_string(), secret: hex(&sealed) }, secret))
        };
        let (wrap, secret) = match unlock {
            Unlock::File(file) => (Wrap::File { hint: file.hint() }, file.0.clone()),
            Unlock::Passphrase(text) => {
                let wrap = Wrap::Argon2id { memory_kib: ARGON_KIB, passes: ARGON_PASSES };
                (wrap, argon(text, &salt, ARGON_KIB, ARGON_PASSES)?)
            }
            Unlock::Age(identities) => for_age(&identities.recipient()?)?,
            Unlock::AgeRecipient(recipient) => for_age(recipient)?,
            Unlock::Nothing => (Wrap::Open, Secret::default()),
        };
        let mut slot = Self {
            id,
            repository: keys.repository(),
            rights: keys.rights(),
            label: label.to_owned(),
            created: keyframe_types::Timestamp::now(),
            wrap,
            salt: hex(&salt),
            sealed: String::new(),
        };
        let key = slot.wrapping_key(&secret, &salt)?;
        let mut sealed = keys.to_bundle().to_vec();
        key.seal(0, &mut sealed, 0)?;
        slot.sealed = hex(&sealed);
        Ok(slot)
    }

    pub(crate) fn info(&self) -> SlotInfo {
        let kind = match self.wrap {
            Wrap::File { .. } => "key file",
            Wrap::Argon2id { .. } => "passphrase",
            Wrap::Age { .. } => "age",
            Wrap::Open => "none",
        };
        let recipient = match &self.wrap {
            Wrap::Age { recipient, .. } => Some(recipient.clone()),
            Wrap::File { .. } | Wrap::Argon2id { .. } | Wrap::Open => None,
        };
        SlotInfo { id: self.id, rights: self.rights, label: self.label.clone(), created: self.created, kind, recipient }
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn repository(&self) -> ObjectId {
        self.repository
    }

    /// The secret behind this slot; nothing when it is not of this kind.
    fn secret(&self, unlock: &Unlock, salt: &[u8; 32]) -> Result<Option<Secret>> {
        Ok(match (unlock, &self.wrap) {
            (Unlock::File(file), Wrap::File { hint }) if *hint == file.hint() => Some(file.0.clone()),
            (Unlock::Passphrase(text), Wrap::Argon2id { memory_kib, passes }) => {
                Some(argon(text, salt, *memory_kib, *passes)?)
            }
            (Unlock::Age(identities), Wrap::Age { recipient, secret }) => {
                let mut sealed = vec![0; (secret.len() / 2).min(age::SEALED_MOST)];
                hex_decode(secret, &mut sealed).then(|| identities.open(recipient, &sealed)).flatten()
            }
            (Unlock::Nothing, Wrap::Open) => Some(Secret::default()),
            _ => None,
        })
    }

    fn wrapping_key(&self, secret: &Secret, salt: &[u8; 32]) -> Result<SectionKey> {
        let mut hasher = blake3::Hasher::new_derive_key("keyframe repository 1: wrapping a bundle of keys");
        hasher.update(&**secret).update(salt).update(self.repository.as_bytes()).update(self.id.as_bytes());
        hasher.update(&[self.rights as u8]);
        SectionKey::new(hasher.finalize().as_bytes())
    }

    fn open(&self, unlock: &Unlock) -> Result<Option<Keys>> {
        let mut salt = [0; 32];
        if !hex_decode(&self.salt, &mut salt) {
            return Err(Error::damaged(format_args!("key {}", self.id), "its salt is none"));
        }
        let Some(secret) = self.secret(unlock, &salt)? else { return Ok(None) };
        let key = self.wrapping_key(&secret, &salt)?;
        let len = self.sealed.len() / 2;
        let mut sealed = Zeroizing::new(vec![0; len.min(1024)]);
        if len < TAG_BYTES || !hex_decode(&self.sealed, &mut sealed) {
            return Err(Error::damaged(format_args!("key {}", self.id), "its bundle is none"));
        }
        let keys = key.open(0, &mut sealed).and_then(|bundle| Keys::from_bundle(self.repository, bundle));
        Ok(keys.filter(|keys| keys.rights() == self.rights))
    }
}

fn argon(text: &str, salt: &[u8; 32], memory_kib: u32, passes: u32) -> Result<Zeroizing<[u8; 32]>> {
    let failed = || Error::Crypto { what: "Argon2id" };
    if memory_kib > ARGON_KIB_MOST || passes > ARGON_PASSES_MOST {
        return Err(failed());
    }
    let parameters = argon2::Params::new(memory_kib, passes, 1, Some(32)).map_err(|_| failed())?;
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
    let mut key = Zeroizing::new([0; 32]);
    argon.hash_password_into(text.as_bytes(), salt, &mut *key).map_err(|_| failed())?;
    Ok(key)
}

/// Opens the first slot that this opens.
///
/// # Errors
/// [`Error::WrongKey`] when it opens none. A damaged slot is passed over: another may do.
pub(crate) fn open_slot(slots: &[KeySlot], unlock: &Unlock) -> Result<Keys> {
    let mut best: Option<Keys> = None;
    for slot in slots {
        let Ok(Some(keys)) = slot.open(unlock) else { continue };
        if best.as_ref().is_none_or(|best| best.rights() < keys.rights()) {
            best = Some(keys);
        }
    }
    best.ok_or(Error::WrongKey { tried: unlock.word() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ObjectId {
        ObjectId::random().unwrap()
    }

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn slots_open_with_what_wrapped_them() {
        let keys = Keys::generate(id()).unwrap();
        let file = Unlock::File(KeyFile::generate().unwrap());
        let slots = [
            KeySlot::new(id(), &keys, &passphrase("horse"), "a").unwrap(),
            KeySlot::new(id(), &keys.reduced(Rights::Write).unwrap(), &file, "b").unwrap(),
        ];
        assert_eq!(open_slot(&slots, &passphrase("horse")).unwrap().rights(), Rights::Full);
        assert_eq!(open_slot(&slots, &file).unwrap().rights(), Rights::Write);
        for wrong in [passphrase("house"), Unlock::File(KeyFile::generate().unwrap()), Unlock::Nothing] {
            assert!(matches!(open_slot(&slots, &wrong), Err(Error::WrongKey { .. })));
        }
    }

    #[test]
    fn slots_for_age_recipients_open_with_their_identity() {
        let keys = Keys::generate(id()).unwrap();
        let ((_, one), (_, other)) = (AgeIdentities::generate(), AgeIdentities::generate());
        let recipient = Unlock::AgeRecipient(one.recipient().unwrap());
        let slot = KeySlot::new(id(), &keys.reduced(Rights::Write).unwrap(), &recipient, "safe").unwrap();
        assert_eq!(slot.info().recipient, Some(one.recipient().unwrap().to_string()));
        let own = KeySlot::new(id(), &keys, &Unlock::Age(other.clone()), "own").unwrap();
        let slots = [slot.clone(), own];
        assert_eq!(open_slot(&slots, &Unlock::Age(one.clone())).unwrap().rights(), Rights::Write);
        assert_eq!(open_slot(&slots, &Unlock::Age(other)).unwrap().rights(), Rights::Full);
        assert!(matches!(open_slot(&slots, &recipient), Err(Error::WrongKey { .. })), "who has the public half only");
        let mut moved = slot;
        moved.id = id();
        assert!(open_slot(&[moved], &Unlock::Age(one)).is_err(), "a slot's secret is for its place");
    }

    #[test]
    fn a_slot_of_a_hostile_store_does_not_open_and_costs_little() {
        let keys = Keys::generate(id()).unwrap();
        let slot = KeySlot::new(id(), &keys, &passphrase("horse"), "a").unwrap();
        let mut costly = slot.clone();
        costly.wrap = Wrap::Argon2id { memory_kib: u32::MAX, passes: 1 };
        let mut promoted = slot.clone();
        promoted.rights = Rights::Write;
        let mut cut = slot.clone();
        cut.sealed.truncate(10);
        for bad in [costly, promoted, cut] {
            assert!(matches!(open_slot(&[bad], &passphrase("horse")), Err(Error::WrongKey { .. })));
        }
        // Somebody who has a key is never led to keys that everybody has.
        let open = KeySlot::new(id(), &keys, &Unlock::Nothing, "open").unwrap();
        assert!(open_slot(&[open], &passphrase("horse")).is_err());
    }

    #[test]
    fn key_files_are_private_and_read_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = KeyFile::generate().unwrap();
        key.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*KeyFile::read(&path).unwrap().0, *key.0);
        assert!(key.write_new(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(KeyFile::read(&path).unwrap_err().to_string().contains("chmod"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "something else").unwrap();
        assert!(KeyFile::read(&path).is_err());
    }
}
