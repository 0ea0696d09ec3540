//! Sealed sections: AES-256-GCM under a key that is used for one object only.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::error::{Error, Result};

/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;

/// Seals and opens the numbered sections of one object.
///
/// The key belongs to one object and one purpose; the section's number is the nonce. So a section opens only with its
/// object's key and at its own place: exchanged sections are found.
#[derive(Debug)]
pub struct SectionKey(LessSafeKey);

impl SectionKey {
    /// From a key that nothing else uses.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn new(key: &[u8; 32]) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| Error::Crypto { what: "an AES key" })?;
        Ok(Self(LessSafeKey::new(key)))
    }

    fn nonce(number: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals what `buffer` holds from `start` on, in place, and appends the tag. A number may be used once.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn seal(&self, number: u32, buffer: &mut Vec<u8>, start: usize) -> Result<()> {
        let plain = buffer.get_mut(start..).unwrap_or_default();
        let tag = self.0.seal_in_place_separate_tag(Self::nonce(number), Aad::empty(), plain);
        let tag = tag.map_err(|_| Error::Crypto { what: "sealing" })?;
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a section in place and gives its plain bytes; nothing when it is not what was sealed.
    pub fn open<'a>(&self, number: u32, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(Self::nonce(number), Aad::empty(), sealed).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_open_at_their_place_only() {
        let key = SectionKey::new(&[7; 32]).unwrap();
        let mut buffer = b"headplain".to_vec();
        key.seal(3, &mut buffer, 4).unwrap();
        assert_eq!((buffer.len(), &buffer[..4]), (9 + TAG_BYTES, &b"head"[..]));
        assert_eq!(key.open(3, &mut buffer.clone()[4..]).unwrap(), b"plain");
        assert!(key.open(2, &mut buffer.clone()[4..]).is_none());
        assert!(SectionKey::new(&[8; 32]).unwrap().open(3, &mut buffer.clone()[4..]).is_none());
        buffer[5] ^= 1;
        assert!(key.open(3, &mut buffer[4..]).is_none());
    }
}
