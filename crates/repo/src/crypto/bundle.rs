//! The repository's keys, as far as somebody has them.

use std::fmt;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::random;
use super::seal::{SectionKey, TAG_BYTES};
use crate::error::{Error, Result};
use crate::ids::{Fingerprint, ObjectId, ObjectKind};

/// Bytes of a sealed data key: a public key, 32 bytes and their tag.
pub const SEALED_KEY_BYTES: usize = 32 + 32 + TAG_BYTES;

/// What the holder of a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rights {
    /// Tell whether objects are what was written, and nothing else.
    Verify,
    /// Verify, and add: see names, sizes and structure, but no page.
    Write,
    /// Everything.
    Full,
}

impl Rights {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Write => "write",
            Self::Full => "full",
        }
    }
}

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    auth: [u8; 32],
    /// Fingerprints and metadata; zeros without the right to write.
    id: [u8; 32],
    meta: [u8; 32],
    /// X25519; zeros without the right to read.
    data: [u8; 32],
}

/// The keys that somebody has.
#[derive(Clone)]
pub struct Keys {
    repository: ObjectId,
    rights: Rights,
    data_public: [u8; 32],
    secrets: Secrets,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({:?}, {})", self.repository, self.rights.as_str())
    }
}

/// Bytes of a bundle: rights, public key, four secrets.
const BUNDLE_BYTES: usize = 1 + 5 * 32;

impl Keys {
    /// Draws the keys of a new repository.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn generate(repository: ObjectId) -> Result<Self> {
        let secrets = Secrets { auth: random()?, id: random()?, meta: random()?, data: random()? };
        let data_public = public_key(&secrets.data)?;
        Ok(Self { repository, rights: Rights::Full, data_public, secrets })
    }

    /// The repository they belong to.
    #[must_use]
    pub fn repository(&self) -> ObjectId {
        self.repository
    }

    /// What their holder may do.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Refuses what these keys do not allow.
    ///
    /// # Errors
    /// [`Error::NotAllowed`].
    pub fn require(&self, rights: Rights, action: &'static str) -> Result<()> {
        if self.rights >= rights { Ok(()) } else { Err(Error::NotAllowed { action }) }
    }

    /// The same keys without what these rights do not need.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] when these have less.
    pub fn reduced(&self, rights: Rights) -> Result<Self> {
        self.require(rights, "give away more than it has itself")?;
        let mut reduced = self.clone();
        reduced.rights = rights;
        if rights < Rights::Full {
            reduced.secrets.data.zeroize();
        }
        if rights < Rights::Write {
            reduced.secrets.id.zeroize();
            reduced.secrets.meta.zeroize();
            reduced.data_public = [0; 32];
        }
        Ok(reduced)
    }

    pub(crate) fn to_bundle(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(BUNDLE_BYTES));
        bytes.push(self.rights as u8);
        for part in [&self.data_public, &self.secrets.auth, &self.secrets.id, &self.secrets.meta, &self.secrets.data] {
            bytes.extend_from_slice(part);
        }
        bytes
    }

    pub(crate) fn from_bundle(repository: ObjectId, bytes: &[u8]) -> Option<Self> {
        let (rights, keys) = bytes.split_first()?;
        let rights = [Rights::Verify, Rights::Write, Rights::Full].into_iter().find(|known| *known as u8 == *rights)?;
        let (parts, []) = keys.as_chunks::<32>() else { return None };
        let [data_public, auth, id, meta, data] = *<&[[u8; 32]; 5]>::try_from(parts).ok()?;
        Some(Self { repository, rights, data_public, secrets: Secrets { auth, id, meta, data } })
    }

    /// The key that authenticates whole objects.
    pub fn auth(&self) -> &[u8; 32] {
        &self.secrets.auth
    }

    /// The fingerprint of a page.
    #[must_use]
    pub fn fingerprint(&self, page: &[u8]) -> Fingerprint {
        Fingerprint::from_digest(blake3::keyed_hash(&self.secrets.id, page).as_bytes())
    }

    /// The key for the metadata of one object.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write.
    pub fn metadata_key(&self, kind: ObjectKind, id: ObjectId) -> Result<SectionKey> {
        self.require(Rights::Write, "read metadata")?;
        let mut hasher = blake3::Hasher::new_keyed(&self.secrets.meta);
        hasher.update(&[kind.code()]).update(id.as_bytes()).update(self.repository.as_bytes());
        SectionKey::new(hasher.finalize().as_bytes())
    }

    /// Draws the data key of a new pack; gives it sealed to the repository's public key too.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to write; [`Error::Crypto`].
    pub fn new_data_key(&self, pack: ObjectId) -> Result<(SectionKey, [u8; SEALED_KEY_BYTES])> {
        self.require(Rights::Write, "write")?;
        let key: zeroize::Zeroizing<[u8; 32]> = random()?.into();
        let ephemeral: zeroize::Zeroizing<[u8; 32]> = random()?.into();
        let ephemeral_public = public_key(&ephemeral)?;
        let wrap = self.wrapping_key(&ephemeral, &self.data_public, &ephemeral_public, pack)?;
        let mut sealed = Vec::with_capacity(SEALED_KEY_BYTES);
        sealed.extend_from_slice(&ephemeral_public);
        sealed.extend_from_slice(&*key);
        wrap.seal(0, &mut sealed, 32)?;
        let sealed = sealed.try_into().map_err(|_| Error::Crypto { what: "sealing a data key" })?;
        Ok((SectionKey::new(&key)?, sealed))
    }

    /// Opens the data key of a pack.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] without the right to read; [`Error::Damaged`] when it was not sealed for this pack.
    pub fn open_data_key(&self, pack: ObjectId, sealed: &[u8; SEALED_KEY_BYTES]) -> Result<SectionKey> {
        self.require(Rights::Full, "read data")?;
        let damaged = || Error::damaged(format_args!("pack {pack}"), "its data key does not open");
        let mut ephemeral_public = [0; 32];
        ephemeral_public.copy_from_slice(&sealed[..32]);
        let wrap = self.wrapping_key(&self.secrets.data, &ephemeral_public, &ephemeral_public, pack);
        let mut rest = sealed[32..].to_vec();
        let plain = wrap.map_err(|_| damaged())?.open(0, &mut rest).map(|plain| <[u8; 32]>::try_from(&*plain));
        let key = plain.and_then(|key| key.ok()).ok_or_else(damaged);
        rest.zeroize();
        SectionKey::new(&zeroize::Zeroizing::new(key?))
    }

    fn wrapping_key(
        &self,
        private: &[u8; 32],
        peer: &[u8; 32],
        ephemeral_public: &[u8; 32],
        pack: ObjectId,
    ) -> Result<SectionKey> {
        let failed = Error::Crypto { what: "key agreement" };
        let private = PrivateKey::from_private_key(&X25519, private).map_err(|_| Error::Crypto { what: "a key" })?;
        let peer = UnparsedPublicKey::new(&X25519, peer);
        agree(&private, peer, failed, |shared| {
            let mut hasher = blake3::Hasher::new_derive_key("keyframe repository 1: wrapping a pack's data key");
            hasher.update(shared).update(ephemeral_public).update(&self.data_public);
            hasher.update(self.repository.as_bytes()).update(pack.as_bytes());
            SectionKey::new(hasher.finalize().as_bytes())
        })
    }
}

