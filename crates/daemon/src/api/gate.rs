//! Who asks, and whether they may.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use crate::access::{Caller, Role};
use crate::error::Error;

/// Where a request comes from.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A user of the host, on the socket.
    Local(Caller),
    /// Somebody on the network.
    Distant(SocketAddr),
}

/// The cookie of those who logged in.
const COOKIE_NAME: &str = "keyframe";
/// What a changing request must carry: other sites' pages cannot make a browser send it.
const AGAINST_FORGERY: &str = "x-keyframe";
/// What pages may load: nothing but what is served here, and nothing inline.
const CONTENT: &str = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/// What a drill's page may: it has its style and pictures in itself, and no script.
const CONTENT_OF_EVIDENCE: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'";
/// How long a request that changes something may take to come in, and be answered.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same for whoever is not logged in: a token is soon told.
const PATIENCE_WITH_STRANGERS: Duration = Duration::from_secs(20);
/// The longest refusal, in bytes.
const WORDS_MOST: usize = 4096;
/// How long who guesses tokens waits for each answer.
const WRONG_TOKEN: Duration = Duration::from_millis(500);

/// An answer that is none.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: String,
    advice: Option<&'static str>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), advice: None }
    }

    pub fn with(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }

    /// What is so.
    pub fn what(&self) -> &str {
        &self.error
    }

    pub fn nothing(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }

    pub fn bad(what: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Refused(_) => StatusCode::CONFLICT,
            Error::NotAllowed(_) => StatusCode::FORBIDDEN,
            Error::Engine(keyframe_engine::Error::NoMachine(_)) => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.told())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.error, "advice": self.advice}))).into_response()
    }
}

pub async fn nothing_there() -> Refusal {
    Refusal::nothing("there is nothing of that name")
}

pub async fn not_like_that() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "there is something of that name, but this cannot be done with it")
}

/// What anybody may see: the page's own files, and how to log in. They hold nothing of this host.
fn is_public(path: &str) -> bool {
    path == "/api/v1/session" || (!path.starts_with("/api/") && path != "/metrics")
}

/// Lets a request through, with who asks, or not.
pub async fn gate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let peer = request.extensions().get::<Peer>().cloned();
    let caller = match &peer {
        Some(Peer::Local(caller)) => Some(caller.clone()),
        Some(Peer::Distant(_)) => by_headers(&api, request.headers()),
        None => None,
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let refused = if caller.is_none() && !is_public(&path) {
        Some(
            Refusal::new(StatusCode::UNAUTHORIZED, "nobody is logged in")
                .with("log in with a token: `keyframe token add NAME --role read` makes one"),
        )
    } else if !reads && !request.headers().contains_key(AGAINST_FORGERY) {
        Some(Refusal::new(StatusCode::FORBIDDEN, "a request that changes something carries the header X-Keyframe"))
    } else {
        None
    };
    let mut response = match refused {
        Some(refusal) => refusal.into_response(),
        None => {
            let patience = if caller.is_some() { PATIENCE } else { PATIENCE_WITH_STRANGERS };
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            let answer = next.run(request);
            if reads {
                answer.await
            } else {
                let late = || Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response();
                tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| late())
            }
        }
    };
    if response.status().is_client_error() && !is_json(response.headers()) {
        response = worded(response).await;
    }
    protect(response.headers_mut(), &path);
    response
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// What could not be read is refused in the words of whoever tried: they become a refusal like any other.
async fn worded(response: Response) -> Response {
    let status = response.status();
    let words = axum::body::to_bytes(response.into_body(), WORDS_MOST).await.unwrap_or_default();
    Refusal::new(status, String::from_utf8_lossy(&words).into_owned()).into_response()
}

fn protect(headers: &mut HeaderMap, path: &str) {
    let evidence = path.starts_with("/api/v1/drills/");
    let content = if evidence { CONTENT_OF_EVIDENCE } else { CONTENT };
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(content));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let more =
        [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "SAMEORIGIN")];
    for (name, value) in more {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

fn by_headers(api: &Api, headers: &HeaderMap) -> Option<Caller> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        return api.door.by_token(value.to_str().ok()?.strip_prefix("Bearer ")?.trim());
    }
    api.door.by_session(&cookie(headers)?)
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(';'));
    let ours = all.filter_map(|pair| pair.trim().split_once('=')).find(|(name, _)| *name == COOKIE_NAME);
    ours.map(|(_, value)| value.to_owned())
}

/// Whether somebody may.
pub fn allow(caller: &Caller, role: Role) -> Result<(), Refusal> {
    if caller.role >= role {
        return Ok(());
    }
    let what = format!("{} has the role {}, and this takes {}", caller.who, caller.role.as_str(), role.as_str());
    Err(Refusal::new(StatusCode::FORBIDDEN, what))
}

/// Who asks.
pub async fn session(caller: Option<Extension<Caller>>, Extension(peer): Extension<Peer>) -> Json<Value> {
    let local = matches!(peer, Peer::Local(_));
    Json(match caller {
        Some(Extension(caller)) => {
            json!({"role": caller.role, "name": caller.who, "needs_login": false, "can_log_out": !local})
        }
        None => json!({"role": null, "name": null, "needs_login": true, "can_log_out": false}),
    })
}

#[derive(Debug, Deserialize)]
pub struct LogIn {
    token: String,
}

/// Logs somebody in.
pub async fn log_in(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    Json(with): Json<LogIn>,
) -> Result<Response, Refusal> {
    let Some((session, caller)) = api.door.log_in(with.token.trim())? else {
        tokio::time::sleep(WRONG_TOKEN).await;
        tracing::warn!("a token that is none, from {peer:?}");
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "that is no token that is good here"));
    };
    api.shared.note(&caller.who, "log in", "done")?;
    let cookie = format!("{COOKIE_NAME}={session}; Path=/; HttpOnly; Secure; SameSite=Strict; Max-Age=43200");
    let answer = Json(json!({"role": caller.role, "name": caller.who, "needs_login": false, "can_log_out": true}));
    Ok(([(SET_COOKIE, cookie)], answer).into_response())
}

/// Ends a session.
pub async fn log_out(State(api): State<Api>, headers: HeaderMap) -> Response {
    if let Some(session) = cookie(&headers) {
        api.door.log_out(&session);
    }
    let gone = format!("{COOKIE_NAME}=; Path=/; HttpOnly; Secure; SameSite=Strict; Max-Age=0");
    ([(SET_COOKIE, gone)], Json(json!({}))).into_response()
}
