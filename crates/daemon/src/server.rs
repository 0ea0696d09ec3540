//! Connections: a socket for the host's own users, TLS for everybody else; bounded in number and in patience.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::{Request, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use crate::access::{Caller, Role};
use crate::api::Peer;
use crate::error::{Error, IoContext as _};

/// How many connections there are at once, of each listener.
const CONNECTIONS: usize = 200;
/// How long a client may take for a handshake, or for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a listener rests when the system has no descriptor left.
const REST: Duration = Duration::from_millis(200);

/// The socket of a home's daemon.
#[must_use]
pub fn socket(serve: &Path) -> std::path::PathBuf {
    serve.join("api.sock")
}

/// Listens for the host's own users: whoever may open the socket, which is its owner and root.
///
/// # Errors
/// [`Error::Io`] when it cannot.
pub fn listen(serve: &Path) -> Result<UnixListener, Error> {
    let path = socket(serve);
    // Left by one that was killed: the home's lock says that nobody listens.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).or_io("listen on", &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).or_io("protect", &path)?;
    Ok(listener)
}

/// Serves them.
pub async fn on_socket(listener: UnixListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let caller = Caller { who: format!("uid {}", peer.uid()), role: Role::Admin };
        let router = router.clone();
        tokio::spawn(async move {
            converse(stream, router, Peer::Local(caller)).await;
            drop(permit);
        });
    }
}

/// Binds an address.
///
/// # Errors
/// [`Error::Io`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.or_io("listen on", Path::new(&address.to_string()))
}

/// Serves those who come over the network.
pub async fn on_network(listener: TcpListener, tls: TlsAcceptor, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        // Answers are small: none waits for more to be sent with it.
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                converse(stream, router, Peer::Distant(from)).await;
            }
            drop(permit);
        });
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router, peer: Peer) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 << 10);
    // A client that goes away in the middle is no trouble of ours.
    let _: Result<(), hyper::Error> = http.serve_connection(TokioIo::new(stream), service).await;
}
