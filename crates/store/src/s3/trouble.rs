//! What an S3 service says when something is wrong, without what is nobody's business: answers to a bad signature repeat the
//! access key.

use std::io;

use crate::error::Error;

/// What went wrong with an object or area of this name.
pub fn failure(error: object_store::Error, name: &str) -> Error {
    let text = error.to_string();
    let status = status(&text);
    match &error {
        // "Conflict": somebody else is writing it just now, and may fail.
        object_store::Error::AlreadyExists { .. } if status == Some(409) => {}
        object_store::Error::AlreadyExists { .. } => return Error::Exists { name: name.to_owned() },
        object_store::Error::NotFound { .. } => return Error::NotFound { name: name.to_owned() },
        _ if text.contains("://169.254.") || text.contains("://[fd00:ec2") => {
            // Without credentials the client asks for an instance's role.
            let reason = "there are no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set".to_owned();
            return Error::Refused { reason };
        }
        _ => {}
    }
    let Some(status) = status else {
        return match error {
            object_store::Error::Generic { .. } => Error::Unavailable { reason: deepest(&error) },
            _ => Error::Refused { reason: deepest(&error) },
        };
    };
    let said = [element(&text, "Code"), element(&text, "Message")].into_iter().flatten();
    let reason = [format!("HTTP {status}")].into_iter().chain(said.map(str::to_owned)).collect::<Vec<_>>().join(", ");
    match status {
        507 => Error::Full { source: io::Error::new(io::ErrorKind::StorageFull, reason) },
        501 => Error::Refused { reason },
        408 | 409 | 425 | 429 | 500.. => Error::Unavailable { reason },
        _ => Error::Refused { reason },
    }
}

/// Whether the service does not know a header or call.
pub fn is_unknown_to_service(reason: &str) -> bool {
    reason.starts_with("HTTP 501")
}

/// The client has no better place for it than the text of its error.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content).filter(|content| content.len() <= 300)
}

fn deepest(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let said = |status: u16| {
            generic(&format!("Error performing PUT http://x - Server returned non-2xx status code: {status} Text: "))
        };
        for status in [408, 409, 429, 500, 502, 503, 504] {
            assert!(failure(said(status), "a").is_transient(), "{status}");
        }
        for status in [400, 403, 405, 501, 507] {
            assert!(!failure(said(status), "a").is_transient(), "{status}");
        }
        assert!(matches!(failure(said(507), "a"), Error::Full { .. }));
        assert!(failure(generic("connection reset"), "a").is_transient());
    }

    #[test]
    fn answers_that_repeat_the_key_are_not_repeated() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>No.</Message><AWSAccessKeyId>AKIDX</AWSAccessKeyId></Error>";
        let error = failure(generic(&format!("- Server returned non-2xx status code: 403 Forbidden: {body}")), "a");
        assert_eq!(error.to_string(), "the store refuses: HTTP 403, SignatureDoesNotMatch, No.");
    }
}
