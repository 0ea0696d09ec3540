//! Pings of Healthchecks, or what speaks like it: `URL/start`, `URL`, `URL/fail`.
//!
//! Source: the pinging API of healthchecks.io; `rid` tells which start an end belongs to.

use keyframe_policy::Healthchecks;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::queue::Batch;
use super::{Attempt, http, is_of};
use crate::event::{Event, What};

/// Jobs that a policy owes: what somebody asks for does not keep a schedule.
pub(super) fn wants(check: &Healthchecks, event: &Event) -> bool {
    event.policy.is_some() && signal(event.what).is_some() && is_of(&check.policies, event)
}

/// What stands behind the address; nothing for what is no signal.
fn signal(what: What) -> Option<Option<&'static str>> {
    match what {
        What::JobBegan => Some(Some("start")),
        What::JobDone => Some(None),
        What::JobFailed | What::JobIncomplete => Some(Some("fail")),
        What::AlertRaised | What::AlertCleared | What::Alive => None,
    }
}

fn address(check: &Healthchecks, event: &Event) -> Option<Url> {
    let mut url = Url::parse(&check.url).ok()?;
    if let Some(signal) = signal(event.what)? {
        url.path_segments_mut().ok()?.pop_if_empty().push(signal);
    }
    url.query_pairs_mut().append_pair("rid", &run_of(event));
    Some(url)
}

/// A job's name in the form that the API wants: a UUID, the same for its begin and its end; for each of its machines another.
fn run_of(event: &Event) -> String {
    let machine = event.machine.as_deref().unwrap_or_default();
    let hash = blake3::hash(format!("{}/{machine}", event.id).as_bytes()).to_hex();
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

fn body(event: &Event) -> String {
    let machine = event.machine.as_deref().unwrap_or("?");
    let kind = event.kind.as_deref().unwrap_or("job");
    let advice = event.advice.as_ref().map(|advice| format!("try: {advice}\n")).unwrap_or_default();
    format!(
        "{} of {machine} on {}: {}\n{}\n{advice}job {}\n",
        kind,
        event.host,
        event.what.as_str(),
        event.text,
        event.id
    )
}

pub(super) async fn attempt(check: &Healthchecks, client: &mut http::Client, batch: &Batch) -> Attempt {
    let Some(event) = batch.events.first() else { return Attempt::Taken };
    let Some(url) = address(check, event) else {
        return Attempt::Refused { why: "its address is none".to_owned() };
    };
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))]);
    client.post(url, headers, body(event).into_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::tests::event;

    #[test]
    fn signals_go_behind_the_path_whatever_else_the_address_has() {
        let check = |url: &str| Healthchecks { url: url.to_owned(), policies: Vec::new() };
        let at = |url: &str, what| address(&check(url), &event(what)).unwrap().to_string();
        let rid = run_of(&event(What::JobBegan));
        assert_eq!(
            at("https://hc.example/ping/5f", What::JobBegan),
            format!("https://hc.example/ping/5f/start?rid={rid}")
        );
        assert_eq!(
            at("https://hc.example/ping/5f/", What::JobFailed),
            format!("https://hc.example/ping/5f/fail?rid={rid}")
        );
        assert_eq!(
            at("https://hc.example/k/db?create=1", What::JobIncomplete),
            format!("https://hc.example/k/db/fail?create=1&rid={rid}")
        );
        assert_eq!(at("https://hc.example/5f", What::JobDone), format!("https://hc.example/5f?rid={rid}"));
        assert_eq!(rid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }
}