fn public_key(private: &[u8; 32]) -> Result<[u8; 32]> {
    let failed = || Error::Crypto { what: "a public key" };
    let private = PrivateKey::from_private_key(&X25519, private).map_err(|_| failed())?;
    let public = private.compute_public_key().map_err(|_| failed())?;
    public.as_ref().try_into().map_err(|_| failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ObjectId {
        ObjectId::random().unwrap()
    }

    #[test]
    fn who_writes_cannot_read_and_who_reads_can() {
        let keys = Keys::generate(id()).unwrap();
        let writer = keys.reduced(Rights::Write).unwrap();
        let writer = Keys::from_bundle(keys.repository(), &writer.to_bundle()).unwrap();
        let pack = id();
        let (key, sealed) = writer.new_data_key(pack).unwrap();
        let mut frame = b"secret".to_vec();
        key.seal(0, &mut frame, 0).unwrap();
        assert!(matches!(writer.open_data_key(pack, &sealed), Err(Error::NotAllowed { .. })));
        assert_eq!(keys.open_data_key(pack, &sealed).unwrap().open(0, &mut frame).unwrap(), b"secret");
        assert!(matches!(keys.open_data_key(id(), &sealed), Err(Error::Damaged { .. })));
        assert_eq!(writer.fingerprint(b"x"), keys.fingerprint(b"x"));
    }

    #[test]
    fn reduced_keys_hold_nothing_more() {
        let keys = Keys::generate(id()).unwrap();
        let verifier = keys.reduced(Rights::Verify).unwrap();
        let bundle = verifier.to_bundle();
        for secret in [&keys.secrets.id, &keys.secrets.meta, &keys.secrets.data] {
            assert!(!bundle.windows(32).any(|window| window == secret));
        }
        assert!(bundle.windows(32).any(|window| window == keys.secrets.auth));
        assert!(verifier.reduced(Rights::Write).is_err());
        assert!(verifier.metadata_key(ObjectKind::Index, id()).is_err());
        let writer = keys.reduced(Rights::Write).unwrap().to_bundle();
        assert!(!writer.windows(32).any(|window| window == keys.secrets.data));
    }

    #[test]
    fn a_bundle_of_another_form_is_refused() {
        let keys = Keys::generate(id()).unwrap();
        let bundle = keys.to_bundle();
        assert!(Keys::from_bundle(id(), &bundle).is_some());
        assert!(Keys::from_bundle(id(), &bundle[1..]).is_none());
        let mut unknown = bundle.to_vec();
        unknown[0] = 9;
        assert!(Keys::from_bundle(id(), &unknown).is_none());
    }
}
