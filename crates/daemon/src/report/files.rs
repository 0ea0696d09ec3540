//! A report's files: the document, its signature, the page.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use keyframe_engine::evidence::{self, Ledger};
use keyframe_engine::state::durable;
use serde::{Deserialize, Serialize};

use super::{Report, html};
use crate::error::{Error, IoContext as _};

/// The document.
pub const DOCUMENT: &str = "report.json";
/// Its signature.
pub const SIGNATURE: &str = "report.json.sig";
/// The page.
pub const PAGE: &str = "report.html";
/// The longest of these that is read, in bytes.
const MOST: u64 = 1 << 30;

/// What `report.json.sig` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// `keyframe.signature/1`.
    pub schema: String,
    /// The file that is signed, all of its bytes.
    pub file: String,
    /// `ed25519`.
    pub algorithm: String,
    /// The public key, 64 hexadecimal digits.
    pub public_key: String,
    /// The signature, 128 hexadecimal digits.
    pub signature: String,
}

const SCHEMA: &str = "keyframe.signature/1";
const ALGORITHM: &str = "ed25519";

/// Where the files are that were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The document.
    pub document: PathBuf,
    /// Its signature.
    pub signature: PathBuf,
    /// The page.
    pub page: PathBuf,
    /// By which key it is signed.
    pub public_key: String,
}

/// Writes a report's files into a directory, which is made if need be. The signature is last: without it nothing is claimed.
///
/// # Errors
/// [`Error::Io`], [`Error::Engine`] when they cannot be written or signed.
pub fn write(report: &Report, ledger: &Ledger, dir: &Path) -> Result<Written, Error> {
    let mut bytes = serde_json::to_vec_pretty(report)?;
    bytes.push(b'\n');
    let (public_key, signature) = ledger.sign(&bytes)?;
    let signature = Signature {
        schema: SCHEMA.to_owned(),
        file: DOCUMENT.to_owned(),
        algorithm: ALGORITHM.to_owned(),
        public_key: public_key.clone(),
        signature,
    };
    let page = html::page(report, &sha256(&bytes));
    let mut signature = serde_json::to_vec_pretty(&signature)?;
    signature.push(b'\n');
    std::fs::create_dir_all(dir).or_io("make", dir)?;
    let written =
        Written { document: dir.join(DOCUMENT), signature: dir.join(SIGNATURE), page: dir.join(PAGE), public_key };
    // One of an earlier report must not stand beside another document.
    match std::fs::remove_file(&written.signature) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).or_io("remove", &written.signature);
        }
        _ => {}
    }
    durable::replace(&written.document, &bytes)?;
    durable::replace(&written.page, page.as_bytes())?;
    durable::replace(&written.signature, &signature)?;
    Ok(written)
}

/// Whether a directory's report is as it was signed: by `public_key`, a copy kept elsewhere, or by the key that the signature names.
/// Returns that key.
///
/// # Errors
/// [`Error::Refused`] when it is not; [`Error::Io`] for files that cannot be read.
pub fn verify(dir: &Path, public_key: Option<&str>) -> Result<String, Error> {
    let (document, beside) = (dir.join(DOCUMENT), dir.join(SIGNATURE));
    let signature = read(&beside)?;
    let refused = |why: &str| Err(Error::Refused(format!("{}: {why}", document.display())));
    let Ok(signature) = serde_json::from_slice::<Signature>(&signature) else {
        return refused("its signature is none");
    };
    if signature.schema != SCHEMA || signature.algorithm != ALGORITHM || signature.file != DOCUMENT {
        return refused("its signature is of another kind");
    }
    let key = public_key.unwrap_or(&signature.public_key).trim();
    if !key.eq_ignore_ascii_case(&signature.public_key) {
        return refused("it is signed by another key");
    }
    if !evidence::is_signed(&read(&document)?, key, &signature.signature) {
        return refused("it is not as it was signed");
    }
    Ok(signature.public_key)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).or_io("open", path)?;
    file.take(MOST).read_to_end(&mut bytes).or_io("read", path)?;
    Ok(bytes)
}

/// SHA-256 in hexadecimal: what `sha256sum` says of a file.
fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
