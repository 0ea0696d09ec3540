//! A bucket of an S3-compatible service.
//!
//! Where the service is and who we are comes from the usual variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …), never from
//! an address. Calls block; a small runtime of its own does the waiting. Nothing is tried again here:
//! [`RetryStore`](crate::RetryStore) does that.
//!
//! An object is one `PUT`, which S3 carries out whole or not at all. [`Put::Create`] is `If-None-Match: *`. Services that
//! ignore it exist, so [`Store::creates_exclusively`] tries it on names of its own before it says yes.

mod trouble;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};

use self::trouble::failure;
use crate::error::{Error, Result};
use crate::{Entry, ObjectName, Put, Store};

/// For how long a service may be silent: long enough for a pack to go over a slow line.
const SILENCE: &str = "240 seconds";
const CONNECT: &str = "10 seconds";
const WHOLE_REQUEST: &str = "1 hour";
/// Writers that race for one name while the service is tried.
const RACERS: usize = 4;

/// A bucket, or a part of one.
#[derive(Debug)]
pub struct S3Store {
    client: AmazonS3,
    runtime: Runtime,
    prefix: Option<Path>,
    shown: String,
    exclusive: OnceLock<bool>,
    counter: AtomicU64,
}

impl S3Store {
    /// `s3://BUCKET[/PREFIX]`, with service and credentials from what is called `AWS_…` in an environment.
    ///
    /// # Errors
    /// [`Error::BadAddress`]; [`Error::Refused`] for variables that cannot be right.
    pub fn new(address: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        // What stands before an @ could be a secret.
        let shown = address.rsplit_once('@').map_or_else(|| address.to_owned(), |(_, rest)| format!("s3://…@{rest}"));
        let bad = |why| Error::BadAddress { text: shown.clone(), why };
        let rest = address.strip_prefix("s3://").ok_or_else(|| bad("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
        if bucket.is_empty() || !bucket.chars().all(plain) {
            return Err(bad("there is no bucket, or none with such a name"));
        }
        let prefix = prefix.trim_end_matches('/');
        let path = Path::parse(prefix).ok().filter(|_| !prefix.starts_with('/'));
        let path = path.ok_or_else(|| bad("the path has empty parts, or such as no object has"))?;
        let refused = |what: &str| Error::Refused { reason: what.to_owned() };
        let mut builder = AmazonS3Builder::new();
        for (name, value) in [("read_timeout", SILENCE), ("connect_timeout", CONNECT), ("timeout", WHOLE_REQUEST)] {
            let key = name.parse().map_err(|_| refused("the S3 client lacks a setting"))?;
            builder = builder.with_config(key, value);
        }
        let mut plain_http = false;
        for (name, value) in environment {
            let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
            if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint) {
                plain_http |= value.starts_with("http://");
            }
            builder = builder.with_config(key, value);
        }
        let never = RetryConfig { max_retries: 0, backoff: BackoffConfig::default(), ..RetryConfig::default() };
        // Only an endpoint that says http:// itself is spoken to without TLS.
        let builder = builder.with_bucket_name(bucket).with_allow_http(plain_http).with_retry(never);
        let client = builder.with_disable_bulk_delete(true).build();
        // What the client says may have values of variables in it.
        let client = client.map_err(|_| refused("the AWS_… variables do not make sense together"))?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("s3").enable_all().build();
        let runtime = runtime.map_err(|source| Error::Io { action: "start", path: "a runtime".to_owned(), source })?;
        Ok(Self {
            client,
            runtime,
            prefix: Some(path).filter(|_| !prefix.is_empty()),
            shown: address.to_owned(),
            exclusive: OnceLock::new(),
            counter: AtomicU64::new(0),
        })
    }

    fn path(&self, name: &str) -> Path {
        let text = self.prefix.as_ref().map_or_else(|| name.to_owned(), |prefix| format!("{prefix}/{name}"));
        // Names of objects are plain.
        Path::from(text)
    }

    async fn write(&self, name: &ObjectName, bytes: Vec<u8>, mode: PutMode) -> Result<()> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.client.put_opts(&self.path(name.as_str()), PutPayload::from(bytes), options).await;
        match put.map_err(|error| failure(error, name.as_str())) {
            // What is not found is the bucket.
            Err(Error::NotFound { .. }) => Err(Error::Refused { reason: format!("{} is not there", self.shown) }),
            done => done.map(drop),
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<Entry> {
        let found = self.client.head(&self.path(name.as_str())).await;
        found.map(|meta| entry(name.clone(), &meta)).map_err(|error| failure(error, name.as_str()))
    }

    /// Reads what an answer brings, at most `limit` bytes; gives the object's length too.
    async fn read(&self, name: &ObjectName, range: Option<GetRange>, limit: u64) -> Result<(Vec<u8>, u64)> {
        let options = GetOptions { range, ..GetOptions::default() };
        let got = self.client.get_opts(&self.path(name.as_str()), options).await;
        let got = got.map_err(|error| failure(error, name.as_str()))?;
        let (whole, expected) = (got.meta.size, got.range.end.saturating_sub(got.range.start));
        if expected > limit {
            return Err(Error::TooLarge { name: name.to_string(), len: expected, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut body = got.into_stream();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| failure(error, name.as_str()))?);
            if bytes.len() as u64 > expected {
                break;
            }
        }
        if bytes.len() as u64 == expected {
            Ok((bytes, whole))
        } else {
            Err(Error::Unavailable { reason: format!("what it sent of {name} is cut short") })
        }
    }

    /// Whether the service keeps to `If-None-Match`: tried, one after the other and several at once.
    async fn try_creating(&self) -> Result<bool> {
        let [first, second] = [self.own_name()?, self.own_name()?];
        let create = |name, n: usize| self.write(name, vec![b'0' + n as u8], PutMode::Create);
        let outcome = async {
            match create(&first, 0).await {
                // Some say that they cannot.
                Err(Error::Refused { reason }) if trouble::is_unknown_to_service(&reason) => return Ok(false),
                done => done?,
            }
            match create(&first, 1).await {
                Ok(()) => return Ok(false),
                Err(Error::Exists { .. }) => {}
                Err(error) => return Err(error),
            }
            let raced = futures_util::future::join_all((0..RACERS).map(|n| create(&second, n))).await;
            let mut won = 0;
            for outcome in raced {
                match outcome {
                    Ok(()) => won += 1,
                    // One that was in another's way was told so, or to come again.
                    Err(Error::Exists { .. } | Error::Unavailable { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(won <= 1)
        };
        let outcome = outcome.await;
        for name in [first, second] {
            // What cannot be removed is read by nobody.
            let _ = self.client.delete(&self.path(name.as_str())).await;
        }
        outcome
    }

    /// A name that nobody else uses.
    fn own_name(&self) -> Result<ObjectName> {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let seed = format!("{host} {} {clock} {number}", std::process::id());
        ObjectName::new(format!("probe/{}", &blake3::hash(seed.as_bytes()).to_hex()[..32]))
    }
}

impl Store for S3Store {
    fn put(&self, name: &ObjectName, bytes: &[u8], mode: Put) -> Result<()> {
        let known = self.exclusive.get().copied();
        let written = self.runtime.block_on(async {
            match mode {
                Put::Replace => self.write(name, bytes.to_vec(), PutMode::Overwrite).await,
                // Not exclusive, but better than nothing.
                Put::Create if known == Some(false) => match self.head(name).await {
                    Ok(_) => Err(Error::Exists { name: name.to_string() }),
                    Err(error) if error.is_not_found() => self.write(name, bytes.to_vec(), PutMode::Overwrite).await,
                    Err(error) => Err(error),
                },
                Put::Create => self.write(name, bytes.to_vec(), PutMode::Create).await,
            }
        });
        match written {
            Err(Error::Refused { reason }) if mode == Put::Create && trouble::is_unknown_to_service(&reason) => {
                // Known from here on, so this goes the other way.
                if self.exclusive.set(false).is_ok() {
                    self.put(name, bytes, mode)
                } else {
                    Err(Error::Refused { reason })
                }
            }
            done => done,
        }
    }

    fn get(&self, name: &ObjectName, limit: u64) -> Result<Vec<u8>> {
        self.runtime.block_on(self.read(name, None, limit)).map(|(bytes, _)| bytes)
    }

    fn get_range(&self, name: &ObjectName, offset: u64, len: usize) -> Result<Vec<u8>> {
        let short = || Error::Short { name: name.to_string(), end: offset.saturating_add(len as u64) };
        self.runtime.block_on(async {
            let end = offset.checked_add(len as u64).ok_or_else(short);
            if len == 0 || end.is_err() {
                // There is no range of no bytes.
                let there = self.head(name).await?.len;
                return if end? <= there { Ok(Vec::new()) } else { Err(short()) };
            }
            let range = GetRange::Bounded(offset..end?);
            match self.read(name, Some(range), len as u64).await {
                Ok((bytes, _)) if bytes.len() == len => Ok(bytes),
                Ok(_) => Err(short()),
                // A range that begins behind the end is refused, in one way or another.
                Err(error) if error.is_transient() || error.is_not_found() => Err(error),
                Err(error) => match self.head(name).await {
                    Ok(entry) if entry.len < offset.saturating_add(len as u64) => Err(short()),
                    _ => Err(error),
                },
            }
        })
    }

    fn stat(&self, name: &ObjectName) -> Result<Entry> {
        self.runtime.block_on(self.head(name))
    }

    fn list(&self, area: &str) -> Result<Vec<Entry>> {
        let path = self.path(area);
        let strip = self.prefix.as_ref().map_or_else(String::new, |prefix| format!("{prefix}/"));
        let mut found = self.runtime.block_on(async {
            let mut found = Vec::new();
            let mut listing = self.client.list(Some(&path));
            while let Some(meta) = listing.next().await {
                let meta = match meta.map_err(|error| failure(error, area)) {
                    Err(Error::NotFound { .. }) => {
                        return Err(Error::Refused { reason: format!("{} is not there", self.shown) });
                    }
                    meta => meta?,
                };
                // What is no name of ours is not ours.
                let name = meta.location.as_ref().strip_prefix(&strip).and_then(|text| ObjectName::new(text).ok());
                found.extend(name.filter(|name| name.is_in(area)).map(|name| entry(name, &meta)));
            }
            Ok(found)
        })?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn delete(&self, name: &ObjectName) -> Result<()> {
        let deleted = self.runtime.block_on(self.client.delete(&self.path(name.as_str())));
        match deleted.map_err(|error| failure(error, name.as_str())) {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    /// Tried at the first call, which writes and removes objects in `probe/`.
    fn creates_exclusively(&self) -> Result<bool> {
        if let Some(known) = self.exclusive.get() {
            return Ok(*known);
        }
        let tried = self.runtime.block_on(self.try_creating())?;
        Ok(*self.exclusive.get_or_init(|| tried))
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

fn entry(name: ObjectName, meta: &ObjectMeta) -> Entry {
    Entry { name, len: meta.size, modified: meta.last_modified.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        let store = S3Store::new("s3://a-bucket/some/where/", []).unwrap();
        assert_eq!(store.path("packs/ab").as_ref(), "some/where/packs/ab");
        assert_eq!(S3Store::new("s3://bucket", []).unwrap().path("config").as_ref(), "config");
        for bad in ["bucket", "s3://", "s3:///a", "s3://id:secret@bucket/a", "s3://bucket//a", "s3://bucket/../a"] {
            assert!(matches!(S3Store::new(bad, []), Err(Error::BadAddress { .. })), "{bad}");
        }
    }
}
