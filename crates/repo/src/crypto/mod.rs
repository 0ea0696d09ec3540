//! Cryptography: few primitives, each for one purpose.
//!
//! | primitive | purpose |
//! |---|---|
//! | keyed BLAKE3 | fingerprints of pages, authentication of whole objects |
//! | BLAKE3 `derive_key` | a key of its own for each object and purpose |
//! | AES-256-GCM | sealing: each key seals few sections, numbered by their nonces, so no nonce comes twice |
//! | X25519 | a pack's data key is sealed to the repository's public key: who writes need not be able to read |
//! | Argon2id | keys from passphrases |
//! | age (X25519, ChaCha20-Poly1305) | a slot's secret for a recipient |

mod age;
mod bundle;
mod seal;
mod slot;

pub use age::{AgeIdentities, AgeRecipient};
pub use bundle::{Keys, Rights};
pub use seal::{SectionKey, TAG_BYTES};
pub use slot::{KeyFile, SlotInfo, Unlock};
pub(crate) use slot::{KeySlot, open_slot};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

use crate::error::{Error, Result};

/// Random bytes of the system.
///
/// # Errors
/// [`Error::Crypto`].
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Crypto { what: "drawing random bytes" })?;
    Ok(bytes)
}
