//! A request, and what becomes of it.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};

use super::Attempt;

/// The most that is read of an answer, in bytes.
const MOST_READ: usize = 2048;
/// The most of it that a person is shown, in characters.
const MOST_SHOWN: usize = 160;

/// Sends requests; made when it is needed, because the host's certificates may not be there yet.
#[derive(Debug)]
pub(super) struct Client {
    within: Duration,
    made: Option<reqwest::Client>,
}

impl Client {
    pub(super) fn new(within: Duration) -> Self {
        Self { within, made: None }
    }

    fn made(&mut self) -> Result<&reqwest::Client, reqwest::Error> {
        if self.made.is_none() {
            let client = reqwest::Client::builder()
                .user_agent(concat!("keyframe/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .pool_max_idle_per_host(0)
                .timeout(self.within)
                .build()?;
            self.made = Some(client);
        }
        // It was made just now, if not before.
        Ok(self.made.as_ref().unwrap_or_else(|| unreachable!("a client that was made")))
    }

    /// Sends a request once.
    pub(super) async fn post(&mut self, url: Url, headers: HeaderMap, body: Vec<u8>) -> Attempt {
        let client = match self.made() {
            Ok(client) => client,
            Err(error) => return Attempt::later(format!("no request can be sent: {}", told(&error))),
        };
        let answer = match client.post(url).headers(headers).body(body).send().await {
            Ok(answer) => answer,
            Err(error) => return Attempt::later(told(&error)),
        };
        let status = answer.status();
        if status.is_success() {
            // What it says besides is nobody's concern, and may have no end.
            return Attempt::Taken;
        }
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let why = format!("it answered {}{}", status.as_u16(), shown(&beginning(answer).await));
        if may_change(status) {
            Attempt::Later { why, after: after.map(Duration::from_secs) }
        } else {
            Attempt::Refused { why }
        }
    }
}

/// Whether the same request may be taken later.
fn may_change(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::MISDIRECTED_REQUEST
                | StatusCode::TOO_EARLY
                | StatusCode::TOO_MANY_REQUESTS
        )
}

/// The beginning of an answer; what cannot be read of it is left out.
async fn beginning(mut answer: reqwest::Response) -> Vec<u8> {
    let mut read = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        read.extend_from_slice(&chunk[..chunk.len().min(MOST_READ - read.len())]);
        if read.len() >= MOST_READ {
            break;
        }
    }
    read
}

/// A stranger's words for a person: one line, no control characters.
fn shown(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line: String = words.join(" ").chars().take(MOST_SHOWN).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}

/// Why a request failed, without its address: that may be a secret.
fn told(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    // The innermost cause says it; those around it say that something failed.
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, error) { "it cannot be reached".to_owned() } else { cause.to_string() }
}

/// The scheme and host of an address.
pub(super) fn host_of(url: &str) -> String {
    let shown = |url: Url| Some(format!("{}://{}", url.scheme(), url.host_str()?));
    Url::parse(url).ok().and_then(shown).unwrap_or_else(|| "an address that is none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_no_more_than_the_host_is_shown() {
        assert_eq!(host_of("https://user:pw@hooks.example.org:8443/T0/B1/s3cret?k=v"), "https://hooks.example.org");
        assert_eq!(host_of("https://"), "an address that is none");
    }

    #[test]
    fn an_answer_is_shown_as_one_plain_line() {
        assert_eq!(shown(b"\x1b[2Jno\r\n\r\n  such\0hook"), ": [2Jno such hook");
        assert_eq!(shown(b"\n"), "");
        assert_eq!(shown("ü".repeat(500).as_bytes()).chars().count(), MOST_SHOWN + 2);
    }
}
