//! Where a secret is: in a file, or among the credentials that a service manager hands over.
//!
//! Source: `systemd.exec(5)`, "Credentials": each is a file in a directory that one variable names, readable for the service alone,
//! and in no process's environment.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// What stands before a credential's name where a file could be named.
const SCHEME: &str = "credential:";
/// The longest name, in bytes: `NAME_MAX`.
const NAME_MOST: usize = 255;

/// A file with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFile {
    /// One that lies somewhere.
    Path(PathBuf),
    /// The credential of that name: `credential:NAME`.
    Credential(String),
}

/// Why a text names no credential, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No name that a credential can have.
    #[error("{0:?} is not the name of a credential: write credential:NAME, as LoadCredential= of the unit names it")]
    BadName(String),
    /// Nobody handed any over.
    #[error("credential:{0} is not there: systemd hands credentials to its services alone, and this is none of them")]
    NoService(String),
}

/// The directory of this process's credentials, where a service manager handed some over.
#[must_use]
pub fn credentials() -> Option<PathBuf> {
    directory(std::env::var_os("CREDENTIALS_DIRECTORY"))
}

fn directory(variable: Option<OsString>) -> Option<PathBuf> {
    variable.map(PathBuf::from).filter(|path| path.is_absolute())
}

impl SecretFile {
    /// Where it is, for this process.
    ///
    /// # Errors
    /// [`SecretError::NoService`] for a credential where nobody handed any over.
    pub fn locate(&self) -> Result<PathBuf, SecretError> {
        self.within(credentials().as_deref())
    }

    fn within(&self, credentials: Option<&Path>) -> Result<PathBuf, SecretError> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Credential(name) => {
                credentials.map(|dir| dir.join(name)).ok_or_else(|| SecretError::NoService(name.clone()))
            }
        }
    }
}

impl FromStr for SecretFile {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let Some(name) = text.strip_prefix(SCHEME) else { return Ok(Self::Path(text.into())) };
        let fits = |name: &str| {
            let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
            (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(plain) && !matches!(name, "." | "..")
        };
        if fits(name) { Ok(Self::Credential(name.to_owned())) } else { Err(SecretError::BadName(name.to_owned())) }
    }
}

impl Serialize for SecretFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Credential(name) => write!(f, "{SCHEME}{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_lies_where_the_service_manager_says() {
        let office: SecretFile = "credential:office".parse().unwrap();
        assert_eq!(office.within(Some(Path::new("/run/c"))), Ok("/run/c/office".into()));
        assert_eq!(office.within(None), Err(SecretError::NoService("office".to_owned())));
        assert_eq!(office.to_string(), "credential:office");
        let path: SecretFile = "/etc/keyframe/key".parse().unwrap();
        assert_eq!(path.within(Some(Path::new("/run/c"))), Ok("/etc/keyframe/key".into()));
        assert_eq!(directory(Some("run/c".into())), None, "from wherever one is");
    }

    #[test]
    fn its_name_leads_nowhere_else() {
        let long = "x".repeat(256);
        for name in ["", ".", "..", "../key", "a/b", "a:b", "a b", "ü", "a\n", &long] {
            let read: Result<SecretFile, _> = format!("credential:{name}").parse();
            assert_eq!(read, Err(SecretError::BadName(name.to_owned())));
        }
    }
}
