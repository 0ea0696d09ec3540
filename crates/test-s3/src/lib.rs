//! An S3 server in this process, for tests: s3s-fs behind a layer that lies, refuses, stalls and cuts short on demand.
//!
//! s3s-fs looks whether an object is there and then writes it, so two conditional writes at once could both succeed; here they
//! wait for each other, as a server that means it has to make them.

mod backend;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use backend::Backend;

/// The bucket that is there.
pub const BUCKET: &str = "bucket";
const KEY_ID: &str = "AKIDTESTTESTTEST";
const SECRET: &str = "a-secret-that-must-not-be-printed";

/// What happens to a request instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// `503 Slow Down`; nothing is carried out.
    Busy,
    /// It is carried out, and the answer is `500`.
    Unheard,
    /// It is carried out; half the answer's body arrives, then the connection ends.
    CutShort,
    /// Nothing comes for this long.
    Silent(Duration),
    /// `507 Insufficient Storage`.
    Full,
}

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Default)]
struct Behaviour {
    ignores_conditions: AtomicBool,
    refuses_conditions: AtomicBool,
    troubles: Mutex<VecDeque<Trouble>>,
    requests: AtomicU64,
    bytes_out: AtomicU64,
    root: PathBuf,
    one_at_a_time: tokio::sync::Mutex<()>,
}

/// The server; it ends with its value.
#[derive(Debug)]
pub struct Server {
    endpoint: String,
    behaviour: Arc<Behaviour>,
    dir: tempfile::TempDir,
    _runtime: Runtime,
}

impl Server {
    /// Starts one with an empty bucket.
    ///
    /// # Panics
    /// When it cannot: there is no test without it.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join(BUCKET)).expect("a bucket");
        let mut builder = S3ServiceBuilder::new(Backend::new(dir.path().to_owned()));
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let behaviour = Arc::new(Behaviour { root: dir.path().to_owned(), ..Behaviour::default() });
        runtime.spawn(serve(listener, service, Arc::clone(&behaviour)));
        Self { endpoint, behaviour, dir, _runtime: runtime }
    }

    /// What a client needs in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The secret: to look for where it must not be.
    #[must_use]
    pub fn secret(&self) -> &'static str {
        SECRET
    }

    /// The directory where the bucket's objects lie.
    #[must_use]
    pub fn bucket_dir(&self) -> PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// From now on it takes conditional writes for plain ones, and says nothing.
    pub fn ignore_conditions(&self) {
        self.behaviour.ignores_conditions.store(true, Ordering::Relaxed);
    }

    /// From now on it answers conditional writes with `501`.
    pub fn refuse_conditions(&self) {
        self.behaviour.refuses_conditions.store(true, Ordering::Relaxed);
    }

    /// The next requests meet these, one each.
    pub fn meet(&self, troubles: &[Trouble]) {
        let mut queue = self.behaviour.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(troubles);
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.behaviour.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies that it sent.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.behaviour.bytes_out.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, service: S3Service, behaviour: Arc<Behaviour>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (service, behaviour) = (service.clone(), Arc::clone(&behaviour));
        tokio::spawn(async move {
            let answering = service_fn(move |request| {
                let (service, behaviour) = (service.clone(), Arc::clone(&behaviour));
                async move { Ok::<_, Infallible>(answer(&service, &behaviour, request).await) }
            });
            // A client that went away, or a body cut short on purpose.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answering).await;
        });
    }
}

async fn answer(service: &S3Service, behaviour: &Behaviour, request: Request<Incoming>) -> Response<Body> {
    behaviour.requests.fetch_add(1, Ordering::Relaxed);
    let trouble = behaviour.troubles.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    match trouble {
        Some(Trouble::Busy) => return plain(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        Some(Trouble::Full) => return plain(StatusCode::INSUFFICIENT_STORAGE, "StorageFull"),
        Some(Trouble::Silent(time)) => tokio::time::sleep(time).await,
        Some(Trouble::Unheard | Trouble::CutShort) | None => {}
    }
    // s3s-fs makes what is not there.
    let bucket = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    if !behaviour.root.join(bucket).is_dir() {
        return plain(StatusCode::NOT_FOUND, "NoSuchBucket");
    }
    let conditional = request.method() == Method::PUT && request.headers().contains_key("if-none-match");
    if conditional && behaviour.refuses_conditions.load(Ordering::Relaxed) {
        return plain(StatusCode::NOT_IMPLEMENTED, "NotImplemented");
    }
    let _turn = if conditional { Some(behaviour.one_at_a_time.lock().await) } else { None };
    if conditional && behaviour.ignores_conditions.load(Ordering::Relaxed) {
        // The header is signed, so it cannot be taken away; what it asks for can.
        let _ = std::fs::remove_file(behaviour.root.join(request.uri().path().trim_start_matches('/')));
    }
    let answered = match service.call(request.map(s3s::Body::from)).await {
        Ok(response) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    };
    let (mut parts, body) = answered.into_parts();
    let Ok(body) = body.collect().await else { return plain(StatusCode::INTERNAL_SERVER_ERROR, "InternalError") };
    let bytes = body.to_bytes();
    match trouble {
        Some(Trouble::Unheard) => plain(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Some(Trouble::CutShort) => {
            // The length promises more than comes.
            parts.headers.insert("content-length", bytes.len().into());
            let half = Frame::data(bytes.slice(..bytes.len() / 2));
            let ended = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            let frames = futures_util::stream::iter([Ok(half), Err(ended.into())]);
            Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
        }
        _ => {
            behaviour.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Response::from_parts(parts, whole(bytes))
        }
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn plain(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>");
    let mut response = Response::new(whole(text.into()));
    *response.status_mut() = status;
    response
}
