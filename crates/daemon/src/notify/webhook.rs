//! A request with a JSON body for each event, signed in the form that GitHub's have.

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aws_lc_rs::hmac;
use keyframe_policy::Webhook;
use keyframe_types::SecretFile;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use zeroize::Zeroizing;

use super::queue::Batch;
use super::{Attempt, http, is_among, is_of};
use crate::event::{self, Event, What};

/// The longest secret, in bytes.
const MOST_SECRET: u64 = 4096;

/// The body.
#[derive(Serialize)]
struct Body<'a> {
    schema: &'static str,
    /// The same when an event is sent again.
    delivery: &'a str,
    /// How many events before this one were lost on the way.
    lost_before: u64,
    #[serde(flatten)]
    event: &'a Event,
}

/// A sign of life belongs to no policy, and is for all.
pub(super) fn wants(hook: &Webhook, event: &Event) -> bool {
    is_among(&hook.events, event) && (event.what == What::Alive || is_of(&hook.policies, event))
}

/// The beginning of a file, `most` bytes of it. What is no file, such as a pipe, is not waited for.
pub(super) fn small_file(path: &Path, most: u64) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let no_wait = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new().read(true).custom_flags(no_wait).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

/// A secret as it is in its file now, without the end of its line.
pub(super) fn secret(file: &SecretFile) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut secret = small_file(&file.locate().map_err(std::io::Error::other)?, MOST_SECRET)?;
    let end = secret.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
    secret.truncate(end);
    if secret.is_empty() { Err(std::io::Error::other("it is empty")) } else { Ok(secret) }
}

/// `sha256=` and the HMAC-SHA256 of a body, in hexadecimal.
pub(super) fn signature(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    tag.as_ref().iter().fold("sha256=".to_owned(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) async fn attempt(hook: &Webhook, client: &mut http::Client, batch: &Batch) -> Attempt {
    let Some(event) = batch.events.first() else { return Attempt::Taken };
    let Ok(url) = Url::parse(&hook.url) else {
        return Attempt::Refused { why: "its address is none".to_owned() };
    };
    let body = Body { schema: event::SCHEMA, delivery: &batch.delivery, lost_before: batch.lost, event };
    let body = match serde_json::to_vec(&body) {
        Ok(body) => body,
        Err(error) => return Attempt::Refused { why: format!("it cannot be written as JSON: {error}") },
    };
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HeaderName::from_static("x-keyframe-event"), HeaderValue::from_static(event.what.as_str()));
    if let Some(file) = &hook.secret_file {
        let named = file.clone();
        let read = tokio::task::spawn_blocking(move || secret(&named)).await.map_err(std::io::Error::other);
        let signature = match read.flatten() {
            Ok(secret) => signature(&secret, &body),
            // Unsigned it would be refused at best, and believed at worst.
            Err(error) => return Attempt::later(format!("its secret {file} cannot be read: {error}")),
        };
        if let Ok(signature) = HeaderValue::from_str(&signature) {
            headers.insert(HeaderName::from_static("x-hub-signature-256"), signature);
        }
    }
    client.post(url, headers, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: GitHub's documentation, "Validating webhook deliveries", testing the validation.
    #[test]
    fn signatures_are_those_of_the_form_that_they_claim() {
        assert_eq!(
            signature(b"It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }

    #[test]
    fn a_secret_is_its_file_without_the_end_of_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, " s3cret \r\n").unwrap();
        assert_eq!(secret(&SecretFile::Path(path.clone())).unwrap().as_slice(), b" s3cret ");
        std::fs::write(&path, "\n").unwrap();
        assert!(secret(&SecretFile::Path(path)).is_err() && secret(&SecretFile::Path(dir.path().into())).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(secret(&SecretFile::Path(pipe)).is_err());
        assert!(secret(&SecretFile::Credential("none".to_owned())).is_err());
    }
}
