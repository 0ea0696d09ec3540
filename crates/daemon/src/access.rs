//! Who may do what: peers of the socket by their user, everybody else by a token.
//!
//! `HOME/serve/tokens.json` has the BLAKE3 of each token, never the token. It is read again when it changes: a token that is revoked
//! is worth nothing from the next request on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keyframe_engine::state::durable;
use keyframe_engine::state::lock::Lock;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _};

/// How long somebody who logged in stays so.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// How often one token is logged in at once.
const SESSIONS: usize = 20;
/// What every token begins with, so that one that leaked is found by those who look for such.
const PREFIX: &str = "kf_";
/// What the names of those begin with who come with one.
const TOKEN: &str = "token ";

/// What somebody may do; each includes those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Read,
    /// Take snapshots and backups, test, start.
    Operate,
    /// Revert, fork, stop; and look into points.
    Restore,
    /// Delete, pause, read policies again.
    Admin,
}

impl Role {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Restore => "restore",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Read, Self::Operate, Self::Restore, Self::Admin];
        let found = all.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no role: read, operate, restore, admin"))
    }
}

/// A token, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// BLAKE3 of it, in hexadecimal.
    pub blake3: String,
    /// When it was made.
    pub created: Timestamp,
}

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As the log calls them.
    pub who: String,
    /// What they may do.
    pub role: Role,
}

/// The file of tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
}

impl Tokens {
    /// Those below `HOME/serve`.
    #[must_use]
    pub fn of(serve: &Path) -> Self {
        Self { path: serve.join("tokens.json") }
    }

    /// All of them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Record`].
    pub fn all(&self) -> Result<Vec<Token>, Error> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            bytes => Ok(serde_json::from_slice(&bytes.or_io("read", &self.path)?)?),
        }
    }

    /// Whether whoever asked for something then may still do what takes this role: a token that was revoked since, or made anew under
    /// its name, may not. Users of the host come and go elsewhere.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Record`].
    pub fn still_may(&self, who: &str, role: Role, then: Timestamp) -> Result<bool, Error> {
        let Some(name) = who.strip_prefix(TOKEN) else { return Ok(true) };
        Ok(self.all()?.iter().any(|token| token.name == name && token.role >= role && token.created <= then))
    }

    /// Makes one, and returns it: nobody can be told it again.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is taken or none.
    pub fn add(&self, name: &str, role: Role, now: Timestamp) -> Result<String, Error> {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte));
        if !plain || !(1..=64).contains(&name.len()) {
            return Err(Error::Refused(format!("{name:?} is no name: letters, digits, '.', '_', '-' and '@'")));
        }
        let secret = secret()?;
        self.change(|tokens| {
            if tokens.iter().any(|token| token.name == name) {
                return Err(Error::Refused(format!("there is a token {name}: revoke it first")));
            }
            tokens.push(Token { name: name.to_owned(), role, blake3: hash(&secret), created: now });
            Ok(())
        })?;
        Ok(secret)
    }

    /// Takes one back.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that is not there.
    pub fn revoke(&self, name: &str) -> Result<(), Error> {
        self.change(|tokens| {
            let before = tokens.len();
            tokens.retain(|token| token.name != name);
            if tokens.len() == before { Err(Error::Refused(format!("there is no token {name}"))) } else { Ok(()) }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Token>) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(serve) = self.path.parent() {
            durable::create_private_dir(serve)?;
        }
        let _lock = Lock::wait(&self.path.with_extension("lock"), "token", Duration::from_secs(10))?;
        let mut tokens = self.all()?;
        change(&mut tokens)?;
        Ok(durable::replace(&self.path, &serde_json::to_vec_pretty(&tokens)?)?)
    }
}

