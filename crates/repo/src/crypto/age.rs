//! age's keys as keys of a repository: a slot can be made for a recipient whose identity is far away, on a token or in a safe.
//!
//! A slot's secret is 32 random bytes; the slot holds them as an age file (<https://age-encryption.org/v1>) for one X25519 recipient.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use age::secrecy::ExposeSecret as _;
use age::x25519::{Identity, Recipient};
use zeroize::Zeroizing;

use super::random;
use super::slot::read_private;
use crate::error::{Error, Result};

/// What a line of a file with identities begins with.
const IDENTITY_WORD: &str = "AGE-SECRET-KEY-1";
/// Identities that are read from a file.
const IDENTITIES_MOST: usize = 64;
/// Bytes of an age file with 32 bytes in it are some 200.
pub const SEALED_MOST: usize = 2048;

/// `age1…`: a public key that a slot is made for.
#[derive(Clone)]
pub struct AgeRecipient(Recipient);

impl FromStr for AgeRecipient {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::Usage { what: format!("{text:?} is not an age recipient with an X25519 key (age1…)") };
        text.trim().parse().map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for AgeRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AgeRecipient {
    /// A fresh secret, and an age file with it.
    pub(super) fn secret(&self) -> Result<(Zeroizing<[u8; 32]>, Vec<u8>)> {
        let secret = Zeroizing::new(random()?);
        let sealed = age::encrypt(&self.0, &*secret).map_err(|_| Error::Crypto { what: "age" })?;
        Ok((secret, sealed))
    }
}

/// The identities of a file, as `age-keygen` writes it.
#[derive(Clone)]
pub struct AgeIdentities(Vec<Identity>);

impl AgeIdentities {
    /// Whether a text is such a file.
    pub(super) fn are_in(text: &str) -> bool {
        text.lines().any(|line| line.trim().starts_with(IDENTITY_WORD))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::KeyFile`] when it is not there, has no identities or something else too, or is readable for others.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_private(path)?)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let trouble = |why: &str| Error::KeyFile { path: path.to_owned(), why: why.to_owned() };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let identities: Vec<Identity> = lines
            .take(IDENTITIES_MOST)
            .map(|line| line.parse().map_err(|_| trouble("has a line that is no age identity (AGE-SECRET-KEY-1…)")))
            .collect::<Result<_>>()?;
        if identities.is_empty() { Err(trouble("has no age identity")) } else { Ok(Self(identities)) }
    }

    /// Whom a new slot is made for: the first of them.
    ///
    /// # Errors
    /// None that can happen: there is a first one.
    pub(super) fn recipient(&self) -> Result<AgeRecipient> {
        self.0.first().map(|identity| AgeRecipient(identity.to_public())).ok_or(Error::Crypto { what: "age" })
    }

    /// The secret in an age file, if it is for one of them. Whatever else is in a hostile file costs little: no passphrases are
    /// tried.
    pub(super) fn open(&self, recipient: &str, sealed: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let identity = self.0.iter().find(|identity| identity.to_public().to_string() == recipient)?;
        let secret = Zeroizing::new(age::decrypt(identity, sealed).ok()?);
        secret.as_slice().try_into().ok().map(Zeroizing::new)
    }

    /// As a file has it.
    #[must_use]
    pub fn generate() -> (Zeroizing<String>, Self) {
        let identity = Identity::generate();
        let text = format!("# public key: {}\n{}\n", identity.to_public(), identity.to_string().expose_secret());
        (text.into(), Self(vec![identity]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_age_keygen_are_read() {
        let (text, identities) = AgeIdentities::generate();
        let text = format!("# created: 2026-01-01T00:00:00Z\n{}\n\n", *text);
        assert!(AgeIdentities::are_in(&text));
        let read = AgeIdentities::parse(Path::new("k"), &text).unwrap();
        assert_eq!(read.recipient().unwrap().to_string(), identities.recipient().unwrap().to_string());
        for bad in ["", "# nothing\n", "AGE-SECRET-KEY-1QQ\n", &format!("{text}age1xyz\n")] {
            assert!(AgeIdentities::parse(Path::new("k"), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_open_for_their_recipient_alone() {
        let ((_, one), (_, other)) = (AgeIdentities::generate(), AgeIdentities::generate());
        let recipient = one.recipient().unwrap();
        let (secret, sealed) = recipient.secret().unwrap();
        assert!(sealed.len() < SEALED_MOST);
        let both = AgeIdentities(vec![other.0[0].clone(), one.0[0].clone()]);
        assert_eq!(both.open(&recipient.to_string(), &sealed).as_deref(), Some(&*secret));
        assert!(other.open(&recipient.to_string(), &sealed).is_none());
        assert!(other.open(&other.recipient().unwrap().to_string(), &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(one.open(&recipient.to_string(), &bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn only_recipients_are_recipients() {
        let (text, identities) = AgeIdentities::generate();
        let recipient = identities.recipient().unwrap().to_string();
        assert_eq!(recipient.parse::<AgeRecipient>().unwrap().to_string(), recipient);
        let secret = text.lines().last().unwrap();
        for bad in ["", "age1", secret, &recipient[..20]] {
            assert!(bad.parse::<AgeRecipient>().is_err(), "{bad:?}");
        }
    }
}