fn secret() -> Result<String, Error> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let random = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += random.map_err(std::io::Error::from).or_io("read", Path::new("random bytes"))?;
    }
    Ok(format!("{PREFIX}{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Who is logged in, and who could be.
#[derive(Debug)]
pub struct Doorkeeper {
    tokens: Tokens,
    sessions: Mutex<HashMap<String, (String, Instant)>>,
}

impl Doorkeeper {
    /// The one of a home's daemon.
    #[must_use]
    pub fn of(serve: &Path) -> Self {
        Self { tokens: Tokens::of(serve), sessions: Mutex::default() }
    }

    /// Whose token this is.
    #[must_use]
    pub fn by_token(&self, secret: &str) -> Option<Caller> {
        let hash = hash(secret);
        // Hashes are compared: how long that takes tells nothing of a token.
        self.caller(|token| token.blake3 == hash)
    }

    fn caller(&self, is: impl Fn(&Token) -> bool) -> Option<Caller> {
        let tokens = self.tokens.all().inspect_err(|error| tracing::error!("tokens cannot be read: {error}")).ok()?;
        let token = tokens.into_iter().find(is)?;
        Some(Caller { who: format!("{TOKEN}{}", token.name), role: token.role })
    }

    /// Logs somebody in: returns what their cookie holds.
    ///
    /// # Errors
    /// [`Error::Io`] when there are no random bytes.
    pub fn log_in(&self, secret: &str) -> Result<Option<(String, Caller)>, Error> {
        let Some(caller) = self.by_token(secret) else { return Ok(None) };
        let session = self::secret()?;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, (_, since)| since.elapsed() < SESSION);
        // Nobody locks others out: with a session too many, the oldest of the same token goes.
        let token = hash(secret);
        let same = || sessions.iter().filter(|(_, (of, _))| *of == token);
        if same().count() >= SESSIONS {
            let oldest = same().min_by_key(|(_, (_, since))| *since).map(|(session, _)| session.clone());
            oldest.and_then(|oldest| sessions.remove(&oldest));
        }
        sessions.insert(hash(&session), (token, Instant::now()));
        Ok(Some((session, caller)))
    }

    /// Whose session this is, as long as the token that began it is good.
    #[must_use]
    pub fn by_session(&self, session: &str) -> Option<Caller> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, since) = sessions.get(&hash(session)).cloned()?;
        drop(sessions);
        if since.elapsed() >= SESSION {
            return None;
        }
        self.caller(|known| known.blake3 == token)
    }

    /// Ends a session.
    pub fn log_out(&self, session: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_is_revoked_and_so_is_its_session() {
        let dir = tempfile::tempdir().unwrap();
        let (tokens, door) = (Tokens::of(dir.path()), Doorkeeper::of(dir.path()));
        let secret = tokens.add("anna", Role::Operate, Timestamp::now()).unwrap();
        assert!(tokens.add("anna", Role::Admin, Timestamp::now()).is_err());
        assert!(tokens.add("an na", Role::Admin, Timestamp::now()).is_err());
        let anna = Caller { who: "token anna".to_owned(), role: Role::Operate };
        assert_eq!(door.by_token(&secret), Some(anna.clone()));
        assert_eq!(door.by_token("kf_0"), None);
        let (session, _) = door.log_in(&secret).unwrap().unwrap();
        assert_eq!(door.by_session(&session), Some(anna));
        assert_eq!(door.by_session(&secret), None, "a token is no session");
        let kept = std::fs::read_to_string(dir.path().join("tokens.json")).unwrap();
        assert!(!kept.contains(&secret[3..]), "only its hash is kept");
        let (now, hour) = (Timestamp::now(), Duration::from_secs(3600));
        let may = |who, role, then| tokens.still_may(who, role, then).unwrap();
        assert!(may("token anna", Role::Operate, now) && may("uid 0", Role::Admin, now));
        assert!(!may("token anna", Role::Restore, now) && !may("token ann", Role::Read, now));
        assert!(!may("token anna", Role::Operate, now - hour), "that was another token of this name");
        tokens.revoke("anna").unwrap();
        assert!(!may("token anna", Role::Operate, now));
        assert_eq!((door.by_token(&secret), door.by_session(&session)), (None, None));
    }
}
